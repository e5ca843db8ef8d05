//! One connection to a server that requests are passed on to.
//!
//! It has no task of its own: whoever waits for an answer, or reads its body, drives the connection too. A request that is
//! passed on is then one task from the client's bytes to the server's and back, without a hand-over between two.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::{Request, Response};
use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, timeout};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a client may pause within its body.
const UPLOAD_PAUSE: Duration = Duration::from_secs(60);

type Driving = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// A connection that carries one request at a time.
pub(super) struct Link {
    sender: SendRequest<Upload>,
    driving: Driving,
    /// The connection, or its part in an upgraded one, is over.
    has_ended: bool,
    pub(super) idle_since: Instant,
}

impl Link {
    /// Connects to `HOST:PORT`.
    pub(super) async fn open(address: &str) -> io::Result<Self> {
        let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
        let stream = stream.map_err(|_elapsed| io::Error::from(io::ErrorKind::TimedOut))??;
        stream.set_nodelay(true)?;
        let handshake = Builder::new().handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(io::Error::other)?;
        Ok(Self { sender, driving: Box::pin(connection.with_upgrades()), has_ended: false, idle_since: Instant::now() })
    }

    /// Whether a request can be sent; one that the server has closed is noticed here.
    pub(super) fn is_open(&mut self, cx: &mut Context<'_>) -> bool {
        self.poll_drive(cx).is_pending() && self.sender.is_ready()
    }

    /// Sends a request and waits for the head of the answer.
    ///
    /// # Errors
    /// With the request, if no byte of it was sent.
    pub(super) async fn ask(
        &mut self,
        request: Request<Upload>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Upload>>> {
        let mut answering = std::pin::pin!(self.sender.try_send_request(request));
        let (driving, has_ended) = (&mut self.driving, &mut self.has_ended);
        std::future::poll_fn(|cx| {
            if !*has_ended {
                *has_ended = driving.as_mut().poll(cx).is_ready();
            }
            answering.as_mut().poll(cx)
        })
        .await
    }

    /// Goes on driving the connection, whose bytes are an upgrade's from now on.
    pub(super) async fn drive(mut self) {
        std::future::poll_fn(|cx| self.poll_drive(cx)).await;
    }

    pub(super) fn poll_drive(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.has_ended {
            return Poll::Ready(());
        }
        let polled = self.driving.as_mut().poll(cx);
        self.has_ended = polled.is_ready();
        polled.map(|ended| {
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection to a server ended");
            }
        })
    }
}

/// The body of a request on its way to a server.
pub(in crate::api::gateway) enum Upload {
    Nothing,
    /// All of it is here; taken when it is sent.
    Whole(Bytes),
    Body {
        body: Incoming,
        pause: Option<Pin<Box<Sleep>>>,
        ended: Arc<AtomicBool>,
    },
}

impl Upload {
    /// The body, and a flag that is set when it has gone through.
    pub(in crate::api::gateway) fn new(body: Incoming) -> (Self, Arc<AtomicBool>) {
        let is_empty = hyper::body::Body::is_end_stream(&body);
        let ended = Arc::new(AtomicBool::new(is_empty));
        if is_empty {
            return (Self::Nothing, ended);
        }
        (Self::Body { body, pause: None, ended: Arc::clone(&ended) }, ended)
    }

    /// A body that is here already.
    pub(in crate::api::gateway) fn whole(body: Bytes) -> Self {
        if body.is_empty() { Self::Nothing } else { Self::Whole(body) }
    }

    pub(in crate::api::gateway) fn is_nothing(&self) -> bool {
        matches!(self, Self::Nothing)
    }
}

impl hyper::body::Body for Upload {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let (body, pause, ended) = match &mut *self {
            Self::Nothing => return Poll::Ready(None),
            Self::Whole(body) => {
                let whole = std::mem::take(body);
                *self = Self::Nothing;
                return Poll::Ready(Some(Ok(Frame::data(whole))));
            }
            Self::Body { body, pause, ended } => (body, pause, ended),
        };
        match Pin::new(&mut *body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                *pause = None;
                if hyper::body::Body::is_end_stream(body) {
                    ended.store(true, Ordering::Relaxed);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(io::Error::other(error)))),
            Poll::Ready(None) => {
                ended.store(true, Ordering::Relaxed);
                Poll::Ready(None)
            }
            Poll::Pending => {
                let pause = pause.get_or_insert_with(|| Box::pin(tokio::time::sleep(UPLOAD_PAUSE)));
                pause.as_mut().poll(cx).map(|()| Some(Err(io::ErrorKind::TimedOut.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Nothing => true,
            Self::Whole(_) => false,
            Self::Body { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Nothing => SizeHint::with_exact(0),
            Self::Whole(body) => SizeHint::with_exact(body.len() as u64),
            Self::Body { body, .. } => body.size_hint(),
        }
    }
}
