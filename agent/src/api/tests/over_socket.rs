//! WebSocket subscribers: the four kinds of message, who may, and one that does not read.

use futures_util::StreamExt as _;
use serde_json::{Value, json as value};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::over_processes::World;
use super::over_web::root;
use crate::pm3::caller::Caller;
use crate::process::handle::Target;

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn connect(world: &World, headers: &[(&'static str, &str)]) -> Result<Socket, tungstenite::Error> {
    let mut request = format!("ws://localhost:{}/ws", world.address.port()).into_client_request()?;
    for (name, text) in headers {
        request.headers_mut().insert(*name, text.parse().expect("a header"));
    }
    // `localhost` may be ::1 first, where nobody listens.
    let stream = TcpStream::connect(world.address).await.map_err(tungstenite::Error::Io)?;
    let connected = tokio_tungstenite::client_async(request, MaybeTlsStream::Plain(stream)).await;
    connected.map(|(socket, _response)| socket)
}

/// The data of the next message of this kind.
async fn next(socket: &mut Socket, kind: &str) -> Value {
    let waiting = async {
        loop {
            let message = socket.next().await.expect("the socket is open").expect("a frame");
            let Message::Text(text) = message else { continue };
            let message: Value = serde_json::from_str(&text).expect("JSON");
            if message["type"] == kind {
                return message["data"].clone();
            }
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), waiting).await.expect("it comes in time")
}

fn members(data: &Value) -> Vec<&str> {
    data.as_object().expect("an object").keys().map(String::as_str).collect()
}

#[tokio::test]
async fn a_subscriber_is_told_what_there_is_and_what_happens() {
    let world = World::new(root());
    world.ask("POST", "/api/processes", &value!({ "name": "web-api", "script": "x" })).await;
    let mut socket = connect(&world, &[]).await.expect("agreed");
    let process = next(&mut socket, "process_update").await;
    assert_eq!(members(&process), ["cpu", "id", "memory", "name", "pid", "status", "timestamp"]);
    assert_eq!(process["name"], "web-api");
    let system = next(&mut socket, "system_update").await;
    assert_eq!(members(&system), ["cpu", "load", "memory", "timestamp"]);
    assert!(system["load"]["one"].is_number() && system["memory"]["used"].is_u64(), "{system}");
    world.ask("POST", "/api/processes", &value!({ "name": "new-api", "script": "x" })).await;
    let event = next(&mut socket, "process_event").await;
    assert_eq!((&event["process"], members(&event)), (&"new-api".into(), vec!["event", "process", "timestamp"]));
    loop {
        let update = next(&mut socket, "process_update").await;
        if update["name"] == "new-api" && update["pid"].is_number() {
            break;
        }
    }
    world.ask("DELETE", "/api/processes/new-api?purge=true", &Value::Null).await;
    loop {
        let event = next(&mut socket, "process_event").await;
        if event["event"] == "deleted" {
            break;
        }
    }
}

#[tokio::test]
async fn every_subscriber_gets_every_change() {
    let world = World::new(root());
    let mut sockets = Vec::new();
    for _ in 0..50 {
        sockets.push(connect(&world, &[]).await.expect("agreed"));
    }
    world.ask("POST", "/api/processes", &value!({ "name": "new-api", "script": "x" })).await;
    for socket in &mut sockets {
        assert_eq!(next(socket, "process_event").await["process"], "new-api");
    }
}

#[tokio::test]
async fn a_page_of_another_origin_and_a_stranger_may_not_subscribe() {
    let world = World::new(root());
    let status = |refused: Result<Socket, tungstenite::Error>| match refused {
        Err(tungstenite::Error::Http(response)) => response.status().as_u16(),
        other => panic!("{other:?}"),
    };
    assert_eq!(status(connect(&world, &[("origin", "https://evil.example")]).await), 403);
    let own = format!("http://localhost:{}", world.address.port());
    connect(&world, &[("origin", &own)]).await.expect("our own page may");
    let strangers = World::new(Caller::unknown());
    assert_eq!(status(connect(&strangers, &[]).await), 401);
}

#[tokio::test]
async fn what_is_no_upgrade_is_refused() {
    let world = World::new(root());
    let (code, answer) = world.get("/ws").await;
    assert_eq!((code, &answer["error"]["code"]), (400, &"INVALID_REQUEST".into()), "{answer}");
}

/// A socket whose client side has next to no room for what it does not read.
async fn connect_narrow(world: &World) -> Socket {
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("its own");
    let stream = socket.connect(world.address).await.expect("connected");
    let url = format!("ws://localhost:{}/ws", world.address.port());
    tokio_tungstenite::client_async(url, MaybeTlsStream::Plain(stream)).await.expect("agreed").0
}

#[tokio::test]
async fn who_does_not_keep_up_is_told_and_gets_everything_anew() {
    let world = World::new(root());
    for number in 0..60 {
        let name = format!("{}{number}", "n".repeat(50));
        world.ask("POST", "/api/processes", &value!({ "name": name, "script": "x" })).await;
    }
    let mut slow = connect_narrow(&world).await;
    let mut fast = connect(&world, &[]).await.expect("agreed");
    // Each round is a batch that the fast one has read; the slow one reads none of them.
    for round in 0..100 {
        let (result, wanted) = match round % 2 {
            0 => (world.supervised.handle.stop(&Target::All).await, &["stopped"][..]),
            _ => (world.supervised.handle.start(&Target::All).await, &["starting", "online"][..]),
        };
        result.expect("done");
        let is_wanted = |update: Value| update["status"].as_str().is_some_and(|status| wanted.contains(&status));
        while !is_wanted(next(&mut fast, "process_update").await) {}
    }
    let resync = loop {
        let event = next(&mut slow, "process_event").await;
        if event["event"] == "resync" {
            break event;
        }
    };
    assert!(resync["missed"].as_u64().is_some_and(|missed| missed > 0), "{resync}");
    assert!(next(&mut slow, "process_update").await["name"].is_string(), "everything follows");
}
