//! What each route does: read what was published or ask a domain, and write it.

use axum::http::{HeaderValue, Response, StatusCode, header};
use bytes::Bytes;
use serde_json::json;
use tokio::sync::Semaphore;

use super::connection::Asked;
use super::problem::{Code, Problem};
use super::routes::Endpoint;
use super::{Site, answer, exposition, live, openapi, page, processes, system};
use crate::api::body::Body;
use crate::api::view;

/// Requests in work at a time that wait for something; more are told to come back.
const MAX_WAITING: usize = 512;
static SLOTS: Semaphore = Semaphore::const_new(MAX_WAITING);

/// Carries a request out. `content` is its body, if its route takes one.
pub(super) async fn answer(mut asked: Asked<'_>, content: Bytes) -> Result<Response<Body>, Problem> {
    match asked.route.endpoint {
        Endpoint::List => processes::list(&asked).await,
        Endpoint::System => Ok(answer::json(StatusCode::OK, &system::report(&asked.site.sources.pm3.host_figures()))),
        Endpoint::Status => processes::status(&asked),
        Endpoint::Health => processes::health(&asked),
        Endpoint::Live => Ok(answer::json(StatusCode::OK, &json!({ "status": "live" }))),
        Endpoint::Ready => ready(asked.site),
        Endpoint::Document => Ok(answer::bytes(answer::JSON, openapi::document())),
        Endpoint::Index => Ok(page::index(asked.head)),
        Endpoint::Style => Ok(page::style()),
        Endpoint::Script => Ok(page::script()),
        Endpoint::Subscribe => {
            let (upgrade, stop) = (asked.upgrade.take(), asked.site.stop.clone());
            live::upgrade(live::Context { live: &asked.site.live, head: asked.head, upgrade, stop })
        }
        Endpoint::Metrics
        | Endpoint::Details
        | Endpoint::Create
        | Endpoint::StopOrDelete
        | Endpoint::Stop
        | Endpoint::Start
        | Endpoint::Restart
        | Endpoint::Reload
        | Endpoint::Logs
        | Endpoint::LogsOfProcess => wait(&asked, &content).await,
    }
}

/// What waits for something, one slot each.
async fn wait(asked: &Asked<'_>, content: &[u8]) -> Result<Response<Body>, Problem> {
    let _slot = SLOTS.try_acquire().map_err(|_full| {
        Problem::new(Code::InsufficientResources, format!("{MAX_WAITING} requests are in work; try again"))
    })?;
    match asked.route.endpoint {
        Endpoint::Metrics => metrics(asked).await,
        Endpoint::Details => processes::details(asked).await,
        Endpoint::Create => processes::create(asked, content).await,
        Endpoint::StopOrDelete => processes::stop_or_delete(asked, content).await,
        Endpoint::Stop => processes::stop(asked, content).await,
        Endpoint::Start => processes::start(asked, content).await,
        Endpoint::Restart => processes::restart(asked, content).await,
        Endpoint::Reload => processes::reload(asked, content).await,
        Endpoint::Logs | Endpoint::LogsOfProcess => processes::logs(asked).await,
        Endpoint::List
        | Endpoint::System
        | Endpoint::Status
        | Endpoint::Health
        | Endpoint::Live
        | Endpoint::Ready
        | Endpoint::Document
        | Endpoint::Index
        | Endpoint::Style
        | Endpoint::Script
        | Endpoint::Subscribe => Err(Problem::new(Code::OperationFailed, "this needs no waiting")),
    }
}

async fn metrics(asked: &Asked<'_>) -> Result<Response<Body>, Problem> {
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
