//! Linearizable reads: one question to the members for all reads that wait.
//!
//! A read may begin when this member has carried out everything that was committed when it asked. While one question is under
//! way, further reads gather for the next one; none joins a question that began before it.

use std::sync::Weak;
use std::time::Duration;

use openraft::ReadPolicy;
use openraft::errors::{LinearizableReadError, RaftError};
use tokio::sync::{mpsc, oneshot};

use super::core::Running;
use super::error::StoreError;
use super::network::Kind;
use super::raft::{Peer, Reader};
use crate::foundation::task::{self, Task};

/// Reads that wait for the next question; more are told to try again.
const QUEUE: usize = 4096;
/// How long a leader may be missing before a read is told so.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a leader may take to answer.
const ASK_PATIENCE: Duration = Duration::from_secs(2);
/// Between two attempts while there is no leader.
const PAUSE: Duration = Duration::from_millis(20);

type Waiting = oneshot::Sender<Result<u64, StoreError>>;

/// Where reads wait.
#[derive(Debug)]
pub(super) struct Barrier {
    queue: mpsc::Sender<Waiting>,
    _task: Task,
}

impl Barrier {
    pub(super) fn start(running: Weak<Running>) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        Self { queue, _task: task::spawn("store-reads", ask_for_all(running, waiting)) }
    }

    /// The log index that a read that begins now must see. Who waits for it does not keep the store's files open.
    pub(super) fn index(&self) -> impl Future<Output = Result<u64, StoreError>> + Send + use<> {
        let queued = self.queue();
        async move { queued?.await.map_err(|_gone| stopped())? }
    }

    fn queue(&self) -> Result<oneshot::Receiver<Result<u64, StoreError>>, StoreError> {
        let (done, index) = oneshot::channel();
        self.queue.try_send(done).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => StoreError::Busy,
            mpsc::error::TrySendError::Closed(_) => stopped(),
        })?;
        Ok(index)
    }
}

fn stopped() -> StoreError {
    StoreError::NotRunning("it is being closed".to_owned())
}

async fn ask_for_all(running: Weak<Running>, mut queue: mpsc::Receiver<Waiting>) {
    while let Some(first) = queue.recv().await {
        let mut waiting = vec![first];
        while let Ok(next) = queue.try_recv() {
            waiting.push(next);
        }
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let index = loop {
            let asked = match running.upgrade() {
                Some(running) => ask(&running).await,
                None => Err(StoreError::NotRunning("it is being closed".to_owned())),
            };
            match asked {
                Err(StoreError::NoLeader(_)) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(PAUSE).await
                }
                index => break index,
            }
        };
        for waiting in waiting {
            // A reader that went away needs no answer.
            waiting.send(index.clone()).unwrap_or_default();
        }
    }
}

/// Asks the leader, which asks the members.
async fn ask_leader(running: &Running, member: u64, leader: &Peer) -> Result<u64, StoreError> {
    let missing = |why: &dyn std::fmt::Display| StoreError::NoLeader(format!("{leader} leads: {why}"));
    if member == running.raft_id {
        return Err(missing(&"this member is about to"));
    }
    let link = running.links.to(member, leader).ok_or_else(|| missing(&"this node has no Raft listener"))?;
    let answer = link.call(Kind::ReadIndex, Vec::new(), ASK_PATIENCE).await.map_err(|error| missing(&error))?;
    Reader::new(answer).u64("index").map_err(|error| missing(&error))
}

/// Asks once: the members if this one leads, else the leader.
async fn ask(running: &Running) -> Result<u64, StoreError> {
    match running.raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
        Ok(linearizer) => Ok(linearizer.read_log_id().index()),
        Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
            match (forward.leader_id, forward.leader_node) {
                (Some(member), Some(leader)) => ask_leader(running, member, &leader).await,
                _ => Err(StoreError::NoLeader("none is elected".to_owned())),
            }
        }
        Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(missing))) => {
            Err(StoreError::NoLeader(format!("too few members answer: {missing}")))
        }
        Err(RaftError::Fatal(fatal)) => Err(StoreError::NotRunning(fatal.to_string())),
    }
}
