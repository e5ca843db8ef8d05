//! The whole agent: what an operator sees of it from the first start to `weft down`.

mod bad_input;
mod command_line;
mod foreign_peer;
mod monitoring;
mod packaging;
mod restart;

use std::time::Duration;

use anyhow::{Context as _, Result};
use integration_tests::agent::{PeerTable, Settings, TestAgent};
use integration_tests::gate;
use integration_tests::key::KeyPair;
use integration_tests::netns::NetNs;
use integration_tests::scenario::Scenario;
use integration_tests::wait::{eventually, eventually_some};
use nix::sys::signal::Signal;
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(20);
const TOOLS: [&str; 5] = ["wg", "ip", "nsenter", "ping", "nft"];

#[test]
fn a_started_agent_is_ready_and_says_what_it_does() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let scenario = Scenario::new(1).expect("a host");
    let settings = Settings::new("alpha").expect("keys").addresses(&["10.80.0.1/24", "fd80::1/64"]);
    let public_key = settings.keys().public.clone();
    let agent = TestAgent::start(scenario.host(0), settings).expect("it starts");
    let status = agent.cli_json(&["status"]).expect("status answers");
    assert_eq!(status["node"], "alpha", "{status}");
    assert_eq!(status["wireguard"]["link"], agent.link(), "{status}");
    assert_eq!(status["wireguard"]["public_key"], public_key.as_str(), "{status}");
    assert_eq!(status["problems"], serde_json::json!([]), "{status}");
    let link = scenario.host(0).run(&["ip", "address", "show", "dev", agent.link()]).expect("the link exists");
    assert!(link.contains("10.80.0.1/24") && link.contains("fd80::1/64"), "{link}");
}

#[test]
fn doctor_reports_every_facility_with_and_without_an_agent() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let settings = Settings::new("alpha").expect("keys").addresses(&["10.80.0.1/24"]);
    let mut agent = TestAgent::prepare(&host, settings).expect("prepared");
    for running in [false, true] {
        if running {
            agent.launch().expect("it starts");
            agent.wait_until_ready().expect("it is ready");
        }
        let output = agent.cli(&["doctor", "--json"]).expect("doctor runs");
        // 4: this kernel lacks something and says so.
        assert!(matches!(output.status.code(), Some(0 | 4)), "{output:?}");
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let text = report.to_string().to_lowercase();
        for facility in ["wireguard", "tun", "bpf", "nft"] {
            assert!(text.contains(facility), "{facility}: {report}");
        }
    }
}

#[test]
fn a_reload_adds_and_removes_peers_without_touching_the_others() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let scenario = Scenario::new(2).expect("hosts");
    let mut mesh = Mesh::start(&scenario).expect("a mesh");
    ping(mesh.agents[0].host(), "10.80.0.2").expect("node-1 answers");
    let before = peer(&mesh.agents[0], "node-1").expect("it is a peer");
    let original = mesh.agents[0].settings().clone();
    let key = KeyPair::generate().expect("a key").public;
    let grown = original.clone().peer(peer_table("gamma", &key, 8));
    mesh.reload(0, grown).expect("written");
    eventually(DEADLINE, "gamma is a peer", || peer(&mesh.agents[0], "gamma").is_ok()).expect("added");
    let after = peer(&mesh.agents[0], "node-1").expect("it is still a peer");
    assert!(number(&after, "wireguard_rx_bytes") >= number(&before, "wireguard_rx_bytes"), "{after}");
    assert!(after["handshake_age_seconds"].is_u64(), "the session survived: {after}");
    mesh.reload(0, original).expect("written");
    eventually(DEADLINE, "gamma is gone", || peer(&mesh.agents[0], "gamma").is_err()).expect("removed");
    ping(mesh.agents[0].host(), "10.80.0.2").expect("it still answers");
}

#[test]
fn traffic_is_counted_for_the_peer_it_belongs_to() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let scenario = Scenario::new(3).expect("hosts");
    let mesh = Mesh::start(&scenario).expect("a mesh");
    ping(mesh.agents[0].host(), "10.80.0.2").expect("node-1 answers");
    // 10 echo requests of 1000 bytes: 1028 bytes of IPv4 each.
    let before = tx_icmp(&mesh.agents[0], "node-1");
    let other = tx_icmp(&mesh.agents[0], "node-2");
    let words = ["ping", "-c", "10", "-i", "0.05", "-W", "5", "-s", "1000", "10.80.0.2"];
    mesh.agents[0].host().run(&words).expect("no packet is lost");
    assert_eq!(tx_icmp(&mesh.agents[0], "node-1") - before, 10 * 1028);
    assert_eq!(tx_icmp(&mesh.agents[0], "node-2"), other);
}

