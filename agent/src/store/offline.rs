//! What is done to a store that no agent has open: filling it from a backup.
//!
//! A restored store is a cluster of one with a new member number: members of the store it was copied from would otherwise take
//! its log for theirs. They join it anew. What was there is kept beside it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, OpenFlags};

use super::core::Files;
use super::error::OpenError;

/// Why a backup was not restored. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("the store {} is in use: stop the agent first (systemctl stop weft)", .0.display())]
    InUse(PathBuf),
    #[error("{} is not a backup of a Weft store", path.display())]
    NotABackup {
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    #[error("{} is damaged: {what}", path.display())]
    Damaged { path: PathBuf, what: String },
    #[error("failed to {action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Open(OpenError),
}

/// Where things are after a restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// What was in the store directory before; `None`: nothing.
    pub kept: Option<PathBuf>,
}

/// Makes a new store in `directory` whose database is the backup `from`. Blocks.
///
/// # Errors
/// [`RestoreError`]; the store is as it was.
pub fn restore(directory: &Path, from: &Path) -> Result<Restored, RestoreError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| RestoreError::File { action, path, source }
    };
    check(from)?;
    let lock = match directory.exists() {
        true => Some(Files::of(directory).take().map_err(not_taken)?),
        false => None,
    };
    let beside = beside(directory, "restoring");
    if beside.exists() {
        fs::remove_dir_all(&beside).map_err(failed("remove", &beside))?;
    }
    let files = Files::of(&beside);
    let new_lock = files.take().map_err(RestoreError::Open)?;
    files.member().map_err(RestoreError::Open)?;
    fill(&files.database, from).map_err(|source| RestoreError::NotABackup { path: from.to_owned(), source })?;
    fs::File::open(&files.database).and_then(|file| file.sync_all()).map_err(failed("sync", &files.database))?;
    drop(new_lock);
    let kept = lock.as_ref().map(|_| self::beside(directory, &format!("before-restore-{}", seconds())));
    if let Some(kept) = &kept {
        fs::rename(directory, kept).map_err(failed("move away", directory))?;
    }
    fs::rename(&beside, directory).map_err(failed("put in place", directory))?;
    drop(lock);
    Ok(Restored { kept })
}

fn not_taken(error: OpenError) -> RestoreError {
    if let OpenError::InUse(path) = error { RestoreError::InUse(path) } else { RestoreError::Open(error) }
}

fn beside(directory: &Path, what: &str) -> PathBuf {
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    directory.with_file_name(format!("{name}.{what}"))
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Whether the file is a whole database of ours.
fn check(from: &Path) -> Result<(), RestoreError> {
    let not_a_backup = |source| RestoreError::NotABackup { path: from.to_owned(), source };
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(from, flags).map_err(not_a_backup)?;
    connection.query_row("SELECT one FROM weft_raft", [], |_row| Ok(())).map_err(not_a_backup)?;
    let verdict: String =
        connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(not_a_backup)?;
    match verdict.as_str() {
        "ok" => Ok(()),
        _ => Err(RestoreError::Damaged { path: from.to_owned(), what: verdict }),
    }
}

/// Copies the backup and forgets how far which log was carried out and who the members were.
fn fill(database: &Path, from: &Path) -> rusqlite::Result<()> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let source = Connection::open_with_flags(from, flags)?;
    let mut target = Connection::open(database)?;
    super::database::copy_whole(&source, &mut target)?;
    target.execute_batch("UPDATE weft_raft SET term = NULL, member = NULL, position = NULL, membership = NULL")?;
    target.close().map_err(|(_, error)| error)
}
