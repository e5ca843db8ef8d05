//! Processes over the control socket: what the command line asks, as JSON with a schema number.
//!
//! Who may use the socket may look and may start, stop and restart what is defined; only root may define, because a process
//! runs with any user's rights. Changes are audited.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Extension, Path, Query, RawQuery, State};
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};

use super::control::caller::Caller;
use super::error::{ApiError, ErrorCode};
use super::{Sources, http, view};
use crate::foundation::error::chain;
use crate::foundation::rfc3339;
use crate::process::definition::Definition;
use crate::process::error::{Error, ErrorKind};
use crate::process::handle::{Change, MOST_INPUT_BYTES, Scale, Target};
use crate::process::logs::{LogLine, LogQuery, Stream};
use crate::process::quantity::Ports;
use crate::process::view::{Checked, Exit, View};

/// The largest body: a definition with a large environment.
const MAX_BODY_BYTES: usize = 1024 * 1024;

/// One instance as the command line shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Item {
    pub id: u32,
    pub name: String,
    pub process: String,
    pub instance: u32,
    pub namespace: String,
    pub status: String,
    pub pid: Option<u32>,
    pub port: Option<u16>,
    pub restarts: u64,
    pub created_ms: u64,
    pub started_ms: Option<u64>,
    /// Of one processor.
    pub cpu_percent: f64,
    pub memory_bytes: u64,
    pub health: String,
    pub health_error: Option<String>,
    /// Of one instance that is described: its last checks, the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub health_checks: Vec<HealthCheck>,
    /// `code 1`, `signal 9`, `unknown`.
    pub last_exit: Option<String>,
    pub error: Option<String>,
    pub next_start_ms: Option<u64>,
    /// Why it was last restarted: `asked`, `ended`, `memory`, `health`, `cron`, `watch`.
    pub restart_reason: Option<String>,
    /// When `cron_restart` restarts it next.
    pub next_restart_ms: Option<u64>,
    pub out_log: String,
    pub error_log: String,
    /// Values of `env` are left out; those who may see them read the file they come from.
    pub definition: serde_json::Value,
}

/// How one health check went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// When it ended.
    pub time_ms: u64,
    pub duration_ms: u64,
    pub healthy: bool,
    /// Why it failed.
    pub error: Option<String>,
}

impl From<&Checked> for HealthCheck {
    fn from(checked: &Checked) -> Self {
        Self {
            time_ms: millis(checked.at),
            duration_ms: u64::try_from(checked.took.as_millis()).unwrap_or(u64::MAX),
            healthy: checked.error.is_none(),
            error: checked.error.as_deref().map(str::to_owned),
        }
    }
}

/// A list of instances.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct List {
    pub schema: u32,
    pub processes: Vec<Item>,
}

/// What a reload answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reloaded {
    #[serde(flatten)]
    pub list: List,
    /// Which instances served nobody for a time, and why.
    pub notices: Vec<String>,
}

/// One line of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    pub time_ms: u64,
    pub name: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    pub text: String,
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let code = match error.kind() {
            ErrorKind::NotFound => ErrorCode::NotFound,
            ErrorKind::Exists | ErrorKind::AlreadyRunning | ErrorKind::Conflict | ErrorKind::PortInUse => {
                ErrorCode::Conflict
            }
            ErrorKind::Invalid => ErrorCode::InvalidArgument,
            ErrorKind::Resources => ErrorCode::Busy,
            ErrorKind::Unavailable => ErrorCode::NotReady,
            ErrorKind::StartFailed | ErrorKind::Failed => ErrorCode::Failed,
        };
        let mut text = chain(&error);
        if let Error::NotFound { available, .. } = &error {
            let names: Vec<&str> = available.iter().map(|name| &**name).collect();
            let there =
                if names.is_empty() { "there is none".to_owned() } else { format!("there is {}", names.join(", ")) };
            text.push_str(&format!("; {there}"));
        }
        Self::new(code, text)
    }
}

/// The routes below `/process`.
pub(super) fn routes() -> Router<Arc<Sources>> {
    Router::new()
        .route("/process", get(list).post(create))
        .route("/process/save", post(save))
        .route("/process/{target}", get(describe).delete(delete))
        .route("/process/{target}/send", post(send))
        .route("/process/{target}/{verb}", post(act))
        .route("/process/{target}/logs", get(logs))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
}

type Asked = (State<Arc<Sources>>, Extension<Caller>);

