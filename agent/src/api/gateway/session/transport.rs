//! The bytes of a session: WebSocket frames, or the stream as it is.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::FutureExt as _;
use futures_util::stream::StreamExt as _;
use futures_util::{Sink as _, SinkExt as _};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};

use super::super::codec::{Codec, MAX_MESSAGE_BYTES};
use super::Wire;

/// How long a peer may take to read what it asked for.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// The reader clears a buffer of this size before every read: large ones cost more than the call itself.
const READ_BYTES: usize = 4096;

/// What came.
#[derive(Debug)]
pub(super) enum Event {
    Bytes(Bytes),
    /// A ping, a pong.
    Nothing,
    Gone,
}

enum Stream {
    WebSocket(Box<WebSocketStream<TokioIo<Upgraded>>>),
    Raw { stream: TokioIo<Upgraded>, read: BytesMut, write: Vec<u8> },
}

pub(super) struct Transport {
    stream: Stream,
    last_heard: Instant,
    queued: usize,
    has_failed: bool,
}

impl Transport {
    pub(super) async fn new(wire: Wire, upgraded: TokioIo<Upgraded>) -> Self {
        let stream = match wire {
            Wire::WebSocket => {
                let config = WebSocketConfig::default()
                    .read_buffer_size(READ_BYTES)
                    .max_message_size(Some(MAX_MESSAGE_BYTES))
                    .max_frame_size(Some(MAX_MESSAGE_BYTES));
                Stream::WebSocket(Box::new(
                    WebSocketStream::from_raw_socket(upgraded, Role::Server, Some(config)).await,
                ))
            }
            Wire::Raw => Stream::Raw { stream: upgraded, read: BytesMut::new(), write: Vec::new() },
        };
        Self { stream, last_heard: Instant::now(), queued: 0, has_failed: false }
    }

    /// The next event. Cancel-safe.
    pub(super) async fn next(&mut self) -> Event {
        let event = match &mut self.stream {
            Stream::WebSocket(stream) => match stream.next().await {
                Some(Ok(Message::Text(text))) => Event::Bytes(text.into()),
                Some(Ok(Message::Binary(bytes))) => Event::Bytes(bytes),
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => Event::Nothing,
                Some(Ok(Message::Close(_)) | Err(_)) | None => Event::Gone,
            },
            Stream::Raw { stream, read, .. } => {
                read.reserve(READ_BYTES);
                match stream.read_buf(read).await {
                    Ok(length) if length > 0 => Event::Bytes(read.split().freeze()),
                    Ok(_) | Err(_) => Event::Gone,
                }
            }
        };
        self.last_heard = Instant::now();
        event
    }

    /// An event that is there already.
    pub(super) fn next_now(&mut self) -> Option<Event> {
        self.next().now_or_never()
    }

    pub(super) fn silent_for(&self) -> Duration {
        self.last_heard.elapsed()
    }

    /// Bytes that wait for the next flush.
    pub(super) fn queued_bytes(&self) -> usize {
        self.queued
    }

    /// Takes one message for the next flush.
    pub(super) fn queue(&mut self, message: &[u8], codec: Codec) {
        self.queued += message.len();
        match &mut self.stream {
            Stream::WebSocket(stream) => {
                let frame = match (codec, String::from_utf8(message.to_vec())) {
                    (Codec::JsonRpc, Ok(text)) => Message::text(text),
                    (_, Ok(text)) => Message::binary(text.into_bytes()),
                    (_, Err(bytes)) => Message::binary(bytes.into_bytes()),
                };
                // An error shows at the flush as well.
                self.has_failed |= std::pin::Pin::new(stream.as_mut()).start_send(frame).is_err();
            }
            Stream::Raw { write, .. } => write.extend_from_slice(message),
        }
    }

    pub(super) async fn ping(&mut self) -> io::Result<()> {
        match &mut self.stream {
            Stream::WebSocket(stream) => {
                within(stream.send(Message::Ping(Bytes::new())).map(|sent| sent.map_err(io::Error::other))).await
            }
            Stream::Raw { .. } => {
                // There is no ping on raw bytes; the kernel's keepalive stands in for it.
                self.last_heard = Instant::now();
                Ok(())
            }
        }
    }

    /// Sends everything queued.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        if self.has_failed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if self.queued == 0 {
            return Ok(());
        }
        self.queued = 0;
        match &mut self.stream {
            Stream::WebSocket(stream) => within(stream.flush().map(|sent| sent.map_err(io::Error::other))).await,
            Stream::Raw { stream, write, .. } => {
                let sent = within(stream.write_all(write)).await;
                write.clear();
                sent
            }
        }
    }

    /// Says why, if there is something to say, and ends.
    pub(super) async fn close(&mut self, why: Option<&str>) {
        let Stream::WebSocket(stream) = &mut self.stream else { return };
        let frame = why.map(|why| CloseFrame { code: CloseCode::Policy, reason: why.to_owned().into() });
        // It may be gone already.
        timeout(Duration::from_secs(1), stream.as_mut().close(frame)).await.ok();
    }
}

async fn within(work: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    timeout(WRITE_TIMEOUT, work).await.map_err(|_elapsed| io::Error::from(io::ErrorKind::TimedOut))?
}