#[test]
fn names_of_peers_resolve_on_every_node() {
    if !gate::root_and(&["dig", "wg", "ip", "nsenter"]) {
        return;
    }
    let scenario = Scenario::new(2).expect("hosts");
    let mesh = Mesh::start(&scenario).expect("a mesh");
    let host = mesh.agents[0].host();
    let dig = |words: &[&str]| host.run(&[&["dig", "+short", "+time=2", "@127.0.3.3"][..], words].concat());
    assert_eq!(dig(&["node-1.weft.internal", "A"]).expect("answered").trim(), "10.80.0.2");
    assert_eq!(dig(&["-x", "10.80.0.2"]).expect("answered").trim(), "node-1.weft.internal.");
}

#[test]
fn down_takes_away_exactly_what_is_ours() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let scenario = Scenario::new(1).expect("hosts");
    let mut mesh = Mesh::start(&scenario).expect("an agent");
    let host = mesh.agents[0].host();
    host.run(&["nft", "add", "table", "inet", "foreign"]).expect("a foreign table");
    host.run(&["ip", "route", "add", "203.0.113.0/24", "via", "192.0.2.200"]).expect("a foreign route");
    let pins = format!("/sys/fs/bpf/weft/{}", mesh.agents[0].instance());
    mesh.agents[0].stop().expect("it stops");
    mesh.agents[0].cli_text(&["down"]).expect("down succeeds");
    assert!(host.run(&["ip", "link", "show", mesh.agents[0].link()]).is_err(), "the link is gone");
    assert!(!std::path::Path::new(&pins).exists(), "{pins} is gone");
    assert_eq!(host.run(&["nft", "list", "tables"]).expect("nft").trim(), "table inet foreign");
    let routes = host.run(&["ip", "route"]).expect("routes");
    assert!(routes.contains("203.0.113.0/24") && !routes.contains("10.80."), "{routes}");
    assert!(host.run(&["ip", "link", "show", "eth0"]).is_ok());
}

/// Agents on one underlay, each the peer of all others: node `n` has 10.80.0.(n+1).
struct Mesh<'a> {
    agents: Vec<TestAgent<'a>>,
}

impl<'a> Mesh<'a> {
    /// Starts an agent on every host and waits until all are ready.
    fn start(scenario: &'a Scenario) -> Result<Self> {
        let count = scenario.hosts().len();
        let nodes = (0..count).map(|node| Settings::new(&format!("node-{node}"))).collect::<Result<Vec<_>>>()?;
        let mut agents = Vec::new();
        for (node, host) in scenario.hosts().iter().enumerate() {
            let address = format!("10.80.0.{}/24", node + 1);
            let own = nodes[node].clone().addresses(&[&address]);
            let others = nodes.iter().enumerate().filter(|(other, _)| *other != node);
            let tables =
                others.map(|(other, settings)| peer_table(&format!("node-{other}"), &settings.keys().public, other));
            agents.push(TestAgent::start(host, tables.fold(own, Settings::peer))?);
        }
        Ok(Self { agents })
    }

    /// Gives one agent new settings and tells it to read them.
    fn reload(&mut self, node: usize, settings: Settings) -> Result<()> {
        self.agents[node].reconfigure(settings)?;
        self.agents[node].process().context("the agent runs")?.signal(Signal::SIGHUP)
    }
}

/// The `[[peer]]` for host `number` of the scenario.
fn peer_table(name: &str, public_key: &str, number: usize) -> PeerTable {
    PeerTable {
        name: name.to_owned(),
        public_key: public_key.to_owned(),
        preshared_key_file: None,
        endpoint: Some(format!("{}:51820", Scenario::address(number))),
        allowed_ips: vec![format!("10.80.0.{}/32", number + 1)],
        ..PeerTable::default()
    }
}

/// Waits until `address` answers: the first packet starts a handshake.
fn ping(host: &NetNs, address: &str) -> Result<()> {
    eventually(DEADLINE, &format!("{address} answers"), || host.run(&["ping", "-c", "1", "-W", "1", address]).is_ok())
}

/// What `weft peers --json` says about one peer.
fn peer(agent: &TestAgent<'_>, name: &str) -> Result<Value> {
    let list = agent.cli_json(&["peers"])?;
    let peers = list["peers"].as_array().context("a list of peers")?;
    peers.iter().find(|peer| peer["name"] == name).cloned().with_context(|| format!("no peer {name} in {list}"))
}

fn number(value: &Value, key: &str) -> u64 {
    let found = value[key].as_u64();
    assert!(found.is_some(), "{key} is a number in {value}");
    found.unwrap_or_default()
}

/// ICMP bytes that `agent` sent to a peer, once it counts.
fn tx_icmp(agent: &TestAgent<'_>, name: &str) -> u64 {
    let counted = || peer(agent, name).ok().and_then(|peer| peer["traffic"]["tx"]["icmp_bytes"].as_u64());
    eventually_some(DEADLINE, &format!("{name} is counted"), counted).expect("accounting works here")
}
