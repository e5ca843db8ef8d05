//! Requests carried between two joined agents: any method, streams, WebSocket, who asked, and what is said where it fails.

use std::time::Duration;

use integration_tests::agent::{Settings, TestAgent};
use integration_tests::gate;
use integration_tests::netns::NetNs;
use integration_tests::process::Process;
use integration_tests::scenario::Scenario;
use integration_tests::wait::eventually;

use super::{CLIENT, TOOLS, curl, start_sleeper};

const PATIENCE: Duration = Duration::from_secs(30);
pub(super) const FAR: &str = include_str!("far.py");

/// Starts `alpha` and `beta`, which joins it, each with this table.
pub(super) fn joined<'a>(scenario: &'a Scenario, table: &str) -> [TestAgent<'a>; 2] {
    let start = |number: usize, name: &str| {
        let settings = Settings::new(name).expect("keys").table(table);
        TestAgent::start(scenario.host(number), settings).expect("it starts")
    };
    let (alpha, beta) = (start(0, "alpha"), start(1, "beta"));
    let token = alpha.cli_json(&["token", "create"]).expect("a token");
    let token = token["token"].as_str().expect("text");
    beta.cli_text(&["join", &Scenario::address(0), "--token", token]).expect("it joins");
    eventually(PATIENCE, "alpha reaches beta's gateway", || alpha.cli_text(&["hop", "beta", "/ping"]).is_ok())
        .expect("a hop");
    [alpha, beta]
}

/// Runs a part of the script in the background until it has said something; its log.
pub(super) fn far(host: &NetNs, words: &[&str], says: &str) -> Process {
    let mut command = host.command("python3");
    command.args(["-c", FAR]).args(words);
    let mut process = Process::spawn("far", command).expect("it starts");
    process.wait_for_log(says, PATIENCE).expect("it says so");
    process
}

/// The status that curl gets.
fn status(host: &NetNs, path: &str, more: &[&str]) -> String {
    curl(host, path, &[&["-o", "/dev/null", "-w", "%{http_code}"][..], more].concat())
}

#[test]
fn a_hop_carries_any_method_streams_and_websockets_and_says_who_asked() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let scenario = Scenario::new(2).expect("namespaces");
    let route = "[[gateway.host.\"echo.example\".route]]\nupstream = [\"127.0.0.1:8080\"]\n";
    let [alpha, beta] = joined(&scenario, route);
    start_sleeper(&beta);
    let (here, there) = (scenario.host(0), scenario.host(1));
    assert_eq!(curl(here, "/hop/beta/pm3/ping", &[]), "\"beta\"\n");
    assert_eq!(curl(here, "/hop/beta/pm3/ping", &["--http2-prior-knowledge"]), "\"beta\"\n");
    assert_eq!(curl(there, "/hop/ALPHA/pm3/ping", &[]), "\"alpha\"\n");
    assert_eq!(curl(here, "/hop/alpha/pm3/ping", &[]), "\"alpha\"\n", "to itself");
    for (method, body, answer) in [
        ("PUT", "{\"value\":[1,2]}", "1\n"),
        ("GET", "", "{\"revision\":1,\"value\":[1,2]}\n"),
        ("POST", "7", "2\n"),
        ("DELETE", "", "{}\n"),
    ] {
        let data = if body.is_empty() { vec![] } else { vec!["-d", body] };
        assert_eq!(curl(here, "/hop/beta/pm3/kv/a", &[&["-X", method][..], &data].concat()), answer, "{method}");
    }
    let _echo = far(there, &["echo", "8080"], "listening");
    let streamed = here.run(&["python3", "-c", FAR, "stream", "127.0.3.3", "/hop/beta/echo.example/x"]);
    assert_eq!(streamed.expect("it is content").trim(), "5 parts came back, each before the next was sent");
    let report = here.run(&["python3", "-c", CLIENT, "127.0.3.3", "/hop/beta/pm3", "beta"]).expect("it is content");
    assert_eq!(report.trim(), "calls 100, concurrent 64, errors as documented, lambda called, jrpc spoken");
    // A client cannot say that it is somebody else.
    let forged = ["-X", "POST", "-H", "P-Caller: node=evil;hops=1;uid=7;unit=evil"];
    curl(here, "/hop/beta/pm3/reload", &forged);
    let log = beta.cli_text(&["tail", "--no-follow"]).expect("the log");
    let line = log.lines().find(|line| line.contains("called") && line.contains("method=/reload"));
    let line = line.unwrap_or_else(|| panic!("no such line: {log}"));
    for part in ["uid=0", "unit=alpha", "basis=certificate", "curl"] {
        assert!(line.contains(part) && !line.contains("evil"), "{part} in {line}");
    }
    drop(alpha);
}

