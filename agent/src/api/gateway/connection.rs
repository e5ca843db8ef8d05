//! One connection: its requests, each classified and sent to what answers it.
//!
//! What needs no waiting is answered in the call itself: neither a box nor a state machine is made for it.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::SystemTime;

use axum::http::request::Parts;
use axum::http::{Request, Response};
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::TcpStream;

use super::patience::{Patient, Work};
use super::request::{Facts, client};
use super::{Shared, session};
use crate::api::body::Body;
use crate::api::error::{ApiError, ErrorCode};
use crate::api::{http, methods};
use crate::foundation::lifecycle::Stop;
use crate::pm3::call::Verb;
use crate::pm3::caller::{Basis, Caller, Standing};
use crate::pm3::failure::{Failure, Kind};
use crate::pm3::sessions::Session;
use crate::pm3::signer::{self, split_query};

/// Streams of one HTTP/2 connection at a time.
const MAX_STREAMS: u32 = 128;
/// A dead HTTP/2 client is noticed by its missing answer to a ping.
const PING_INTERVAL: std::time::Duration = std::time::Duration::from_secs(20);
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
}

/// Ends a connection without an answer.
#[derive(Debug, thiserror::Error)]
#[error("this connection is closed without an answer")]
struct Closed;

type Answer = Result<Response<Body>, Closed>;

/// Whose request it is, once it may be answered.
struct Admitted {
    caller: Arc<Caller>,
    from: IpAddr,
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
        Self { shared, caller, peer, local, session, work: Arc::default() }
    }

    pub(super) async fn serve(self, stream: TcpStream, stop: Stop) {
        let open = Arc::new(self);
        let shared = Arc::clone(&open.shared);
        let io = TokioIo::new(Patient::new(stream, Arc::clone(&open.work)));
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
        let admitted = match self.admit(&head) {
            Ok(admitted) => admitted,
            Err(Refusal::Closed) => return self.now(Err(Closed)),
            Err(Refusal::Told(error)) => return self.now(Ok(methods::refused(error, false))),
        };
        if session::is_upgrade(&head) {
            return self.now(Ok(self.upgrade(admitted, head, body, stop)));
        }
        let is_head = head.method == axum::http::Method::HEAD;
        let Admitted { caller, from } = admitted;
        match methods::begin(&self.shared.pm3, &caller, from, head, body) {
            methods::Answer::Now(response) => self.now(Ok(without_body_if(is_head, response))),
            methods::Answer::Later(later) => {
                let (open, running) = (Arc::clone(self), self.work.begin());
                Answering::Later(Box::pin(async move {
                    let mut response = without_body_if(is_head, later.await);
                    open.shared.counts.answered(response.status());
                    // A streamed answer is in work until its last byte.
                    if let Body::Stream(stream) = response.body_mut() {
                        let rest = std::mem::replace(stream, futures_util::stream::empty().boxed());
                        *stream = rest.inspect(move |_chunk| _ = &running).boxed();
                    }
                    Ok(response)
                }))
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

    fn upgrade(&self, admitted: Admitted, head: Parts, body: Incoming, stop: &Stop) -> Response<Body> {
        let Admitted { caller, from } = admitted;
        let context = session::Context::new(Arc::clone(&self.shared), caller, from, Arc::clone(&self.session));
        let agreed = session::upgrade(context, head, body, stop.clone());
        agreed.unwrap_or_else(|failure| methods::refused(failure.into(), false))
    }

    /// Whether a request may be answered; else what is said instead, if anything.
    fn admit(&self, head: &Parts) -> Result<Admitted, Refusal> {
        let port = self.local.port();
        let facts = Facts::of(head, &self.shared.names, port);
        let Some(host) = facts.host else {
            return Err(refuse(ErrorCode::InvalidArgument, "a request names exactly one Host"));
        };
        if !self.shared.names.answer_to(host, port) {
            return Err(Refusal::Closed);
        }
        let from = client(&self.shared.config, self.peer.ip(), &head.headers);
        if let Some(name) = facts.foreign {
            let text = format!("{name} says that a page of another site asks; the pm3 API answers no page");
            return Err(refuse(ErrorCode::Forbidden, text));
        }
        if !self.admits() {
            return Err(Refusal::Told(session::too_many()));
        }
        match self.standing(&facts, host, head) {
            Ok(Some(caller)) => Ok(Admitted { caller, from }),
            Ok(None) if self.peer.ip().to_canonical().is_loopback() => {
                Err(refuse(ErrorCode::Forbidden, self.external(facts.is_forwarded)))
            }
            Ok(None) => Err(Refusal::Closed),
            Err(failure) => Err(Refusal::Told(failure.into())),
        }
    }

    /// Whether one more call is within the limit of this client.
    fn admits(&self) -> bool {
        let limit = self.shared.config.calls_per_second;
        limit.is_none_or(|limit| self.session.admits(limit, SystemTime::now()))
    }

    /// The caller, if this request may call: an internal one that came straight to us, or anyone with a good signature.
    fn standing(&self, facts: &Facts<'_>, host: &str, head: &Parts) -> Result<Option<Arc<Caller>>, Failure> {
        if facts.token.is_some() || head.uri.query().is_some() {
            let (query, in_query) = split_query(head.uri.query().unwrap_or_default());
            if let Some(token) = facts.token.or(in_query) {
                return self.signed(token, host, &query, head).map(Some);
            }
        }
        Ok((self.caller.is_internal() && !facts.is_forwarded).then(|| Arc::clone(&self.caller)))
    }

    fn signed(&self, token: &str, host: &str, query: &str, head: &Parts) -> Result<Arc<Caller>, Failure> {
        let verb = Verb::parse(head.method.as_str())
            .ok_or_else(|| Failure::new(Kind::WrongVerb, format!("{} cannot be signed", head.method)))?;
        let host = host.split(':').next().unwrap_or_default();
        let request = signer::Request { verb, host, path: head.uri.path(), query };
        let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let claims = self.shared.pm3.signer.verify(request, token, header, SystemTime::now())?;
        if claims.rewrite.is_some() {
            // A rewrite leads to a virtual host, and this one is not signed for another.
            return Err(Failure::new(
                Kind::Unavailable,
                "this URL is signed for a virtual host that is not served here",
            ));
        }
        let signed = Caller { standing: Standing::Internal, basis: Basis::Signature, ..Caller::unknown() };
        Ok(Arc::new(signed))
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
    Later(BoxFuture<'static, Answer>),
}

impl Future for Answering {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        match &mut *self {
            // Whoever polls on after the end gets no second answer.
            Self::Now(answer) => answer.take().map_or(Poll::Pending, Poll::Ready),
            Self::Later(later) => later.as_mut().poll(cx),
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
