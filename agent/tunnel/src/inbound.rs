//! The inbound thread: from the peers to the TUN.
//!
//! A run of messages is decrypted in place, each packet must come from an address its peer owns, and what belongs
//! together goes to the TUN as one frame. An endpoint follows its peer only on messages that proved who sent them.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::BytesMut;
use gotatun::noise::TunnResult;
use gotatun::noise::handshake::parse_handshake_anon;
use gotatun::packet::{Packet, WgKind};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::coalesce::Coalescer;
use crate::outbound::send_one;
use crate::packet::Ip;
use crate::peer::{self, Peer, PeerState};
use crate::shared::{Identity, Registry, Shared, lower};
use crate::socket::UdpSocket;

/// Runs of messages that are decrypted before the TUN gets them: enough for flows that take turns, little enough
/// to stay in the cache.
const BATCH: usize = 4;

/// Runs until the device stops; an error is the end of the device.
pub(crate) fn run(shared: &Shared) -> io::Result<()> {
    let mut receiver = Receiver::new(shared);
    let mut socket = shared.socket();
    loop {
        let may_have_more = receiver.receive(&socket);
        receiver.deliver()?;
        // However many messages come, the device can be stopped and moved to another port.
        if may_have_more && !shared.is_stopping() && shared.is_current(&socket) {
            continue;
        }
        match wait(shared, &socket)? {
            Woken::Messages => {}
            Woken::SocketChanged => socket = shared.socket(),
            Woken::Stop => return Ok(()),
        }
    }
}

enum Woken {
    Messages,
    SocketChanged,
    Stop,
}

fn wait(shared: &Shared, socket: &UdpSocket) -> io::Result<Woken> {
    let mut events = [
        PollFd::new(socket.as_fd(), PollFlags::POLLIN),
        PollFd::new(shared.stop.as_fd(), PollFlags::POLLIN),
        PollFd::new(shared.socket_changed.as_fd(), PollFlags::POLLIN),
    ];
    match poll(&mut events, PollTimeout::NONE) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    if events[1].any() == Some(true) {
        return Ok(Woken::Stop);
    }
    if events[2].any() == Some(true) {
        lower(&shared.socket_changed);
        return Ok(Woken::SocketChanged);
    }
    Ok(Woken::Messages)
}

/// Decrypts and delivers.
struct Receiver<'a> {
    shared: &'a Shared,
    coalescer: Coalescer,
    /// Each keeps its allocation once the packets cut from it have been delivered.
    buffers: [BytesMut; BATCH],
}

/// The message kinds by the first byte.
const HANDSHAKE_INIT: u8 = 1;
const HANDSHAKE_RESPONSE: u8 = 2;
const COOKIE: u8 = 3;
const DATA: u8 = 4;
const DATA_OVERHEAD: usize = 32;

impl<'a> Receiver<'a> {
    fn new(shared: &'a Shared) -> Self {
        let coalescer = Coalescer::new(shared.tun.tcp_offload, shared.tun.udp_offload);
        Self { shared, coalescer, buffers: Default::default() }
    }

    /// Takes what waits on the socket, up to a batch; false when nothing is left there.
    fn receive(&mut self, socket: &UdpSocket) -> bool {
        let mut buffers = std::mem::take(&mut self.buffers);
        let mut may_have_more = true;
        for buffer in &mut buffers {
            match socket.receive(buffer) {
                Ok(received) => {
                    let run = buffer.split();
                    self.take(run, received.segment_len, received.from);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    may_have_more = false;
                    break;
                }
                // Errors of earlier sends (ICMP) are reported here too and say nothing about the next message.
                Err(error) => tracing::trace!(%error, "receive"),
            }
        }
        self.buffers = buffers;
        may_have_more
    }

