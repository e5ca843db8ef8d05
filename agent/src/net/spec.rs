//! What the link should have: a pure function of the settings and the model.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::config::Settings;
use super::networks::NetworkSet;
use super::plan::Refusal;
use crate::foundation::id::NodeId;
use crate::model::Model;
use crate::model::peer::Endpoint;

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

/// What the link should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// `None`: from the ways to the peers.
    pub mtu: Option<u32>,
    pub addresses: BTreeSet<IpNet>,
    /// Each with the peer it leads to.
    pub routes: BTreeMap<Route, NodeId>,
    /// Where peers are known to be.
    pub endpoints: BTreeMap<IpAddr, NodeId>,
    /// Whether a peer may also be somewhere else: no endpoint is configured, or only its name.
    pub roaming: bool,
    /// The mark of the tunnel's own packets.
    pub fwmark: u32,
    /// Everything above that would compete with a network of another link.
    pub networks: NetworkSet,
    /// What was asked for and cannot be.
    pub refusals: Vec<Refusal>,
}

/// What the link should have for this model.
pub fn wanted(settings: &Settings, model: &Model) -> Wanted {
    let addresses: BTreeSet<IpNet> = model.node.addresses.iter().copied().collect();
    let connected: NetworkSet = addresses.iter().filter(|address| !is_host(address)).copied().collect();
    let mut routes = BTreeMap::new();
    let mut refusals = Vec::new();
    let peers_with_routes = model.peers().filter(|_| settings.routes);
    for (network, peer) in peers_with_routes.flat_map(|peer| peer.allowed_ips.iter().map(move |ip| (*ip, &peer.name))) {
        if connected.holding(&network).next().is_some() {
            continue;
        }
        if network.prefix_len() == 0 && settings.table == TABLE_MAIN {
            refusals.push(Refusal::DefaultRoute { network, peer: peer.clone() });
            continue;
        }
        routes.insert(Route { network, table: settings.table, metric: METRIC }, peer.clone());
    }
    let endpoints = endpoints(model);
    let known = |endpoint: &Option<Endpoint>| matches!(endpoint, Some(Endpoint::Address(_)));
    Wanted {
        mtu: settings.mtu.map(u32::from),
        networks: addresses.iter().copied().chain(routes.keys().map(|route| route.network)).collect(),
        addresses,
        routes,
        roaming: model.peers().any(|peer| !known(&peer.endpoint)) || endpoints.is_empty(),
        endpoints,
        fwmark: settings.fwmark,
        refusals,
    }
}

fn endpoints(model: &Model) -> BTreeMap<IpAddr, NodeId> {
    let mut endpoints = BTreeMap::new();
    for peer in model.peers() {
        match &peer.endpoint {
            Some(Endpoint::Address(address)) => {
                endpoints.insert(address.ip().to_canonical(), peer.name.clone());
            }
            Some(Endpoint::Name { .. }) | None => {}
        }
    }
    endpoints
}

/// Whether an address has no network beside itself.
pub fn is_host(address: &IpNet) -> bool {
    address.prefix_len() == address.max_prefix_len()
}
