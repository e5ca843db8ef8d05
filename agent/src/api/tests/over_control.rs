//! The control socket over HTTP/1.1: answers, commands, bounds, and who owns the socket file.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::api::control::SocketError;
use crate::api::{http, methods};

async fn ask(fixture: &Fixture, method: &str, path: &str, body: &str) -> (u16, serde_json::Value) {
    let (directory, _control) = fixture.control();
    let answer = raw(directory.path(), request(method, path, body)).await;
    let (code, body) = parts(&answer);
    (code, json(body))
}

#[tokio::test]
async fn ping_and_version_answer_like_pm3() {
    let fixture = Fixture::new();
    assert_eq!(ask(&fixture, "GET", "/ping", "").await, (200, serde_json::json!("alpha")));
    let (code, version) = ask(&fixture, "POST", "/version", "").await;
    assert_eq!((code, version.as_str()), (200, Some(concat!("v", env!("CARGO_PKG_VERSION")))));
}

#[tokio::test]
async fn peers_join_the_device_and_the_counters_exactly() {
    let (code, list) = ask(&Fixture::new(), "GET", "/status/peers", "").await;
    assert_eq!((code, &list["schema"]), (200, &serde_json::json!(1)));
    let [beta, gamma] = list["peers"].as_array().expect("a list").as_slice() else { panic!("two peers: {list}") };
    assert_eq!((&beta["name"], &beta["state"]), (&serde_json::json!("beta"), &serde_json::json!("connected")));
    assert_eq!(beta["traffic"]["rx"]["bytes"], serde_json::json!(u64::MAX));
    assert_eq!(beta["wireguard_tx_bytes"], serde_json::json!(92));
    assert_eq!((&gamma["state"], &gamma["traffic"]), (&serde_json::json!("never"), &serde_json::Value::Null));
}

#[tokio::test]
async fn the_status_tells_what_is_waited_for_and_what_is_wrong() {
    let fixture = Fixture::new();
    fixture.wireguard.send_modify(|status| Arc::make_mut(status).errors.push("port 51820 is in use".to_owned()));
    let (_, degraded) = ask(&fixture, "GET", "/status", "").await;
    assert_eq!(degraded["state"], "degraded");
    assert_eq!(degraded["problems"], serde_json::json!(["wireguard: port 51820 is in use"]));
    let _blocker = fixture.sources.readiness.block("dns");
    let (_, starting) = ask(&fixture, "GET", "/status", "").await;
    assert_eq!((&starting["state"], &starting["waiting_for"]), (&"starting".into(), &serde_json::json!(["dns"])));
}

#[tokio::test]
async fn pretty_is_indented() {
    let fixture = Fixture::new();
    let (directory, _control) = fixture.control();
    let answer = raw(directory.path(), request("GET", "/status?pretty", "")).await;
    assert!(parts(&answer).1.starts_with("{\n  \"schema\": 1,\n"), "{answer}");
}

#[tokio::test]
async fn a_command_reaches_the_agent_and_its_answer_the_caller() {
    let mut fixture = Fixture::new();
    let (directory, _control) = fixture.control();
    let asked = tokio::join!(raw(directory.path(), request("POST", "/reload", "{}")), async {
        let Some(Command::Reload(reply)) = fixture.commands.recv().await else { panic!("a reload") };
        reply.send(Ok(vec!["added peer delta".to_owned()])).expect("the caller waits");
    });
    assert_eq!(json(parts(&asked.0).1), serde_json::json!({ "schema": 1, "done": ["added peer delta"] }));
}

#[tokio::test]
async fn a_command_that_fails_says_why() {
    let mut fixture = Fixture::new();
    let (directory, _control) = fixture.control();
    let asked = tokio::join!(raw(directory.path(), request("POST", "/down", "")), async {
        let Some(Command::Down(reply)) = fixture.commands.recv().await else { panic!("a down") };
        reply.send(Err(CommandError("link weft0 is busy".to_owned()))).expect("the caller waits");
    });
    let (code, body) = parts(&asked.0);
    assert_eq!((code, json(body)), (500, serde_json::json!({ "error": "link weft0 is busy", "code": "failed" })));
}

