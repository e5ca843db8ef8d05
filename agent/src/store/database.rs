//! The state machine: one SQLite database, changed by one thread, in the order of the log.
//!
//! What an entry does and how far the log is applied change in one transaction. The thread takes a whole run of committed
//! entries, carries them out in one transaction, answers afterwards. What an entry does must be the same on every member: no
//! clock, no chance, no state of the connection ([`functions`]), no pragma, no transaction of its own ([`guard`]), bounded
//! work. A statement that fails changes nothing and is refused alike everywhere; a failure of the disk or of memory is none of
//! the statement's and stops the member instead.
//!
//! Weft's own tables begin with `weft_` and are written only by statements that name them; `weft_raft` (position and members)
//! and `weft_removed` (members that were removed, for ever) only by this room.

mod apply;
mod functions;
mod guard;
mod readers;
mod run;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use arc_swap::ArcSwap;
use openraft::alias::LogIdOf;
use openraft::storage::EntryResponder;
use rusqlite::backup::Backup;
use rusqlite::limits::Limit;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _};
use tokio::sync::{mpsc, oneshot};

use super::changes::Changed;
use super::error::OpenError;
use super::raft::{self, Config, StoredMembership};
pub(super) use readers::Readers;
use run::Runner;

/// Runs of entries that wait; openraft sends one after the other.
const QUEUE: usize = 16;
/// The largest value and the largest row.
const MAX_VALUE_BYTES: i32 = 16 * 1024 * 1024;
/// Pages of the write-ahead log after which it is copied into the database.
const CHECKPOINT_PAGES: u32 = 2000;

/// How far the log is applied, and who the members were then.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Position {
    pub(super) applied: Option<LogIdOf<Config>>,
    pub(super) membership: StoredMembership,
}

/// Members that were removed.
pub(super) type Removed = Arc<ArcSwap<BTreeSet<u64>>>;

/// What is told after each run: how far it is applied and which tables it changed.
pub(super) type Notify = Arc<dyn Fn(u64, &Changed) + Send + Sync>;

/// The handle of the thread; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Database {
    path: PathBuf,
    jobs: mpsc::Sender<Job>,
}

enum Job {
    Apply(Vec<EntryResponder<Config>>, oneshot::Sender<io::Result<()>>),
    Install(PathBuf, oneshot::Sender<io::Result<Position>>),
    Position(oneshot::Sender<io::Result<Position>>),
}

impl Database {
    /// Opens the database at `path`, makes it if there is none, and starts its thread, which holds `lock`.
    ///
    /// # Errors
    /// [`OpenError::Database`].
    pub(super) fn open(
        path: &Path,
        notify: Notify,
        removed: Removed,
        lock: Arc<File>,
    ) -> Result<(Self, Position), OpenError> {
        let failed = |source| OpenError::Database { path: path.to_owned(), source };
        let connection = writer(path).map_err(failed)?;
        let position = read_position(&connection).map_err(failed)?;
        removed.store(Arc::new(read_removed(&connection).map_err(failed)?));
        let runner = Runner::new(connection).map_err(failed)?;
        let (jobs, queue) = mpsc::channel(QUEUE);
        let mut applier = apply::Applier::new(runner, position.clone(), notify, removed);
        thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || {
                serve(&mut applier, queue);
                // Closing removes SQLite's own log by its name: whoever takes the lock may have another one there by then.
                drop(applier);
                drop(lock);
            })
            .map_err(|source| OpenError::File { action: "start the thread of", path: path.to_owned(), source })?;
        Ok((Self { path: path.to_owned(), jobs }, position))
    }

    /// Carries out a run of entries and answers their proposers.
    pub(super) async fn apply(&self, entries: Vec<EntryResponder<Config>>) -> io::Result<()> {
        self.ask(|done| Job::Apply(entries, done)).await
    }

    /// Replaces the content by that of the database at `from`.
    pub(super) async fn install(&self, from: PathBuf) -> io::Result<Position> {
        self.ask(|done| Job::Install(from, done)).await
    }

    /// The same outside of a runtime. Blocks.
    pub(super) fn install_blocking(&self, from: PathBuf) -> io::Result<Position> {
        let gone = || io::Error::other("the thread of the database is gone");
        let (done, answer) = oneshot::channel();
        self.jobs.blocking_send(Job::Install(from, done)).map_err(|_gone| gone())?;
        answer.blocking_recv().map_err(|_gone| gone())?
    }

    /// How far it is.
    pub(super) async fn position(&self) -> io::Result<Position> {
        self.ask(Job::Position).await
    }

    /// Copies the database as it is now to the new file `to`, which is durable afterwards. Blocks.
    pub(super) fn copy(&self, to: &Path) -> io::Result<Position> {
        copy(&self.path, to).map_err(io::Error::other).and_then(|position| {
            File::open(to)?.sync_all()?;
            Ok(position)
        })
    }

    async fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<io::Result<T>>) -> Job) -> io::Result<T> {
        let gone = || io::Error::other("the thread of the database is gone");
        let (done, answer) = oneshot::channel();
        self.jobs.send(job(done)).await.map_err(|_gone| gone())?;
        answer.await.map_err(|_gone| gone())?
    }
}

