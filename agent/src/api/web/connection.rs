//! One connection: each request is found in the table, judged, carried out and answered; the list at once where it is there.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::http::request::Parts;
use axum::http::{Method, Request, Response, StatusCode, header};
use futures_util::future::BoxFuture;
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;

use super::access::{self, Grant};
use super::head::Facts;
use super::problem::{Code, Problem};
use super::routes::{Access, Route};
use super::{Site, answer, content, endpoints, host, list, routes};
use crate::api::body::Body;
use crate::api::http;
use crate::api::patience::{Patience, Patient, Work};
use crate::foundation::lifecycle::Stop;
use crate::pm3::caller::Caller;

/// Half a minute for a head to come in and between two requests; the list of a hundred processes is no small answer.
const PATIENCE: Patience = Patience { idle_looks: 6, writes_vectored: true };
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

pub(super) async fn serve(stream: TcpStream, site: Arc<Site>, caller: Arc<Caller>, stop: Stop) {
    let work: Arc<Work> = Arc::default();
    let io = TokioIo::new(Patient::new(stream, Arc::clone(&work), PATIENCE));
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        // Time is kept by [`Patient`].
        .header_read_timeout(None)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(io, Answers { site, caller, work })
        .with_upgrades();
    let mut serving = std::pin::pin!(serving);
    let mut asked = stop.asked();
    let mut is_ending = false;
    let result = std::future::poll_fn(|cx| {
        if !is_ending && asked.poll(cx).is_ready() {
            is_ending = true;
            serving.as_mut().graceful_shutdown();
        }
        serving.as_mut().poll(cx)
    });
    http::log_end("web", result.await);
}

/// What hyper asks for every request.
struct Answers {
    site: Arc<Site>,
    caller: Arc<Caller>,
    work: Arc<Work>,
}

impl Service<Request<Incoming>> for Answers {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answering;

    fn call(&self, mut request: Request<Incoming>) -> Answering {
        let upgrade = request.headers().contains_key(header::UPGRADE).then(|| hyper::upgrade::on(&mut request));
        let (head, body) = request.into_parts();
        if let Some(response) = at_once(&self.site, &self.caller, &head, &body) {
            self.work.done();
            return Answering::Now(Some(response));
        }
        let (site, caller, work) = (Arc::clone(&self.site), Arc::clone(&self.caller), Arc::clone(&self.work));
        Answering::Later(Box::pin(async move {
            let _running = work.begin();
            let response = respond(&site, &caller, head, body, upgrade).await;
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                work.upgraded();
            }
            Ok(response)
        }))
    }
}

/// An answer that is there or comes.
enum Answering {
    Now(Option<Response<Body>>),
    Later(BoxFuture<'static, Result<Response<Body>, Infallible>>),
}

impl Future for Answering {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            // Whoever polls on after the end gets no second answer.
            Self::Now(response) => response.take().map_or(Poll::Pending, |response| Poll::Ready(Ok(response))),
            Self::Later(later) => later.as_mut().poll(cx),
        }
    }
}

/// The list, which pollers ask for, where it is written already: neither a box nor a state machine is made for it.
fn at_once(site: &Arc<Site>, caller: &Arc<Caller>, head: &Parts, body: &Incoming) -> Option<Response<Body>> {
    if head.method != Method::GET || head.uri.path() != list::PATH || head.uri.query().is_some() {
        return None;
    }
    if !body.is_end_stream() {
        return None;
    }
    let text = site.list.newest(&site.sources.process)?;
    let facts = Facts::of(head);
    // A refusal is written where all are.
    let asked = let_in(site, caller, head, &facts).ok()?;
    audit(&asked);
    Some(with_origin(answer::bytes(answer::JSON, text), site, asked.grant, &facts))
}

async fn respond(
    site: &Arc<Site>,
    caller: &Arc<Caller>,
    head: Parts,
    body: Incoming,
    upgrade: Option<OnUpgrade>,
) -> Response<Body> {
    let facts = Facts::of(&head);
    if head.method == Method::OPTIONS {
        return options(site, &head, &facts);
    }
    let (response, grant) = match let_in(site, caller, &head, &facts) {
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
    with_origin(response, site, grant, &facts)
}

/// Lets a page of another origin read what was asked with the key, where the configuration allows it.
fn with_origin(mut response: Response<Body>, site: &Site, grant: Option<Grant>, facts: &Facts<'_>) -> Response<Body> {
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
