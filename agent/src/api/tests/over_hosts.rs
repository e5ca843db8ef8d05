//! Virtual hosts over real sockets: passing on, retries, streams, upgrades, files, redirects, limits, signatures.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::StreamExt as _;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

use super::over_gateway::gateway_with;
use super::*;
use crate::api::gateway::Gateway;
use crate::api::gateway::config::Config;
use crate::foundation::task;
use crate::pm3::caller::Standing;

/// What a server does with a request.
#[derive(Debug, Clone, Copy)]
pub(super) enum Manner {
    /// Says what it was asked, head and body.
    Echo,
    /// Answers with this status.
    Status(u16),
    /// Closes without an answer.
    Break,
    /// Sends a chunk, waits for the client's next one, and so on.
    Stream,
    /// Agrees to any upgrade and sends back what comes.
    Upgrade,
}

pub(super) struct Server {
    pub(super) address: SocketAddr,
    asked: Arc<AtomicUsize>,
    _task: task::Task,
}

pub(super) async fn server(manner: Manner) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("bound");
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let task = task::spawn("test", async move {
        while let Ok((stream, _)) = listener.accept().await {
            let counted = Arc::clone(&counted);
            let service = hyper::service::service_fn(move |request| {
                counted.fetch_add(1, Ordering::Relaxed);
                serve(manner, request)
            });
            task::detach("test", async move {
                let connection =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                connection.with_upgrades().await.ok();
            });
        }
    });
    Server { address, asked, _task: task }
}

type Answer = axum::http::Response<crate::api::body::Body>;

async fn serve(manner: Manner, mut request: axum::http::Request<Incoming>) -> Result<Answer, std::io::Error> {
    use crate::api::body::Body;
    let whole = |text: String| Ok(Answer::new(Body::from(text)));
    match manner {
        Manner::Break => Err(std::io::ErrorKind::Other.into()),
        Manner::Status(status) => {
            let mut answer = Answer::new(Body::from("trouble".to_owned()));
            *answer.status_mut() = status.try_into().expect("a status");
            Ok(answer)
        }
        Manner::Echo => {
            let (head, body) = request.into_parts();
            let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
            let mut text = format!("{} {}\n", head.method, head.uri);
            for (name, value) in &head.headers {
                text.push_str(&format!("{name}: {}\n", value.to_str().unwrap_or("?")));
            }
            text.push_str(&format!("body: {} bytes\n", body.len()));
            whole(text)
        }
        Manner::Stream => {
            let chunks = request.into_body().into_data_stream().map(|chunk| chunk.map_err(std::io::Error::other));
            Ok(Answer::new(Body::Stream(chunks.boxed())))
        }
        Manner::Upgrade => {
            let upgrade = request.headers().get("upgrade").cloned();
            let upgraded = hyper::upgrade::on(&mut request);
            task::detach("test", async move {
                let mut stream = TokioIo::new(upgraded.await.expect("agreed"));
                let (mut reader, mut writer) = tokio::io::split(&mut stream);
                tokio::io::copy(&mut reader, &mut writer).await.ok();
            });
            let mut answer = Answer::new(Body::empty());
            *answer.status_mut() = axum::http::StatusCode::SWITCHING_PROTOCOLS;
            answer.headers_mut().insert("connection", "Upgrade".parse().expect("a value"));
            answer.headers_mut().insert("upgrade", upgrade.expect("asked for"));
            Ok(answer)
        }
    }
}

async fn with_host(fixture: &Fixture, standing: Standing, routes: &str) -> (Gateway, SocketAddr) {
    let listen = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
    let host = toml::from_str(routes).expect("routes");
    let host = [("example.org".to_owned(), host)].into();
    let config = Config { listen, listen_on_mesh: false, host, ..Config::default() };
    config.validate().expect("it is right");
    gateway_with(fixture, standing, config).await
}

async fn ask(address: SocketAddr, request: &str) -> String {
    let text = request.replace("HOST", "Host: example.org\r\nConnection: close");
    exchange(TcpStream::connect(address).await.expect("connected"), text.as_bytes()).await
}

fn proxy(servers: &[&Server], more: &str) -> String {
    let list: Vec<String> = servers.iter().map(|server| server.address.to_string()).collect();
    format!("[[route]]\nupstream = {list:?}\n{more}\n")
}

