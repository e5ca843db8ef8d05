//! The web listener, 127.0.0.1:9615 by default: `/metrics` for Prometheus and `/health` for supervisors, and nothing else.
//!
//! It asks nobody who they are, so it gives nothing away that a user of this host may not know, and it refuses a `Host`
//! that is neither loopback nor the configured address: a web page that points its own name at us gets no answer.

pub mod exposition;
mod host;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tower::ServiceExt as _;

use super::error::{ApiError, ErrorCode};
use super::{Sources, http, view};
use crate::foundation::lifecycle::Stop;
use crate::foundation::task::{self, Task};

const EXISTS: &str = "GET /metrics, GET /health/live and GET /health/ready";

/// Why the listener could not be made.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    #[error(
        "web.listen {address} is in use by another program; stop that one, or choose another address for web.listen \
         (`ss -ltnp` shows who has it)"
    )]
    InUse {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("failed to listen on web.listen {address}; is it an address of this host?")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
}

/// The listener, not yet served.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    address: SocketAddr,
}

/// The running server; dropping it closes the listener.
#[derive(Debug)]
#[must_use = "dropping the web listener closes it"]
pub struct Web {
    _task: Task,
}

/// Listens on `address`.
///
/// # Errors
/// [`WebError`], naming the key.
pub async fn bind(address: SocketAddr) -> Result<Bound, WebError> {
    let listener = TcpListener::bind(address).await.map_err(|source| {
        if source.kind() == io::ErrorKind::AddrInUse {
            WebError::InUse { address, source }
        } else {
            WebError::Listen { address, source }
        }
    })?;
    let address = listener.local_addr().map_err(|source| WebError::Listen { address, source })?;
    Ok(Bound { listener, address })
}

impl Bound {
    /// The address in use; differs from the configured one where that had port 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Begins to answer.
    pub fn serve(self, sources: Arc<Sources>, stop: Stop) -> Web {
        let Self { listener, address } = self;
        let server = Server { router: router(sources, address) };
        let task = task::spawn("web", async move {
            let accept = || async { listener.accept().await.map(|(stream, _address)| stream) };
            http::accept_loop("web", accept, server, stop).await;
        });
        Web { _task: task }
    }
}

fn router(sources: Arc<Sources>, address: SocketAddr) -> Router {
    let slots = Arc::new(Semaphore::new(http::MAX_REQUESTS));
    Router::new()
        .route("/metrics", get(metrics))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn(move |request: Request, next: Next| own_hosts_only(address, request, next)))
        .layer(middleware::from_fn(move |request, next: Next| http::bounded(Arc::clone(&slots), request, next)))
        .with_state(sources)
}

async fn own_hosts_only(address: SocketAddr, request: Request, next: Next) -> Response {
    let named = request.headers().get(header::HOST).map(|value| value.to_str().unwrap_or_default());
    match named {
        Some(named) if !host::is_ours(named, address.ip()) => {
            let text = format!("this listener does not answer for host {named:?}; use http://{address}");
            ApiError::new(ErrorCode::Forbidden, text).into_response()
        }
        Some(_) | None => next.run(request).await,
    }
}

/// `/metrics`, as OpenMetrics for those who accept it, else in the older text format.
pub(super) async fn metrics(State(sources): State<Arc<Sources>>, headers: HeaderMap) -> Result<Response, ApiError> {
    let text = sources.metrics.scrape().await.map_err(|error| {
        tracing::error!(%error, "a collector failed to write its metrics");
        ApiError::new(ErrorCode::Failed, "a collector failed; the log of the agent says more")
    })?;
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (content_type, body) = if exposition::accepts_openmetrics(accept) {
        (exposition::OPENMETRICS, text)
    } else {
        (exposition::TEXT, exposition::to_text(&text))
    };
    Ok(([(header::CONTENT_TYPE, content_type)], body).into_response())
}

async fn live() -> Response {
    http::json(None, &serde_json::json!({ "status": "live" }))
}

async fn ready(State(sources): State<Arc<Sources>>) -> Response {
    let reasons = view::not_ready(&view::status(&sources));
    if reasons.is_empty() {
        return http::json(None, &serde_json::json!({ "status": "ready" }));
    }
    let mut response = http::json(None, &serde_json::json!({ "status": "not ready", "reasons": reasons }));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response
}

async fn not_found(uri: Uri) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("there is no {}; there is {EXISTS}", uri.path()))
}

async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    ApiError::new(ErrorCode::MethodNotAllowed, format!("{} is not for {method}; there is {EXISTS}", uri.path()))
}

struct Server {
    router: Router,
}

impl http::AsyncServe<TcpStream> for Server {
    fn serve(&self, stream: TcpStream, stop: Stop) -> impl Future<Output = ()> + Send + 'static {
        connection(stream, self.router.clone(), stop)
    }
}

async fn connection(stream: TcpStream, router: Router, mut stop: Stop) {
    let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let router = router.clone();
        async move { http::Answer::Ok(router.oneshot(request.map(Body::new)).await.unwrap_or_else(|never| match never {})) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(http::HEAD_TIMEOUT)
        .max_buf_size(http::MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = std::pin::pin!(serving);
    let result = tokio::select! {
        result = serving.as_mut() => result,
        () = stop.requested() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    http::log_end("web", result);
}
