//! Supervised processes of a whole agent: started, crashed, stopped with all they started, kept over the death of the agent.

mod health;
mod inherited;
mod input;
mod keeping;
mod limits;
mod reload;
mod renewal;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use integration_tests::agent::{Settings, TestAgent};
use integration_tests::gate;
use integration_tests::netns::NetNs;
use integration_tests::wait::{eventually, eventually_some};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(30);

fn start(host: &NetNs) -> TestAgent<'_> {
    start_with(host, "")
}

fn start_with<'a>(host: &'a NetNs, tables: &str) -> TestAgent<'a> {
    let settings = Settings::new("alpha").expect("keys").addresses(&["10.80.0.1/24"]).table(tables);
    TestAgent::start(host, settings).expect("it starts")
}

/// The only instance called `name`.
fn item(agent: &TestAgent<'_>, name: &str) -> Value {
    let list = agent.cli_json(&["describe", name]).expect("it is there");
    list["processes"][0].clone()
}

fn pid(agent: &TestAgent<'_>, name: &str) -> u64 {
    item(agent, name)["pid"].as_u64().expect("it runs")
}

/// Whether it runs; one that only waits to be collected by its parent does not.
fn is_alive(pid: u64) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

/// The cgroup of everything that `agent` supervises.
fn cgroup(agent: &TestAgent<'_>) -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("readable");
    let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).expect("cgroup2 is mounted");
    Path::new(mount.split(' ').nth(1).expect("a mount point")).join("weft").join(agent.instance())
}

/// The processes in the cgroup of each life of `name`.
fn members(agent: &TestAgent<'_>, name: &str) -> Vec<u64> {
    let entries = fs::read_dir(cgroup(agent)).into_iter().flatten().flatten();
    let lives = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&format!("{name}@")));
    let procs = lives.map(|entry| fs::read_to_string(entry.path().join("cgroup.procs")).unwrap_or_default());
    procs.flat_map(|text| text.lines().map(|line| line.parse().expect("a pid")).collect::<Vec<_>>()).collect()
}

/// A program of the test's own.
fn script(agent: &TestAgent<'_>, name: &str, text: &str) -> String {
    let path = agent.directory().join(name);
    fs::write(&path, text).expect("a file of our own");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("ours");
    path.display().to_string()
}

#[test]
fn a_process_is_started_listed_stopped_and_deleted() {
    if !gate::root_and(&["wg", "ip", "nsenter"]) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let agent = start(&host);
    let table = agent.cli_text(&["start", "sleep 1000", "--name", "web", "--port", "3000"]).expect("started");
    assert!(table.contains("web") && table.contains("online") && table.contains("3000"), "{table}");
    let first = pid(&agent, "web");
    assert!(is_alive(first));
    assert!(fs::read_to_string(format!("/proc/{first}/cgroup")).expect("alive").contains("/web@0.1"), "its own cgroup");
    let environment = fs::read(format!("/proc/{first}/environ")).expect("alive");
    assert!(String::from_utf8_lossy(&environment).split('\0').any(|line| line == "PORT=3000"));
    agent.cli_text(&["restart", "web"]).expect("restarted");
    let second = pid(&agent, "web");
    assert!(!is_alive(first) && is_alive(second) && members(&agent, "web") == [second]);
    let stopped = agent.cli_text(&["stop", "0"]).expect("stopped by its id");
    assert!(stopped.contains("stopped") && !is_alive(second), "{stopped}");
    agent.cli_text(&["start", "web"]).expect("started again");
    let third = pid(&agent, "web");
    agent.cli_text(&["delete", "web"]).expect("deleted");
    assert!(!is_alive(third));
    let missing = agent.cli(&["describe", "web"]).expect("it runs");
    assert!(String::from_utf8_lossy(&missing.stderr).contains("process 'web' not found"), "{missing:?}");
}

