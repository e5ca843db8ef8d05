//! One connection: its requests, each classified and sent to what answers it.
//!
//! What needs no waiting is answered in the call itself: neither a box nor a state machine is made for it.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::SystemTime;

use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::heads::P_CALLER;
use super::hop::{self, Passport, Way};
use super::hosts::{Host, Visitor};
use super::request::{Facts, client};
use super::{Shared, session, tls};
use crate::api::body::Body;
use crate::api::error::{ApiError, ErrorCode};
use crate::api::patience::{Patience, Patient, Running, Work};
use crate::api::{http, methods};
use crate::foundation::lifecycle::Stop;
use crate::identity::certificate::{Member, Role};
use crate::pm3::call::Verb;
use crate::pm3::caller::{Basis, Caller, Standing};
use crate::pm3::failure::{Failure, Kind};
use crate::pm3::sessions::Session;
use crate::pm3::signer::{self, Claims, split_query};

/// Streams of one HTTP/2 connection at a time.
const MAX_STREAMS: u32 = 128;
/// A dead HTTP/2 client is noticed by its missing answer to a ping.
const PING_INTERVAL: std::time::Duration = std::time::Duration::from_secs(20);
/// Ten seconds; answers are small.
const PATIENCE: Patience = Patience { idle_looks: 2, writes_vectored: false };
/// The head of a request, which a call needs little of.
const MAX_HEAD_BYTES: usize = 32 * 1024;

/// What a connection is known by.
pub(super) struct Open {
    pub(super) shared: Arc<Shared>,
    pub(super) caller: Arc<Caller>,
    peer: SocketAddr,
    local: SocketAddr,
    session: Arc<Session>,
    work: Arc<Work>,
    is_tls: bool,
    /// Whom the client's certificate names; the caller is internal by that.
    member: Option<Arc<Member>>,
}

/// Ends a connection without an answer.
#[derive(Debug, thiserror::Error)]
#[error("this connection is closed without an answer")]
struct Closed;

type Answer = Result<Response<Body>, Closed>;

/// What a request is, once it may be answered.
enum Admitted {
    Call(Call),
    Visit(Visit),
}

/// A call of the pm3 API.
struct Call {
    caller: Arc<Caller>,
    from: IpAddr,
    /// Another node carried the request here and says who asked.
    passport: Option<Passport>,
}

/// A request for a virtual host.
struct Visit {
    host: Arc<Host>,
    visitor: Visitor,
    claims: Option<Claims>,
    /// It came with a signature that proves nothing.
    unproven: Option<Failure>,
}

/// Why a request is not carried out.
enum Refusal {
    /// An answer would only help a scan.
    Closed,
    Told(ApiError),
}

fn refuse(code: ErrorCode, text: impl Into<String>) -> Refusal {
    Refusal::Told(ApiError::new(code, text))
}

impl Open {
    pub(super) fn new(shared: Arc<Shared>, caller: Arc<Caller>, peer: SocketAddr, local: SocketAddr) -> Self {
        shared.connections.fetch_add(1, Ordering::Relaxed);
        let session = shared.pm3.sessions.of(peer.ip().to_canonical(), SystemTime::now());
        Self { shared, caller, peer, local, session, work: Arc::default(), is_tls: false, member: None }
    }

    /// Serves a connection that begins with a handshake.
    pub(super) async fn serve_tls(mut self, stream: TcpStream, stop: Stop) {
        let shared = Arc::clone(&self.shared);
        let Some(tls) = &shared.tls else { return };
        let Some(shown) = tls.accept(stream).await else { return };
        self.is_tls = true;
        if let Some(member) = shown.member {
            self.caller = Arc::new(tls::caller(&member));
            self.member = Some(member);
        }
        self.serve(shown.stream, stop).await;
    }