fn serve(applier: &mut apply::Applier, mut queue: mpsc::Receiver<Job>) {
    while let Some(job) = queue.blocking_recv() {
        // An answer that nobody waits for is not needed.
        match job {
            Job::Apply(entries, done) => done.send(applier.apply(entries)).unwrap_or_default(),
            Job::Install(from, done) => done.send(applier.install(&from)).unwrap_or_default(),
            Job::Position(done) => done.send(Ok(applier.position())).unwrap_or_default(),
        }
    }
}

/// The one connection that writes.
fn writer(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.execute_batch(&format!(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES};
         PRAGMA foreign_keys = ON; PRAGMA trusted_schema = OFF; PRAGMA temp_store = MEMORY;
         CREATE TABLE IF NOT EXISTS weft_raft (
             one INTEGER PRIMARY KEY CHECK (one = 1), term INTEGER, member INTEGER, position INTEGER, membership TEXT
         ) STRICT;
         INSERT OR IGNORE INTO weft_raft (one) VALUES (1);
         CREATE TABLE IF NOT EXISTS weft_removed (member INTEGER PRIMARY KEY) STRICT;"
    ))?;
    limit(&connection)?;
    Ok(connection)
}

/// Bounds that are the same on every member.
fn limit(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)?;
    connection.set_limit(Limit::SQLITE_LIMIT_ATTACHED, 0)?;
    connection.set_limit(Limit::SQLITE_LIMIT_TRIGGER_DEPTH, 100)?;
    Ok(())
}

/// A connection that only reads; its database exists.
fn reader(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    limit(&connection)?;
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    Ok(connection)
}

type PositionRow = (Option<i64>, Option<i64>, Option<i64>, Option<String>);

fn read_position(connection: &Connection) -> rusqlite::Result<Position> {
    let sql = "SELECT term, member, position, membership FROM weft_raft";
    let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?));
    let row: Option<PositionRow> = connection.query_row(sql, [], read).optional()?;
    let (term, member, index, membership) = row.unwrap_or_default();
    let applied = match (term, member, index) {
        (Some(term), Some(member), Some(index)) => {
            Some(raft::log_id(term.cast_unsigned(), member.cast_unsigned(), index.cast_unsigned()))
        }
        _ => None,
    };
    let membership = membership.map(|json| serde_json::from_str(&json)).transpose();
    let membership = membership
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(3, rusqlite::types::Type::Text, Box::new(error)))?;
    Ok(Position { applied, membership: membership.unwrap_or_default() })
}

fn read_removed(connection: &Connection) -> rusqlite::Result<BTreeSet<u64>> {
    let mut members = connection.prepare("SELECT member FROM weft_removed")?;
    let members = members.query_map([], |row| row.get::<_, i64>(0).map(i64::cast_unsigned))?;
    members.collect()
}

/// The position that the database file at `path` holds, whoever has it open.
///
/// # Errors
/// It is no database of ours.
pub(super) fn position_of(path: &Path) -> rusqlite::Result<Position> {
    read_position(&reader(path)?)
}

fn copy(from: &Path, to: &Path) -> rusqlite::Result<Position> {
    let source = reader(from)?;
    // One read transaction: the position belongs to the copy.
    source.execute_batch("BEGIN")?;
    let position = read_position(&source)?;
    let mut target = Connection::open(to)?;
    target.execute_batch("PRAGMA synchronous = OFF")?;
    whole(&Backup::new(&source, &mut target)?)?;
    target.execute_batch("PRAGMA journal_mode = DELETE")?;
    target.close().map_err(|(_, error)| error)?;
    Ok(position)
}

/// Replaces all of `to` by `from`.
pub(super) fn copy_whole(from: &Connection, to: &mut Connection) -> rusqlite::Result<()> {
    whole(&Backup::new(from, to)?)
}

/// Copies all pages in one step.
fn whole(backup: &Backup<'_, '_>) -> rusqlite::Result<()> {
    use rusqlite::backup::StepResult;
    match backup.step(-1)? == StepResult::Done {
        true => Ok(()),
        false => Err(rusqlite::Error::SqliteFailure(
            rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY),
            Some("the database was busy while it was copied".to_owned()),
        )),
    }
}