#[test]
fn a_crash_is_answered_by_a_new_process_and_what_it_left_is_swept() {
    if !gate::root_and(&["wg", "ip", "nsenter", "setsid"]) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let agent = start(&host);
    let program = script(&agent, "family.sh", "#!/bin/sh\nsetsid sleep 1000 &\nsleep 1000 &\nexec sleep 1000\n");
    agent.cli_text(&["start", &program]).expect("started");
    eventually(DEADLINE, "three processes", || members(&agent, "family").len() == 3).expect("a family");
    let family = members(&agent, "family");
    let main = pid(&agent, "family");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(main as i32), nix::sys::signal::Signal::SIGKILL).expect("alive");
    let next = || Some(pid_if_any(&agent, "family")?).filter(|next| *next != main);
    let next = eventually_some(DEADLINE, "another process", next).expect("restarted");
    assert!(family.iter().all(|pid| !is_alive(*pid)), "nothing of the first life is left");
    assert_eq!(item(&agent, "family")["restarts"], 1);
    agent.cli_text(&["stop", "family"]).expect("stopped");
    assert!(!is_alive(next) && members(&agent, "family").is_empty());
}

fn pid_if_any(agent: &TestAgent<'_>, name: &str) -> Option<u64> {
    item(agent, name)["pid"].as_u64()
}

#[test]
fn processes_of_the_configuration_are_there_and_follow_it() {
    if !gate::root_and(&["wg", "ip", "nsenter"]) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let agent = start_with(&host, "[process.job]\nscript = \"sleep 1000\"\ninstances = 2\n");
    eventually(DEADLINE, "two instances", || members(&agent, "job").len() == 2).expect("started with the agent");
    let before = members(&agent, "job");
    let text = agent.config_text().expect("readable");
    assert!(agent.cli_text(&["reload"]).expect("taken").contains("nothing changed"));
    assert_eq!(members(&agent, "job"), before);
    agent.overwrite_config(&text.replace("instances = 2", "instances = 1")).expect("written");
    assert!(agent.cli_text(&["reload"]).expect("taken").contains("process job changed"));
    eventually(DEADLINE, "one instance", || members(&agent, "job").len() == 1).expect("scaled");
    agent.overwrite_config(text.split("[process.job]").next().expect("text")).expect("written");
    assert!(agent.cli_text(&["reload"]).expect("taken").contains("process job removed"));
    eventually(DEADLINE, "none", || members(&agent, "job").is_empty()).expect("removed");
}

#[test]
fn a_list_that_is_watched_shows_what_happens() {
    if !gate::root_and(&["wg", "ip", "nsenter"]) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let agent = start(&host);
    agent.cli_text(&["start", "sleep 1000", "--name", "web"]).expect("started");
    agent.cli_text(&["start", "sleep 1000", "--name", "other"]).expect("started");
    let mut objects = agent.cli_running(&["ps", "web", "--watch", "--json"]).expect("started");
    let mut tables = agent.cli_running(&["ps", "web", "--watch"]).expect("started");
    objects.wait_for_log("\"online\"", DEADLINE).expect("it is shown");
    tables.wait_for_log(" online ", DEADLINE).expect("it is shown");
    let top = agent.cli_json(&["top", "--once", "--interval", "0.2"]).expect("measured");
    let names: Vec<_> = top["processes"].as_array().into_iter().flatten().map(|item| item["name"].clone()).collect();
    assert!(names.len() == 2 && names.contains(&"web".into()) && top["processes"][0]["pid"].is_u64(), "{top}");
    let shown = agent.cli_text(&["top", "--once", "--interval", "0.2", "--show", "processes"]).expect("measured");
    assert!(shown.starts_with("2 process(es)") && !shown.contains("PEER"), "{shown}");
    agent.cli_text(&["stop", "web"]).expect("stopped");
    objects.wait_for_log("\"stopped\"", DEADLINE).expect("it is shown");
    tables.wait_for_log(" stopped ", DEADLINE).expect("it is shown");
    assert!(objects.stop().expect("it ends").success() && tables.stop().expect("it ends").success());
    for line in objects.log().lines() {
        let list: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert_eq!(list["processes"][0]["name"], "web");
        assert_eq!(list["processes"].as_array().map(Vec::len), Some(1), "the other is not asked for");
    }
}
