//! The handle that the rest of the agent uses.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use openraft::errors::{ClientWriteError, RaftError};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use weft_proto::v1::{RaftApplyResponse, RaftLogEntry};

use super::changes::{Changes, Watchers};
use super::contract;
use super::core::Running;
use super::entry::{self, Encoding};
use super::error::StoreError;
use super::metrics::Metrics;
use super::raft::Payload;
use super::statement::{Consistency, Executed, Outcome, Rows, Statement};
use super::status::Status;
use crate::foundation::task::Task;

/// Writes under way at a time; more are told to try again.
const WRITES: usize = 4096;
/// How long a write or a linearizable read may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two attempts while no leader is known.
const PAUSE: Duration = Duration::from_millis(10);

/// The store of this node; cheap to clone. The last clone closes it.
#[derive(Debug, Clone)]
pub struct Handle {
    pub(super) shared: Arc<Shared>,
    pub(super) _task: Arc<Task>,
}

/// What the handle and the task of the store share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) encoding: Encoding,
    pub(super) running: ArcSwapOption<Running>,
    pub(super) watchers: Watchers,
    pub(super) status: watch::Sender<Arc<Status>>,
    /// Log index that is carried out here.
    pub(super) applied: watch::Sender<u64>,
    pub(super) writes: Semaphore,
    pub(super) metrics: Metrics,
}

/// Numbers that change with every write, read when somebody asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Figures {
    pub term: u64,
    /// Last entry of the log here, last one carried out here.
    pub last_log: u64,
    pub applied: u64,
    /// Last entry in the newest snapshot, last one purged; 0: none.
    pub snapshot: u64,
    pub purged: u64,
    /// Bytes of the entries that are not purged, and of the database.
    pub log_bytes: u64,
    pub database_bytes: u64,
}

impl Shared {
    pub(super) fn new(encoding: Encoding, metrics: Metrics) -> Self {
        Self {
            encoding,
            running: ArcSwapOption::empty(),
            watchers: Watchers::default(),
            status: watch::Sender::default(),
            applied: watch::Sender::new(0),
            writes: Semaphore::new(WRITES),
            metrics,
        }
    }

    pub(super) fn running(&self) -> Result<Arc<Running>, StoreError> {
        self.running.load_full().ok_or_else(|| {
            let status = self.status.borrow();
            StoreError::NotRunning(status.errors.first().cloned().unwrap_or_else(|| "it is being opened".to_owned()))
        })
    }
}

impl Handle {
    /// A store that is never opened, for tests of what is above it.
    #[cfg(test)]
    pub(crate) fn absent() -> Self {
        let shared = Arc::new(Shared::new(Encoding::default(), Metrics::default()));
        Self { shared, _task: Arc::new(crate::foundation::task::spawn("store", async {})) }
    }

