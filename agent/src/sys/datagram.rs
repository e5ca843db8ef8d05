//! UDP in batches: many datagrams received and answered with two system calls (`recvmmsg(2)`, `sendmmsg(2)`).
//!
//! In: an address to bind. Out: [`Socket`], shared by the threads that serve it, and [`Batch`], the buffers of one
//! such thread. A reply leaves from the address its request came to: a socket bound to one address does that by
//! itself, a wildcard socket carries `IP_PKTINFO` there and back. Nothing is allocated after [`Batch::new`].
#![expect(unsafe_code, reason = "recvmmsg, sendmmsg and sendmsg over buffers that we own")]

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd as _, IntoRawFd as _, OwnedFd};
use std::ptr;

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Type};

/// What the kernel may hold for us while we are not running; it grants at most `net.core.rmem_max`.
const RECEIVE_BUFFER_BYTES: usize = 1 << 20;
/// Room for one `IP_PKTINFO` or `IPV6_PKTINFO` message (36 bytes with its header, rounded up).
const CONTROL_SIZE: usize = 64;

/// A bound UDP socket.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    local: SocketAddr,
}

/// Where a datagram came from, and the way back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    pub peer: SocketAddr,
    /// The address it was sent to, where the socket itself does not say.
    local: Option<IpAddr>,
}

impl Socket {
    /// Binds `address`, which need not be on any link yet (`IP_FREEBIND`). `[::]` takes IPv6 only.
    ///
    /// # Errors
    /// Those of socket(2), setsockopt(2) and bind(2).
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = socket2::Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        match address {
            SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
            SocketAddr::V6(_) => {
                socket.set_only_v6(true)?;
                socket.set_freebind_v6(true)?;
            }
        }
        // Less room than asked is no failure: the default serves, bursts only come through less well.
        socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES).ok();
        socket.bind(&SockAddr::from(address))?;
        let local = socket.local_addr()?.as_socket().unwrap_or(address);
        // SAFETY: into_raw_fd gives up the only owner of this descriptor, and it goes to one new owner.
        let fd = unsafe { OwnedFd::from_raw_fd(socket.into_raw_fd()) };
        let socket = Self { fd, local };
        if local.ip().is_unspecified() {
            socket.carry_local_addresses()?;
        }
        Ok(socket)
    }

    /// The bound address, with the port that the kernel chose for port 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Ends every wait in [`Batch::receive`], now and later.
    pub fn shut_down(&self) {
        // SAFETY: the descriptor is open as long as self lives; shutdown takes no pointer. An unconnected socket
        // answers ENOTCONN, and its readers wake nevertheless (inet_shutdown in the kernel).
        unsafe { libc::shutdown(self.fd.as_raw_fd(), libc::SHUT_RDWR) };
    }

    /// Sends one datagram back to `origin` without waiting.
    ///
    /// # Errors
    /// Those of sendmsg(2); a full send buffer is one of them.
    pub fn send(&self, datagram: &[u8], origin: &Origin) -> io::Result<()> {
        let name = SockAddr::from(origin.peer);
        let mut control = Control::new();
        let control_length = origin.local.map_or(0, |local| control.write(local, origin.peer));
        let mut part = libc::iovec { iov_base: datagram.as_ptr().cast_mut().cast(), iov_len: datagram.len() };
        // SAFETY: an all-zero msghdr is a valid value of this plain C struct.
        let mut message: libc::msghdr = unsafe { zeroed() };
        message.msg_name = name.as_ptr().cast_mut().cast();
        message.msg_namelen = name.len();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        if control_length > 0 {
            message.msg_control = control.0.as_mut_ptr().cast();
            message.msg_controllen = control_length;
        }
        // SAFETY: every pointer in the message is to a live local or argument of the stated length, and sendmsg
        // only reads through them.
        let sent = unsafe { libc::sendmsg(self.fd.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn carry_local_addresses(&self) -> io::Result<()> {
        let (level, option) = match self.local {
            SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_PKTINFO),
            SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
        };
        let on: libc::c_int = 1;
        let size = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(4);
        // SAFETY: the option's value is a live c_int of the stated size, which setsockopt only reads.
        let result = unsafe { libc::setsockopt(self.fd.as_raw_fd(), level, option, (&raw const on).cast(), size) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// One ancillary message, aligned as the kernel wants it.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_SIZE]);

impl Control {
    const fn new() -> Self {
        Self([0; CONTROL_SIZE])
    }

    /// Makes this the message that sends from `local`; returns its length.
    fn write(&mut self, local: IpAddr, peer: SocketAddr) -> usize {
        match local {
            IpAddr::V4(v4) => {
                let info = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: libc::in_addr { s_addr: u32::from_ne_bytes(v4.octets()) },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                self.put(libc::IPPROTO_IP, libc::IP_PKTINFO, info)
            }
            IpAddr::V6(v6) => {
                // Only a link-local address needs its link; for the others the routing table decides.
                let index = match peer {
                    SocketAddr::V6(peer) if v6.is_unicast_link_local() => peer.scope_id(),
                    SocketAddr::V6(_) | SocketAddr::V4(_) => 0,
                };
                let address = libc::in6_addr { s6_addr: v6.octets() };
                let info = libc::in6_pktinfo { ipi6_addr: address, ipi6_ifindex: index };
                self.put(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info)
            }
        }
    }

    fn put<T: Copy>(&mut self, level: libc::c_int, kind: libc::c_int, info: T) -> usize {
        let size = libc::c_uint::try_from(size_of::<T>()).unwrap_or(0);
        // SAFETY: CMSG_LEN and CMSG_SPACE only compute. The header and the data lie within the 64 aligned bytes of
        // self: a header is 16, the larger of the two infos is 20.
        unsafe {
            let header = self.0.as_mut_ptr().cast::<libc::cmsghdr>();
            (*header).cmsg_len = libc::CMSG_LEN(size) as _;
            (*header).cmsg_level = level;
            (*header).cmsg_type = kind;
            ptr::write_unaligned(libc::CMSG_DATA(header).cast(), info);
            libc::CMSG_SPACE(size) as usize
        }
    }

    /// The address that a received message names.
    fn read(&self, length: usize) -> Option<IpAddr> {
        if length < size_of::<libc::cmsghdr>() || length > CONTROL_SIZE {
            return None;
        }
        // SAFETY: the buffer holds a whole header, as checked, and is aligned for it; the data is read unaligned
        // and only when the header's own length says that all of it is there.
        unsafe {
            let header = self.0.as_ptr().cast::<libc::cmsghdr>();
            let data = libc::CMSG_DATA(header);
            let data_length = (*header).cmsg_len.saturating_sub(size_of::<libc::cmsghdr>());
            match ((*header).cmsg_level, (*header).cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) if data_length >= size_of::<libc::in_pktinfo>() => {
                    let info: libc::in_pktinfo = ptr::read_unaligned(data.cast());
                    Some(IpAddr::from(info.ipi_spec_dst.s_addr.to_ne_bytes()))
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) if data_length >= size_of::<libc::in6_pktinfo>() => {
                    let info: libc::in6_pktinfo = ptr::read_unaligned(data.cast());
                    Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr)))
                }
                _ => None,
            }
        }
    }
}

