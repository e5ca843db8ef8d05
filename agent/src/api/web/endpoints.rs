//! What each route does: read what was published or ask a domain, and write it.

use axum::http::{HeaderValue, Response, StatusCode, header};
use bytes::Bytes;
use serde_json::json;
use tokio::sync::Semaphore;

use super::connection::Asked;
use super::problem::{Code, Problem};
use super::routes::Endpoint;
use super::{Site, answer, exposition, openapi, routes, system};
use crate::api::body::Body;
use crate::api::view;

/// Requests in work at a time that wait for something; more are told to come back.
const MAX_WAITING: usize = 512;
static SLOTS: Semaphore = Semaphore::const_new(MAX_WAITING);

/// Carries a request out. `content` is its body, if its route takes one.
pub(super) async fn answer(asked: Asked<'_>, _content: Bytes) -> Result<Response<Body>, Problem> {
    match asked.route.endpoint {
        Endpoint::System => Ok(answer::json(StatusCode::OK, &system::report(&asked.site.sources.pm3.host_figures()))),
        Endpoint::Metrics => metrics(&asked).await,
        Endpoint::Live => Ok(answer::json(StatusCode::OK, &json!({ "status": "live" }))),
        Endpoint::Ready => ready(asked.site),
        Endpoint::Document => Ok(answer::bytes(answer::JSON, openapi::document())),
        Endpoint::Index => Ok(answer::json(StatusCode::OK, routes::index())),
    }
}

async fn metrics(asked: &Asked<'_>) -> Result<Response<Body>, Problem> {
    let _slot = SLOTS.try_acquire().map_err(|_full| {
        Problem::new(Code::InsufficientResources, format!("{MAX_WAITING} requests are in work; try again"))
    })?;
    let accept = asked.head.headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (content_type, text) = exposition::scrape(&asked.site.sources.metrics, accept).await.map_err(|error| {
        tracing::error!(%error, "a collector failed to write its metrics");
        Problem::new(Code::OperationFailed, "a collector failed; the log of the agent says more")
    })?;
    Ok(answer::bytes(HeaderValue::from_static(content_type), text))
}

fn ready(site: &Site) -> Result<Response<Body>, Problem> {
    let reasons = view::not_ready(&view::status(&site.sources));
    if reasons.is_empty() {
        return Ok(answer::json(StatusCode::OK, &json!({ "status": "ready" })));
    }
    Err(Problem::new(Code::NotReady, format!("not ready: {}", reasons.join("; "))).with("reasons", reasons))
}
