//! The methods about this node: its name, its host, its callers, its life.

use std::sync::Arc;
use std::time::SystemTime;

use futures_util::future::BoxFuture;
use serde_json::json;

use super::call::{Call, Outcome, Reply};
use super::failure::Failure;
use super::params;
use super::{Pm3, json as to_json};

pub(super) fn ping(pm3: &Pm3, _call: &Call) -> Outcome {
    Ok(Reply::Json(pm3.ping.clone()))
}

pub(super) fn version(pm3: &Pm3, _call: &Call) -> Outcome {
    Ok(Reply::Json(pm3.version.clone()))
}

pub(super) fn system(pm3: &Pm3, _call: &Call) -> Outcome {
    Ok(Reply::Json(pm3.system.newest()))
}

pub(super) fn session(pm3: &Pm3, _call: &Call) -> Outcome {
    to_json(&pm3.sessions.report(SystemTime::now()))
}

pub(super) fn reload(pm3: Arc<Pm3>, call: Call) -> BoxFuture<'static, Outcome> {
    Box::pin(async move { done("reload", &call, async { pm3.agent.reload().await }).await })
}

pub(super) fn shutdown(pm3: Arc<Pm3>, call: Call) -> BoxFuture<'static, Outcome> {
    Box::pin(async move { done("shutdown", &call, async { pm3.agent.shutdown().await }).await })
}

async fn done(name: &str, call: &Call, work: impl Future<Output = Result<Vec<String>, Failure>>) -> Outcome {
    params::read::<serde::de::IgnoredAny>(name, &[], call)?;
    let lines = work.await?;
    to_json(&json!({ "schema": 1, "done": lines }))
}
