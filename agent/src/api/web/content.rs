//! What comes with a request: its body, bounded in size and time, and its query.

use std::time::Duration;

use axum::http::header;
use axum::http::request::Parts;
use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use tokio::time::timeout;

use super::problem::{Code, Problem};
use super::routes::Route;
use crate::pm3::params;

/// The largest body of a request; a definition with a large environment is a few kB.
pub(super) const MAX_BODY_BYTES: usize = 1024 * 1024;
/// How long a body may take to come in.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// What is read of a body that nobody wants, so that its sender hears the answer instead of a reset.
const MAX_DISCARDED_BYTES: u64 = 64 * 1024 * 1024;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(5);

/// The whole body, if it is small enough, comes in time and says that it is JSON.
///
/// # Errors
/// The refusal; what was sent is read up to a bound, so that the client hears it.
pub(super) async fn read(head: &Parts, mut body: Incoming) -> Result<Bytes, Problem> {
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    if !is_json(head) {
        discard(body).await;
        let text = "the body must be JSON: send `Content-Type: application/json`";
        return Err(Problem::new(Code::UnsupportedMediaType, text));
    }
    match timeout(BODY_TIMEOUT, Limited::new(&mut body, MAX_BODY_BYTES).collect()).await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            discard(body).await;
            let text = format!("the body is larger than {MAX_BODY_BYTES} bytes");
            Err(Problem::new(Code::PayloadTooLarge, text).with("limit_bytes", MAX_BODY_BYTES))
        }
        Ok(Err(_broken)) => Err(Problem::new(Code::InvalidRequest, "the body did not arrive whole")),
        Err(_elapsed) => {
            let text = format!("the body did not come within {} s", BODY_TIMEOUT.as_secs());
            Err(Problem::new(Code::RequestTimeout, text))
        }
    }
}

/// Reads a body that nobody wants, within bounds.
pub(super) async fn discard(mut body: Incoming) {
    if body.is_end_stream() || body.size_hint().lower() > MAX_DISCARDED_BYTES {
        return;
    }
    let reading = async {
        let mut seen: u64 = 0;
        while let Some(Ok(frame)) = body.frame().await {
            seen += frame.data_ref().map_or(0, |data| u64::try_from(data.len()).unwrap_or(u64::MAX));
            if seen > MAX_DISCARDED_BYTES {
                return;
            }
        }
    };
    // Whoever sends slower than that is cut off.
    timeout(DISCARD_TIMEOUT, reading).await.ok();
}

fn is_json(head: &Parts) -> bool {
    let named = head.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    named.split(';').next().is_some_and(|media| media.trim().eq_ignore_ascii_case("application/json"))
}

/// Refuses a query with a name that the route does not take.
pub(super) fn check_query(route: &Route, query: Option<&str>) -> Result<(), Problem> {
    for (name, _) in pairs(query) {
        if route.query.iter().all(|parameter| parameter.name != name) {
            let known: Vec<&str> = route.query.iter().map(|parameter| parameter.name).collect();
            let takes = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            let text = format!("there is no query parameter {name:?} here; there is {takes}");
            return Err(Problem::new(Code::InvalidRequest, text).with("parameter", name));
        }
    }
    Ok(())
}

/// The names and values of a query, as they were sent.
fn pairs(query: Option<&str>) -> impl Iterator<Item = (&str, &str)> {
    let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

/// The value of a parameter, decoded.
///
/// # Errors
/// It is not percent-encoded text, or stands twice.
pub(super) fn value(query: Option<&str>, name: &str) -> Result<Option<String>, Problem> {
    let mut found = pairs(query).filter(|(candidate, _)| *candidate == name).map(|(_, value)| value);
    let Some(first) = found.next() else { return Ok(None) };
    let refuse = |why: &str| Problem::new(Code::InvalidRequest, format!("{name} {why}")).with("parameter", name);
    if found.next().is_some() {
        return Err(refuse("stands twice in the query"));
    }
    params::decode(first).map(Some).ok_or_else(|| refuse("is not percent-encoded text"))
}
