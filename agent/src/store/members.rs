//! Changes of the membership, carried out by the leader one at a time.
//!
//! A member is known by its number; people and other rooms name its node. A node that comes with a new number (its disk was
//! lost) is another member: the old one is removed first.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::{ChangeMembers, ServerState};
use tokio::time::{Instant, timeout};

use super::core::Running;
use super::error::StoreError;
use super::network::Change;
use super::raft::{Config, Peer};
use crate::foundation::id::NodeId;

/// How long a change waits for the one before it.
const QUEUE_PATIENCE: Duration = Duration::from_secs(20);
/// How long a new member may take to get everything that was there when it was added.
const CATCH_UP_PATIENCE: Duration = Duration::from_secs(60);
/// How long a leader may take to hand over.
const TRANSFER_PATIENCE: Duration = Duration::from_secs(5);
/// The most members with a vote.
const MOST_VOTERS: usize = 7;
/// A member that answered within this time is there.
const LIVELY: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(10);

type Failed = RaftError<Config, ClientWriteError<Config>>;

impl Running {
    /// Carries out `change`; this member leads, or nothing is done.
    pub(super) async fn change_here(&self, change: Change) -> Result<(), StoreError> {
        let late = |_elapsed| StoreError::Membership("another change of the membership is under way".to_owned());
        // The semaphore is never closed.
        let slot = timeout(QUEUE_PATIENCE, self.changes.acquire()).await.map_err(late)?;
        if self.raft.server_metrics().borrow_watched().state != ServerState::Leader {
            return Err(StoreError::NoLeader("this member does not lead".to_owned()));
        }
        // Just after the first start or an election the last change may not be committed yet.
        let settled = async {
            while !self.is_settled() {
                tokio::time::sleep(PAUSE).await;
            }
        };
        timeout(QUEUE_PATIENCE, settled).await.map_err(late)?;
        tracing::info!(?change, "the membership of the store changes");
        let result = match change {
            Change::AddLearner { member, node, address } => self.add_learner(member, Peer { node, address }).await,
            Change::Promote(node) => self.promote(&node).await,
            Change::Demote(node) => self.demote(&node).await,
            Change::Remove(node) => self.remove(&node).await,
            Change::Transfer(node) => self.transfer(node.as_ref()).await,
            Change::Address { member, address } => self.readdress(member, address).await,
        };
        drop(slot);
        result
    }

    /// Whether the membership that holds is carried out here, so that the next change may be proposed.
    fn is_settled(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.log_id().is_none_or(|id| metrics.last_applied.is_some_and(|applied| applied >= id))
    }

