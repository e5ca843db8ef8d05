//! Whole agents in namespaces form a mesh by tokens: joined, pinged by name, restarted without a leader, left.

mod faults;
mod handshake;
mod losses;
mod relay;
mod votes;

use std::process::Output;
use std::time::Duration;

use integration_tests::agent::{Settings, TestAgent};
use integration_tests::gate;
use integration_tests::scenario::Scenario;
use integration_tests::wait::eventually;

const TOOLS: [&str; 5] = ["wg", "ip", "nsenter", "ping", "dig"];
const DEADLINE: Duration = Duration::from_secs(15);

fn start<'a>(scenario: &'a Scenario, number: usize, name: &str) -> TestAgent<'a> {
    let settings = Settings::new(name).expect("keys");
    TestAgent::start(scenario.host(number), settings).expect("it starts")
}

/// A token of `agent`.
fn token(agent: &TestAgent<'_>) -> String {
    let made = agent.cli_json(&["token", "create"]).expect("a token");
    made["token"].as_str().expect("its text").to_owned()
}

/// Has host `number` join at `address`.
fn join(agent: &TestAgent<'_>, address: &str, token: &str) -> serde_json::Value {
    agent.cli_json(&["join", address, "--token", token]).expect("it joins")
}

fn refused(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn peers(agent: &TestAgent<'_>) -> Vec<String> {
    let list = agent.cli_json(&["peers"]).expect("peers");
    let peers = list["peers"].as_array().expect("a list");
    peers.iter().map(|peer| peer["name"].as_str().expect("a name").to_owned()).collect()
}

fn address(agent: &TestAgent<'_>) -> Vec<String> {
    let status = agent.cli_json(&["status"]).expect("the status");
    let addresses = status["wireguard"]["addresses"].as_array().expect("a list").clone();
    addresses.iter().map(|address| address.as_str().expect("text").to_owned()).collect()
}

/// What the agent's own name server says.
fn lookup(scenario: &Scenario, number: usize, name: &str, kind: &str) -> String {
    let words = ["dig", "+short", "+time=2", "+tries=1", "@127.0.3.3", name, kind];
    scenario.host(number).run(&words).unwrap_or_default().trim().to_owned()
}

/// Pings by name from one host to another, over the tunnel.
fn ping(scenario: &Scenario, from: usize, name: &str, kind: &str) {
    eventually(DEADLINE, &format!("host {from} reaches {name} ({kind})"), || {
        let address = lookup(scenario, from, &format!("{name}.weft.internal"), kind);
        !address.is_empty() && scenario.host(from).run(&["ping", "-c", "1", "-W", "2", &address]).is_ok()
    })
    .expect("an answer");
}

#[test]
fn nodes_join_by_token_and_reach_each_other_by_name() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let scenario = Scenario::new(3).expect("namespaces");
    let alpha = start(&scenario, 0, "alpha");
    eventually(DEADLINE, "alpha has addresses", || address(&alpha).len() == 2).expect("a mesh of one");
    let beta = start(&scenario, 1, "beta");
    let joined = join(&beta, &Scenario::address(0), &token(&alpha));
    assert_eq!(joined["members"], 2, "{joined}");
    let gamma = start(&scenario, 2, "gamma");
    join(&gamma, &format!("{}:8443", Scenario::address(0)), &token(&alpha));
    for (agent, others) in [(&alpha, ["beta", "gamma"]), (&beta, ["alpha", "gamma"]), (&gamma, ["alpha", "beta"])] {
        eventually(DEADLINE, "everybody is a peer", || peers(agent) == others).expect("the mesh spreads");
    }
    for (from, to) in [(0, "beta"), (1, "gamma"), (2, "alpha"), (1, "alpha")] {
        ping(&scenario, from, to, "A");
        ping(&scenario, from, to, "AAAA");
    }
}

#[test]
fn a_token_lets_one_node_in_once() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let scenario = Scenario::new(3).expect("namespaces");
    let alpha = start(&scenario, 0, "alpha");
    let beta = start(&scenario, 1, "beta");
    let gamma = start(&scenario, 2, "gamma");
    let (first, at) = (token(&alpha), Scenario::address(0));
    join(&beta, &at, &first);
    let said = refused(&gamma.cli(&["join", &at, "--token", &first]).expect("it ran"));
    assert!(said.contains("has been used"), "{said}");
    let of_gamma = token(&gamma);
    let said = refused(&gamma.cli(&["join", &at, "--token", &of_gamma]).expect("it ran"));
    assert!(said.contains("founded"), "{said}");
    let said = refused(&beta.cli(&["join", &at, "--token", &token(&alpha)]).expect("it ran"));
    assert!(said.contains("weft leave"), "{said}");
    let said = refused(&alpha.cli(&["join", &Scenario::address(2), "--token", &of_gamma]).expect("it ran"));
    assert!(said.contains("1 other members"), "{said}");
    let wrong = gamma.cli(&["join", &at, "--token", "weft1.AAAA"]).expect("it ran");
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
}

#[test]
fn a_member_that_leaves_is_forgotten_and_one_that_restarts_keeps_its_addresses() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let scenario = Scenario::new(2).expect("namespaces");
    let mut alpha = start(&scenario, 0, "alpha");
    let mut beta = start(&scenario, 1, "beta");
    join(&beta, &Scenario::address(0), &token(&alpha));
    ping(&scenario, 1, "alpha", "A");
    let before = address(&beta);
    alpha.kill9().expect("killed");
    beta.kill9().expect("killed");
    beta.launch().expect("started");
    beta.wait_until_ready().expect("ready without a leader");
    assert_eq!((peers(&beta), address(&beta)), (vec!["alpha".to_owned()], before.clone()), "from the last good state");
    alpha.launch().expect("started");
    alpha.wait_until_ready().expect("ready");
    ping(&scenario, 1, "alpha", "A");
    beta.cli_text(&["leave"]).expect("it leaves");
    eventually(DEADLINE, "alpha forgets beta", || peers(&alpha).is_empty()).expect("gone");
    eventually(DEADLINE, "beta is alone", || peers(&beta).is_empty()).expect("gone");
    assert_eq!(lookup(&scenario, 0, "beta.weft.internal", "A"), "");
    join(&beta, &Scenario::address(0), &token(&alpha));
    ping(&scenario, 0, "beta", "A");
    assert_eq!(address(&beta), before, "the same id and key get the same addresses");
}
