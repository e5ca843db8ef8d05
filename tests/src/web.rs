//! The web API of a whole agent, as curl sees it: who may, by the kernel's record and by the key.

use std::process::Output;

use integration_tests::agent::{Settings, TestAgent};
use integration_tests::gate;
use integration_tests::netns::NetNs;
use serde_json::Value;

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
