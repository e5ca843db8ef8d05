//! Every path of this listener: what answers it, who may ask, what it takes and what comes back. The document is written
//! from this table, and nothing is answered that is not in it. Pure.

use std::sync::LazyLock;

use axum::http::{HeaderValue, Method};

use super::problem::{Code, Problem};
use crate::pm3::params;

/// Who may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Anyone who reaches the listener and names it: nothing that a user of this host may not know.
    Open,
    /// Who has the key, or whom the kernel vouches for.
    Granted,
}

/// What carries a request out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Endpoint {
    List,
    Details,
    Create,
    StopOrDelete,
    Stop,
    Start,
    Restart,
    Reload,
    Health,
    Logs,
    LogsOfProcess,
    Status,
    System,
    Subscribe,
    Metrics,
    Live,
    Ready,
    Document,
    Index,
    Style,
    Script,
}

/// A parameter of the query.
#[derive(Debug)]
pub(super) struct Parameter {
    pub(super) name: &'static str,
    /// Its JSON schema.
    pub(super) schema: &'static str,
    pub(super) about: &'static str,
}

/// What comes back on success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// JSON of a named schema.
    Json(&'static str),
    Text,
    /// A page for browsers; JSON of a named schema for who accepts only that.
    Page(&'static str),
    Style,
    Script,
    /// No content: the connection becomes a WebSocket.
    Socket,
}

/// One row of the table.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) method: &'static str,
    /// `{name}` stands for one segment.
    pub(super) path: &'static str,
    pub(super) access: Access,
    pub(super) endpoint: Endpoint,
    pub(super) summary: &'static str,
    pub(super) query: &'static [Parameter],
    /// The schema of the body it takes.
    pub(super) body: Option<&'static str>,
    pub(super) status: u16,
    pub(super) content: Content,
    /// What can go wrong beside what can with every request.
    pub(super) failures: &'static [Code],
}

const fn get(path: &'static str, access: Access, endpoint: Endpoint, content: Content, about: &'static str) -> Route {
    Route {
        method: "GET",
        path,
        access,
        endpoint,
        summary: about,
        query: &[],
        body: None,
        status: 200,
        content,
        failures: &[],
    }
}

const fn post(path: &'static str, endpoint: Endpoint, body: &'static str, about: &'static str) -> Route {
    Route {
        method: "POST",
        body: Some(body),
        failures: COMMAND,
        ..get(path, Access::Granted, endpoint, Content::Json("Done"), about)
    }
}