    /// Handles a run of messages of one sender.
    fn take(&mut self, mut run: BytesMut, segment_len: usize, from: SocketAddr) {
        let segment_len = if segment_len == 0 { run.len().max(1) } else { segment_len };
        let shared = self.shared;
        let registry = shared.registry();
        let Some(identity) = &registry.identity else { return };
        let mut session: Option<(u32, Arc<Peer>)> = None;
        while !run.is_empty() {
            let index = match message_kind(&run[..segment_len.min(run.len())]) {
                Some(DATA) => session_index(&run),
                Some(_) => {
                    let message = run.split_to(segment_len.min(run.len()));
                    self.handshake(&registry, identity, message, from);
                    continue;
                }
                None => {
                    drop(run.split_to(segment_len.min(run.len())));
                    continue;
                }
            };
            if session.as_ref().is_none_or(|(known, _)| *known != index) {
                session = shared.peer_of_session(index).map(|peer| (index, peer));
            }
            match &session {
                Some((_, peer)) => self.data(&registry, peer, &mut run, segment_len, from),
                None => drop(run.split_to(segment_len.min(run.len()))),
            }
        }
    }

    /// Decrypts the messages at the head of `run` that belong to the same session.
    fn data(
        &mut self,
        registry: &Registry,
        peer: &Arc<Peer>,
        run: &mut BytesMut,
        segment_len: usize,
        from: SocketAddr,
    ) {
        let index = session_index(run);
        let mut state = peer.lock();
        let mut source = None;
        loop {
            let message = run.split_to(segment_len.min(run.len()));
            if let Some(packet) = open(self.shared, peer, &mut state, index, message, from) {
                self.accept(registry, peer, &mut source, packet);
            }
            let next = &run[..segment_len.min(run.len())];
            if message_kind(next) != Some(DATA) || session_index(next) != index {
                return;
            }
        }
    }

    /// Passes a decrypted packet on if its source belongs to the peer. `source` is the address that did so last.
    fn accept(&mut self, registry: &Registry, peer: &Arc<Peer>, source: &mut Option<IpAddr>, mut packet: BytesMut) {
        let Some(ip) = Ip::parse(&packet) else { return };
        if *source != Some(ip.source) {
            let owner = registry.routes.find(ip.source);
            if !owner.is_some_and(|owner| Arc::ptr_eq(owner, peer)) {
                tracing::trace!(source = %ip.source, "packet from an address its peer does not own");
                return;
            }
            *source = Some(ip.source);
        }
        packet.truncate(ip.total_len);
        self.coalescer.push(ip, packet);
    }

    fn handshake(&self, registry: &Registry, identity: &Identity, message: BytesMut, from: SocketAddr) {
        let shared = self.shared;
        identity.rate_limiter.try_reset_count();
        let message = match identity.rate_limiter.verify_packet(from, Packet::from_bytes(message)) {
            Ok(message) => message,
            Err(TunnResult::WriteToNetwork(cookie)) => {
                if let Err(error) = shared.socket().send(from, &peer::message_bytes(cookie)) {
                    tracing::debug!(%from, %error, "cookie not sent");
                }
                return;
            }
            Err(_) => return,
        };
        let (peer, length) = match &message {
            WgKind::HandshakeInit(init) => {
                let sender = parse_handshake_anon(&identity.private, &identity.public, init).ok();
                let entry = sender.and_then(|sender| registry.peers.get(&sender.peer_static_public));
                (entry.map(|entry| Arc::clone(&entry.peer)), 148)
            }
            WgKind::HandshakeResp(response) => (shared.peer_of_session(response.receiver_idx.get()), 92),
            WgKind::CookieReply(cookie) => (shared.peer_of_session(cookie.receiver_idx.get()), 0),
            WgKind::Data(_) => return,
        };
        let Some(peer) = peer else { return };
        let mut state = peer.lock();
        let result = state.wake(&peer, identity, shared).handle_incoming_packet(message);
        match result {
            TunnResult::WriteToNetwork(reply) => {
                state.endpoint = Some(from);
                state.rx_bytes += length;
                established(shared, &peer, &mut state, reply, from);
            }
            TunnResult::Done | TunnResult::WriteToTunnel(_) => {}
            TunnResult::Err(error) => tracing::debug!(%from, ?error, "handshake refused"),
        }
    }

