//! Where the processes of a cgroup wait for connections and datagrams in this network namespace (`sock_diag(7)`), and whether
//! another process could do so at the same address.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr as NetlinkAddress};
use socket2::{Domain, Type};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const FLAGS: u16 = 0x301;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `INET_DIAG_CGROUP_ID` of `linux/inet_diag.h`; Linux 5.9.
const CGROUP_ID: u16 = 21;
const HEADER_BYTES: usize = 16;
/// `inet_diag_req_v2` with its `inet_diag_sockid`.
const REQUEST_BYTES: usize = 56;
/// `inet_diag_msg`, and where in it the address and the uid stand.
const ANSWER_BYTES: usize = 72;
const PORT_AT: usize = 4;
const ADDRESS_AT: usize = 8;
const UID_AT: usize = 64;
/// `TCP_LISTEN` and `TCP_CLOSE`, which is what an unconnected UDP socket is in, as bits.
const LISTENING: u32 = 1 << 10;
const UNCONNECTED: u32 = 1 << 7;
/// Ports of the kernel's choice where it does not say which.
const EPHEMERAL: RangeInclusive<u16> = 32768..=60999;

/// A socket that waits for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    pub address: SocketAddr,
    /// It was bound with `SO_REUSEPORT`: another process of its user may bind the same.
    pub can_be_shared: bool,
}

/// A socket as the kernel tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Told {
    address: SocketAddr,
    uid: u32,
    cgroup: Option<u64>,
}

/// The listeners of the cgroups with these ids; `None`: this kernel does not tell whose a socket is.
///
/// # Errors
/// The kernel has no `sock_diag`, or refuses.
pub fn of_cgroups(ids: &BTreeSet<u64>) -> io::Result<Option<Vec<Listener>>> {
    let mut listeners = Vec::new();
    for (protocol, states, kind) in
        [(libc::IPPROTO_TCP, LISTENING, Type::STREAM), (libc::IPPROTO_UDP, UNCONNECTED, Type::DGRAM)]
    {
        for family in [libc::AF_INET, libc::AF_INET6] {
            for told in dump(family, protocol, states)? {
                let Some(cgroup) = told.cgroup else { return Ok(None) };
                // Those of UDP that ask out have a port of the kernel's choice, and wait for nobody.
                if ids.contains(&cgroup) {
                    let can_be_shared = can_share(told.address, told.uid, kind);
                    listeners.push(Listener { address: told.address, can_be_shared });
                }
            }
        }
    }
    Ok(Some(listeners))
}

/// The ports that the kernel gives to those who ask for none.
pub fn ephemeral_ports() -> RangeInclusive<u16> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut words = text.split_whitespace().map(str::parse);
    match (words.next(), words.next()) {
        (Some(Ok(first)), Some(Ok(last))) => first..=last,
        _ => EPHEMERAL,
    }
}

/// Whether a socket of `uid` can be bound where another is, which is asked by doing so for a moment: a socket that does not
/// listen takes nothing from one that does. Ownership counts, and is given by `fchown` as it counts for a socket that was made
/// by that user.
fn can_share(address: SocketAddr, uid: u32, kind: Type) -> bool {
    let bind = || -> io::Result<()> {
        let socket = socket2::Socket::new(Domain::for_address(address), kind, None)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_port(true)?;
        std::os::unix::fs::fchown(&socket, Some(uid), None)?;
        socket.bind(&address.into())
    };
    // One UDP socket more would be given datagrams of the other; whether it can be is not worth that.
    kind == Type::STREAM && bind().is_ok()
}

