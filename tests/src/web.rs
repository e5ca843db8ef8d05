//! The web API of a whole agent: who may, by the kernel's record and by the key; the clients of its document, unchanged; its page
//! in a real browser.

use std::path::{Path, PathBuf};
use std::process::Output;

use integration_tests::agent::{Settings, TestAgent};
use integration_tests::gate;
use integration_tests::netns::NetNs;
use serde_json::Value;

/// Debian's, which has the packages of the set-up.
const PYTHON: &str = "/usr/bin/python3";
const TOOLS: [&str; 5] = ["wg", "ip", "nsenter", "curl", "setpriv"];
const KEY: &str = "0123456789abcdef0123456789abcdef";
const NOBODY: [&str; 4] = ["setpriv", "--reuid", "65534", "--clear-groups"];

/// Status code and body of a request with curl.
fn curl(host: &NetNs, before: &[&str], path: &str, more: &[&str]) -> (u16, Value) {
    let url = format!("http://127.0.0.1:9615{path}");
    let words = [before, &["curl", "-sS", "--max-time", "10", "-w", "\n%{http_code}"], more, &[&url]].concat();
    let text = host.run(&words).expect("curl is answered");
    let (body, code) = text.rsplit_once('\n').expect("a code on its own line");
    (code.parse().expect("a number"), serde_json::from_str(body).expect("the answer is JSON"))
}

fn settings(web: &str) -> Settings {
    let settings = Settings::new("alpha").expect("keys").addresses(&["10.80.0.1/24"]);
    settings.table(&format!("[web]\nlisten = \"127.0.0.1:9615\"\n{web}"))
}

#[test]
fn root_needs_no_key_and_another_user_does() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("key");
    std::fs::write(&file, KEY).expect("written");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&file, mode).expect("it is ours");
    let _agent = TestAgent::start(&host, settings(&format!("api_key_file = {file:?}"))).expect("it starts");
    let (code, system) = curl(&host, &[], "/api/system", &[]);
    assert!(code == 200 && system["cpu"]["cores"].as_u64().is_some_and(|cores| cores > 0), "{system}");
    let (code, refused) = curl(&host, &NOBODY, "/api/system", &[]);
    assert_eq!((code, &refused["error"]["code"]), (401, &Value::from("UNAUTHORIZED")));
    let why = refused["error"]["message"].as_str().unwrap_or_default();
    assert!(why.contains("uid 65534 is not in gateway.caller.users"), "{why}");
    let bearer = format!("Authorization: Bearer {KEY}");
    let (code, system) = curl(&host, &NOBODY, "/api/system", &["-H", &bearer]);
    assert!(code == 200 && system["memory"]["total"].is_u64(), "{system}");
    let (code, _) = curl(&host, &[], "/api/system", &["-H", "X-API-Key: wrong"]);
    assert_eq!(code, 401, "a wrong key of root");
    let (code, _) = curl(&host, &[], "/api/system", &["-H", "Origin: https://evil.example"]);
    assert_eq!(code, 403, "a page of another origin in a browser of root");
}

#[test]
fn a_key_file_that_others_can_read_stops_the_start_and_is_named() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("key");
    std::fs::write(&file, KEY).expect("written");
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("it is ours");
    let agent = TestAgent::prepare(&host, settings(&format!("api_key_file = {file:?}"))).expect("prepared");
    let output: Output = agent.cli(&["config", "check"]).expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("web.api_key_file") && said.contains("chmod 600"), "{said}");
    assert!(!said.contains(KEY), "{said}");
}

/// A file of these tests, under its name in `directory`.
fn place(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    std::fs::write(&path, text).expect("a file of our own");
    path.display().to_string()
}

#[test]
fn the_python_client_of_the_document_runs_unchanged_and_every_answer_is_as_promised() {
    if !gate::root_and(&[&TOOLS[..], &["python3"]].concat()) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let _agent = TestAgent::start(&host, settings("")).expect("it starts");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let client = place(directory.path(), "client.py", include_str!("web/client.py"));
    let words = [PYTHON, "-c", include_str!("web/drive.py"), &client];
    let report = host.run(&words).expect("the client is content");
    assert!(
        report.starts_with("content: ")
            && report.contains("health_update, process_event, process_update, system_update"),
        "{report}"
    );
}

#[test]
fn the_javascript_client_of_the_document_runs_unchanged() {
    if !gate::root_and(&[&TOOLS[..], &["node"]].concat()) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let _agent = TestAgent::start(&host, settings("")).expect("it starts");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let client = place(directory.path(), "client.js", include_str!("web/client.js"));
    let driver = place(directory.path(), "drive.js", include_str!("web/drive.js"));
    let words = ["env", "NODE_PATH=/usr/share/nodejs", "node", &driver, &client];
    let report = host.run(&words).expect("the client is content");
    assert!(report.starts_with("{ processes: [], total: 0 }") && report.ends_with("content\n"), "{report}");
}

#[test]
fn the_curl_examples_of_the_document_run_unchanged() {
    if !gate::root_and(&[&TOOLS[..], &["node"]].concat()) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let _agent = TestAgent::start(&host, settings("")).expect("it starts");
    let report = host.run(&["sh", "-e", "-c", include_str!("web/client.sh")]).expect("curl is answered");
    let answers: Vec<Value> = report.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert_eq!(answers.len(), 5, "{report}");
    assert_eq!(answers[0], serde_json::json!({ "processes": [], "total": 0 }));
    assert_eq!(answers[1]["message"], "Process 'test-api' started successfully", "{report}");
    assert!(answers[2]["load"]["one"].is_number(), "{report}");
    assert_eq!(answers[3]["process"], "test-api", "{report}");
    assert_eq!(answers[4]["message"], "Process 'test-api' stopped successfully", "{report}");
}

/// Where a screenshot of the page stays after the test, to be looked at.
fn screenshot(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

fn browse(host: &NetNs, name: &str, key: &[&str]) {
    let picture = screenshot(name);
    let at = picture.display().to_string();
    let words = [&[PYTHON, "-c", include_str!("web/browser.py"), "http://127.0.0.1:9615/", &at][..], key].concat();
    let report = host.run(&words).expect("the page does what its user wants");
    assert_eq!(report, "content\n");
    assert!(std::fs::metadata(&picture).is_ok_and(|file| file.len() > 10_000), "a picture of the page");
}

const WEB_API: &str = "[process.web-api]\nscript = \"sh\"\nport = 3000\n\
                       args = [\"-c\", \"echo '<b>bold</b> is text'; exec sleep 1000\"]\n";

#[test]
fn the_page_shows_starts_and_stops_in_a_real_browser() {
    if !gate::root_and(&[&TOOLS[..], &["chromium", "python3"]].concat()) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let _agent = TestAgent::start(&host, settings(WEB_API)).expect("it starts");
    browse(&host, "web-page.png", &[]);
}

#[test]
fn the_page_asks_for_the_key_where_the_browser_is_not_trusted() {
    if !gate::root_and(&[&TOOLS[..], &["chromium", "python3"]].concat()) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("key");
    std::fs::write(&file, KEY).expect("written");
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("it is ours");
    let trusted = "[gateway.caller]\nusers = [\"daemon\"]\n";
    let web = format!("api_key_file = {file:?}\n{trusted}{WEB_API}");
    let _agent = TestAgent::start(&host, settings(&web)).expect("it starts");
    browse(&host, "web-page-key.png", &[KEY]);
}
