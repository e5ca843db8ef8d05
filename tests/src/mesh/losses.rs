//! A node whose store is gone: it never founds a second mesh under the name of the first.

use std::fs;

use integration_tests::agent::{Settings, TestAgent};
use integration_tests::gate;
use integration_tests::scenario::Scenario;
use integration_tests::wait::{eventually, for_a_while};

use super::votes::{mesh, three, wait_for};
use super::{DEADLINE, TOOLS, join, peers, start, token};

/// Kills an agent and takes its store away.
fn lose_the_store(agent: &mut TestAgent<'_>) {
    agent.kill9().expect("killed");
    fs::remove_dir_all(agent.directory().join("state/store")).expect("removed");
    agent.launch().expect("started");
}

fn member_number(agent: &TestAgent<'_>) -> String {
    fs::read_to_string(agent.directory().join("state/store/member")).expect("it has a store")
}

#[test]
fn a_voter_without_its_store_gets_a_new_place_from_the_others() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let scenario = Scenario::new(3).expect("namespaces");
    let [alpha, beta, mut gamma] = three(&scenario);
    alpha.cli_text(&["store", "exec", "CREATE TABLE t (a INTEGER PRIMARY KEY)"]).expect("written");
    alpha.cli_text(&["store", "exec", "INSERT INTO t VALUES (7)"]).expect("written");
    let before = member_number(&gamma);
    lose_the_store(&mut gamma);
    gamma.wait_until_ready().expect("ready");
    let is_back = || {
        let rows = gamma.cli_json(&["store", "query", "--local", "SELECT a FROM t"]);
        rows.is_ok_and(|rows| rows["rows"][0][0] == 7)
    };
    eventually(DEADLINE * 2, "gamma has what was written", is_back).expect("it was added anew");
    wait_for(&[&alpha, &beta, &gamma], 3);
    assert_ne!(member_number(&gamma), before, "it is another member, so that nobody votes twice");
    assert_eq!(mesh(&gamma)["mesh"], mesh(&alpha)["mesh"]);
    assert_eq!(peers(&alpha), ["beta", "gamma"]);
}

#[test]
fn the_only_voter_without_its_store_waits_for_a_backup_and_founds_nothing() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let scenario = Scenario::new(2).expect("namespaces");
    let mut alpha = start(&scenario, 0, "alpha");
    let edge = Settings::new("beta").expect("keys").table("[mesh]\nrole = \"edge\"");
    let beta = TestAgent::start(scenario.host(1), edge).expect("it starts");
    join(&beta, &Scenario::address(0), &token(&alpha));
    eventually(DEADLINE, "alpha knows beta", || peers(&alpha) == ["beta"]).expect("joined");
    // A burst of changes is written once, a moment later.
    let state = alpha.directory().join("state/mesh/state");
    let is_kept = || fs::read_to_string(&state).is_ok_and(|text| text.contains("\"beta\""));
    eventually(DEADLINE, "alpha keeps that it has a member", is_kept).expect("written");
    let backup = alpha.directory().join("backup.db");
    let file = backup.display().to_string();
    alpha.cli_text(&["store", "backup", &file]).expect("written");
    lose_the_store(&mut alpha);
    let says_so = |agent: &TestAgent<'_>| mesh(agent)["errors"].to_string().contains("weft store restore FILE");
    eventually(DEADLINE, "alpha says what to do", || says_so(&alpha)).expect("it is told");
    // Another start is no way round it.
    alpha.kill9().expect("killed");
    alpha.launch().expect("started");
    eventually(DEADLINE, "alpha says so again", || says_so(&alpha)).expect("it is told");
    for_a_while(DEADLINE / 10);
    assert_eq!(peers(&alpha), ["beta"], "the tunnel stays as it was");
    assert_eq!(peers(&beta), ["alpha"], "nobody dismissed beta");
    alpha.kill9().expect("killed");
    alpha.cli_text(&["store", "restore", &file]).expect("restored");
    alpha.launch().expect("started");
    alpha.wait_until_ready().expect("ready");
    eventually(DEADLINE, "the mesh is whole", || {
        mesh(&alpha)["leader"] == "alpha" && mesh(&alpha)["members"] == 2 && !says_so(&alpha)
    })
    .expect("restored");
    assert_eq!((peers(&alpha), peers(&beta)), (vec!["beta".to_owned()], vec!["alpha".to_owned()]));
}
