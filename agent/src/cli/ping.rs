//! `weft ping`: ICMP echo to a peer, bound to the tunnel link, so that an answer proves the tunnel and nothing else.

mod echo;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::time::{Instant, MissedTickBehavior, timeout_at};
use weft_proto::weft::v1 as proto;

use super::client::Client;
use super::{Exit, Failure, PingArgs, output};
use crate::api::view;
use echo::{Framing, Message};

/// A peer further away than this does not answer in a usable time.
const WAIT: Duration = Duration::from_secs(1);

/// Why nothing could be asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum PingError {
    #[error("no peer is called {0:?}, has that public key, or has that address in its allowed IPs; see `weft peers`")]
    NoSuchPeer(String),
    #[error("peer {0} has no single address among its allowed IPs; name one: weft ping ADDRESS")]
    NoAddress(String),
    #[error("the tunnel link does not exist; see `weft status`")]
    NoLink,
    #[error(
        "ICMP sockets are not allowed for this user: use sudo, or add its group to net.ipv4.ping_group_range \
         (`sysctl -w net.ipv4.ping_group_range='0 2147483647'`)"
    )]
    NotAllowed(#[source] io::Error),
    #[error("failed to {action} {address} over {link}")]
    Socket {
        action: &'static str,
        address: IpAddr,
        link: String,
        #[source]
        source: io::Error,
    },
}

impl PingError {
    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::NoSuchPeer(_) | Self::NoAddress(_) => Exit::Usage,
            Self::NoLink | Self::NotAllowed(_) | Self::Socket { .. } => Exit::Failed,
        }
    }
}

/// What came back; the JSON of `weft ping --json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Report {
    schema: u32,
    peer: String,
    address: IpAddr,
    sent: u16,
    received: u16,
    /// Milliseconds of each answer, in the order of the requests; `null` for one that did not come.
    round_trip_ms: Vec<Option<f64>>,
}

pub(super) async fn run(client: &Client, args: &PingArgs) -> Result<Exit, Failure> {
    let list: proto::PeerList = client.get("/status/peers").await?;
    let status: proto::Status = client.get("/status").await?;
    let link = status.wireguard.and_then(|wireguard| wireguard.link).ok_or(PingError::NoLink)?;
    let (peer, address) = find(&args.peer, &list.peers)?;
    let pinger = Pinger::open(address, &link)?;
    let mut round_trip_ms = Vec::new();
    let mut ticks = tokio::time::interval(WAIT);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for sequence in 1..=args.count {
        ticks.tick().await;
        let answer = pinger.ask(sequence).await?;
        if !args.json {
            output::print(&line(&peer.name, address, sequence, answer))?;
        }
        round_trip_ms.push(answer.map(|time| time.as_secs_f64() * 1000.0));
    }
    let received = u16::try_from(round_trip_ms.iter().flatten().count()).unwrap_or(u16::MAX);
    let report =
        Report { schema: view::SCHEMA, peer: peer.name.clone(), address, sent: args.count, received, round_trip_ms };
    if args.json {
        output::print_json(&report)?;
    } else {
        output::print(&summary(&report, peer))?;
    }
    Ok(if report.received > 0 { Exit::Ok } else { Exit::Failed })
}

/// The peer that `wanted` means, and its address.
fn find<'a>(wanted: &str, peers: &'a [proto::Peer]) -> Result<(&'a proto::Peer, IpAddr), PingError> {
    if let Ok(address) = wanted.parse::<IpAddr>() {
        // The longest prefix owns the address, as in cryptokey routing.
        let owner =
            peers.iter().filter_map(|peer| Some((longest_match(peer, address)?, peer))).max_by_key(|(len, _)| *len);
        return owner.map(|(_, peer)| (peer, address)).ok_or_else(|| PingError::NoSuchPeer(wanted.to_owned()));
    }
    let peer = peers
        .iter()
        .find(|peer| peer.name == wanted || peer.id == wanted)
        .ok_or_else(|| PingError::NoSuchPeer(wanted.to_owned()))?;
    let host = prefixes(peer).find(|prefix| prefix.prefix_len() == prefix.max_prefix_len());
    host.map(|prefix| (peer, prefix.addr())).ok_or_else(|| PingError::NoAddress(peer.name.clone()))
}

fn longest_match(peer: &proto::Peer, address: IpAddr) -> Option<u8> {
    prefixes(peer).filter(|prefix| prefix.contains(&address)).map(|prefix| prefix.prefix_len()).max()
}

fn prefixes(peer: &proto::Peer) -> impl Iterator<Item = IpNet> {
    peer.allowed_ips.iter().filter_map(|text| text.parse().ok())
}

fn line(name: &str, address: IpAddr, sequence: u16, answer: Option<Duration>) -> String {
    match answer {
        Some(time) => format!("answer {sequence} from {name} ({address}) in {:.2} ms\n", time.as_secs_f64() * 1000.0),
        None => format!("no answer {sequence} from {name} ({address}) within {} s\n", WAIT.as_secs()),
    }
}

fn summary(report: &Report, peer: &proto::Peer) -> String {
    let mut times: Vec<f64> = report.round_trip_ms.iter().flatten().copied().collect();
    times.sort_by(f64::total_cmp);
    match (times.first(), times.get(times.len() / 2), times.last()) {
        (Some(least), Some(median), Some(most)) => format!(
            "{} of {} answered; least {least:.2} ms, median {median:.2} ms, most {most:.2} ms\n",
            report.received, report.sent
        ),
        _ => format!("none of {} answered; before, the peer was {}: {}\n", report.sent, peer.state, peer.reason),
    }
}