/// The buffers of one serving thread.
pub struct Batch {
    requests: Box<[u8]>,
    request_size: usize,
    replies: Box<[u8]>,
    reply_size: usize,
    names: Box<[libc::sockaddr_storage]>,
    controls: Box<[Control]>,
    parts: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
    /// What was received: length, length of the name, length of the control message.
    received: Vec<(usize, libc::socklen_t, usize)>,
    /// Slot and length of each reply that waits to be sent.
    queued: Vec<(usize, usize)>,
}

// SAFETY: the raw pointers in `parts` and `headers` are written just before the system call that reads them, by the
// thread that holds the unique borrow, and never read otherwise.
unsafe impl Send for Batch {}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch").field("slots", &self.names.len()).finish_non_exhaustive()
    }
}

/// One received datagram and the room for its reply.
#[derive(Debug)]
pub struct Slot<'b> {
    pub request: &'b [u8],
    pub reply: &'b mut [u8],
}

impl Batch {
    /// Buffers for `slots` datagrams of at most `request_size` bytes, answered with at most `reply_size`.
    pub fn new(slots: usize, request_size: usize, reply_size: usize) -> Self {
        // SAFETY: all-zero is a valid value of these plain C structs.
        let (name, part, header) = unsafe { (zeroed(), zeroed(), zeroed()) };
        Self {
            requests: vec![0; slots * request_size].into(),
            request_size,
            replies: vec![0; slots * reply_size].into(),
            reply_size,
            names: vec![name; slots].into(),
            controls: vec![Control::new(); slots].into(),
            parts: vec![part; slots].into(),
            headers: vec![header; slots].into(),
            received: Vec::with_capacity(slots),
            queued: Vec::with_capacity(slots),
        }
    }

