//! The difference between the wanted and the observed device, as a value.
//!
//! Invariants: an empty plan writes nothing; a step names only what differs, so one changed peer costs the same among
//! ten and ten thousand; no prefix that stays wanted is without an owner between two steps. For that, gains come
//! first (a gain takes the prefix from its old owner at once), then what nobody gets goes, then removals.
//!
//! Kernels before 6.16 cannot take a single prefix from a peer, only replace its whole list, and for a moment the peer then has
//! none. So a prefix that nobody gets is given to a peer that is made for that and removed at once: see [`drop_key`].

use std::collections::HashSet;
use std::iter::Peekable;
use std::net::SocketAddr;

use ipnet::IpNet;

use super::device::{DeviceState, PeerChange, PeerState, PeerUpdate, PresharedKeyChange, Step};
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
    let pairs = merge(wanted.peers(), observed.peers().iter());
    assemble(wanted, observed, endpoints, pairs)
}

/// The steps from `observed` to `wanted` where all peers but those with `keys` are known to be as wanted.
pub fn plan_peers<'k>(
    wanted: &DeviceSpec<'_>,
    observed: &DeviceState,
    endpoints: &Endpoints<'_>,
    keys: impl Iterator<Item = &'k PublicKey>,
) -> Plan {
    let pairs = keys.filter_map(|key| Pair::of(wanted.peer(key), observed.peers().get_key_value(key)));
    assemble(wanted, observed, endpoints, pairs)
}