fn items(views: &[Arc<View>]) -> List {
    List { schema: view::SCHEMA, processes: views.iter().map(|view| item(view)).collect() }
}

fn item(view: &View) -> Item {
    let mut definition = serde_json::to_value(&*view.definition).unwrap_or_default();
    if let Some(variables) = definition.get_mut("env").and_then(|env| env.as_object_mut()) {
        variables.values_mut().for_each(|value| *value = "…".into());
    }
    Item {
        id: view.id,
        name: view.name.to_string(),
        process: view.process.to_string(),
        instance: view.instance,
        namespace: view.namespace.to_string(),
        status: view.status.as_str().to_owned(),
        pid: view.pid,
        port: view.port,
        restarts: view.restarts,
        created_ms: millis(view.created),
        started_ms: view.started.map(millis),
        cpu_percent: view.figures.cpu_percent,
        memory_bytes: view.figures.memory_bytes,
        health: view.health.status.as_str().to_owned(),
        health_error: view.health.last_error.as_deref().map(str::to_owned),
        health_checks: Vec::new(),
        last_exit: view.last_exit.map(exit_text),
        error: view.error.as_deref().map(str::to_owned),
        next_start_ms: view.next_start.map(millis),
        restart_reason: view.restart_reason.map(|reason| reason.as_str().to_owned()),
        next_restart_ms: view.next_restart.map(millis),
        out_log: view.out_log.display().to_string(),
        error_log: view.error_log.display().to_string(),
        definition,
    }
}

fn exit_text(exit: Exit) -> String {
    match exit {
        Exit::Code(code) => format!("code {code}"),
        Exit::Signal(signal) => format!("signal {signal}"),
        Exit::Unknown => "unknown".to_owned(),
    }
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

async fn list(State(sources): State<Arc<Sources>>, RawQuery(query): RawQuery) -> Result<Response, ApiError> {
    sources.process.sample().await?;
    Ok(http::json(query.as_deref(), &items(&sources.process.snapshot().processes)))
}

async fn describe(
    State(sources): State<Arc<Sources>>,
    Path(target): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let target = Target::parse(&target);
    sources.process.find(&target)?;
    sources.process.sample().await?;
    let views = sources.process.find(&target)?;
    let mut list = items(&views);
    for (item, view) in list.processes.iter_mut().zip(&views) {
        item.health_checks = view.health.history.iter().map(HealthCheck::from).collect();
    }
    Ok(http::json(query.as_deref(), &list))
}

async fn create((State(sources), Extension(caller)): Asked, body: Bytes) -> Result<Response, ApiError> {
    if caller.uid != 0 {
        let text = "only root may define a process: it could run with any user's rights; start, stop and restart are for group weft too";
        return Err(ApiError::new(ErrorCode::Forbidden, text));
    }
    let definition: Definition = serde_json::from_slice(&body).map_err(|error| {
        ApiError::new(ErrorCode::InvalidArgument, format!("the definition cannot be read: {error}"))
    })?;
    audit(&caller, "create", &definition.name);
    let views = sources.process.create(definition).await?;
    Ok(Json(items(&views)).into_response())
}

async fn delete((State(sources), Extension(caller)): Asked, Path(target): Path<String>) -> Result<Response, ApiError> {
    audit(&caller, "delete", &target);
    Ok(Json(items(&sources.process.delete(&Target::parse(&target)).await?)).into_response())
}

async fn save((State(sources), Extension(caller)): Asked) -> Result<Response, ApiError> {
    audit(&caller, "save", "all");
    let path = sources.process.save().await?;
    let count = sources.process.snapshot().processes.len();
    let done = vec![format!("{count} process(es) are in {}; every change is written there by itself", path.display())];
    Ok(Json(serde_json::json!({ "schema": view::SCHEMA, "done": done })).into_response())
}

/// What `send` takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    input: String,
}

async fn send(
    (State(sources), Extension(caller)): Asked,
    Path(target): Path<String>,
    body: Bytes,
) -> Result<Response, ApiError> {
    if caller.uid != 0 {
        let text = "only root may send input: what reads it may be a shell with any user's rights";
        return Err(ApiError::new(ErrorCode::Forbidden, text));
    }
    let wrong = |text: String| ApiError::new(ErrorCode::InvalidArgument, text);
    let Input { input } =
        serde_json::from_slice(&body).map_err(|error| wrong(format!("the input cannot be read: {error}")))?;
    if input.is_empty() || input.len() > MOST_INPUT_BYTES {
        return Err(wrong(format!("the input has {} bytes; 1 to {MOST_INPUT_BYTES} are taken", input.len())));
    }
    audit(&caller, "send", &target);
    Ok(Json(items(&sources.process.send(&Target::parse(&target), input.into_bytes()).await?)).into_response())
}

