//! Who votes: what the leader changes next in the store's membership, and what a node does next about its own part. Pure.
//!
//! An even number of votes survives no more failures than one less, so `auto` nodes get votes in pairs: two nodes are one vote
//! and one log beside it, three are three votes. What this says again and again leads to where nothing is left to do.

use super::acl::{self, Acl};
use super::rows::NodeRow;
use crate::foundation::id::NodeId;
use crate::model::mesh::Seat;
use crate::store::{Member, Role, Status};

/// The most votes there are.
pub(super) const MOST_VOTERS: usize = 7;
/// The most nodes that hold the log.
pub(super) const MOST_HOLDERS: usize = 15;

/// What the leader does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// This node leads and is to lose its vote: another takes over first.
    HandOver,
    Remove(NodeId),
    Demote(NodeId),
    /// Others reach it there.
    Readdress(Member),
    /// The first of these that answers.
    Promote(Vec<NodeId>),
}

/// The next change of the store's membership, as the leader `own` sees it.
pub(super) fn change(members: &[Member], own: &NodeId, nodes: &[NodeRow], acls: &[Acl], most: usize) -> Option<Change> {
    let row = |member: &Member| nodes.iter().find(|row| row.member.id == member.node);
    // Before the mesh is founded the tables are empty.
    nodes.iter().find(|row| row.member.id == *own)?;
    let voters: Vec<&Member> = members.iter().filter(|member| member.voter).collect();
    let seat = |member: &Member| row(member).map_or(Seat::Edge, |row| row.seat);
    let denied = |member: &Member| !acl::may_vote(acls, member.node.as_str()).0;
    let has_others = voters.len() > 1;
    for member in members {
        let is_last = member.voter && !has_others;
        let (leaves, loses) = (seat(member) == Seat::Edge, member.voter && denied(member));
        if is_last || !(leaves || loses) {
            continue;
        }
        return Some(match (member.node == *own, leaves) {
            (true, _) => Change::HandOver,
            (false, true) => Change::Remove(member.node.clone()),
            (false, false) => Change::Demote(member.node.clone()),
        });
    }
    for member in members {
        let wanted = row(member).and_then(NodeRow::reached_at);
        if let Some(address) = wanted.filter(|wanted| *wanted != member.address) {
            return Some(Change::Readdress(Member { address, ..member.clone() }));
        }
    }
    let learners = || members.iter().filter(|member| !member.voter && !denied(member));
    let asked: Vec<NodeId> =
        learners().filter(|member| seat(member) == Seat::Voter).map(|member| member.node.clone()).collect();
    if !asked.is_empty() && voters.len() < MOST_VOTERS {
        return Some(Change::Promote(asked));
    }
    let free: Vec<NodeId> =
        learners().filter(|member| seat(member) == Seat::Auto).map(|member| member.node.clone()).collect();
    let target = odd((voters.len() + free.len()).min(most));
    if voters.len() < target {
        return Some(Change::Promote(free));
    }
    let surplus = voters.iter().rev().find(|member| seat(member) == Seat::Auto && member.node != *own);
    surplus.filter(|_| voters.len() > target).map(|member| Change::Demote(member.node.clone()))
}

/// The largest odd number up to `number`; 1 for 0.
fn odd(number: usize) -> usize {
    number.saturating_sub(1) | 1
}

/// What this node is in the store it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// The store is not open.
    Closed,
    /// It waits until a leader adds it.
    Waiting,
    /// It is a cluster of one.
    Alone,
    Member {
        votes: bool,
    },
    /// Others have it, and this node is not among them any more.
    LeftOut,
}

pub(super) fn standing(store: &Status, own: &NodeId) -> Standing {
    let mine = store.members.iter().find(|member| member.node == *own);
    match (store.role, mine, store.members.len()) {
        (Role::None, _, _) => Standing::Closed,
        (_, None, 0) => Standing::Waiting,
        (_, None, _) => Standing::LeftOut,
        (_, Some(_), 1) => Standing::Alone,
        (_, Some(mine), _) => Standing::Member { votes: mine.voter },
    }
}

/// What this node does next about its part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Nothing,
    /// Ask whether it would be let in; then lay its own store aside.
    Knock,
    /// Ask to be let in with the store it has, or say again what it asks for.
    Ask,
    /// Its store is of no use to anybody: begin one of its own.
    BeginAlone,
    /// It votes: get the authority's key.
    Fetch,
    /// It votes no more: give the key up.
    GiveUp,
    /// It keeps the state and no leader answers: ask the others whether it still belongs.
    Probe,
}

/// What a node knows about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Own {
    pub(super) seat: Seat,
    pub(super) standing: Standing,
    /// Whether it holds the authority's key.
    pub(super) issues: bool,
    /// Whether the mesh knows it.
    pub(super) is_member: bool,
    /// Whether the mesh was told what it asks for.
    pub(super) has_told: bool,
    /// Whether no leader answers it.
    pub(super) is_lost: bool,
}

pub(super) fn step(own: Own) -> Step {
    match (own.issues, own.standing, own.seat) {
        (_, Standing::Closed, _) => Step::Nothing,
        (true, Standing::LeftOut | Standing::Member { votes: false }, _) => Step::GiveUp,
        (true, Standing::Member { votes: true }, _) if own.is_lost => Step::Probe,
        (true, _, _) => Step::Nothing,
        (false, _, _) if !own.is_member => Step::Nothing,
        (false, Standing::Member { votes: true }, Seat::Auto | Seat::Voter) => Step::Fetch,
        (false, Standing::Waiting, Seat::Auto | Seat::Voter) => Step::Ask,
        (false, Standing::Alone | Standing::LeftOut, Seat::Auto | Seat::Voter) => Step::Knock,
        (false, _, _) if !own.has_told => Step::Ask,
        (false, Standing::LeftOut | Standing::Waiting, Seat::Edge) => Step::BeginAlone,
        (false, _, _) => Step::Nothing,
    }
}

#[cfg(test)]
mod tests;
