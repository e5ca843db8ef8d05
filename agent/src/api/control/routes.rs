//! What the control socket answers.

use std::sync::Arc;
use std::time::SystemTime;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Extension, RawQuery, State};
use axum::http::{Method, Request, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Router, body::Body};
use serde::Serialize;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::caller::Caller;
use crate::api::error::{ApiError, ErrorCode};
use crate::api::{Command, CommandResult, Sources, grpc, http, view, web};
use crate::foundation::lifecycle::Stop;

/// What exists, for those who ask for something else.
const EXISTS: &str = "GET or POST /ping /version /status /peers; GET /metrics; POST /reload /shutdown /down; \
                      gRPC weft.v1.Agent";

/// The answers for those who may call.
pub(super) fn granted(sources: Arc<Sources>, stop: Stop) -> Router {
    let slots = Arc::new(Semaphore::new(http::MAX_REQUESTS));
    let agent = grpc::service(Arc::clone(&sources), stop);
    Router::new()
        .route("/ping", get(ping).post(ping))
        .route("/version", get(version).post(version))
        .route("/status", get(status).post(status))
        .route("/peers", get(peers).post(peers))
        .route("/metrics", get(web::metrics))
        .route("/reload", post(reload))
        .route("/shutdown", post(shutdown))
        .route("/down", post(down))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn(move |request, next: Next| http::bounded(Arc::clone(&slots), request, next)))
        .layer(DefaultBodyLimit::max(http::MAX_BODY_BYTES))
        .with_state(sources)
        .route_service("/weft.v1.Agent/{method}", agent)
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

async fn not_found(uri: Uri) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("there is no {}; there is {EXISTS}", uri.path()))
}

async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    ApiError::new(ErrorCode::MethodNotAllowed, format!("{} is not for {method}; there is {EXISTS}", uri.path()))
}

async fn ping(State(sources): State<Arc<Sources>>, RawQuery(query): RawQuery) -> Response {
    http::json(query.as_deref(), &sources.model.borrow().node.id)
}

async fn version(RawQuery(query): RawQuery) -> Response {
    http::json(query.as_deref(), &concat!("v", env!("CARGO_PKG_VERSION")))
}

async fn status(State(sources): State<Arc<Sources>>, RawQuery(query): RawQuery) -> Response {
    http::json(query.as_deref(), &view::status(&sources))
}

async fn peers(State(sources): State<Arc<Sources>>, RawQuery(query): RawQuery) -> Response {
    let figures = sources.figures.read().await;
    let model = sources.model.borrow().clone();
    http::json(query.as_deref(), &view::peers(&model, &figures, SystemTime::now()))
}

type Parts = (State<Arc<Sources>>, Extension<Caller>, RawQuery, Result<Bytes, BytesRejection>);

async fn reload(parts: Parts) -> Result<Response, ApiError> {
    run("reload", Command::Reload, parts).await
}

async fn shutdown(parts: Parts) -> Result<Response, ApiError> {
    run("shutdown", Command::Shutdown, parts).await
}

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
    let (reply, answer) = oneshot::channel();
    sources.commands.try_send(command(reply)).map_err(|error| match error {
        mpsc::error::TrySendError::Full(_) => ApiError::new(ErrorCode::Busy, "other commands are waiting; try again"),
        mpsc::error::TrySendError::Closed(_) => ApiError::new(ErrorCode::NotReady, "the agent is stopping"),
    })?;
    match answer.await {
        Ok(Ok(done)) => Ok(http::json(query.as_deref(), &Done { schema: view::SCHEMA, done })),
        Ok(Err(error)) => Err(ApiError::new(ErrorCode::Failed, error.to_string())),
        Err(_gone) => Err(ApiError::new(ErrorCode::NotReady, format!("the agent stopped before {name} was done"))),
    }
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
