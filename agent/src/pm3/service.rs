//! The methods about services: the supervised processes by the names of their definitions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::future::BoxFuture;
use serde::Deserialize;
use serde_json::{Value, json};

use super::call::{Call, Outcome};
use super::failure::{Failure, Kind};
use super::params::{self, Field, FieldKind};
use super::{Pm3, json as to_json};
use crate::foundation::error::chain;
use crate::process::error::{Error, ErrorKind};
use crate::process::handle::{Change, Scale, Target};
use crate::process::view::{HealthStatus, Status, View};

type Services = BTreeMap<Arc<str>, Vec<Arc<View>>>;

fn services(pm3: &Pm3) -> Services {
    let mut services = Services::new();
    for view in pm3.process.snapshot().processes.iter() {
        services.entry(Arc::clone(&view.process)).or_default().push(Arc::clone(view));
    }
    services
}

/// `{NAME: ID}`, the id of the first instance as text.
pub(super) fn list(pm3: &Pm3, _call: &Call) -> Outcome {
    let ids =
        services(pm3).into_iter().filter_map(|(name, views)| Some((name.to_string(), views.first()?.id.to_string())));
    to_json(&ids.collect::<BTreeMap<_, _>>())
}

/// `status`, `healthy`, `total`, and `err` where something is wrong; of one service, or of each by its name.
pub(super) fn health(pm3: &Pm3, call: &Call) -> Outcome {
    each(pm3, call, health_of)
}

/// The health, and what each process uses.
pub(super) fn metrics(pm3: &Pm3, call: &Call) -> Outcome {
    each(pm3, call, metrics_of)
}

fn each(pm3: &Pm3, call: &Call, report: fn(&[Arc<View>]) -> Value) -> Outcome {
    let services = services(pm3);
    if call.parts.is_empty() {
        let reports = services.iter().map(|(name, views)| (name.to_string(), report(views)));
        return to_json(&reports.collect::<BTreeMap<_, _>>());
    }
    // A service that is not known is no error: it is asked for before it exists.
    to_json(&report(services.get(call.part(0)).map_or(&[], Vec::as_slice)))
}

fn health_of(views: &[Arc<View>]) -> Value {
    let is_healthy = |view: &&Arc<View>| view.status == Status::Online && view.health.status != HealthStatus::Unhealthy;
    let healthy = views.iter().filter(is_healthy).count();
    let status = match (views.is_empty(), healthy) {
        (true, _) => "unknown",
        (false, 0) => "Down",
        (false, _) => "OK",
    };
    let mut report = json!({ "status": status, "healthy": healthy, "total": views.len() });
    let error = |view: &Arc<View>| view.health.last_error.clone().or_else(|| view.error.clone());
    if let Some(error) = views.iter().find_map(error) {
        report["err"] = Value::from(&*error);
    }
    report
}

fn metrics_of(views: &[Arc<View>]) -> Value {
    let mut report = health_of(views);
    report["id"] = views.first().map_or(Value::Null, |view| Value::from(view.id.to_string()));
    report["type"] = Value::from("App");
    let upstream = |view: &Arc<View>| {
        let healthy = view.status == Status::Online && view.health.status != HealthStatus::Unhealthy;
        Some(json!({ "address": format!("127.0.0.1:{}", view.port?), "healthy": healthy }))
    };
    report["server"] = json!({ "upstreams": views.iter().filter_map(upstream).collect::<Vec<_>>() });
    let process = |view: &Arc<View>| {
        let started = view.started?.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Some(json!({
            "pid": view.pid?,
            "create_time": u64::try_from(started.as_millis()).unwrap_or(u64::MAX),
            "cmd": view.definition.script,
            "cpu": view.figures.cpu_percent / 100.0,
            "rss": view.figures.memory_bytes,
        }))
    };
    report["processes"] = Value::from(views.iter().filter_map(process).collect::<Vec<_>>());
    report
}

pub(super) fn restart(pm3: Arc<Pm3>, call: Call) -> BoxFuture<'static, Outcome> {
    Box::pin(async move {
        let done = pm3.process.restart(&target(&call), Change::default()).await;
        counted(done)
    })
}

pub(super) fn stop(pm3: Arc<Pm3>, call: Call) -> BoxFuture<'static, Outcome> {
    Box::pin(async move {
        let done = pm3.process.stop(&target(&call)).await;
        counted(done)
    })
}

pub(super) fn start(pm3: Arc<Pm3>, call: Call) -> BoxFuture<'static, Outcome> {
    Box::pin(async move {
        let done = pm3.process.start_and_wait(&target(&call)).await;
        counted(done)
    })
}

pub(super) const SCALE: &[Field] =
    &[Field { name: "to", kind: FieldKind::Number }, Field { name: "by", kind: FieldKind::Number }];

#[derive(Deserialize)]
struct Scaled {
    /// So many instances.
    to: Option<u32>,
    /// More or fewer.
    by: Option<i32>,
}

/// `{"count":N}`, the instances that there are to be.
pub(super) fn scale(pm3: Arc<Pm3>, call: Call) -> BoxFuture<'static, Outcome> {
    Box::pin(async move {
        let scale = match params::read("service scale", SCALE, &call)? {
            Scaled { to: Some(count), by: None } => Scale::To(count),
            Scaled { to: None, by: Some(step) } => Scale::By(step),
            Scaled { to: Some(_), by: Some(_) } | Scaled { to: None, by: None } => {
                return Err(Failure::invalid("service scale takes either to or by".to_owned()));
            }
        };
        match pm3.process.scale(call.part(0), scale).await {
            Ok(views) => to_json(&json!({ "count": views.len() })),
            Err(error) => Err(failure(&error)),
        }
    })
}

fn target(call: &Call) -> Target {
    if call.parts.is_empty() { Target::All } else { Target::Named(call.part(0).to_owned()) }
}

fn counted(done: Result<Vec<Arc<View>>, Error>) -> Outcome {
    match done {
        Ok(views) => {
            let mut names: Vec<&Arc<str>> = views.iter().map(|view| &view.process).collect();
            names.dedup();
            to_json(&json!({ "count": names.len() }))
        }
        Err(error) => Err(failure(&error)),
    }
}

fn failure(error: &Error) -> Failure {
    let kind = match error.kind() {
        ErrorKind::NotFound => return Failure::new(Kind::NotFound, format!("service not found: {error}")),
        ErrorKind::Invalid => Kind::Invalid,
        ErrorKind::Exists | ErrorKind::AlreadyRunning | ErrorKind::PortInUse | ErrorKind::Conflict => Kind::Conflict,
        ErrorKind::Resources => Kind::Busy,
        ErrorKind::Unavailable => Kind::Unavailable,
        ErrorKind::StartFailed | ErrorKind::Failed => Kind::Failed,
    };
    Failure::new(kind, chain(error))
}
