//! A peer we did not write: Debian's wireguard-go, set up with `wg` and `ip`.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use integration_tests::agent::{PeerTable, Settings, TestAgent};
use integration_tests::gate;
use integration_tests::key::KeyPair;
use integration_tests::netns::NetNs;
use integration_tests::process::Process;
use integration_tests::scenario::Scenario;
use integration_tests::wait::eventually;
use serde_json::Value;

use super::{DEADLINE, number, peer, peer_table, ping};

const TOOLS: [&str; 6] = ["wireguard-go", "wg", "ip", "nsenter", "ping", "iperf3"];

#[test]
fn bytes_agree_between_wg_show_weft_peers_and_iperf3() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let scenario = Scenario::new(2).expect("hosts");
    let keys = KeyPair::generate().expect("keys");
    let settings = Settings::new("alpha").expect("keys").addresses(&["10.80.0.1/24"]);
    let settings = settings.wireguard("backend = \"userspace\"");
    let own_key = settings.keys().public.clone();
    let agent =
        TestAgent::start(scenario.host(0), settings.peer(peer_table("foreign", &keys.public, 1))).expect("it starts");
    let foreign = Foreign::start(scenario.host(1), &keys, &own_key).expect("wireguard-go starts");
    ping(agent.host(), "10.80.0.2").expect("the foreign peer answers");
    ping(scenario.host(1), "10.80.0.1").expect("we answer the foreign peer");

    let before = peer(&agent, "foreign").expect("it is a peer");
    let payload = foreign.receive_from(&agent).expect("iperf3 runs");
    // Acknowledgements of the last segments may still be under way.
    eventually(DEADLINE, "both sides have counted the same", || counts_agree(&agent, &foreign)).expect("they agree");
    let after = peer(&agent, "foreign").expect("it is a peer");
    let sent = number(&after["traffic"]["tx"], "tcp_bytes") - number(&before["traffic"]["tx"], "tcp_bytes");
    // Each segment of at most 1368 bytes has 52 bytes of IPv4 and TCP headers; a retransmission counts again.
    assert!(sent >= payload, "{sent} bytes counted, iperf3 received {payload}");
    assert!(sent <= payload + payload / 10 + 10_000, "{sent} bytes counted, iperf3 received {payload}");
}

/// Whether the device's figures are those of `wg show` on the other side, both ways. A message under way differs.
fn counts_agree(agent: &TestAgent<'_>, foreign: &Foreign<'_>) -> bool {
    let (Ok(ours), Ok((rx, tx))) = (peer(agent, "foreign"), foreign.transfer()) else { return false };
    let close = |a: u64, b: u64| a.abs_diff(b) <= a.max(b) / 1000 + 500;
    close(number(&ours, "wireguard_tx_bytes"), rx) && close(number(&ours, "wireguard_rx_bytes"), tx)
}

/// wireguard-go on a host, the peer of host 0.
struct Foreign<'a> {
    host: &'a NetNs,
    link: String,
    _process: Process,
}

impl<'a> Foreign<'a> {
    fn start(host: &'a NetNs, keys: &KeyPair, peer_key: &str) -> Result<Self> {
        // Its control socket is shared by all namespaces: the name must be unique on the machine.
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let link = format!("wtf{}x{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let mut command = host.command("wireguard-go");
        command.args(["-f", &link]);
        let mut process = Process::spawn("wireguard-go", command)?;
        process.wait_for("wireguard-go has a link", DEADLINE, || host.run(&["wg", "show", &link]).is_ok())?;
        let key_file = tempfile::NamedTempFile::new()?;
        std::fs::write(key_file.path(), &keys.private)?;
        let key_file = key_file.path().to_str().context("a path in UTF-8")?;
        host.run(&["wg", "set", &link, "listen-port", "51820", "private-key", key_file])?;
        let endpoint = format!("{}:51820", Scenario::address(0));
        host.run(&["wg", "set", &link, "peer", peer_key, "allowed-ips", "10.80.0.1/32", "endpoint", &endpoint])?;
        host.run(&["ip", "address", "add", "10.80.0.2/24", "dev", &link])?;
        host.run(&["ip", "link", "set", &link, "up", "mtu", "1420"])?;
        Ok(Self { host, link, _process: process })
    }

    /// Bytes received and sent, from `wg show`.
    fn transfer(&self) -> Result<(u64, u64)> {
        let text = self.host.run(&["wg", "show", &self.link, "transfer"])?;
        let mut words = text.split_whitespace().skip(1).map(str::parse);
        Ok((words.next().context("received")??, words.next().context("sent")??))
    }

    /// Lets the agent's host send for a moment; returns the bytes that arrived here.
    fn receive_from(&self, agent: &TestAgent<'_>) -> Result<u64> {
        let mut server = self.host.command("iperf3");
        server.args(["--server", "--one-off", "--forceflush", "--bind", "10.80.0.2"]);
        let mut server = Process::spawn("iperf3", server)?;
        server.wait_for_log("Server listening", DEADLINE)?;
        let text = agent.host().run(&["iperf3", "--client", "10.80.0.2", "--bytes", "20M", "--json"])?;
        server.wait_for_exit(Duration::from_secs(10))?;
        let report: Value = serde_json::from_str(&text)?;
        report["end"]["sum_received"]["bytes"].as_u64().context("iperf3 reports the bytes received")
    }
}

#[test]
fn a_peer_behind_a_preshared_key_is_reached() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let scenario = Scenario::new(2).expect("hosts");
    let keys = KeyPair::generate().expect("keys");
    let preshared = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(preshared.path(), integration_tests::key::preshared().expect("a key")).expect("written");
    let settings = Settings::new("alpha").expect("keys").addresses(&["10.80.0.1/24"]);
    let own_key = settings.keys().public.clone();
    let preshared_key_file = Some(preshared.path().to_owned());
    let table = PeerTable { preshared_key_file, endpoint: None, ..peer_table("foreign", &keys.public, 1) };
    let _agent = TestAgent::start(scenario.host(0), settings.peer(table)).expect("it starts");
    let foreign = Foreign::start(scenario.host(1), &keys, &own_key).expect("wireguard-go starts");
    let refused = scenario.host(1).run(&["ping", "-c", "1", "-W", "2", "10.80.0.1"]);
    assert!(refused.is_err(), "without the preshared key there is no handshake");
    let file = preshared.path().to_str().expect("UTF-8");
    scenario.host(1).run(&["wg", "set", &foreign.link, "peer", &own_key, "preshared-key", file]).expect("wg sets it");
    ping(scenario.host(1), "10.80.0.1").expect("with the key we answer");
}