    async fn add_learner(&self, member: u64, peer: Peer) -> Result<(), StoreError> {
        if self.removed.load().contains(&member) {
            return membership(format!("member {member:016x} was removed; {} joins with a new store", peer.node));
        }
        match self.number_of(&peer.node) {
            Some(known) if known != member => {
                return membership(format!("{} is member {known:016x} already: remove it first", peer.node));
            }
            Some(_) => return self.readdress(member, peer.address).await,
            None => {}
        }
        let node = peer.node.clone();
        self.raft.add_learner(member, peer, false).await.map_err(|error| self.failed(&error))?;
        let wanted = self.raft.metrics().borrow_watched().last_log_index.unwrap_or_default();
        let deadline = Instant::now() + CATCH_UP_PATIENCE;
        while self.matched(member) < wanted {
            if Instant::now() > deadline {
                return membership(format!(
                    "{node} was added and has not got the store within {} s; it goes on",
                    CATCH_UP_PATIENCE.as_secs()
                ));
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// How much of the log `member` has, as the leader knows.
    fn matched(&self, member: u64) -> u64 {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let matched = metrics.replication.as_ref().and_then(|members| members.get(&member).copied().flatten());
        matched.map_or(0, |id| id.index)
    }

    async fn promote(&self, node: &NodeId) -> Result<(), StoreError> {
        let member = self.known(node)?;
        let voters: BTreeSet<u64> = self.members().membership().voter_ids().collect();
        if voters.contains(&member) {
            return Ok(());
        }
        if voters.len() >= MOST_VOTERS {
            return membership(format!(
                "{} members vote already; more make every write slower and nothing safer",
                voters.len()
            ));
        }
        if !self.answers(member) {
            return membership(format!("{node} does not answer; with its vote the others might be no majority"));
        }
        self.change(ChangeMembers::AddVoterIds(BTreeSet::from([member]))).await
    }

    /// Whether `member` answered this leader a moment ago.
    fn answers(&self, member: u64) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let heard = metrics.heartbeat.as_ref().and_then(|members| members.get(&member).copied().flatten());
        heard.is_some_and(|at| at.elapsed() < LIVELY)
    }

    async fn demote(&self, node: &NodeId) -> Result<(), StoreError> {
        let member = self.known(node)?;
        self.not_the_last(member, node)?;
        let change = ChangeMembers::RemoveVoters(BTreeSet::from([member]));
        self.raft.change_membership(change, true).await.map_err(|error| self.failed(&error))?;
        Ok(())
    }

    async fn remove(&self, node: &NodeId) -> Result<(), StoreError> {
        let member = self.known(node)?;
        self.not_the_last(member, node)?;
        let votes = self.members().membership().voter_ids().any(|voter| voter == member);
        match votes {
            true => self.change(ChangeMembers::RemoveVoters(BTreeSet::from([member]))).await,
            false => self.change(ChangeMembers::RemoveNodes(BTreeSet::from([member]))).await,
        }
    }

    fn not_the_last(&self, member: u64, node: &NodeId) -> Result<(), StoreError> {
        let voters: Vec<u64> = self.members().membership().voter_ids().collect();
        match voters.as_slice() {
            [last] if *last == member => membership(format!("{node} is the only member with a vote")),
            _ => Ok(()),
        }
    }

    async fn transfer(&self, node: Option<&NodeId>) -> Result<(), StoreError> {
        let voters: Vec<u64> = self.members().membership().voter_ids().filter(|voter| *voter != self.raft_id).collect();
        let to = match node {
            Some(node) => self.known(node)?,
            None => match voters.iter().max_by_key(|voter| self.matched(**voter)) {
                Some(voter) => *voter,
                None => return membership("there is no other member with a vote".to_owned()),
            },
        };
        if to == self.raft_id {
            return Ok(());
        }
        if !voters.contains(&to) {
            return membership("only a member with a vote can lead".to_owned());
        }
        let stopped = |error: openraft::errors::Fatal<Config>| StoreError::NotRunning(error.to_string());
        self.raft.trigger().transfer_leader(to).await.map_err(stopped)?;
        let deadline = Instant::now() + TRANSFER_PATIENCE;
        while self.raft.server_metrics().borrow_watched().current_leader != Some(to) {
            if Instant::now() > deadline {
                return membership("the other member did not take over".to_owned());
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    async fn readdress(&self, member: u64, address: String) -> Result<(), StoreError> {
        let Some(peer) = self.peer(member) else {
            return membership(format!("member {member:016x} is not in the store's membership"));
        };
        if peer.address == address {
            return Ok(());
        }
        self.change(ChangeMembers::SetNodes(BTreeMap::from([(member, Peer { address, ..peer })]))).await
    }

    async fn change(&self, change: ChangeMembers<u64, Peer>) -> Result<(), StoreError> {
        self.raft.change_membership(change, false).await.map_err(|error| self.failed(&error))?;
        Ok(())
    }

    fn known(&self, node: &NodeId) -> Result<u64, StoreError> {
        let names = || {
            let members = self.members();
            members.membership().nodes().map(|(_, peer)| peer.node.to_string()).collect::<Vec<_>>().join(", ")
        };
        self.number_of(node).ok_or_else(|| {
            StoreError::Membership(format!("{node} is not a member of the store; members are {}", names()))
        })
    }

    fn number_of(&self, node: &NodeId) -> Option<u64> {
        let members = self.members();
        members.membership().nodes().find(|(_, peer)| peer.node == *node).map(|(member, _)| *member)
    }

    fn failed(&self, error: &Failed) -> StoreError {
        match error {
            RaftError::APIError(ClientWriteError::ForwardToLeader(_)) => {
                StoreError::NoLeader("this member does not lead any more".to_owned())
            }
            RaftError::Fatal(fatal) => StoreError::NotRunning(fatal.to_string()),
            error @ RaftError::APIError(_) => StoreError::Membership(error.to_string()),
        }
    }
}

fn membership<T>(text: String) -> Result<T, StoreError> {
    Err(StoreError::Membership(text))
}
