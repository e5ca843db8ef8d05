//! One connection: its requests, each classified and sent to what answers it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use axum::http::request::Parts;
use axum::http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::TcpStream;

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
}

/// Ends a connection without an answer.
#[derive(Debug, thiserror::Error)]
#[error("this connection is closed without an answer")]
struct Closed;

impl Open {
    pub(super) fn new(shared: Arc<Shared>, caller: Arc<Caller>, peer: SocketAddr, local: SocketAddr) -> Self {
        shared.connections.fetch_add(1, Ordering::Relaxed);
        let session = shared.pm3.sessions.of(peer.ip().to_canonical(), SystemTime::now());
        Self { shared, caller, peer, local, session }
    }

    pub(super) async fn serve(self, stream: TcpStream, mut stop: Stop) {
        let open = Arc::new(self);
        let of_sessions = stop.clone();
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            let (open, stop) = (Arc::clone(&open), of_sessions.clone());
            async move { open.answer(request, stop).await }
        });
        let builder = builder();
        let serving = builder.serve_connection_with_upgrades(TokioIo::new(http::Prompt::new(stream)), service);
        let mut serving = std::pin::pin!(serving);
        let result = tokio::select! {
            result = serving.as_mut() => result,
            () = stop.requested() => {
                serving.as_mut().graceful_shutdown();
                serving.await
            }
        };
        http::log_end("gateway", result);
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>, stop: Stop) -> Result<Response<Body>, Closed> {
        self.session.count();
        let (head, body) = request.into_parts();
        let port = self.local.port();
        let (is_ours, is_forwarded, foreign, token) = {
            let facts = Facts::of(&head, &self.shared.names, port);
            let Some(host) = facts.host else { return Ok(bad_host()) };
            let is_ours = self.shared.names.answer_to(host, port);
            (is_ours, facts.is_forwarded, facts.foreign, facts.token.map(str::to_owned))
        };
        if !is_ours {
            return Err(Closed);
        }
        let from = client(&self.shared.config, self.peer.ip(), &head.headers);
        if let Some(name) = foreign {
            let text = format!("{name} says that a page of another site asks; the pm3 API answers no page");
            return Ok(methods::refused(ApiError::new(ErrorCode::Forbidden, text), false));
        }
        if !self.admits() {
            return Ok(methods::refused(session::too_many(), false));
        }
        let caller = match self.standing(is_forwarded, token.as_deref(), &head) {
            Ok(Some(caller)) => caller,
            Ok(None) if self.peer.ip().to_canonical().is_loopback() => return Ok(self.external(is_forwarded)),
            Ok(None) => return Err(Closed),
            Err(failure) => return Ok(methods::refused(failure.into(), false)),
        };
        if session::is_upgrade(&head) {
            let limit = self.shared.config.calls_per_second;
            let context = session::Context::new(&self.shared.pm3, caller, from, limit, Arc::clone(&self.session));
            return Ok(session::upgrade(context, head, body, stop)
                .unwrap_or_else(|failure| methods::refused(failure.into(), false)));
        }
        let is_head = head.method == axum::http::Method::HEAD;
        let mut response = methods::answer(&self.shared.pm3, &caller, Some(from), &head, body).await;
        if is_head {
            *response.body_mut() = Body::empty();
        }
        Ok(response)
    }

    /// Whether one more call is within the limit of this client.
    fn admits(&self) -> bool {
        let limit = self.shared.config.calls_per_second;
        limit.is_none_or(|limit| self.session.admits(limit, SystemTime::now()))
    }

    /// The caller, if this request may call: an internal one that came straight to us, or anyone with a good signature.
    fn standing(&self, is_forwarded: bool, token: Option<&str>, head: &Parts) -> Result<Option<Arc<Caller>>, Failure> {
        let (query, in_query) = split_query(head.uri.query().unwrap_or_default());
        if let Some(token) = token.or(in_query) {
            return self.signed(token, &query, head).map(Some);
        }
        Ok((self.caller.is_internal() && !is_forwarded).then(|| Arc::clone(&self.caller)))
    }

    fn signed(&self, token: &str, query: &str, head: &Parts) -> Result<Arc<Caller>, Failure> {
        let verb = Verb::parse(head.method.as_str())
            .ok_or_else(|| Failure::new(Kind::WrongVerb, format!("{} cannot be signed", head.method)))?;
        let host = Facts::of(head, &self.shared.names, self.local.port()).host.unwrap_or_default();
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
    fn external(&self, is_forwarded: bool) -> Response<Body> {
        let why = match (&self.caller.reason, self.caller.uid, is_forwarded) {
            (_, _, true) => "it came through a proxy".to_owned(),
            (Some(reason), _, false) => reason.to_string(),
            (None, Some(uid), false) => format!("uid {uid} is not trusted"),
            (None, None, false) => "the kernel does not vouch for it".to_owned(),
        };
        let text =
            format!("this caller is external: {why}; the pm3 API is for internal callers (`weft doctor` tells who is)");
        methods::refused(ApiError::new(ErrorCode::Forbidden, text), false)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.shared.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

fn bad_host() -> Response<Body> {
    let text = "a request names exactly one Host";
    methods::refused(ApiError::new(ErrorCode::InvalidArgument, text), false)
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(http::HEAD_TIMEOUT).max_buf_size(MAX_HEAD_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(MAX_HEAD_BYTES).unwrap_or(u32::MAX))
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(http::HEAD_TIMEOUT);
    builder
}
