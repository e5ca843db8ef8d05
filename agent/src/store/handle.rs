//! The handle that the rest of the agent uses.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::timeout;
use weft_proto::v1::{RaftApplyResponse, RaftLogEntry};

use super::Formation;
use super::changes::{Changes, Watchers};
use super::contract;
use super::core::{Order, Rejected, Running};
use super::entry::{self, Encoding};
use super::error::StoreError;
use super::metrics::Metrics;
use super::network::{CallError, Change, Changed, Kind, Link, Proposed};
use super::raft::{Payload, Peer};
use super::statement::{Consistency, Executed, Outcome, Rows, Statement};
use super::status::{Member, Status};
use crate::foundation::id::NodeId;
use crate::foundation::task::Task;

/// Writes under way at a time; more are told to try again.
const WRITES: usize = 4096;
/// How long a write or a linearizable read may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two attempts while no leader is known.
const PAUSE: Duration = Duration::from_millis(10);
/// How long a change of the membership may take where the leader does it: a new member gets everything first.
const CHANGE_PATIENCE: Duration = Duration::from_secs(90);

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
    pub(super) orders: mpsc::Sender<Order>,
}

/// Numbers that change with every write, read when somebody asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Figures {
    pub term: u64,
    /// Last entry of the log here, last one carried out here.
    pub last_log: u64,
    pub applied: u64,
    /// Entries that the slowest member lacks, if this one leads; else those that are here and not carried out.
    pub behind: u64,
    /// The middle one and the longest of the last syncs of the log.
    pub sync_median: Duration,
    pub sync_worst: Duration,
    /// Free on the disk of the store, and below what of it a leader takes no writes.
    pub disk_free_bytes: u64,
    pub disk_needed_bytes: u64,
    /// Last entry in the newest snapshot, last one purged; 0: none.
    pub snapshot: u64,
    pub purged: u64,
    /// Bytes of the entries that are not purged, and of the database.
    pub log_bytes: u64,
    pub database_bytes: u64,
}

