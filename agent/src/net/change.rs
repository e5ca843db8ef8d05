//! What changed peers do to a link that is otherwise as wanted: the common case, told without looking at all routes and
//! all peers. Pure. Whatever could touch more than the changed peers themselves is left to the whole plan.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::mtu::{self, Way};
use super::plan::{Observed, Path, Step, main_routes_holding};
use super::spec::{Route, Wanted, address_of, routes_of};
use crate::model::PeerChange;

/// What is to be done, and the ways to the endpoints that are new.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Change {
    pub steps: Vec<Step>,
    pub new_paths: BTreeMap<IpAddr, Path>,
    pub old_paths: BTreeSet<IpAddr>,
}

/// The addresses of `changes` whose ways are not known yet.
pub fn unknown_endpoints(changes: &[PeerChange], observed: &Observed) -> BTreeSet<IpAddr> {
    let after = changes.iter().filter_map(|change| address_of(change.after.as_deref()?));
    after.filter(|address| !observed.paths.contains_key(address)).collect()
}

/// What `changes` do, which lead from `older` to `newer`; `ways` are those to the unknown endpoints. `None`: more than
/// the changed peers may be concerned.
pub fn changed_peers(
    changes: &[PeerChange],
    (older, newer): (&Wanted, &Wanted),
    observed: &Observed,
    ways: &BTreeMap<IpAddr, Option<Path>>,
) -> Option<Change> {
    let same_frame = older.roaming() == newer.roaming() && older.refusals == newer.refusals && observed.up;
    if !same_frame {
        return None;
    }
    let mut change = Change::default();
    routes(changes, (older, newer), observed, &mut change)?;
    endpoints(changes, (older, newer), observed, ways, &mut change)?;
    Some(change)
}

fn routes(
    changes: &[PeerChange],
    (older, newer): (&Wanted, &Wanted),
    observed: &Observed,
    change: &mut Change,
) -> Option<()> {
    let (mut gained, mut lost): (BTreeSet<Route>, BTreeSet<Route>) = Default::default();
    for PeerChange { before, after, .. } in changes {
        lost.extend(
            before.iter().flat_map(|peer| routes_of(newer, peer)).filter(|route| older.routes.contains_key(route)),
        );
        gained.extend(
            after.iter().flat_map(|peer| routes_of(newer, peer)).filter(|route| newer.routes.contains_key(route)),
        );
    }
    for route in gained.symmetric_difference(&lost) {
        if observed.others.overlaps(&route.network) || newer.has_endpoint_within(&route.network) {
            return None;
        }
    }
    let missing = gained.iter().filter(|route| !observed.routes.contains(route));
    change.steps.extend(missing.copied().map(Step::AddRoute));
    let stale = lost.difference(&gained).filter(|route| observed.routes.contains(route));
    change.steps.extend(stale.copied().map(Step::RemoveRoute));
    Some(())
}

fn endpoints(
    changes: &[PeerChange],
    (older, newer): (&Wanted, &Wanted),
    observed: &Observed,
    ways: &BTreeMap<IpAddr, Option<Path>>,
    change: &mut Change,
) -> Option<()> {
    for (address, path) in ways {
        // What cannot be reached now decides nothing; a way that appears is an event.
        let Some(path) = path else { continue };
        if path.links.contains(&observed.index) {
            return None;
        }
        let narrower = newer.mtu.is_none() && tunnel_mtu(path) < observed.mtu;
        if narrower || observed.paths.is_empty() || main_routes_holding(newer, *address).next().is_some() {
            return None;
        }
        change.new_paths.insert(*address, path.clone());
    }
    for address in changes.iter().filter_map(|change| address_of(change.before.as_deref()?)) {
        if newer.peer_at(&address).is_some() {
            continue;
        }
        if main_routes_holding(older, address).next().is_some() {
            return None;
        }
        change.old_paths.insert(address);
    }
    let narrowest_goes = |address: &IpAddr| {
        observed.paths.get(address).is_some_and(|path| newer.mtu.is_none() && tunnel_mtu(path) <= observed.mtu)
    };
    if change.old_paths.iter().any(narrowest_goes) {
        // Usually the first that is asked is as narrow.
        let mut others = observed.paths.iter().filter(|(address, _)| !change.old_paths.contains(address));
        others.find(|(_, path)| tunnel_mtu(path) == observed.mtu)?;
    }
    Some(())
}

fn tunnel_mtu(path: &Path) -> u32 {
    mtu::tunnel_mtu([Way { ipv6: path.network.addr().is_ipv6(), mtu: path.mtu }]).unwrap_or(u32::MAX)
}

impl Change {
    /// What is observed once the steps are done.
    pub fn apply_to(self, observed: &mut Observed) {
        for step in &self.steps {
            match step {
                Step::AddRoute(route) => {
                    observed.routes.insert(*route);
                }
                Step::RemoveRoute(route) => {
                    observed.routes.remove(route);
                }
                Step::SetMtu(_) | Step::SetUp | Step::AddAddress(_) | Step::RemoveAddress(_) => {}
            }
        }
        observed.paths.extend(self.new_paths);
        for address in &self.old_paths {
            observed.paths.remove(address);
        }
    }
}
