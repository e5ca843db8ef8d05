//! Two nodes with a firewall between them reach each other through a third, and directly again when the firewall is gone.

use std::time::Duration;

use integration_tests::agent::TestAgent;
use integration_tests::gate;
use integration_tests::process::Process;
use integration_tests::scenario::Scenario;
use integration_tests::wait::eventually;
use serde_json::Value;

use super::{TOOLS, join, ping, start, token};

/// Two handshakes fail for each address before a peer is out of reach.
const PATIENCE: Duration = Duration::from_secs(90);

/// Has a host drop what comes from another one by UDP.
fn wall(scenario: &Scenario, number: usize, from: usize) {
    let rules = format!(
        "table inet wall {{ chain input {{ type filter hook input priority 0; ip saddr {} udp dport 51820 drop; \
         ip6 saddr {} udp dport 51820 drop; }}\n}}",
        Scenario::address(from),
        Scenario::address6(from),
    );
    scenario.host(number).run(&["nft", &rules]).expect("a firewall");
}

fn peer(agent: &TestAgent<'_>, name: &str) -> Value {
    let list = agent.cli_json(&["peers"]).expect("peers");
    let peers = list["peers"].as_array().expect("a list");
    peers.iter().find(|peer| peer["name"] == name).cloned().unwrap_or_default()
}

fn relayed(agent: &TestAgent<'_>) -> Value {
    agent.cli_json(&["status"]).expect("the status")["mesh"]["relayed"].clone()
}

#[test]
fn a_pair_with_a_firewall_between_them_goes_through_a_third_and_back() {
    if !gate::root_and(&TOOLS) || !gate::root_and(&["nft"]) {
        return;
    }
    let scenario = Scenario::new(3).expect("namespaces");
    let (alpha, beta, gamma) =
        (start(&scenario, 0, "alpha"), start(&scenario, 1, "beta"), start(&scenario, 2, "gamma"));
    // Alpha hears nothing from gamma, gamma nothing from alpha.
    wall(&scenario, 0, 2);
    wall(&scenario, 2, 0);
    let mut command = beta.host().command(integration_tests::agent::weft_binary().expect("built"));
    command.arg("--config").arg(beta.config_file()).args(["events", "--json"]);
    join(&beta, &Scenario::address(0), &token(&alpha));
    let events = Process::spawn("events", command).expect("it follows");
    join(&gamma, &Scenario::address(0), &token(&alpha));
    for (agent, other) in [(&alpha, "gamma"), (&gamma, "alpha")] {
        eventually(PATIENCE, "the pair is relayed", || peer(agent, other)["relay"] == "beta").expect("a relay");
        let seen = peer(agent, other);
        assert_eq!(seen["state"], "relayed");
        let reason = seen["reason"].as_str().expect("a reason");
        assert!(reason.contains("through beta") && reason.contains("no handshake over UDP with"), "{reason}");
    }
    ping(&scenario, 0, "gamma", "A");
    ping(&scenario, 2, "alpha", "A");
    for agent in [&alpha, &beta, &gamma] {
        eventually(PATIENCE, "everybody knows", || relayed(agent)[0]["via"] == "beta").expect("told");
    }
    let said = || events.log();
    eventually(PATIENCE, "the event is told", || said().contains("\"relayed\"") && said().contains("peer-up"))
        .expect("events");

    for number in [0, 2] {
        scenario.host(number).run(&["nft", "delete", "table", "inet", "wall"]).expect("gone");
    }
    for (agent, other) in [(&alpha, "gamma"), (&gamma, "alpha")] {
        eventually(PATIENCE, "the pair is direct", || peer(agent, other)["relay"].is_null()).expect("no relay");
    }
    eventually(PATIENCE, "a session", || peer(&alpha, "gamma")["state"] == "connected").expect("connected");
    ping(&scenario, 0, "gamma", "A");
    eventually(PATIENCE, "everybody knows", || relayed(&beta) == serde_json::json!([])).expect("told");
    eventually(PATIENCE, "the end is told", || said().contains("\"direct\"")).expect("events");
}
