//! What the tasks of this room share: the state that spreads, what happened, what is wrong.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use tokio::sync::{broadcast, watch};

use super::config::Config;
use super::paths::Paths;
use super::project::Chosen;
use super::registry::Registry;
use super::remote::{Facts, Place, Remote};
use super::update::{Event, State, Update, events};
use crate::foundation::id::NodeId;
use crate::identity::Identity;
use crate::model::Model;
use crate::model::mesh::{Member, Ports, Seat};
use crate::sys::interfaces;

/// Events that a slow reader may be behind; one that lags reads the state anew.
const EVENTS: usize = 256;

/// An event with its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happened {
    pub at: SystemTime,
    pub event: Event,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) identity: Identity,
    pub(super) registry: Registry,
    pub(super) store: crate::store::Handle,
    pub(super) remote: Arc<dyn Remote>,
    pub(super) directory: PathBuf,
    pub(super) config: Config,
    /// What `weft.toml` says.
    pub(super) configured: watch::Receiver<Arc<Model>>,
    pub(super) ports: Ports,
    /// Where its Raft listener answers, as configured.
    pub(super) raft_address: Option<String>,
    /// The tunnel's link, whose addresses are no way to this node.
    pub(super) link: String,
    pub(super) state: watch::Sender<Arc<State>>,
    pub(super) events: broadcast::Sender<Happened>,
    /// Why the newest mesh is not in the model.
    pub(super) contradictions: watch::Sender<Option<String>>,
    /// What is wrong, a sentence each.
    pub(super) errors: watch::Sender<Vec<String>>,
    /// Held while the last good state is written.
    pub(super) saving: Mutex<()>,
    /// Where each member is sent to, where that is not the address that comes first.
    pub(super) chosen: watch::Sender<Arc<Chosen>>,
    /// Whom this node cannot reach, and why.
    pub(super) out_of_reach: watch::Sender<BTreeMap<NodeId, String>>,
    pub(super) paths: Mutex<Paths>,
    /// Changes when this node joins or leaves.
    pub(super) moves: watch::Sender<u64>,
}

impl Shared {
    pub(super) fn events_channel() -> broadcast::Sender<Happened> {
        broadcast::Sender::new(EVENTS)
    }

    /// Whether this node keeps the state of the mesh; else it follows one that does.
    pub(super) fn keeps(&self) -> bool {
        self.identity.authority().is_some()
    }

    /// How this node is now.
    pub(super) fn facts(&self) -> Facts {
        let configured = self.configured.borrow().clone();
        Facts {
            id: configured.node.id.clone(),
            public_key: configured.node.public_key,
            ports: self.ports,
            endpoint: self.config.endpoint,
            interfaces: interfaces::reachable(&self.link),
            addresses: configured.node.addresses.clone(),
            seat: Some(self.seat()),
            raft_address: self.raft_address.clone(),
        }
    }

    /// The part in the consensus this node asks for; without a Raft listener there is only one.
    pub(super) fn seat(&self) -> Seat {
        if self.ports.raft == 0 { Seat::Edge } else { self.config.role }
    }

    /// Spreads a state: to the model, the followers, the listeners of events, and what refuses revoked keys.
    pub(super) fn publish(&self, update: &Update) {
        let older = Arc::clone(&self.state.borrow());
        let newer = older.after(update);
        if newer == *older {
            return;
        }
        self.identity.revoke(std::collections::BTreeSet::clone(&newer.revoked));
        let happened = events(&older.mesh, &newer.mesh);
        self.state.send_replace(Arc::new(newer));
        self.tell(happened);
    }

    pub(super) fn tell(&self, happened: Vec<Event>) {
        for event in happened {
            tracing::info!(?event, "the mesh changed");
            // Nobody may listen.
            self.events.send(Happened { at: SystemTime::now(), event }).ok();
        }
    }

    pub(super) fn say(&self, errors: Vec<String>) {
        self.errors.send_if_modified(|current| {
            let differs = *current != errors;
            if differs {
                *current = errors;
            }
            differs
        });
    }

    /// The members that keep the state, the leader first, each at every address it is known by.
    pub(super) fn keepers(&self) -> Vec<Place> {
        let mesh = self.state.borrow().mesh.clone();
        let others = mesh.members.values().filter(|member| member.is_voter && member.id != mesh.own);
        let mut places: Vec<Place> = others.flat_map(|member| places(member)).collect();
        places.sort_by_key(|place| mesh.leader.as_ref() != Some(&place.id));
        places
    }

    /// Where the member answers, by every address it is known by.
    pub(super) fn places_of(&self, id: &NodeId) -> Vec<Place> {
        self.state.borrow().mesh.member(id).map(|member| places(member)).unwrap_or_default()
    }
}

/// First from outside, which needs no tunnel, then within.
fn places(member: &Member) -> Vec<Place> {
    let outside = member.primary_endpoint.into_iter().chain(member.endpoints.iter().copied());
    let mut places = Vec::new();
    for address in outside.chain(member.ipv4.map(IpAddr::V4)) {
        let place = Place { id: member.id.clone(), address: (address, member.ports.grpc).into() };
        if !places.contains(&place) {
            places.push(place);
        }
    }
    places
}
