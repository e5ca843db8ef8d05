//! The difference between what the link should have and what it has, in the order that loses no traffic: MTU, up,
//! addresses, routes, and only then removals, but for old addresses that new ones would not outlive.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::mtu::{self, Way};
use super::networks::{NetworkSet, overlap};
use super::spec::{METRIC, Route, TABLE_MAIN, Wanted, is_host};
use crate::foundation::id::NodeId;

/// The link and what is around it, as the kernel says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// The index of our link.
    pub index: u32,
    pub up: bool,
    pub mtu: u32,
    /// The addresses of our link.
    pub addresses: BTreeMap<IpNet, Owner>,
    /// The routes through our link with our protocol number, in every table.
    pub routes: BTreeSet<Route>,
    /// Networks of other links that overlap with what is wanted.
    pub connected: Vec<Connected>,
    /// All networks of other links.
    pub others: NetworkSet,
    /// The ways to the endpoints; none for one that cannot be reached now.
    pub paths: BTreeMap<IpAddr, Path>,
    /// The ways that a peer without a known endpoint would have: the default routes.
    pub default_paths: Vec<Path>,
}

/// Who set an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    Ours,
    Foreign,
}

/// A network that is directly reachable on another link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connected {
    pub network: IpNet,
    /// The other link's name.
    pub link: String,
    pub index: u32,
}

/// The way of the tunnel's own packets to an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    /// The route that was chosen.
    pub network: IpNet,
    pub table: u32,
    /// The links it leaves by.
    pub links: Vec<u32>,
    pub mtu: u32,
}

/// One change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    SetMtu(u32),
    SetUp,
    AddAddress(IpNet),
    AddRoute(Route),
    RemoveRoute(Route),
    RemoveAddress(IpNet),
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::SetMtu(mtu) => write!(f, "set MTU {mtu}"),
            Self::SetUp => f.write_str("set up"),
            Self::AddAddress(address) => write!(f, "add address {address}"),
            Self::AddRoute(route) => write!(f, "add route {} in table {}", route.network, route.table),
            Self::RemoveRoute(route) => write!(f, "remove route {} from table {}", route.network, route.table),
            Self::RemoveAddress(address) => write!(f, "remove address {address}"),
        }
    }
}

/// Something that was asked for and is not done, and why; its text says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "allowed_ips {network} of peer {peer} is a default route and is not installed in the main table, where the \
         tunnel's own packets would follow it; set network.table to a table of your own and wireguard.fwmark, and add the \
         rules `not fwmark MARK table TABLE` and, before it, `table main suppress_prefixlength 0` with `ip rule add`"
    )]
    DefaultRoute { network: IpNet, peer: NodeId },
    #[error(
        "allowed_ips {network} of peer {peer} is not installed as a route: it lies in {foreign}, the network of link \
         {link}, which must stay reachable; renumber one of the two or remove it from allowed_ips"
    )]
    RouteOverlap { network: IpNet, peer: NodeId, foreign: IpNet, link: String },
    #[error(
        "address {address} is not set: its network overlaps {foreign}, the network of link {link}; choose another \
         network in wireguard.addresses or renumber that link"
    )]
    AddressOverlap { address: IpNet, foreign: IpNet, link: String },
    #[error(
        "allowed_ips {network} of peer {peer} is not installed as a route: it holds {endpoint}, the endpoint of peer \
         {at}, and the tunnel's own packets would enter the tunnel; make it more specific or set network.table"
    )]
    RouteHoldsEndpoint { network: IpNet, peer: NodeId, endpoint: IpAddr, at: NodeId },
    #[error(
        "the endpoint {endpoint} of peer {at} is routed into the tunnel by {network} in table {table}; set \
         wireguard.fwmark and let the rule for that table skip marked packets"
    )]
    EndpointInTunnel { endpoint: IpAddr, at: NodeId, network: IpNet, table: u32 },
}

/// What to do, and what is not done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    pub steps: Vec<Step>,
    pub refusals: Vec<Refusal>,
}

/// The difference.
pub fn plan(wanted: &Wanted, observed: &Observed) -> Plan {
    let mut refusals = wanted.refusals.clone();
    refusals.extend(endpoints_in_tunnel(wanted, observed));
    let mut steps = link_steps(wanted, observed);
    let addresses = accepted_addresses(wanted, observed, &mut refusals);
    let routes = accepted_routes(wanted, observed, &mut refusals);
    for address in addresses.iter().filter(|address| !observed.addresses.contains_key(address)) {
        let in_the_way = ours(observed).filter(|old| !addresses.contains(old) && is_in_the_way(old, address));
        for step in in_the_way.map(Step::RemoveAddress) {
            if !steps.contains(&step) {
                steps.push(step);
            }
        }
        steps.push(Step::AddAddress(*address));
    }
    steps.extend(routes.difference(&observed.routes).copied().map(Step::AddRoute));
    steps.extend(observed.routes.difference(&routes).copied().map(Step::RemoveRoute));
    for old in ours(observed).filter(|old| !addresses.contains(old)) {
        let step = Step::RemoveAddress(old);
        if !steps.contains(&step) {
            steps.push(step);
        }
    }
    Plan { steps, refusals }
}

/// Whether the old address goes before the new one comes. IPv6 knows an address once, whatever its length; of an IPv4 network
/// the first address takes all later ones with it when it goes.
fn is_in_the_way(old: &IpNet, new: &IpNet) -> bool {
    match new {
        IpNet::V4(_) => old.trunc() == new.trunc(),
        IpNet::V6(_) => old.addr() == new.addr(),
    }
}

