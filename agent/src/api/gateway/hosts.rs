//! Virtual hosts: names other than those of the pm3 API, each with routes to servers, files or other places.
//!
//! In: `[gateway.host.NAME]`, requests with a `Host` that is none of the API's. Out: answers, streamed as they come.
//!
//! | module | what it owns |
//! |---|---|
//! | [`config`] | the tables as they are written, and what is wrong with them |
//! | `balance` | which of several servers gets a request |
//! | `limit` | how often a client may ask |
//! | `trace` | trace context and ray ids |
//! | `link` | one connection to a server |
//! | `pool` | the servers of a route and their idle connections |
//! | `health` | whether servers work |
//! | `proxy` | passing a request on |
//! | `files` | files of a directory |
//!
//! Invariants: a path that can be read two ways is refused before it is matched; a route that is internal is internal in
//! whatever spelling its path comes; nothing of an answer is kept but its head.

mod balance;
pub(super) mod config;
mod files;
mod health;
mod limit;
pub(super) mod link;
mod pool;
mod proxy;
pub(super) mod trace;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use axum::http::request::Parts;
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderValue, Response, StatusCode, header};
use hyper::body::Incoming;
use tokio::time::Instant;

use self::config::{ActionSpec, Headers, HostConfig, HostError, RouteSpec};
use crate::api::body::Body;
use crate::api::error::{ApiError, ErrorCode};
use crate::api::gateway::heads::{TRACEPARENT, X_RAY};
use crate::foundation::task::Task;
use crate::pm3::params::decode_path;
use files::Files;
use limit::Limiter;
use pool::Pool;
use proxy::Client;

/// Every virtual host.
pub(super) struct Hosts {
    exact: HashMap<String, Arc<Host>>,
    /// By what follows the asterisk, the longest first.
    below: Vec<(String, Arc<Host>)>,
    names: trace::Names,
    began: Instant,
    _health: Vec<Task>,
}

/// One virtual host; the route with the longest path first.
pub(super) struct Host {
    routes: Vec<Route>,
}

struct Route {
    path: String,
    action: Action,
    headers: Headers,
    is_internal: bool,
    limiter: Option<Limiter>,
}

enum Action {
    Proxy(Arc<Pool>),
    Files(Files),
    Redirect { target: String, status: StatusCode },
}

/// Who asks a virtual host.
#[derive(Debug, Clone)]
pub(super) struct Visitor {
    pub(super) address: IpAddr,
    /// The other end of the connection.
    pub(super) peer: IpAddr,
    pub(super) is_internal: bool,
    pub(super) is_tls: bool,
    /// A member of the mesh says who asks, and by which ray.
    pub(super) is_vouched_for: bool,
}

impl Hosts {
    /// The hosts of a checked configuration. Needs a tokio runtime where servers are to be asked for their health.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn new(configured: &BTreeMap<String, HostConfig>, node: &str) -> Result<Self, HostError> {
        let mut hosts = Self { names: trace::Names::new(node), ..Self::none() };
        for (name, config) in configured {
            let routes: Vec<Route> = config.check(name)?.into_iter().map(Route::new).collect();
            for route in &routes {
                if let Action::Proxy(pool) = &route.action {
                    hosts._health.extend(health::watch(pool));
                }
            }
            let host = Arc::new(Host { routes });
            match name.strip_prefix('*') {
                Some(suffix) => hosts.below.push((suffix.to_owned(), host)),
                None => drop(hosts.exact.insert(name.clone(), host)),
            }
        }
        hosts.below.sort_by_key(|(suffix, _)| std::cmp::Reverse(suffix.len()));
        Ok(hosts)
    }

    /// No host at all.
    pub(super) fn none() -> Self {
        Self {
            exact: HashMap::new(),
            below: Vec::new(),
            names: trace::Names::new(""),
            began: Instant::now(),
            _health: Vec::new(),
        }
    }

    fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.below.is_empty()
    }

    /// The host that serves `authority`, a name with or without a port, in any case, with or without the root's dot.
    pub(super) fn find(&self, authority: &str) -> Option<Arc<Host>> {
        if self.is_empty() {
            return None;
        }
        let name = host_name(authority)?;
        if let Some(host) = self.exact.get(&name) {
            return Some(Arc::clone(host));
        }
        self.below.iter().find(|(suffix, _)| name.ends_with(suffix.as_str())).map(|(_, host)| Arc::clone(host))
    }

    /// Answers a request for `host`. The answer carries the ray the request is followed by.
    pub(super) async fn answer(
        &self,
        host: &Host,
        visitor: Visitor,
        mut head: Box<Parts>,
        body: Incoming,
    ) -> Result<Response<Body>, ApiError> {
        let path = match_path(head.uri.path())?;
        let Some(route) = host.routes.iter().find(|route| route.is_for(&path)) else {
            return Err(ApiError::new(ErrorCode::NotFound, "this host has no route for this path"));
        };
        if route.is_internal && !visitor.is_internal {
            return Err(ApiError::new(ErrorCode::Forbidden, "this path is for internal callers"));
        }
        if let Some(limiter) = &route.limiter
            && let Err(wait) = limiter.admit(visitor.address, self.began.elapsed())
        {
            return Ok(too_often(wait));
        }
        let given = head.headers.get(X_RAY).filter(|_| visitor.is_vouched_for);
        let ray = self.names.ray_or(given);
        head.headers.insert(TRACEPARENT, self.names.trace(head.headers.get(TRACEPARENT)));
        head.headers.insert(X_RAY, ray.clone());
        let mut response = route.act(&path, visitor, head, body).await?;
        response.headers_mut().insert(X_RAY, ray);
        for (name, value) in &route.headers {
            response.headers_mut().insert(name.clone(), value.clone());
        }
        Ok(response)
    }
}

