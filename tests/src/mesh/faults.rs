//! What goes wrong in a mesh, and what the operator is then told.

use integration_tests::agent::{Settings, TestAgent};
use integration_tests::gate;
use integration_tests::process::Process;
use integration_tests::scenario::Scenario;
use integration_tests::wait::eventually;

use super::{DEADLINE, TOOLS, join, peers, ping, refused, start, token};

#[test]
fn a_second_node_with_the_same_id_is_refused_by_name() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let scenario = Scenario::new(3).expect("namespaces");
    let alpha = start(&scenario, 0, "alpha");
    let beta = start(&scenario, 1, "beta");
    let other = start(&scenario, 2, "beta");
    let at = Scenario::address(0);
    join(&beta, &at, &token(&alpha));
    let unused = token(&alpha);
    let said = refused(&other.cli(&["join", &at, "--token", &unused]).expect("it ran"));
    assert!(said.contains("there is a node beta already") && said.contains("node.id"), "{said}");
    assert_eq!(peers(&alpha), ["beta"]);
    ping(&scenario, 0, "beta", "A");
    let list = alpha.cli_json(&["token", "list"]).expect("the tokens");
    assert_eq!(list["tokens"].as_array().map(Vec::len), Some(1), "the token was not spent: {list}");
}

#[test]
fn an_exhausted_range_is_told_with_its_name() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let scenario = Scenario::new(3).expect("namespaces");
    let settings = Settings::new("alpha").expect("keys").table("[mesh]\nipv4_range = \"10.80.0.0/30\"");
    let alpha = TestAgent::start(scenario.host(0), settings).expect("it starts");
    let (beta, gamma) = (start(&scenario, 1, "beta"), start(&scenario, 2, "gamma"));
    let at = Scenario::address(0);
    join(&beta, &at, &token(&alpha));
    let said = refused(&gamma.cli(&["join", &at, "--token", &token(&alpha)]).expect("it ran"));
    assert!(said.contains("10.80.0.0/30") && said.contains("mesh.ipv4_range"), "{said}");
    alpha.cli_text(&["leave", "beta"]).expect("removed");
    join(&gamma, &at, &token(&alpha));
    ping(&scenario, 2, "alpha", "A");
}

#[test]
fn a_removed_node_is_cut_off_told_so_and_may_come_back() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let scenario = Scenario::new(2).expect("namespaces");
    let (alpha, beta) = (start(&scenario, 0, "alpha"), start(&scenario, 1, "beta"));
    let at = Scenario::address(0);
    join(&beta, &at, &token(&alpha));
    ping(&scenario, 1, "alpha", "A");
    alpha.cli_text(&["leave", "beta"]).expect("removed");
    eventually(DEADLINE, "alpha forgets beta", || peers(&alpha).is_empty()).expect("gone");
    // A word lost with its connection is asked for again, every way to alpha in turn.
    eventually(DEADLINE * 4, "beta says why it hears nothing", || {
        let status = beta.cli_json(&["status"]).expect("the status");
        status["mesh"]["errors"].to_string().contains("revoked")
    })
    .expect("told");
    beta.cli_text(&["leave"]).expect("it is out already");
    join(&beta, &at, &token(&alpha));
    ping(&scenario, 0, "beta", "A");
}

#[test]
fn any_member_that_votes_answers_and_tells_what_happens() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let scenario = Scenario::new(4).expect("namespaces");
    let (alpha, beta, gamma) =
        (start(&scenario, 0, "alpha"), start(&scenario, 1, "beta"), start(&scenario, 2, "gamma"));
    let at = Scenario::address(0);
    join(&beta, &at, &token(&alpha));
    join(&gamma, &at, &token(&alpha));
    super::votes::wait_for(&[&alpha, &beta, &gamma], 3);
    beta.cli_text(&["acl", "put", "servers", "--allow", "*"]).expect("it keeps the state");
    let acls = alpha.cli_json(&["acl", "list"]).expect("the ACLs");
    assert_eq!(acls["acls"][0]["name"], "servers", "{acls}");
    let mut command = scenario.host(1).command(integration_tests::agent::weft_binary().expect("built"));
    command.args(["--config"]).arg(beta.config_file()).args(["events", "--json"]);
    let mut events = Process::spawn("weft events", command).expect("started");
    events.wait_for_log("waiting for events", DEADLINE).expect("it listens");
    beta.cli_text(&["acl", "delete", "servers"]).expect("deleted");
    let delta = start(&scenario, 3, "delta");
    join(&delta, &Scenario::address(2), &token(&beta));
    events.wait_for_log("delta joined the mesh", DEADLINE).expect("told");
    let names = |name: &str| super::lookup(&scenario, 1, &format!("{name}.weft.internal"), "A");
    eventually(DEADLINE, "leader. is alpha", || !names("leader").is_empty() && names("leader") == names("alpha"))
        .expect("named");
    eventually(DEADLINE, "voters. are three", || names("voters").lines().count() == 3).expect("named");
}
