//! The outbound thread: from the TUN to the peers.
//!
//! A super-packet is cut and encrypted under one lock of its peer, and the messages leave in runs of equal length, one
//! system call each. Reading goes on while there is something to read, so that small packets share runs too.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

use bytes::BytesMut;
use gotatun::packet::{Packet, WgKind};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::peer::{self, Peer, PeerState};
use crate::segment::Segmenter;
use crate::shared::{Identity, Shared};
use crate::socket::{MAX_SEGMENTS, UdpSocket};
use crate::sys::MAX_DATAGRAM;
use crate::vnet::VnetHeader;

/// The largest frame: an IP packet's length is 16 bits.
const MAX_FRAME: usize = 65_536;

/// Runs until the device stops; an error is the end of the device.
pub(crate) fn run(shared: &Shared) -> io::Result<()> {
    let mut frame = vec![0; MAX_FRAME];
    let mut sender = Sender::new(shared);
    loop {
        match shared.tun.read(&mut frame) {
            Ok((header, length)) => {
                if shared.is_stopping() {
                    return Ok(());
                }
                if let Some(header) = VnetHeader::decode(&header) {
                    sender.take(header, &frame[..length]);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                sender.flush();
                if wait(shared)? {
                    return Ok(());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Waits for a frame; true when the device is to stop.
fn wait(shared: &Shared) -> io::Result<bool> {
    let mut events =
        [PollFd::new(shared.tun.as_fd(), PollFlags::POLLIN), PollFd::new(shared.stop.as_fd(), PollFlags::POLLIN)];
    match poll(&mut events, PollTimeout::NONE) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(events[1].any() == Some(true)),
        Err(error) => Err(error.into()),
    }
}

/// Encrypts and sends.
struct Sender<'a> {
    shared: &'a Shared,
    segmenter: Segmenter,
    packets: Vec<BytesMut>,
    run: Run,
}

impl<'a> Sender<'a> {
    fn new(shared: &'a Shared) -> Self {
        Self { shared, segmenter: Segmenter::default(), packets: Vec::new(), run: Run::default() }
    }

    /// Encrypts a frame for its peer. A frame that belongs to nobody is dropped, as kernel WireGuard drops it.
    fn take(&mut self, header: VnetHeader, frame: &[u8]) {
        let mut packets = std::mem::take(&mut self.packets);
        let split = self.segmenter.split(header, frame, self.shared.mtu(), &mut packets);
        if let Ok(ip) = split {
            let registry = self.shared.registry();
            if let (Some(identity), Some(peer)) = (&registry.identity, registry.routes.find(ip.destination)) {
                self.encrypt(peer, identity, &mut packets);
            }
        }
        packets.clear();
        self.packets = packets;
    }

    fn encrypt(&mut self, peer: &Arc<Peer>, identity: &Identity, packets: &mut Vec<BytesMut>) {
        let mut state = peer.lock();
        let Some(endpoint) = state.endpoint else { return };
        let mut sent = 0;
        let tunn = state.wake(peer, identity, self.shared);
        let mut packets = packets.drain(..);
        let mut unsent = None;
        for packet in packets.by_ref() {
            match tunn.encapsulate_with_session(Packet::from_bytes(packet)) {
                Ok(message) => {
                    sent += self.run.push(self.shared, endpoint, message.into());
                }
                Err(packet) => {
                    unsent = Some(packet);
                    break;
                }
            }
        }
        state.tx_bytes += sent;
        if let Some(packet) = unsent {
            let rest = std::iter::once(packet).chain(packets.map(Packet::from_bytes));
            queue(self.shared, peer, &mut state, endpoint, rest);
        }
    }

    fn flush(&mut self) {
        self.run.flush(self.shared);
    }
}

/// Keeps packets until there is a session, and asks for one.
fn queue(
    shared: &Shared,
    peer: &Arc<Peer>,
    state: &mut PeerState,
    endpoint: SocketAddr,
    packets: impl Iterator<Item = Packet>,
) {
    for packet in packets {
        // A copy, since the packet holds on to the allocation of its whole frame.
        let packet = Packet::copy_from(&packet[..]);
        let Some(tunn) = state.tunn() else { return };
        if let Some(message) = tunn.handle_outgoing_packet(packet, None) {
            send_one(shared, peer, state, endpoint, message);
        }
    }
}

/// Counts and sends a single message.
pub(crate) fn send_one(
    shared: &Shared,
    peer: &Arc<Peer>,
    state: &mut PeerState,
    endpoint: SocketAddr,
    message: WgKind,
) {
    state.note_sent(peer, &message, shared);
    if let Err(error) = shared.socket().send(endpoint, &peer::message_bytes(message)) {
        tracing::debug!(%endpoint, %error, "message not sent");
    }
}

/// Messages to one endpoint that leave in one system call.
#[derive(Default)]
struct Run {
    messages: Vec<Packet>,
    endpoint: Option<SocketAddr>,
    segment_len: usize,
    total_len: usize,
    /// A shorter message ends a run.
    closed: bool,
}

impl Run {
    /// Adds a message, sending what is there if it does not fit, and returns its length.
    fn push(&mut self, shared: &Shared, endpoint: SocketAddr, message: Packet) -> u64 {
        let length = message.len();
        let fits = self.endpoint == Some(endpoint)
            && !self.closed
            && length <= self.segment_len
            && self.messages.len() < MAX_SEGMENTS
            && self.total_len + length <= MAX_DATAGRAM;
        if !fits {
            self.flush(shared);
            self.endpoint = Some(endpoint);
            self.segment_len = length;
        }
        self.closed = length < self.segment_len;
        self.total_len += length;
        self.messages.push(message);
        u64::try_from(length).unwrap_or(0)
    }

    fn flush(&mut self, shared: &Shared) {
        if let Some(endpoint) = self.endpoint
            && !self.messages.is_empty()
        {
            self.send(&shared.socket(), endpoint);
        }
        self.messages.clear();
        self.total_len = 0;
        self.closed = false;
        self.endpoint = None;
    }

    fn send(&self, socket: &UdpSocket, endpoint: SocketAddr) {
        let mut pieces = [IoSlice::new(&[]); MAX_SEGMENTS];
        for (piece, message) in pieces.iter_mut().zip(&self.messages) {
            *piece = IoSlice::new(message);
        }
        socket.send_run(endpoint, &pieces[..self.messages.len()], self.segment_len);
    }
}
