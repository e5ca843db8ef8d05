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
use integration_tests::wait::{eventually, eventually_some};
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

    let before = udp_sent(&agent);
    let datagrams = foreign.receive_from(&agent).expect("iperf3 runs");
    let agree = eventually(DEADLINE, "both sides count the same", || counts_agree(&agent, &foreign, &datagrams));
    assert!(agree.is_ok(), "{:?} received and sent there, here {:?}", foreign.transfer(), peer(&agent, "foreign"));
    // Each datagram has 28 bytes of IPv4 and UDP headers; iperf3 sends one more to begin with.
    let counted = udp_sent(&agent) - before;
    let expected = datagrams.bytes + 28 * datagrams.count;
    assert!(
        (expected..=expected + 100).contains(&counted),
        "counted {counted}, {expected} from iperf3's {datagrams:?}"
    );
}

/// UDP bytes counted towards the foreign peer, once accounting is attached.
fn udp_sent(agent: &TestAgent<'_>) -> u64 {
    let counted = || peer(agent, "foreign").ok().and_then(|peer| peer["traffic"]["tx"]["udp_bytes"].as_u64());
    eventually_some(DEADLINE, "the peer is counted", counted).expect("accounting works here")
}

/// What iperf3 reports of a UDP test.
#[derive(Debug)]
struct Datagrams {
    bytes: u64,
    count: u64,
    lost: u64,
}

/// Whether the device's figures are those of `wg show` on the other side, both ways, but for what was lost on the way
/// (1072 bytes for a datagram of 1000) and a handshake under way.
fn counts_agree(agent: &TestAgent<'_>, foreign: &Foreign<'_>, datagrams: &Datagrams) -> bool {
    let (Ok(ours), Ok((received, sent))) = (peer(agent, "foreign"), foreign.transfer()) else { return false };
    let tolerance = 500 + datagrams.lost * 1072;
    number(&ours, "wireguard_tx_bytes").abs_diff(received) <= tolerance
        && number(&ours, "wireguard_rx_bytes").abs_diff(sent) <= tolerance
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

    /// Lets the agent's host send datagrams of 1000 bytes for a moment, slowly enough that none should be lost.
    fn receive_from(&self, agent: &TestAgent<'_>) -> Result<Datagrams> {
        let mut server = self.host.command("iperf3");
        server.args(["--server", "--one-off", "--forceflush", "--bind", "10.80.0.2"]);
        let mut server = Process::spawn("iperf3", server)?;
        server.wait_for_log("Server listening", DEADLINE)?;
        let words = "iperf3 --client 10.80.0.2 --udp --bitrate 8M --length 1000 --time 2 --json";
        let text = agent.host().run(&words.split(' ').collect::<Vec<_>>())?;
        server.wait_for_exit(Duration::from_secs(10))?;
        let report: Value = serde_json::from_str(&text)?;
        let sum = &report["end"]["sum"];
        Ok(Datagrams { bytes: number(sum, "bytes"), count: number(sum, "packets"), lost: number(sum, "lost_packets") })
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
