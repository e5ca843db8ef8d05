//! The pm3 API of a whole agent: curl and a WebSocket client in Python drive it, and the log is followed.

use integration_tests::agent::{Settings, TestAgent};
use integration_tests::gate;
use integration_tests::netns::NetNs;
use integration_tests::wait::eventually;
use std::time::Duration;

const TOOLS: [&str; 5] = ["wg", "ip", "nsenter", "curl", "python3"];
const CLIENT: &str = include_str!("pm3/client.py");

fn start(host: &NetNs) -> TestAgent<'_> {
    let settings = Settings::new("alpha").expect("keys").addresses(&["10.80.0.1/24"]);
    TestAgent::start(host, settings).expect("it starts")
}

/// What curl prints for `path` of `http://pm3`.
fn curl(host: &NetNs, path: &str, more: &[&str]) -> String {
    let url = format!("http://pm3{path}");
    let words = [&["curl", "-sS", "--max-time", "10", "--resolve", "pm3:80:127.0.3.3"][..], more, &[&url]].concat();
    host.run(&words).expect("curl is answered")
}

#[test]
fn curl_drives_every_method_as_the_document_says() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let agent = start(&host);
    assert_eq!(curl(&host, "/ping", &[]), "\"alpha\"\n");
    assert_eq!(curl(&host, "/ping", &["--http2-prior-knowledge"]), "\"alpha\"\n");
    assert!(curl(&host, "/version", &[]).starts_with("\"v"), "a version");
    let json = |text: String| {
        serde_json::from_str::<serde_json::Value>(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    };
    assert!(json(curl(&host, "/system", &[]))["totalmem"].as_u64().is_some_and(|bytes| bytes > 0));
    assert_eq!(json(curl(&host, "/peers", &[]))[0]["host"], "alpha");
    assert_eq!(json(curl(&host, "/peers/alive", &[]))[0]["me"], true);
    assert_eq!(json(curl(&host, "/ipinfo?ip=127.0.0.1", &[]))["desc"], "loopback");
    assert_eq!(json(curl(&host, "/lambda", &[])), serde_json::json!({}));
    assert_eq!(json(curl(&host, "/reload", &["-X", "POST"]))["done"][0], "nothing changed");
    assert!(curl(&host, "/debug/headers", &[]).contains("user-agent: [curl/"));
    assert!(curl(&host, "/tail", &["-d", "{\"domain\":\"app\"}"]).contains("\"msg\":\"starting\""));
    assert!(json(curl(&host, "/session", &[]))["sessions"]["127.0.0.1"]["num_reqs"].as_u64().is_some_and(|n| n > 5));
    let token = json(curl(&host, "/sign", &["-d", "{\"url\":\"http://pm3/version\"}"]));
    let forwarded = ["-H", "X-Forwarded-For: 127.0.0.1"];
    assert!(curl(&host, "/version", &forwarded).contains("\"code\":\"forbidden\""));
    let signed = format!("/version?psn={}", token.as_str().expect("a signature"));
    assert!(curl(&host, &signed, &forwarded).starts_with("\"v"));
    assert!(agent.cli_text(&["tail", "--no-follow", "--domain", "app"]).expect("the log").contains("app: starting"));
    assert_eq!(curl(&host, "/shutdown", &["-X", "POST", "-o", "/dev/null", "-w", "%{http_code}"]), "200");
}

#[test]
fn a_client_written_from_the_document_speaks_websocket() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let _agent = start(&host);
    let report = host.run(&["python3", "-c", CLIENT, "127.0.3.3"]).expect("the client is content");
    assert_eq!(report.trim(), "calls 100, concurrent 64, errors as documented, lambda called, jrpc spoken");
}

#[test]
fn a_user_that_is_not_trusted_and_another_namespace_are_external() {
    if !gate::root_and(&["wg", "ip", "nsenter", "curl", "setpriv"]) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let _agent = start(&host);
    let nobody = [
        "setpriv",
        "--reuid",
        "65534",
        "--clear-groups",
        "curl",
        "-sS",
        "--resolve",
        "pm3:80:127.0.3.3",
        "http://pm3/ping",
    ];
    let answer = host.run(&nobody).expect("refused with an answer");
    assert!(answer.contains("uid 65534 is not trusted"), "{answer}");
    let other = NetNs::new().expect("a namespace");
    integration_tests::netns::veth((&host, "eth0", &["192.0.2.1/24"]), (&other, "eth0", &["192.0.2.2/24"]))
        .expect("joined");
    other.run(&["ip", "route", "add", "10.80.0.1/32", "via", "192.0.2.1"]).expect("a route");
    let words = ["curl", "-sS", "--max-time", "10", "--resolve", "pm3:80:10.80.0.1", "http://pm3/ping"];
    let reached = || other.run(&words).err().map(|error| format!("{error:#}")).unwrap_or_default();
    eventually(Duration::from_secs(20), "the connection is closed without an answer", || {
        reached().contains("Empty reply from server")
    })
    .expect("closed");
}