    pub(super) async fn serve<S>(self, stream: S, stop: Stop)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let open = Arc::new(self);
        let shared = Arc::clone(&open.shared);
        let io = TokioIo::new(Patient::new(stream, Arc::clone(&open.work), PATIENCE));
        let answers = Answers { open, stop: stop.clone() };
        let mut serving = std::pin::pin!(shared.server.serve_connection_with_upgrades(io, answers));
        let mut asked = stop.asked();
        let mut is_ending = false;
        let result = std::future::poll_fn(|cx| {
            if !is_ending && asked.poll(cx).is_ready() {
                is_ending = true;
                serving.as_mut().graceful_shutdown();
            }
            serving.as_mut().poll(cx)
        });
        http::log_end("gateway", result.await);
    }

    fn answer(self: &Arc<Self>, request: Request<Incoming>, stop: &Stop) -> Answering {
        self.session.count();
        let (head, body) = request.into_parts();
        match self.admit(&head) {
            Ok(Admitted::Call(call)) => self.call(call, head, body, stop),
            Ok(Admitted::Visit(visit)) => self.visit(visit, head, body, stop),
            Err(Refusal::Closed) => self.now(Err(Closed)),
            Err(Refusal::Told(error)) => self.now(Ok(methods::refused(error, false))),
        }
    }

    fn call(self: &Arc<Self>, call: Call, head: Parts, body: Incoming, stop: &Stop) -> Answering {
        if session::is_upgrade(&head) {
            return self.now(Ok(self.upgrade(call, head, body, stop)));
        }
        if hop::is_for(head.uri.path()) {
            return self.hop(call, head, body, stop);
        }
        let is_head = head.method == axum::http::Method::HEAD;
        match methods::begin(&self.shared.pm3, &call.caller, call.from, head, body) {
            methods::Answer::Now(response) => self.now(Ok(without_body_if(is_head, response))),
            methods::Answer::Later(later) => self.later(async move { Ok(without_body_if(is_head, later.await)) }),
        }
    }

    /// A request for another node, or for this one by way of its own name.
    fn hop(self: &Arc<Self>, call: Call, mut head: Parts, body: Incoming, stop: &Stop) -> Answering {
        let Call { caller, from, passport } = call;
        let asker = hop::Asker { caller: &caller, from, passport: passport.as_ref() };
        match self.shared.hop.prepare(&mut head, &asker) {
            Ok(Way::Here(passport)) => {
                let call = Call { caller, from, passport: Some(passport) };
                self.here(call, head, body, stop)
            }
            Ok(Way::There(peer)) => {
                let open = Arc::clone(self);
                self.later(async move {
                    let answered = open.shared.hop.carry(&peer, head, body).await;
                    Ok(answered.unwrap_or_else(|error| methods::refused(error, false)))
                })
            }
            Err(error) => self.now(Ok(methods::refused(error, false))),
        }
    }

    /// A request that was carried to this node by its own name.
    fn here(self: &Arc<Self>, call: Call, head: Parts, body: Incoming, stop: &Stop) -> Answering {
        let host = head.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        if self.shared.names.answer_to(host, self.local.port()) {
            return self.call(call, head, body, stop);
        }
        let Some(found) = self.shared.hosts.find(host) else {
            return self.now(Ok(methods::refused(no_host(host), false)));
        };
        let visitor = Visitor {
            address: call.from.to_canonical(),
            peer: self.peer.ip().to_canonical(),
            is_internal: true,
            is_tls: self.is_tls,
            is_vouched_for: true,
        };
        self.visit(Visit { host: found, visitor, claims: None, unproven: None }, head, body, stop)
    }

    /// A request for a virtual host, or for where a signature sends it.
    fn visit(self: &Arc<Self>, visit: Visit, mut head: Parts, body: Incoming, stop: &Stop) -> Answering {
        let Visit { mut host, visitor, claims, unproven } = visit;
        if let Some(claims) = claims {
            if let Err(failure) = add_secrets(&claims, &mut head.headers) {
                return self.now(Ok(methods::refused(failure.into(), false)));
            }
            if let Some(target) = &claims.rewrite {
                let Some(name) = rewrite(&mut head, target) else { return self.now(Ok(lost(target))) };
                if self.shared.names.answer_to(&name, self.local.port()) {
                    let caller = Arc::new(signed());
                    return self.call(Call { caller, from: visitor.address, passport: None }, head, body, stop);
                }
                match self.shared.hosts.find(&name) {
                    Some(other) => host = other,
                    None => return self.now(Ok(lost(target))),
                }
            }
        }
        let open = Arc::clone(self);
        let head = Box::new(head);
        self.later(async move {
            let answered = open.shared.hosts.answer(&host, visitor, head, body).await;
            // Who came with a signature learns what is wrong with that.
            let told = |error: ApiError| match unproven {
                Some(failure) if error.code == ErrorCode::Forbidden => failure.into(),
                Some(_) | None => error,
            };
            Ok(answered.unwrap_or_else(|error| methods::refused(told(error), false)))
        })
    }

    fn later(self: &Arc<Self>, answer: impl Future<Output = Answer> + Send + 'static) -> Answering {
        Answering::Later { answer: Box::pin(answer), open: Arc::clone(self), running: Some(self.work.begin()) }
    }

    /// An answer that had to be waited for is there.
    fn came(&self, response: &mut Response<Body>, running: Option<Running>) {
        self.shared.counts.answered(response.status());
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            self.work.upgraded();
        }
        // A streamed answer is in work until its last byte.
        match response.body_mut() {
            Body::Whole(_) => {}
            Body::Stream(stream) => {
                let rest = std::mem::replace(stream, futures_util::stream::empty().boxed());
                *stream = rest.inspect(move |_chunk| _ = &running).boxed();
            }
            Body::Other(other) => {
                let rest = std::mem::replace(other, Box::pin(Body::empty()));
                *other = Box::pin(Held { body: rest, _running: running });
            }
        }
    }

    fn now(&self, answer: Answer) -> Answering {
        match &answer {
            Ok(response) => self.shared.counts.answered(response.status()),
            Err(Closed) => self.shared.counts.closed(),
        }
        self.work.done();
        Answering::Now(Some(answer))
    }

    fn upgrade(&self, call: Call, head: Parts, body: Incoming, stop: &Stop) -> Response<Body> {
        let Call { caller, from, .. } = call;
        let counts = Arc::clone(&self.session);
        let context = session::Context::new(Arc::clone(&self.shared), caller, from, counts, self.member.clone());
        let agreed = session::upgrade(context, head, body, stop.clone());
        if agreed.is_ok() {
            self.work.upgraded();
        }
        agreed.unwrap_or_else(|failure| methods::refused(failure.into(), false))
    }

    /// Whether a request may be answered; else what is said instead, if anything.
    fn admit(&self, head: &Parts) -> Result<Admitted, Refusal> {
        let port = self.local.port();
        let facts = Facts::of(head, &self.shared.names, port);
        if self.member.as_ref().is_some_and(|member| !self.shared.admits(member)) {
            return Err(Refusal::Closed);
        }
        let Some(host) = facts.host else {
            return Err(refuse(ErrorCode::InvalidArgument, "a request names exactly one Host"));
        };
        let passport = self.passport(&head.headers);
        let carried_from = passport.as_ref().and_then(|passport| passport.from).filter(|from| !from.is_loopback());
        let from = carried_from.unwrap_or_else(|| client(&self.shared.config, self.peer.ip(), &head.headers));
        if !self.shared.names.answer_to(host, port) {
            return self.admit_visit(&facts, host, (from, passport.is_some()), head);
        }
        if let Some(name) = facts.foreign {
            let text = format!("{name} says that a page of another site asks; the pm3 API answers no page");
            return Err(refuse(ErrorCode::Forbidden, text));
        }
        if !self.admits(from) {
            return Err(Refusal::Told(session::too_many()));
        }
        match self.standing(&facts, host, head) {
            Ok(Some(caller)) => {
                let caller = match (&passport, &self.member) {
                    (Some(passport), Some(member)) => Arc::new(passport.caller(member.name.as_str())),
                    _ => caller,
                };
                Ok(Admitted::Call(Call { caller, from, passport }))
            }
            Ok(None) if self.peer.ip().to_canonical().is_loopback() => {
                Err(refuse(ErrorCode::Forbidden, self.external(facts.is_forwarded)))
            }
            Ok(None) => Err(Refusal::Closed),
            Err(failure) => Err(Refusal::Told(failure.into())),
        }
    }

    /// Whether one more call is within the limit of this client, who may stand behind a trusted proxy.
    fn admits(&self, from: IpAddr) -> bool {
        let is_direct = from == self.peer.ip();
        let Some(limit) = self.shared.config.calls_per_second else {
            if !is_direct {
                self.shared.pm3.sessions.of(from.to_canonical(), SystemTime::now()).count();
            }
            return true;
        };
        let now = SystemTime::now();
        if is_direct {
            return self.session.admits(limit, now);
        }
        let session = self.shared.pm3.sessions.of(from.to_canonical(), now);
        session.count();
        session.admits(limit, now)
    }

    /// Who asked at first, on the word of a node that has proven to be one.
    fn passport(&self, headers: &HeaderMap) -> Option<Passport> {
        let member = self.member.as_ref()?;
        headers.get(P_CALLER).filter(|_| member.role == Role::Node).and_then(Passport::read)
    }

    fn admit_visit(
        &self,
        facts: &Facts<'_>,
        host: &str,
        (from, is_vouched_for): (IpAddr, bool),
        head: &Parts,
    ) -> Result<Admitted, Refusal> {
        let found = match self.shared.hosts.find(host) {
            Some(found) => found,
            // A node of the mesh is no scan.
            None if self.member.is_some() => return Err(Refusal::Told(no_host(host))),
            None => return Err(Refusal::Closed),
        };
        // The host's own parameter may have this name: what is no signature of ours only gives no rights.
        let (claims, unproven) = match self.token(facts, head) {
            Some((token, query)) => {
                let name = host.split(':').next().unwrap_or_default().to_ascii_lowercase();
                match self.verified(token, &name, &query, head) {
                    Ok(claims) => (Some(claims), None),
                    Err(failure) => (None, Some(failure)),
                }
            }
            None => (None, None),
        };
        let came_straight = !facts.is_forwarded && facts.foreign.is_none();
        let is_internal = claims.is_some() || (self.caller.is_internal() && came_straight);
        let (address, peer) = (from.to_canonical(), self.peer.ip().to_canonical());
        let visitor = Visitor { address, peer, is_internal, is_tls: self.is_tls, is_vouched_for };
        Ok(Admitted::Visit(Visit { host: found, visitor, claims, unproven }))
    }

    /// The signature that comes with a request, and the query without it.
    fn token<'h>(&self, facts: &Facts<'h>, head: &'h Parts) -> Option<(&'h str, String)> {
        let query = head.uri.query();
        if facts.token.is_none() && query.is_none() {
            return None;
        }
        let (query, in_query) = split_query(query.unwrap_or_default());
        facts.token.or(in_query).map(|token| (token, query))
    }

    /// The caller, if this request may call: an internal one that came straight to us, or anyone with a good signature.
    fn standing(&self, facts: &Facts<'_>, host: &str, head: &Parts) -> Result<Option<Arc<Caller>>, Failure> {
        if let Some((token, query)) = self.token(facts, head) {
            let name = host.split(':').next().unwrap_or_default();
            let claims = self.verified(token, name, &query, head)?;
            if let Some(target) = claims.rewrite {
                let text = format!("this URL is signed for {target}; a rewrite is for URLs of virtual hosts");
                return Err(Failure::new(Kind::Forbidden, text));
            }
            return Ok(Some(Arc::new(signed())));
        }
        Ok((self.caller.is_internal() && !facts.is_forwarded).then(|| Arc::clone(&self.caller)))
    }

    fn verified(&self, token: &str, host: &str, query: &str, head: &Parts) -> Result<Claims, Failure> {
        let verb = Verb::parse(head.method.as_str())
            .ok_or_else(|| Failure::new(Kind::WrongVerb, format!("{} cannot be signed", head.method)))?;
        let request = signer::Request { verb, host, path: head.uri.path(), query };
        let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        self.shared.pm3.signer.verify(request, token, header, SystemTime::now())
    }

    /// The refusal of a local caller, which may be an operator who wonders.
    fn external(&self, is_forwarded: bool) -> String {
        let why = match (&self.caller.reason, self.caller.uid, is_forwarded) {
            (_, _, true) => "it came through a proxy".to_owned(),
            (Some(reason), _, false) => reason.to_string(),
            (None, Some(uid), false) => format!("uid {uid} is not trusted"),
            (None, None, false) => "the kernel does not vouch for it".to_owned(),
        };
        format!("this caller is external: {why}; the pm3 API is for internal callers (`weft doctor` tells who is)")
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.shared.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

fn signed() -> Caller {
    Caller { standing: Standing::Internal, basis: Basis::Signature, ..Caller::unknown() }
}

fn no_host(host: &str) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("there is no host {host:?} on this node; [gateway.host] has its hosts"))
}