fn ours(observed: &Observed) -> impl Iterator<Item = IpNet> {
    let ours = observed.addresses.iter().filter(|(_, owner)| **owner == Owner::Ours);
    ours.map(|(address, _)| *address)
}

fn link_steps(wanted: &Wanted, observed: &Observed) -> Vec<Step> {
    let mut steps = Vec::new();
    if let Some(mtu) = wanted_mtu(wanted, observed).filter(|mtu| *mtu != observed.mtu) {
        steps.push(Step::SetMtu(mtu));
    }
    if !observed.up {
        steps.push(Step::SetUp);
    }
    steps
}

/// `None`: leave it. A link that is up keeps its MTU while no way is known, so that an outage changes nothing.
fn wanted_mtu(wanted: &Wanted, observed: &Observed) -> Option<u32> {
    if let Some(mtu) = wanted.mtu {
        return Some(mtu);
    }
    let default_paths = observed.default_paths.iter().filter(|_| wanted.roaming());
    let paths = observed.paths.values().chain(default_paths).filter(|path| !path.links.contains(&observed.index));
    let ways = paths.map(|path| Way { ipv6: path.network.addr().is_ipv6(), mtu: path.mtu });
    mtu::tunnel_mtu(ways).or((!observed.up).then_some(mtu::UNKNOWN_WAY))
}

/// An address that is already there stays, whatever appears beside it: taking it away would end the mesh.
fn accepted_addresses(wanted: &Wanted, observed: &Observed, refusals: &mut Vec<Refusal>) -> BTreeSet<IpNet> {
    let mut accepted = BTreeSet::new();
    for address in &wanted.addresses {
        let foreign =
            observed.connected.iter().find(|other| !is_host(address) && other.network.contains(&address.trunc()));
        if let Some(Connected { network, link, .. }) = foreign {
            refusals.push(Refusal::AddressOverlap { address: *address, foreign: *network, link: link.clone() });
            if !observed.addresses.contains_key(address) {
                continue;
            }
        }
        accepted.insert(*address);
    }
    accepted
}

fn accepted_routes(wanted: &Wanted, observed: &Observed, refusals: &mut Vec<Refusal>) -> BTreeSet<Route> {
    let loops = routes_that_loop(wanted, observed);
    let mut accepted = BTreeSet::new();
    for (route, peer) in wanted.routes.iter() {
        let (network, peer) = (route.network, peer.clone());
        // A wider route is no harm: the kernel prefers the more specific network of the other link.
        let foreign = observed.connected.iter().find(|other| other.network.contains(&network));
        if let Some(Connected { network: foreign, link, .. }) = foreign {
            refusals.push(Refusal::RouteOverlap { network, peer, foreign: *foreign, link: link.clone() });
        } else if let Some((endpoint, at)) = loops.get(route) {
            refusals.push(Refusal::RouteHoldsEndpoint { network, peer, endpoint: *endpoint, at: at.clone() });
        } else {
            accepted.insert(*route);
        }
    }
    accepted
}

/// Routes that would win over the way that leads to an endpoint now, or have done so.
fn routes_that_loop(wanted: &Wanted, observed: &Observed) -> BTreeMap<Route, (IpAddr, NodeId)> {
    let mut loops = BTreeMap::new();
    for (endpoint, path) in observed.paths.iter().filter(|(_, path)| path.table == TABLE_MAIN) {
        let Some(at) = wanted.peer_at(endpoint) else { continue };
        let through_us = path.links.contains(&observed.index);
        for route in main_routes_holding(wanted, *endpoint) {
            if through_us || route.network.prefix_len() >= path.network.prefix_len() {
                loops.insert(route, (*endpoint, at.clone()));
            }
        }
    }
    loops
}

/// The routes in the main table that an endpoint would be reached by, but for narrower ones.
pub fn main_routes_holding(wanted: &Wanted, endpoint: IpAddr) -> impl Iterator<Item = Route> {
    let holding: Vec<IpNet> = wanted.networks.holding(&IpNet::from(endpoint)).collect();
    let routes = holding.into_iter().map(|network| Route { network, table: TABLE_MAIN, metric: METRIC });
    routes.filter(|route| wanted.routes.contains_key(route))
}

/// In the main table this is prevented; another table is reached by rules that are not ours.
fn endpoints_in_tunnel(wanted: &Wanted, observed: &Observed) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    for (endpoint, path) in &observed.paths {
        let Some(at) = wanted.peer_at(endpoint) else { continue };
        let prevented = main_routes_holding(wanted, *endpoint).next().is_some() && path.table == TABLE_MAIN;
        if path.links.contains(&observed.index) && !prevented {
            let (network, table) = (path.network, path.table);
            refusals.push(Refusal::EndpointInTunnel { endpoint: *endpoint, at: at.clone(), network, table });
        }
    }
    refusals
}

/// What an operator should know though nothing is wrong: networks of other links inside a route of ours, which keep
/// their way.
pub fn notices(wanted: &Wanted, observed: &Observed) -> Vec<String> {
    let mut notices = Vec::new();
    for other in &observed.connected {
        let wider = |network: &IpNet| overlap(network, &other.network) && !other.network.contains(network);
        // What another table holds is for the rules that lead there.
        let routes = wanted.routes.keys().filter(|route| route.table == TABLE_MAIN).map(|route| route.network);
        let addresses = wanted.addresses.iter().map(IpNet::trunc);
        for network in routes.chain(addresses).filter(wider) {
            let Connected { network: inner, link, .. } = other;
            notices.push(format!("{network} holds {inner}, the network of link {link}, which stays on that link"));
        }
    }
    notices
}
