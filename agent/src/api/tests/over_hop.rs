//! Hops between two gateways over real sockets and TLS: what arrives, who is said to ask, what comes back when it cannot.

use std::net::SocketAddr;
use std::time::SystemTime;

use futures_util::{SinkExt as _, StreamExt as _};
use ipnet::IpNet;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use super::over_gateway::{Beside, gateway_beside, gateway_of};
use super::over_hosts::{Manner, Server, server};
use super::over_tls::node;
use super::*;
use crate::api::gateway::Gateway;
use crate::api::gateway::config::Config;
use crate::identity::Identity;
use crate::identity::authority::Authority;
use crate::pm3::MachineId;
use crate::pm3::caller::Standing;

const LOCAL: [u8; 4] = [127, 0, 0, 1];

fn any_port() -> Vec<SocketAddr> {
    vec![SocketAddr::from((LOCAL, 0))]
}

fn key(number: u8) -> PublicKey {
    PublicKey::from_bytes([number; 32])
}

/// A node whose only peer is at 127.0.0.1.
fn knowing(name: &str, own: u8, peer: &str, peers: u8) -> Model {
    let node = Node { id: name.parse().expect("a name"), addresses: Vec::new(), public_key: key(own) };
    let peer = Peer {
        name: peer.parse().expect("a name"),
        public_key: key(peers),
        preshared_key: None,
        endpoint: None,
        allowed_ips: vec![IpNet::from(std::net::IpAddr::from(LOCAL))],
        persistent_keepalive: None,
    };
    Model::new(node, "weft.internal".to_owned(), vec![peer]).expect("a right model")
}

/// Alpha, whom a test asks by plain HTTP, and beta, whom alpha reaches by TLS.
struct Pair {
    address: SocketAddr,
    beta: Option<Gateway>,
    alpha_identity: Identity,
    beta_identity: Identity,
    beta_fixture: Fixture,
    _alpha: (Fixture, Gateway),
}

struct Setting<'a> {
    standing: Standing,
    /// The virtual host `app.example` of both.
    routes: &'a str,
    /// Who answers as beta.
    answers_as: &'a str,
    is_of_one_mesh: bool,
}

const USUAL: Setting<'_> =
    Setting { standing: Standing::Internal, routes: "", answers_as: "beta", is_of_one_mesh: true };

fn config(listen: Vec<SocketAddr>, tls_listen: Vec<SocketAddr>, routes: &str) -> Config {
    let host = toml::from_str(routes).ok().map(|host| ("app.example".to_owned(), host));
    let config =
        Config { listen, tls_listen, listen_on_mesh: false, host: host.into_iter().collect(), ..Config::default() };
    config.validate().expect("it is right");
    config
}

async fn pair(setting: Setting<'_>) -> Pair {
    let authority = || Authority::create(SystemTime::now()).expect("an authority");
    let one = authority();
    let alpha_identity = node(&one, "alpha");
    let beta_identity =
        if setting.is_of_one_mesh { node(&one, setting.answers_as) } else { node(&authority(), "beta") };
    let beta_fixture = Fixture::of(knowing("beta", 2, "alpha", 1));
    let there = config(Vec::new(), any_port(), setting.routes);
    // Nobody is internal there but by a certificate.
    let (beta, at) = gateway_of(&beta_fixture, Standing::External, there, Some(beta_identity.clone())).await;
    let alpha_fixture = Fixture::of(knowing("alpha", 1, "beta", 2));
    let model = alpha_fixture.sources.model.clone();
    let beside = Beside { identity: Some(alpha_identity.clone()), model, peer_port: at.port() };
    let here = config(any_port(), Vec::new(), setting.routes);
    let (alpha, address) = gateway_beside(&alpha_fixture, setting.standing, here, beside).await;
    Pair { address, beta: Some(beta), alpha_identity, beta_identity, beta_fixture, _alpha: (alpha_fixture, alpha) }
}

impl Pair {
    async fn ask(&self, request: &str) -> String {
        let host = format!("Host: pm3:{}\r\nConnection: close", self.address.port());
        let stream = TcpStream::connect(self.address).await.expect("connected");
        exchange(stream, request.replace("HOST", &host).as_bytes()).await
    }

    async fn get(&self, path: &str) -> String {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHOST\r\n\r\n")).await
    }

    async fn accepted_by_beta(&self) -> String {
        let text = self.beta_fixture.sources.metrics.scrape().await.expect("it formats");
        let name = "weft_gateway_connections_accepted_total ";
        text.lines().find_map(|line| line.strip_prefix(name)).expect("it is counted").to_owned()
    }
}

fn proxy(server: &Server) -> String {
    format!(
        "[[route]]\nupstream = [\"{}\"]\n[[route]]\npath = \"/inner\"\ninternal = true\nupstream = [\"{}\"]",
        server.address, server.address
    )
}