/// Gives a request the headers that its signature keeps for it.
fn add_secrets(claims: &Claims, headers: &mut HeaderMap) -> Result<(), Failure> {
    for (name, value) in &claims.secrets {
        let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value)) else {
            return Err(Failure::invalid("a secret of this signed URL is no header"));
        };
        headers.insert(name, value);
    }
    Ok(())
}

/// Has a request ask for `HOST/PATH` instead; the host.
fn rewrite(head: &mut Parts, target: &str) -> Option<String> {
    let (host, path, query) = signer::split_url(target)?;
    let uri = if query.is_empty() { path } else { format!("{path}?{query}") };
    head.uri = uri.parse().ok()?;
    head.headers.insert(header::HOST, HeaderValue::from_str(&host).ok()?);
    Some(host)
}

fn lost(target: &str) -> Response<Body> {
    let text = format!("this URL is signed for {target}, which is not served here");
    methods::refused(ApiError::new(ErrorCode::NotFound, text), false)
}

/// A body whose request is in work for as long as it lasts.
struct Held {
    body: Pin<Box<dyn hyper::body::Body<Data = Bytes, Error = io::Error> + Send>>,
    _running: Option<Running>,
}

impl hyper::body::Body for Held {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.body.as_mut().poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn without_body_if(is_head: bool, mut response: Response<Body>) -> Response<Body> {
    if is_head {
        *response.body_mut() = Body::empty();
    }
    response
}

/// What hyper asks for every request.
struct Answers {
    open: Arc<Open>,
    stop: Stop,
}

impl Service<Request<Incoming>> for Answers {
    type Response = Response<Body>;
    type Error = Closed;
    type Future = Answering;

    fn call(&self, request: Request<Incoming>) -> Answering {
        self.open.answer(request, &self.stop)
    }
}

/// An answer that is there or comes.
enum Answering {
    Now(Option<Answer>),
    /// In work until it is there.
    Later {
        answer: BoxFuture<'static, Answer>,
        open: Arc<Open>,
        running: Option<Running>,
    },
}

impl Future for Answering {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        match &mut *self {
            // Whoever polls on after the end gets no second answer.
            Self::Now(answer) => answer.take().map_or(Poll::Pending, Poll::Ready),
            Self::Later { answer, open, running } => {
                let mut answer = std::task::ready!(answer.as_mut().poll(cx));
                if let Ok(response) = &mut answer {
                    open.came(response, running.take());
                }
                Poll::Ready(answer)
            }
        }
    }
}

/// How connections are served; one for all.
pub(super) fn server() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // Time is kept by [`Patient`].
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(MAX_HEAD_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(MAX_HEAD_BYTES).unwrap_or(u32::MAX))
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(http::HEAD_TIMEOUT);
    builder
}
