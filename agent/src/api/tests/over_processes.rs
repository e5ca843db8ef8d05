//! The web API's processes, over a supervisor on a fake host.

use std::net::SocketAddr;

use serde_json::{Value, json as value};

use super::over_web::{ask_at, root, serve};
use super::*;
use crate::api::web::Web;
use crate::pm3::caller::Caller;
use crate::process::platform::StartError;
use crate::process::testing::{self, Supervised};
use crate::sys::pidfd::Exit;

/// A listener whose every caller is `caller`, over a supervisor that supervises nothing yet.
pub(super) struct World {
    pub(super) address: SocketAddr,
    pub(super) supervised: Supervised,
    _fixture: Fixture,
    _web: Web,
}

impl World {
    pub(super) fn new(caller: Caller) -> Self {
        let supervised = testing::start();
        let fixture = Fixture::supervising(supervised.handle.clone());
        let (address, web) = serve(&fixture, caller);
        Self { address, supervised, _fixture: fixture, _web: web }
    }

    pub(super) async fn ask(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let text = if body.is_null() { String::new() } else { body.to_string() };
        self.send(method, path, "Content-Type: application/json\r\n", &text).await
    }

    async fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> (u16, Value) {
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}");
        let answer = ask_at(self.address, &format!("{head}Content-Length: {length}\r\n\r\n{body}")).await;
        let (code, body) = parts(&answer);
        (code, super::json(body))
    }

    pub(super) async fn get(&self, path: &str) -> (u16, Value) {
        self.ask("GET", path, &Value::Null).await
    }

    async fn refused(&self, method: &str, path: &str, body: &Value) -> (u16, String, Value) {
        let (code, answer) = self.ask(method, path, body).await;
        assert_eq!(answer["success"], false, "{answer}");
        (code, answer["error"]["code"].as_str().unwrap_or_default().to_owned(), answer)
    }
}

fn new_api() -> Value {
    value!({
        "name": "new-api", "script": "node", "args": ["app.js"], "port": "3001", "instances": 1,
        "env": { "NODE_ENV": "production", "API_TOKEN": "hidden" }
    })
}

#[tokio::test]
async fn a_process_lives_as_the_document_says() {
    let world = World::new(root());
    assert_eq!(world.get("/api/processes").await, (200, value!({ "processes": [], "total": 0 })));
    let (code, created) = world.ask("POST", "/api/processes", &new_api()).await;
    assert_eq!((code, &created["success"]), (201, &true.into()), "{created}");
    assert_eq!(created["message"], "Process 'new-api' started successfully");
    assert_eq!((&created["process"]["name"], &created["process"]["port"]), (&"new-api".into(), &3001.into()));
    let (_, list) = world.get("/api/processes").await;
    let entry = &list["processes"][0];
    let members: Vec<&str> = entry.as_object().expect("an object").keys().map(String::as_str).collect();
    let documented = ["cpu", "health", "id", "memory", "name", "pid", "port", "restarts", "status", "uptime"];
    assert_eq!((list["total"].as_u64(), members), (Some(1), documented.to_vec()), "{list}");
    let (code, details) = world.get("/api/processes/new-api").await;
    assert_eq!(
        (code, &details["config"]["args"], &details["config"]["script"]),
        (200, &value!(["app.js"]), &"node".into())
    );
    let env = &details["config"]["env"];
    assert_eq!(env, &value!({ "NODE_ENV": "production", "API_TOKEN": "***" }), "secrets are hidden");
    let by_id = world.get(&format!("/api/processes/{}", details["id"])).await.1;
    assert_eq!(by_id["name"], "new-api");
    let (code, restarted) = world.ask("POST", "/api/processes/new-api/restart", &Value::Null).await;
    assert_eq!((code, &restarted["message"]), (200, &"Process 'new-api' restarted successfully".into()));
    let (code, stopped) = world.ask("DELETE", "/api/processes/new-api", &Value::Null).await;
    assert_eq!(
        (code, stopped),
        (200, value!({ "success": true, "message": "Process 'new-api' stopped successfully" }))
    );
    let (_, kept) = world.get("/api/processes").await;
    assert_eq!((&kept["total"], &kept["processes"][0]["status"]), (&1.into(), &"stopped".into()), "{kept}");
    assert_eq!(world.ask("POST", "/api/processes/new-api/start", &Value::Null).await.0, 200);
    let (code, deleted) = world.ask("DELETE", "/api/processes/new-api?purge=true", &Value::Null).await;
    assert_eq!((code, &deleted["message"]), (200, &"Process 'new-api' deleted successfully".into()));
    assert_eq!(world.get("/api/processes").await.1["total"], 0);
    assert!(world.supervised.host.running().is_empty());
}

