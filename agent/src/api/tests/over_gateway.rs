//! The gateway over real sockets: answers, who may ask, hostile input, sessions, lambdas.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use super::*;
use crate::api::gateway::config::Config;
use crate::api::gateway::{Gateway, Inputs, start};
use crate::pm3::caller::{Basis, Caller, Classifier, Standing};

/// Says the same of everybody.
struct Everybody(Standing);

impl Classifier for Everybody {
    fn classify(&self, _socket: BorrowedFd<'_>, _peer: SocketAddr, _local: SocketAddr) -> Caller {
        Caller { standing: self.0, basis: Basis::SockDiag, uid: Some(7), ..Caller::unknown() }
    }

    fn watch(&self, _address: SocketAddr) -> Box<dyn Send + Sync> {
        Box::new(())
    }

    fn basis(&self) -> String {
        "a test".to_owned()
    }
}

async fn gateway(fixture: &Fixture, standing: Standing) -> (Gateway, SocketAddr) {
    let config =
        Config { listen: vec![SocketAddr::from(([127, 0, 0, 1], 0))], listen_on_mesh: false, ..Config::default() };
    gateway_with(fixture, standing, config).await
}

pub(super) async fn gateway_with(fixture: &Fixture, standing: Standing, config: Config) -> (Gateway, SocketAddr) {
    gateway_of(fixture, standing, config, None).await
}

/// A gateway with one listener.
pub(super) async fn gateway_of(
    fixture: &Fixture,
    standing: Standing,
    config: Config,
    identity: Option<crate::identity::Identity>,
) -> (Gateway, SocketAddr) {
    let model = fixture.sources.model.clone();
    gateway_beside(fixture, standing, config, Beside { identity, model, peer_port: 443 }).await
}

/// What a gateway has of the mesh.
pub(super) struct Beside {
    pub(super) identity: Option<crate::identity::Identity>,
    pub(super) model: watch::Receiver<Arc<Model>>,
    pub(super) peer_port: u16,
}

/// The same in a mesh.
pub(super) async fn gateway_beside(
    fixture: &Fixture,
    standing: Standing,
    config: Config,
    Beside { identity, model, peer_port }: Beside,
) -> (Gateway, SocketAddr) {
    let inputs = Inputs {
        config,
        pm3: Arc::clone(&fixture.sources.pm3),
        model,
        classifier: Arc::new(Everybody(standing)),
        steering: None,
        metrics: fixture.sources.metrics.clone(),
        identity,
        peer_port,
    };
    let gateway = start(inputs, fixture.stop());
    let mut status = gateway.status();
    let listening = status.wait_for(|status| !status.listening.is_empty()).await.expect("it runs");
    let address = listening.listening[0];
    drop(listening);
    (gateway, address)
}

/// Sends `text`, whose `HOST` is replaced by a right one, and reads until the connection closes.
async fn send(address: SocketAddr, text: &str) -> String {
    let stream = TcpStream::connect(address).await.expect("connected");
    let text = text.replace("HOST", &format!("Host: pm3:{}\r\nConnection: close", address.port()));
    exchange(stream, text.as_bytes()).await
}

async fn ask(standing: Standing, text: &str) -> String {
    let fixture = Fixture::new();
    let (_gateway, address) = gateway(&fixture, standing).await;
    send(address, text).await
}

#[tokio::test]
async fn an_internal_caller_is_answered_as_the_document_says() {
    let answer = ask(Standing::Internal, "GET /ping HTTP/1.1\r\nHOST\r\n\r\n").await;
    assert_eq!(parts(&answer), (200, "\"alpha\"\n"));
    assert!(answer.contains("content-type: application/json; charset=utf-8"), "{answer}");
    let answer =
        ask(Standing::Internal, "POST /ipinfo?pretty HTTP/1.1\r\nHOST\r\nContent-Length: 14\r\n\r\n{\"ip\":\"::1\"}  ")
            .await;
    assert!(parts(&answer).1.starts_with("{\n  \"ip\": \"::1\",\n"), "{answer}");
    let answer = ask(Standing::Internal, "GET /ipinfo?IP=127.0.0.1 HTTP/1.1\r\nHOST\r\n\r\n").await;
    assert_eq!(json(parts(&answer).1)["desc"], "loopback");
}

