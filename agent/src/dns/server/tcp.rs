//! One TCP listener and its connections (RFC 7766).
//!
//! Bounds: so many connections in all and from one source, so long for a whole query and for taking the reply, and
//! no query longer than any sensible one. A client that is slow, silent or talks nonsense loses its connection and
//! disturbs no other.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use socket2::{Domain, Protocol, SockAddr, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use super::super::answer::Transport;
use super::super::handler::Handler;
use crate::foundation::task::{self, Task};

const BACKLOG: i32 = 64;
/// Connections of one listener; each holds a descriptor and a few kilobytes.
const CONNECTIONS: usize = 128;
/// Connections from one address, so that one client cannot take them all.
const CONNECTIONS_A_SOURCE: usize = 32;
/// From the end of one query to the end of the next (RFC 7766 section 6.2.3 asks for seconds).
const IDLE: Duration = Duration::from_secs(10);
const WRITE: Duration = Duration::from_secs(5);
/// The longest query taken.
const QUERY_MAX: usize = 4096;
/// Out of descriptors: give connections time to end before the next accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A served listener. Dropping it closes its connections.
#[derive(Debug)]
pub(super) struct Listener {
    _task: Task,
}

impl Listener {
    pub(super) fn start(address: SocketAddr, handler: Handler) -> io::Result<Self> {
        let listener = bind(address)?;
        Ok(Self { _task: task::spawn("dns-tcp", run(listener, handler)) })
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    match address {
        SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
        SocketAddr::V6(_) => {
            socket.set_only_v6(true)?;
            socket.set_freebind_v6(true)?;
        }
    }
    socket.bind(&SockAddr::from(address))?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

async fn run(listener: TcpListener, handler: Handler) {
    let mut connections = FuturesUnordered::new();
    let mut by_source: HashMap<IpAddr, usize> = HashMap::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                Ok((stream, client)) => {
                    let count = by_source.entry(client.ip()).or_insert(0);
                    if *count < CONNECTIONS_A_SOURCE {
                        *count += 1;
                        connections.push(until_closed(stream, client, &handler).boxed());
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "accepting a DNS connection");
                    connections.push(pause().boxed());
                }
            },
            Some(ended) = connections.next() => if let Some(source) = ended {
                forget(&mut by_source, source);
            },
        }
    }
}

fn forget(by_source: &mut HashMap<IpAddr, usize>, source: IpAddr) {
    if let Some(count) = by_source.get_mut(&source) {
        *count -= 1;
        if *count == 0 {
            by_source.remove(&source);
        }
    }
}

/// Takes the place of a connection, so that accepting slows down when it fails.
async fn pause() -> Option<IpAddr> {
    sleep(ACCEPT_PAUSE).await;
    None
}

async fn until_closed(stream: TcpStream, client: SocketAddr, handler: &Handler) -> Option<IpAddr> {
    let served = AssertUnwindSafe(serve(stream, client, handler)).catch_unwind().await;
    match served {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%client, %error, "a DNS connection ended"),
        // One connection failed; the panic hook has written where.
        Err(_) => tracing::error!(%client, "a DNS connection panicked"),
    }
    Some(client.ip())
}

async fn serve(mut stream: TcpStream, client: SocketAddr, handler: &Handler) -> io::Result<()> {
    while let Some(query) = timeout(IDLE, read_query(&mut stream)).await?? {
        let Some(reply) = handler.reply(query, client, Transport::Tcp).await else { return Ok(()) };
        let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
        let framed = [&length.to_be_bytes()[..], &reply].concat();
        timeout(WRITE, stream.write_all(&framed)).await??;
    }
    Ok(())
}

/// The next query; `None` at the end of the connection.
async fn read_query(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Ok(length) => usize::from(length),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if length > QUERY_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the query is too long"));
    }
    let mut query = vec![0; length];
    stream.read_exact(&mut query).await?;
    Ok(Some(query))
}
