//! The web listener: formats, health, and what it refuses.

use prometheus_client::metrics::counter::Counter;
use tokio::net::TcpStream;

use super::*;
use crate::api::http;
use crate::api::web::{self, Web, WebError};

async fn serve(fixture: &Fixture) -> (std::net::SocketAddr, Web) {
    let bound = web::bind("127.0.0.1:0".parse().expect("an address")).await.expect("bound");
    (bound.address(), bound.serve(Arc::clone(&fixture.sources), fixture.stop()))
}

async fn ask(fixture: &Fixture, head: &str) -> String {
    let (address, _web) = serve(fixture).await;
    let stream = TcpStream::connect(address).await.expect("connected");
    exchange(stream, format!("{head}Connection: close\r\n\r\n").as_bytes()).await
}

#[tokio::test]
async fn metrics_come_in_the_format_that_is_asked_for() {
    let fixture = Fixture::new();
    let counter: Counter = Counter::default();
    fixture.sources.metrics.register(|registry| registry.register("passes", "Passes", counter.clone()));
    let plain = ask(&fixture, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n").await;
    assert!(plain.contains("content-type: text/plain; version=0.0.4"), "{plain}");
    assert!(
        plain.contains("# TYPE weft_passes_total counter\nweft_passes_total 0\n") && !plain.contains("EOF"),
        "{plain}"
    );
    let open =
        ask(&fixture, "GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: application/openmetrics-text\r\n").await;
    assert!(open.contains("content-type: application/openmetrics-text; version=1.0.0"), "{open}");
    assert!(open.contains("# TYPE weft_passes counter") && open.ends_with("# EOF\n"), "{open}");
}

#[tokio::test]
async fn health_says_what_is_missing() {
    let fixture = Fixture::new();
    let ready = ask(&fixture, "GET /health/ready HTTP/1.1\r\nHost: localhost\r\n").await;
    assert_eq!(parts(&ready).0, 200, "{ready}");
    let _blocker = fixture.sources.readiness.block("dns");
    let starting = ask(&fixture, "GET /health/ready HTTP/1.1\r\nHost: localhost\r\n").await;
    let (code, body) = parts(&starting);
    assert_eq!((code, &json(body)["reasons"]), (503, &serde_json::json!(["dns has not come up yet"])));
    let live = ask(&fixture, "GET /health/live HTTP/1.1\r\nHost: localhost\r\n").await;
    assert_eq!(parts(&live).0, 200, "{live}");
}

#[tokio::test]
async fn without_a_link_the_agent_is_not_ready() {
    let fixture = Fixture::new();
    fixture.wireguard.send_modify(|status| Arc::make_mut(status).link = None);
    let answer = ask(&fixture, "GET /health/ready HTTP/1.1\r\nHost: localhost\r\n").await;
    let (code, body) = parts(&answer);
    assert_eq!((code, &json(body)["reasons"]), (503, &serde_json::json!(["the tunnel link does not exist"])));
}

#[tokio::test]
async fn what_needs_a_known_caller_is_not_reachable_over_tcp() {
    let fixture = Fixture::new();
    for path in ["/status", "/peers", "/reload", "/down", "/shutdown", "/", "/weft.v1.Agent/GetStatus"] {
        let answer = ask(&fixture, &format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n")).await;
        let (code, body) = parts(&answer);
        assert!(code == 404 && body.contains("/metrics"), "{path}: {answer}");
    }
    let wrong = ask(&fixture, "POST /metrics HTTP/1.1\r\nHost: localhost\r\n").await;
    assert_eq!(parts(&wrong).0, 405, "{wrong}");
}

#[tokio::test]
async fn a_page_that_points_its_name_at_us_gets_nothing() {
    let fixture = Fixture::new();
    let answer = ask(&fixture, "GET /metrics HTTP/1.1\r\nHost: evil.example\r\n").await;
    let (code, body) = parts(&answer);
    assert_eq!((code, &json(body)["code"]), (403, &"forbidden".into()));
}

#[tokio::test(start_paused = true)]
async fn a_slow_head_is_cut_off() {
    let fixture = Fixture::new();
    let (address, _web) = serve(&fixture).await;
    for beginning in ["", "GET /metrics HTTP/1.1\r\nHost: local"] {
        let started = tokio::time::Instant::now();
        let stream = TcpStream::connect(address).await.expect("connected");
        exchange(stream, beginning.as_bytes()).await;
        assert!(started.elapsed() <= http::HEAD_TIMEOUT * 2, "{beginning:?} stayed for {:?}", started.elapsed());
    }
}

#[tokio::test]
async fn a_port_in_use_names_the_key() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let error = web::bind(taken.local_addr().expect("bound")).await.expect_err("it is taken");
    assert!(matches!(error, WebError::InUse { .. }) && error.to_string().contains("web.listen"), "{error}");
}
