//! The web listener: formats, health, who may, and what it refuses.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use prometheus_client::metrics::counter::Counter;
use tokio::net::TcpStream;

use super::*;
use crate::api::web::{self, Web, WebError};
use crate::foundation::secret::Secret;
use crate::pm3::caller::{Basis, Caller, Classifier, Standing};

const KEY: &str = "your-secret-api-key";

/// Takes everybody for the same caller.
struct Always(Caller);

impl Classifier for Always {
    fn classify(&self, _socket: BorrowedFd<'_>, _peer: SocketAddr, _local: SocketAddr) -> Caller {
        self.0.clone()
    }

    fn watch(&self, _address: SocketAddr) -> Box<dyn Send + Sync> {
        Box::new(())
    }

    fn basis(&self) -> String {
        "nothing but a test".to_owned()
    }
}

pub(super) fn root() -> Caller {
    Caller { standing: Standing::Internal, basis: Basis::Storage, uid: Some(0), ..Caller::unknown() }
}

fn nobody() -> Caller {
    Caller { uid: Some(65534), reason: Some("uid 65534 is not trusted".into()), ..Caller::unknown() }
}

/// A listener without a key, for which everybody is `caller`.
pub(super) fn serve(fixture: &Fixture, caller: Caller) -> (SocketAddr, Web) {
    serve_as(fixture, caller, web::config::Config::default())
}

fn serve_as(fixture: &Fixture, caller: Caller, config: web::config::Config) -> (SocketAddr, Web) {
    let bound = web::bind("127.0.0.1:0".parse().expect("an address")).expect("bound");
    let inputs = web::Inputs {
        settings: config.settings().expect("right"),
        sources: Arc::clone(&fixture.sources),
        classifier: Some(Arc::new(Always(caller))),
    };
    (bound.address(), bound.serve(inputs, fixture.stop()))
}

fn with_key(origins: &[&str]) -> web::config::Config {
    web::config::Config {
        api_key: Some(Secret::new(KEY.to_owned())),
        cors_origins: origins.iter().map(|origin| (*origin).to_owned()).collect(),
        ..web::config::Config::default()
    }
}

pub(super) async fn ask_at(address: SocketAddr, request: &str) -> String {
    let stream = TcpStream::connect(address).await.expect("connected");
    exchange(stream, request.as_bytes()).await
}

/// A request without a body to a listener without a key.
async fn ask(fixture: &Fixture, caller: Caller, head: &str) -> String {
    let (address, _web) = serve(fixture, caller);
    ask_at(address, &format!("{head}Connection: close\r\n\r\n")).await
}

/// The same to a listener with a key.
async fn ask_with_key(caller: Caller, origins: &[&str], head: &str) -> String {
    let fixture = Fixture::new();
    let (address, _web) = serve_as(&fixture, caller, with_key(origins));
    ask_at(address, &format!("{head}Connection: close\r\n\r\n")).await
}

fn has(answer: &str, header: &str) -> bool {
    answer.lines().take_while(|line| !line.is_empty()).any(|line| line.eq_ignore_ascii_case(header))
}

fn code(answer: &str) -> (u16, String) {
    let (status, body) = parts(answer);
    let body = json(body);
    assert_eq!(body["success"], false, "{answer}");
    assert!(body["error"]["message"].is_string() && body["error"]["details"].is_object(), "{answer}");
    (status, body["error"]["code"].as_str().unwrap_or_default().to_owned())
}

const SYSTEM: &str = "GET /api/system HTTP/1.1\r\nHost: localhost\r\n";

