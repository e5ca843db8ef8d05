//! The UDP socket of the device: dual-stack where the kernel has IPv6, with segmentation offload where it has that.

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::sys::{self, Received};

/// Room for about 60 runs of 64 KiB, so that a burst survives while the other threads have the processor.
const BUFFER_BYTES: usize = 4 << 20;
/// The kernel takes at most 64 segments in one call (128 since 6.9).
pub(crate) const MAX_SEGMENTS: usize = 64;
/// A send that cannot go out for this long is given up, so that stopping never waits on a stuck interface.
const SEND_TIMEOUT: Duration = Duration::from_millis(50);

/// Room for a run over IPv6, which may be a little longer than one over IPv4.
const RECEIVE_ROOM: usize = 65_536;

/// A bound socket.
#[derive(Debug)]
pub(crate) struct UdpSocket {
    socket: Socket,
    port: u16,
    is_v6: bool,
    /// Cleared when an interface turns out not to take segmented sends.
    segments: AtomicBool,
    receives_runs: bool,
}

impl UdpSocket {
    /// Binds all addresses at `port`; 0 lets the kernel choose.
    pub(crate) fn bind(port: u16, fwmark: u32) -> io::Result<Self> {
        let (socket, is_v6) = match open_v6(port) {
            Ok(socket) => (socket, true),
            // Without IPv6 in the kernel, or with it switched off, there is still IPv4.
            Err(source) if lacks_v6(&source) => (open_v4(port)?, false),
            Err(source) => return Err(source),
        };
        if fwmark != 0 {
            socket.set_mark(fwmark)?;
        }
        socket.set_write_timeout(Some(SEND_TIMEOUT))?;
        enlarge_buffers(&socket);
        let segments = nix::sys::socket::getsockopt(&socket, sockopt::UdpGsoSegment).is_ok();
        let receives_runs = setsockopt(&socket, sockopt::UdpGroSegment, &true).is_ok();
        let port = socket.local_addr()?.as_socket().map_or(port, |address| address.port());
        Ok(Self { socket, port, is_v6, segments: AtomicBool::new(segments), receives_runs })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn set_fwmark(&self, fwmark: u32) -> io::Result<()> {
        self.socket.set_mark(fwmark)
    }

    pub(crate) fn sends_runs(&self) -> bool {
        self.segments.load(Ordering::Relaxed)
    }

    pub(crate) fn receives_runs(&self) -> bool {
        self.receives_runs
    }

    /// Receives into the empty `buffer` without waiting, growing it as needed. The sender is never a mapped address.
    pub(crate) fn receive(&self, buffer: &mut BytesMut) -> io::Result<Received> {
        buffer.reserve(RECEIVE_ROOM);
        let mut received = sys::receive(&self.socket, buffer)?;
        received.from.set_ip(received.from.ip().to_canonical());
        Ok(received)
    }

    /// Sends one message, waiting for room for a moment.
    pub(crate) fn send(&self, to: SocketAddr, message: &[u8]) -> io::Result<()> {
        sys::send(&self.socket, &self.address(to), &[IoSlice::new(message)], 0, 0)
    }

    /// Sends messages of `segment_len` bytes, the last of which may be shorter: at most [`MAX_SEGMENTS`], together at
    /// most [`sys::MAX_DATAGRAM`] bytes. Messages that cannot be sent are lost, as on any network.
    pub(crate) fn send_run(&self, to: SocketAddr, messages: &[IoSlice<'_>], segment_len: usize) {
        let to = self.address(to);
        if messages.len() > 1 && self.sends_runs() {
            let length = u16::try_from(segment_len).expect("a message is below 64 KiB");
            match sys::send(&self.socket, &to, messages, length, 0) {
                Ok(()) => return,
                Err(source) => match source.raw_os_error() {
                    // The interface cannot compute checksums, which segmentation needs.
                    Some(libc::EIO) => self.segments.store(false, Ordering::Relaxed),
                    // A message is larger than the path; one by one they may be fragmented.
                    Some(libc::EINVAL | libc::EMSGSIZE) => {}
                    _ => {
                        tracing::trace!(error = %source, "messages not sent");
                        return;
                    }
                },
            }
        }
        for message in messages {
            if let Err(source) = sys::send(&self.socket, &to, std::slice::from_ref(message), 0, 0) {
                tracing::trace!(error = %source, "message not sent");
            }
        }
    }

    fn address(&self, to: SocketAddr) -> SockAddr {
        match (to.ip(), self.is_v6) {
            (IpAddr::V4(ip), true) => SocketAddr::from((ip.to_ipv6_mapped(), to.port())).into(),
            (IpAddr::V4(_) | IpAddr::V6(_), _) => to.into(),
        }
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn open_v6(port: u16) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_only_v6(false)?;
    allow_fragments(&socket);
    let off = libc::IPV6_PMTUDISC_DONT;
    if let Err(source) = sys::set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, off) {
        tracing::debug!(error = %source, "path MTU discovery stays on for IPv6");
    }
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    Ok(socket)
}

fn open_v4(port: u16) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    allow_fragments(&socket);
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
    Ok(socket)
}

/// As kernel WireGuard does: what does not fit the path is fragmented instead of lost.
fn allow_fragments(socket: &Socket) {
    let off = libc::IP_PMTUDISC_DONT;
    if let Err(source) = sys::set_option(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, off) {
        tracing::debug!(error = %source, "path MTU discovery stays on for IPv4");
    }
}

fn lacks_v6(source: &io::Error) -> bool {
    matches!(source.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL | libc::EPROTONOSUPPORT))
}

