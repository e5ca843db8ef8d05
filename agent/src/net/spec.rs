//! What the link should have: a pure function of the settings and the model.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::config::Settings;
use super::networks::NetworkSet;
use super::plan::Refusal;
use crate::foundation::id::NodeId;
use crate::model::key::PublicKey;
use crate::model::ordered::Ordered;
use crate::model::peer::{Endpoint, Peer};
use crate::model::{Model, PeerChange};

/// The table called `main`.
pub const TABLE_MAIN: u32 = 254;

/// The metric of our routes: behind the kernel's own for connected networks (0 for IPv4, 256 for IPv6), so that an
/// equal network of another link wins even in the moment before we see it.
pub const METRIC: u32 = 1024;

/// One route of ours: a network through the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    pub network: IpNet,
    pub table: u32,
    pub metric: u32,
}

/// What the link should have. Cheap to clone; what changed peers make of it shares the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// `None`: from the ways to the peers.
    pub mtu: Option<u32>,
    pub addresses: BTreeSet<IpNet>,
    /// Each with the peer it leads to.
    pub routes: Ordered<Route, NodeId>,
    /// Where peers are known to be.
    endpoints: Ordered<(IpAddr, PublicKey), NodeId>,
    /// Peers that may also be somewhere else: no endpoint is configured, or only its name.
    anywhere: usize,
    /// The mark of the tunnel's own packets.
    pub fwmark: u32,
    /// Everything above that would compete with a network of another link.
    pub networks: NetworkSet,
    /// What was asked for and cannot be.
    pub refusals: Vec<Refusal>,
    /// The networks of our addresses: they need no route.
    connected: NetworkSet,
    /// `None`: no routes are asked for.
    table: Option<u32>,
}

/// What the link should have for this model.
pub fn wanted(settings: &Settings, model: &Model) -> Wanted {
    let addresses: BTreeSet<IpNet> = model.node.addresses.iter().copied().collect();
    let mut wanted = Wanted {
        mtu: settings.mtu.map(u32::from),
        routes: Ordered::new(),
        endpoints: Ordered::new(),
        anywhere: 0,
        fwmark: settings.fwmark,
        networks: addresses.iter().copied().collect(),
        refusals: Vec::new(),
        connected: addresses.iter().filter(|address| !is_host(address)).copied().collect(),
        table: settings.routes.then_some(settings.table),
        addresses,
    };
    for peer in model.peers() {
        wanted.add(peer);
    }
    wanted
}

/// The routes to a peer, refused ones left out.
pub fn routes_of(wanted: &Wanted, peer: &Peer) -> Vec<Route> {
    let Some(table) = wanted.table else { return Vec::new() };
    let routed = |network: &&IpNet| {
        let is_default = network.prefix_len() == 0 && table == TABLE_MAIN;
        !is_default && wanted.connected.holding(network).next().is_none()
    };
    peer.allowed_ips.iter().filter(routed).map(|network| Route { network: *network, table, metric: METRIC }).collect()
}

/// Where a peer is configured to be.
pub fn address_of(peer: &Peer) -> Option<IpAddr> {
    match &peer.endpoint {
        Some(Endpoint::Address(address)) => Some(address.ip().to_canonical()),
        Some(Endpoint::Name { .. }) | None => None,
    }
}

impl Wanted {
    /// The same with some peers changed.
    #[must_use]
    pub fn with(&self, changes: &[PeerChange]) -> Self {
        let mut wanted = self.clone();
        for peer in changes.iter().filter_map(|change| change.before.as_deref()) {
            wanted.remove(peer);
        }
        for peer in changes.iter().filter_map(|change| change.after.as_deref()) {
            wanted.add(peer);
        }
        wanted
    }

    /// Whether a peer may be reached over any default route.
    pub fn roaming(&self) -> bool {
        self.anywhere > 0 || self.endpoints.is_empty()
    }

    /// A peer whose endpoint is at this address.
    pub fn peer_at(&self, address: &IpAddr) -> Option<&NodeId> {
        let ((found, _), name) = self.endpoints_from(*address).next()?;
        (found == address).then_some(name)
    }

    /// Whether an endpoint lies in this network.
    pub fn has_endpoint_within(&self, network: &IpNet) -> bool {
        self.endpoints_from(network.network()).next().is_some_and(|((address, _), _)| network.contains(address))
    }

    /// The addresses of the endpoints in order, one after the other the same where peers share one.
    pub fn endpoint_addresses(&self) -> impl Iterator<Item = &IpAddr> {
        self.endpoints.keys().map(|(address, _)| address)
    }

    fn endpoints_from(&self, address: IpAddr) -> impl Iterator<Item = (&(IpAddr, PublicKey), &NodeId)> {
        self.endpoints.starting_at(&(address, PublicKey::from_bytes([0; 32])))
    }

    fn add(&mut self, peer: &Peer) {
        self.refusals.extend(refusals(self, peer));
        for route in routes_of(self, peer) {
            self.networks.insert(route.network);
            self.routes.insert(route, peer.name.clone());
        }
        match address_of(peer) {
            Some(address) => {
                self.endpoints.insert((address, peer.public_key), peer.name.clone());
            }
            None => self.anywhere += 1,
        }
    }

    fn remove(&mut self, peer: &Peer) {
        let refused = refusals(self, peer);
        self.refusals.retain(|refusal| !refused.contains(refusal));
        for route in routes_of(self, peer) {
            self.networks.remove(&route.network);
            self.routes.remove(&route);
        }
        match address_of(peer) {
            Some(address) => {
                self.endpoints.remove(&(address, peer.public_key));
            }
            None => self.anywhere -= 1,
        }
    }
}

fn refusals(wanted: &Wanted, peer: &Peer) -> Vec<Refusal> {
    let refused = peer.allowed_ips.iter().filter(|network| {
        let is_default = network.prefix_len() == 0 && wanted.table == Some(TABLE_MAIN);
        is_default && wanted.connected.holding(network).next().is_none()
    });
    refused.map(|network| Refusal::DefaultRoute { network: *network, peer: peer.name.clone() }).collect()
}

/// Whether an address has no network beside itself.
pub fn is_host(address: &IpNet) -> bool {
    address.prefix_len() == address.max_prefix_len()
}