#[tokio::test]
async fn failures_have_their_status_and_code() {
    for (request, status, code) in [
        ("GET /nothing HTTP/1.1\r\nHOST\r\n\r\n", 404, "not_found"),
        ("GET /shutdown HTTP/1.1\r\nHOST\r\n\r\n", 405, "method_not_allowed"),
        ("BREW /ping HTTP/1.1\r\nHOST\r\n\r\n", 405, "method_not_allowed"),
        ("GET /ipinfo HTTP/1.1\r\nHOST\r\n\r\n", 400, "invalid_argument"),
        ("GET /lambda/x/y HTTP/1.1\r\nHOST\r\n\r\n", 404, "not_found"),
        ("GET /debug/pprof/heap HTTP/1.1\r\nHOST\r\n\r\n", 503, "not_ready"),
        ("GET /connect HTTP/1.1\r\nHOST\r\n\r\n", 400, "invalid_argument"),
    ] {
        let answer = ask(Standing::Internal, request).await;
        let (got, body) = parts(&answer);
        assert_eq!((got, &json(body)["code"]), (status, &code.into()), "{request}: {answer}");
    }
}

#[tokio::test]
async fn an_external_caller_gets_nothing_of_the_api() {
    for path in ["/ping", "/peers", "/session", "/debug/headers", "/connect", "/lambda/new", "/nothing"] {
        let answer = ask(Standing::External, &format!("GET {path} HTTP/1.1\r\nHOST\r\n\r\n")).await;
        assert!(parts(&answer).0 == 403 && answer.contains("uid 7 is not trusted"), "{path}: {answer}");
    }
}

#[tokio::test]
async fn forged_forwarding_never_makes_and_always_breaks_trust() {
    for header in [
        "X-Forwarded-For: 127.0.0.1",
        "X-Forwarded-For: 127.0.0.1, 10.0.0.1",
        "X-Forwarded-For: 10.0.0.1\r\nX-Forwarded-For: 127.0.0.1",
        "x-forwarded-for: ::1",
        "X-Forwarded-For:",
        "Forwarded: for=127.0.0.1",
        "Forwarded: for=\"[::1]\";by=127.0.0.1",
        "X-Real-IP: 127.0.0.1",
        "X-Forwarded-Host: pm3",
        "X-Forwarded-Proto: https",
        "Via: 1.1 nginx",
        "CF-Connecting-IP: 127.0.0.1",
        "True-Client-IP: 127.0.0.1",
    ] {
        for standing in [Standing::Internal, Standing::External] {
            let answer = ask(standing, &format!("GET /ping HTTP/1.1\r\nHOST\r\n{header}\r\n\r\n")).await;
            assert_eq!(parts(&answer).0, 403, "{standing:?} {header}: {answer}");
        }
    }
}