/// An ICMP socket on the link.
struct Pinger {
    /// Not UDP, but the same calls: the type of a socket is what it was made with.
    socket: UdpSocket,
    address: IpAddr,
    link: String,
    framing: Framing,
    /// Tells our answers from those to other programs: raw sockets see all of them.
    nonce: u64,
}

impl Pinger {
    fn open(address: IpAddr, link: &str) -> Result<Self, PingError> {
        let failed = |action| move |source| PingError::Socket { action, address, link: link.to_owned(), source };
        let (socket, framing) = icmp_socket(address).map_err(PingError::NotAllowed)?;
        socket.bind_device(Some(link.as_bytes())).map_err(failed("reach"))?;
        socket.set_nonblocking(true).map_err(failed("reach"))?;
        let socket = UdpSocket::from_std(socket.into()).map_err(failed("reach"))?;
        let nonce = std::hash::BuildHasher::hash_one(&std::collections::hash_map::RandomState::new(), link);
        Ok(Self { socket, address, link: link.to_owned(), framing, nonce })
    }

    /// Sends one request and waits for its answer.
    async fn ask(&self, sequence: u16) -> Result<Option<Duration>, PingError> {
        let failed =
            |action| move |source| PingError::Socket { action, address: self.address, link: self.link.clone(), source };
        let message = Message { sequence, nonce: self.nonce };
        let sent_at = Instant::now();
        let request = message.request(self.address.is_ipv6());
        self.socket.send_to(&request, SocketAddr::new(self.address, 0)).await.map_err(failed("send to"))?;
        match timeout_at(sent_at + WAIT, self.answer(message)).await {
            Ok(answer) => answer.map(|()| Some(sent_at.elapsed())).map_err(failed("hear from")),
            Err(_elapsed) => Ok(None),
        }
    }

    async fn answer(&self, message: Message) -> io::Result<()> {
        let mut buffer = [0; 2048];
        loop {
            let length = self.socket.recv(&mut buffer).await?;
            if Message::answer(&buffer[..length], self.framing) == Some(message) {
                return Ok(());
            }
        }
    }
}

/// A datagram socket where the kernel allows it to this user (`net.ipv4.ping_group_range`), else a raw one.
fn icmp_socket(address: IpAddr) -> io::Result<(Socket, Framing)> {
    let (domain, protocol, raw) = match address {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, Framing::Ipv4Header),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, Framing::Icmpv6),
    };
    let bare = if address.is_ipv6() { Framing::Icmpv6 } else { Framing::Icmpv4 };
    match Socket::new(domain, Type::DGRAM, Some(protocol)) {
        Ok(socket) => Ok((socket, bare)),
        Err(_not_allowed) => Socket::new(domain, Type::RAW, Some(protocol)).map(|socket| (socket, raw)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str, allowed: &[&str]) -> proto::Peer {
        proto::Peer {
            name: name.to_owned(),
            id: format!("key of {name}"),
            allowed_ips: allowed.iter().map(|text| (*text).to_owned()).collect(),
            state: "never".to_owned(),
            reason: "no handshake yet".to_owned(),
            ..Default::default()
        }
    }

    fn found(wanted: &str) -> Result<(String, String), String> {
        let peers = [peer("beta", &["10.0.0.0/8", "10.80.0.2/32"]), peer("gamma", &["10.1.0.0/16"])];
        let found = find(wanted, &peers);
        found.map(|(peer, address)| (peer.name.clone(), address.to_string())).map_err(|error| error.to_string())
    }

    #[test]
    fn a_peer_is_found_by_name_key_or_address() {
        let beta = |address: &str| Ok(("beta".to_owned(), address.to_owned()));
        assert_eq!(found("beta"), beta("10.80.0.2"));
        assert_eq!(found("key of beta"), beta("10.80.0.2"));
        assert_eq!(found("10.9.9.9"), beta("10.9.9.9"));
        assert_eq!(found("10.1.2.3"), Ok(("gamma".to_owned(), "10.1.2.3".to_owned())));
    }

    #[test]
    fn what_cannot_be_pinged_says_what_to_do() {
        assert!(found("gamma").expect_err("only a network").contains("weft ping ADDRESS"));
        assert!(found("delta").expect_err("nobody").contains("weft peers"));
        assert!(found("192.0.2.1").expect_err("nobody's").contains("weft peers"));
    }

    #[test]
    fn silence_is_explained_by_the_state_of_the_peer() {
        let report = Report {
            schema: 1,
            peer: "beta".to_owned(),
            address: IpAddr::from([10, 80, 0, 2]),
            sent: 2,
            received: 0,
            round_trip_ms: vec![None, None],
        };
        let text = summary(&report, &peer("beta", &[]));
        assert_eq!(text, "none of 2 answered; before, the peer was never: no handshake yet\n");
        let answered = Report { received: 1, round_trip_ms: vec![None, Some(1.5)], ..report };
        assert_eq!(
            summary(&answered, &peer("beta", &[])),
            "1 of 2 answered; least 1.50 ms, median 1.50 ms, most 1.50 ms\n"
        );
    }
}
