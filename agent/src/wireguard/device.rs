//! A WireGuard device as data: what one holds, and what an update does to it.
//!
//! Invariant: a prefix belongs to one peer, as in cryptokey routing. Giving it to a peer takes it from the one that
//! had it; setting a peer that is not there makes it. The kernel and the embedded device behave like this (UAPI
//! document, `uapi/wireguard.h`), the fake platform is built on it, and the reconciler uses it to know what the
//! device holds after an update without reading ten thousand peers again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::SystemTime;

use ipnet::IpNet;

use crate::model::key::{PresharedKey, PrivateKey, PublicKey};

/// What a device holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceState {
    pub private_key: Option<PrivateKey>,
    /// 0 until the device is up and the kernel has chosen one.
    pub listen_port: u16,
    /// 0 is none.
    pub fwmark: u32,
    peers: BTreeMap<PublicKey, PeerState>,
    owners: HashMap<IpNet, PublicKey>,
}

/// What a device holds for one peer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PeerState {
    pub preshared_key: Option<PresharedKey>,
    /// Where the peer was last heard from, else where it was told to be.
    pub endpoint: Option<SocketAddr>,
    pub allowed_ips: BTreeSet<IpNet>,
    /// Seconds; 0 is off.
    pub persistent_keepalive: u16,
    pub last_handshake: Option<SystemTime>,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
}

/// One change of a device. Absent parts stay as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Sessions end: every peer must shake hands with the new key.
    PrivateKey(PrivateKey),
    Fwmark(u32),
    ListenPort(u16),
    /// Peers in one update, applied in this order.
    Peers(Vec<PeerChange>),
}

/// One change of one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerChange {
    Set(PeerUpdate),
    Remove(PublicKey),
}

/// What to set on a peer, which is made if it is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerUpdate {
    pub public_key: PublicKey,
    pub preshared_key: PresharedKeyChange,
    pub endpoint: Option<SocketAddr>,
    pub persistent_keepalive: Option<u16>,
    /// Prefixes that the peer gets; each is taken from the peer that has it, without a gap.
    pub gained: Vec<IpNet>,
}

/// What to do with the preshared key of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PresharedKeyChange {
    Keep,
    Set(PresharedKey),
    Unset,
}

impl PeerUpdate {
    /// An update that changes nothing yet.
    pub fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            preshared_key: PresharedKeyChange::Keep,
            endpoint: None,
            persistent_keepalive: None,
            gained: Vec::new(),
        }
    }
}

impl DeviceState {
    /// The peers in the order of their keys.
    pub fn peers(&self) -> &BTreeMap<PublicKey, PeerState> {
        &self.peers
    }

    /// Puts in a peer as it was read from a device. A peer that is read in several parts is merged.
    pub fn insert(&mut self, key: PublicKey, peer: PeerState) {
        for prefix in &peer.allowed_ips {
            self.owners.insert(*prefix, key);
        }
        match self.peers.entry(key) {
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(peer);
            }
            std::collections::btree_map::Entry::Occupied(mut entry) => {
                entry.get_mut().allowed_ips.extend(peer.allowed_ips);
            }
        }
    }

    /// What traffic and handshakes may change on a peer; for tests and for reading figures anew.
    pub fn peer_mut(&mut self, key: &PublicKey) -> Option<&mut PeerState> {
        self.peers.get_mut(key)
    }

    /// Does what a device does on `step`.
    pub fn apply(&mut self, step: &Step) {
        match step {
            Step::PrivateKey(key) => {
                self.private_key = Some(key.clone());
                self.remove(&key.public());
            }
            Step::Fwmark(mark) => self.fwmark = *mark,
            Step::ListenPort(port) => self.listen_port = *port,
            Step::Peers(changes) => {
                for change in changes {
                    match change {
                        PeerChange::Set(update) => self.set(update),
                        PeerChange::Remove(key) => self.remove(key),
                    }
                }
            }
        }
    }

    fn remove(&mut self, key: &PublicKey) {
        let Some(peer) = self.peers.remove(key) else { return };
        for prefix in peer.allowed_ips {
            self.owners.remove(&prefix);
        }
    }

    fn set(&mut self, update: &PeerUpdate) {
        let peer = self.peers.entry(update.public_key).or_default();
        match &update.preshared_key {
            PresharedKeyChange::Keep => {}
            PresharedKeyChange::Set(key) => peer.preshared_key = Some(key.clone()),
            PresharedKeyChange::Unset => peer.preshared_key = None,
        }
        peer.endpoint = update.endpoint.or(peer.endpoint);
        peer.persistent_keepalive = update.persistent_keepalive.unwrap_or(peer.persistent_keepalive);
        for prefix in &update.gained {
            self.give(*prefix, update.public_key);
        }
    }

    fn give(&mut self, prefix: IpNet, to: PublicKey) {
        let from = self.owners.insert(prefix, to);
        if let Some(loser) = from.filter(|from| *from != to).and_then(|from| self.peers.get_mut(&from)) {
            loser.allowed_ips.remove(&prefix);
        }
        if let Some(peer) = self.peers.get_mut(&to) {
            peer.allowed_ips.insert(prefix);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(key: u8, prefixes: &[&str]) -> Step {
        let prefixes = prefixes.iter().map(|text| text.parse().expect("a prefix")).collect();
        let update = PeerUpdate { gained: prefixes, ..PeerUpdate::new(PublicKey::from_bytes([key; 32])) };
        Step::Peers(vec![PeerChange::Set(update)])
    }

    fn prefixes_of(state: &DeviceState, key: u8) -> Vec<String> {
        let peer = &state.peers()[&PublicKey::from_bytes([key; 32])];
        peer.allowed_ips.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_prefix_given_to_a_peer_leaves_the_one_that_had_it() {
        let mut state = DeviceState::default();
        state.apply(&add(1, &["10.0.0.1/32", "10.0.0.2/32"]));
        state.apply(&add(2, &["10.0.0.2/32"]));
        assert_eq!(prefixes_of(&state, 1), ["10.0.0.1/32"]);
        assert_eq!(prefixes_of(&state, 2), ["10.0.0.2/32"]);
    }

    #[test]
    fn removing_the_old_owner_leaves_the_new_owner_its_prefix() {
        let mut state = DeviceState::default();
        state.apply(&add(1, &["10.0.0.2/32"]));
        state.apply(&add(2, &["10.0.0.2/32"]));
        state.apply(&Step::Peers(vec![PeerChange::Remove(PublicKey::from_bytes([1; 32]))]));
        assert_eq!(prefixes_of(&state, 2), ["10.0.0.2/32"]);
    }

    #[test]
    fn a_peer_read_in_two_parts_is_one() {
        let mut state = DeviceState::default();
        for prefix in ["10.0.0.1/32", "10.0.0.2/32"] {
            let allowed_ips = BTreeSet::from([prefix.parse().expect("a prefix")]);
            state.insert(PublicKey::from_bytes([1; 32]), PeerState { allowed_ips, ..PeerState::default() });
        }
        assert_eq!(prefixes_of(&state, 1), ["10.0.0.1/32", "10.0.0.2/32"]);
    }
}