#[tokio::test]
async fn the_list_shows_what_just_changed() {
    let world = World::new(root());
    for round in 0..20 {
        let name = format!("p{round}");
        world.ask("POST", "/api/processes", &value!({ "name": name, "script": "x" })).await;
        assert_eq!(world.get("/api/processes").await.1["total"], round + 1, "a list from before the change");
    }
}

#[tokio::test]
async fn a_restart_takes_a_port_as_number_or_text_and_a_number_of_instances() {
    let world = World::new(root());
    world.ask("POST", "/api/processes", &new_api()).await;
    for port in [value!("3002"), value!(3003)] {
        let (code, answer) = world.ask("POST", "/api/processes/new-api/restart", &value!({ "port": port })).await;
        assert_eq!(code, 200, "{answer}");
        let now = world.get("/api/processes/new-api").await.1["port"].to_string();
        assert_eq!(now, port.to_string().trim_matches('"'));
    }
    let body = value!({ "port": "3002-3003", "instances": 2 });
    assert_eq!(world.ask("POST", "/api/processes/new-api/restart", &body).await.0, 200);
    let (_, details) = world.get("/api/processes/new-api").await;
    assert_eq!(details["instances"].as_array().map(Vec::len), Some(2), "{details}");
    assert_eq!(world.get("/api/processes/new-api/health").await.1["health"]["status"], "none");
    assert_eq!(world.get("/api/status").await.1["ports"], value!({ "allocated": [3002, 3003], "total": 2 }));
}

#[tokio::test]
async fn what_is_not_there_is_named_with_what_is() {
    let world = World::new(root());
    world.ask("POST", "/api/processes", &new_api()).await;
    for (method, path) in [
        ("GET", "/api/processes/nonexistent"),
        ("DELETE", "/api/processes/nonexistent"),
        ("POST", "/api/processes/nonexistent/restart"),
        ("POST", "/api/processes/nonexistent/reload"),
        ("GET", "/api/processes/nonexistent/health"),
        ("GET", "/api/logs/nonexistent"),
        ("GET", "/api/processes/all"),
    ] {
        let (code, name, answer) = world.refused(method, path, &Value::Null).await;
        assert_eq!((code, name.as_str()), (404, "PROCESS_NOT_FOUND"), "{path}: {answer}");
        assert_eq!(answer["error"]["details"]["available_processes"], value!(["new-api"]), "{path}");
    }
    let (_, _, answer) = world.refused("GET", "/api/processes/nonexistent", &Value::Null).await;
    let documented = value!({
        "success": false,
        "error": {
            "code": "PROCESS_NOT_FOUND", "message": "Process 'nonexistent' not found",
            "details": { "requested_process": "nonexistent", "available_processes": ["new-api"] }
        }
    });
    assert_eq!(answer, documented);
}

#[tokio::test]
async fn bad_bodies_are_refused_by_what_is_wrong_with_them() {
    let world = World::new(root());
    let mut unknown = new_api();
    unknown["instence"] = 2.into();
    let (code, name, answer) = world.refused("POST", "/api/processes", &unknown).await;
    assert_eq!((code, name.as_str()), (400, "INVALID_CONFIG"));
    assert!(answer.to_string().contains("instence"), "{answer}");
    for wrong in [
        value!({ "name": "a" }),
        value!({ "script": "x" }),
        value!({ "name": "a b", "script": "x" }),
        value!({ "name": "a", "script": "x", "port": "http" }),
        value!({ "name": "a", "script": "x", "instances": 0 }),
        value!([1]),
    ] {
        assert_eq!(world.refused("POST", "/api/processes", &wrong).await.0, 400, "{wrong}");
    }
    assert_eq!(world.refused("POST", "/api/processes", &Value::Null).await.1, "INVALID_REQUEST");
    let json = "Content-Type: application/json\r\n";
    let broken = world.send("POST", "/api/processes", json, "{\"name\":").await;
    assert_eq!((broken.0, &broken.1["error"]["code"]), (400, &"CONFIG_PARSE_ERROR".into()));
    let form = "Content-Type: application/x-www-form-urlencoded\r\n";
    let wrong_type = world.send("POST", "/api/processes", form, &new_api().to_string()).await;
    assert_eq!((wrong_type.0, &wrong_type.1["error"]["code"]), (415, &"UNSUPPORTED_MEDIA_TYPE".into()));
    let huge = format!("{{\"name\":\"{}\"}}", "x".repeat(10 * 1024 * 1024));
    let too_large = world.send("POST", "/api/processes", json, &huge).await;
    assert_eq!((too_large.0, &too_large.1["error"]["code"]), (413, &"PAYLOAD_TOO_LARGE".into()));
    assert_eq!(world.get("/api/processes").await.1["total"], 0, "nothing is half done");
}