    /// Waits for at least one datagram and takes what is there; returns how many. A datagram longer than its slot
    /// counts with length 0, as does each slot after [`Socket::shut_down`].
    ///
    /// # Errors
    /// Those of recvmmsg(2).
    pub fn receive(&mut self, socket: &Socket) -> io::Result<usize> {
        let carries_local = socket.local.ip().is_unspecified();
        for index in 0..self.headers.len() {
            let data = &mut self.requests[index * self.request_size..(index + 1) * self.request_size];
            self.parts[index] = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
            let header = &mut self.headers[index].msg_hdr;
            header.msg_name = (&raw mut self.names[index]).cast();
            header.msg_namelen = NAME_SIZE;
            header.msg_iov = &raw mut self.parts[index];
            header.msg_iovlen = 1;
            header.msg_flags = 0;
            if carries_local {
                header.msg_control = self.controls[index].0.as_mut_ptr().cast();
                header.msg_controllen = CONTROL_SIZE;
            }
        }
        self.received.clear();
        self.queued.clear();
        let count = libc::c_uint::try_from(self.headers.len()).unwrap_or(libc::c_uint::MAX);
        // SAFETY: the headers were just filled with pointers into buffers of self, each with its true length; self
        // is borrowed uniquely until the call has returned.
        let result = unsafe {
            libc::recvmmsg(
                socket.fd.as_raw_fd(),
                self.headers.as_mut_ptr(),
                count,
                libc::MSG_WAITFORONE,
                ptr::null_mut(),
            )
        };
        let taken = usize::try_from(result).map_err(|_negative| io::Error::last_os_error())?;
        for header in &self.headers[..taken] {
            let whole = header.msg_hdr.msg_flags & libc::MSG_TRUNC == 0;
            let length = if whole { header.msg_len as usize } else { 0 };
            self.received.push((length, header.msg_hdr.msg_namelen, header.msg_hdr.msg_controllen));
        }
        Ok(taken)
    }

    /// The datagram in slot `index` of those that [`Batch::receive`] took, and the room for its reply.
    pub fn slot(&mut self, index: usize) -> Slot<'_> {
        let (length, _, _) = self.received[index];
        Slot {
            request: &self.requests[index * self.request_size..][..length],
            reply: &mut self.replies[index * self.reply_size..][..self.reply_size],
        }
    }

    /// Where the datagram in slot `index` came from; `None` if the kernel did not say.
    pub fn origin(&self, index: usize) -> Option<Origin> {
        let (_, name_length, control_length) = self.received[index];
        let peer = peer_of(&self.names[index], name_length)?;
        Some(Origin { peer, local: self.controls[index].read(control_length) })
    }

    /// Lets the first `length` bytes of the slot's reply be sent by [`Batch::send`].
    pub fn queue(&mut self, index: usize, length: usize) {
        self.queued.push((index, length.min(self.reply_size)));
    }

    /// Sends what is queued without waiting; returns how many could not be sent, which are dropped as UDP may.
    pub fn send(&mut self, socket: &Socket) -> usize {
        let carries_local = socket.local.ip().is_unspecified();
        for (position, (index, length)) in self.queued.iter().copied().enumerate() {
            let (_, name_length, control_length) = self.received[index];
            let data = &mut self.replies[index * self.reply_size..][..length];
            self.parts[position] = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
            let header = &mut self.headers[position].msg_hdr;
            header.msg_name = (&raw mut self.names[index]).cast();
            header.msg_namelen = name_length;
            header.msg_iov = &raw mut self.parts[position];
            header.msg_iovlen = 1;
            header.msg_flags = 0;
            if carries_local {
                let length = answer_control(&mut self.controls[index], control_length, &self.names[index], name_length);
                header.msg_control =
                    if length == 0 { ptr::null_mut() } else { self.controls[index].0.as_mut_ptr().cast() };
                header.msg_controllen = length;
            }
        }
        let mut sent = 0;
        let mut failed = 0;
        while sent + failed < self.queued.len() {
            let rest = &mut self.headers[sent + failed..self.queued.len()];
            let count = libc::c_uint::try_from(rest.len()).unwrap_or(libc::c_uint::MAX);
            // SAFETY: these headers were just filled with pointers into buffers of self, each with its true length,
            // and self is borrowed uniquely until the call has returned.
            let result = unsafe { libc::sendmmsg(socket.fd.as_raw_fd(), rest.as_mut_ptr(), count, libc::MSG_DONTWAIT) };
            // An error tells of the first message only: leave that one out and go on with the others.
            match usize::try_from(result) {
                Ok(0) | Err(_) => failed += 1,
                Ok(count) => sent += count,
            }
        }
        failed
    }
}