/// The forced variants pass the limit of the host and need CAP_NET_ADMIN; the plain ones are cut to the limit.
fn enlarge_buffers(socket: &Socket) {
    if setsockopt(socket, sockopt::RcvBufForce, &BUFFER_BYTES).is_err()
        && let Err(source) = socket.set_recv_buffer_size(BUFFER_BYTES)
    {
        tracing::debug!(error = %source, "receive buffer keeps its size");
    }
    if setsockopt(socket, sockopt::SndBufForce, &BUFFER_BYTES).is_err()
        && let Err(source) = socket.set_send_buffer_size(BUFFER_BYTES)
    {
        tracing::debug!(error = %source, "send buffer keeps its size");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two sockets in the namespace of the test, on loopback.
    fn pair() -> (UdpSocket, UdpSocket) {
        (UdpSocket::bind(0, 0).unwrap(), UdpSocket::bind(0, 0).unwrap())
    }

    fn receive_all(socket: &UdpSocket, messages: usize) -> (Vec<Vec<u8>>, SocketAddr) {
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        let mut received = Vec::new();
        loop {
            let mut buffer = BytesMut::new();
            match socket.receive(&mut buffer) {
                Ok(run) => {
                    let length = if run.segment_len == 0 { buffer.len() } else { run.segment_len };
                    received.extend(buffer.chunks(length).map(<[u8]>::to_vec));
                    if received.len() >= messages {
                        return (received, run.from);
                    }
                }
                Err(source) => assert_eq!(source.kind(), io::ErrorKind::WouldBlock),
            }
            assert!(std::time::Instant::now() < deadline, "{} of {messages} messages came", received.len());
            std::thread::yield_now();
        }
    }

    #[test]
    fn run_arrives_as_the_messages_that_were_sent() {
        let (left, right) = pair();
        let messages: Vec<Vec<u8>> = (0..10u8).map(|n| vec![n; if n == 9 { 300 } else { 1000 }]).collect();
        let pieces: Vec<_> = messages.iter().map(|message| IoSlice::new(message)).collect();
        left.send_run(SocketAddr::from(([127, 0, 0, 1], right.port())), &pieces, 1000);
        let (received, from) = receive_all(&right, 10);
        assert_eq!(received, messages);
        assert_eq!(from, SocketAddr::from(([127, 0, 0, 1], left.port())));
    }

    #[test]
    fn run_without_offload_arrives_too() {
        let (left, right) = pair();
        left.segments.store(false, Ordering::Relaxed);
        let pieces = [IoSlice::new(b"one"), IoSlice::new(b"two")];
        left.send_run(SocketAddr::from(([127, 0, 0, 1], right.port())), &pieces, 3);
        assert_eq!(receive_all(&right, 2).0, [b"one".to_vec(), b"two".to_vec()]);
    }

    #[test]
    fn port_of_another_socket_is_an_error() {
        let (left, _right) = pair();
        let error = UdpSocket::bind(left.port(), 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