#[tokio::test]
async fn a_peer_is_asked_by_its_name_in_any_case_and_by_its_machine_id() {
    let pair = pair(USUAL).await;
    for name in ["beta", "BETA", &MachineId::of(&key(2)).to_string()] {
        assert_eq!(parts(&pair.get(&format!("/hop/{name}/pm3/ping")).await), (200, "\"beta\"\n"), "{name}");
    }
    let asked = pair
        .ask("POST /hop/beta/pm3/ipinfo?pretty HTTP/1.1\r\nHOST\r\nContent-Length: 12\r\n\r\n{\"ip\":\"::1\"}")
        .await;
    assert!(parts(&asked).1.starts_with("{\n  \"ip\": \"::1\",\n"), "{asked}");
    for (request, status) in
        [("GET /hop/beta/pm3/nothing", 404), ("GET /hop/beta/pm3/shutdown", 405), ("HEAD /hop/beta/pm3/ping", 200)]
    {
        let answer = pair.ask(&format!("{request} HTTP/1.1\r\nHOST\r\n\r\n")).await;
        assert_eq!(parts(&answer).0, status, "{request}: {answer}");
        assert!(answer.contains("x-ray: "), "{answer}");
    }
}

#[tokio::test]
async fn who_asked_and_its_trace_go_along_and_what_it_claims_does_not() {
    let echo = server(Manner::Echo).await;
    let pair = pair(Setting { routes: &proxy(&echo), ..USUAL }).await;
    let answer = pair
        .ask(
            "PATCH /hop/beta/app.example/inner/a%20b?c=d HTTP/1.1\r\nHOST\r\nContent-Length: 5\r\nX-Ray: 0123-abc\r\n\
             traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\nP-Caller: node=x;hops=1;uid=0\r\n\
             P-Internal: 0\r\nX-Own: 3\r\n\r\nhello",
        )
        .await;
    assert_eq!(parts(&answer).0, 200, "{answer}");
    for line in [
        "PATCH /inner/a%20b?c=d\n",
        "host: app.example\n",
        "p-caller: node=alpha;hops=1;for=127.0.0.1;uid=7\n",
        "x-ray: 0123-abc\n",
        "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-",
        "p-internal: 1\n",
        "x-own: 3\n",
        "body: 5 bytes\n",
    ] {
        assert!(answer.contains(line), "{line} in {answer}");
    }
    assert!(answer.contains("x-ray: 0123-abc\r\n"), "the client too: {answer}");
    // By whom it is called is nothing that a client of its own may say.
    let own = pair.get("/hop/alpha/pm3/debug/headers").await;
    assert!(own.contains("p-caller: [node=alpha;hops=1;"), "{own}");
}

#[tokio::test]
async fn bytes_stream_both_ways_through_a_hop() {
    let stream = server(Manner::Stream).await;
    let pair = pair(Setting { routes: &proxy(&stream), ..USUAL }).await;
    let mut client = TcpStream::connect(pair.address).await.expect("connected");
    let head = format!(
        "POST /hop/beta/app.example/ HTTP/1.1\r\nHost: pm3:{}\r\nTransfer-Encoding: chunked\r\n\r\n",
        pair.address.port()
    );
    client.write_all(head.as_bytes()).await.expect("sent");
    let mut seen = Vec::new();
    for piece in ["first", "second"] {
        // The next piece leaves only after the one before has come back.
        client.write_all(format!("{:x}\r\n{piece}\r\n", piece.len()).as_bytes()).await.expect("sent");
        while !String::from_utf8_lossy(&seen).contains(piece) {
            assert!(client.read_buf(&mut seen).await.expect("open") > 0, "{}", String::from_utf8_lossy(&seen));
        }
    }
    client.write_all(b"0\r\n\r\n").await.expect("sent");
    while !seen.ends_with(b"0\r\n\r\n") {
        assert!(client.read_buf(&mut seen).await.expect("open") > 0, "{}", String::from_utf8_lossy(&seen));
    }
}

#[tokio::test]
async fn websockets_and_other_upgrades_go_through_a_hop() {
    let upgrade = server(Manner::Upgrade).await;
    let pair = pair(Setting { routes: &proxy(&upgrade), ..USUAL }).await;
    let stream = TcpStream::connect(pair.address).await.expect("connected");
    let request = format!("ws://pm3:{}/hop/beta/pm3/connect", pair.address.port()).into_client_request();
    let (mut socket, _response) =
        tokio_tungstenite::client_async(request.expect("a request"), stream).await.expect("agreed");
    for number in 0..3 {
        let call = format!("{{\"id\":{number},\"method\":\"/ping\",\"params\":[]}}");
        socket.send(Message::text(call)).await.expect("sent");
        let answer = socket.next().await.expect("an answer").expect("open").into_text().expect("text");
        assert_eq!(answer.as_str(), format!("{{\"id\":{number},\"result\":\"beta\",\"error\":null}}\n"));
    }
    let text = "GET /hop/beta/app.example/ HTTP/1.1\r\nHost: pm3\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n";
    let mut raw = TcpStream::connect(pair.address).await.expect("connected");
    raw.write_all(text.as_bytes()).await.expect("sent");
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n") {
        assert!(raw.read_buf(&mut seen).await.expect("open") > 0, "{}", String::from_utf8_lossy(&seen));
    }
    assert!(seen.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&seen));
    raw.write_all(b"any bytes").await.expect("sent");
    let mut echoed = [0; 9];
    raw.read_exact(&mut echoed).await.expect("they come back");
    assert_eq!(&echoed, b"any bytes");
    let none = pair
        .ask("GET /hop/beta/pm3/ping HTTP/1.1\r\nHost: pm3\r\nConnection: Upgrade, close\r\nUpgrade: x\r\n\r\n")
        .await;
    assert_eq!(parts(&none), (200, "\"beta\"\n"), "an upgrade that is not taken up");
}

