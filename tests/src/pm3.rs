//! The pm3 API of a whole agent: curl and a WebSocket client in Python drive it, and the log is followed.

mod attacks;
mod bus;
mod hop;

use integration_tests::agent::{Settings, TestAgent};
use integration_tests::gate;
use integration_tests::netns::NetNs;
use integration_tests::process::Process;
use integration_tests::wait::eventually;
use std::time::Duration;

const TOOLS: [&str; 5] = ["wg", "ip", "nsenter", "curl", "python3"];
const CLIENT: &str = include_str!("pm3/client.py");

fn start(host: &NetNs) -> TestAgent<'_> {
    let settings = Settings::new("alpha").expect("keys").addresses(&["10.80.0.1/24"]);
    TestAgent::start(host, settings).expect("it starts")
}

/// What the client stops, starts and scales.
fn start_sleeper(agent: &TestAgent<'_>) {
    agent.cli_text(&["start", "sleep 1000", "--name", "sleeper"]).expect("it is online");
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
fn curl_keeps_values_and_shows_the_certificate_of_a_node() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let agent = start(&host);
    assert!(curl(&host, "/kv/a%2Fb", &[]).contains("\"code\":\"not_found\""));
    assert_eq!(curl(&host, "/kv/a%2Fb", &["-X", "PUT", "-d", "{\"value\":{\"x\":1}}"]), "1\n");
    assert_eq!(curl(&host, "/kv/a%2Fb", &[]), "{\"revision\":1,\"value\":{\"x\":1}}\n");
    assert_eq!(curl(&host, "/kv", &[]), "[\"a/b\"]\n");
    assert_eq!(curl(&host, "/kv/a%2Fb", &["-X", "DELETE"]), "{}\n");
    // The certificate of the node, that of its authority, and the key of the first, in this order.
    let identity = agent.directory().join("state/identity/identity.pem");
    let identity = identity.to_str().expect("text");
    let tls = |more: &[&str]| {
        let words = ["curl", "-sS", "--max-time", "10", "--resolve", "pm3:443:127.0.3.3", "--cacert", identity];
        host.run(&[&words[..], more, &["https://pm3/ping"]].concat()).expect("curl is answered")
    };
    assert_eq!(tls(&["--cert", identity]), "\"alpha\"\n");
    assert_eq!(tls(&["--http1.1", "--cert", identity]), "\"alpha\"\n");
    assert!(tls(&["--cert", identity, "-H", "Via: 1.1 x"]).contains("\"code\":\"forbidden\""));
}

#[test]
fn a_virtual_host_serves_files_and_passes_on_to_a_real_nginx() {
    if !gate::root_and(&[&TOOLS[..], &["nginx"]].concat()) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let site = tempfile::tempdir().expect("a directory");
    let at = site.path().to_str().expect("text");
    std::fs::write(site.path().join("a.txt"), "0123456789").expect("ours");
    let nginx = format!(
        "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log; events {{}}\n\
         http {{ access_log off; client_body_temp_path {at}/body; proxy_temp_path {at}/proxy;\n\
         fastcgi_temp_path {at}/fastcgi; uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;\n\
         server {{ listen 127.0.0.1:8080; location / {{ return 200 \"$host $http_x_forwarded_for $request_uri\"; }} }} }}\n"
    );
    let file = site.path().join("nginx.conf");
    std::fs::write(&file, nginx).expect("ours");
    let mut command = host.command("nginx");
    command.arg("-c").arg(&file).arg("-e").arg(format!("{at}/start.log"));
    let mut nginx = Process::spawn("nginx", command).expect("installed");
    let accepts = || host.enter(|| std::net::TcpStream::connect("127.0.0.1:8080").is_ok()).unwrap_or(false);
    nginx.wait_for("it accepts", Duration::from_secs(20), accepts).expect("it starts");
    let table = format!(
        "[[gateway.host.\"example.org\".route]]\nupstream = [\"127.0.0.1:8080\"]\n\
         [[gateway.host.\"example.org\".route]]\npath = \"/files\"\nfiles = {at:?}\n"
    );
    let settings = Settings::new("alpha").expect("keys").addresses(&["10.80.0.1/24"]).table(&table);
    let _agent = TestAgent::start(&host, settings).expect("it starts");
    let get = |path: &str, more: &[&str]| {
        let url = format!("http://example.org{path}");
        let words = ["curl", "-sS", "--max-time", "10", "--path-as-is", "--resolve", "example.org:80:127.0.3.3"];
        host.run(&[&words[..], more, &[&url]].concat()).expect("curl is answered")
    };
    assert_eq!(get("/x?y=1", &["-H", "X-Forwarded-For: 192.0.2.1"]), "example.org 127.0.0.1 /x?y=1");
    assert_eq!(get("/files/a.txt", &["-r", "2-4"]), "234");
    assert!(get("/files/../files/a.txt", &[]).contains("\"code\":\"invalid_argument\""));
    assert!(get("/files/missing", &[]).contains("\"code\":\"not_found\""));
}

