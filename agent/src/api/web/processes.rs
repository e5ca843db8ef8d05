//! The endpoints about processes: what is asked becomes a call of the supervisor, what comes back the shapes of the spec.

use std::sync::Arc;
use std::time::SystemTime;

use axum::http::{Response, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::access::Grant;
use super::connection::Asked;
use super::list::{self, Entry};
use super::problem::{Code, Problem};
use super::{answer, content, pm2, redact, system};
use crate::api::body::Body;
use crate::foundation::error::chain;
use crate::foundation::rfc3339;
use crate::process::definition::Definition;
use crate::process::error::{Error, ErrorKind};
use crate::process::handle::{Change, Handle, Target};
use crate::process::logs::{LogQuery, Stream};
use crate::process::quantity::Ports;
use crate::process::view::{Checked, Reason, View};

/// Lines of a log that one answer may hold.
const MAX_LINES: usize = 10_000;
const DEFAULT_LINES: usize = 20;

pub(super) type Answer = Result<Response<Body>, Problem>;

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let code = match error.kind() {
            ErrorKind::NotFound => Code::ProcessNotFound,
            ErrorKind::Exists => Code::ProcessAlreadyExists,
            ErrorKind::AlreadyRunning => Code::ProcessAlreadyRunning,
            ErrorKind::Invalid => Code::InvalidConfig,
            ErrorKind::PortInUse => Code::PortInUse,
            ErrorKind::StartFailed => Code::ProcessStartFailed,
            ErrorKind::Conflict => Code::Conflict,
            ErrorKind::Resources => Code::InsufficientResources,
            ErrorKind::Unavailable => Code::NotReady,
            ErrorKind::Failed => Code::OperationFailed,
        };
        let problem = Self::new(code, capitalised(&chain(&error)));
        match error {
            Error::NotFound { target, available } => {
                let available: Vec<&str> = available.iter().map(AsRef::as_ref).collect();
                problem.with("requested_process", target).with("available_processes", available)
            }
            Error::PortInUse { port, .. } => problem.with("port", port),
            Error::Exists { .. }
            | Error::AlreadyRunning { .. }
            | Error::Invalid(_)
            | Error::Start { .. }
            | Error::Configured { .. }
            | Error::TooMany { .. }
            | Error::Busy { .. }
            | Error::Save { .. }
            | Error::Disabled { .. }
            | Error::NoInput { .. }
            | Error::Stopping => problem,
        }
    }
}

/// The spec writes messages as sentences: `Process 'nonexistent' not found`.
fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

fn target(asked: &Asked<'_>) -> Target {
    Target::Named(asked.segment.clone().unwrap_or_default())
}

fn handle<'a>(asked: &Asked<'a>) -> &'a Handle {
    &asked.site.sources.process
}

/// `GET /api/processes`; with `namespace=NAME` only those of one, with `format=pm2` in the shape of `pm2 jlist`.
pub(super) async fn list(asked: &Asked<'_>) -> Answer {
    let namespace = content::value(asked.head.uri.query(), "namespace")?;
    match content::value(asked.head.uri.query(), "format")?.as_deref() {
        None => {}
        Some("pm2") => {
            // Where nothing is supervised the list is empty, in this form as in the other.
            handle(asked).sample().await.ok();
            let snapshot = handle(asked).snapshot();
            let is_meant = |view: &&Arc<View>| namespace.as_ref().is_none_or(|name| *view.namespace == **name);
            let views: Vec<&Arc<View>> = snapshot.processes.iter().filter(is_meant).collect();
            return Ok(answer::json(StatusCode::OK, &pm2::list(&views)));
        }
        Some(other) => {
            let text = format!("format is {other:?}; it is pm2, or left away");
            return Err(Problem::new(Code::InvalidRequest, text).with("parameter", "format"));
        }
    }
    if let Some(namespace) = namespace {
        let snapshot = handle(asked).snapshot();
        let is_meant = |view: &&Arc<View>| *view.namespace == *namespace;
        let now = SystemTime::now();
        let entries = snapshot.processes.iter().filter(is_meant).map(|view| Entry::of(view, now)).collect();
        return Ok(answer::json(StatusCode::OK, &list::Page::new(entries)));
    }
    Ok(answer::bytes(answer::JSON, asked.site.list.body(handle(asked)).await?))
}

