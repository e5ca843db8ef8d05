//! The listening socket and its connections.
//!
//! Invariants: connections are bounded, further ones wait in the kernel's queue; who connected before callers were recorded
//! is turned away, so that nobody is taken for unknown who is known.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

use super::{Site, WebError, connection};
use crate::foundation::lifecycle::Stop;
use crate::foundation::task::Group;

/// Connections that wait to be accepted; ten thousand clients come at once when a service starts.
const BACKLOG: i32 = 4096;
/// How long connections may take to finish what they answer when the agent stops.
const GRACE: Duration = Duration::from_millis(500);
/// After a failed `accept` (no file descriptors left) the next one waits, or it would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Listens on `address`.
pub(super) fn open(address: SocketAddr) -> Result<TcpListener, WebError> {
    listen(address).map_err(|source| {
        if source.kind() == io::ErrorKind::AddrInUse {
            WebError::InUse { address, source }
        } else {
            WebError::Listen { address, source }
        }
    })
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Turns away who connected before now.
pub(super) fn turn_away(listener: &TcpListener) {
    while let Some(Ok(early)) = listener.accept().now_or_never() {
        drop(early);
    }
}

/// Accepts until a stop is requested, then lets the connections finish.
pub(super) async fn serve(listener: TcpListener, site: Arc<Site>, mut stop: Stop) {
    let mut connections = Group::new("connection");
    loop {
        let has_room = connections.len() < site.settings.max_connections;
        let accepted = tokio::select! {
            () = stop.requested() => break,
            () = connections.one_ended() => continue,
            accepted = listener.accept(), if has_room => accepted,
        };
        match accepted {
            Ok((stream, peer)) => accept(&mut connections, stream, peer, &site, &stop),
            Err(error) => {
                tracing::warn!(%error, listener = "web", "failed to accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let all_ended = async {
        while !connections.is_empty() {
            connections.one_ended().await;
        }
    };
    if tokio::time::timeout(GRACE, all_ended).await.is_err() {
        tracing::debug!(listener = "web", "connections were cut");
    }
}

fn accept(group: &mut Group, stream: TcpStream, peer: SocketAddr, site: &Arc<Site>, stop: &Stop) {
    let Ok(local) = stream.local_addr() else { return };
    // Answers are whole; waiting for more to send only delays them.
    stream.set_nodelay(true).ok();
    let caller = match &site.classifier {
        Some(classifier) => classifier.classify(stream.as_fd(), peer, local),
        None => crate::pm3::caller::Caller::unknown(),
    };
    group.spawn_bare(connection::serve(stream, Arc::clone(site), Arc::new(caller), stop.clone()));
}