#[test]
fn a_hop_that_fails_has_its_status_and_the_command_its_exit_code() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let scenario = Scenario::new(2).expect("namespaces");
    let [alpha, mut beta] = joined(&scenario, "");
    let here = scenario.host(0);
    for (path, code) in [
        ("/hop/gamma/pm3/ping", "404"),
        ("/hop/beta/nowhere.example/ping", "404"),
        ("/hop/beta/pm3/nothing", "404"),
        ("/hop/beta/pm3/shutdown", "405"),
        ("/hop/beta", "400"),
    ] {
        assert_eq!(status(here, path, &[]), code, "{path}");
    }
    assert_eq!(status(here, "/hop/beta/pm3/ping", &["-H", "X-Forwarded-For: 127.0.0.1"]), "403");
    let said = alpha.cli(&["hop", "beta", "/ipinfo?ip=10.0.0.1", "-i"]).expect("it ran");
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.status.success() && text.contains("200 OK") && text.contains("\"desc\":\"private\""), "{text}");
    let posted = alpha.cli_text(&["hop", "beta", "/kv/b", "-X", "PUT", "-d", "{\"value\":1}"]).expect("done");
    assert!(posted.trim().parse::<u64>().is_ok_and(|revision| revision > 0), "{posted}");
    for (words, code, named) in [
        (["hop", "beta", "/nothing"], 1, "beta answered 404"),
        (["hop", "gamma", "/ping"], 1, "gamma answered 404"),
        (["hop", "beta", "nothing"], 2, "no http://HOST/PATH"),
    ] {
        let said = alpha.cli(&words).expect("it ran");
        let errors = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(said.status.code() == Some(code) && errors.contains(named), "{words:?}: {said:?}");
    }
    beta.kill9().expect("killed");
    let gone = || ["502", "504"].contains(&status(here, "/hop/beta/pm3/ping", &["--max-time", "60"]).as_str());
    eventually(PATIENCE, "a peer that is gone is a bad gateway", gone).expect("told");
}

#[test]
fn the_logs_of_all_nodes_are_read_as_one() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let scenario = Scenario::new(2).expect("namespaces");
    let [alpha, mut beta] = joined(&scenario, "");
    let here = scenario.host(0);
    let read = |words: &[&str]| alpha.cli(&[&["tail", "--mesh", "--json"][..], words].concat()).expect("it ran");
    let said = read(&["--no-follow", "-n", "1000"]);
    assert!(said.status.success() && said.stderr.is_empty(), "{said:?}");
    let lines: Vec<serde_json::Value> = String::from_utf8(said.stdout)
        .expect("text")
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    for node in ["alpha", "beta"] {
        let starting = lines.iter().filter(|line| line["node"] == node && line["msg"] == "starting");
        assert_eq!(starting.count(), 1, "{node}");
    }
    let times: Vec<u64> = lines.iter().map(|line| line["t"].as_u64().expect("a time")).collect();
    assert!(times.is_sorted(), "merged by time");
    let few = read(&["--no-follow", "-n", "3"]);
    assert_eq!(String::from_utf8_lossy(&few.stdout).lines().count(), 3);
    let followed = alpha.cli_running(&["tail", "--mesh", "-n", "0", "--contains", "/reload"]).expect("it starts");
    let called = |node: &str| {
        let lines = followed.log();
        let of_node = |line: &str| line.contains(&format!(" {node} pm3: called"));
        lines.lines().filter(|line| of_node(line)).count()
    };
    for node in ["alpha", "beta"] {
        let is_told = || {
            curl(here, &format!("/hop/{node}/pm3/reload"), &["-X", "POST"]);
            called(node) > 0
        };
        eventually(PATIENCE, "a line of the node comes live", is_told).expect("told");
    }
    beta.kill9().expect("killed");
    eventually(PATIENCE, "the node that ended is named", || followed.log().contains("beta tells nothing more"))
        .expect("named");
    let said = read(&["--no-follow"]);
    let errors = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.status.code() == Some(1) && errors.contains("beta does not answer"), "{errors}");
    assert!(String::from_utf8_lossy(&said.stdout).contains("\"node\":\"alpha\""));
}

#[test]
fn a_function_is_called_from_another_node() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let scenario = Scenario::new(2).expect("namespaces");
    let _agents = joined(&scenario, "");
    let (here, there) = (scenario.host(0), scenario.host(1));
    let function = far(there, &["function", "127.0.3.3"], "\n");
    let id = function.log().lines().next().expect("its id").trim().to_owned();
    let call = || curl(here, &format!("/lambda/{id}/a%20b"), &["-d", "{\"x\":1}"]);
    let mut answer = String::new();
    eventually(PATIENCE, "it is registered", || {
        answer = call();
        !answer.contains("not_found")
    })
    .expect("called");
    assert_eq!(answer, "{\"method\": \"a b\", \"told\": {\"x\": 1}}");
    drop(function);
    eventually(PATIENCE, "it is gone with its connection", || call().contains("\"code\":\"not_found\"")).expect("gone");
}
