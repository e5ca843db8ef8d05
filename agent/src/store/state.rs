//! openraft's view of the state machine: the database and its snapshots.

use std::io;

use futures_util::{Stream, StreamExt as _};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{OptionalSend, RaftSnapshotBuilder};

use super::database::Database;
use super::disk::Disk;
use super::raft::{Config, Id, SnapshotMeta, StoredMembership};
use super::snapshot::{SnapshotFile, Snapshots, StoreSnapshot};

/// Entries carried out in one transaction.
const RUN: usize = 512;

/// The state machine of this member; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct State {
    pub(super) database: Database,
    pub(super) snapshots: Snapshots,
    pub(super) disk: Disk,
}

impl RaftStateMachine<Config> for State {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<Id>, StoredMembership), io::Error> {
        let position = self.database.position().await?;
        Ok((position.applied, position.membership))
    }

    async fn apply<S>(&mut self, entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Config>, io::Error>> + Unpin + OptionalSend,
    {
        let mut runs = entries.ready_chunks(RUN);
        while let Some(run) = runs.next().await {
            self.database.apply(run.into_iter().collect::<Result<_, _>>()?).await?;
        }
        Ok(())
    }

    /// None while the disk has no room for one: the log is kept until it has.
    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<Self::SnapshotBuilder> {
        self.disk.fits_a_snapshot().then(|| self.clone())
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotFile) -> Result<(), io::Error> {
        let position = self.database.install(snapshot.0.clone()).await?;
        if position.applied != meta.last_log_id {
            return Err(io::Error::other("a snapshot that was installed does not hold the entry it is named after"));
        }
        let snapshots = self.snapshots.clone();
        tokio::task::spawn_blocking(move || snapshots.adopt(&snapshot.0, position)).await??;
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<StoreSnapshot>, io::Error> {
        Ok(self.snapshots.newest())
    }
}

impl RaftSnapshotBuilder<Config> for State {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<StoreSnapshot, io::Error> {
        let state = self.clone();
        tokio::task::spawn_blocking(move || state.snapshots.make(&state.database)).await?
    }
}