    fn deliver(&mut self) -> io::Result<()> {
        let tun = &self.shared.tun;
        let mut result = Ok(());
        self.coalescer.drain(|pieces| {
            if let Err(error) = tun.write(pieces) {
                match error.raw_os_error() {
                    Some(libc::EBADFD) => result = Err(error),
                    // The link is down, out of memory, or the packet makes no sense to it: the packet is lost.
                    _ => tracing::trace!(%error, "packet not delivered"),
                }
            }
        });
        result
    }
}

/// Sends the answer that ends our part of a handshake, then what waited for it.
fn established(shared: &Shared, peer: &Arc<Peer>, state: &mut PeerState, reply: WgKind, from: SocketAddr) {
    match &reply {
        WgKind::HandshakeResp(response) => state.unconfirmed = Some(response.sender_idx.get()),
        WgKind::Data(_) => state.last_handshake = Some(SystemTime::now()),
        WgKind::HandshakeInit(_) | WgKind::CookieReply(_) => {}
    }
    let is_confirmed = matches!(reply, WgKind::Data(_));
    send_one(shared, peer, state, from, reply);
    if is_confirmed {
        flush_queue(shared, peer, state, from);
    }
}

fn flush_queue(shared: &Shared, peer: &Arc<Peer>, state: &mut PeerState, to: SocketAddr) {
    for message in state.take_queued(shared.mtu()) {
        send_one(shared, peer, state, to, message);
    }
}

/// Decrypts one message; `None` for keepalives and for what is not from the peer.
fn open(
    shared: &Shared,
    peer: &Arc<Peer>,
    state: &mut PeerState,
    index: u32,
    message: BytesMut,
    from: SocketAddr,
) -> Option<BytesMut> {
    let length = u64::try_from(message.len()).unwrap_or(0);
    let Ok(WgKind::Data(message)) = Packet::from_bytes(message).try_into_wg() else { return None };
    let TunnResult::WriteToTunnel(mut packet) = state.tunn()?.handle_incoming_packet(WgKind::Data(message)) else {
        return None;
    };
    state.rx_bytes += length;
    if state.endpoint != Some(from) {
        state.endpoint = Some(from);
    }
    if state.unconfirmed == Some(index) {
        state.unconfirmed = None;
        state.last_handshake = Some(SystemTime::now());
        flush_queue(shared, peer, state, from);
    }
    (!packet.is_empty()).then(|| std::mem::take(packet.buf_mut()))
}

/// The kind of a message that has the length of its kind.
fn message_kind(message: &[u8]) -> Option<u8> {
    let header: &[u8; 4] = message.first_chunk()?;
    let kind = header[0];
    let is_right = match kind {
        HANDSHAKE_INIT => message.len() == 148,
        HANDSHAKE_RESPONSE => message.len() == 92,
        COOKIE => message.len() == 64,
        DATA => message.len() >= DATA_OVERHEAD,
        _ => false,
    };
    (is_right && header[1..] == [0; 3]).then_some(kind)
}

/// The receiver's index of a data message.
fn session_index(message: &[u8]) -> u32 {
    u32::from_le_bytes([message[4], message[5], message[6], message[7]])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn kind_needs_the_length_of_the_kind(message in proptest::collection::vec(any::<u8>(), 0..200), kind in 0u8..6) {
            let mut message = message;
            if message.len() >= 4 {
                message[..4].copy_from_slice(&[kind, 0, 0, 0]);
            }
            if let Some(kind) = message_kind(&message) {
                prop_assert!(message.len() >= 32);
                prop_assert!(kind != HANDSHAKE_INIT || message.len() == 148);
            }
        }
    }

    #[test]
    fn reserved_bytes_must_be_zero() {
        let mut message = vec![0; 32];
        message[0] = DATA;
        assert_eq!(message_kind(&message), Some(DATA));
        message[2] = 1;
        assert_eq!(message_kind(&message), None);
    }
}