fn assemble<'w, 'o>(
    wanted: &DeviceSpec<'w>,
    observed: &DeviceState,
    endpoints: &Endpoints<'_>,
    pairs: impl Iterator<Item = Pair<'w, 'o>>,
) -> Plan {
    let mut steps = device_steps(wanted, observed);
    let mut changes = peer_changes(wanted, pairs, endpoints).into_iter();
    loop {
        let step: Vec<PeerChange> = changes.by_ref().take(PEERS_PER_STEP).collect();
        if step.is_empty() {
            return Plan { steps };
        }
        steps.push(Step::Peers(step));
    }
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

fn peer_changes<'w, 'o>(
    wanted: &DeviceSpec<'w>,
    pairs: impl Iterator<Item = Pair<'w, 'o>>,
    endpoints: &Endpoints<'_>,
) -> Vec<PeerChange> {
    let (mut changes, mut unowned, mut removals) = (Vec::with_capacity(pairs.size_hint().0), Vec::new(), Vec::new());
    for pair in pairs {
        match pair {
            Pair::Wanted(peer) => new_peer(peer, &wanted.allowed_ips(peer), endpoints, &mut changes),
            Pair::Both(peer, state) => {
                let allowed_ips = wanted.allowed_ips(peer);
                changed_peer((peer, &allowed_ips), state, endpoints.to_set(peer, state), &mut changes);
                unowned.extend(
                    lost_prefixes(&allowed_ips, state).into_iter().filter(|prefix| wanted.owner(prefix).is_none()),
                );
            }
            Pair::Observed(key) => removals.push(PeerChange::Remove(*key)),
        }
    }
    if !unowned.is_empty() {
        let key = drop_key(wanted);
        split(PeerUpdate::new(key), &unowned, &mut changes);
        changes.push(PeerChange::Remove(key));
    }
    changes.append(&mut removals);
    changes
}

/// The key of the peer that takes prefixes away with it. Its private half is unknown to everybody; a crash between its two
/// changes leaves a peer that the next plan removes like any other that is not wanted.
fn drop_key(wanted: &DeviceSpec<'_>) -> PublicKey {
    let mut bytes = wanted.private_key.public().as_bytes().map(|byte| !byte);
    while wanted.peer(&PublicKey::from_bytes(bytes)).is_some() {
        bytes[0] = bytes[0].wrapping_add(1);
    }
    PublicKey::from_bytes(bytes)
}

fn new_peer(peer: &Peer, allowed_ips: &[IpNet], endpoints: &Endpoints<'_>, changes: &mut Vec<PeerChange>) {
    let endpoint = peer.endpoint.as_ref().and_then(|endpoint| endpoints.addresses(endpoint).first().copied());
    let update = PeerUpdate {
        preshared_key: wanted_preshared_key(peer),
        endpoint,
        persistent_keepalive: peer.persistent_keepalive,
        ..PeerUpdate::new(peer.public_key)
    };
    split(update, allowed_ips, changes);
}

fn changed_peer(
    (peer, allowed_ips): (&Peer, &[IpNet]),
    state: &PeerState,
    endpoint: Option<SocketAddr>,
    changes: &mut Vec<PeerChange>,
) {
    let keepalive = peer.persistent_keepalive.unwrap_or(0);
    let gained: Vec<IpNet> = allowed_ips.iter().filter(|prefix| !state.allowed_ips.contains(prefix)).copied().collect();
    let same_preshared_key = peer.preshared_key == state.preshared_key;
    if same_preshared_key && keepalive == state.persistent_keepalive && endpoint.is_none() && gained.is_empty() {
        return;
    }
    let update = PeerUpdate {
        preshared_key: if same_preshared_key { kept_preshared_key(peer) } else { wanted_preshared_key(peer) },
        endpoint,
        persistent_keepalive: Some(keepalive).filter(|seconds| *seconds != state.persistent_keepalive),
        ..PeerUpdate::new(peer.public_key)
    };
    split(update, &gained, changes);
}

fn wanted_preshared_key(peer: &Peer) -> PresharedKeyChange {
    peer.preshared_key.clone().map_or(PresharedKeyChange::Unset, PresharedKeyChange::Set)
}

/// Setting a peer that vanished since it was observed makes it anew. It must never come back without its preshared
/// key, so every update carries that key; writing the same one again changes nothing.
fn kept_preshared_key(peer: &Peer) -> PresharedKeyChange {
    peer.preshared_key.clone().map_or(PresharedKeyChange::Keep, PresharedKeyChange::Set)
}

/// `update` with `prefixes` gained, in as many updates as the messages need.
fn split(update: PeerUpdate, prefixes: &[IpNet], changes: &mut Vec<PeerChange>) {
    let (first, rest) = prefixes.split_at(prefixes.len().min(PREFIXES_PER_UPDATE));
    let follow_ups = rest.chunks(PREFIXES_PER_UPDATE).map(|part| {
        let update = PeerUpdate { endpoint: None, persistent_keepalive: None, ..update.clone() };
        PeerChange::Set(PeerUpdate { gained: part.to_vec(), ..update })
    });
    let follow_ups: Vec<PeerChange> = follow_ups.collect();
    changes.push(PeerChange::Set(PeerUpdate { gained: first.to_vec(), ..update }));
    changes.extend(follow_ups);
}

fn lost_prefixes(allowed_ips: &[IpNet], state: &PeerState) -> Vec<IpNet> {
    // Nothing lost, told without a search: all that is wanted is there, and there is not more.
    if state.allowed_ips.len() == allowed_ips.len()
        && allowed_ips.iter().all(|prefix| state.allowed_ips.contains(prefix))
    {
        return Vec::new();
    }
    let wanted: HashSet<&IpNet> = allowed_ips.iter().collect();
    state.allowed_ips.iter().filter(|prefix| !wanted.contains(prefix)).copied().collect()
}

enum Pair<'w, 'o> {
    Wanted(&'w Peer),
    Both(&'w Peer, &'o PeerState),
    Observed(&'o PublicKey),
}

impl<'w, 'o> Pair<'w, 'o> {
    fn of(wanted: Option<&'w Peer>, observed: Option<(&'o PublicKey, &'o PeerState)>) -> Option<Self> {
        match (wanted, observed) {
            (None, None) => None,
            (Some(peer), None) => Some(Self::Wanted(peer)),
            (Some(peer), Some((_, state))) => Some(Self::Both(peer, state)),
            (None, Some((key, _))) => Some(Self::Observed(key)),
        }
    }
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
