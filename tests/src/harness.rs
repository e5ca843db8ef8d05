//! The harness itself: a guard that leaks or a wait that never fails would make every other test worthless.

use std::process::Command;
use std::time::Duration;

use integration_tests::gate;
use integration_tests::netns::NetNs;
use integration_tests::process::Process;
use integration_tests::scenario::Scenario;
use integration_tests::wait::eventually;

#[test]
fn a_namespace_goes_away_with_its_guard() {
    if !gate::root_and(&["ip", "nsenter"]) {
        return;
    }
    let namespace = NetNs::new().expect("root can make a namespace");
    let path = namespace.path().to_owned();
    assert!(path.exists());
    drop(namespace);
    assert!(!path.exists());
}

#[test]
fn a_closure_inside_sees_only_the_links_of_the_namespace() {
    if !gate::root_and(&["ip", "nsenter"]) {
        return;
    }
    let namespace = NetNs::new().expect("root can make a namespace");
    let links = namespace.enter(|| std::fs::read_to_string("/proc/thread-self/net/dev")).expect("it can be entered");
    let links = links.expect("the kernel lists links");
    let names: Vec<&str> = links.lines().skip(2).filter_map(|line| line.split(':').next()).map(str::trim).collect();
    assert_eq!(names, ["lo"]);
}

#[test]
fn hosts_of_a_scenario_reach_each_other() {
    if !gate::root_and(&["ip", "nsenter", "ping"]) {
        return;
    }
    let scenario = Scenario::new(3).expect("root can make a scenario");
    for address in [Scenario::address(2), Scenario::address6(1)] {
        eventually(Duration::from_secs(5), &format!("host 0 reaches {address}"), || {
            scenario.host(0).run(&["ping", "-c", "1", "-W", "1", &address]).is_ok()
        })
        .expect("the bridge forwards");
    }
}

#[test]
fn a_process_is_ended_by_its_guard() {
    let mut command = Command::new("sleep");
    command.arg("600");
    let process = Process::spawn("sleep", command).expect("sleep exists");
    let proc = format!("/proc/{}", process.pid());
    assert!(std::path::Path::new(&proc).exists());
    drop(process);
    assert!(!std::path::Path::new(&proc).exists());
}

#[test]
fn waiting_for_a_process_that_ended_says_so_with_its_log() {
    let mut command = Command::new("sh");
    command.args(["-c", "echo last words; exit 3"]);
    let mut process = Process::spawn("sh", command).expect("sh exists");
    let error = process.wait_for("never", Duration::from_secs(10), || false).expect_err("it ended");
    let text = format!("{error:#}");
    assert!(text.contains("exit status: 3") && text.contains("last words"), "{text}");
}

#[test]
fn waiting_ends_at_the_deadline() {
    let error = eventually(Duration::from_millis(50), "pigs fly", || false).expect_err("they do not");
    assert!(error.to_string().contains("pigs fly"));
}
