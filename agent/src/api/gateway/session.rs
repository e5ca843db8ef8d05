//! Sessions: many calls over one connection, by WebSocket or raw bytes after an upgrade; and lambdas, which are called back.
//!
//! Calls run beside each other and are answered as they finish; a session that ends drops its calls. Everything that is there
//! to read is read and answered before one flush, so that calls in flight share system calls.
//!
//! Invariants: at most [`MAX_IN_FLIGHT`] calls wait at a time, further ones are not read; a peer that neither reads nor
//! answers a ping is cut; a lambda is registered after its client has agreed, and gone with its connection.

mod frames;
mod transport;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use hyper::body::Incoming;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::Shared;
use super::codec::{self, Codec, Decoder, Id, Message};
use crate::api::body::Body;
use crate::api::error::{ApiError, ErrorCode};
use crate::api::methods;
use crate::foundation::lifecycle::{Asked, Stop};
use crate::foundation::task;
use crate::identity::certificate::Member;
use crate::pm3::Pm3;
use crate::pm3::call::{Call, Outcome, Reply, Verb};
use crate::pm3::caller::Caller;
use crate::pm3::failure::{Failure, Kind};
use crate::pm3::lambda::{Identity, Registration, Request};
use crate::pm3::sessions;
use frames::Violation;
use transport::{Event, Transport};

/// Calls of one session that wait for their outcome.
const MAX_IN_FLIGHT: usize = 256;
/// A peer is asked whether it is there, and cut when it said nothing the third time.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const SILENT_TICKS: u32 = 3;
/// How long the client of a lambda may take to agree.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether a request asks for a session.
pub(super) fn is_upgrade(head: &Parts) -> bool {
    let path = head.uri.path();
    path == "/connect" || path == "/lambda/new" || path.starts_with("/lambda/new/")
}

/// What a session is for.
enum Purpose {
    Calls,
    Lambda { identity: Identity, headers: Vec<(String, String)> },
}

/// Agrees to an upgrade and serves the session beside the connection.
///
/// # Errors
/// The request is no upgrade that is understood, or may not open this lambda.
pub(super) fn upgrade(context: Context, head: Parts, body: Incoming, stop: Stop) -> Result<Response<Body>, Failure> {
    let agreed = negotiate(&head)?;
    let purpose = purpose(&context.shared.pm3, &head)?;
    let (wire, codec) = (agreed.wire, agreed.codec);
    let mut request = axum::http::Request::from_parts(head, body);
    let upgraded = hyper::upgrade::on(&mut request);
    let work = async move {
        match upgraded.await {
            Ok(upgraded) => {
                let _counted = Counted::new(&context.shared);
                let transport = Transport::new(wire, upgraded);
                Session::new(context, codec, transport).serve(purpose, stop.asked()).await;
            }
            Err(error) => tracing::debug!(%error, "an upgrade broke off"),
        }
    };
    task::detach("session", work);
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = agreed.headers;
    Ok(response)
}

/// How bytes travel after the upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    WebSocket,
    Raw,
}

struct Agreed {
    wire: Wire,
    codec: Codec,
    headers: HeaderMap,
}

fn negotiate(head: &Parts) -> Result<Agreed, Failure> {
    let text = |name: HeaderName| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let refuse = |why: &str| Failure::invalid(format!("{} is for upgrades: {why}", head.uri.path()));
    if head.method != axum::http::Method::GET || head.version != axum::http::Version::HTTP_11 {
        return Err(refuse("GET over HTTP/1.1"));
    }
    let is_upgrade = text(header::CONNECTION).split(',').any(|token| token.trim().eq_ignore_ascii_case("upgrade"));
    if !is_upgrade {
        return Err(refuse("Connection: Upgrade is missing"));
    }
    let mut headers = HeaderMap::new();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    let wanted = text(header::UPGRADE).to_ascii_lowercase();
    if wanted == "websocket" {
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        if text(header::SEC_WEBSOCKET_VERSION) != "13" {
            return Err(refuse("Sec-WebSocket-Version must be 13"));
        }
        let key = text(header::SEC_WEBSOCKET_KEY);
        if key.len() != 24 {
            return Err(refuse("Sec-WebSocket-Key is missing or not 16 bytes of base64"));
        }
        let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
        let accept = HeaderValue::from_str(&accept).map_err(|_never| refuse("the key is no text"))?;
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        let offered = text(header::SEC_WEBSOCKET_PROTOCOL).split(',').map(str::trim).find_map(Codec::named);
        if let Some(codec) = offered {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(codec.name()));
        }
        return Ok(Agreed { wire: Wire::WebSocket, codec: offered.unwrap_or(Codec::JsonRpc), headers });
    }
    let Some(codec) = Codec::named(&wanted) else {
        return Err(refuse("Upgrade must be websocket, json-rpc or jrpc"));
    };
    headers.insert(header::UPGRADE, HeaderValue::from_static(codec.name()));
    Ok(Agreed { wire: Wire::Raw, codec, headers })
}