#[tokio::test]
async fn a_name_that_is_not_ours_closes_the_connection_without_a_byte() {
    let fixture = Fixture::new();
    let (_gateway, address) = gateway(&fixture, Standing::Internal).await;
    let port = address.port();
    for host in [
        "evil.example".to_owned(),
        "PM3".to_owned(),
        "pm3.".to_owned(),
        format!("pm3.:{port}"),
        "pm3:1".to_owned(),
        "pm3:".to_owned(),
        format!("pm3:0{port}"),
        "beta.pm3".to_owned(),
        format!("127.0.0.1:{port}"),
        "localhost".to_owned(),
        "pm3.evil.example".to_owned(),
        "x@pm3".to_owned(),
        "xn--pm3".to_owned(),
    ] {
        let stream = TcpStream::connect(address).await.expect("connected");
        let answer = exchange(stream, format!("GET /ping HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await;
        assert_eq!(answer, "", "{host}");
    }
    for (host, status) in [("p\u{43c}3", 400), ("pm3\r\nHost: pm3", 400), ("pm3\r\nHost: evil.example", 400)] {
        let stream = TcpStream::connect(address).await.expect("connected");
        let text = format!("GET /ping HTTP/1.1\r\nConnection: close\r\nHost: {host}\r\n\r\n");
        assert_eq!(parts(&exchange(stream, text.as_bytes()).await).0, status, "{host}");
    }
    let stream = TcpStream::connect(address).await.expect("connected");
    let none = exchange(stream, b"GET /ping HTTP/1.0\r\n\r\n").await;
    assert_eq!(parts(&none).0, 400, "{none}");
}

#[tokio::test]
async fn a_page_in_a_browser_is_refused() {
    for header in [
        "Origin: http://evil.example",
        "Origin: null",
        "Sec-Fetch-Site: cross-site",
        "Sec-Fetch-Site: same-site",
        "Referer: http://evil.example/",
        "Origin: http://pm3.evil.example",
    ] {
        let answer = ask(Standing::Internal, &format!("POST /reload HTTP/1.1\r\nHOST\r\n{header}\r\n\r\n")).await;
        assert!(parts(&answer).0 == 403 && answer.contains("another site"), "{header}: {answer}");
    }
}

#[tokio::test]
async fn a_request_that_can_be_read_two_ways_is_read_one_way_or_not_at_all() {
    let fixture = Fixture::new();
    let (_gateway, address) = gateway(&fixture, Standing::Internal).await;
    let second = "GET /debug/headers HTTP/1.1\r\nHost: pm3\r\n\r\n";
    for head in [
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: +5",
        "Content-Length: 5, 6",
        "Content-Length: -1",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding : chunked",
        "Content-Length: 0x5",
    ] {
        let answer = send(address, &format!("POST /ping HTTP/1.1\r\nHOST\r\n{head}\r\n\r\n{second}")).await;
        assert!(parts(&answer).0 == 400 && !answer.contains("/debug/headers\n"), "{head}: {answer}");
    }
    // Both lengths: chunked counts, and what follows the last chunk is no hidden request of this connection.
    let both = "POST /ping HTTP/1.1\r\nHOST\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let answer = send(address, &format!("{both}{second}")).await;
    assert!(!answer.contains("GET /debug/headers"), "{answer}");
}

#[tokio::test]
async fn what_is_too_large_is_refused_and_not_read() {
    let fixture = Fixture::new();
    let (_gateway, address) = gateway(&fixture, Standing::Internal).await;
    let head = send(address, &format!("GET /ping HTTP/1.1\r\nHOST\r\nX: {}\r\n\r\n", "x".repeat(64 * 1024))).await;
    assert_eq!(parts(&head).0, 431, "{head}");
    let body = "x".repeat(methods::MAX_BODY_BYTES + 1);
    let body =
        send(address, &format!("POST /sign HTTP/1.1\r\nHOST\r\nContent-Length: {}\r\n\r\n{body}", body.len())).await;
    assert_eq!(parts(&body).0, 413, "{body}");
    let bomb = "[".repeat(100_000);
    let bomb =
        send(address, &format!("POST /sign HTTP/1.1\r\nHOST\r\nContent-Length: {}\r\n\r\n{bomb}", bomb.len())).await;
    assert_eq!(parts(&bomb).0, 400, "{bomb}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_slowly_is_cut_off() {
    let fixture = Fixture::new();
    let (_gateway, address) = gateway(&fixture, Standing::Internal).await;
    for beginning in ["", "G", "GET /ping HTTP/1.1\r\nHost:", "PRI * HTTP/2.0\r\n"] {
        let started = tokio::time::Instant::now();
        let stream = TcpStream::connect(address).await.expect("connected");
        exchange(stream, beginning.as_bytes()).await;
        assert!(started.elapsed() <= http::HEAD_TIMEOUT * 2, "{beginning:?} stayed for {:?}", started.elapsed());
    }
    let answer = send(address, "POST /sign HTTP/1.1\r\nHOST\r\nContent-Length: 9\r\n\r\n{").await;
    assert_eq!(parts(&answer).0, 504, "{answer}");
}

#[tokio::test]
async fn a_signed_url_lets_anyone_make_that_one_request() {
    let fixture = Fixture::new();
    let (_internal, inside) = gateway(&fixture, Standing::Internal).await;
    let (_external, outside) = gateway(&fixture, Standing::External).await;
    let body = "{\"url\":\"http://pm3/version?a=1\"}";
    let signed =
        send(inside, &format!("POST /sign HTTP/1.1\r\nHOST\r\nContent-Length: {}\r\n\r\n{body}", body.len())).await;
    let token = json(parts(&signed).1);
    let token = token.as_str().expect("a signature");
    let status = async |request: String| parts(&send(outside, &format!("{request} HTTP/1.1\r\nHOST\r\n\r\n")).await).0;
    assert_eq!(status(format!("GET /version?a=1&psn={token}")).await, 200);
    let in_header = send(outside, &format!("GET /version?a=1 HTTP/1.1\r\nHOST\r\nX-PSN: {token}\r\n\r\n")).await;
    assert_eq!(parts(&in_header).0, 200, "{in_header}");
    for other in ["POST /version?a=1&", "GET /version?a=2&", "GET /version?", "GET /ping?a=1&", "DELETE /version?a=1&"]
    {
        assert_eq!(status(format!("{other}psn={token}")).await, 403, "{other}");
    }
    assert_eq!(status(format!("GET /version?a=1&psn=A{token}")).await, 403);
}

type Socket = tokio_tungstenite::WebSocketStream<TcpStream>;

async fn connect(address: SocketAddr, path: &str, headers: &[(&'static str, &str)]) -> Result<Socket, u16> {
    let stream = TcpStream::connect(address).await.expect("connected");
    let mut request = format!("ws://pm3:{}{path}", address.port()).into_client_request().expect("a request");
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().expect("a value"));
    }
    match tokio_tungstenite::client_async(request, stream).await {
        Ok((socket, _response)) => Ok(socket),
        Err(tokio_tungstenite::tungstenite::Error::Http(response)) => Err(response.status().as_u16()),
        Err(error) => panic!("{error}"),
    }
}

async fn next_text(socket: &mut Socket) -> Option<String> {
    loop {
        match socket.next().await? {
            Ok(Message::Text(text)) => return Some(text.to_string()),
            Ok(Message::Close(_)) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

#[tokio::test]
async fn a_websocket_carries_many_calls_at_once() {
    let fixture = Fixture::new();
    let (_gateway, address) = gateway(&fixture, Standing::Internal).await;
    let mut socket = connect(address, "/connect", &[]).await.expect("agreed");
    for number in 0..100 {
        let text = format!("{{\"id\":{number},\"method\":\"/ping\",\"params\":[]}}");
        socket.feed(Message::text(text)).await.expect("sent");
    }
    socket.flush().await.expect("sent");
    for number in 0..100 {
        let text = next_text(&mut socket).await.expect("an answer");
        assert_eq!(text, format!("{{\"id\":{number},\"result\":\"alpha\",\"error\":null}}\n"));
    }
    socket
        .send(Message::text("{\"id\":1,\"method\":\"GET /peers\",\"params\":[]}{\"id\":2,\"meth"))
        .await
        .expect("sent");
    socket.send(Message::text("od\":\"/nothing\",\"params\":[]}")).await.expect("sent");
    let mut answers = [next_text(&mut socket).await.expect("one"), next_text(&mut socket).await.expect("two")];
    answers.sort();
    assert_eq!(json(&answers[0])["result"][0]["host"], "alpha", "{answers:?}");
    assert!(json(&answers[1])["error"].as_str().is_some_and(|text| text.starts_with("error 404: ")), "{answers:?}");
}

#[tokio::test]
async fn abuse_of_a_websocket_ends_it_and_nothing_else() {
    let fixture = Fixture::new();
    let (_gateway, address) = gateway(&fixture, Standing::Internal).await;
    let deep = format!("{{\"a\":{}", "[".repeat(1000));
    for bad in ["[1]".to_owned(), "no json".to_owned(), deep, format!("{{\"a\":\"{}", "x".repeat(1024 * 1024 + 1))] {
        let mut socket = connect(address, "/connect", &[]).await.expect("agreed");
        socket.send(Message::text(bad.clone())).await.ok();
        assert_eq!(next_text(&mut socket).await, None, "{:.20}", bad);
    }
    let upgrade = "GET /connect HTTP/1.1\r\nHost: pm3\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    // Unmasked, reserved bits, an unknown opcode, a fragmented ping, a length of 2^63.
    for frame in [
        b"\x81\x01a".as_slice(),
        b"\xf1\x80\0\0\0\0",
        b"\x83\x80\0\0\0\0",
        b"\x09\x80\0\0\0\0",
        b"\x82\xff\x80\0\0\0\0\0\0\0\0\0\0\0",
    ] {
        let stream = TcpStream::connect(address).await.expect("connected");
        let answer = exchange(stream, &[upgrade.as_bytes(), frame].concat()).await;
        assert!(answer.starts_with("HTTP/1.1 101") && answer.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{answer}");
    }
    assert_eq!(connect(address, "/connect", &[("origin", "http://evil.example")]).await.err(), Some(403));
    assert_eq!(connect(address, "/connect", &[("x-forwarded-for", "127.0.0.1")]).await.err(), Some(403));
    assert_eq!(parts(&send(address, "GET /ping HTTP/1.1\r\nHOST\r\n\r\n").await).0, 200);
}

#[tokio::test]
async fn the_compact_codec_is_spoken_over_websocket_and_raw() {
    let fixture = Fixture::new();
    let (_gateway, address) = gateway(&fixture, Standing::Internal).await;
    let mut socket = connect(address, "/connect", &[("sec-websocket-protocol", "jrpc")]).await.expect("agreed");
    socket.send(Message::binary(b"\x07\0\0\0/ping\0\n".to_vec())).await.expect("sent");
    let Some(Ok(Message::Binary(answer))) = socket.next().await else { panic!("a binary frame") };
    assert_eq!(answer.as_ref(), b"\x07\0\0\x80\0\"alpha\"\n");
    let mut stream = TcpStream::connect(address).await.expect("connected");
    let request = b"GET /connect HTTP/1.1\r\nHost: pm3\r\nConnection: Upgrade\r\nUpgrade: json-rpc\r\n\r\n{\"id\":1,\"method\":\"/ping\",\"params\":[]}";
    stream.write_all(request).await.expect("sent");
    let wanted = "{\"id\":1,\"result\":\"alpha\",\"error\":null}\n";
    let mut answer = Vec::new();
    while !answer.ends_with(wanted.as_bytes()) {
        assert!(stream.read_buf(&mut answer).await.expect("open") > 0, "{}", String::from_utf8_lossy(&answer));
    }
}

/// Opens a lambda and agrees; its id and proof.
async fn open_lambda(address: SocketAddr, path: &str, proof: Option<&str>) -> Result<(Socket, String, String), u16> {
    let headers: Vec<_> = proof.into_iter().map(|proof| ("x-lambda-proof", proof)).collect();
    let mut socket = connect(address, path, &headers).await?;
    let open = json(&next_text(&mut socket).await.expect("it is opened"));
    assert_eq!(open["method"], "open", "{open}");
    socket
        .send(Message::text(format!("{{\"id\":{},\"result\":true,\"error\":null}}", open["id"])))
        .await
        .expect("sent");
    let text = |at: usize| open["params"][at].as_str().expect("text").to_owned();
    Ok((socket, text(0), text(1)))
}

#[tokio::test]
async fn a_lambda_is_called_and_cannot_be_taken_over() {
    let fixture = Fixture::new();
    let (_gateway, address) = gateway(&fixture, Standing::Internal).await;
    let (mut socket, id, proof) = open_lambda(address, "/lambda/new", None).await.expect("opened");
    let request = format!("POST /lambda/{id}/add HTTP/1.1\r\nHOST\r\nContent-Length: 5\r\n\r\n[1,2]");
    let answers = async {
        loop {
            let answer = send(address, &request).await;
            // Registered a moment after it agreed.
            if parts(&answer).0 != 404 {
                return answer;
            }
        }
    };
    let (answer, call) = tokio::join!(answers, async {
        let call = json(&next_text(&mut socket).await.expect("called"));
        socket
            .send(Message::text(format!("{{\"id\":{},\"result\":null,\"error\":null}}", call["id"])))
            .await
            .expect("sent");
        call
    });
    assert_eq!((&call["method"], &call["params"]), (&"add".into(), &serde_json::json!([[1, 2]])));
    assert_eq!(parts(&answer), (200, "null"), "a null is a result");
    for stolen in [None, Some("x"), Some(id.as_str())] {
        assert_eq!(open_lambda(address, &format!("/lambda/new/{id}"), stolen).await.err(), Some(403));
    }
    let (again, same, _) =
        open_lambda(address, &format!("/lambda/new/{id}"), Some(&proof)).await.expect("with the proof");
    assert_eq!(same, id);
    drop(again);
}

#[tokio::test]
async fn ten_times_more_connections_than_allowed_wait_their_turn() {
    let fixture = Fixture::new();
    let config = Config {
        max_connections: 4,
        listen: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
        listen_on_mesh: false,
        ..Config::default()
    };
    let (_gateway, address) = gateway_with(&fixture, Standing::Internal, config).await;
    let asked = (0..40).map(|_| send(address, "GET /ping HTTP/1.1\r\nHOST\r\n\r\n"));
    for answer in futures_util::future::join_all(asked).await {
        assert_eq!(parts(&answer).0, 200, "{answer}");
    }
}

#[tokio::test]
async fn a_client_that_calls_too_often_is_told_so() {
    let fixture = Fixture::new();
    let listen = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
    let config = Config { calls_per_second: Some(2), listen, listen_on_mesh: false, ..Config::default() };
    let (_gateway, address) = gateway_with(&fixture, Standing::Internal, config).await;
    let ask = "GET /ping HTTP/1.1\r\nHOST\r\n\r\n";
    let asked = (0..20).map(|_| send(address, ask));
    let answers = futures_util::future::join_all(asked).await;
    let refused = answers.iter().filter(|answer| parts(answer).0 == 429).count();
    assert!(refused >= 10, "{refused} of 20 calls at once were refused");
}

#[tokio::test]
async fn the_log_is_read_back_and_wrong_options_are_named() {
    let fixture = Fixture::new();
    let directory = tempfile::tempdir().expect("a directory");
    let history = &fixture.sources.pm3.history;
    history.start(directory.path()).expect("started");
    history.push("{\"t\":5,\"l\":\"info\",\"dom\":\"dns\",\"msg\":\"here\"}".into());
    history.push("{\"t\":6,\"l\":\"debug\",\"dom\":\"net\",\"msg\":\"there\"}".into());
    let (_gateway, address) = gateway(&fixture, Standing::Internal).await;
    let tail = async |body: &str| {
        send(address, &format!("POST /tail HTTP/1.1\r\nHOST\r\nContent-Length: {}\r\n\r\n{body}", body.len())).await
    };
    let answer = tail("{\"domain\":\"dns\"}").await;
    assert!(
        answer.contains("application/stream+json") && answer.contains("here") && !answer.contains("there"),
        "{answer}"
    );
    for (wrong, named) in
        [("{\"level\":\"loud\"}", "loud"), ("{\"after\":\"x\"}", "after"), ("{\"colour\":1}", "colour")]
    {
        let answer = tail(wrong).await;
        assert!(parts(&answer).0 == 400 && answer.contains(named), "{answer}");
    }
}
