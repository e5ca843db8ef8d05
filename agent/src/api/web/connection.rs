//! One connection: each request is found in the table, judged, carried out and answered.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::http::request::Parts;
use axum::http::{Method, Request, Response, StatusCode, header};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;

use super::access::{self, Grant};
use super::head::Facts;
use super::problem::{Code, Problem};
use super::routes::{Access, Route};
use super::{Site, answer, content, endpoints, host, routes};
use crate::api::body::Body;
use crate::api::http;
use crate::foundation::lifecycle::Stop;
use crate::pm3::caller::Caller;

/// How long a head may take to come in, and how long a connection may lie idle between two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// The head of a request, which a call needs little of.
const MAX_HEAD_BYTES: usize = 32 * 1024;

/// A request that was let in.
pub(super) struct Asked<'a> {
    pub(super) site: &'a Arc<Site>,
    pub(super) caller: &'a Arc<Caller>,
    /// `None`: what is open to all.
    pub(super) grant: Option<Grant>,
    pub(super) route: &'static Route,
    /// The segment that stands for `{…}` in the path of the route.
    pub(super) segment: Option<String>,
    pub(super) head: &'a Parts,
    /// Where the request asks for one: the connection as it will be after the answer.
    pub(super) upgrade: Option<OnUpgrade>,
}

pub(super) async fn serve(stream: TcpStream, site: Arc<Site>, caller: Arc<Caller>, mut stop: Stop) {
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (site, caller) = (Arc::clone(&site), Arc::clone(&caller));
        async move { Ok::<_, Infallible>(respond(&site, &caller, request).await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut serving = std::pin::pin!(serving);
    let result = tokio::select! {
        result = serving.as_mut() => result,
        () = stop.requested() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    http::log_end("web", result);
}

async fn respond(site: &Arc<Site>, caller: &Arc<Caller>, mut request: Request<Incoming>) -> Response<Body> {
    let upgrade = request.headers().contains_key(header::UPGRADE).then(|| hyper::upgrade::on(&mut request));
    let (head, body) = request.into_parts();
    let facts = Facts::of(&head);
    if head.method == Method::OPTIONS {
        return options(site, &head, &facts);
    }
    let (mut response, grant) = match let_in(site, caller, &head, &facts) {
        Ok(asked) => {
            let grant = asked.grant;
            (carry_out(Asked { upgrade, ..asked }, body).await, grant)
        }
        Err(problem) => {
            content::discard(body).await;
            // A refusal gives nothing away, so a page may read why.
            let is_of_access = matches!(problem.code, Code::Unauthorized | Code::PermissionDenied);
            (answer::problem(&problem), is_of_access.then_some(Grant::Key))
        }
    };
    if grant == Some(Grant::Key) && site.settings.key.is_some() {
        site.settings.origins.write(response.headers_mut(), facts.origin);
    }
    response
}

/// Finds what is asked for and decides whether the caller may.
fn let_in<'a>(
    site: &'a Arc<Site>,
    caller: &'a Arc<Caller>,
    head: &'a Parts,
    facts: &Facts<'_>,
) -> Result<Asked<'a>, Problem> {
    let (route, segment) = routes::find(&head.method, head.uri.path())?;
    let grant = match route.access {
        Access::Open if facts.keys.is_empty() => {
            if let Some(named) = facts.host.filter(|named| !host::is_ours(named, site.address.ip())) {
                let text = format!("this listener does not answer for host {named:?}; use http://{}", site.address);
                return Err(Problem::new(Code::PermissionDenied, text));
            }
            None
        }
        Access::Open | Access::Granted => {
            Some(access::judge(site.settings.key.as_ref(), site.address.ip(), caller, facts)?)
        }
    };
    content::check_query(route, head.uri.query())?;
    Ok(Asked { site, caller, grant, route, segment, head, upgrade: None })
}

/// What changes something leaves a line that says who asked; the rest at DEBUG.
fn audit(asked: &Asked<'_>) {
    let Some(grant) = asked.grant else { return };
    let (method, path, caller) = (asked.route.method, asked.head.uri.path(), asked.caller);
    let (pid, uid, basis) = (caller.pid, caller.uid, grant.as_str());
    let (unit, exe) = (caller.unit.as_deref(), caller.executable.as_deref());
    if method == "GET" {
        tracing::debug!(method, path, pid, uid, unit, exe, basis, "called");
    } else {
        tracing::info!(method, path, pid, uid, unit, exe, basis, "called");
    }
}

async fn carry_out(asked: Asked<'_>, body: Incoming) -> Response<Body> {
    audit(&asked);
    if asked.route.body.is_none() && !body.is_end_stream() {
        // GET with a body, and commands that take none: what is sent is read so that the connection goes on.
        content::discard(body).await;
        return endpoints::answer(asked, bytes::Bytes::new()).await.unwrap_or_else(|problem| answer::problem(&problem));
    }
    let content = match content::read(asked.head, body).await {
        Ok(content) => content,
        Err(problem) => return answer::problem(&problem),
    };
    endpoints::answer(asked, content).await.unwrap_or_else(|problem| answer::problem(&problem))
}

/// What a path takes, and to a browser's preflight whether a page of that origin may ask with a key.
fn options(site: &Site, head: &Parts, facts: &Facts<'_>) -> Response<Body> {
    let methods = match routes::allowed(head.uri.path()) {
        Ok(methods) => methods,
        Err(problem) => return answer::problem(&problem),
    };
    let mut response = answer::empty(StatusCode::NO_CONTENT);
    if site.settings.key.is_some() {
        site.settings.origins.write_preflight(response.headers_mut(), facts.origin, &methods);
    }
    response.headers_mut().insert(header::ALLOW, methods);
    response
}
