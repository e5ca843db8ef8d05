//! The difference between the wanted and the observed device, as a value.
//!
//! Invariants: an empty plan writes nothing; a step names only what differs, so one changed peer costs the same among
//! ten and ten thousand; no prefix that stays wanted is without an owner between two steps. For that, gains come
//! first (a gain takes the prefix from its old owner at once), then replacements for prefixes nobody gets, then
//! removals.

use std::collections::HashSet;
use std::iter::Peekable;
use std::net::SocketAddr;

use ipnet::IpNet;

use super::device::{AllowedIpsChange, DeviceState, PeerChange, PeerState, PeerUpdate, PresharedKeyChange, Step};
use super::spec::{DeviceSpec, Endpoints};
use crate::model::key::PublicKey;
use crate::model::peer::Peer;

/// Peers in one update: bounds the memory of a message and how long the device's lock is held.
const PEERS_PER_STEP: usize = 2500;
/// Prefixes of one peer in one message. A netlink message holds 8 KiB, a prefix takes up to 40 bytes of it and the
/// rest of a peer under 200.
const PREFIXES_PER_UPDATE: usize = 128;

/// What to do, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    pub steps: Vec<Step>,
}

/// The steps from `observed` to `wanted`.
pub fn plan(wanted: &DeviceSpec<'_>, observed: &DeviceState, endpoints: &Endpoints<'_>) -> Plan {
    let mut steps = device_steps(wanted, observed);
    let changes = peer_changes(wanted, observed, endpoints);
    steps.extend(changes.chunks(PEERS_PER_STEP).map(|chunk| Step::Peers(chunk.to_vec())));
    Plan { steps }
}

fn device_steps(wanted: &DeviceSpec<'_>, observed: &DeviceState) -> Vec<Step> {
    let mut steps = Vec::new();
    // The key first: a device without one has no use for peers.
    if observed.private_key.as_ref() != Some(wanted.private_key) {
        steps.push(Step::PrivateKey(wanted.private_key.clone()));
    }
    if observed.fwmark != wanted.fwmark {
        steps.push(Step::Fwmark(wanted.fwmark));
    }
    if let Some(port) = wanted.listen_port.filter(|port| *port != observed.listen_port) {
        steps.push(Step::ListenPort(port));
    }
    steps
}

/// Changes by phase; the order of the fields is the order in which they are applied.
#[derive(Default)]
struct Phases {
    gains: Vec<PeerChange>,
    replacements: Vec<PeerChange>,
    removals: Vec<PeerChange>,
}

fn peer_changes(wanted: &DeviceSpec<'_>, observed: &DeviceState, endpoints: &Endpoints<'_>) -> Vec<PeerChange> {
    let mut phases = Phases::default();
    let mut losing: Vec<(&Peer, Vec<IpNet>)> = Vec::new();
    for pair in merge(wanted.peers(), observed.peers().iter()) {
        match pair {
            Pair::Wanted(peer) => phases.gains.extend(new_peer(peer, endpoints)),
            Pair::Both(peer, state) => {
                phases.gains.extend(changed_peer(peer, state, endpoints.to_set(peer, state)));
                let lost = lost_prefixes(peer, state);
                if !lost.is_empty() {
                    losing.push((peer, lost));
                }
            }
            Pair::Observed(key) => phases.removals.push(PeerChange::Remove(*key)),
        }
    }
    phases.replacements = replacements(wanted, &losing);
    let Phases { gains, replacements, removals } = phases;
    [gains, replacements, removals].concat()
}

fn new_peer(peer: &Peer, endpoints: &Endpoints<'_>) -> Vec<PeerChange> {
    let endpoint = peer.endpoint.as_ref().and_then(|endpoint| endpoints.addresses(endpoint).first().copied());
    let update = PeerUpdate {
        preshared_key: wanted_preshared_key(peer),
        endpoint,
        persistent_keepalive: peer.persistent_keepalive,
        ..PeerUpdate::new(peer.public_key)
    };
    split(update, &peer.allowed_ips)
}

fn changed_peer(peer: &Peer, state: &PeerState, endpoint: Option<SocketAddr>) -> Vec<PeerChange> {
    let keepalive = peer.persistent_keepalive.unwrap_or(0);
    let gained: Vec<IpNet> =
        peer.allowed_ips.iter().filter(|prefix| !state.allowed_ips.contains(prefix)).copied().collect();
    let same_preshared_key = peer.preshared_key == state.preshared_key;
    if same_preshared_key && keepalive == state.persistent_keepalive && endpoint.is_none() && gained.is_empty() {
        return Vec::new();
    }
    let update = PeerUpdate {
        preshared_key: if same_preshared_key { kept_preshared_key(peer) } else { wanted_preshared_key(peer) },
        endpoint,
        persistent_keepalive: Some(keepalive).filter(|seconds| *seconds != state.persistent_keepalive),
        ..PeerUpdate::new(peer.public_key)
    };
    split(update, &gained)
}