#[tokio::test]
async fn metrics_come_in_the_format_that_is_asked_for() {
    let fixture = Fixture::new();
    let counter: Counter = Counter::default();
    fixture.sources.metrics.register(|registry| registry.register("passes", "Passes", counter.clone()));
    let plain = ask(&fixture, nobody(), "GET /metrics HTTP/1.1\r\nHost: localhost\r\n").await;
    assert!(plain.contains("content-type: text/plain; version=0.0.4"), "{plain}");
    assert!(
        plain.contains("# TYPE weft_passes_total counter\nweft_passes_total 0\n") && !plain.contains("EOF"),
        "{plain}"
    );
    let accept = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: application/openmetrics-text\r\n";
    let open = ask(&fixture, nobody(), accept).await;
    assert!(open.contains("content-type: application/openmetrics-text; version=1.0.0"), "{open}");
    assert!(open.contains("# TYPE weft_passes counter") && open.ends_with("# EOF\n"), "{open}");
}

#[tokio::test]
async fn health_says_what_is_missing() {
    let fixture = Fixture::new();
    let ready = ask(&fixture, nobody(), "GET /health/ready HTTP/1.1\r\nHost: localhost\r\n").await;
    assert_eq!(parts(&ready).0, 200, "{ready}");
    let _blocker = fixture.sources.readiness.block("dns");
    let starting = ask(&fixture, nobody(), "GET /health/ready HTTP/1.1\r\nHost: localhost\r\n").await;
    assert_eq!(code(&starting), (503, "NOT_READY".to_owned()));
    let reasons = &json(parts(&starting).1)["error"]["details"]["reasons"];
    assert_eq!(reasons, &serde_json::json!(["dns has not come up yet"]));
    let live = ask(&fixture, nobody(), "GET /health/live HTTP/1.1\r\nHost: localhost\r\n").await;
    assert_eq!(parts(&live).0, 200, "{live}");
}

#[tokio::test]
async fn without_a_link_the_agent_is_not_ready() {
    let fixture = Fixture::new();
    fixture.wireguard.send_modify(|status| Arc::make_mut(status).link = None);
    let answer = ask(&fixture, nobody(), "GET /health/ready HTTP/1.1\r\nHost: localhost\r\n").await;
    assert_eq!(code(&answer).0, 503);
    assert!(answer.contains("the tunnel link does not exist"), "{answer}");
}

