//! Changes of a mesh as one node tells them to another, and what happened between two states. Pure.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::{Ipv4Net, Ipv6Net};

use crate::foundation::id::NodeId;
use crate::identity::certificate::Fingerprint;
use crate::model::mesh::{Blocked, BlockedPair, Member, Mesh};

/// What a follower is told: everything at first, then what changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    pub is_complete: bool,
    pub members: Vec<Arc<Member>>,
    pub removed: Vec<NodeId>,
    pub leader: Option<NodeId>,
    pub ipv4: Option<Ipv4Net>,
    pub ipv6: Option<Ipv6Net>,
    pub revoked: BTreeSet<Fingerprint>,
    pub blocked: Blocked,
}

/// A mesh and the keys it refuses; what spreads within this room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub mesh: Mesh,
    pub revoked: Arc<BTreeSet<Fingerprint>>,
}

impl State {
    /// A mesh without members.
    pub fn empty(own: NodeId) -> Self {
        Self { mesh: Mesh::empty(own), revoked: Arc::default() }
    }

    /// Everything, for who knows nothing.
    pub fn complete(&self) -> Update {
        Update { members: self.mesh.members.values().cloned().collect(), is_complete: true, ..self.heads() }
    }

    /// What changed since `older`; `None`: nothing.
    pub fn since(&self, older: &Self) -> Option<Update> {
        let mut update = self.heads();
        for (id, _before, after) in self.mesh.members.differences(&older.mesh.members) {
            match after {
                Some(member) => update.members.push(member),
                None => update.removed.push(id),
            }
        }
        (self != older).then_some(update)
    }

    fn heads(&self) -> Update {
        Update {
            is_complete: false,
            members: Vec::new(),
            removed: Vec::new(),
            leader: self.mesh.leader.clone(),
            ipv4: self.mesh.ipv4,
            ipv6: self.mesh.ipv6,
            revoked: BTreeSet::clone(&self.revoked),
            blocked: Blocked::clone(&self.mesh.blocked),
        }
    }

    /// This state after `update`. What is equal is shared.
    #[must_use]
    pub fn after(&self, update: &Update) -> Self {
        let mut mesh =
            Mesh { leader: update.leader.clone(), ipv4: update.ipv4, ipv6: update.ipv6, ..self.mesh.clone() };
        if *mesh.blocked != update.blocked {
            mesh.blocked = Arc::new(update.blocked.clone());
        }
        if update.is_complete {
            let told: BTreeSet<&NodeId> = update.members.iter().map(|member| &member.id).collect();
            for id in self.mesh.members.keys().filter(|id| !told.contains(id)) {
                mesh.members.remove(id);
            }
        }
        for id in &update.removed {
            mesh.members.remove(id);
        }
        for member in &update.members {
            if mesh.members.get(&member.id) != Some(member) {
                mesh.members.insert(member.id.clone(), Arc::clone(member));
            }
        }
        let revoked =
            if *self.revoked == update.revoked { Arc::clone(&self.revoked) } else { update.revoked.clone().into() };
        Self { mesh, revoked }
    }
}

/// A fact about the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Joined(NodeId),
    Left(NodeId),
    /// What others see of it changed: addresses, endpoints, ports, key.
    Changed(NodeId),
    /// `None`: nobody leads.
    Leader(Option<NodeId>),
    /// This node has a session with it over the tunnel.
    PeerUp {
        peer: NodeId,
        endpoint: Option<SocketAddr>,
    },
    /// It answers no more, or did not answer at all.
    PeerDown {
        peer: NodeId,
        reason: String,
    },
    /// Its packets come from another address than before.
    PeerMoved {
        peer: NodeId,
        from: Option<SocketAddr>,
        to: SocketAddr,
    },
    /// There is no way between two nodes.
    Blocked(BlockedPair),
    /// There is a way between them again.
    Unblocked {
        first: NodeId,
        second: NodeId,
    },
}

/// What happened between two states, in the order of the ids.
pub fn events(older: &Mesh, newer: &Mesh) -> Vec<Event> {
    let mut events = Vec::new();
    for (id, before, after) in newer.members.differences(&older.members) {
        match (before, after) {
            (None, Some(_)) => events.push(Event::Joined(id)),
            (Some(_), None) => events.push(Event::Left(id)),
            (Some(before), Some(after)) if differs(&before, &after) => events.push(Event::Changed(id)),
            (Some(_), Some(_)) | (None, None) => {}
        }
    }
    if !Arc::ptr_eq(&older.blocked, &newer.blocked) {
        events.extend(pair_events(older, newer));
    }
    if older.leader != newer.leader {
        events.push(Event::Leader(newer.leader.clone()));
    }
    events
}

fn pair_events(older: &Mesh, newer: &Mesh) -> Vec<Event> {
    let (before, after) = (older.blocked_pairs(), newer.blocked_pairs());
    let ids = |pair: &BlockedPair| (pair.first.clone(), pair.second.clone());
    let known = |pairs: &[BlockedPair], pair: &BlockedPair| pairs.iter().any(|other| ids(other) == ids(pair));
    let gone = before.iter().filter(|pair| !known(&after, pair)).map(|pair| {
        let (first, second) = ids(pair);
        Event::Unblocked { first, second }
    });
    let new = after.iter().filter(|pair| !known(&before, pair)).cloned().map(Event::Blocked);
    gone.chain(new).collect()
}

/// Whether more differs than when it was heard of.
fn differs(before: &Member, after: &Member) -> bool {
    Member { updated_at: after.updated_at, ..before.clone() } != *after
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::tests::{member, mesh};

    fn state(members: &[Arc<Member>]) -> State {
        State { mesh: mesh(members), revoked: Arc::default() }
    }

    #[test]
    fn following_the_updates_gives_the_same_state() {
        let steps = [
            state(&[member("alpha", 1, None)]),
            state(&[member("alpha", 1, None), member("beta", 2, None)]),
            state(&[member("alpha", 1, Some("192.0.2.1")), member("gamma", 3, None)]),
            State { revoked: Arc::new(BTreeSet::from([Fingerprint::from_bytes([9; 32])])), ..state(&[]) },
        ];
        let mut followed = State::empty("alpha".parse().expect("an id"));
        let mut last = followed.clone();
        for step in &steps {
            let update = step.since(&last).expect("it changed");
            followed = followed.after(&update);
            assert_eq!(&followed, step);
            last = step.clone();
        }
        assert_eq!(last.since(&last), None);
        let late = state(&[member("omega", 7, None)]).after(&steps[2].complete());
        assert_eq!(late, steps[2]);
    }

    #[test]
    fn events_say_what_happened() {
        let id = |name: &str| name.parse::<NodeId>().expect("an id");
        let older = mesh(&[member("alpha", 1, None), member("beta", 2, None)]);
        let mut newer = mesh(&[member("alpha", 1, Some("192.0.2.1")), member("gamma", 3, None)]);
        newer.leader = Some(id("alpha"));
        let expected = [
            Event::Changed(id("alpha")),
            Event::Left(id("beta")),
            Event::Joined(id("gamma")),
            Event::Leader(Some(id("alpha"))),
        ];
        assert_eq!(events(&older, &newer), expected);
    }
}