fn wanted_preshared_key(peer: &Peer) -> PresharedKeyChange {
    peer.preshared_key.clone().map_or(PresharedKeyChange::Unset, PresharedKeyChange::Set)
}

/// Setting a peer that vanished since it was observed makes it anew. It must never come back without its preshared
/// key, so every update carries that key; writing the same one again changes nothing.
fn kept_preshared_key(peer: &Peer) -> PresharedKeyChange {
    peer.preshared_key.clone().map_or(PresharedKeyChange::Keep, PresharedKeyChange::Set)
}

/// `update` with `prefixes` added, in as many updates as the messages need.
fn split(update: PeerUpdate, prefixes: &[IpNet]) -> Vec<PeerChange> {
    let follow_up = PeerUpdate { endpoint: None, persistent_keepalive: None, ..update.clone() };
    let mut parts = prefixes.chunks(PREFIXES_PER_UPDATE);
    let first = AllowedIpsChange::Add(parts.next().unwrap_or_default().to_vec());
    let mut changes = vec![PeerChange::Set(PeerUpdate { allowed_ips: first, ..update })];
    changes.extend(parts.map(|part| {
        PeerChange::Set(PeerUpdate { allowed_ips: AllowedIpsChange::Add(part.to_vec()), ..follow_up.clone() })
    }));
    changes
}

fn lost_prefixes(peer: &Peer, state: &PeerState) -> Vec<IpNet> {
    // Nothing lost, told without a search: all that is wanted is there, and there is not more.
    if state.allowed_ips.len() == peer.allowed_ips.len()
        && peer.allowed_ips.iter().all(|prefix| state.allowed_ips.contains(prefix))
    {
        return Vec::new();
    }
    let wanted: HashSet<&IpNet> = peer.allowed_ips.iter().collect();
    state.allowed_ips.iter().filter(|prefix| !wanted.contains(prefix)).copied().collect()
}

/// Updates for the peers that keep a prefix after every gain: those whose lost prefix no wanted peer has.
fn replacements(wanted: &DeviceSpec<'_>, losing: &[(&Peer, Vec<IpNet>)]) -> Vec<PeerChange> {
    if losing.is_empty() {
        return Vec::new();
    }
    let lost: HashSet<&IpNet> = losing.iter().flat_map(|(_, prefixes)| prefixes).collect();
    let claimed: HashSet<&IpNet> =
        wanted.peers().flat_map(|peer| &peer.allowed_ips).filter(|prefix| lost.contains(prefix)).collect();
    let mut changes = Vec::new();
    for (peer, prefixes) in losing {
        if prefixes.iter().any(|prefix| !claimed.contains(prefix)) {
            changes.extend(replacement(peer));
        }
    }
    changes
}

fn replacement(peer: &Peer) -> Vec<PeerChange> {
    let update = PeerUpdate { preshared_key: kept_preshared_key(peer), ..PeerUpdate::new(peer.public_key) };
    let mut changes = split(update, &peer.allowed_ips);
    if let Some(PeerChange::Set(PeerUpdate { allowed_ips: first @ AllowedIpsChange::Add(_), .. })) = changes.first_mut()
        && let AllowedIpsChange::Add(prefixes) = first
    {
        *first = AllowedIpsChange::Replace(std::mem::take(prefixes));
    }
    changes
}

enum Pair<'w, 'o> {
    Wanted(&'w Peer),
    Both(&'w Peer, &'o PeerState),
    Observed(&'o PublicKey),
}

/// Joins two sequences that are both in the order of the keys.
fn merge<'w, 'o>(
    wanted: impl Iterator<Item = &'w Peer>,
    observed: impl Iterator<Item = (&'o PublicKey, &'o PeerState)>,
) -> impl Iterator<Item = Pair<'w, 'o>> {
    let mut wanted = wanted.peekable();
    let mut observed = observed.peekable();
    std::iter::from_fn(move || next_pair(&mut wanted, &mut observed))
}

fn next_pair<'w, 'o>(
    wanted: &mut Peekable<impl Iterator<Item = &'w Peer>>,
    observed: &mut Peekable<impl Iterator<Item = (&'o PublicKey, &'o PeerState)>>,
) -> Option<Pair<'w, 'o>> {
    let order = match (wanted.peek(), observed.peek()) {
        (None, None) => return None,
        (Some(_), None) => std::cmp::Ordering::Less,
        (None, Some(_)) => std::cmp::Ordering::Greater,
        (Some(peer), Some((key, _))) => peer.public_key.cmp(key),
    };
    match order {
        std::cmp::Ordering::Less => wanted.next().map(Pair::Wanted),
        std::cmp::Ordering::Greater => observed.next().map(|(key, _)| Pair::Observed(key)),
        std::cmp::Ordering::Equal => {
            let (peer, (_, state)) = wanted.next().zip(observed.next())?;
            Some(Pair::Both(peer, state))
        }
    }
}

#[cfg(test)]
mod tests;
