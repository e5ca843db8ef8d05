//! The mesh as the replicated state has it: who is a member, with which key, addresses and ports, and who leads.
//!
//! Spread as `watch<Arc<Mesh>>`. A mesh made from another shares what did not change with it. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::SystemTime;

use ipnet::{Ipv4Net, Ipv6Net};

use super::key::PublicKey;
use super::ordered::Ordered;
use crate::foundation::id::NodeId;

/// Every member, this node included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mesh {
    /// This node.
    pub own: NodeId,
    /// Who leads now; `None` while nobody does.
    pub leader: Option<NodeId>,
    /// The range the IPv4 addresses come from.
    pub ipv4: Option<Ipv4Net>,
    /// The /48 the /64 of each node comes from.
    pub ipv6: Option<Ipv6Net>,
    pub members: Ordered<NodeId, Arc<Member>>,
    /// Who cannot reach whom, as the first of the two says, and why.
    pub blocked: Arc<Blocked>,
}

/// Pairs of nodes without a way between them, and why: the first says it about the second.
pub type Blocked = BTreeMap<(NodeId, NodeId), String>;

/// Two members without a way between them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockedPair {
    /// The one whose id comes first.
    pub first: NodeId,
    pub second: NodeId,
    /// Who carries their packets; `None`: nobody can.
    pub via: Option<NodeId>,
    pub reason: String,
}

/// A member of the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub id: NodeId,
    /// Of its tunnel.
    pub public_key: PublicKey,
    /// Where others reach it first; `None`: it is taken to be behind a NAT.
    pub primary_endpoint: Option<IpAddr>,
    /// Where else it may be reached.
    pub endpoints: Vec<IpAddr>,
    pub ports: Ports,
    pub ipv4: Option<Ipv4Addr>,
    /// Its /64.
    pub ipv6: Option<Ipv6Net>,
    /// Whether it has a vote; it may hold the log without one.
    pub is_voter: bool,
    pub created_at: SystemTime,
    /// When it joined last.
    pub updated_at: SystemTime,
}

/// Where a member listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    pub raft: u16,
    pub grpc: u16,
    pub wireguard: u16,
}

/// What part in the consensus a node asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Seat {
    /// Holds the log, and votes where a vote is free.
    #[default]
    Auto,
    /// Votes.
    Voter,
    /// Holds no log: is told what changes.
    Edge,
}

impl Seat {
    /// Its name in the configuration, on the wire and in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Voter => "voter",
            Self::Edge => "edge",
        }
    }
}

/// Text that is no [`Seat`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a role is auto, voter or edge")]
pub struct NotASeat;

impl std::str::FromStr for Seat {
    type Err = NotASeat;

    fn from_str(text: &str) -> Result<Self, NotASeat> {
        [Self::Auto, Self::Voter, Self::Edge].into_iter().find(|seat| seat.as_str() == text).ok_or(NotASeat)
    }
}

/// What a member is in the consensus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Leader,
    Voter,
    NonVoter,
}

impl Mesh {
    /// A mesh without members.
    pub fn empty(own: NodeId) -> Self {
        Self { own, leader: None, ipv4: None, ipv6: None, members: Ordered::new(), blocked: Arc::default() }
    }

    /// The members but this node.
    pub fn others(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.members.values().filter(|member| member.id != self.own)
    }

    /// The member with this id.
    pub fn member(&self, id: &NodeId) -> Option<&Arc<Member>> {
        self.members.get(id)
    }

    /// Why there is no way between two nodes; `None`: neither says so.
    pub fn blocked(&self, one: &NodeId, other: &NodeId) -> Option<&str> {
        // Almost always there is none.
        if self.blocked.is_empty() {
            return None;
        }
        let said = |from: &NodeId, to: &NodeId| self.blocked.get(&(from.clone(), to.clone()));
        said(one, other).or_else(|| said(other, one)).map(String::as_str)
    }

    /// The pairs without a way between them, and who carries their packets: the same on every node that knows the same.
    pub fn blocked_pairs(&self) -> Vec<BlockedPair> {
        let ordered = |(one, other): &(NodeId, NodeId)| {
            if one < other { (one.clone(), other.clone()) } else { (other.clone(), one.clone()) }
        };
        let pairs: BTreeSet<(NodeId, NodeId)> = self.blocked.keys().map(ordered).collect();
        let are_members = |(one, other): &(NodeId, NodeId)| {
            one != other && self.member(one).is_some() && self.member(other).is_some()
        };
        let pairs = pairs.into_iter().filter(are_members);
        pairs
            .map(|(first, second)| BlockedPair {
                via: self.relay(&first, &second),
                reason: self.blocked(&first, &second).unwrap_or_default().to_owned(),
                first,
                second,
            })
            .collect()
    }

    /// Who carries packets between two members that do not reach each other: one that both reach and whose endpoint is known,
    /// with a vote before one without, else the first by id.
    fn relay(&self, one: &NodeId, other: &NodeId) -> Option<NodeId> {
        let fit = |member: &&Arc<Member>| {
            let id = &member.id;
            member.primary_endpoint.is_some()
                && id != one
                && id != other
                && self.blocked(one, id).is_none()
                && self.blocked(other, id).is_none()
        };
        let mut without_vote = None;
        for member in self.members.values().filter(fit) {
            if member.is_voter {
                return Some(member.id.clone());
            }
            without_vote = without_vote.or_else(|| Some(member.id.clone()));
        }
        without_vote
    }

    /// What this member is in the consensus.
    pub fn standing(&self, member: &Member) -> Standing {
        match &self.leader {
            Some(leader) if *leader == member.id => Standing::Leader,
            Some(_) | None if member.is_voter => Standing::Voter,
            Some(_) | None => Standing::NonVoter,
        }
    }
}
