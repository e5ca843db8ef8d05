//! The bytes of a session: WebSocket frames, or the stream as it is.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::FutureExt as _;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::upgrade::downcast;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};

use super::super::codec::Codec;
use super::Wire;
use super::frames::{self, Frame, Frames, Violation};
use crate::api::patience::Patient;

/// How long a peer may take to read what it asked for.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
const READ_BYTES: usize = 4096;
/// A burst does not keep its memory.
const KEPT_BYTES: usize = 64 * 1024;

/// What came.
#[derive(Debug)]
pub(super) enum Event {
    Bytes(BytesMut),
    /// A ping, a pong.
    Nothing,
    Violated(Violation),
    Gone,
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

pub(super) struct Transport {
    stream: Box<dyn Stream>,
    wire: Wire,
    frames: Frames,
    input: BytesMut,
    out: Vec<u8>,
    has_heard: bool,
}

impl Transport {
    /// Takes the connection over, without the layers that served HTTP where they can be taken off.
    pub(super) fn new(wire: Wire, upgraded: Upgraded) -> Self {
        let (stream, read): (Box<dyn Stream>, Bytes) = match downcast::<TokioIo<Patient<TcpStream>>>(upgraded) {
            Ok(parts) => (Box::new(parts.io.into_inner().into_inner()), parts.read_buf),
            Err(upgraded) => (Box::new(TokioIo::new(upgraded)), Bytes::new()),
        };
        Self { stream, wire, frames: Frames::default(), input: read.into(), out: Vec::new(), has_heard: true }
    }

    /// The next event. Cancel-safe.
    pub(super) async fn next(&mut self) -> Event {
        loop {
            if let Some(event) = self.take() {
                return event;
            }
            self.input.reserve(READ_BYTES);
            match self.stream.read_buf(&mut self.input).await {
                Ok(length) if length > 0 => self.has_heard = true,
                Ok(_) | Err(_) => return Event::Gone,
            }
        }
    }

    /// What the input holds already.
    fn take(&mut self) -> Option<Event> {
        if self.input.is_empty() {
            return None;
        }
        match self.wire {
            Wire::Raw => Some(Event::Bytes(self.input.split())),
            Wire::WebSocket => match self.frames.next(&mut self.input) {
                Ok(None) => None,
                Ok(Some(Frame::Message(message))) => Some(Event::Bytes(message)),
                Ok(Some(Frame::Ping(payload))) => {
                    frames::write(&mut self.out, OpCode::Control(Control::Pong), &payload);
                    Some(Event::Nothing)
                }
                Ok(Some(Frame::Pong)) => Some(Event::Nothing),
                Ok(Some(Frame::Close)) => Some(Event::Gone),
                Err(violation) => Some(Event::Violated(violation)),
            },
        }
    }

    /// An event that is there already.
    pub(super) fn next_now(&mut self) -> Option<Event> {
        self.next().now_or_never()
    }

    /// Whether anything came since this was asked last.
    pub(super) fn has_heard(&mut self) -> bool {
        // There is no ping on raw bytes; the kernel's keepalive stands in for it.
        std::mem::take(&mut self.has_heard) || self.wire == Wire::Raw
    }

    /// Bytes that wait for the next flush.
    pub(super) fn queued_bytes(&self) -> usize {
        self.out.len()
    }

    /// Takes one message for the next flush.
    pub(super) fn queue(&mut self, message: &[u8], codec: Codec) {
        match (self.wire, codec) {
            (Wire::Raw, _) => self.out.extend_from_slice(message),
            (Wire::WebSocket, Codec::JsonRpc) => frames::write(&mut self.out, OpCode::Data(Data::Text), message),
            (Wire::WebSocket, Codec::Jrpc) => frames::write(&mut self.out, OpCode::Data(Data::Binary), message),
        }
    }

    /// Asks whether the other side is there, with the next flush.
    pub(super) fn ping(&mut self) {
        if self.wire == Wire::WebSocket {
            frames::write(&mut self.out, OpCode::Control(Control::Ping), b"");
        }
    }

    /// Sends everything queued.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        if self.out.is_empty() {
            return Ok(());
        }
        // Nearly always the kernel takes all at once, and no clock is needed.
        let mut sent = 0;
        if let Poll::Ready(count) = std::future::poll_fn(|cx| Poll::Ready(self.try_write(cx))).await {
            sent = count?;
        }
        if sent < self.out.len() {
            let rest = timeout(WRITE_TIMEOUT, self.stream.write_all(&self.out[sent..])).await;
            rest.map_err(|_elapsed| io::Error::from(io::ErrorKind::TimedOut))??;
        }
        self.out.clear();
        self.out.shrink_to(KEPT_BYTES);
        Ok(())
    }

    fn try_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, &self.out)
    }

    /// Says why, if there is something to say, and ends.
    pub(super) async fn close(&mut self, why: Option<(CloseCode, &str)>) {
        if self.wire == Wire::WebSocket {
            let (code, reason) = why.unwrap_or((CloseCode::Normal, ""));
            frames::write_close(&mut self.out, code, reason);
        }
        let ending = async {
            self.flush().await?;
            self.stream.shutdown().await
        };
        // It may be gone already.
        timeout(Duration::from_secs(1), ending).await.ok();
    }
}
