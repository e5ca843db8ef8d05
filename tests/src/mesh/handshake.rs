//! Who begins a handshake, and when: the first packet between two nodes that just met does not wait for a second attempt.

use integration_tests::agent::TestAgent;
use integration_tests::gate;
use integration_tests::scenario::Scenario;
use integration_tests::wait::eventually;

use super::{DEADLINE, TOOLS, join, ping, start, token};

/// How often the agent sent a first message.
fn first_messages(agent: &TestAgent<'_>) -> u64 {
    let url = "http://127.0.0.1:9615/metrics";
    let text = agent.host().run(&["curl", "--silent", "--fail", "--max-time", "5", url]).expect("metrics");
    let line = text.lines().find_map(|line| line.strip_prefix("weft_wireguard_first_messages_total "));
    line.and_then(|count| count.trim().parse().ok()).expect("a count")
}

/// The peers there is a session with.
fn connected(agent: &TestAgent<'_>) -> Vec<String> {
    let list = agent.cli_json(&["peers"]).expect("peers");
    let peers = list["peers"].as_array().expect("a list").clone();
    let up = peers.iter().filter(|peer| peer["state"] == "connected");
    up.filter_map(|peer| peer["name"].as_str().map(ToOwned::to_owned)).collect()
}

#[test]
fn nodes_that_meet_shake_hands_before_anything_is_sent_and_a_restart_begins_nothing() {
    if !gate::root_and(&TOOLS) || !gate::root_and(&["curl"]) {
        return;
    }
    let scenario = Scenario::new(3).expect("namespaces");
    let alpha = start(&scenario, 0, "alpha");
    let mut beta = start(&scenario, 1, "beta");
    let gamma = start(&scenario, 2, "gamma");
    join(&beta, &Scenario::address(0), &token(&alpha));
    join(&gamma, &Scenario::address(0), &token(&alpha));
    for (agent, others) in [(&alpha, ["beta", "gamma"]), (&beta, ["alpha", "gamma"]), (&gamma, ["alpha", "beta"])] {
        eventually(DEADLINE, "everybody has a session", || connected(agent) == others).expect("sessions");
        assert!(first_messages(agent) >= 2, "one to each that was new: {}", first_messages(agent));
    }
    beta.kill9().expect("killed");
    beta.launch().expect("started");
    beta.wait_until_ready().expect("ready");
    ping(&scenario, 1, "alpha", "A");
    assert_eq!(first_messages(&beta), 0, "who was a peer before is left alone");
}
