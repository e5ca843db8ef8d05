//! The message bus: a real nats-server below each of two joined agents, and a client written from its protocol.

use std::time::Duration;

use integration_tests::agent::{Settings, TestAgent};
use integration_tests::gate;
use integration_tests::netns::NetNs;
use integration_tests::scenario::Scenario;
use integration_tests::wait::eventually;
use serde_json::{Value, json};

use super::hop::{far, joined};
use super::{TOOLS, curl};

const PATIENCE: Duration = Duration::from_secs(45);
const QUICK: Duration = Duration::from_secs(3);

fn parsed(text: &str) -> Value {
    let value = serde_json::from_str(text).ok();
    assert!(value.is_some(), "this is no JSON: {text}");
    value.unwrap_or_default()
}

/// What the server of `host` says under `/nats/`.
fn nats(host: &NetNs, path: &str) -> Value {
    parsed(&curl(host, &format!("/nats/{path}"), &[]))
}

fn url_file(agent: &TestAgent<'_>) -> String {
    agent.directory().join("run/bus/client.url").to_str().expect("text").to_owned()
}

#[test]
fn without_a_bus_what_needs_one_says_so_and_the_rest_works() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let settings = Settings::new("alpha").expect("keys").addresses(&["10.80.0.1/24"]);
    let agent = TestAgent::start(&host, settings).expect("it starts");
    for path in ["/publish/jobs.a", "/publish/raw.echo"] {
        let said = parsed(&curl(&host, path, &["-d", "1"]));
        assert!(said["error"].as_str().is_some_and(|text| text.contains("bus.enabled")), "{path}: {said}");
    }
    assert!(nats(&host, "varz")["error"].as_str().is_some_and(|text| text.contains("bus.enabled")));
    assert_eq!(parsed(&curl(&host, "/result/ev/1", &[]))["code"], "not_found");
    assert_eq!(curl(&host, "/kv/a", &["-X", "PUT", "-d", "{\"value\":1}"]), "1\n");
    assert!(agent.cli_json(&["status"]).expect("a status")["bus"].is_null());
}

#[test]
fn events_requests_and_monitoring_go_over_a_cluster_of_real_servers() {
    if !gate::root_and(&[&TOOLS[..], &["nats-server"]].concat()) {
        return;
    }
    let scenario = Scenario::new(2).expect("namespaces");
    let [alpha, beta] = joined(&scenario, "[bus]\nenabled = true\n");
    let (here, there) = (scenario.host(0), scenario.host(1));
    for (host, name) in [(here, "alpha"), (there, "beta")] {
        let has_route = || nats(host, "routez")["num_routes"].as_u64().is_some_and(|count| count > 0);
        eventually(PATIENCE, "the servers have found each other", has_route).expect("a route");
        assert_eq!(nats(host, "varz")["server_name"], name);
    }
    let _subscriber = far(there, &["subscriber", &url_file(&beta)], "subscribed");
    // Whether the interest of a client there has come here yet.
    let knows = || curl(here, "/publish/raw.echo", &["-d", "hello", "-H", "X-Kind: test"]).starts_with("hello");
    eventually(PATIENCE, "a request is answered on another node", knows).expect("answered");
    assert_eq!(curl(here, "/publish/raw.echo", &["-d", "hello", "-H", "X-Kind: test"]), "hello x-kind: test");
    // An event is delivered at most once, and the servers may still be closing a route that each opened to the other.
    let mut event = Value::Null;
    let is_kept = || {
        event = parsed(&curl(here, "/publish/jobs.mail", &["-d", "{\"to\":\"a\"}"]));
        let result = format!("/result/ev/{}", event["seq"]);
        eventually(QUICK, "the result is there", || parsed(&curl(here, &result, &[]))["code"] != "not_found").is_ok()
    };
    eventually(PATIENCE, "an event is answered on another node", is_kept).expect("answered");
    let seq = event["seq"].as_u64().expect("a number");
    assert_eq!(event["stream"], "ev");
    for host in [here, there] {
        let result = || parsed(&curl(host, &format!("/result/ev/{seq}"), &[]));
        eventually(PATIENCE, "the result is there", || result()["code"] != "not_found").expect("kept");
        assert_eq!(result(), json!({ "subject": "ev.jobs.mail", "did": { "to": "a" } }));
    }
    let later = parsed(&curl(there, "/publish/nobody.listens", &["-d", "1"]));
    assert!(later["seq"].as_u64().is_some_and(|later| later > seq), "numbers grow on every node: {later}");
    assert!(curl(here, "/publish/raw.nobody", &["-d", "1"]).contains("nobody answers on raw.nobody"));
    assert!(curl(here, "/publish/a.*", &["-g", "-d", "1"]).contains("\"code\":\"invalid_argument\""));
    assert!(curl(here, "/nats/nonsense", &[]).contains("\"code\":\"not_found\""));
    for path in ["healthz", "connz", "subsz", "jsz", "accountz"] {
        assert!(nats(here, path).is_object(), "{path}");
    }
    let status = alpha.cli_text(&["status"]).expect("a status");
    assert!(status.contains("nats-server as process") && status.contains("routes to beta"), "{status}");
    let metrics = here.run(&["curl", "-sS", "http://127.0.0.1:9615/metrics"]).expect("metrics");
    assert!(metrics.contains("weft_bus_up 1") && metrics.contains("weft_bus_routes 1"), "{metrics}");
}

