//! The owner of a TCP socket of this network namespace, by its exact addresses (`sock_diag(7)`, `inet_diag_req_v2`).

use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr as NetlinkAddr};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const HEADER_BYTES: usize = 16;
/// `inet_diag_req_v2` with its `inet_diag_sockid`.
const REQUEST_BYTES: usize = 56;
/// Where `idiag_uid` stands in `inet_diag_msg`: 4 bytes, the 48 of the socket id, expires, rqueue, wqueue.
const UID_AT: usize = 4 + 48 + 12;
const ENOENT: i32 = 2;
/// `TCP_ESTABLISHED`. In any other state the socket may be a listener, or one that nobody owns any more: the kernel then
/// gives uid 0, which is nobody's.
const ESTABLISHED: u8 = 1;

/// The uid that owns the socket with address `own` connected to `remote`; `None` if there is none here.
///
/// # Errors
/// The kernel has no `sock_diag` for TCP, or refuses.
pub fn owner(own: SocketAddr, remote: SocketAddr) -> io::Result<Option<u32>> {
    let socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.connect(&NetlinkAddr::new(0, 0))?;
    // IPv4 through an IPv6 listener is an IPv4 socket at the other end, or an IPv6 one with mapped addresses.
    let (own, remote) = (canonical(own), canonical(remote));
    let uid = ask(&socket, &request(own, remote))?;
    match (uid, own.ip(), remote.ip()) {
        (None, IpAddr::V4(from), IpAddr::V4(to)) => {
            let mapped = |ip: std::net::Ipv4Addr, port| SocketAddr::from((ip.to_ipv6_mapped(), port));
            ask(&socket, &request(mapped(from, own.port()), mapped(to, remote.port())))
        }
        (found, _, _) => Ok(found),
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn request(own: SocketAddr, remote: SocketAddr) -> [u8; HEADER_BYTES + REQUEST_BYTES] {
    let mut message = [0; HEADER_BYTES + REQUEST_BYTES];
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    message[0..4].copy_from_slice(&length.to_ne_bytes());
    message[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    let body = &mut message[HEADER_BYTES..];
    let is_v6 = own.is_ipv6() || remote.is_ipv6();
    body[0] = u8::try_from(if is_v6 { libc::AF_INET6 } else { libc::AF_INET }).unwrap_or_default();
    body[1] = u8::try_from(libc::IPPROTO_TCP).unwrap_or_default();
    // Any state; the exact addresses decide.
    body[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
    body[8..10].copy_from_slice(&own.port().to_be_bytes());
    body[10..12].copy_from_slice(&remote.port().to_be_bytes());
    put_address(&mut body[12..28], own.ip());
    put_address(&mut body[28..44], remote.ip());
    // No cookie.
    body[48..56].fill(0xff);
    message
}

fn put_address(field: &mut [u8], address: IpAddr) {
    match address {
        IpAddr::V4(v4) => field[..4].copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => field.copy_from_slice(&v6.octets()),
    }
}

fn ask(socket: &Socket, request: &[u8]) -> io::Result<Option<u32>> {
    socket.send(request, 0)?;
    let (answer, _from) = socket.recv_from_full()?;
    parse(&answer)
}

fn parse(answer: &[u8]) -> io::Result<Option<u32>> {
    let word = |at: usize| -> io::Result<u32> {
        let bytes = answer.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u32::from_ne_bytes).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    };
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    match kind {
        Some(SOCK_DIAG_BY_FAMILY) => {
            let uid = word(HEADER_BYTES + UID_AT)?;
            Ok((answer[HEADER_BYTES + 1] == ESTABLISHED).then_some(uid))
        }
        Some(NLMSG_ERROR) => match word(HEADER_BYTES)?.cast_signed().wrapping_neg() {
            ENOENT => Ok(None),
            errno => Err(io::Error::from_raw_os_error(errno)),
        },
        Some(_) | None => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_owner_of_a_clients_end_is_found_by_its_addresses() {
        for listen in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(listen) else { continue };
            let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
            let (own, remote) = (client.local_addr().expect("bound"), client.peer_addr().expect("connected"));
            assert_eq!(owner(own, remote).expect("answered"), Some(nix::unistd::geteuid().as_raw()), "{listen}");
            let nobody = SocketAddr::new(own.ip(), 1);
            assert_eq!(owner(nobody, remote).expect("answered"), None, "{listen}");
        }
    }

    #[test]
    fn a_listener_or_a_closed_socket_has_no_owner_to_trust() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("bound");
        let client = TcpStream::connect(address).expect("connected");
        let own = client.local_addr().expect("bound");
        // A socket that only listens on the asked address is found by the kernel, and no answer for us.
        assert_eq!(owner(address, SocketAddr::from(([127, 0, 0, 1], 1))).expect("answered"), None);
        drop(client);
        assert_eq!(owner(own, address).expect("answered"), None, "the client closed its end");
    }

    #[test]
    fn half_an_answer_is_an_error() {
        for length in 0..HEADER_BYTES {
            assert!(parse(&[20; 72][..length]).is_err(), "{length}");
        }
    }
}
