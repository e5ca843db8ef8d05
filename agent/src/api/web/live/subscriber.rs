//! One WebSocket: its upgrade, what it is sent, and its end.
//!
//! Invariants: what a subscriber sends is read and dropped, within bounds; one that does not read within [`WRITE_TIMEOUT`], or
//! does not answer pings, is cut off; nothing is kept for it but the shared batches.

use std::time::Duration;

use axum::http::request::Parts as Head;
use axum::http::{HeaderName, HeaderValue, Response, StatusCode, Version, header};
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::upgrade::{OnUpgrade, Parts};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, MissedTickBehavior, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Bytes, Utf8Bytes};

use super::{Batch, Full, Live, message};
use crate::api::body::Body;
use crate::api::patience::Patient;
use crate::api::web::answer;
use crate::api::web::problem::{Code, Problem};
use crate::foundation::lifecycle::Stop;
use crate::foundation::task;

/// The subprotocol that is agreed to when it is offered; a browser that offers its key as another needs one to be taken.
const PROTOCOL: &str = "weft";
/// How long a subscriber may take to read a batch.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// A dead one is noticed by its missing answer to a ping.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const SILENCE: Duration = Duration::from_secs(60);
/// Subscribers have nothing to say: small buffers, and a small limit on what is read and dropped.
const READ_BYTES: usize = 1024;
/// What the kernel may hold for one that does not read; left to itself it takes megabytes for each.
const SEND_BYTES: usize = 128 * 1024;
const MAX_MESSAGE_BYTES: usize = 16 * 1024;

/// What an upgrade needs.
pub(in crate::api::web) struct Context<'a> {
    pub(in crate::api::web) live: &'a Live,
    pub(in crate::api::web) head: &'a Head,
    pub(in crate::api::web) upgrade: Option<OnUpgrade>,
    pub(in crate::api::web) stop: Stop,
}

/// Agrees to an upgrade and serves the subscriber beside the connection.
///
/// # Errors
/// The request is no upgrade that is understood, or there are too many.
pub(in crate::api::web) fn upgrade(context: Context<'_>) -> Result<Response<Body>, Problem> {
    let Context { live, head, upgrade, stop } = context;
    let accept = negotiate(head)?;
    let upgrade = upgrade.ok_or_else(|| refuse("Connection: Upgrade is missing"))?;
    let batches = live.subscribe().map_err(|Full| {
        Problem::new(Code::InsufficientResources, format!("{} subscribers are the limit", super::MAX_SUBSCRIBERS))
    })?;
    let live = live.clone();
    task::detach("subscriber", async move {
        match upgrade.await {
            Ok(upgraded) => match upgraded.downcast::<TokioIo<Patient<TcpStream>>>() {
                Ok(parts) => Subscriber::new(parts).await.serve(&live, batches, stop).await,
                Err(_other) => tracing::error!("a connection of another kind than this listener accepts was upgraded"),
            },
            Err(error) => tracing::debug!(%error, "an upgrade broke off"),
        }
    });
    let mut response = answer::empty(StatusCode::SWITCHING_PROTOCOLS);
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    if text(head, header::SEC_WEBSOCKET_PROTOCOL).split(',').any(|name| name.trim() == PROTOCOL) {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL));
    }
    Ok(response)
}

fn refuse(why: &str) -> Problem {
    Problem::new(Code::InvalidRequest, format!("/ws is for WebSockets: {why}"))
}