#[tokio::test]
async fn what_is_not_offered_is_refused_in_the_documented_format() {
    let fixture = Fixture::new();
    let elsewhere =
        ["/status", "/peers", "/reload", "/down", "/api", "/api/", "/api/processes/", "/weft.v1.Agent/GetStatus"];
    for path in elsewhere {
        let answer = ask(&fixture, root(), &format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n")).await;
        assert_eq!(code(&answer), (404, "NOT_FOUND".to_owned()), "{path}");
    }
    let wrong = ask(&fixture, root(), "POST /metrics HTTP/1.1\r\nHost: localhost\r\n").await;
    assert_eq!(code(&wrong), (405, "METHOD_NOT_ALLOWED".to_owned()));
    let query = ask(&fixture, root(), "GET /api/system?verbose=1 HTTP/1.1\r\nHost: localhost\r\n").await;
    assert_eq!(code(&query), (400, "INVALID_REQUEST".to_owned()));
}

#[tokio::test]
async fn figures_of_the_host_are_for_a_caller_that_the_kernel_vouches_for() {
    let fixture = Fixture::new();
    let answer = ask(&fixture, root(), SYSTEM).await;
    let (status, body) = parts(&answer);
    assert!(status == 200 && json(body)["memory"]["total"].as_u64().is_some_and(|bytes| bytes > 0), "{answer}");
    assert!(!answer.contains("access-control"), "no page may read what rests on the kernel's word: {answer}");
    let refused = ask(&fixture, nobody(), SYSTEM).await;
    assert_eq!(code(&refused), (401, "UNAUTHORIZED".to_owned()));
    assert!(has(&refused, "www-authenticate: Bearer") && refused.contains("uid 65534"), "{refused}");
}

#[tokio::test]
async fn every_answer_has_the_security_headers() {
    let fixture = Fixture::new();
    for head in [SYSTEM, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n", "GET /no HTTP/1.1\r\nHost: localhost\r\n"] {
        let answer = ask(&fixture, root(), head).await;
        for header in [
            "x-content-type-options: nosniff",
            "x-frame-options: DENY",
            "x-xss-protection: 1; mode=block",
            "content-security-policy: default-src 'none'; frame-ancestors 'none'",
            "cache-control: no-store",
        ] {
            assert!(has(&answer, header), "{header} in {answer}");
        }
    }
}

#[tokio::test]
async fn the_key_lets_in_from_anywhere_and_a_wrong_one_nobody() {
    let with = |header: &str| format!("GET /api/system HTTP/1.1\r\nHost: api.example\r\n{header}\r\n");
    for right in ["Authorization: Bearer your-secret-api-key", "Authorization: ApiKey your-secret-api-key"] {
        let answer = ask_with_key(nobody(), &["*"], &with(right)).await;
        assert!(parts(&answer).0 == 200 && has(&answer, "access-control-allow-origin: *"), "{answer}");
    }
    let answer = ask_with_key(nobody(), &["*"], &with("X-API-Key: your-secret-api-key")).await;
    assert_eq!(parts(&answer).0, 200, "{answer}");
    for wrong in ["Authorization: Bearer your-secret-api-kez", "X-API-Key: x", "Authorization: Basic eA=="] {
        let answer = ask_with_key(root(), &["*"], &with(wrong)).await;
        assert_eq!(code(&answer), (401, "UNAUTHORIZED".to_owned()), "{wrong}");
        assert!(!answer.contains("your-secret"), "{answer}");
    }
}

#[tokio::test]
async fn a_page_of_another_origin_never_acts_with_the_authority_of_its_reader() {
    let head = format!("{SYSTEM}Origin: https://evil.example\r\n");
    let fixture = Fixture::new();
    let without_key = ask(&fixture, root(), &head).await;
    assert_eq!(code(&without_key), (403, "PERMISSION_DENIED".to_owned()));
    assert!(!without_key.contains("access-control"), "{without_key}");
    let with_key = ask_with_key(root(), &["*"], &head).await;
    assert_eq!(code(&with_key), (403, "PERMISSION_DENIED".to_owned()));
    let keyed = format!("{head}X-API-Key: {KEY}\r\n");
    assert_eq!(parts(&ask_with_key(root(), &["*"], &keyed).await).0, 200);
    let local = ask_with_key(root(), &["*"], SYSTEM).await;
    assert!(parts(&local).0 == 200 && !local.contains("access-control"), "{local}");
    let public = ask_with_key(root(), &["*"], "GET /metrics HTTP/1.1\r\nHost: localhost\r\n").await;
    assert!(parts(&public).0 == 200 && !public.contains("access-control"), "{public}");
}

#[tokio::test]
async fn a_preflight_is_granted_to_the_configured_origins_where_there_is_a_key() {
    let head = "OPTIONS /api/system HTTP/1.1\r\nHost: localhost\r\nOrigin: https://app.example\r\n\
                Access-Control-Request-Method: GET\r\nAccess-Control-Request-Headers: x-api-key\r\n";
    let any = ask_with_key(nobody(), &["*"], head).await;
    assert!(parts(&any).0 == 204 && has(&any, "access-control-allow-origin: *"), "{any}");
    assert!(has(&any, "access-control-allow-methods: GET, OPTIONS"), "{any}");
    assert!(has(&any, "access-control-allow-headers: Content-Type, Authorization, X-API-Key"), "{any}");
    let named = ask_with_key(nobody(), &["https://app.example"], head).await;
    assert!(has(&named, "access-control-allow-origin: https://app.example") && has(&named, "vary: Origin"), "{named}");
    let other = ask_with_key(nobody(), &["https://other.example"], head).await;
    assert!(parts(&other).0 == 204 && !other.contains("access-control"), "{other}");
    let fixture = Fixture::new();
    let without_key = ask(&fixture, root(), head).await;
    assert!(has(&without_key, "allow: GET, OPTIONS") && !without_key.contains("access-control"), "{without_key}");
}

#[tokio::test]
async fn a_page_that_points_its_name_at_us_gets_nothing() {
    let fixture = Fixture::new();
    let metrics = ask(&fixture, root(), "GET /metrics HTTP/1.1\r\nHost: evil.example\r\n").await;
    assert_eq!(code(&metrics), (403, "PERMISSION_DENIED".to_owned()));
    let system = ask(&fixture, root(), "GET /api/system HTTP/1.1\r\nHost: evil.example\r\n").await;
    assert_eq!(code(&system), (401, "UNAUTHORIZED".to_owned()));
}

#[tokio::test]
async fn the_document_and_the_index_list_what_there_is() {
    let fixture = Fixture::new();
    let document = ask(&fixture, nobody(), "GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n").await;
    assert!(json(parts(&document).1)["paths"]["/api/system"]["get"].is_object(), "{document}");
    let index = ask(&fixture, nobody(), "GET / HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n").await;
    assert!(json(parts(&index).1)["endpoints"]["GET /api/system"].is_string(), "{index}");
}

#[tokio::test]
async fn the_page_may_load_its_own_files_and_nothing_else() {
    let fixture = Fixture::new();
    for (path, content_type) in [("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")] {
        let answer = ask(&fixture, nobody(), &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n")).await;
        assert!(answer.contains(&format!("content-type: {content_type}")), "{answer}");
        assert!(answer.contains("content-security-policy: default-src 'none'; script-src 'self';"), "{answer}");
    }
}

#[tokio::test]
async fn a_head_request_is_answered_without_content() {
    let fixture = Fixture::new();
    let answer = ask(&fixture, root(), "HEAD /api/system HTTP/1.1\r\nHost: localhost\r\n").await;
    let (status, body) = parts(&answer);
    assert!(status == 200 && body.is_empty() && answer.contains("content-length: "), "{answer}");
}

#[tokio::test]
async fn a_body_that_nobody_wants_leaves_the_connection_usable() {
    let fixture = Fixture::new();
    let (address, _web) = serve(&fixture, root());
    let big = "x".repeat(200_000);
    let first = format!("POST /api/system HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{big}", big.len());
    let both = ask_at(address, &format!("{first}{SYSTEM}Connection: close\r\n\r\n")).await;
    assert!(both.starts_with("HTTP/1.1 405") && both.contains("HTTP/1.1 200"), "{both}");
}

#[tokio::test]
async fn connections_over_the_bound_wait_their_turn() {
    let fixture = Fixture::new();
    let config = web::config::Config { max_connections: 1, ..web::config::Config::default() };
    let (address, _web) = serve_as(&fixture, root(), config);
    let holder = TcpStream::connect(address).await.expect("connected");
    let waiting = async { ask_at(address, &format!("{SYSTEM}Connection: close\r\n\r\n")).await };
    let mut waiting = std::pin::pin!(waiting);
    let early = tokio::time::timeout(std::time::Duration::from_millis(100), waiting.as_mut()).await;
    assert!(early.is_err(), "it was answered beside the only connection");
    drop(holder);
    assert_eq!(parts(&waiting.await).0, 200);
}

#[tokio::test(start_paused = true)]
async fn a_slow_head_is_cut_off() {
    let fixture = Fixture::new();
    let (address, _web) = serve(&fixture, root());
    for beginning in ["", "GET /metrics HTTP/1.1\r\nHost: local"] {
        let started = tokio::time::Instant::now();
        let stream = TcpStream::connect(address).await.expect("connected");
        exchange(stream, beginning.as_bytes()).await;
        assert!(started.elapsed() <= std::time::Duration::from_secs(61), "{beginning:?}: {:?}", started.elapsed());
    }
}

#[tokio::test]
async fn a_port_in_use_names_the_key() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let error = web::bind(taken.local_addr().expect("bound")).expect_err("it is taken");
    assert!(matches!(error, WebError::InUse { .. }) && error.to_string().contains("web.listen"), "{error}");
}