#[test]
fn a_client_written_from_the_document_speaks_websocket() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let agent = start(&host);
    start_sleeper(&agent);
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
    assert!(answer.contains("uid 65534 is not in gateway.caller.users"), "{answer}");
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

/// A real nginx on every address of port 80 in `host`, proxying to pm3; it keeps its files in `directory`.
fn nginx(host: &NetNs, directory: &std::path::Path) -> Process {
    let at = directory.display();
    let text = format!(
        "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log; events {{}}\n\
         http {{ access_log off; client_body_temp_path {at}/body; proxy_temp_path {at}/proxy;\n\
         fastcgi_temp_path {at}/fastcgi; uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;\n\
         server {{ listen 0.0.0.0:80; location / {{ return 200 nginx; }}\n\
         location /api/ {{ proxy_pass http://127.0.3.3/; proxy_set_header Host pm3; }} }} }}\n"
    );
    std::fs::write(directory.join("nginx.conf"), text).expect("a file of our own");
    let mut command = host.command("nginx");
    command.arg("-c").arg(directory.join("nginx.conf")).arg("-e").arg(directory.join("start.log"));
    let mut nginx = Process::spawn("nginx", command).expect("installed");
    let answers =
        || host.run(&["curl", "-sS", "--max-time", "10", "http://127.0.0.1/"]).is_ok_and(|text| text == "nginx");
    nginx.wait_for("it answers", Duration::from_secs(20), answers).expect("it starts");
    nginx
}

#[test]
fn nginx_on_every_address_and_pm3_work_on_one_host_in_either_order_of_starting() {
    if !gate::root_and(&[&TOOLS[..], &["nginx"]].concat()) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let first = nginx(&host, directory.path());
    let agent = start(&host);
    assert_eq!(curl(&host, "/ping", &[]), "\"alpha\"\n");
    drop(first);
    // The agent holds no address that keeps it from starting again.
    let _second = nginx(&host, directory.path());
    assert_eq!(curl(&host, "/ping", &[]), "\"alpha\"\n");
    let through = host.run(&["curl", "-sS", "--max-time", "10", "http://127.0.0.1/api/ping"]).expect("answered");
    assert!(through.contains("nginx is denied by gateway.caller.deny_programs"), "{through}");
    let status = agent.cli_text(&["status"]).expect("a status");
    assert!(status.contains("127.0.3.3:80 (steered)") && status.contains("callers by socket storage"), "{status}");
}

#[test]
fn a_call_that_changes_something_leaves_who_called_in_the_log() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let agent = start(&host);
    curl(&host, "/reload", &["-X", "POST"]);
    let log = agent.cli_text(&["tail", "--no-follow"]).expect("the log");
    let line = log.lines().find(|line| line.contains("called") && line.contains("method=/reload"));
    let line = line.unwrap_or_else(|| panic!("no such line: {log}"));
    let curl = gate::find_tool("curl").expect("it was just run");
    for part in [format!("exe={}", curl.display()), "basis=storage".to_owned(), "uid=0".to_owned(), "pid=".to_owned()] {
        assert!(line.contains(&part), "{part} in {line}");
    }
}
