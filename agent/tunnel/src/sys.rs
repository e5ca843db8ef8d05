//! The system calls that have no safe wrapper: TUN ioctls, and datagrams with segmentation offload in both directions.
//!
//! The only module here with `unsafe`. It knows file descriptors and buffers, nothing of WireGuard.
#![expect(unsafe_code, reason = "ioctls and recvmsg into uninitialised memory have no safe wrapper")]

use std::io::{self, IoSlice};
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};

use bytes::BytesMut;
use socket2::{SockAddr, SockAddrStorage};

/// The most one UDP datagram, or one run of segments, may hold.
pub(crate) const MAX_DATAGRAM: usize = 65_507;

/// `TUN_F_*` of linux/if_tun.h: what the reader of a TUN is ready to finish itself.
pub(crate) const TUN_F_CSUM: u32 = 0x01;
pub(crate) const TUN_F_TSO4: u32 = 0x02;
pub(crate) const TUN_F_TSO6: u32 = 0x04;
pub(crate) const TUN_F_USO4: u32 = 0x20;
pub(crate) const TUN_F_USO6: u32 = 0x40;

/// Room for the one control message we send or ask for, aligned as `cmsghdr` is.
const CONTROL_WORDS: usize = 8;

/// `struct ifreq` of a name no longer than the kernel takes.
fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: `ifreq` is plain integers and a union of such; all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

/// Makes `tun` (an open `/dev/net/tun`) the interface `name`, with virtio headers and without packet information.
pub(crate) fn tun_attach(tun: &impl AsFd, name: &str) -> io::Result<()> {
    let mut request = request(name)?;
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).expect("the flags are below 2^15");
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which outlives the call.
    let result = unsafe { libc::ioctl(tun.as_fd().as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    check(result).map(drop)
}

/// Tells the kernel which offloads the reader of `tun` takes on.
pub(crate) fn tun_set_offload(tun: &impl AsFd, flags: u32) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value and touches no memory of ours.
    let result = unsafe { libc::ioctl(tun.as_fd().as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) };
    check(result).map(drop)
}

/// The MTU of the interface `name`, asked through any socket in its namespace.
pub(crate) fn mtu(socket: &impl AsFd, name: &str) -> io::Result<usize> {
    let mut request = request(name)?;
    // SAFETY: SIOCGIFMTU reads the name and writes the MTU of one `ifreq`, which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) };
    check(result)?;
    // SAFETY: the call above succeeded, so the kernel wrote this member of the union.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    usize::try_from(mtu).map_err(|source| io::Error::new(io::ErrorKind::InvalidData, source))
}

/// Sets an integer option of a socket.
pub(crate) fn set_option(
    socket: &impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of_val(&value)).expect("four");
    // SAFETY: the value outlives the call and its length is true.
    let result =
        unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, (&raw const value).cast(), length) };
    check(result).map(drop)
}

/// A datagram, or a run of datagrams of one sender the kernel put together.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) from: SocketAddr,
    /// Length of each datagram but the last; 0 when there is only one.
    pub(crate) segment_len: usize,
}

/// Appends what is waiting on `socket` to the empty `buffer`, which must have room for the longest one. Never waits.
pub(crate) fn receive(socket: &impl AsFd, buffer: &mut BytesMut) -> io::Result<Received> {
    debug_assert!(buffer.is_empty(), "what is received is appended");
    let mut storage = SockAddrStorage::zeroed();
    let mut control = [0usize; CONTROL_WORDS];
    let spare = buffer.spare_capacity_mut();
    let mut piece = libc::iovec { iov_base: spare.as_mut_ptr().cast(), iov_len: spare.len() };
    // SAFETY: `msghdr` is integers and pointers; zero and null are valid for all of them.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_name = (&raw mut storage).cast();
    message.msg_namelen = storage.size_of();
    message.msg_iov = &raw mut piece;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: every pointer in `message` is to a local that outlives the call, with its true length; the kernel only
    // writes into the spare capacity.
    let result = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    let length = usize::try_from(result).map_err(|_negative| io::Error::last_os_error())?;
    if message.msg_flags & libc::MSG_TRUNC != 0 {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    // SAFETY: the kernel wrote `length` bytes into the spare capacity of a buffer that was empty.
    unsafe { buffer.set_len(length) };
    // SAFETY: the kernel filled in the storage and its length.
    let from = unsafe { SockAddr::new(storage, message.msg_namelen) };
    let from = from.as_socket().ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))?;
    Ok(Received { from, segment_len: segment_len(&message) })
}

/// What UDP_GRO says about the run in `message`.
fn segment_len(message: &libc::msghdr) -> usize {
    // SAFETY: `message` was filled in by a successful recvmsg and its control buffer is still borrowed by the caller.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: the macros return null or a header that lies within the control buffer.
        let current = unsafe { &*header };
        if current.cmsg_level == libc::SOL_UDP && current.cmsg_type == libc::UDP_GRO {
            // SAFETY: UDP_GRO carries one int, as long as the message says.
            let value = unsafe { libc::CMSG_DATA(header).cast::<libc::c_int>().read_unaligned() };
            return usize::try_from(value).unwrap_or(0);
        }
        // SAFETY: `header` came from this message, see above.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    0
}

/// Sends the pieces as one run of datagrams of `segment_len` bytes (the last may be shorter), or as one datagram if that is 0.
pub(crate) fn send(
    socket: &impl AsFd,
    to: &SockAddr,
    pieces: &[IoSlice<'_>],
    segment_len: u16,
    flags: libc::c_int,
) -> io::Result<()> {
    let mut control = [0usize; CONTROL_WORDS];
    // SAFETY: `msghdr` is integers and pointers; zero and null are valid for all of them.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_name = to.as_ptr().cast_mut().cast();
    message.msg_namelen = to.len();
    // `IoSlice` has the layout of `iovec`; sendmsg does not write through it.
    message.msg_iov = pieces.as_ptr().cast_mut().cast();
    message.msg_iovlen = pieces.len();
    if segment_len != 0 {
        let length = u32::try_from(size_of::<u16>()).expect("two");
        message.msg_control = control.as_mut_ptr().cast();
        // SAFETY: pure arithmetic on a length.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(length) } as usize;
        // SAFETY: the control buffer is aligned and larger than CMSG_SPACE of two bytes, so the first header exists
        // and its data lie within.
        unsafe {
            let header = &mut *libc::CMSG_FIRSTHDR(&raw const message);
            header.cmsg_level = libc::SOL_UDP;
            header.cmsg_type = libc::UDP_SEGMENT;
            header.cmsg_len = libc::CMSG_LEN(length) as usize;
            libc::CMSG_DATA(header).cast::<u16>().write_unaligned(segment_len);
        }
    }
    // SAFETY: every pointer in `message` is to data that outlives the call, with its true length.
    let result = unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const message, flags) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