#[tokio::test]
async fn a_request_is_passed_on_and_what_the_client_claims_is_replaced() {
    let (fixture, echo) = (Fixture::new(), server(Manner::Echo).await);
    let more = "request_headers = { \"x-added\" = \"1\" }\nheaders = { \"x-answer\" = \"2\" }";
    let (_gateway, address) = with_host(&fixture, Standing::External, &proxy(&[&echo], more)).await;
    let trace = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let answer = ask(
        address,
        &format!(
            "POST /a%20b?c=d HTTP/1.1\r\nHOST\r\nContent-Length: 5\r\n{trace}\r\nX-Forwarded-For: 127.0.0.1\r\n\
             Forwarded: for=127.0.0.1\r\nX-Real-IP: 127.0.0.1\r\nP-Internal: 1\r\nKeep-Alive: 5\r\nX-Own: 3\r\n\r\nhello"
        ),
    )
    .await;
    let (status, body) = parts(&answer);
    assert_eq!(status, 200, "{answer}");
    for line in [
        "POST /a%20b?c=d\n",
        "host: example.org\n",
        "x-forwarded-for: 127.0.0.1\n",
        "x-forwarded-host: example.org\n",
        "x-forwarded-proto: http\n",
        "p-internal: 0\n",
        "p-ip: 127.0.0.1\n",
        "x-own: 3\n",
        "x-added: 1\n",
        "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-",
        "x-ray: ",
        "body: 5 bytes\n",
    ] {
        assert!(body.contains(line), "{line} in {body}");
    }
    for gone in ["forwarded: for", "x-real-ip", "keep-alive", "00f067aa0ba902b7", "connection: close"] {
        assert!(!body.contains(gone), "{gone} in {body}");
    }
    assert!(answer.contains("x-answer: 2\r\n") && answer.contains("x-ray: "), "{answer}");
    for _ in 0..3 {
        assert_eq!(parts(&ask(address, "GET / HTTP/1.1\r\nHOST\r\n\r\n").await).0, 200);
    }
}