fn purpose(pm3: &Pm3, head: &Parts) -> Result<Purpose, Failure> {
    let path = head.uri.path();
    if path == "/connect" {
        return Ok(Purpose::Calls);
    }
    let identity = match path.strip_prefix("/lambda/new/").filter(|id| !id.is_empty()) {
        None => pm3.lambdas.new_identity()?,
        Some(id) => {
            let proof = head.headers.get("x-lambda-proof").and_then(|value| value.to_str().ok()).unwrap_or_default();
            pm3.lambdas.identity_again(id, proof)?
        }
    };
    // What authenticates the opener is nobody else's to read.
    let is_secret = |name: &HeaderName| {
        matches!(*name, header::AUTHORIZATION | header::COOKIE | header::PROXY_AUTHORIZATION)
            || matches!(name.as_str(), "x-lambda-proof" | "x-psn")
    };
    let shown = head.headers.iter().filter(|(name, _)| !is_secret(name));
    let headers = shown
        .map(|(name, value)| (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect();
    Ok(Purpose::Lambda { identity, headers })
}

/// On whose behalf calls are made.
pub(super) struct Context {
    shared: Arc<Shared>,
    caller: Arc<Caller>,
    from: IpAddr,
    counts: Arc<sessions::Session>,
    member: Option<Arc<Member>>,
}

impl Context {
    pub(super) fn new(
        shared: Arc<Shared>,
        caller: Arc<Caller>,
        from: IpAddr,
        counts: Arc<sessions::Session>,
        member: Option<Arc<Member>>,
    ) -> Self {
        Self { shared, caller, from, counts, member }
    }

    /// Whether the caller was taken out of the mesh meanwhile.
    fn is_expelled(&self) -> bool {
        self.member.as_ref().is_some_and(|member| !self.shared.admits(member))
    }

    fn admits(&self) -> bool {
        self.counts.count();
        self.shared.counts.called();
        let limit = self.shared.config.calls_per_second;
        limit.is_none_or(|limit| self.counts.admits(limit, SystemTime::now()))
    }
}

/// Counts a session while it lives.
struct Counted(Arc<Shared>);

impl Counted {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.counts.session_began();
        Self(Arc::clone(shared))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.counts.session_ended();
    }
}

/// The client calls more often than it may.
pub(super) fn too_many() -> ApiError {
    ApiError::new(ErrorCode::Busy, "more calls a second than gateway.calls_per_second allows; try again")
}

struct Session {
    context: Context,
    codec: Codec,
    transport: Transport,
    decoder: Decoder,
    calls: FuturesUnordered<BoxFuture<'static, Option<(Id, Outcome)>>>,
    /// Calls of ours that the client has not answered.
    asked: HashMap<u64, oneshot::Sender<Outcome>>,
    next_sequence: u32,
    out: Vec<u8>,
    silent_ticks: u32,
}

/// Why a session ends.
enum End {
    /// The other side went, or is not there any more.
    Gone,
    /// It broke the protocol of the messages.
    Broken(codec::Broken),
    /// It broke the protocol of the frames.
    Violated(Violation),
}

/// What woke a session.
enum Woken {
    Event(Event),
    Done(Option<(Id, Outcome)>),
    Asked(Option<Request>),
    Tick,
    Stopping,
}

impl Session {
    fn new(context: Context, codec: Codec, transport: Transport) -> Self {
        Self {
            context,
            codec,
            transport,
            decoder: Decoder::new(codec),
            calls: FuturesUnordered::new(),
            asked: HashMap::new(),
            next_sequence: 0,
            out: Vec::new(),
            silent_ticks: 0,
        }
    }

    async fn serve(mut self, purpose: Purpose, mut stop: Asked) {
        let registered = match purpose {
            Purpose::Calls => Ok(None),
            Purpose::Lambda { identity, headers } => self.open_lambda(&identity, headers).await.map(Some),
        };
        let end = match registered {
            Ok(None) => self.run(None, &mut stop).await,
            Ok(Some((registration, mut requests))) => {
                let end = self.run(Some(&mut requests), &mut stop).await;
                drop(registration);
                end
            }
            Err(end) => end,
        };
        match end {
            End::Gone => self.transport.close(None).await,
            End::Broken(broken) => self.transport.close(Some((CloseCode::Policy, &broken.to_string()))).await,
            End::Violated(violation) => {
                self.transport.close(Some((violation.code(), &violation.to_string()))).await;
            }
        }
    }

    /// Has the client agree to be called.
    async fn open_lambda(
        &mut self,
        identity: &Identity,
        headers: Vec<(String, String)>,
    ) -> Result<(Registration, mpsc::Receiver<Request>), End> {
        let quoted = |text: &str| format!("{text:?}");
        let (id, proof) = (quoted(&identity.id), quoted(&identity.proof));
        let (reply, mut agreed) = oneshot::channel();
        self.ask("open", &[id.as_bytes(), proof.as_bytes()], reply);
        self.flush().await?;
        let deadline = Instant::now() + OPEN_TIMEOUT;
        loop {
            let event = tokio::time::timeout_at(deadline, self.transport.next()).await.map_err(|_elapsed| End::Gone)?;
            self.take(event)?;
            self.flush().await?;
            match agreed.try_recv() {
                Ok(Ok(Reply::Json(value))) if value.as_ref() != b"null" => break,
                Ok(_refused) => return Err(End::Gone),
                Err(oneshot::error::TryRecvError::Closed) => return Err(End::Gone),
                Err(oneshot::error::TryRecvError::Empty) => {}
            }
        }
        Ok(self.context.shared.pm3.lambdas.register(&identity.id, self.codec.name(), headers))
    }

    async fn run(&mut self, mut requests: Option<&mut mpsc::Receiver<Request>>, stop: &mut Asked) -> End {
        let mut tick = tokio::time::interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let has_room = self.calls.len() < MAX_IN_FLIGHT;
            let asked = async {
                match &mut requests {
                    Some(requests) => requests.recv().await,
                    None => std::future::pending().await,
                }
            };
            let woken = tokio::select! {
                biased;
                event = self.transport.next(), if has_room => Woken::Event(event),
                Some(done) = self.calls.next(), if !self.calls.is_empty() => Woken::Done(done),
                request = asked => Woken::Asked(request),
                _ = tick.tick() => Woken::Tick,
                () = stop.requested() => Woken::Stopping,
            };
            if let Err(end) = self.handle(woken).await {
                return end;
            }
        }
    }

    async fn handle(&mut self, woken: Woken) -> Result<(), End> {
        match woken {
            Woken::Event(event) => {
                self.take(event)?;
                self.take_what_is_there()?;
            }
            Woken::Done(done) => self.done(done),
            Woken::Asked(Some(request)) => self.ask(&request.method, &[&request.parameter], request.reply),
            Woken::Asked(None) | Woken::Stopping => return Err(End::Gone),
            Woken::Tick => {
                self.silent_ticks = if self.transport.has_heard() { 0 } else { self.silent_ticks + 1 };
                if self.silent_ticks >= SILENT_TICKS {
                    return Err(End::Gone);
                }
                self.asked.retain(|_, reply| !reply.is_closed());
                self.transport.ping();
            }
        }
        self.flush().await
    }

    /// Takes further events that need no waiting, so that their replies leave together.
    fn take_what_is_there(&mut self) -> Result<(), End> {
        while self.calls.len() < MAX_IN_FLIGHT && self.transport.queued_bytes() < codec::MAX_MESSAGE_BYTES {
            let Some(event) = self.transport.next_now() else { return Ok(()) };
            self.take(event)?;
        }
        Ok(())
    }

    fn take(&mut self, event: Event) -> Result<(), End> {
        match event {
            Event::Bytes(bytes) => self.decoder.push(bytes),
            Event::Nothing => return Ok(()),
            Event::Violated(violation) => return Err(End::Violated(violation)),
            Event::Gone => return Err(End::Gone),
        }
        while let Some(message) = self.decoder.next().map_err(End::Broken)? {
            self.message(message);
        }
        Ok(())
    }

    fn message(&mut self, message: Message) {
        match message {
            Message::Wrong { id, text } => self.reply(&id, Err(Failure::invalid(text))),
            Message::Call { id, method, parameter, is_notification } => {
                match start(&self.context, &method, parameter) {
                    Started::Done(outcome) if is_notification => drop(outcome),
                    Started::Done(outcome) => self.reply(&id, outcome),
                    Started::Runs(work) => self.calls.push(Box::pin(async move {
                        let outcome = work.await;
                        (!is_notification).then_some((id, outcome))
                    })),
                }
            }
            Message::Reply { sequence, result } => {
                let Some(reply) = sequence.and_then(|sequence| self.asked.remove(&sequence)) else { return };
                // The caller went away in the meantime.
                reply.send(result.map(Reply::Json).map_err(Failure::invalid)).ok();
            }
        }
    }

    fn done(&mut self, done: Option<(Id, Outcome)>) {
        if let Some((id, outcome)) = done {
            self.reply(&id, outcome);
        }
    }

    fn reply(&mut self, id: &Id, outcome: Outcome) {
        self.out.clear();
        codec::write_reply(&mut self.out, id, outcome);
        self.transport.queue(&self.out, self.codec);
    }

    fn ask(&mut self, method: &str, parameters: &[&[u8]], reply: oneshot::Sender<Outcome>) {
        let sequence = self.next_sequence;
        self.next_sequence = sequence.wrapping_add(1) & !(1 << 31);
        self.asked.insert(u64::from(sequence), reply);
        self.out.clear();
        codec::write_call(&mut self.out, self.codec, sequence, method, parameters);
        self.transport.queue(&self.out, self.codec);
    }

    async fn flush(&mut self) -> Result<(), End> {
        self.transport.flush().await.map_err(|_gone| End::Gone)
    }
}