/// `GET /api/processes/{name_or_id}`.
pub(super) async fn details(asked: &Asked<'_>) -> Answer {
    #[derive(Serialize)]
    struct Details<'a> {
        #[serde(flatten)]
        entry: Entry<'a>,
        namespace: &'a str,
        created: String,
        error: Option<&'a str>,
        next_start: Option<String>,
        restart_reason: Option<&'static str>,
        next_restart: Option<String>,
        config: Value,
        /// Where a process has more than one.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        instances: Vec<Entry<'a>>,
    }
    handle(asked).sample().await?;
    let views = handle(asked).find(&target(asked))?;
    let now = SystemTime::now();
    let first = first(&views)?;
    let others = if views.len() > 1 { views.iter().map(|view| Entry::of(view, now)).collect() } else { Vec::new() };
    Ok(answer::json(
        StatusCode::OK,
        &Details {
            entry: Entry::of(first, now),
            namespace: &first.namespace,
            created: rfc3339::format(first.created),
            error: first.error.as_deref(),
            next_start: first.next_start.map(rfc3339::format),
            restart_reason: first.restart_reason.map(Reason::as_str),
            next_restart: first.next_restart.map(rfc3339::format),
            config: config(&first.definition)?,
            instances: others,
        },
    ))
}

/// The definition as it was given, without what looks like a secret.
fn config(definition: &Definition) -> Result<Value, Problem> {
    let mut config = serde_json::to_value(definition).map_err(|error| {
        tracing::error!(%error, "failed to write a definition");
        Problem::new(Code::OperationFailed, "the definition cannot be written as JSON")
    })?;
    for (name, empty) in [("args", json!([])), ("cwd", Value::Null), ("env", json!({}))] {
        if config.get(name).is_none() {
            config[name] = empty;
        }
    }
    if let Some(env) = config["env"].as_object_mut() {
        redact::environment(env);
    }
    Ok(config)
}

fn first(views: &[Arc<View>]) -> Result<&Arc<View>, Problem> {
    views.first().ok_or_else(|| Problem::new(Code::OperationFailed, "the process is gone again"))
}

/// `POST /api/processes`.
///
/// A process runs with any user's rights, so only root and who has the key may define one; other local callers may start and
/// stop what is there.
pub(super) async fn create(asked: &Asked<'_>, body: &[u8]) -> Answer {
    if asked.grant == Some(Grant::Local) && asked.caller.uid != Some(0) {
        let uid = asked.caller.uid.map_or_else(|| "unknown".to_owned(), |uid| uid.to_string());
        let text = format!("uid {uid} may not define a process; become root, or send the API key");
        return Err(Problem::new(Code::PermissionDenied, text));
    }
    let definition: Definition = parsed(body)?;
    let name = definition.name.clone();
    let views = handle(asked).create(definition).await?;
    let first = first(&views)?;
    let mut report = done(&name, "started");
    report["process"] = started(first);
    if views.len() > 1 {
        report["processes"] = views.iter().map(|view| started(view)).collect();
    }
    Ok(answer::json(StatusCode::CREATED, &report))
}

fn started(view: &View) -> Value {
    json!({ "id": view.id, "name": &*view.name, "status": view.status.as_str(), "pid": view.pid, "port": view.port })
}

fn done(name: &str, verb: &str) -> Value {
    json!({ "success": true, "message": format!("Process '{name}' {verb} successfully") })
}

