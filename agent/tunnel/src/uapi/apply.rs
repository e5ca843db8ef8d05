//! Carries out a change with the meaning it has in the kernel: peers that stay keep session and counters.
//!
//! What can fail (a port in use, a mark without the right to set it) is done first; the rest cannot fail.

use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use gotatun::packet::Packet;
use gotatun::x25519::StaticSecret;
use ipnet::IpNet;

use crate::outbound::send_one;
use crate::peer::Peer;
use crate::shared::{Identity, Registry, Shared, raise};
use crate::socket::UdpSocket;
use crate::uapi::request::{AllowedIp, Assigned, Change, Existing, PeerChange};

/// Applies `change`; on an error nothing has changed.
pub(crate) fn apply(shared: &Shared, change: Change) -> io::Result<()> {
    let mut registry = shared.registry_mut();
    change_socket(shared, &mut registry, change.listen_port, change.fwmark)?;
    if change.replace_peers {
        registry.remove_all();
    }
    if let Some(key) = change.private_key {
        set_private_key(shared, &mut registry, key);
    }
    let mut has_removed = change.replace_peers;
    for peer in change.peers {
        has_removed |= peer.existing == Existing::Remove;
        change_peer(shared, &mut registry, peer);
    }
    shared.note_configured();
    if has_removed {
        // The timer thread lets go of them.
        raise(&shared.timers.wake);
    }
    Ok(())
}

fn change_socket(
    shared: &Shared,
    registry: &mut Registry,
    listen_port: Option<u16>,
    fwmark: Option<u32>,
) -> io::Result<()> {
    let socket = shared.socket();
    let mark = fwmark.unwrap_or(registry.fwmark);
    let moves = listen_port.is_some_and(|port| port != socket.port());
    if let (true, Some(port)) = (moves, listen_port) {
        shared.replace_socket(UdpSocket::bind(port, mark)?);
    } else if mark != registry.fwmark {
        socket.set_fwmark(mark)?;
    }
    registry.fwmark = mark;
    Ok(())
}

fn set_private_key(shared: &Shared, registry: &mut Registry, key: Assigned) {
    let identity = match key {
        Assigned::Key(bytes) => Some(Identity::new(StaticSecret::from(*bytes))),
        Assigned::Nothing => None,
    };
    let public = |identity: &Option<Identity>| identity.as_ref().map(|identity| identity.public);
    if public(&identity) == public(&registry.identity) {
        return;
    }
    registry.identity = identity;
    if let Some(identity) = &registry.identity {
        // Nobody is a peer of itself.
        let own = *identity.public.as_bytes();
        registry.remove(&own);
    }
    let identity = registry.identity.as_ref();
    for entry in registry.peers.values() {
        let mut state = entry.peer.lock();
        state.set_identity(identity);
        if let Some(identity) = identity
            && state.keepalive != 0
            && state.endpoint.is_some()
        {
            state.wake(&entry.peer, identity, shared);
        }
    }
}

fn change_peer(shared: &Shared, registry: &mut Registry, change: PeerChange) {
    let is_self = registry.identity.as_ref().is_some_and(|identity| *identity.public.as_bytes() == change.key);
    if is_self {
        return;
    }
    match change.existing {
        Existing::Remove => {
            registry.remove(&change.key);
            return;
        }
        Existing::UpdateOnly if !registry.peers.contains_key(&change.key) => return,
        Existing::UpdateOnly | Existing::UpdateOrAdd => {}
    }
    let peer = registry.find_or_add(change.key);
    set_allowed_ips(registry, &peer, change.replace_allowed_ips, &change.allowed_ips);
    let mut state = peer.lock();
    match change.preshared_key {
        Some(Assigned::Key(key)) => state.set_preshared_key(Some(key)),
        Some(Assigned::Nothing) => state.set_preshared_key(None),
        None => {}
    }
    if let Some(endpoint) = change.endpoint {
        state.endpoint = Some(endpoint);
    }
    let is_switched_on = state.keepalive == 0 && change.keepalive.is_some_and(|seconds| seconds != 0);
    if let Some(keepalive) = change.keepalive {
        state.set_keepalive(keepalive);
    }
    if let (Some(identity), Some(endpoint)) = (&registry.identity, state.endpoint)
        && state.keepalive != 0
    {
        let tunn = state.wake(&peer, identity, shared);
        // Like the kernel: the first keepalive leaves when they are switched on, and opens a session if there is none.
        let first =
            if is_switched_on { tunn.handle_outgoing_packet(Packet::from_bytes(BytesMut::new()), None) } else { None };
        if let Some(message) = first {
            send_one(shared, &peer, &mut state, endpoint, message);
        }
    }
}

/// New prefixes are set before old ones go, and one that moves changes hands in a single step.
fn set_allowed_ips(registry: &mut Registry, peer: &Arc<Peer>, replace: bool, changes: &[AllowedIp]) {
    let mut dropped: Vec<IpNet> = Vec::new();
    if replace && let Some(entry) = registry.peers.get_mut(&peer.key) {
        dropped.extend(std::mem::take(&mut entry.allowed_ips));
    }
    for change in changes {
        match *change {
            AllowedIp::Add(net) => {
                let previous = registry.routes.insert(net, Arc::clone(peer));
                if let Some(previous) = previous.filter(|previous| previous.key != peer.key)
                    && let Some(entry) = registry.peers.get_mut(&previous.key)
                {
                    entry.allowed_ips.remove(&net);
                }
                if let Some(entry) = registry.peers.get_mut(&peer.key) {
                    entry.allowed_ips.insert(net);
                }
            }
            AllowedIp::Remove(net) => {
                if let Some(entry) = registry.peers.get_mut(&peer.key)
                    && entry.allowed_ips.remove(&net)
                {
                    registry.routes.remove(net);
                }
            }
        }
    }
    for net in dropped {
        let is_kept = registry.peers.get(&peer.key).is_some_and(|entry| entry.allowed_ips.contains(&net));
        if !is_kept {
            registry.routes.remove(net);
        }
    }
}