enum Started {
    Done(Outcome),
    Runs(BoxFuture<'static, Outcome>),
}

/// Begins a call: `[VERB ]/path[?query]`; without a verb it is a POST.
fn start(context: &Context, method: &str, parameter: Bytes) -> Started {
    if context.is_expelled() {
        let text = "this caller is no member of the mesh any more";
        return Started::Done(Err(Failure::new(Kind::Forbidden, text)));
    }
    if !context.admits() {
        return Started::Done(Err(Failure::new(Kind::Busy, too_many().error)));
    }
    let (verb, path) = match method.split_once(' ') {
        None => (Some(Verb::Post), method),
        Some((verb, path)) => (Verb::parse(verb), path.trim_start()),
    };
    let Some(verb) = verb else {
        return Started::Done(Err(Failure::new(
            Kind::WrongVerb,
            format!("{method:?} begins with no verb of this API"),
        )));
    };
    let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query.to_owned())));
    let (found, parts) = match context.shared.pm3.find(verb, path) {
        Ok(found) => found,
        Err(failure) => return Started::Done(Err(failure)),
    };
    // A null says as much as no parameter.
    let body = if parameter.as_ref() == b"null" { Bytes::new() } else { parameter };
    let caller = Arc::clone(&context.caller);
    let call = Call { verb, parts, query, body, headers: Vec::new(), caller, from: Some(context.from) };
    match context.shared.pm3.call_now(found, call) {
        Ok(outcome) => Started::Done(outcome),
        Err(work) => Started::Runs(Box::pin(methods::with_slot(work))),
    }
}