#[test]
fn a_server_keeps_its_secrets_is_started_again_and_goes_with_the_agent() {
    if !gate::root_and(&[&TOOLS[..], &["nats-server"]].concat()) {
        return;
    }
    use std::os::unix::fs::PermissionsExt as _;
    let host = NetNs::new().expect("a namespace");
    let settings = Settings::new("alpha").expect("keys").addresses(&["10.80.0.1/24"]).table("[bus]\nenabled = true\n");
    let mut agent = TestAgent::start(&host, settings).expect("it starts");
    let server = |agent: &TestAgent<'_>| {
        let mut pid = None;
        eventually(PATIENCE, "the agent is connected to its server", || {
            let status = agent.cli_json(&["status"]).expect("a status");
            pid = status["bus"]["server_pid"].as_u64().filter(|_| status["bus"]["connected"].is_string());
            pid.is_some()
        })
        .expect("connected");
        pid.expect("set above")
    };
    let first = server(&agent);
    let directory = agent.directory().join("run/bus");
    for name in ["nats-server.conf", "client.url"] {
        let mode = std::fs::metadata(directory.join(name)).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let url = std::fs::read_to_string(directory.join("client.url")).expect("it is there");
    let password = url.split([':', '@']).nth(2).expect("a password").to_owned();
    let read = |file: &str| std::fs::read(format!("/proc/{first}/{file}")).expect("it runs");
    for file in ["cmdline", "environ"] {
        assert!(!String::from_utf8_lossy(&read(file)).contains(&password), "{file}");
    }
    assert!(!agent.cli_text(&["tail", "--no-follow", "--level", "debug"]).expect("the log").contains(&password));
    let end = nix::sys::signal::Signal::SIGKILL;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(first).expect("a process"));
    nix::sys::signal::kill(pid, end).expect("it runs");
    eventually(PATIENCE, "another server runs", || server(&agent) != first).expect("started again");
    let second = server(&agent);
    agent.kill9().expect("killed");
    agent.launch().expect("started");
    agent.wait_until_ready().expect("ready");
    let third = server(&agent);
    assert_ne!(third, second);
    assert!(!std::path::Path::new(&format!("/proc/{second}/exe")).exists(), "the one left behind was ended");
    agent.stop().expect("stopped");
    assert!(!std::path::Path::new(&format!("/proc/{third}/exe")).exists(), "it goes with the agent");
    assert!(!directory.join("client.url").exists());
    agent.launch().expect("started");
    agent.wait_until_ready().expect("ready");
    let fourth = server(&agent);
    agent.kill9().expect("killed");
    let said = agent.cli_text(&["down"]).expect("down succeeds without an agent");
    assert!(said.contains("the message bus"), "{said}");
    assert!(!std::path::Path::new(&format!("/proc/{fourth}/exe")).exists(), "it does not outlive `weft down`");
    assert!(!directory.join("nats-server.conf").exists(), "nor do its secrets");
}
