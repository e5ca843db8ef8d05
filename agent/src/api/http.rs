//! What both listeners share: the bounds on what a client can make the agent hold, and how a refusal is written.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep};

use super::error::{ApiError, ErrorCode};
use crate::foundation::lifecycle::Stop;
use crate::foundation::task::Group;

/// Connections of one listener at a time. Tools come one by one and scrapers in handfuls; further ones wait in the
/// kernel's queue until one of these ends.
pub(super) const MAX_CONNECTIONS: usize = 64;
/// Requests in work at a time over all connections of one listener.
pub(super) const MAX_REQUESTS: usize = 32;
/// The largest head and the largest body of a request.
pub(super) const MAX_HEAD_BYTES: usize = 64 * 1024;
pub(super) const MAX_BODY_BYTES: usize = 64 * 1024;
/// How long the head of a request may take to come in, and how long a connection may lie idle.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a request may take as a whole, the body and the answer included.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long connections may take to finish what they answer when the agent stops.
const GRACE: Duration = Duration::from_millis(500);
/// After a failed `accept` (no file descriptors left) the next one waits, or it would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The fewest bytes that tell HTTP/2 from HTTP/1: the length of the HTTP/2 preface.
const PREFACE_BYTES: usize = 24;

/// Accepts until `stop` is requested; `connection` serves one stream and is asked to end by a clone of `stop`.
pub(super) async fn accept_loop<S, A, C>(name: &'static str, accept: impl Fn() -> A, serve: C, stop: Stop)
where
    A: Future<Output = io::Result<S>> + Send,
    C: AsyncServe<S>,
{
    accept_up_to(MAX_CONNECTIONS, name, accept, serve, stop).await;
}

/// [`accept_loop`] with another number of connections at a time.
pub(super) async fn accept_up_to<S, A, C>(
    most: usize,
    name: &'static str,
    accept: impl Fn() -> A,
    serve: C,
    mut stop: Stop,
) where
    A: Future<Output = io::Result<S>> + Send,
    C: AsyncServe<S>,
{
    let mut connections = Group::new("connection");
    loop {
        let has_room = connections.len() < most;
        let accepted = tokio::select! {
            () = stop.requested() => break,
            () = connections.one_ended() => continue,
            accepted = accept(), if has_room => accepted,
        };
        match accepted {
            Ok(stream) => connections.spawn(serve.serve(stream, stop.clone())),
            Err(error) => {
                tracing::warn!(%error, listener = name, "failed to accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    let all_ended = async {
        while !connections.is_empty() {
            connections.one_ended().await;
        }
    };
    if tokio::time::timeout(GRACE, all_ended).await.is_err() {
        tracing::debug!(listener = name, "connections were cut");
    }
}

/// Serves one accepted stream to its end.
pub(super) trait AsyncServe<S> {
    fn serve(&self, stream: S, stop: Stop) -> impl Future<Output = ()> + Send + 'static;
}

/// The bounds on requests that are not streams: how many at once and for how long.
pub(super) async fn bounded(slots: Arc<Semaphore>, request: Request, next: Next) -> Response {
    let work = async {
        // The semaphore is never closed: an error cannot come.
        let _slot = slots.acquire().await.ok();
        next.run(request).await
    };
    match tokio::time::timeout(REQUEST_TIMEOUT, work).await {
        Ok(response) => response,
        Err(_) => {
            let text = format!("the request was not done within {} s", REQUEST_TIMEOUT.as_secs());
            ApiError::new(ErrorCode::Timeout, text).into_response()
        }
    }
}

/// `value` as JSON; indented if the query of the request has `pretty`.
pub(super) fn json<T: Serialize>(query: Option<&str>, value: &T) -> Response {
    let pretty = query.is_some_and(|query| query.split('&').any(|pair| pair.split('=').next() == Some("pretty")));
    let text = if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
    match text {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text + "\n").into_response(),
        Err(error) => {
            tracing::error!(%error, "failed to write an answer as JSON");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// A stream that must say which HTTP it speaks within [`HEAD_TIMEOUT`].
///
/// The server tells HTTP/2 from HTTP/1 before its own timeouts begin, so a client that sends nothing would stay for ever.
#[derive(Debug)]
pub(super) struct Prompt<S> {
    stream: S,
    seen_bytes: usize,
    deadline: Pin<Box<Sleep>>,
}

impl<S> Prompt<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, seen_bytes: 0, deadline: Box::pin(tokio::time::sleep_until(Instant::now() + HEAD_TIMEOUT)) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prompt<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.seen_bytes = self.seen_bytes.saturating_add(buffer.filled().len() - before);
        if polled.is_pending() && self.seen_bytes < PREFACE_BYTES && self.deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prompt<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        // An answer means that a whole request was read, however short.
        self.seen_bytes = PREFACE_BYTES;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Why a connection ended, for the log: what a client does wrong is its own affair.
pub(super) fn log_end<E: std::fmt::Display>(listener: &'static str, result: Result<(), E>) {
    if let Err(error) = result {
        tracing::debug!(listener, %error, "a connection ended with an error");
    }
}

/// What axum's services return: they answer every failure themselves.
pub(super) type Answer = Result<Response, Infallible>;
