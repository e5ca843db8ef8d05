//! A connection to one member: calls in any number at once, answers in any order.
//!
//! A task owns the connection. It connects when there is something to send, writes what is queued in one go, and lets go of
//! every call when the connection breaks: a call that was written may have been carried out, one that was not has not been.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWriteExt as _, BufReader, BufWriter};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::frame::{self, Kind};
use super::transport::{Secure, Stream};
use super::wire::Hello;
use crate::foundation::task::{self, Task};
use crate::store::raft::Peer;

/// Calls that wait to be written. Raft sends one after the other; the rest are forwarded writes.
const QUEUE: usize = 1024;
/// How long connecting, handshake included, may take.
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::store) enum CallError {
    /// Nothing was sent.
    #[error("{0}")]
    NotSent(String),
    /// It was sent; whether it was carried out is not known.
    #[error("the connection broke: {0}")]
    Lost(String),
    /// The other side has not done it and says why.
    #[error("{0}")]
    Refused(String),
    #[error("no answer in time")]
    Late,
}

type Reply = oneshot::Sender<Result<Bytes, CallError>>;

struct Call {
    kind: Kind,
    body: Vec<u8>,
    reply: Reply,
}

/// The handle; cheap to clone. The connection is closed with the last one.
#[derive(Debug, Clone)]
pub(in crate::store) struct Link {
    calls: mpsc::Sender<Call>,
    _task: Arc<Task>,
}

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.kind)
    }
}

impl Link {
    pub(super) fn start(from: u64, to: u64, peer: Peer, secure: Arc<dyn Secure>) -> Self {
        let (calls, queue) = mpsc::channel(QUEUE);
        let task = task::spawn("raft-link", keep(Hello { from, to }, peer, secure, queue));
        Self { calls, _task: Arc::new(task) }
    }

    /// Calls and waits for the answer.
    pub(in crate::store) async fn call(
        &self,
        kind: Kind,
        body: Vec<u8>,
        patience: Duration,
    ) -> Result<Bytes, CallError> {
        let (reply, answer) = oneshot::channel();
        self.calls.try_send(Call { kind, body, reply }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => CallError::NotSent("too many calls wait".to_owned()),
            mpsc::error::TrySendError::Closed(_) => CallError::NotSent("the link is closed".to_owned()),
        })?;
        match timeout(patience, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_gone)) => Err(CallError::Lost("it was closed".to_owned())),
            Err(_elapsed) => Err(CallError::Late),
        }
    }
}

async fn keep(hello: Hello, peer: Peer, secure: Arc<dyn Secure>, mut queue: mpsc::Receiver<Call>) {
    while let Some(first) = queue.recv().await {
        match timeout(CONNECT_PATIENCE, connect(hello, &peer, &*secure)).await {
            Ok(Ok(stream)) => {
                if let Err(error) = converse(stream, first, &mut queue).await {
                    tracing::debug!(%error, member = %peer, "the connection to a member broke");
                }
            }
            failed => {
                let text = match failed {
                    Ok(Err(error)) => format!("failed to connect to {peer}: {error}"),
                    _ => format!("failed to connect to {peer} in time"),
                };
                let refuse = |call: Call| call.reply.send(Err(CallError::NotSent(text.clone()))).is_ok();
                refuse(first);
                while let Ok(call) = queue.try_recv() {
                    refuse(call);
                }
            }
        }
    }
}

async fn connect(hello: Hello, peer: &Peer, secure: &dyn Secure) -> io::Result<Box<dyn Stream>> {
    if peer.address.is_empty() {
        return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, "it has no Raft listener"));
    }
    let stream = TcpStream::connect(&peer.address).await?;
    stream.set_nodelay(true)?;
    let mut stream = secure.connect(&peer.node, stream).await?;
    let body = serde_json::to_vec(&hello).map_err(io::Error::other)?;
    stream.write_all(&frame::header(0, Kind::Hello, body.len())).await?;
    stream.write_all(&body).await?;
    stream.flush().await?;
    Ok(stream)
}

/// Calls that were written and are not answered.
type Pending = Arc<Mutex<HashMap<u64, Reply>>>;

/// Writes calls and hands out answers until the connection breaks.
async fn converse(stream: Box<dyn Stream>, first: Call, queue: &mut mpsc::Receiver<Call>) -> io::Result<()> {
    let (read, write) = tokio::io::split(stream);
    let mut write = BufWriter::with_capacity(64 * 1024, write);
    let pending = Pending::default();
    let (ended, mut end) = oneshot::channel();
    let answers = Arc::clone(&pending);
    let _reader = task::spawn("raft-answers", async move {
        // The writer waits for this unless it ended first.
        ended.send(hand_out(read, &answers).await).unwrap_or_default();
    });
    let mut number = 0;
    let mut next = Some(first);
    let result = loop {
        let call = match next.take() {
            Some(call) => call,
            None => tokio::select! {
                ended = &mut end => break ended.unwrap_or(Ok(())),
                call = queue.recv() => match call {
                    Some(call) => call,
                    None => break Ok(()),
                },
            },
        };
        number += 1;
        pending.lock().unwrap_or_else(PoisonError::into_inner).insert(number, call.reply);
        if let Err(error) = write_call(&mut write, number, call.kind, &call.body).await {
            break Err(error);
        }
        next = queue.try_recv().ok();
        if next.is_none()
            && let Err(error) = write.flush().await
        {
            break Err(error);
        }
    };
    let text = result.as_ref().err().map_or_else(|| "the other side closed it".to_owned(), ToString::to_string);
    for (_, reply) in pending.lock().unwrap_or_else(PoisonError::into_inner).drain() {
        // Whoever asked may have gone.
        reply.send(Err(CallError::Lost(text.clone()))).unwrap_or_default();
    }
    result
}

async fn write_call(
    write: &mut (impl tokio::io::AsyncWrite + Unpin),
    number: u64,
    kind: Kind,
    body: &[u8],
) -> io::Result<()> {
    write.write_all(&frame::header(number, kind, body.len())).await?;
    write.write_all(body).await
}

async fn hand_out(read: impl AsyncRead + Unpin, pending: &Pending) -> io::Result<()> {
    let mut read = BufReader::with_capacity(64 * 1024, read);
    while let Some(frame) = frame::read(&mut read).await? {
        let Some(reply) = pending.lock().unwrap_or_else(PoisonError::into_inner).remove(&frame.call) else { continue };
        let answer = match frame.kind == Kind::Answer {
            true => Ok(frame.body),
            false => Err(CallError::Refused(String::from_utf8_lossy(&frame.body).into_owned())),
        };
        // A caller that gave up needs none.
        reply.send(answer).unwrap_or_default();
    }
    Ok(())
}
