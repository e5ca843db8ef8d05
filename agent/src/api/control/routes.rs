//! What the control socket answers.

use std::sync::Arc;
use std::time::SystemTime;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Extension, RawQuery, State};
use axum::http::{HeaderMap, Method, Request, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Router, body::Body};
use serde::Serialize;
use tokio::sync::{Semaphore, oneshot};

use super::caller::Caller;
use crate::api::error::{ApiError, ErrorCode};
use crate::api::web::exposition;
use crate::api::{Command, CommandResult, Sources, carry_out, contract, grpc, http, methods, process, view};
use crate::foundation::lifecycle::Stop;
use crate::pm3::caller as vouched;

/// What exists, for those who ask for something else.
const EXISTS: &str = "GET or POST /status /status/peers; GET /metrics; /process…; POST /down; gRPC weft.v1, weft.store.v1 and v1; the methods of pm3";

/// The answers for those who may call.
pub(super) fn granted(sources: Arc<Sources>, stop: Stop) -> Router {
    let slots = Arc::new(Semaphore::new(http::MAX_REQUESTS));
    let contract =
        contract::routes(&sources, stop.clone()).reset_fallback().layer(Extension(contract::caller::Caller::Local));
    let agent = grpc::service(Arc::clone(&sources), stop.clone());
    let store = grpc::store::service(sources.store.clone(), sources.state_dir.clone(), stop);
    Router::new()
        .route("/status", get(status).post(status))
        .route("/status/peers", get(peers).post(peers))
        .route("/metrics", get(metrics))
        .route("/down", post(down))
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn(move |request, next: Next| http::bounded(Arc::clone(&slots), request, next)))
        .layer(DefaultBodyLimit::max(http::MAX_BODY_BYTES))
        // Behind the bounds above: a stop waits as long as the process takes, a log is a stream.
        .merge(process::routes())
        // Behind the bounds above: the methods have their own, and some of their answers are streams.
        .fallback(method)
        .with_state(sources)
        .route_service("/weft.v1.Agent/{method}", agent)
        .route_service("/weft.store.v1.Store/{method}", store)
        .merge(contract)
}

/// The one answer for those who may not.
pub(in crate::api) fn refused() -> Router {
    Router::new().fallback(forbidden)
}

async fn forbidden(request: Request<Body>) -> Response {
    let uid =
        request.extensions().get::<Caller>().map_or_else(|| "unknown".to_owned(), |caller| caller.uid.to_string());
    let text = format!("uid {uid} may not use the control socket: become root, or join group weft and log in again");
    let error = ApiError::new(ErrorCode::Forbidden, text);
    let is_grpc = request
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    if is_grpc { tonic::Status::from(error).into_http::<Body>() } else { error.into_response() }
}

/// Every other path is a method of the pm3 API.
async fn method(State(sources): State<Arc<Sources>>, request: Request<Body>) -> Response<Body> {
    let caller = request.extensions().get::<Caller>().map_or_else(vouched::Caller::unknown, vouched_for);
    let (head, body) = request.into_parts();
    methods::answer(&sources.pm3, &Arc::new(caller), None, &head, body).await.map(Body::new)
}

/// The record of the socket as the methods know it.
fn vouched_for(caller: &Caller) -> vouched::Caller {
    vouched::Caller {
        standing: vouched::Standing::Internal,
        basis: vouched::Basis::Socket,
        uid: Some(caller.uid),
        pid: caller.pid.and_then(|pid| u32::try_from(pid).ok()),
        ..vouched::Caller::unknown()
    }
}

async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    ApiError::new(ErrorCode::MethodNotAllowed, format!("{} is not for {method}; there is {EXISTS}", uri.path()))
}

async fn status(State(sources): State<Arc<Sources>>, RawQuery(query): RawQuery) -> Response {
    http::json(query.as_deref(), &view::status(&sources))
}

async fn metrics(State(sources): State<Arc<Sources>>, headers: HeaderMap) -> Result<Response, ApiError> {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (content_type, text) = exposition::scrape(&sources.metrics, accept).await.map_err(|error| {
        tracing::error!(%error, "a collector failed to write its metrics");
        ApiError::new(ErrorCode::Failed, "a collector failed; the log of the agent says more")
    })?;
    Ok(([(header::CONTENT_TYPE, content_type)], text).into_response())
}

async fn peers(State(sources): State<Arc<Sources>>, RawQuery(query): RawQuery) -> Response {
    let figures = sources.figures.read().await;
    let model = sources.model.borrow().clone();
    http::json(query.as_deref(), &view::peers(&model, &figures, SystemTime::now()))
}

type Parts = (State<Arc<Sources>>, Extension<Caller>, RawQuery, Result<Bytes, BytesRejection>);

async fn down(parts: Parts) -> Result<Response, ApiError> {
    run("down", Command::Down, parts).await
}

/// What a command answers.
#[derive(Debug, Serialize)]
struct Done {
    schema: u32,
    done: Vec<String>,
}

async fn run(
    name: &'static str,
    command: fn(oneshot::Sender<CommandResult>) -> Command,
    (State(sources), Extension(caller), RawQuery(query), body): Parts,
) -> Result<Response, ApiError> {
    refuse_arguments(name, &body.map_err(unreadable)?)?;
    tracing::info!(command = name, uid = caller.uid, pid = caller.pid, "asked over the control socket");
    let done = carry_out(&sources.commands, command).await?;
    Ok(http::json(query.as_deref(), &Done { schema: view::SCHEMA, done }))
}

fn unreadable(rejection: BytesRejection) -> ApiError {
    match rejection.status() {
        axum::http::StatusCode::PAYLOAD_TOO_LARGE => {
            let text = format!("the body is larger than {} bytes", http::MAX_BODY_BYTES);
            ApiError::new(ErrorCode::TooLarge, text)
        }
        _ => ApiError::new(ErrorCode::InvalidArgument, "the body did not arrive whole"),
    }
}

/// The commands take no arguments: an empty body or an empty JSON object.
fn refuse_arguments(name: &str, body: &[u8]) -> Result<(), ApiError> {
    if body.trim_ascii().is_empty() {
        return Ok(());
    }
    let refuse = |text| Err(ApiError::new(ErrorCode::InvalidArgument, text));
    match serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(body) {
        Ok(arguments) => match arguments.keys().next() {
            None => Ok(()),
            Some(first) => refuse(format!("{name} takes no argument {first:?}")),
        },
        Err(error) => refuse(format!("the body is not a JSON object: {error}")),
    }
}
