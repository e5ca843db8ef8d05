//! The difference between what the maps and hooks should be and what they are: pure.
//!
//! Order: maps are filled before a program runs for the first time; an entry that moves from one peer to another is
//! overwritten, so no packet is unattributed meanwhile; what is stale goes last. A program is taken off one hook before
//! it is put on another: a short gap is counted as nothing, a short overlap would be counted twice.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::platform::{Hooks, MapContents, Slot};
use super::spec::{Desired, Sizes, host};
use super::status::Hook;
use crate::model::PeerChange;
use crate::model::key::PublicKey;
use crate::sys::bpf::Side;

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make and pin the maps that are missing.
    CreateMaps(Sizes),
    AssignIndex {
        key: PublicKey,
        index: u32,
    },
    SetAddress {
        address: IpAddr,
        index: u32,
    },
    SetPrefix {
        prefix: IpNet,
        index: u32,
    },
    RemoveAddress(IpAddr),
    RemovePrefix(IpNet),
    /// Take our program off, wherever it is.
    Detach {
        hook: Hook,
        side: Side,
    },
    Attach {
        hook: Hook,
        side: Side,
    },
    /// Put the wanted program where another of ours runs, without a gap.
    Replace {
        hook: Hook,
        side: Side,
    },
    /// Remove the pins of another layout, and with them what they keep attached.
    RemoveLayout(u32),
}

/// The steps that make the maps as desired.
pub fn maps(desired: &Desired, observed: &MapContents) -> Vec<Step> {
    let mut steps = Vec::new();
    for (key, index) in &desired.indexes {
        if !observed.indexes.contains_key(key) {
            steps.push(Step::AssignIndex { key: *key, index: *index });
        }
    }
    let addresses = changed(&desired.addresses, &observed.addresses);
    steps.extend(addresses.map(|(address, index)| Step::SetAddress { address: *address, index: *index }));
    let prefixes = changed(&desired.prefixes, &observed.prefixes);
    steps.extend(prefixes.map(|(prefix, index)| Step::SetPrefix { prefix: *prefix, index: *index }));
    steps.extend(stale(&desired.addresses, &observed.addresses).map(|address| Step::RemoveAddress(*address)));
    steps.extend(stale(&desired.prefixes, &observed.prefixes).map(|prefix| Step::RemovePrefix(*prefix)));
    steps
}

/// The steps for the peers that changed, where the maps hold what the model before wanted; `None` where something may not
/// fit, which only [`super::spec::desired`] can say for all of them.
pub fn changed_peers(changes: &[PeerChange], observed: &MapContents) -> Option<Vec<Step>> {
    let (mut assigned, mut placed, mut removed) = (Vec::new(), BTreeMap::new(), Vec::new());
    let mut next = observed.next_index;
    for PeerChange { key, before, after } in changes {
        removed.extend(before.iter().flat_map(|peer| &peer.allowed_ips).map(IpNet::trunc));
        let Some(after) = after else { continue };
        let index = match observed.indexes.get(key) {
            Some(index) => *index,
            None => {
                assigned.push(Step::AssignIndex { key: *key, index: next });
                next += 1;
                next - 1
            }
        };
        placed.extend(after.allowed_ips.iter().map(|prefix| (prefix.trunc(), index)));
    }
    let fits = next <= observed.sizes.indexes
        && observed.addresses.len() + placed.len() <= observed.sizes.addresses as usize
        && observed.prefixes.len() + placed.len() <= observed.sizes.prefixes as usize;
    let mut steps = assigned;
    steps.extend(placed.iter().filter_map(|(prefix, index)| set(prefix, *index, observed)));
    steps.extend(removed.iter().filter(|prefix| !placed.contains_key(prefix)).map(remove));
    fits.then_some(steps)
}

fn set(prefix: &IpNet, index: u32, observed: &MapContents) -> Option<Step> {
    match host(prefix) {
        Some(address) if observed.addresses.get(&address) == Some(&index) => None,
        Some(address) => Some(Step::SetAddress { address, index }),
        None if observed.prefixes.get(prefix) == Some(&index) => None,
        None => Some(Step::SetPrefix { prefix: *prefix, index }),
    }
}

fn remove(prefix: &IpNet) -> Step {
    host(prefix).map_or(Step::RemovePrefix(*prefix), Step::RemoveAddress)
}

fn changed<'a, K: Ord>(
    desired: &'a BTreeMap<K, u32>,
    observed: &'a BTreeMap<K, u32>,
) -> impl Iterator<Item = (&'a K, &'a u32)> {
    desired.iter().filter(|(key, index)| observed.get(key) != Some(index))
}

fn stale<'a, K: Ord>(desired: &'a BTreeMap<K, u32>, observed: &'a BTreeMap<K, u32>) -> impl Iterator<Item = &'a K> {
    observed.keys().filter(|key| !desired.contains_key(key))
}

/// The steps that make our program run once, on the wanted hook, on both sides of the link.
pub fn hooks(wanted: Hook, observed: &Hooks) -> Vec<Step> {
    let mut steps = Vec::new();
    for (side, slots) in [(Side::Ingress, &observed.ingress), (Side::Egress, &observed.egress)] {
        let (ours, other_hook, other) = match wanted {
            Hook::Tcx => (slots.tcx, Hook::Clsact, slots.clsact),
            Hook::Clsact => (slots.clsact, Hook::Tcx, slots.tcx),
        };
        match other {
            Slot::Current | Slot::Outdated | Slot::Stale => steps.push(Step::Detach { hook: other_hook, side }),
            Slot::Empty | Slot::Foreign => {}
        }
        match ours {
            Slot::Empty => steps.push(Step::Attach { hook: wanted, side }),
            Slot::Outdated => steps.push(Step::Replace { hook: wanted, side }),
            Slot::Stale => {
                steps.push(Step::Detach { hook: wanted, side });
                steps.push(Step::Attach { hook: wanted, side });
            }
            // A foreign filter in our place is reported, not touched.
            Slot::Current | Slot::Foreign => {}
        }
    }
    steps.extend(observed.old_layouts.iter().map(|layout| Step::RemoveLayout(*layout)));
    steps
}
