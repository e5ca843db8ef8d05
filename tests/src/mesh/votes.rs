//! Who votes in a mesh, what the others may do, and that nothing depends on the node that founded it.

use std::time::Instant;

use integration_tests::agent::{Settings, TestAgent};
use integration_tests::gate;
use integration_tests::process::Process;
use integration_tests::scenario::Scenario;
use integration_tests::wait::eventually;

use super::{DEADLINE, TOOLS, join, lookup, peers, ping, refused, start, token};

/// Waits until each of `agents` knows of this many voters and keeps the state itself.
pub(super) fn wait_for(agents: &[&TestAgent<'_>], voters: u64) {
    for agent in agents {
        let settled = eventually(DEADLINE * 2, &format!("{voters} voters, and a key"), || {
            let mesh = mesh(agent);
            mesh["voters"] == voters && mesh["part"] == "keeps" && mesh["leader"].is_string()
        });
        assert!(settled.is_ok(), "{settled:?}: {}", agent.cli_text(&["status"]).unwrap_or_default());
    }
}

pub(super) fn mesh(agent: &TestAgent<'_>) -> serde_json::Value {
    agent.cli_json(&["status"]).map_or(serde_json::Value::Null, |status| status["mesh"].clone())
}

/// Private keys in the agent's file of its identity: its own, and the authority's where it may issue.
fn keys(agent: &TestAgent<'_>) -> usize {
    use std::os::unix::fs::PermissionsExt as _;
    let path = agent.directory().join("state/identity/identity.pem");
    assert_eq!(path.metadata().expect("written").permissions().mode() & 0o777, 0o600);
    std::fs::read_to_string(path).expect("read").matches("BEGIN PRIVATE KEY").count()
}

pub(super) fn three(scenario: &Scenario) -> [TestAgent<'_>; 3] {
    let agents = [start(scenario, 0, "alpha"), start(scenario, 1, "beta"), start(scenario, 2, "gamma")];
    for agent in &agents[1..] {
        join(agent, &Scenario::address(0), &token(&agents[0]));
    }
    wait_for(&agents.each_ref(), 3);
    agents
}

#[test]
fn the_founder_is_killed_and_the_mesh_goes_on() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let scenario = Scenario::new(4).expect("namespaces");
    let [mut alpha, beta, gamma] = three(&scenario);
    assert_eq!([&alpha, &beta, &gamma].map(keys), [2, 2, 2], "who votes may issue");
    beta.cli_text(&["store", "exec", "CREATE TABLE t (a INTEGER PRIMARY KEY)"]).expect("written");
    ping(&scenario, 1, "gamma", "A");
    let address = lookup(&scenario, 1, "gamma.weft.internal", "A");
    let mut command = scenario.host(1).command("ping");
    command.args(["-i", "0.01", "-c", "500", "-q", &address]);
    let pinging = Process::spawn("ping", command).expect("started");
    alpha.kill9().expect("killed");
    let killed = Instant::now();
    eventually(DEADLINE, "writes are taken again", || {
        gamma.cli(&["store", "exec", "INSERT INTO t DEFAULT VALUES"]).is_ok_and(|output| output.status.success())
    })
    .expect("another one leads");
    println!("writes resumed {} ms after the leader was killed", killed.elapsed().as_millis());
    eventually(DEADLINE * 2, "all pings are counted", || pinging.log().contains("packets transmitted")).expect("ended");
    assert!(pinging.log().contains("500 received, 0% packet loss"), "{}", pinging.log());
    let delta = start(&scenario, 3, "delta");
    join(&delta, &Scenario::address(1), &token(&gamma));
    ping(&scenario, 3, "beta", "A");
    alpha.launch().expect("started");
    alpha.wait_until_ready().expect("ready");
    eventually(DEADLINE, "alpha hears of delta", || peers(&alpha) == ["beta", "delta", "gamma"]).expect("it follows");
    let rows = alpha.cli_json(&["store", "query", "SELECT count(*) FROM t"]).expect("read");
    assert!(rows["rows"][0][0].as_i64().is_some_and(|count| count >= 1), "{rows}");
    assert_eq!(keys(&delta), 1, "a fourth node holds the log and votes not");
}

#[test]
fn voters_leave_or_are_removed_and_what_stays_decides() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let scenario = Scenario::new(3).expect("namespaces");
    let [alpha, beta, gamma] = three(&scenario);
    alpha.cli_text(&["leave"]).expect("the founder leaves, although it leads");
    eventually(DEADLINE, "the others forget alpha", || peers(&beta) == ["gamma"] && peers(&gamma) == ["beta"])
        .expect("gone");
    eventually(DEADLINE, "alpha is a mesh of its own", || {
        let mesh = mesh(&alpha);
        mesh["members"] == 1 && mesh["part"] == "keeps" && mesh["leader"] == "alpha"
    })
    .expect("alone");
    eventually(DEADLINE, "one of two votes", || mesh(&beta)["voters"] == 1 && mesh(&gamma)["voters"] == 1)
        .expect("odd");
    let (voter, other, name) = match mesh(&beta)["leader"].as_str() {
        Some("beta") => (&beta, &gamma, "gamma"),
        _ => (&gamma, &beta, "beta"),
    };
    eventually(DEADLINE * 2, "who votes no more gives the key up", || keys(other) == 1).expect("given up");
    let at = Scenario::address(if name == "gamma" { 1 } else { 2 });
    join(&alpha, &at, &token(voter));
    wait_for(&[&alpha, &beta, &gamma], 3);
    voter.cli_text(&["leave", name]).expect("removed");
    eventually(DEADLINE * 2, "it is told and has no key", || {
        mesh(other)["errors"].to_string().contains("revoked") && keys(other) == 1
    })
    .expect("fenced");
    let said = refused(&other.cli(&["token", "create"]).expect("it ran"));
    assert!(said.contains("has no vote"), "{said}");
    other.cli_text(&["leave"]).expect("it is out already");
    join(other, &at, &token(voter));
    wait_for(&[&alpha, &beta, &gamma], 3);
}

#[test]
fn an_edge_is_told_holds_no_log_and_hands_on_without_being_believed() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let scenario = Scenario::new(3).expect("namespaces");
    let alpha = start(&scenario, 0, "alpha");
    let settings = Settings::new("beta").expect("keys").table("[mesh]\nrole = \"edge\"");
    let beta = TestAgent::start(scenario.host(1), settings).expect("it starts");
    join(&beta, &Scenario::address(0), &token(&alpha));
    let said = refused(&beta.cli(&["acl", "put", "all", "--allow", "*"]).expect("it ran"));
    assert!(said.contains("beta has no vote") && said.contains("alpha"), "{said}");
    let gamma = start(&scenario, 2, "gamma");
    join(&gamma, &Scenario::address(1), &token(&alpha));
    ping(&scenario, 2, "beta", "A");
    ping(&scenario, 0, "gamma", "A");
    eventually(DEADLINE, "gamma holds the log", || {
        let status = gamma.cli_json(&["store", "status"]).expect("the status");
        status["role"] == "learner" && status["leader"] == "alpha"
    })
    .expect("added");
    let own = beta.cli_json(&["store", "status"]).expect("the status");
    assert_eq!((&own["role"], &own["leader"]), (&"leader".into(), &"beta".into()), "its own, alone: {own}");
    assert_eq!((mesh(&alpha)["voters"].as_u64(), keys(&beta), keys(&gamma)), (Some(1), 1, 1));
}