#[tokio::test]
async fn conflicts_and_failures_have_their_codes() {
    let world = World::new(root());
    world.ask("POST", "/api/processes", &new_api()).await;
    assert_eq!(world.refused("POST", "/api/processes", &new_api()).await.1, "PROCESS_ALREADY_EXISTS");
    let running = world.refused("POST", "/api/processes/new-api/start", &Value::Null).await;
    assert_eq!((running.0, running.1.as_str()), (409, "PROCESS_ALREADY_RUNNING"));
    world.supervised.host.use_port(8080);
    let taken = world.refused("POST", "/api/processes", &value!({ "name": "b", "script": "x", "port": 8080 })).await;
    assert_eq!((taken.0, taken.1.as_str()), (409, "PORT_IN_USE"), "{}", taken.2);
    let missing = StartError { why: "script ./gone does not exist".to_owned(), permanent: true };
    world.supervised.host.refuse(Some(missing));
    let failed = world.refused("POST", "/api/processes", &value!({ "name": "c", "script": "./gone" })).await;
    assert_eq!((failed.0, failed.1.as_str()), (400, "PROCESS_START_FAILED"));
    assert!(failed.2.to_string().contains("./gone"), "{}", failed.2);
}

#[tokio::test]
async fn queries_are_checked() {
    let world = World::new(root());
    world.ask("POST", "/api/processes", &new_api()).await;
    for query in ["lines=0", "lines=x", "lines=10001", "type=out", "lines=1&lines=2", "since=1", "lines=%zz"] {
        let (code, _, answer) = world.refused("GET", &format!("/api/logs/new-api?{query}"), &Value::Null).await;
        assert_eq!(code, 400, "{query}: {answer}");
    }
    assert_eq!(world.refused("DELETE", "/api/processes/new-api?purge=maybe", &Value::Null).await.0, 400);
    let (code, logs) = world.get("/api/logs/new-api?lines=100&type=stdout").await;
    assert_eq!((code, logs), (200, value!({ "logs": [], "total_lines": 0, "process": "new-api" })));
}

#[tokio::test]
async fn a_namespace_can_be_listed_alone() {
    let world = World::new(root());
    world.ask("POST", "/api/processes", &new_api()).await;
    world.ask("POST", "/api/processes", &value!({ "name": "b", "script": "x", "namespace": "back-end" })).await;
    let (code, list) = world.get("/api/processes?namespace=back%2Dend").await;
    assert_eq!((code, &list["total"], &list["processes"][0]["name"]), (200, &1.into(), &"b".into()), "{list}");
    assert_eq!(world.get("/api/processes?namespace=none").await.1, value!({ "processes": [], "total": 0 }));
}

#[tokio::test]
async fn a_local_caller_that_is_not_root_may_stop_and_not_define() {
    let caller = Caller { uid: Some(33), ..root() };
    let world = World::new(caller);
    let (code, name, answer) = world.refused("POST", "/api/processes", &new_api()).await;
    assert_eq!((code, name.as_str()), (403, "PERMISSION_DENIED"), "{answer}");
    let definition = serde_json::from_value(new_api()).expect("a definition");
    world.supervised.handle.create(definition).await.expect("made");
    assert_eq!(world.ask("DELETE", "/api/processes/new-api", &Value::Null).await.0, 200);
}

#[tokio::test]
async fn a_process_that_ended_shows_in_the_list() {
    let world = World::new(root());
    let body = value!({ "name": "once", "script": "x", "autorestart": false });
    world.ask("POST", "/api/processes", &body).await;
    let cgroup = world.supervised.host.running().pop().expect("it runs");
    world.supervised.host.end(&cgroup, Exit::Code(3));
    let mut changes = world.supervised.handle.changes();
    let is_over = |snapshot: &Arc<crate::process::view::Snapshot>| snapshot.processes[0].pid.is_none();
    changes.wait_for(is_over).await.expect("it ends");
    let entry = world.get("/api/processes").await.1["processes"][0].clone();
    assert_eq!((&entry["pid"], &entry["uptime"]), (&Value::Null, &0.into()), "{entry}");
}

#[tokio::test]
async fn an_agent_that_supervises_nothing_says_why() {
    let fixture = Fixture::new();
    let (address, _web) = serve(&fixture, root());
    let head = "POST /api/processes/x/stop HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let answer = ask_at(address, head).await;
    assert_eq!(parts(&answer).0, 503, "{answer}");
    assert!(answer.contains("NOT_READY") && answer.contains("this is a test"), "{answer}");
}