const ONE: &[Code] = &[Code::ProcessNotFound, Code::NotReady, Code::InsufficientResources, Code::OperationFailed];
const COMMAND: &[Code] = &[
    Code::ProcessNotFound,
    Code::InvalidConfig,
    Code::ProcessAlreadyRunning,
    Code::ProcessStartFailed,
    Code::PortInUse,
    Code::Conflict,
    Code::NotReady,
    Code::InsufficientResources,
    Code::OperationFailed,
];
const LOG_QUERY: &[Parameter] = &[
    Parameter {
        name: "lines",
        schema: r#"{"type":"integer","minimum":1,"maximum":10000,"default":20}"#,
        about: "How many of the newest lines",
    },
    Parameter {
        name: "type",
        schema: r#"{"type":"string","enum":["stdout","stderr","all"],"default":"all"}"#,
        about: "Which output",
    },
];
const LIST_QUERY: &[Parameter] = &[
    Parameter { name: "namespace", schema: r#"{"type":"string"}"#, about: "Only those of this namespace" },
    Parameter {
        name: "format",
        schema: r#"{"type":"string","enum":["pm2"]}"#,
        about: "The list of `pm2 jlist` instead",
    },
];
const PURGE: &[Parameter] = &[Parameter {
    name: "purge",
    schema: r#"{"type":"boolean","default":false}"#,
    about: "Forget the process too, not only stop it",
}];

/// The table.
pub(super) static ROUTES: &[Route] = &[
    Route {
        query: LIST_QUERY,
        ..get("/api/processes", Access::Granted, Endpoint::List, Content::Json("AnyList"), "All processes")
    },
    Route {
        status: 201,
        content: Content::Json("Created"),
        failures: &[
            Code::InvalidConfig,
            Code::ProcessAlreadyExists,
            Code::ProcessStartFailed,
            Code::PortInUse,
            Code::NotReady,
            Code::InsufficientResources,
            Code::OperationFailed,
        ],
        ..post(
            "/api/processes",
            Endpoint::Create,
            "Definition",
            "Define a process and start it; for root and who has the key",
        )
    },
    Route {
        failures: ONE,
        ..get(
            "/api/processes/{name_or_id}",
            Access::Granted,
            Endpoint::Details,
            Content::Json("Details"),
            "One process",
        )
    },
    Route {
        method: "DELETE",
        query: PURGE,
        ..post("/api/processes/{name_or_id}", Endpoint::StopOrDelete, "Nothing", "Stop a process; it stays defined")
    },
    post("/api/processes/{name_or_id}/restart", Endpoint::Restart, "Changes", "Stop a process and start it again"),
    post("/api/processes/{name_or_id}/stop", Endpoint::Stop, "Nothing", "Stop a process; it stays defined"),
    Route {
        content: Content::Json("Created"),
        ..post("/api/processes/{name_or_id}/start", Endpoint::Start, "Nothing", "Start a process that is stopped")
    },
    post("/api/processes/{name_or_id}/reload", Endpoint::Reload, "Nothing", "Restart one instance after the other"),
    Route {
        failures: ONE,
        ..get(
            "/api/processes/{name_or_id}/health",
            Access::Granted,
            Endpoint::Health,
            Content::Json("Health"),
            "What the health checks of a process said",
        )
    },
    Route {
        failures: ONE,
        query: LOG_QUERY,
        ..get(
            "/api/processes/{name_or_id}/logs",
            Access::Granted,
            Endpoint::LogsOfProcess,
            Content::Json("Logs"),
            "The same as /api/logs/{name_or_id}",
        )
    },
    Route {
        failures: ONE,
        query: LOG_QUERY,
        ..get(
            "/api/logs/{name_or_id}",
            Access::Granted,
            Endpoint::Logs,
            Content::Json("Logs"),
            "The newest lines that a process wrote",
        )
    },
    get("/api/system", Access::Granted, Endpoint::System, Content::Json("System"), "Figures of this host"),
    get("/api/status", Access::Granted, Endpoint::Status, Content::Json("Status"), "Processes and host in one answer"),
    Route {
        status: 101,
        failures: &[Code::InsufficientResources],
        ..get("/ws", Access::Granted, Endpoint::Subscribe, Content::Socket, "Live messages over a WebSocket")
    },
    Route {
        failures: &[Code::InsufficientResources, Code::OperationFailed],
        ..get("/metrics", Access::Open, Endpoint::Metrics, Content::Text, "Metrics in the text formats of Prometheus")
    },
    get("/health/live", Access::Open, Endpoint::Live, Content::Json("Liveness"), "Whether the agent answers"),
    Route {
        failures: &[Code::NotReady],
        ..get("/health/ready", Access::Open, Endpoint::Ready, Content::Json("Readiness"), "Whether the agent is ready")
    },
    get("/openapi.json", Access::Open, Endpoint::Document, Content::Json("Document"), "This document"),
    get("/", Access::Open, Endpoint::Index, Content::Page("Index"), "The page, or to programs what there is"),
    get("/page.css", Access::Open, Endpoint::Style, Content::Style, "The style of the page"),
    get("/page.js", Access::Open, Endpoint::Script, Content::Script, "The program of the page"),
];

/// The route of a request, and the segment that stands for `{…}`.
///
/// # Errors
/// There is no such path, or it is not for this method.
pub(super) fn find(method: &Method, path: &str) -> Result<(&'static Route, Option<String>), Problem> {
    let wanted = if method == Method::HEAD { "GET" } else { method.as_str() };
    let mut others = Vec::new();
    for route in ROUTES {
        let Some(segment) = matched(route.path, path) else { continue };
        if route.method != wanted {
            others.push(route.method);
            continue;
        }
        let segment = segment.map(decoded).transpose()?;
        return Ok((route, segment));
    }
    if others.is_empty() {
        let text = format!("there is no {path}; /openapi.json lists what there is");
        return Err(Problem::new(Code::NotFound, text).with("path", path));
    }
    let text = format!("{path} is not for {method}; it takes {}", others.join(", "));
    Err(Problem::new(Code::MethodNotAllowed, text).with("allowed_methods", others))
}

/// The methods that `path` takes, as `Allow` and a preflight list them.
///
/// # Errors
/// There is no such path.
pub(super) fn allowed(path: &str) -> Result<HeaderValue, Problem> {
    let mut methods: Vec<&str> =
        ROUTES.iter().filter(|route| matched(route.path, path).is_some()).map(|route| route.method).collect();
    if methods.is_empty() {
        return find(&Method::GET, path).map(|_never| HeaderValue::from_static(""));
    }
    methods.push("OPTIONS");
    // Names of methods are visible ASCII.
    Ok(HeaderValue::from_str(&methods.join(", ")).unwrap_or_else(|_never| HeaderValue::from_static("OPTIONS")))
}

/// What stands in `path` where `pattern` has `{…}`; `None`: another path.
fn matched<'a>(pattern: &str, path: &'a str) -> Option<Option<&'a str>> {
    let Some((before, rest)) = pattern.split_once('{') else { return (pattern == path).then_some(None) };
    let after = rest.split_once('}').map_or("", |(_, after)| after);
    let segment = path.strip_prefix(before)?.strip_suffix(after)?;
    (!segment.is_empty() && !segment.contains('/')).then_some(Some(segment))
}

