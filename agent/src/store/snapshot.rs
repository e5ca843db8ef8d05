//! Snapshots: whole copies of the database as files, made by SQLite's backup, durable before they are named.
//!
//! A file is named after the last entry it holds; what is inside says the same, and the members too. The newest is kept.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use openraft::storage::Snapshot;

use super::database::{Database, Position, position_of};
use super::raft::{Config, SnapshotMeta};

/// A snapshot's content: a database file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SnapshotFile(pub(super) PathBuf);

pub(super) type StoreSnapshot = openraft::alias::SnapshotOf<Config, SnapshotFile>;

/// The directory of snapshots; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Snapshots {
    directory: PathBuf,
    newest: Arc<Mutex<Option<(SnapshotMeta, PathBuf)>>>,
}

impl Snapshots {
    /// What is in `directory`, which exists. Half-made files are removed.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        let mut newest: Option<(SnapshotMeta, PathBuf)> = None;
        for found in fs::read_dir(directory)? {
            let path = found?.path();
            if path.extension().is_none_or(|extension| extension != "db") {
                fs::remove_file(&path)?;
                continue;
            }
            let meta = meta(position_of(&path).map_err(io::Error::other)?);
            if newest.as_ref().is_none_or(|(known, _)| known.last_log_id < meta.last_log_id) {
                newest = Some((meta, path));
            }
        }
        Ok(Self { directory: directory.to_owned(), newest: Arc::new(Mutex::new(newest)) })
    }

    /// The newest one.
    pub(super) fn newest(&self) -> Option<StoreSnapshot> {
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        newest.as_ref().map(|(meta, path)| Snapshot { meta: meta.clone(), snapshot: SnapshotFile(path.clone()) })
    }

    /// Makes one of what is applied now. Blocks.
    pub(super) fn make(&self, database: &Database) -> io::Result<StoreSnapshot> {
        let unfinished = self.unfinished("made");
        remove_if_there(&unfinished)?;
        let position = database.copy(&unfinished)?;
        self.adopt(&unfinished, position)
    }

    /// Where a snapshot that another member sends is collected.
    pub(super) fn unfinished(&self, kind: &str) -> PathBuf {
        self.directory.join(format!("{kind}.part"))
    }

    /// Takes the finished and durable file `from` as the newest snapshot.
    pub(super) fn adopt(&self, from: &Path, position: Position) -> io::Result<StoreSnapshot> {
        let meta = meta(position);
        let name = meta.last_log_id.map_or_else(
            || "empty.db".to_owned(),
            |id| format!("{}-{:016x}-{}.db", id.leader_id.term, id.leader_id.node_id, id.index),
        );
        let path = self.directory.join(name);
        fs::rename(from, &path)?;
        fs::File::open(&self.directory)?.sync_all()?;
        let before = self
            .newest
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .replace((meta.clone(), path.clone()))
            .filter(|(_, old)| *old != path);
        if let Some((_, old)) = before {
            // Being sent to another member keeps it readable until that is done.
            remove_if_there(&old)?;
        }
        Ok(Snapshot { meta, snapshot: SnapshotFile(path) })
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn meta(position: Position) -> SnapshotMeta {
    SnapshotMeta { last_log_id: position.applied, last_membership: position.membership }
}