#[tokio::test]
async fn a_command_during_another_is_told_to_come_back() {
    let fixture = Fixture::new();
    let (reply, _answer) = oneshot::channel();
    fixture.sources.commands.try_send(Command::Reload(reply)).expect("the queue is empty");
    let (code, body) = ask(&fixture, "POST", "/reload", "").await;
    assert_eq!((code, &body["code"]), (429, &"busy".into()));
}

#[tokio::test]
async fn a_command_to_an_agent_that_stops_is_not_ready() {
    let mut fixture = Fixture::new();
    fixture.commands.close();
    let (code, body) = ask(&fixture, "POST", "/shutdown", "").await;
    assert_eq!((code, &body["code"]), (503, &"not_ready".into()));
}

#[tokio::test]
async fn arguments_that_mean_nothing_are_refused() {
    for (body, named) in [("{\"force\":true}", "\"force\""), ("[]", "JSON object"), ("\u{fffd}", "JSON object")] {
        let (code, answer) = ask(&Fixture::new(), "POST", "/reload", body).await;
        let text = answer["error"].as_str().unwrap_or_default();
        assert!(code == 400 && text.contains(named), "{body}: {code} {answer}");
    }
}

#[tokio::test]
async fn what_does_not_exist_names_what_does() {
    let (code, answer) = ask(&Fixture::new(), "GET", "/nothing", "").await;
    assert!(code == 404 && answer["error"].as_str().is_some_and(|text| text.contains("/ping")), "{answer}");
    let (code, answer) = ask(&Fixture::new(), "GET", "/down", "").await;
    assert_eq!((code, &answer["code"]), (405, &"method_not_allowed".into()));
}

#[tokio::test]
async fn input_that_is_too_large_is_refused_and_not_read() {
    let fixture = Fixture::new();
    let (directory, _control) = fixture.control();
    let large = "x".repeat(methods::MAX_BODY_BYTES + 1);
    let body = raw(directory.path(), request("POST", "/reload", &large)).await;
    assert_eq!(parts(&body).0, 413, "{body}");
    let head = format!("GET /ping HTTP/1.1\r\nHost: x\r\nX-Large: {}\r\n\r\n", "x".repeat(http::MAX_HEAD_BYTES));
    let head = raw(directory.path(), head.as_bytes()).await;
    assert_eq!(parts(&head).0, 431, "{head}");
}