fn decoded(segment: &str) -> Result<String, Problem> {
    params::decode_path(segment)
        .ok_or_else(|| Problem::new(Code::InvalidRequest, format!("{segment:?} is not percent-encoded text")))
}

/// The paths by what they are for, as `/` shows them to programs.
pub(super) fn index() -> &'static serde_json::Value {
    static INDEX: LazyLock<serde_json::Value> = LazyLock::new(|| {
        let named = ROUTES.iter().map(|route| (format!("{} {}", route.method, route.path), route.summary.into()));
        let endpoints: serde_json::Map<String, serde_json::Value> = named.collect();
        serde_json::json!({ "name": "weft", "version": env!("CARGO_PKG_VERSION"), "endpoints": endpoints })
    });
    &INDEX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_takes_one_segment() {
        assert_eq!(matched("/a/{x}", "/a/b"), Some(Some("b")));
        assert_eq!(matched("/a/{x}/c", "/a/b/c"), Some(Some("b")));
        assert_eq!(matched("/a", "/a"), Some(None));
        for (pattern, path) in
            [("/a/{x}", "/a/"), ("/a/{x}", "/a/b/c"), ("/a/{x}/c", "/a//c"), ("/a", "/a/"), ("/a/{x}/c", "/a/c")]
        {
            assert_eq!(matched(pattern, path), None, "{pattern} {path}");
        }
    }

    #[test]
    fn every_row_is_found_by_its_own_path() {
        for route in ROUTES {
            let path = route.path.replace("{name_or_id}", "web-api");
            let method = Method::from_bytes(route.method.as_bytes()).expect("a method");
            let (found, segment) = find(&method, &path).expect("it is there");
            assert_eq!((found.path, found.method), (route.path, route.method));
            assert_eq!(segment.is_some(), route.path.contains('{'));
        }
    }

    #[test]
    fn what_is_not_there_says_so() {
        let missing = find(&Method::GET, "/api/nothing").expect_err("no such path");
        assert_eq!(missing.code, Code::NotFound);
        let wrong = find(&Method::POST, "/api/system").expect_err("not for POST");
        assert_eq!(
            (wrong.code, &wrong.details["allowed_methods"]),
            (Code::MethodNotAllowed, &serde_json::json!(["GET"]))
        );
        assert_eq!(allowed("/api/system").expect("there"), "GET, OPTIONS");
        assert!(allowed("/api/nothing").is_err());
        assert!(find(&Method::HEAD, "/api/system").is_ok());
    }
}