/// The body as `T`.
///
/// # Errors
/// No JSON, or not what is wanted: the key is named.
fn parsed<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Result<T, Problem> {
    if body.trim_ascii().is_empty() {
        return Err(Problem::new(Code::InvalidRequest, "a JSON object is wanted as the body, and it is empty"));
    }
    serde_json::from_slice(body).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => Problem::new(Code::InvalidConfig, format!("the body is refused: {error}")),
        serde_json::error::Category::Syntax | serde_json::error::Category::Eof | serde_json::error::Category::Io => {
            Problem::new(Code::ConfigParseError, format!("the body is not JSON: {error}"))
        }
    })
}

/// What a command without a body of its own takes: nothing, or an empty object.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

fn no_body(body: &[u8]) -> Result<(), Problem> {
    if body.trim_ascii().is_empty() { Ok(()) } else { parsed::<Nothing>(body).map(drop) }
}

/// `DELETE /api/processes/{name_or_id}`: stops and keeps it; with `purge=true` forgets it too.
pub(super) async fn stop_or_delete(asked: &Asked<'_>, body: &[u8]) -> Answer {
    match content::value(asked.head.uri.query(), "purge")?.as_deref() {
        None | Some("false") => stop(asked, body).await,
        Some("true" | "") => {
            no_body(body)?;
            let target = target(asked);
            handle(asked).delete(&target).await?;
            Ok(answer::json(StatusCode::OK, &done(&target.to_string(), "deleted")))
        }
        Some(other) => {
            let text = format!("purge is {other:?}; it is true or false");
            Err(Problem::new(Code::InvalidRequest, text).with("parameter", "purge"))
        }
    }
}

/// `POST /api/processes/{name_or_id}/stop`.
pub(super) async fn stop(asked: &Asked<'_>, body: &[u8]) -> Answer {
    no_body(body)?;
    let target = target(asked);
    handle(asked).stop(&target).await?;
    Ok(answer::json(StatusCode::OK, &done(&target.to_string(), "stopped")))
}

/// `POST /api/processes/{name_or_id}/start`.
pub(super) async fn start(asked: &Asked<'_>, body: &[u8]) -> Answer {
    no_body(body)?;
    let target = target(asked);
    let views = handle(asked).start(&target).await?;
    let mut report = done(&target.to_string(), "started");
    report["process"] = started(first(&views)?);
    Ok(answer::json(StatusCode::OK, &report))
}

/// `POST /api/processes/{name_or_id}/reload`.
pub(super) async fn reload(asked: &Asked<'_>, body: &[u8]) -> Answer {
    no_body(body)?;
    let target = target(asked);
    let (_views, notices) = handle(asked).reload(&target).await?;
    let mut done = done(&target.to_string(), "reloaded");
    if !notices.is_empty() {
        done["notices"] = notices.into();
    }
    Ok(answer::json(StatusCode::OK, &done))
}

/// `POST /api/processes/{name_or_id}/restart`.
pub(super) async fn restart(asked: &Asked<'_>, body: &[u8]) -> Answer {
    #[derive(Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Changes {
        port: Option<Ports>,
        instances: Option<u32>,
    }
    let changes = if body.trim_ascii().is_empty() { Changes::default() } else { parsed::<Changes>(body)? };
    let target = target(asked);
    handle(asked).restart(&target, Change { port: changes.port, instances: changes.instances }).await?;
    Ok(answer::json(StatusCode::OK, &done(&target.to_string(), "restarted")))
}

/// One health check of the past.
fn checked(checked: &Checked) -> Value {
    json!({
        "time": rfc3339::format(checked.at),
        "duration_ms": u64::try_from(checked.took.as_millis()).unwrap_or(u64::MAX),
        "healthy": checked.error.is_none(),
        "error": checked.error.as_deref(),
    })
}

