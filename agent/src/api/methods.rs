//! The pm3 methods over HTTP: a request becomes a call, an outcome becomes an answer. Serves the control socket and the gateway.
//!
//! Success is 200 with the value and a line end, nothing is `{}`; a failure is `{"error":…,"code":…}` with the status of its
//! code; `?pretty` indents both. Some paths are no methods because their answers are not one JSON value: `/tail`,
//! `/debug/headers`, `/debug/pprof/` and `/nats/`.
//!
//! Invariants: a body is read only where the method takes one, up to [`MAX_BODY_BYTES`] and within a deadline; calls in work
//! are bounded; the caller's going away drops the call.

pub(super) mod pretty;
mod monitor;
mod profile;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::body::Body;
use super::error::{ApiError, ErrorCode};
use crate::pm3::Pm3;
use crate::pm3::call::{Call, Outcome, Reply, Verb};
use crate::pm3::caller::Caller;
use crate::pm3::failure::{Failure, Kind};
use crate::pm3::table::Takes;
use crate::pm3::tail;

/// The largest body of a call.
pub(super) const MAX_BODY_BYTES: usize = 1024 * 1024;
/// How long a body may take to come in.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Calls that wait for something over all transports; more are told to come back.
const MAX_CALLS: usize = 2048;
static SLOTS: Semaphore = Semaphore::const_new(MAX_CALLS);

const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");
const NOSNIFF: HeaderValue = HeaderValue::from_static("nosniff");

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        let code = match failure.kind {
            Kind::Invalid => ErrorCode::InvalidArgument,
            Kind::Forbidden => ErrorCode::Forbidden,
            Kind::NotFound => ErrorCode::NotFound,
            Kind::WrongVerb => ErrorCode::MethodNotAllowed,
            Kind::Conflict => ErrorCode::Conflict,
            Kind::TooLarge => ErrorCode::TooLarge,
            Kind::Timeout => ErrorCode::Timeout,
            Kind::Busy => ErrorCode::Busy,
            Kind::Unavailable => ErrorCode::NotReady,
            Kind::Failed => ErrorCode::Failed,
        };
        Self::new(code, failure.text)
    }
}

/// Work that may wait, if there is room for it.
pub(super) async fn with_slot(work: impl Future<Output = Outcome>) -> Outcome {
    let busy = |_full| Failure::new(Kind::Busy, format!("{MAX_CALLS} calls are in work; try again"));
    let _slot = SLOTS.try_acquire().map_err(busy)?;
    work.await
}

/// An answer that needed no waiting, or the work that leads to one.
pub(super) enum Answer {
    Now(Response<Body>),
    Later(BoxFuture<'static, Response<Body>>),
}

/// Begins to answer one request of a caller that may call.
pub(super) fn begin<B>(pm3: &Arc<Pm3>, caller: &Arc<Caller>, from: IpAddr, head: Parts, body: B) -> Answer
where
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if !body.is_end_stream() || is_special(head.uri.path()) {
        let (pm3, caller) = (Arc::clone(pm3), Arc::clone(caller));
        return Answer::Later(Box::pin(async move { answer(&pm3, &caller, Some(from), &head, body).await }));
    }
    let is_pretty = wants_pretty(head.uri.query());
    match start(pm3, caller, Some(from), &head, Bytes::new()) {
        Ok(Ok(outcome)) => Answer::Now(finished(outcome, is_pretty)),
        Ok(Err(later)) => Answer::Later(Box::pin(async move { finished(with_slot(later).await, is_pretty) })),
        Err(failure) => Answer::Now(refused(failure.into(), is_pretty)),
    }
}

fn is_special(path: &str) -> bool {
    path == "/tail" || path.starts_with("/debug/") || monitor::is_for(path)
}

fn finished(outcome: Outcome, is_pretty: bool) -> Response<Body> {
    match outcome {
        Ok(reply) => written(reply, is_pretty),
        Err(failure) => refused(failure.into(), is_pretty),
    }
}

/// Finds the method and begins the call.
fn start(
    pm3: &Arc<Pm3>,
    caller: &Arc<Caller>,
    from: Option<IpAddr>,
    head: &Parts,
    body: Bytes,
) -> Result<Result<Outcome, BoxFuture<'static, Outcome>>, Failure> {
    let verb = verb(head)?;
    let (method, parts) = pm3.find(verb, head.uri.path())?;
    // Only methods that take something look at the query.
    let query = head.uri.query().filter(|_| method.takes != Takes::Nothing).map(str::to_owned);
    let headers = if method.takes == Takes::Message { monitor::message_headers(&head.headers) } else { Vec::new() };
    let call = Call { verb, parts, query, body, headers, caller: Arc::clone(caller), from };
    Ok(pm3.call_now(method, call))
}

fn verb(head: &Parts) -> Result<Verb, Failure> {
    let no_verb = || Failure::new(Kind::WrongVerb, format!("{} is no verb of this API", head.method));
    Verb::parse(head.method.as_str()).ok_or_else(no_verb)
}

/// Answers one request of a caller that may call.
pub(super) async fn answer<B>(
    pm3: &Arc<Pm3>,
    caller: &Arc<Caller>,
    from: Option<IpAddr>,
    head: &Parts,
    body: B,
) -> Response<Body>
where
    B: hyper::body::Body<Data = Bytes> + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let is_pretty = wants_pretty(head.uri.query());
    match respond(pm3, caller, from, head, body).await {
        Ok(response) => response,
        Err(failure) => refused(failure.into(), is_pretty),
    }
}