/// What a restart or a scale takes.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Arguments {
    port: Option<Ports>,
    instances: Option<u32>,
    /// More or fewer.
    by: Option<i32>,
}

async fn act(
    (State(sources), Extension(caller)): Asked,
    Path((target, verb)): Path<(String, String)>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let wrong = |text: String| ApiError::new(ErrorCode::InvalidArgument, text);
    let arguments: Arguments = if body.trim_ascii().is_empty() {
        Arguments::default()
    } else {
        serde_json::from_slice(&body).map_err(|error| wrong(format!("the arguments cannot be read: {error}")))?
    };
    audit(&caller, &verb, &target);
    let (process, meant) = (&sources.process, Target::parse(&target));
    let views = match verb.as_str() {
        "start" => process.start(&meant).await?,
        "stop" => process.stop(&meant).await?,
        "restart" => process.restart(&meant, Change { port: arguments.port, instances: arguments.instances }).await?,
        "reload" => {
            let (views, notices) = process.reload(&meant).await?;
            return Ok(Json(Reloaded { list: items(&views), notices }).into_response());
        }
        "reset" => process.reset(&meant).await?,
        "scale" => match (arguments.instances, arguments.by) {
            (Some(count), None) => process.scale(&target, Scale::To(count)).await?,
            (None, Some(step)) => process.scale(&target, Scale::By(step)).await?,
            _ => return Err(wrong("scale takes either instances or by".to_owned())),
        },
        other => {
            let text = format!("there is no {other}; there is start, stop, restart, reload, reset, scale");
            return Err(ApiError::new(ErrorCode::NotFound, text));
        }
    };
    Ok(Json(items(&views)).into_response())
}

fn audit(caller: &Caller, verb: &str, target: &str) {
    tracing::info!(verb, target, uid = caller.uid, pid = caller.pid, "process command over the control socket");
}

/// Which lines are asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LogArguments {
    lines: Option<usize>,
    /// `stdout`, `stderr` or `all`.
    r#type: Option<String>,
    /// RFC 3339.
    since: Option<String>,
    follow: Option<bool>,
}

impl LogArguments {
    fn query(&self) -> Result<LogQuery, ApiError> {
        let wrong = |text: String| ApiError::new(ErrorCode::InvalidArgument, text);
        let stream = match self.r#type.as_deref() {
            None | Some("all") => None,
            Some("stdout") => Some(Stream::Stdout),
            Some("stderr") => Some(Stream::Stderr),
            Some(other) => return Err(wrong(format!("type {other:?} is not stdout, stderr or all"))),
        };
        let since = match &self.since {
            None => None,
            Some(text) => Some(
                rfc3339::parse(text)
                    .ok_or_else(|| wrong(format!("since {text:?} is not a time like 2026-01-02T03:04:05Z")))?,
            ),
        };
        Ok(LogQuery { lines: self.lines.unwrap_or(20), stream, since })
    }
}

/// JSON lines, history first.
async fn logs(
    State(sources): State<Arc<Sources>>,
    Path(target): Path<String>,
    Query(arguments): Query<LogArguments>,
) -> Result<Response, ApiError> {
    let (target, query) = (Target::parse(&target), arguments.query()?);
    let kind = [(header::CONTENT_TYPE, "application/jsonl")];
    if arguments.follow == Some(true) {
        let lines = sources.process.follow(&target, query).await?;
        let chunks = lines.map(|lines| Ok::<_, Infallible>(text(&lines)));
        // An empty chunk now and then would be dropped by HTTP; a reader that is gone is found at the next line.
        return Ok((kind, Body::from_stream(chunks)).into_response());
    }
    let lines = sources.process.logs(&target, query).await?;
    Ok((kind, text(&lines)).into_response())
}

fn text(lines: &[LogLine]) -> String {
    let mut text = String::new();
    for line in lines {
        let line = Line {
            time_ms: millis(line.time),
            name: line.name.to_string(),
            stream: line.stream.as_str().to_owned(),
            text: line.text.clone(),
        };
        text.push_str(&serde_json::to_string(&line).unwrap_or_default());
        text.push('\n');
    }
    text
}

/// `millis` since 1970 as a time.
pub fn time_of(millis: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(millis)
}