// The size of sockaddr_storage is 128.
const NAME_SIZE: libc::socklen_t = size_of::<libc::sockaddr_storage>() as libc::socklen_t;

fn peer_of(name: &libc::sockaddr_storage, length: libc::socklen_t) -> Option<SocketAddr> {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: both are the C structure sockaddr_storage, of which the kernel wrote `length` bytes and the rest is zero.
    let address = unsafe {
        *storage.view_as::<libc::sockaddr_storage>() = *name;
        SockAddr::new(storage, length)
    };
    address.as_socket()
}

/// Turns the control message of a request into that of its reply; returns its length, 0 for none.
fn answer_control(
    control: &mut Control,
    control_length: usize,
    name: &libc::sockaddr_storage,
    name_length: libc::socklen_t,
) -> usize {
    let peer = peer_of(name, name_length);
    let local = control.read(control_length);
    match (local, peer) {
        (Some(local), Some(peer)) => control.write(local, peer),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use super::*;

    fn client(server: SocketAddr) -> UdpSocket {
        let any: SocketAddr =
            if server.is_ipv4() { ([127, 0, 0, 1], 0).into() } else { (Ipv6Addr::LOCALHOST, 0).into() };
        let client = UdpSocket::bind(any).expect("a port");
        client.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        client.connect(server).expect("connected");
        client
    }

    /// A connected client only takes what comes from the address it sent to.
    fn echo_through(bind: SocketAddr, ask: IpAddr) {
        let socket = Socket::bind(bind).expect("bound");
        let client = client(SocketAddr::new(ask, socket.local_addr().port()));
        for text in [&b"one"[..], b"three", &[9; 100]] {
            client.send(text).expect("sent");
        }
        let mut batch = Batch::new(8, 64, 64);
        let (mut taken, mut long) = (0, 0);
        while taken < 3 {
            let count = batch.receive(&socket).expect("received");
            for index in 0..count {
                let Slot { request, reply } = batch.slot(index);
                let length = request.len();
                reply[..length].copy_from_slice(request);
                if length == 0 { long += 1 } else { batch.queue(index, length) }
            }
            assert_eq!(batch.send(&socket), 0);
            taken += count;
        }
        assert_eq!(long, 1, "the datagram longer than a slot");
        let mut buffer = [0; 64];
        for text in [&b"one"[..], b"three"] {
            let length = client.recv(&mut buffer).expect("answered from the address that was asked");
            assert_eq!(&buffer[..length], text);
        }
    }

    #[test]
    fn a_bound_address_answers() {
        echo_through(([127, 0, 0, 1], 0).into(), [127, 0, 0, 1].into());
        echo_through((Ipv6Addr::LOCALHOST, 0).into(), Ipv6Addr::LOCALHOST.into());
    }

    #[test]
    fn a_wildcard_socket_answers_from_the_address_that_was_asked() {
        echo_through(([0, 0, 0, 0], 0).into(), [127, 0, 7, 7].into());
        echo_through((Ipv6Addr::UNSPECIFIED, 0).into(), Ipv6Addr::LOCALHOST.into());
    }

    #[test]
    fn a_single_reply_leaves_from_the_address_that_was_asked() {
        let socket = Socket::bind(([0, 0, 0, 0], 0).into()).expect("bound");
        let client = client(SocketAddr::new([127, 0, 7, 7].into(), socket.local_addr().port()));
        client.send(b"hello").expect("sent");
        let mut batch = Batch::new(1, 64, 64);
        batch.receive(&socket).expect("received");
        let origin = batch.origin(0).expect("known");
        assert_eq!(origin.peer, client.local_addr().expect("bound"));
        socket.send(b"later", &origin).expect("sent");
        let mut buffer = [0; 64];
        assert_eq!(client.recv(&mut buffer).expect("answered"), 5);
    }

    #[test]
    fn shutting_down_ends_a_wait() {
        let socket = std::sync::Arc::new(Socket::bind(([127, 0, 0, 1], 0).into()).expect("bound"));
        let waiting = std::sync::Arc::clone(&socket);
        let thread = std::thread::spawn(move || {
            let mut batch = Batch::new(4, 64, 64);
            batch.receive(&waiting).map(|count| (0..count).all(|index| batch.slot(index).request.is_empty()))
        });
        socket.shut_down();
        assert!(thread.join().expect("no panic").unwrap_or(true));
    }

    #[test]
    fn an_address_on_no_link_can_be_bound() {
        assert!(Socket::bind("192.0.2.77:0".parse().expect("an address")).is_ok());
        assert!(Socket::bind("[2001:db8::77]:0".parse().expect("an address")).is_ok());
    }
}
