//! What the maps should hold, from the model: pure.
//!
//! A peer's index belongs to its public key for as long as the pins live: a peer that comes back counts on where it
//! stopped, and no index is ever given to another peer. What does not fit is refused by name and counts as
//! unattributed.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::foundation::id::NodeId;
use crate::model::Model;
use crate::model::key::PublicKey;
use crate::model::ordered::Ordered;

/// How many entries the maps take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Indexes, the one for unattributed packets included.
    pub indexes: u32,
    /// Exact addresses, for each of IPv4 and IPv6.
    pub addresses: u32,
    /// Networks, for each of IPv4 and IPv6.
    pub prefixes: u32,
}

impl Sizes {
    /// The sizes for a number of peers: two exact addresses and one network of either family a peer.
    pub fn for_peers(peers: u32) -> Self {
        Self { indexes: peers + 1, addresses: peers.saturating_mul(2), prefixes: peers }
    }
}

/// Something of the model that does not fit. Only the first of a kind is named.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "accounting.max_peers = {capacity} is used up, so {count} peers (the first: {first}) count as unattributed; raise it and run `weft down`, after which the counters start anew"
    )]
    Peers { capacity: u32, count: usize, first: NodeId },
    #[error(
        "the map of {family} {what} takes {capacity}, so {count} more (the first: {first}) count as unattributed; raise accounting.max_peers and run `weft down`, after which the counters start anew"
    )]
    Entries { family: &'static str, what: &'static str, capacity: u32, count: usize, first: String },
}

impl Refusal {
    /// How many peers are not counted at all.
    pub fn peers(&self) -> usize {
        match self {
            Self::Peers { count, .. } => *count,
            Self::Entries { .. } => 0,
        }
    }
}

/// What the maps should hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Desired {
    /// The index of every peer of the model that has one.
    pub indexes: BTreeMap<PublicKey, u32>,
    pub addresses: BTreeMap<IpAddr, u32>,
    pub prefixes: BTreeMap<IpNet, u32>,
    pub refused: Vec<Refusal>,
}

/// Derives what the maps should hold from the model and the indexes that are taken.
pub fn desired(model: &Model, taken: &Ordered<PublicKey, u32>, sizes: Sizes) -> Desired {
    let mut desired = Desired::default();
    assign_indexes(model, taken, sizes, &mut desired);
    let mut allowed = Vec::new();
    for peer in model.peers() {
        if let Some(index) = desired.indexes.get(&peer.public_key) {
            allowed.extend(peer.allowed_ips.iter().map(|prefix| (prefix.trunc(), *index)));
        }
    }
    place(allowed, sizes, &mut desired);
    desired
}

fn assign_indexes(model: &Model, taken: &Ordered<PublicKey, u32>, sizes: Sizes, desired: &mut Desired) {
    let mut next = taken.values().max().map_or(1, |highest| highest + 1);
    let mut refused = Vec::new();
    for peer in model.peers() {
        if let Some(index) = taken.get(&peer.public_key) {
            desired.indexes.insert(peer.public_key, *index);
        } else if next < sizes.indexes {
            desired.indexes.insert(peer.public_key, next);
            next += 1;
        } else {
            refused.push(&peer.name);
        }
    }
    if let Some(first) = refused.first() {
        let (first, count) = ((*first).clone(), refused.len());
        desired.refused.push(Refusal::Peers { capacity: sizes.indexes - 1, count, first });
    }
}

/// The exact address a prefix is, if it is one.
pub(super) fn host(prefix: &IpNet) -> Option<IpAddr> {
    (prefix.prefix_len() == prefix.max_prefix_len()).then(|| prefix.addr())
}

fn place(allowed: Vec<(IpNet, u32)>, sizes: Sizes, desired: &mut Desired) {
    let kinds = [
        ("IPv4", "addresses", true, true, sizes.addresses),
        ("IPv6", "addresses", false, true, sizes.addresses),
        ("IPv4", "networks", true, false, sizes.prefixes),
        ("IPv6", "networks", false, false, sizes.prefixes),
    ];
    for (family, what, is_v4, is_host, capacity) in kinds {
        let mut room = capacity;
        let mut refused: Vec<&IpNet> = Vec::new();
        for (prefix, index) in &allowed {
            if prefix.addr().is_ipv4() != is_v4 || host(prefix).is_some() != is_host {
                continue;
            }
            let Some(left) = room.checked_sub(1) else {
                refused.push(prefix);
                continue;
            };
            room = left;
            match host(prefix) {
                Some(address) => desired.addresses.insert(address, *index),
                None => desired.prefixes.insert(*prefix, *index),
            };
        }
        if let Some(first) = refused.first() {
            let (first, count) = (first.to_string(), refused.len());
            desired.refused.push(Refusal::Entries { family, what, capacity, count, first });
        }
    }
}