impl Shared {
    pub(super) fn new(encoding: Encoding, metrics: Metrics, orders: mpsc::Sender<Order>) -> Self {
        Self {
            encoding,
            running: ArcSwapOption::empty(),
            watchers: Watchers::default(),
            status: watch::Sender::default(),
            applied: watch::Sender::new(0),
            writes: Semaphore::new(WRITES),
            metrics,
            orders,
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
    /// A store that is never opened, for tests and benches of what is above it.
    pub fn absent() -> Self {
        let (orders, _gone) = mpsc::channel(1);
        let shared = Arc::new(Shared::new(Encoding::default(), Metrics::default(), orders));
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
        let least = match consistency {
            Consistency::Linearizable => {
                let late = |_elapsed| StoreError::Timeout { seconds: PATIENCE.as_secs() };
                timeout(PATIENCE, self.shared.applied_all()).await.map_err(late)??
            }
            Consistency::Local => 0,
        };
        let readers = self.shared.running()?.readers.clone();
        let result = readers.query(statement.as_query(), least).await;
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

    /// What is wrong with the disk of the store and what helps; `None`: nothing.
    pub fn disk_problem(&self) -> Option<String> {
        self.shared.running.load().as_ref().and_then(|running| running.state.disk.problem())
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

    /// Adds `member` without a vote, and waits until it has everything that was there. The leader does it; one change at a time.
    ///
    /// # Errors
    /// [`StoreError::Membership`] says what is in the way.
    pub async fn add_learner(&self, member: Member) -> Result<(), StoreError> {
        let Member { raft_id, node, address, voter: _ } = member;
        self.shared.change(Change::AddLearner { member: raft_id, node, address }).await
    }

    /// Gives a member a vote.
    ///
    /// # Errors
    /// As [`Handle::add_learner`].
    pub async fn promote(&self, node: &NodeId) -> Result<(), StoreError> {
        self.shared.change(Change::Promote(node.clone())).await
    }

    /// Takes a member's vote; it keeps the log.
    ///
    /// # Errors
    /// As [`Handle::add_learner`].
    pub async fn demote(&self, node: &NodeId) -> Result<(), StoreError> {
        self.shared.change(Change::Demote(node.clone())).await
    }

    /// Removes a member for ever: its number is served nothing any more.
    ///
    /// # Errors
    /// As [`Handle::add_learner`].
    pub async fn remove(&self, node: &NodeId) -> Result<(), StoreError> {
        self.shared.change(Change::Remove(node.clone())).await
    }

    /// Has the leader hand over to this member, or to the one that has most of the log.
    ///
    /// # Errors
    /// As [`Handle::add_learner`].
    pub async fn transfer_leader(&self, node: Option<&NodeId>) -> Result<(), StoreError> {
        self.shared.change(Change::Transfer(node.cloned())).await
    }

    /// Lays the store of this node aside and opens an empty one with a new number, which waits until a leader adds it. Gives the
    /// new number.
    ///
    /// # Errors
    /// [`StoreError::NotRunning`]: the store was stopped or could not be opened anew.
    pub async fn start_over(&self) -> Result<u64, StoreError> {
        self.start_anew(Formation::Join).await
    }

    /// Lays the store of this node aside and opens an empty one that is a cluster of one. Gives its number.
    ///
    /// # Errors
    /// As [`Handle::start_over`].
    pub async fn begin_alone(&self) -> Result<u64, StoreError> {
        self.start_anew(Formation::Alone).await
    }

    async fn start_anew(&self, formation: Formation) -> Result<u64, StoreError> {
        let before = self.raft_id();
        let (done, began) = oneshot::channel();
        let stopped = || StoreError::NotRunning("it was stopped".to_owned());
        self.shared.orders.send(Order::StartOver(formation, done)).await.map_err(|_gone| stopped())?;
        began.await.map_err(|_gone| stopped())?.map_err(StoreError::NotRunning)?;
        let opened = async {
            loop {
                match self.raft_id().filter(|number| Some(*number) != before) {
                    Some(number) => return number,
                    None => tokio::time::sleep(PAUSE).await,
                }
            }
        };
        timeout(PATIENCE, opened)
            .await
            .map_err(|_elapsed| StoreError::NotRunning("the new store did not open".to_owned()))
    }

    /// Has it proposed by the leader and waits until it is carried out.
    async fn propose(&self, payload: Payload) -> Result<Vec<Outcome>, StoreError> {
        let Ok(_slot) = self.shared.writes.try_acquire() else { return Err(StoreError::Busy) };
        let mut missing = None;
        match timeout(PATIENCE, self.shared.propose_until(payload, &mut missing)).await {
            Ok(result) => result,
            Err(_elapsed) => Err(match missing {
                Some(missing) => StoreError::NoLeader(missing),
                None => StoreError::Timeout { seconds: PATIENCE.as_secs() },
            }),
        }
    }
}

impl Shared {
    /// Waits until everything that was committed before this call is carried out here; the log index of the last of it.
    async fn applied_all(&self) -> Result<u64, StoreError> {
        let index = self.running()?.barrier().index();
        let index = index.await?;
        let mut applied = self.applied.subscribe();
        // The sender lives in what we hold.
        drop(applied.wait_for(|applied| *applied >= index).await);
        Ok(index)
    }

    /// Tries until a leader takes it. `missing` says why none does, while nothing is proposed.
    async fn propose_until(&self, payload: Payload, missing: &mut Option<String>) -> Result<Vec<Outcome>, StoreError> {
        loop {
            let running = self.running()?;
            *missing = None;
            match running.propose(payload.clone()).await {
                Err(Rejected::Elsewhere(member, leader)) => {
                    let link = running.links.to(member, &leader);
                    // Who waits for another member does not keep the store's files open.
                    drop(running);
                    match forward(link, &leader, &payload).await {
                        Err(StoreError::NoLeader(why)) => *missing = Some(why),
                        result => return result,
                    }
                }
                Err(Rejected::Nowhere) => *missing = Some("none is elected".to_owned()),
                Err(Rejected::Failed(error)) => return Err(error),
                Ok(outcomes) => return Ok(outcomes),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Has the leader change the membership.
    pub(super) async fn change(&self, change: Change) -> Result<(), StoreError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let running = self.running()?;
            let result = match running.leader() {
                Some((member, _)) if member == running.raft_id => running.change_here(change.clone()).await,
                Some((member, leader)) => forward_change(&running, member, &leader, &change).await,
                None => Err(StoreError::NoLeader("none is elected".to_owned())),
            };
            match result {
                Err(StoreError::NoLeader(_)) if Instant::now() < deadline => tokio::time::sleep(PAUSE).await,
                result => return result,
            }
        }
    }
}

async fn forward(link: Option<Link>, leader: &Peer, payload: &Payload) -> Result<Vec<Outcome>, StoreError> {
    let Some(link) = link else {
        return Err(StoreError::NoLeader(format!("{leader} leads and this node has no Raft listener")));
    };
    match link.call(Kind::Propose, payload.0.to_vec(), PATIENCE).await {
        Ok(answer) => {
            let failed =
                |error: serde_json::Error| StoreError::Failed(format!("the leader's answer is malformed: {error}"));
            serde_json::from_slice::<Proposed>(&answer).map_err(failed)?.result()
        }
        Err(CallError::NotSent(why)) => Err(StoreError::NoLeader(format!("{leader} leads: {why}"))),
        Err(CallError::Lost(_) | CallError::Late) => Err(StoreError::Unknown),
        Err(CallError::Refused(why)) => Err(StoreError::Failed(format!("{leader} leads: {why}"))),
    }
}

async fn forward_change(running: &Running, member: u64, leader: &Peer, change: &Change) -> Result<(), StoreError> {
    let failed = |text: String| StoreError::Membership(text);
    let Some(link) = running.links.to(member, leader) else {
        return Err(StoreError::NoLeader(format!("{leader} leads and this node has no Raft listener")));
    };
    let body = serde_json::to_vec(change).map_err(|error| failed(error.to_string()))?;
    let answer = link.call(Kind::Change, body, CHANGE_PATIENCE).await.map_err(|error| match error {
        CallError::NotSent(why) => StoreError::NoLeader(format!("{leader} leads: {why}")),
        error @ (CallError::Lost(_) | CallError::Late | CallError::Refused(_)) => {
            failed(format!("{leader} leads: {error}"))
        }
    })?;
    serde_json::from_slice::<Changed>(&answer).map_err(|error| failed(error.to_string()))?.map_err(failed)
}

pub(super) fn outcomes(applied: Option<Result<Vec<Outcome>, super::Refusal>>) -> Result<Vec<Outcome>, StoreError> {
    match applied {
        Some(result) => Ok(result?),
        None => Err(StoreError::Failed("the entry was not a statement".to_owned())),
    }
}
