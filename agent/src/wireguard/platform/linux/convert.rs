//! The types of `wireguard-control`, which stay in here, from and to ours.
//!
//! Those types print keys with `Debug`: nothing in here may be logged.

use ipnet::IpNet;
use wireguard_control::{
    AllowedIp, Backend as WireguardBackend, Device, DeviceUpdate, Key, PeerConfigBuilder, PeerInfo,
};

use crate::model::Backend;
use crate::model::key::{PresharedKey, PrivateKey, PublicKey};
use crate::wireguard::device::{DeviceState, PeerChange, PeerState, PeerUpdate, PresharedKeyChange, Step};

pub(super) fn backend(backend: Backend) -> WireguardBackend {
    match backend {
        Backend::Kernel => WireguardBackend::Kernel,
        Backend::Userspace => WireguardBackend::Userspace,
    }
}

/// What was read. A peer that the kernel had to split over two messages comes twice and is merged.
pub(super) fn state(device: Device) -> DeviceState {
    let mut state = DeviceState::default();
    state.private_key = device.private_key.as_ref().and_then(non_zero).map(PrivateKey::from_bytes);
    state.listen_port = device.listen_port.unwrap_or(0);
    state.fwmark = device.fwmark.unwrap_or(0);
    for peer in device.peers {
        state.insert(PublicKey::from_bytes(peer.config.public_key.0), peer_state(peer));
    }
    state
}

/// All zeroes is how the protocol spells "none".
fn non_zero(key: &Key) -> Option<[u8; 32]> {
    Some(key.0).filter(|bytes| bytes != &[0; 32])
}

fn peer_state(peer: PeerInfo) -> PeerState {
    let PeerInfo { config, stats } = peer;
    PeerState {
        preshared_key: config.preshared_key.as_ref().and_then(non_zero).map(PresharedKey::from_bytes),
        endpoint: config.endpoint,
        allowed_ips: config.allowed_ips.iter().filter_map(|ip| IpNet::new(ip.address, ip.cidr).ok()).collect(),
        persistent_keepalive: config.persistent_keepalive_interval.unwrap_or(0),
        last_handshake: stats.last_handshake_time,
        rx_bytes: stats.rx_bytes,
        tx_bytes: stats.tx_bytes,
    }
}

pub(super) fn update(step: &Step) -> DeviceUpdate {
    let update = DeviceUpdate::new();
    match step {
        Step::PrivateKey(key) => update.set_private_key(Key(*key.expose())),
        Step::Fwmark(mark) => update.set_fwmark(*mark),
        Step::ListenPort(port) => update.set_listen_port(*port),
        Step::Peers(changes) => changes.iter().fold(update, |update, change| match change {
            PeerChange::Set(peer) => update.add_peer(builder(peer)),
            PeerChange::Remove(key) => update.remove_peer_by_key(&Key(*key.as_bytes())),
        }),
    }
}

fn builder(update: &PeerUpdate) -> PeerConfigBuilder {
    let mut peer = PeerConfigBuilder::new(&Key(*update.public_key.as_bytes()));
    peer = match &update.preshared_key {
        PresharedKeyChange::Keep => peer,
        PresharedKeyChange::Set(key) => peer.set_preshared_key(Key(*key.expose())),
        PresharedKeyChange::Unset => peer.unset_preshared_key(),
    };
    if let Some(endpoint) = update.endpoint {
        peer = peer.set_endpoint(endpoint);
    }
    if let Some(seconds) = update.persistent_keepalive {
        peer = peer.set_persistent_keepalive_interval(seconds);
    }
    peer.add_allowed_ips(&allowed_ips(&update.gained))
}

fn allowed_ips(prefixes: &[IpNet]) -> Vec<AllowedIp> {
    prefixes.iter().map(|prefix| AllowedIp { address: prefix.network(), cidr: prefix.prefix_len() }).collect()
}