fn text(head: &Head, name: HeaderName) -> &str {
    head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// RFC 6455, section 4.2.1; returns what goes into `Sec-WebSocket-Accept`.
fn negotiate(head: &Head) -> Result<HeaderValue, Problem> {
    let is_upgrade =
        text(head, header::CONNECTION).split(',').any(|token| token.trim().eq_ignore_ascii_case("upgrade"));
    if head.version != Version::HTTP_11 || !is_upgrade {
        return Err(refuse("it wants HTTP/1.1 with Connection: Upgrade"));
    }
    if !text(head, header::UPGRADE).eq_ignore_ascii_case("websocket") {
        return Err(refuse("Upgrade must be websocket"));
    }
    if text(head, header::SEC_WEBSOCKET_VERSION) != "13" {
        return Err(refuse("Sec-WebSocket-Version must be 13"));
    }
    let key = text(head, header::SEC_WEBSOCKET_KEY);
    if key.len() != 24 {
        return Err(refuse("Sec-WebSocket-Key is missing or not 16 bytes of base64"));
    }
    HeaderValue::from_str(&derive_accept_key(key.as_bytes())).map_err(|_never| refuse("the key is no text"))
}

struct Subscriber {
    socket: WebSocketStream<TcpStream>,
    last_heard: Instant,
}

/// The socket is of no use any more.
struct Gone;

impl Subscriber {
    async fn new(parts: Parts<TokioIo<Patient<TcpStream>>>) -> Self {
        let stream = parts.io.into_inner().into_inner();
        if let Err(error) = SockRef::from(&stream).set_send_buffer_size(SEND_BYTES) {
            tracing::debug!(%error, "the kernel keeps its own size of the send buffer");
        }
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BYTES)
            .max_message_size(Some(MAX_MESSAGE_BYTES))
            .max_frame_size(Some(MAX_MESSAGE_BYTES));
        let read = parts.read_buf.to_vec();
        let socket = WebSocketStream::from_partially_read(stream, read, Role::Server, Some(config)).await;
        Self { socket, last_heard: Instant::now() }
    }

    async fn serve(mut self, live: &Live, mut batches: broadcast::Receiver<Batch>, mut stop: Stop) {
        let mut ping = tokio::time::interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut alive = self.send(&live.all()).await;
        while alive.is_ok() {
            alive = tokio::select! {
                received = self.socket.next() => self.heard(received),
                batch = batches.recv() => match batch {
                    Ok(batch) => self.send(&batch).await,
                    Err(RecvError::Lagged(missed)) => self.resync(live, &mut batches, missed).await,
                    Err(RecvError::Closed) => Err(Gone),
                },
                _ = ping.tick() => self.ping().await,
                () = stop.requested() => return self.close().await,
            };
        }
    }

    /// Whatever it says shows that it is there; the library answers pings and closes.
    fn heard(&mut self, received: Option<Result<Message, tokio_tungstenite::tungstenite::Error>>) -> Result<(), Gone> {
        self.last_heard = Instant::now();
        match received {
            Some(Ok(Message::Close(_)) | Err(_)) | None => Err(Gone),
            Some(Ok(
                Message::Text(_) | Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_),
            )) => Ok(()),
        }
    }

    /// All messages of a batch leave together.
    async fn send(&mut self, batch: &[Utf8Bytes]) -> Result<(), Gone> {
        let writing = async {
            for message in batch {
                self.socket.feed(Message::Text(message.clone())).await?;
            }
            self.socket.flush().await
        };
        match timeout(WRITE_TIMEOUT, writing).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Gone),
        }
    }

    /// Says that batches were lost, and everything as it is now.
    async fn resync(&mut self, live: &Live, batches: &mut broadcast::Receiver<Batch>, missed: u64) -> Result<(), Gone> {
        // What waits is older than what is about to be told.
        *batches = batches.resubscribe();
        self.send(&[message::resync(missed)]).await?;
        self.send(&live.all()).await
    }

    async fn ping(&mut self) -> Result<(), Gone> {
        if self.last_heard.elapsed() > SILENCE {
            return Err(Gone);
        }
        match timeout(WRITE_TIMEOUT, self.socket.send(Message::Ping(Bytes::new()))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Gone),
        }
    }

    async fn close(mut self) {
        let frame = CloseFrame { code: CloseCode::Away, reason: Utf8Bytes::from_static("the agent stops") };
        // It may be gone already.
        timeout(Duration::from_millis(200), self.socket.close(Some(frame))).await.ok();
    }
}