    /// Carries out one statement that returns no rows.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn exec(&self, statement: Statement) -> Result<Executed, StoreError> {
        match self.transaction(vec![statement]).await?.pop() {
            Some(Outcome::Executed(executed)) => Ok(executed),
            Some(Outcome::Rows(_)) | None => Err(StoreError::Invalid("this is a query: use query".to_owned())),
        }
    }

    /// Carries out all of `statements` or none, in one log entry; up to 1000 of them and 1 MiB.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn transaction(&self, statements: Vec<Statement>) -> Result<Vec<Outcome>, StoreError> {
        let began = Instant::now();
        let result = self.propose(Payload(entry::encode(statements, self.shared.encoding)?)).await;
        self.shared.metrics.write(began.elapsed(), &result);
        result
    }

    /// The rows of a query, which may not write.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn query(&self, statement: Statement, consistency: Consistency) -> Result<Rows, StoreError> {
        let running = self.shared.running()?;
        if consistency == Consistency::Linearizable {
            let barrier = async {
                let index = running.barrier().index().await?;
                let mut applied = self.shared.applied.subscribe();
                // The sender lives in what we hold.
                drop(applied.wait_for(|applied| *applied >= index).await);
                Ok::<(), StoreError>(())
            };
            let late = |_elapsed| StoreError::Timeout { seconds: PATIENCE.as_secs() };
            timeout(PATIENCE, barrier).await.map_err(late)??;
        }
        let result = running.readers.query(statement.as_query()).await;
        self.shared.metrics.query(consistency, &result);
        result
    }

    /// Carries out an entry of the contract: `SQLExec` in the log, `SQLQuery` as a linearizable read.
    ///
    /// # Errors
    /// [`StoreError`] if nothing is known of the statement; what is wrong with the statement itself is in the response.
    pub async fn apply(&self, entry: RaftLogEntry) -> Result<RaftApplyResponse, StoreError> {
        contract::apply(self, entry).await
    }

    /// Watches the rows of `tables`.
    pub fn watch(&self, tables: &[&str]) -> Changes {
        self.shared.watchers.watch(tables)
    }

    /// What the store is and who its members are, and every change of it.
    pub fn status(&self) -> watch::Receiver<Arc<Status>> {
        self.shared.status.subscribe()
    }

    /// The numbers now.
    pub fn figures(&self) -> Figures {
        Self::figures_of(&self.shared)
    }

    pub(super) fn figures_of(shared: &Shared) -> Figures {
        shared.running.load().as_ref().map_or_else(Figures::default, |running| running.figures())
    }

    /// Waits until a leader is known and the tables of every declared schema are there.
    pub async fn ready(&self) {
        let mut status = self.status();
        // The sender lives in what we hold.
        drop(status.wait_for(|status| status.ready && status.leader.is_some()).await);
    }

    /// The number of this member, made with its store directory. `None`: the store is not open.
    pub fn raft_id(&self) -> Option<u64> {
        self.shared.running.load().as_ref().map(|running| running.raft_id)
    }

    /// Copies the database as it is here to the file `to`, which does not exist yet and is durable afterwards.
    ///
    /// # Errors
    /// [`StoreError::NotRunning`], [`StoreError::Failed`].
    pub async fn backup(&self, to: PathBuf) -> Result<(), StoreError> {
        let database = self.shared.running()?.state.database.clone();
        let copied = tokio::task::spawn_blocking(move || database.copy(&to)).await;
        let failed = |error: std::io::Error| StoreError::Failed(format!("failed to copy the database: {error}"));
        copied.map_err(|error| failed(error.into()))?.map_err(failed)?;
        Ok(())
    }

    /// Has it proposed by the leader and waits until it is carried out.
    async fn propose(&self, payload: Payload) -> Result<Vec<Outcome>, StoreError> {
        let Ok(_slot) = self.shared.writes.try_acquire() else { return Err(StoreError::Busy) };
        let mut missing = None;
        match timeout(PATIENCE, self.propose_until(payload, &mut missing)).await {
            Ok(result) => result,
            Err(_elapsed) => Err(match missing {
                Some(missing) => StoreError::NoLeader(missing),
                None => StoreError::Timeout { seconds: PATIENCE.as_secs() },
            }),
        }
    }

    /// Tries until a leader takes it. `missing` says why none does, while nothing is proposed.
    async fn propose_until(&self, payload: Payload, missing: &mut Option<String>) -> Result<Vec<Outcome>, StoreError> {
        loop {
            let running = self.shared.running()?;
            *missing = None;
            match running.raft.client_write(payload.clone()).await {
                Ok(response) => return outcomes(response.data.0),
                // Nothing was proposed.
                Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                    *missing = Some(match forward.leader_node {
                        Some(leader) => format!("{leader} leads and cannot be asked from here"),
                        None => "none is elected".to_owned(),
                    });
                }
                Err(RaftError::APIError(ClientWriteError::LogEntryDiscarded(_))) => return Err(StoreError::Unknown),
                Err(RaftError::APIError(error)) => return Err(StoreError::Failed(error.to_string())),
                Err(RaftError::Fatal(fatal)) => return Err(StoreError::NotRunning(fatal.to_string())),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

pub(super) fn outcomes(applied: Option<Result<Vec<Outcome>, super::Refusal>>) -> Result<Vec<Outcome>, StoreError> {
    match applied {
        Some(result) => Ok(result?),
        None => Err(StoreError::Failed("the entry was not a statement".to_owned())),
    }
}
