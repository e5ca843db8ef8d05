//! Which changes of the host wake the reconciler: those of our link, and those that alter the way to the peers or
//! a network beside ours. A host where containers and routing daemons come and go does not.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;

use super::PROTOCOL;
use super::plan::{Observed, Step};
use super::spec::{Route, Wanted};
use crate::model::Link;
use crate::sys::rtnetlink::monitor::{Change, RouteChange};
use crate::sys::rtnetlink::route::PROTOCOL_KERNEL;

/// The table the kernel keeps for addresses of this host; its routes come with addresses.
const TABLE_LOCAL: u32 = 255;

/// Shared between the reconciler, which says what matters, and the monitor, which asks.
#[derive(Debug, Clone, Default)]
pub(super) struct Interest(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// The link with what is wanted on it.
    target: Option<(Link, Arc<Wanted>)>,
    /// Links that carry the tunnel's packets, and links with a network that overlaps ours.
    neighbours: BTreeSet<u32>,
    /// Our routes as they are, and as they will be when what is under way is done: events about these are no news.
    routes: BTreeSet<(u32, IpNet)>,
    news: News,
}

/// What has happened since the last pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct News {
    /// Our link, its addresses or routes changed, other than by us.
    pub(super) ours: bool,
    /// Something that decides about ours: ways that were looked up are stale.
    pub(super) around: bool,
    /// Networks of other links came or went that are no matter for what is wanted now.
    pub(super) others: bool,
}

impl Interest {
    /// From now on `wanted` on `link` matters.
    pub(super) fn set_wanted(&self, link: &Link, wanted: &Arc<Wanted>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.target = Some((link.clone(), Arc::clone(wanted)));
    }

    /// From now on the links around, as they were observed, matter.
    pub(super) fn set_observed(&self, observed: &Observed) {
        let paths = observed.paths.values().chain(&observed.default_paths);
        let carrying = paths.flat_map(|path| path.links.iter().copied());
        let beside = observed.connected.iter().map(|connected| connected.index);
        let neighbours = carrying.chain(beside).filter(|index| *index != observed.index).collect();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).neighbours = neighbours;
    }

    /// Nothing matters: there is no link.
    pub(super) fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = State::default();
    }

    /// From now on these are our routes.
    pub(super) fn set_routes(&self, routes: &BTreeSet<Route>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.routes = routes.iter().map(|route| (route.table, route.network)).collect();
    }

    /// We are about to do this.
    pub(super) fn expect(&self, step: &Step) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match step {
            Step::AddRoute(route) => {
                state.routes.insert((route.table, route.network));
            }
            Step::RemoveRoute(route) => {
                state.routes.remove(&(route.table, route.network));
            }
            Step::SetMtu(_) | Step::SetUp | Step::AddAddress(_) | Step::RemoveAddress(_) => {}
        }
    }

    /// What has happened since the last call.
    pub(super) fn take_news(&self) -> News {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).news)
    }

    /// Whether `change` matters.
    pub(super) fn wants(&self, change: &Change) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((link, wanted)) = &state.target else { return false };
        let (ours, around) = match change {
            Change::Link { index, name, .. } => {
                (*index == link.index || *name == link.name.as_str(), state.neighbours.contains(index))
            }
            Change::Address { index, .. } => (*index == link.index, false),
            Change::Route(route) => {
                (is_ours(route, link) && is_news(route, &state.routes), is_around(route, link, wanted))
            }
            Change::Rule | Change::Unknown => (false, true),
        };
        let others = matches!(change, Change::Route(route) if route.protocol == PROTOCOL_KERNEL && route.unicast);
        state.news.ours |= ours;
        state.news.around |= around;
        state.news.others |= others;
        ours || around
    }
}

/// Whether a route came that we did not make, or went that we did not take away.
fn is_news(route: &RouteChange, known: &BTreeSet<(u32, IpNet)>) -> bool {
    let Some(network) = route.network else { return true };
    known.contains(&(route.table, network)) == route.removed
}

fn is_ours(route: &RouteChange, link: &Link) -> bool {
    route.protocol == PROTOCOL && route.links.contains(&link.index)
}

fn is_around(route: &RouteChange, link: &Link, wanted: &Wanted) -> bool {
    let on_our_link = route.links.contains(&link.index);
    let Some(network) = route.network.filter(|_| route.unicast && route.table != TABLE_LOCAL && !on_our_link) else {
        return false;
    };
    // The networks of IPv6 link-local addresses come and go with every link.
    if matches!(network, IpNet::V6(network) if network.addr().is_unicast_link_local()) {
        return false;
    }
    let leads_to_peer = wanted.has_endpoint_within(&network);
    let is_default = wanted.roaming() && network.prefix_len() == 0;
    leads_to_peer || is_default || wanted.networks.overlaps(&network)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{link, model, peer, settings, wanted};
    use super::*;

    fn interest() -> Interest {
        let interest = Interest::default();
        let peer = peer("beta", 1, Some("192.0.2.7:51820"), &["10.80.0.2/32", "10.99.0.0/16"]);
        let wanted = Arc::new(wanted(&settings(), &model(&["10.80.0.1/24"], vec![peer])));
        interest.set_wanted(&link(), &wanted);
        interest
    }

    fn route(network: &str, index: u32) -> Change {
        let network = Some(network.parse().expect("a network"));
        Change::Route(RouteChange {
            links: vec![index],
            network,
            table: 254,
            protocol: 2,
            unicast: true,
            removed: false,
        })
    }

    #[test]
    fn nothing_matters_without_a_link() {
        assert!(!Interest::default().wants(&route("0.0.0.0/0", 2)));
    }

    #[test]
    fn the_way_to_a_peer_matters() {
        let interest = interest();
        for network in ["0.0.0.0/0", "192.0.2.0/24", "192.0.2.7/32"] {
            assert!(interest.wants(&route(network, 2)), "{network}");
        }
        assert!(interest.take_news().around);
        assert!(!interest.take_news().around);
    }

    #[test]
    fn a_network_beside_ours_matters_and_others_do_not() {
        let interest = interest();
        for network in ["10.99.3.0/24", "10.0.0.0/8", "10.80.0.0/25"] {
            assert!(interest.wants(&route(network, 2)), "{network}");
        }
        assert!(interest.take_news().around);
        for network in ["172.17.0.0/16", "198.51.100.0/24", "fe80::/64"] {
            assert!(!interest.wants(&route(network, 2)), "{network}");
        }
        let address = Some("172.17.0.1/16".parse().expect("an address"));
        assert!(!interest.wants(&Change::Address { index: 2, address }));
        assert!(!interest.take_news().around);
    }

    #[test]
    fn everything_of_our_link_matters() {
        let interest = interest();
        assert!(interest.wants(&Change::Address { index: link().index, address: None }));
        let link_change =
            |index, name: &str| Change::Link { index, name: name.to_owned(), up: false, mtu: 1500, removed: false };
        assert!(interest.wants(&link_change(link().index, "renamed")));
        assert!(interest.wants(&link_change(99, link().name.as_str())), "made anew");
        assert!(!interest.wants(&link_change(99, "veth7")));
        assert!(!interest.take_news().around);
    }
}
