//! What a user types, against agents that run.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output};

use integration_tests::agent::weft_binary;

use super::*;

/// The user `nobody` of every distribution.
const NOBODY: u32 = 65534;

/// Runs `weft status` as a user that is neither root nor in group weft.
fn status_as_nobody(agent: &TestAgent<'_>) -> Output {
    // Where that user reaches neither the build directory nor the test's own, it is given a copy.
    let program = agent.directory().join("weft");
    if !program.exists() {
        fs::copy(weft_binary().expect("built"), &program).expect("copied");
        fs::set_permissions(agent.directory(), Permissions::from_mode(0o755)).expect("opened");
    }
    let run_dir = agent.directory().join("run");
    let mut command = Command::new(program);
    command.arg("--run-dir").arg(run_dir).arg("status").uid(NOBODY).gid(NOBODY);
    command.output().expect("it runs")
}

#[test]
fn a_user_without_the_group_is_refused_by_the_mode_and_by_the_agent() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let settings = Settings::new("alpha").expect("keys").addresses(&["10.80.0.1/24"]);
    let agent = TestAgent::start(&host, settings).expect("it starts");
    let by_mode = status_as_nobody(&agent);
    assert_eq!(by_mode.status.code(), Some(1), "{by_mode:?}");
    assert!(String::from_utf8_lossy(&by_mode.stderr).contains("join group weft"), "{by_mode:?}");
    // Whoever opens the socket by mistake opens nothing: the kernel tells the agent who calls.
    fs::set_permissions(agent.socket(), Permissions::from_mode(0o666)).expect("opened");
    let by_agent = status_as_nobody(&agent);
    assert_eq!(by_agent.status.code(), Some(1), "{by_agent:?}");
    assert!(String::from_utf8_lossy(&by_agent.stderr).contains("the agent refused: uid 65534"), "{by_agent:?}");
}

#[test]
fn ping_dns_and_top_work_through_the_tunnel() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let scenario = Scenario::new(2).expect("hosts");
    let mesh = Mesh::start(&scenario).expect("a mesh");
    let agent = &mesh.agents[0];
    ping(agent.host(), "10.80.0.2").expect("node-1 answers");
    let pinged = agent.cli_json(&["ping", "node-1", "--count", "1"]).expect("it answers");
    assert_eq!((&pinged["address"], &pinged["received"]), (&"10.80.0.2".into(), &1.into()), "{pinged}");
    let answer = agent.cli_json(&["dns", "query", "node-1"]).expect("it is known");
    assert_eq!(answer["answers"][0]["data"], "10.80.0.2", "{answer}");
    // Readiness does not wait for the accounting.
    let counted = || {
        let sent =
            ping(agent.host(), "10.80.0.2").and_then(|()| agent.cli_json(&["top", "--once", "--interval", "0.2"]));
        sent.is_ok_and(|top| top["peers"][0]["name"] == "node-1" && number(&top["peers"][0]["tx"], "bytes") > 0)
    };
    eventually(DEADLINE, "top shows what was sent to node-1", counted).expect("counted");
}