fn dump(family: i32, protocol: i32, states: u32) -> io::Result<Vec<Told>> {
    let mut message = [0; HEADER_BYTES + REQUEST_BYTES];
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    message[..4].copy_from_slice(&length.to_ne_bytes());
    message[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message[6..8].copy_from_slice(&FLAGS.to_ne_bytes());
    message[HEADER_BYTES] = u8::try_from(family).unwrap_or_default();
    message[HEADER_BYTES + 1] = u8::try_from(protocol).unwrap_or_default();
    message[HEADER_BYTES + 4..HEADER_BYTES + 8].copy_from_slice(&states.to_ne_bytes());
    let socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.connect(&NetlinkAddress::new(0, 0))?;
    socket.send(&message, 0)?;
    let mut all = Vec::new();
    loop {
        let (answer, _kernel) = socket.recv_from_full()?;
        if parse(&answer, &mut all)? {
            return Ok(all);
        }
    }
}

/// Reads the messages of one datagram; returns whether the last of the dump is among them.
fn parse(mut answer: &[u8], all: &mut Vec<Told>) -> io::Result<bool> {
    let short = || io::Error::from(io::ErrorKind::InvalidData);
    while !answer.is_empty() {
        let length = usize::try_from(word(answer, 0).ok_or_else(short)?).map_err(|_too_long| short())?;
        let message = answer.get(..length).filter(|_| length >= HEADER_BYTES).ok_or_else(short)?;
        let body = &message[HEADER_BYTES..];
        match half(message, 4) {
            Some(SOCK_DIAG_BY_FAMILY) => all.push(told(body).ok_or_else(short)?),
            Some(NLMSG_DONE) => return Ok(true),
            Some(NLMSG_ERROR) => {
                let code = word(body, 0).ok_or_else(short)?.cast_signed();
                return Err(io::Error::from_raw_os_error(-code));
            }
            Some(_) | None => return Err(short()),
        }
        answer = answer.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

fn told(body: &[u8]) -> Option<Told> {
    let port = half(body, PORT_AT).map(u16::from_be)?;
    let octets: [u8; 16] = body.get(ADDRESS_AT..ADDRESS_AT + 16)?.try_into().ok()?;
    let ip = if i32::from(*body.first()?) == libc::AF_INET {
        let [a, b, c, d, ..] = octets;
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    } else {
        IpAddr::V6(Ipv6Addr::from(octets))
    };
    let (uid, cgroup) = (word(body, UID_AT)?, cgroup(body.get(ANSWER_BYTES..)?));
    Some(Told { address: SocketAddr::new(ip, port), uid, cgroup })
}

/// The cgroup among the attributes.
fn cgroup(mut attributes: &[u8]) -> Option<u64> {
    while let Some(kind) = half(attributes, 2) {
        let length = usize::from(half(attributes, 0)?);
        let payload = attributes.get(4..length)?;
        if kind == CGROUP_ID {
            return Some(u64::from_ne_bytes(payload.try_into().ok()?));
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(address: SocketAddr) -> Option<Told> {
        let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let all = dump(family, libc::IPPROTO_TCP, LISTENING).expect("told");
        all.into_iter().find(|told| told.address == address)
    }

    #[test]
    fn a_listener_is_told_with_its_owner_and_can_be_shared_only_if_it_was_made_so() {
        for ip in ["127.0.0.1:0", "[::1]:0"] {
            let any: SocketAddr = ip.parse().expect("an address");
            for shares in [false, true] {
                let socket = socket2::Socket::new(Domain::for_address(any), Type::STREAM, None).expect("a socket");
                socket.set_reuse_port(shares).expect("an option");
                // A host may have no IPv6.
                let Ok(()) = socket.bind(&any.into()) else { continue };
                let address = socket.local_addr().expect("bound").as_socket().expect("an address");
                assert_eq!(find(address), None, "it does not listen");
                socket.listen(1).expect("listens");
                let told = find(address).expect("told");
                assert_eq!(told.uid, nix::unistd::geteuid().as_raw());
                assert_eq!(can_share(address, told.uid, Type::STREAM), shares, "{address}");
                if let Some(own) = told.cgroup.filter(|_| shares) {
                    let listeners = of_cgroups(&BTreeSet::from([own])).expect("told").expect("with cgroups");
                    assert!(listeners.contains(&Listener { address, can_be_shared: true }), "{listeners:?}");
                    assert_eq!(of_cgroups(&BTreeSet::new()).expect("told"), Some(Vec::new()));
                }
            }
        }
    }

    #[test]
    fn half_an_answer_is_an_error_and_its_end_is_seen() {
        let mut answer = [0; HEADER_BYTES + ANSWER_BYTES];
        answer[..4].copy_from_slice(&u32::try_from(HEADER_BYTES + ANSWER_BYTES).expect("small").to_ne_bytes());
        answer[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        let mut all = Vec::new();
        assert!(!parse(&answer, &mut all).expect("whole") && all.len() == 1);
        for length in 1..answer.len() {
            assert!(parse(&answer[..length], &mut all).is_err(), "{length}");
        }
        let mut end = [0; HEADER_BYTES];
        end[..2].copy_from_slice(&16_u16.to_ne_bytes());
        end[4..6].copy_from_slice(&NLMSG_DONE.to_ne_bytes());
        assert!(parse(&end, &mut all).expect("whole"));
    }
}
