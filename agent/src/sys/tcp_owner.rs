//! The owner of a TCP socket of this network namespace, by its exact addresses (`sock_diag(7)`, `inet_diag_req_v2`).
//!
//! In: both addresses as the socket's own side has them. Out: uid, inode and cgroup of an established socket.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr as NetlinkAddress};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
/// `INET_DIAG_CGROUP_ID` of `linux/inet_diag.h`; Linux 5.9.
const CGROUP_ID: u16 = 21;
const TCP_ESTABLISHED: u8 = 1;

const HEADER_BYTES: usize = 16;
/// `inet_diag_req_v2` with its `inet_diag_sockid`.
const REQUEST_BYTES: usize = 56;
/// `inet_diag_msg`, and where in it uid and inode stand.
const ANSWER_BYTES: usize = 72;
const UID_AT: usize = 64;
const INODE_AT: usize = 68;

/// Who owns a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    /// The number in `/proc/PID/fd`: `socket:[INODE]`.
    pub inode: u32,
    /// Id of the cgroup2 group it was made in.
    pub cgroup: Option<u64>,
}

/// The owner of the established socket with address `own` that is connected to `remote`; `None` if there is none here.
///
/// # Errors
/// The kernel has no `sock_diag` for TCP, or refuses.
pub fn of(own: SocketAddr, remote: SocketAddr) -> io::Result<Option<Owner>> {
    let socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.connect(&NetlinkAddress::new(0, 0))?;
    let (own, remote) = (canonical(own), canonical(remote));
    match (ask(&socket, own, remote)?, own.ip(), remote.ip()) {
        // An IPv6 socket may carry IPv4.
        (None, IpAddr::V4(from), IpAddr::V4(to)) => ask(&socket, mapped(from, own.port()), mapped(to, remote.port())),
        (found, _, _) => Ok(found),
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn mapped(address: Ipv4Addr, port: u16) -> SocketAddr {
    SocketAddr::from((address.to_ipv6_mapped(), port))
}

fn ask(socket: &Socket, own: SocketAddr, remote: SocketAddr) -> io::Result<Option<Owner>> {
    socket.send(&request(own, remote), 0)?;
    let (answer, _kernel) = socket.recv_from_full()?;
    parse(&answer)
}

fn request(own: SocketAddr, remote: SocketAddr) -> [u8; HEADER_BYTES + REQUEST_BYTES] {
    let mut message = [0; HEADER_BYTES + REQUEST_BYTES];
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    message[..4].copy_from_slice(&length.to_ne_bytes());
    message[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    let body = &mut message[HEADER_BYTES..];
    let family = if own.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    body[0] = u8::try_from(family).unwrap_or_default();
    body[1] = u8::try_from(libc::IPPROTO_TCP).unwrap_or_default();
    // Every state: the answer tells it.
    body[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
    body[8..10].copy_from_slice(&own.port().to_be_bytes());
    body[10..12].copy_from_slice(&remote.port().to_be_bytes());
    put(&mut body[12..28], own.ip());
    put(&mut body[28..44], remote.ip());
    // No cookie.
    body[48..56].fill(0xff);
    message
}

fn put(field: &mut [u8], address: IpAddr) {
    match address {
        IpAddr::V4(v4) => field[..4].copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => field.copy_from_slice(&v6.octets()),
    }
}

fn parse(answer: &[u8]) -> io::Result<Option<Owner>> {
    let short = || io::Error::from(io::ErrorKind::InvalidData);
    let half = |at: usize| answer.get(at..at + 2).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let word = |at: usize| answer.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
    match half(4) {
        Some(SOCK_DIAG_BY_FAMILY) => {}
        Some(NLMSG_ERROR) => {
            let code = word(HEADER_BYTES).ok_or_else(short)?.cast_signed();
            return if code == -libc::ENOENT { Ok(None) } else { Err(io::Error::from_raw_os_error(-code)) };
        }
        Some(_) | None => return Err(short()),
    }
    let state = *answer.get(HEADER_BYTES + 1).ok_or_else(short)?;
    let uid = word(HEADER_BYTES + UID_AT).ok_or_else(short)?;
    let inode = word(HEADER_BYTES + INODE_AT).ok_or_else(short)?;
    // A listener found in place of the connection, or a socket that nobody has open any more (inode 0), is no caller.
    if state != TCP_ESTABLISHED || inode == 0 {
        return Ok(None);
    }
    Ok(Some(Owner { uid, inode, cgroup: cgroup(answer.get(HEADER_BYTES + ANSWER_BYTES..).unwrap_or_default()) }))
}

/// The cgroup among the attributes.
fn cgroup(mut attributes: &[u8]) -> Option<u64> {
    while let Some(([low, high, kind_low, kind_high], rest)) = attributes.split_first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([*low, *high]));
        let payload = rest.get(..length.checked_sub(4)?)?;
        if u16::from_ne_bytes([*kind_low, *kind_high]) == CGROUP_ID {
            return Some(u64::from_ne_bytes(payload.try_into().ok()?));
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd as _;

    use super::*;

    #[test]
    fn the_owner_of_the_clients_end_is_found_by_its_addresses() {
        for listen in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(listen) else { continue };
            let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
            let (own, remote) = (client.local_addr().expect("bound"), client.peer_addr().expect("connected"));
            let owner = of(own, remote).expect("answered").expect("found");
            assert_eq!(owner.uid, nix::unistd::geteuid().as_raw());
            let link = std::fs::read_link(format!("/proc/self/fd/{}", client.as_raw_fd())).expect("open");
            assert_eq!(link.to_str(), Some(format!("socket:[{}]", owner.inode).as_str()));
        }
    }

    #[test]
    fn a_listener_and_a_closed_socket_are_no_callers() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("bound");
        let client = TcpStream::connect(address).expect("connected");
        let own = client.local_addr().expect("bound");
        assert_eq!(of(address, SocketAddr::from(([127, 0, 0, 1], 1))).expect("answered"), None);
        drop(client);
        assert_eq!(of(own, address).expect("answered"), None);
    }

    #[test]
    fn half_an_answer_is_an_error() {
        let mut answer = [0; HEADER_BYTES + ANSWER_BYTES];
        answer[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        answer[HEADER_BYTES + 1] = TCP_ESTABLISHED;
        answer[HEADER_BYTES + INODE_AT] = 1;
        assert!(parse(&answer).expect("whole").is_some());
        for length in 0..HEADER_BYTES + INODE_AT + 4 {
            assert!(parse(&answer[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn attributes_that_lie_about_their_length_end_the_search() {
        assert_eq!(cgroup(&[2, 0, 21, 0]), None);
        assert_eq!(cgroup(&[255, 0, 21, 0, 1]), None);
        assert_eq!(cgroup(&[12, 0, 21, 0, 7, 0, 0, 0, 0, 0, 0, 0]), Some(7_u64.to_le()));
    }
}