async fn respond<B>(
    pm3: &Arc<Pm3>,
    caller: &Arc<Caller>,
    from: Option<IpAddr>,
    head: &Parts,
    body: B,
) -> Result<Response<Body>, Failure>
where
    B: hyper::body::Body<Data = Bytes> + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let verb = verb(head)?;
    let path = head.uri.path();
    if is_special(path) {
        return special(pm3, caller, from, head, verb, body).await;
    }
    // A path that is not there is said before the body is read.
    pm3.find(verb, path)?;
    let body = read_body(body).await?;
    let reply = match start(pm3, caller, from, head, body)? {
        Ok(outcome) => outcome?,
        Err(later) => with_slot(later).await?,
    };
    Ok(written(reply, wants_pretty(head.uri.query())))
}

/// The paths whose answers are not one JSON value.
async fn special<B>(
    pm3: &Arc<Pm3>,
    caller: &Arc<Caller>,
    from: Option<IpAddr>,
    head: &Parts,
    verb: Verb,
    body: B,
) -> Result<Response<Body>, Failure>
where
    B: hyper::body::Body<Data = Bytes> + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    match head.uri.path() {
        "/tail" if verb == Verb::Post => {
            let query = head.uri.query().map(str::to_owned);
            let body = read_body(body).await?;
            let (parts, headers) = (Vec::new(), Vec::new());
            let call = Call { verb, parts, query, body, headers, caller: Arc::clone(caller), from };
            let lines = tail::open(pm3, tail::Options::read(&call)?).await;
            let chunks = lines.map(|line| Ok(Bytes::from(format!("{line}\n"))));
            Ok(response(HeaderValue::from_static("application/stream+json"), Body::Stream(chunks.boxed())))
        }
        "/tail" => Err(Failure::new(Kind::WrongVerb, "/tail is for POST, with the options as a JSON object")),
        path if monitor::is_for(path) => monitor::answer(pm3, verb, path, head.uri.query()).await,
        "/debug/headers" => Ok(response(TEXT, headers(head).into())),
        path => match path.strip_prefix("/debug/pprof/").or_else(|| (path == "/debug/pprof").then_some("")) {
            Some(name) => profile::answer(name, head.uri.query().unwrap_or_default()).await,
            None => Err(Failure::new(
                Kind::NotFound,
                format!("there is no {path}; there is /debug/headers and /debug/pprof/"),
            )),
        },
    }
}

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// The request as it arrived, a header a line.
fn headers(head: &Parts) -> String {
    let mut text = format!("{} {}\n", head.method, head.uri.path());
    for name in head.headers.keys() {
        let values: Vec<_> =
            head.headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
        text.push_str(&format!("{name}: [{}]\n", values.join(" ")));
    }
    text
}

/// The whole body, if it is small enough and comes in time.
///
/// # Errors
/// Too large, too slow, or broken off.
pub(super) async fn read_body<B>(body: B) -> Result<Bytes, Failure>
where
    B: hyper::body::Body<Data = Bytes> + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    let read = timeout(BODY_TIMEOUT, Limited::new(std::pin::pin!(body), MAX_BODY_BYTES).collect()).await;
    match read {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(Failure::new(Kind::TooLarge, format!("the body is larger than {MAX_BODY_BYTES} bytes")))
        }
        Ok(Err(_broken)) => Err(Failure::invalid("the body did not arrive whole")),
        Err(_elapsed) => {
            Err(Failure::new(Kind::Timeout, format!("the body did not come within {} s", BODY_TIMEOUT.as_secs())))
        }
    }
}

/// Whether the query has `pretty`, with any value.
pub(super) fn wants_pretty(query: Option<&str>) -> bool {
    query.is_some_and(|query| query.split('&').any(|pair| pair.split('=').next() == Some("pretty")))
}

fn written(reply: Reply, is_pretty: bool) -> Response<Body> {
    match reply {
        Reply::Json(value) if is_pretty => response(JSON, line(&pretty::indent(&value)).into()),
        Reply::Json(value) => response(JSON, line(&value).into()),
        Reply::Nothing => response(JSON, Bytes::from_static(b"{}\n").into()),
        Reply::Raw(value) => response(JSON, value.into()),
        Reply::Other { content_type, bytes } => response(HeaderValue::from_static(content_type), bytes.into()),
    }
}

fn line(value: &[u8]) -> Bytes {
    let mut text = Vec::with_capacity(value.len() + 1);
    text.extend_from_slice(value);
    text.push(b'\n');
    text.into()
}

fn response(content_type: HeaderValue, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let mut headers = HeaderMap::with_capacity(4);
    headers.insert(header::CONTENT_TYPE, content_type);
    // A page that reads an answer as a script or a style sheet gets neither.
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, NOSNIFF);
    *response.headers_mut() = headers;
    response
}

/// The text of a failure as every transport shows it, with its status.
pub(super) fn error_text(error: &ApiError) -> (StatusCode, Vec<u8>) {
    // Two strings can always be written.
    (error.code.mapping().http, serde_json::to_vec(error).unwrap_or_default())
}

/// A failure as an answer.
pub(super) fn refused(error: ApiError, is_pretty: bool) -> Response<Body> {
    let (status, text) = error_text(&error);
    let text = if is_pretty { pretty::indent(&text) } else { text };
    let mut response = response(JSON, line(&text).into());
    *response.status_mut() = status;
    response
}