#[tokio::test]
async fn malformed_input_ends_the_connection_and_nothing_else() {
    let fixture = Fixture::new();
    let (directory, _control) = fixture.control();
    for bytes in [
        b"\0\0\0\0\r\n\r\n".as_slice(),
        b"GET\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        raw(directory.path(), bytes).await;
    }
    let answer = raw(directory.path(), request("GET", "/ping", "")).await;
    assert_eq!(parts(&answer), (200, "\"alpha\"\n"));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_too_little_is_cut_off() {
    let fixture = Fixture::new();
    let (directory, _control) = fixture.control();
    for beginning in ["", "P", "GET /ping HTTP/1.1\r\nHost:"] {
        let started = tokio::time::Instant::now();
        let stream = UnixStream::connect(control::path(directory.path())).await.expect("connected");
        exchange(stream, beginning.as_bytes()).await;
        assert!(started.elapsed() <= http::HEAD_TIMEOUT * 2, "{beginning:?} stayed for {:?}", started.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_comes_is_not_waited_for() {
    let fixture = Fixture::new();
    let (directory, _control) = fixture.control();
    let head = b"POST /reload HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 9\r\n\r\n{";
    let answer = raw(directory.path(), head).await;
    assert_eq!(parts(&answer).0, 504, "{answer}");
}

#[tokio::test]
async fn more_clients_than_there_is_room_for_wait_their_turn() {
    let fixture = Fixture::new();
    let (directory, _control) = fixture.control();
    let path = control::path(directory.path());
    let mut idle = Vec::new();
    for _ in 0..http::MAX_CONNECTIONS {
        idle.push(UnixStream::connect(&path).await.expect("connected"));
    }
    let waiting = tokio::join!(raw(directory.path(), request("GET", "/ping", "")), async { idle.clear() });
    assert_eq!(parts(&waiting.0), (200, "\"alpha\"\n"));
}

#[tokio::test]
async fn those_who_may_not_get_one_answer_on_every_path() {
    use axum::body::Body;
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;
    let ask = async |content_type: &str| {
        let request = axum::http::Request::post("/down").header("content-type", content_type).body(Body::empty());
        control::refused_for_tests().oneshot(request.expect("a request")).await.expect("it never fails")
    };
    let response = ask("application/json").await;
    assert_eq!(response.status(), 403);
    let body = response.into_body().collect().await.expect("whole").to_bytes();
    assert!(String::from_utf8_lossy(&body).contains("join group weft"), "{body:?}");
    assert_eq!(ask("application/grpc").await.headers()["grpc-status"], "7");
}

#[tokio::test]
async fn a_second_agent_is_told_who_has_the_directory() {
    let fixture = Fixture::new();
    let (directory, control) = fixture.control();
    let error = control::bind(directory.path()).expect_err("it is taken").to_string();
    assert!(error.contains(&format!("(pid {})", std::process::id())), "{error}");
    assert!(error.contains("weft.sock") && error.contains("run_dir"), "{error}");
    drop(control);
    control::bind(directory.path()).expect("it is free again");
}

#[tokio::test]
async fn what_a_dead_agent_left_is_replaced() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    drop(std::os::unix::net::UnixListener::bind(control::path(directory.path())).expect("bound"));
    fs::write(directory.path().join("weft.lock"), "999999\n").expect("written");
    let fixture = Fixture::new();
    let _control = control::bind(directory.path()).expect("bound").serve(Arc::clone(&fixture.sources), fixture.stop());
    let answer = raw(directory.path(), request("GET", "/ping", "")).await;
    assert_eq!(parts(&answer).0, 200, "{answer}");
}

#[tokio::test]
async fn a_file_that_is_no_socket_is_left_alone() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    fs::write(control::path(directory.path()), "precious").expect("written");
    let error = control::bind(directory.path()).expect_err("in the way");
    assert!(matches!(error, SocketError::NotASocket(_)), "{error}");
    assert_eq!(fs::read_to_string(control::path(directory.path())).expect("still there"), "precious");
}

#[tokio::test]
async fn the_socket_is_closed_to_others_and_gone_at_the_end() {
    let fixture = Fixture::new();
    let (directory, control) = fixture.control();
    let mode = fs::metadata(control::path(directory.path())).expect("there").permissions().mode() & 0o777;
    assert!(mode == 0o600 || mode == 0o660, "{mode:o}");
    drop(control);
    assert!(!control::path(directory.path()).exists());
}

#[tokio::test]
async fn a_directory_whose_socket_would_be_too_long_is_named() {
    let long = std::path::PathBuf::from("/tmp").join("x".repeat(120));
    let error = control::bind(&long).expect_err("too long").to_string();
    assert!(error.contains("run_dir is too long"), "{error}");
    assert!(!long.exists(), "nothing was made");
}

#[tokio::test]
async fn a_stop_lets_answers_finish_and_closes() {
    let mut fixture = Fixture::new();
    let (directory, _control) = fixture.control();
    let asked = request("POST", "/shutdown", "");
    let shutdown = std::mem::take(&mut fixture.shutdown);
    let answer = tokio::join!(raw(directory.path(), asked), async {
        let Some(Command::Shutdown(reply)) = fixture.commands.recv().await else { panic!("a shutdown") };
        reply.send(Ok(Vec::new())).expect("the caller waits");
        assert!(shutdown.drain(std::time::Duration::from_secs(5)).await, "the listener ended");
    });
    assert_eq!(parts(&answer.0).0, 200, "{}", answer.0);
}