#[tokio::test]
async fn an_unknown_host_closes_the_connection_and_a_path_with_two_readings_is_refused() {
    let (fixture, echo) = (Fixture::new(), server(Manner::Echo).await);
    let (_gateway, address) = with_host(&fixture, Standing::Internal, &proxy(&[&echo], "path = \"/only\"")).await;
    assert_eq!(ask(address, "GET /only HTTP/1.1\r\nHost: other.example\r\n\r\n").await, "");
    assert_eq!(parts(&ask(address, "GET /else HTTP/1.1\r\nHOST\r\n\r\n").await).0, 404);
    for path in ["/only/../else", "/only/%2e%2e/else", "/only%5c..%5celse", "/only/..;/else"] {
        assert_eq!(parts(&ask(address, &format!("GET {path} HTTP/1.1\r\nHOST\r\n\r\n")).await).0, 400, "{path}");
    }
    assert_eq!(echo.asked.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn another_server_is_tried_only_where_asking_twice_does_no_harm() {
    let fixture = Fixture::new();
    let (echo, broken, busy) =
        (server(Manner::Echo).await, server(Manner::Break).await, server(Manner::Status(503)).await);
    let nobody = TcpListener::bind("127.0.0.1:0").await.expect("bound").local_addr().expect("bound");
    let get = "GET / HTTP/1.1\r\nHOST\r\n\r\n";
    let post = "POST / HTTP/1.1\r\nHOST\r\nContent-Length: 1\r\n\r\nx";
    for bad in [&broken, &busy] {
        let (_gateway, address) =
            with_host(&fixture, Standing::External, &proxy(&[bad, &echo], "balance = \"round-robin\"")).await;
        for _ in 0..4 {
            assert_eq!(parts(&ask(address, get).await).0, 200, "{bad:?}", bad = bad.address);
        }
        let before = bad.asked.load(Ordering::Relaxed);
        let posts = [ask(address, post).await, ask(address, post).await];
        let statuses = posts.map(|answer| parts(&answer).0);
        assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
        assert_eq!(bad.asked.load(Ordering::Relaxed), before + 1, "a POST is sent once");
    }
    let routes = format!("[[route]]\nbalance = \"round-robin\"\nupstream = [\"{nobody}\", \"{}\"]\n", echo.address);
    let (_gateway, address) = with_host(&fixture, Standing::External, &routes).await;
    for request in [get, post, post, get] {
        assert_eq!(parts(&ask(address, request).await).0, 200, "a server that cannot be reached got nothing");
    }
    let (_gateway, address) =
        with_host(&fixture, Standing::External, &format!("[[route]]\nupstream = [\"{nobody}\"]\n")).await;
    let (status, body) = (ask(address, get).await, "bad_gateway");
    assert!(parts(&status).0 == 502 && status.contains(body), "{status}");
}

#[tokio::test]
async fn bodies_stream_both_ways_and_are_not_kept() {
    let (fixture, stream) = (Fixture::new(), server(Manner::Stream).await);
    let (_gateway, address) = with_host(&fixture, Standing::External, &proxy(&[&stream], "")).await;
    let mut client = TcpStream::connect(address).await.expect("connected");
    client
        .write_all(b"POST / HTTP/1.1\r\nHost: example.org\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await
        .expect("sent");
    let mut seen = Vec::new();
    for number in 0..20 {
        // Each chunk comes back before the next one leaves.
        client.write_all(format!("4\r\n{number:04}\r\n").as_bytes()).await.expect("sent");
        while !String::from_utf8_lossy(&seen).contains(&format!("{number:04}")) {
            assert!(client.read_buf(&mut seen).await.expect("open") > 0, "{}", String::from_utf8_lossy(&seen));
        }
    }
    client.write_all(b"0\r\n\r\n").await.expect("sent");
    while !seen.ends_with(b"0\r\n\r\n") {
        assert!(client.read_buf(&mut seen).await.expect("open") > 0);
    }
}

#[tokio::test]
async fn an_upgrade_is_passed_on_with_what_follows_it() {
    let (fixture, upgrade) = (Fixture::new(), server(Manner::Upgrade).await);
    let (_gateway, address) = with_host(&fixture, Standing::External, &proxy(&[&upgrade], "")).await;
    let mut client = TcpStream::connect(address).await.expect("connected");
    client
        .write_all(b"GET /ws HTTP/1.1\r\nHost: example.org\r\nConnection: keep-alive, Upgrade\r\nUpgrade: any\r\n\r\n")
        .await
        .expect("sent");
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n") {
        assert!(client.read_buf(&mut seen).await.expect("open") > 0, "{}", String::from_utf8_lossy(&seen));
    }
    assert!(seen.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&seen));
    client.write_all(b"ping").await.expect("sent");
    let mut echoed = [0; 4];
    client.read_exact(&mut echoed).await.expect("echoed");
    assert_eq!(&echoed, b"ping");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_begin_its_answer_is_given_up() {
    let fixture = Fixture::new();
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let routes = format!("[[route]]\ntimeout_seconds = 7\nupstream = [\"{}\"]\n", silent.local_addr().expect("bound"));
    let (_gateway, address) = with_host(&fixture, Standing::External, &routes).await;
    let answer = ask(address, "GET / HTTP/1.1\r\nHOST\r\n\r\n").await;
    assert!(parts(&answer).0 == 504 && answer.contains("within 7 s"), "{answer}");
}

#[tokio::test]
async fn internal_paths_limits_and_redirects_hold() {
    let (fixture, echo) = (Fixture::new(), server(Manner::Echo).await);
    let routes = format!(
        "{}{}[[route]]\npath = \"/old\"\nredirect = \"https://example.org{{uri}}\"\nstatus = 308\n",
        proxy(&[&echo], "path = \"/admin\"\ninternal = true"),
        proxy(&[&echo], "requests_per_second = 1\nburst = 3"),
    );
    let (_gateway, address) = with_host(&fixture, Standing::External, &routes).await;
    for path in ["/admin", "/admin/x", "/%61dmin", "//admin"] {
        assert_eq!(parts(&ask(address, &format!("GET {path} HTTP/1.1\r\nHOST\r\n\r\n")).await).0, 403, "{path}");
    }
    let statuses = futures_util::future::join_all((0..6).map(|_| ask(address, "GET / HTTP/1.1\r\nHOST\r\n\r\n"))).await;
    let refused: Vec<&String> = statuses.iter().filter(|answer| parts(answer).0 == 429).collect();
    assert!(refused.len() >= 2 && refused[0].contains("retry-after: 1\r\n"), "{statuses:?}");
    let moved = ask(address, "GET /old/a?b=1 HTTP/1.1\r\nHOST\r\n\r\n").await;
    assert!(
        moved.starts_with("HTTP/1.1 308") && moved.contains("location: https://example.org/old/a?b=1\r\n"),
        "{moved}"
    );
    let (_gateway, inside) = with_host(&fixture, Standing::Internal, &routes).await;
    let answer = ask(inside, "GET /admin HTTP/1.1\r\nHOST\r\n\r\n").await;
    assert!(parts(&answer).0 == 200 && answer.contains("p-internal: 1"), "{answer}");
    for header in ["X-Forwarded-For: 127.0.0.1", "Via: 1.1 x", "Origin: http://evil.example"] {
        let answer = ask(inside, &format!("GET /admin HTTP/1.1\r\nHOST\r\n{header}\r\n\r\n")).await;
        assert_eq!(parts(&answer).0, 403, "{header}");
    }
}

#[tokio::test]
async fn a_signed_url_opens_an_internal_path_and_leads_where_it_was_signed_for() {
    let (fixture, echo) = (Fixture::new(), server(Manner::Echo).await);
    let routes = proxy(&[&echo], "internal = true");
    let (_gateway, outside) = with_host(&fixture, Standing::External, &routes).await;
    let (_other, inside) = with_host(&fixture, Standing::Internal, &routes).await;
    let sign = async |body: &str| {
        let text = format!("POST /sign HTTP/1.1\r\nHost: pm3:{}\r\nConnection: close\r\n", inside.port());
        let answer = ask(inside, &format!("{text}Content-Length: {}\r\n\r\n{body}", body.len())).await;
        json(parts(&answer).1).as_str().expect("a signature").to_owned()
    };
    let token = sign("{\"url\":\"example.org/a?x=1\",\"secrets\":{\"x-key\":\"k\"}}").await;
    let get = async |uri: &str| ask(outside, &format!("GET {uri} HTTP/1.1\r\nHOST\r\n\r\n")).await;
    let answer = get(&format!("/a?x=1&psn={token}")).await;
    assert!(parts(&answer).0 == 200 && answer.contains("x-key: k") && answer.contains("p-internal: 1"), "{answer}");
    for other in [format!("/a?x=2&psn={token}"), format!("/b?x=1&psn={token}"), "/a?x=1&psn=AAAA".to_owned()] {
        assert_eq!(parts(&get(&other).await).0, 403, "{other}");
    }
    let token = sign("{\"url\":\"example.org/v\",\"rewrite\":\"pm3/version\"}").await;
    let answer = get(&format!("/v?psn={token}")).await;
    assert!(parts(&answer).1.starts_with("\"v"), "{answer}");
    let token = sign("{\"url\":\"example.org/v\",\"rewrite\":\"nobody.example/x\"}").await;
    let answer = get(&format!("/v?psn={token}")).await;
    assert!(parts(&answer).0 == 404 && answer.contains("nobody.example"), "{answer}");
}

#[tokio::test]
async fn behind_a_trusted_proxy_the_client_is_the_address_it_names() {
    let (fixture, echo) = (Fixture::new(), server(Manner::Echo).await);
    let host = toml::from_str(&proxy(&[&echo], "requests_per_second = 1\nburst = 1")).expect("routes");
    let config = Config {
        listen: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
        listen_on_mesh: false,
        host: [("example.org".to_owned(), host)].into(),
        trusted_proxies: vec!["127.0.0.1/32".parse().expect("a network")],
        calls_per_second: None,
        ..Config::default()
    };
    let (_gateway, address) = gateway_with(&fixture, Standing::Internal, config).await;
    let from = async |forwarded: &str| {
        ask(address, &format!("GET / HTTP/1.1\r\nHOST\r\nX-Forwarded-For: {forwarded}\r\n\r\n")).await
    };
    let answer = from("127.0.0.1, 192.0.2.7").await;
    let passed = parts(&answer).1;
    assert!(passed.contains("p-ip: 192.0.2.7\n") && passed.contains("p-internal: 0\n"), "{answer}");
    assert!(passed.contains("x-forwarded-for: 127.0.0.1, 192.0.2.7\nx-forwarded-for: 127.0.0.1\n"), "{answer}");
    assert_eq!(parts(&from("192.0.2.7").await).0, 429, "the limit is by client, not by proxy");
    assert_eq!(parts(&from("192.0.2.8").await).0, 200);
}

#[tokio::test]
async fn a_large_answer_arrives_whole() {
    let fixture = Fixture::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let routes = format!("[[route]]\nupstream = [\"{}\"]\n", listener.local_addr().expect("bound"));
    let (_gateway, address) = with_host(&fixture, Standing::External, &routes).await;
    let serving = task::spawn("test", async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = hyper::service::service_fn(|_request| async {
                let chunks = futures_util::stream::iter(
                    (0..200).map(|_| Ok::<_, std::io::Error>(Frame::data(Bytes::from(vec![b'x'; 9999])))),
                );
                Ok::<_, std::io::Error>(axum::http::Response::new(StreamBody::new(chunks)))
            });
            let builder = hyper::server::conn::http1::Builder::new();
            task::detach("test", async move {
                builder.serve_connection(TokioIo::new(stream), service).await.ok();
            });
        }
    });
    for _ in 0..3 {
        let answer = ask(address, "GET / HTTP/1.1\r\nHOST\r\n\r\n").await;
        assert_eq!(answer.matches('x').count() - answer[..200].matches("x-ray").count(), 200 * 9999);
    }
    drop(serving);
}
