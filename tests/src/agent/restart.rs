//! Killed, stopped, started again: what must outlive the process, and what must not be touched by the next one.

use integration_tests::gate;
use integration_tests::scenario::Scenario;

use super::{Mesh, TOOLS, ping, tx_icmp};

#[test]
fn counters_continue_after_a_kill_and_the_tunnel_comes_back() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let scenario = Scenario::new(2).expect("hosts");
    let mut mesh = Mesh::start(&scenario).expect("a mesh");
    assert_eq!(tx_icmp(&mesh.agents[0], "node-1"), 0, "it counts from the start");
    ping(mesh.agents[0].host(), "10.80.0.2").expect("node-1 answers");
    let before = tx_icmp(&mesh.agents[0], "node-1");
    assert!(before > 0);
    mesh.agents[0].kill9().expect("it runs");
    mesh.agents[0].restart().expect("it starts over what the last one left");
    assert!(tx_icmp(&mesh.agents[0], "node-1") >= before, "counters went back");
    ping(mesh.agents[0].host(), "10.80.0.2").expect("node-1 answers again");
    assert!(tx_icmp(&mesh.agents[0], "node-1") > before, "counting goes on");
}

#[test]
fn an_agent_that_was_killed_leaves_nothing_that_stops_the_next() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let scenario = Scenario::new(1).expect("a host");
    let mut mesh = Mesh::start(&scenario).expect("an agent");
    for _ in 0..3 {
        mesh.agents[0].kill9().expect("it runs");
        mesh.agents[0].restart().expect("it starts");
        let status = mesh.agents[0].cli_json(&["status"]).expect("status answers");
        assert_eq!(status["problems"], serde_json::json!([]), "{status}");
    }
}

#[test]
fn a_reload_that_nobody_could_apply_changes_nothing_and_is_named() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let scenario = Scenario::new(1).expect("a host");
    let mesh = Mesh::start(&scenario).expect("an agent");
    let agent = &mesh.agents[0];
    let good = agent.config_text().expect("it was written");
    agent.overwrite_config(&good.replace("id = \"node-0\"", "id = \"other\"")).expect("written");
    let output = agent.cli(&["reload"]).expect("reload runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && errors.contains("node.id"), "{output:?}");
    assert_eq!(agent.cli_json(&["status"]).expect("status answers")["node"], "node-0");
}
