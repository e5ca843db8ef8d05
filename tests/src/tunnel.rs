//! The embedded WireGuard device against a real kernel: TUNs in namespaces of their own, driven by `wg` as the agent and
//! any tool would drive it.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test that calls them")]

mod control;
mod interop;
mod traffic;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use integration_tests::gate;
use integration_tests::key::KeyPair;
use integration_tests::netns::NetNs;
use integration_tests::scenario::Scenario;
use integration_tests::wait::eventually;
use weft_tunnel::{Device, Options};

/// For what takes a moment on an idle machine; the machine may be busy.
const SOON: Duration = Duration::from_secs(20);
/// Every device listens here; each is in a namespace of its own.
const PORT: u16 = 51820;

fn may_run() -> bool {
    gate::root_and(&["ip", "nsenter", "ping", "wg"])
}

/// A link name that nobody else on this host has, since control sockets are not per namespace.
fn link_name() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("t{}x{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// A host with an embedded device: 10.99.0.N and fd99::N in the tunnel.
struct Node<'a> {
    host: &'a NetNs,
    number: usize,
    link: String,
    keys: KeyPair,
    device: Device,
}

impl<'a> Node<'a> {
    /// A device with a key, up, without peers.
    fn new(scenario: &'a Scenario, number: usize) -> Self {
        let host = scenario.host(number);
        let link = link_name();
        let options = Options { listen_port: PORT, ..Options::new(&link) };
        let device = host.enter(|| Device::create(options)).unwrap().unwrap();
        let node = Self { host, number, link, keys: KeyPair::generate().unwrap(), device };
        node.set_private_key(&node.keys.private);
        bring_up(host, &node.link, number);
        node
    }

    fn set_private_key(&self, key: &str) {
        set_with_file(self.host, &self.link, "private-key", key, &[]);
    }

    /// `wg set LINK peer KEY …`
    fn peer(&self, key: &str, words: &[&str]) {
        self.host.run(&[&["wg", "set", &self.link, "peer", key], words].concat()).unwrap();
    }

    /// Adds `other` with its tunnel addresses and endpoint.
    fn meet(&self, other: &Node<'_>) {
        let endpoint = format!("{}:{PORT}", Scenario::address(other.number));
        self.peer(&other.keys.public, &["allowed-ips", &other.allowed_ips(), "endpoint", &endpoint]);
    }

    fn allowed_ips(&self) -> String {
        format!("{},{}", tunnel_v4(self.number), tunnel_v6(self.number))
    }

    /// A column of `wg show LINK WHAT` for the peer `key`.
    fn show(&self, what: &str, key: &str) -> Vec<String> {
        let text = self.host.run(&["wg", "show", &self.link, what]).unwrap();
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        line.split_whitespace().skip(1).map(str::to_owned).collect()
    }

    /// Received and sent bytes of a peer.
    fn transfer(&self, key: &str) -> (u64, u64) {
        let columns = self.show("transfer", key);
        (columns[0].parse().unwrap(), columns[1].parse().unwrap())
    }

    fn handshake(&self, key: &str) -> u64 {
        self.show("latest-handshakes", key)[0].parse().unwrap()
    }
}

fn tunnel_v4(number: usize) -> IpAddr {
    format!("10.99.0.{}", number + 1).parse().unwrap()
}

fn tunnel_v6(number: usize) -> IpAddr {
    format!("fd99::{}", number + 1).parse().unwrap()
}

/// Gives the link its tunnel addresses and sets it up.
fn bring_up(host: &NetNs, link: &str, number: usize) {
    host.run(&["ip", "address", "add", &format!("{}/24", tunnel_v4(number)), "dev", link]).unwrap();
    host.run(&["ip", "address", "add", &format!("{}/64", tunnel_v6(number)), "dev", link, "nodad"]).unwrap();
    host.run(&["ip", "link", "set", link, "mtu", "1420", "up"]).unwrap();
}

/// `wg set LINK … WHAT FILE`, where the file is standard input.
fn set_with_file(host: &NetNs, link: &str, what: &str, content: &str, words: &[&str]) {
    let mut command = host.command("wg");
    command.args(["set", link]).args(words).args([what, "/dev/stdin"]).stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(content.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

/// Two devices that know each other.
fn pair(scenario: &Scenario) -> (Node<'_>, Node<'_>) {
    let (left, right) = (Node::new(scenario, 0), Node::new(scenario, 1));
    left.meet(&right);
    right.meet(&left);
    (left, right)
}

fn reaches(host: &NetNs, address: IpAddr) {
    eventually(SOON, &format!("{address} answers"), || {
        host.run(&["ping", "-c", "1", "-W", "1", &address.to_string()]).is_ok()
    })
    .unwrap();
}

/// Sends `length` bytes over TCP from one host to the other and compares every one of them.
fn transfer(from: &NetNs, to: &NetNs, address: IpAddr, length: usize) {
    let listener = to.enter(|| TcpListener::bind(SocketAddr::new(address, 0))).unwrap().unwrap();
    let target = listener.local_addr().unwrap();
    let connect = || TcpStream::connect_timeout(&target, SOON);
    let mut sender = from.enter(connect).unwrap().unwrap();
    let (mut receiver, _) = listener.accept().unwrap();
    receiver.set_read_timeout(Some(SOON)).unwrap();
    let sent = noise(length);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            sender.write_all(&sent).unwrap();
            sender.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut received = Vec::with_capacity(length);
        receiver.read_to_end(&mut received).unwrap();
        assert!(received == sent, "{} of {length} bytes, or not the same ones", received.len());
    });
}

/// Bytes without a short period (xorshift), so that a swapped packet shows.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
