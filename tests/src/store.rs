//! The replicated database as an operator meets it: the command line against real agents that are killed and started again.

mod faults;

use std::collections::BTreeSet;
use std::time::Duration;

use integration_tests::agent::{Settings, TestAgent};
use integration_tests::gate;
use integration_tests::netns::NetNs;
use integration_tests::wait::eventually;
use serde_json::{Value, json};

const TOOLS: [&str; 3] = ["wg", "ip", "nsenter"];
const DEADLINE: Duration = Duration::from_secs(20);

fn settings() -> Settings {
    Settings::new("alpha").expect("keys").table("[store]\nsnapshot_entries = 100\nlog_format = \"protobuf+snappy\"")
}

fn exec(agent: &TestAgent<'_>, sql: &str) -> Value {
    agent.cli_json(&["store", "exec", sql]).expect("carried out")
}

fn numbers(agent: &TestAgent<'_>) -> BTreeSet<i64> {
    let answer = agent.cli_json(&["store", "query", "SELECT a FROM t"]).expect("read");
    let rows = answer["rows"].as_array().expect("rows");
    rows.iter().map(|row| row[0].as_i64().expect("a number")).collect()
}

#[test]
fn statements_rows_and_refusals_over_the_command_line() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let agent = TestAgent::start(&host, settings()).expect("it starts");
    exec(&agent, "CREATE TABLE t (a INTEGER PRIMARY KEY, at TIMESTAMP, ok BOOLEAN, x BLOB, s TEXT)");
    let insert = "INSERT INTO t (at, ok, x, s) VALUES (?, ?, ?, :s)";
    let bind = ["time:2026-01-02T03:04:05Z", "bool:true", "blob:00ff", ":s=text:ä"];
    let flags: Vec<&str> = bind.iter().flat_map(|bind| ["--bind", *bind]).collect();
    let done = agent.cli_json(&[&["store", "exec", insert][..], &flags].concat()).expect("carried out");
    assert_eq!(done["results"], json!([{ "rows_affected": 1, "last_insert_id": 1 }]), "{done}");
    let answer = agent.cli_json(&["store", "query", "SELECT * FROM t", "--local"]).expect("read");
    let row = json!([[1, "2026-01-02T03:04:05.000000000Z", true, { "blob": "00ff" }, "ä"]]);
    assert_eq!((&answer["rows"], &answer["types"][1]), (&row, &json!("TIMESTAMP")), "{answer}");
    for (sql, code, expected) in [
        ("INSERT INTO t (a) VALUES (random())", 2, "bind its value as a parameter"),
        ("INSERT INTO t (a) VALUES (1)", 1, "UNIQUE constraint failed: t.a"),
        ("DELETE FROM weft_raft", 1, "belongs to the consensus"),
        ("SELEKT", 2, "syntax error"),
    ] {
        let output = agent.cli(&["store", "exec", sql]).expect("it runs");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(code) && errors.contains(expected), "{sql}: {output:?}");
    }
    let both = agent.cli(&["store", "exec", "DELETE FROM t", "INSERT INTO nowhere VALUES (1)"]).expect("it runs");
    assert!(!both.status.success(), "{both:?}");
    assert_eq!(numbers(&agent), BTreeSet::from([1]), "all or nothing");
    let status = agent.cli_json(&["store", "status"]).expect("it answers");
    assert_eq!((&status["role"], &status["leader"]), (&json!("leader"), &json!("alpha")), "{status}");
    let text = agent.cli_text(&["status"]).expect("it answers");
    assert!(text.contains("leader, alone"), "{text}");
}

#[test]
fn what_was_acknowledged_survives_kills_at_any_moment() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let mut agent = TestAgent::start(&host, settings()).expect("it starts");
    exec(&agent, "CREATE TABLE t (a INTEGER PRIMARY KEY)");
    let mut acknowledged = BTreeSet::new();
    let mut tried = BTreeSet::new();
    let mut next = 0;
    for round in 0..6 {
        let first = next;
        let agent_now = &agent;
        std::thread::scope(|scope| {
            let writer = scope.spawn(move || {
                // Until the agent is killed under it.
                let mut done = Vec::new();
                for number in first.. {
                    let sql = format!("INSERT INTO t VALUES ({number})");
                    let output = agent_now.cli(&["store", "exec", &sql]).expect("it runs");
                    if !output.status.success() {
                        return (done, number);
                    }
                    done.push(number);
                }
                unreachable!("there is no last number")
            });
            let enough = first + 20 + round * 3;
            eventually(DEADLINE, "some writes are done", || numbers(&agent).iter().any(|number| *number >= enough))
                .expect("written");
            let pid = agent.pid().expect("it runs");
            let kill = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            kill.expect("it runs");
            let (done, failed) = writer.join().expect("no panic");
            acknowledged.extend(done);
            tried.extend(acknowledged.iter().copied().chain([failed]));
            next = failed + 1;
        });
        agent.kill9().ok();
        agent.restart().expect("it starts over what the last one left");
        let found = numbers(&agent);
        assert!(acknowledged.is_subset(&found), "lost: {:?}", acknowledged.difference(&found));
        assert!(found.is_subset(&tried), "from nowhere: {:?}", found.difference(&tried));
    }
    println!("kills: 6, acknowledged: {}, lost: 0", acknowledged.len());
}

#[test]
fn a_backup_is_restored_on_a_stopped_node() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let mut agent = TestAgent::start(&host, settings()).expect("it starts");
    exec(&agent, "CREATE TABLE t (a INTEGER PRIMARY KEY)");
    exec(&agent, "INSERT INTO t VALUES (1)");
    let file = agent.directory().join("backup.db");
    let file = file.to_str().expect("UTF-8").to_owned();
    agent.cli_text(&["store", "backup", &file]).expect("saved");
    let again = agent.cli(&["store", "backup", &file]).expect("it runs");
    assert!(String::from_utf8_lossy(&again.stderr).contains("exists already"), "{again:?}");
    exec(&agent, "INSERT INTO t VALUES (2)");
    let running = agent.cli(&["store", "restore", &file]).expect("it runs");
    assert!(String::from_utf8_lossy(&running.stderr).contains("stop the agent first"), "{running:?}");
    agent.stop().expect("it stops");
    let text = agent.cli_text(&["store", "restore", &file]).expect("restored");
    assert!(text.contains("before-restore"), "{text}");
    let not_one = agent.config_file().to_str().expect("UTF-8").to_owned();
    let refused = agent.cli(&["store", "restore", &not_one]).expect("it runs");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("is not a backup of a Weft store"), "{refused:?}");
    agent.restart().expect("it starts");
    assert_eq!(numbers(&agent), BTreeSet::from([1]));
}