/// `GET /api/processes/{name_or_id}/health`.
pub(super) fn health(asked: &Asked<'_>) -> Answer {
    let target = target(asked);
    let views = handle(asked).find(&target)?;
    let of = |view: &View| {
        let health = &view.health;
        let rate = (health.total > 0).then(|| (health.successful as f64 / health.total as f64 * 1000.0).round() / 10.0);
        json!({
            "status": health.status.as_str(),
            "last_check": health.last_check.map(rfc3339::format),
            "check_type": health.kind,
            "url": health.target.as_deref(),
            "success_rate": rate,
            "total_checks": health.total,
            "successful_checks": health.successful,
            "last_error": health.last_error.as_deref(),
            "history": health.history.iter().map(checked).collect::<Vec<_>>(),
        })
    };
    let mut report = json!({ "process": target.to_string(), "health": of(first(&views)?) });
    if views.len() > 1 {
        let instances: Map<String, Value> = views.iter().map(|view| (view.name.to_string(), of(view))).collect();
        report["instances"] = Value::Object(instances);
    }
    Ok(answer::json(StatusCode::OK, &report))
}

/// `GET /api/logs/{name_or_id}`.
pub(super) async fn logs(asked: &Asked<'_>) -> Answer {
    #[derive(Serialize)]
    struct Line<'a> {
        timestamp: String,
        #[serde(rename = "type")]
        stream: &'static str,
        message: &'a str,
        /// Where a process has more than one.
        #[serde(skip_serializing_if = "Option::is_none")]
        instance: Option<&'a str>,
    }
    #[derive(Serialize)]
    struct Page<'a> {
        logs: Vec<Line<'a>>,
        total_lines: usize,
        process: String,
    }
    let query = log_query(asked.head.uri.query())?;
    let target = target(asked);
    let is_several = handle(asked).find(&target)?.len() > 1;
    let lines = handle(asked).logs(&target, query).await?;
    let logs = lines.iter().map(|line| Line {
        timestamp: rfc3339::format(line.time),
        stream: line.stream.as_str(),
        message: &line.text,
        instance: is_several.then_some(&*line.name),
    });
    let page = Page { logs: logs.collect(), total_lines: lines.len(), process: target.to_string() };
    Ok(answer::json(StatusCode::OK, &page))
}

fn log_query(query: Option<&str>) -> Result<LogQuery, Problem> {
    let refuse = |name: &str, text: String| Err(Problem::new(Code::InvalidRequest, text).with("parameter", name));
    let lines = match content::value(query, "lines")? {
        None => DEFAULT_LINES,
        Some(text) => match text.parse() {
            Ok(lines) if (1..=MAX_LINES).contains(&lines) => lines,
            Ok(_) | Err(_) => {
                return refuse("lines", format!("lines is {text:?}; it is a number from 1 to {MAX_LINES}"));
            }
        },
    };
    let stream = match content::value(query, "type")?.as_deref() {
        None | Some("all") => None,
        Some("stdout") => Some(Stream::Stdout),
        Some("stderr") => Some(Stream::Stderr),
        Some(other) => return refuse("type", format!("type is {other:?}; it is stdout, stderr or all")),
    };
    Ok(LogQuery { lines, stream, since: None })
}

/// `GET /api/status`: everything a dashboard wants in one answer.
pub(super) fn status(asked: &Asked<'_>) -> Answer {
    #[derive(Serialize)]
    struct Overview<'a> {
        processes: Vec<Entry<'a>>,
        total: usize,
        system: system::Report,
        ports: Allocated,
    }
    #[derive(Serialize)]
    struct Allocated {
        allocated: Vec<u16>,
        total: usize,
    }
    let snapshot = handle(asked).snapshot();
    let processes = list::entries(&snapshot, SystemTime::now());
    let allocated: Vec<u16> = snapshot.processes.iter().filter_map(|view| view.port).collect();
    let overview = Overview {
        total: processes.len(),
        processes,
        system: system::report(&asked.site.sources.pm3.host_figures()),
        ports: Allocated { total: allocated.len(), allocated },
    };
    Ok(answer::json(StatusCode::OK, &overview))
}