impl Route {
    fn new(spec: RouteSpec) -> Self {
        let RouteSpec { path, action, headers, is_internal, limit } = spec;
        let action = match action {
            ActionSpec::Proxy(spec) => Action::Proxy(Arc::new(Pool::new(spec))),
            ActionSpec::Files(directory) => Action::Files(Files::new(directory)),
            ActionSpec::Redirect { target, status } => Action::Redirect { target, status },
        };
        Self { path, action, headers, is_internal, limiter: limit.map(|(rate, burst)| Limiter::new(rate, burst)) }
    }

    fn is_for(&self, path: &str) -> bool {
        path.strip_prefix(self.path.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    async fn act(
        &self,
        path: &str,
        visitor: Visitor,
        head: Box<Parts>,
        body: Incoming,
    ) -> Result<Response<Body>, ApiError> {
        match &self.action {
            // Boxed, so that what is passed on, which is nearly everything, is the size of what it needs itself.
            Action::Files(files) => Box::pin(files.answer(&head, &path[self.path.len()..])).await,
            Action::Redirect { target, status } => redirect(target, *status, &head),
            Action::Proxy(pool) => {
                let asked = if pool.spec.strips { stripped(&head, &self.path)? } else { whole(&head) };
                let Visitor { address, peer, is_internal, is_tls, is_vouched_for } = visitor;
                let client = Client { address, peer, is_internal, is_tls, is_vouched_for };
                proxy::pass(Arc::clone(pool), head, body, asked, client).await
            }
        }
    }
}

/// The name in `authority`, in lower case; `None` for what is none.
fn host_name(authority: &str) -> Option<String> {
    let name = match authority.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        Some(_) => return None,
        None => authority,
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    (!name.is_empty() && name.bytes().all(is_plain)).then(|| name.to_ascii_lowercase())
}

/// A path as routes are matched against it: decoded, with single slashes.
///
/// # Errors
/// Dots that some server would resolve, and bytes that are no text: it could be read two ways.
fn match_path(path: &str) -> Result<String, ApiError> {
    let two_ways = || ApiError::new(ErrorCode::InvalidArgument, "this path can be read two ways; send it resolved");
    let decoded = decode_path(path).ok_or_else(two_ways)?;
    let has_dots = decoded.split(['/', '\\']).any(|segment| matches!(segment.split(';').next(), Some("." | "..")));
    if has_dots || decoded.contains('\0') || !decoded.starts_with('/') {
        return Err(two_ways());
    }
    if !decoded.contains("//") {
        return Ok(decoded);
    }
    let mut single = String::with_capacity(decoded.len());
    for letter in decoded.chars() {
        if !(letter == '/' && single.ends_with('/')) {
            single.push(letter);
        }
    }
    Ok(single)
}

fn whole(head: &Parts) -> PathAndQuery {
    head.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"))
}

/// Path and query without the path of the route.
fn stripped(head: &Parts, prefix: &str) -> Result<PathAndQuery, ApiError> {
    let wrong = || ApiError::new(ErrorCode::InvalidArgument, "this spelling of the path cannot be passed on");
    let whole = whole(head);
    let rest = whole.as_str().strip_prefix(prefix).ok_or_else(wrong)?;
    let rest = if rest.starts_with('/') { rest.to_owned() } else { format!("/{rest}") };
    rest.parse().map_err(|_wrong| wrong())
}

fn redirect(target: &str, status: StatusCode, head: &Parts) -> Result<Response<Body>, ApiError> {
    let place = target.replace("{uri}", whole(head).as_str());
    // `//host` would lead to another host.
    let place = if target.starts_with('/') { format!("/{}", place.trim_start_matches(['/', '\\'])) } else { place };
    let place = HeaderValue::from_str(&place)
        .map_err(|_wrong| ApiError::new(ErrorCode::InvalidArgument, "there is no redirect for this path"))?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response.headers_mut().insert(header::LOCATION, place);
    Ok(response)
}

fn too_often(wait: std::time::Duration) -> Response<Body> {
    let error = ApiError::new(ErrorCode::Busy, "this client asks too often; try again later");
    let mut response = crate::api::methods::refused(error, false);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs() + 1));
    response
}

#[cfg(test)]
mod tests;