#[tokio::test]
async fn requests_share_connections_and_a_peer_that_came_back_is_asked_anew() {
    let mut pair = pair(USUAL).await;
    let asked = (0..200).map(|_| pair.get("/hop/beta/pm3/ping"));
    let answers = futures_util::future::join_all(asked).await;
    assert!(answers.iter().all(|answer| parts(answer) == (200, "\"beta\"\n")));
    let accepted: usize = pair.accepted_by_beta().await.parse().expect("a number");
    assert!((1..=3).contains(&accepted), "{accepted} connections for 200 requests, 100 at most on one");
    let port = pair.beta.as_ref().expect("it runs").status().borrow().listening[0];
    drop(pair.beta.take());
    let gone = pair.get("/hop/beta/pm3/ping").await;
    assert!(parts(&gone).0 == 502 && gone.contains("\"code\":\"bad_gateway\""), "{gone}");
    let there = config(Vec::new(), vec![port], "");
    let (_again, _) = gateway_of(&pair.beta_fixture, Standing::External, there, Some(pair.beta_identity.clone())).await;
    assert_eq!(parts(&pair.get("/hop/beta/pm3/ping").await), (200, "\"beta\"\n"));
}

#[tokio::test]
async fn what_cannot_be_carried_has_its_status_and_reason() {
    let usual = pair(USUAL).await;
    for (path, status, told) in [
        ("/hop/gamma/pm3/ping", 404, "there is no peer"),
        ("/hop/beta/other.example/", 404, "there is no host"),
        ("/hop/alpha/other.example/", 404, "there is no host"),
        ("/hop/beta", 400, "a hop is /hop/PEER/HOST/PATH"),
    ] {
        let answer = usual.get(path).await;
        assert!(parts(&answer).0 == status && answer.contains(told), "{path}: {answer}");
    }
    let mut circle = "/ping".to_owned();
    for _ in 0..9 {
        circle = format!("/hop/alpha/pm3{circle}");
    }
    let answer = usual.get(&circle).await;
    assert!(parts(&answer).0 == 400 && answer.contains("carried on 8 times"), "{answer}");
    assert_eq!(parts(&usual.get(&circle["/hop/alpha/pm3".len()..]).await), (200, "\"alpha\"\n"));
    let foreign = pair(Setting { is_of_one_mesh: false, ..USUAL }).await.get("/hop/beta/pm3/ping").await;
    assert!(parts(&foreign).0 == 502 && foreign.contains("did not prove"), "{foreign}");
    let other = pair(Setting { answers_as: "gamma", ..USUAL }).await.get("/hop/beta/pm3/ping").await;
    assert!(parts(&other).0 == 502 && other.contains("is gamma, not beta"), "{other}");
    let outside = pair(Setting { standing: Standing::External, ..USUAL }).await.get("/hop/beta/pm3/ping").await;
    assert_eq!(parts(&outside).0, 403, "{outside}");
}

#[tokio::test]
async fn a_peer_that_was_taken_out_is_asked_no_more_on_a_connection_that_is_open() {
    let pair = pair(USUAL).await;
    assert_eq!(parts(&pair.get("/hop/beta/pm3/ping").await).0, 200);
    pair.alpha_identity.revoke([pair.beta_identity.certificate().member.key].into());
    let answer = pair.get("/hop/beta/pm3/ping").await;
    assert_eq!(parts(&answer).0, 502, "{answer}");
}

#[tokio::test]
async fn a_hop_to_the_node_itself_honours_the_host() {
    let echo = server(Manner::Echo).await;
    let pair = pair(Setting { routes: &proxy(&echo), ..USUAL }).await;
    let answer = pair.get("/hop/alpha/app.example/inner/x?y=z").await;
    assert!(answer.contains("GET /inner/x?y=z\n") && answer.contains("host: app.example\n"), "{answer}");
    assert!(answer.contains("p-caller: node=alpha;hops=1;for=127.0.0.1;uid=7\n"), "{answer}");
    assert_eq!(parts(&pair.get("/hop/alpha/pm3/ping").await), (200, "\"alpha\"\n"));
    assert_eq!(parts(&pair.get("/hop/alpha/alpha.pm3/ping").await), (200, "\"alpha\"\n"));
}
