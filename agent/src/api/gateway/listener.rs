//! One listening socket: steered to where the kernel can, so that another program may hold the address, else bound plainly.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

use super::{Shared, Steering, connection};
use crate::foundation::lifecycle::Stop;
use crate::foundation::task::{self, Group, Task};
use crate::pm3::caller::Classifier;

/// Connections that wait to be accepted; ten thousand clients come at once when a service starts.
const BACKLOG: i32 = 4096;
/// How long connections may take to finish what they answer when the agent stops.
const GRACE: Duration = Duration::from_millis(500);
/// After a failed `accept` (no file descriptors left) the next one waits, or it would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A socket that listens and is not served yet.
pub(super) struct Bound {
    listener: TcpListener,
    steered: Option<Box<dyn Send + Sync>>,
    watched: Box<dyn Send + Sync>,
}

/// A served socket; dropping it closes it and its connections.
pub(super) struct Listener {
    local: Option<SocketAddr>,
    steered: Option<Box<dyn Send + Sync>>,
    _watched: Box<dyn Send + Sync>,
    task: Task,
}

impl Listener {
    pub(super) fn is_steered(&self) -> bool {
        self.steered.is_some()
    }

    /// The address that clients use; differs from the wanted one where that had port 0.
    pub(super) fn address(&self, wanted: SocketAddr) -> SocketAddr {
        match self.local {
            Some(local) if wanted.port() == 0 => local,
            Some(_) | None => wanted,
        }
    }

    /// Waits until the last connection has ended, after a stop.
    pub(super) async fn finished(self) {
        self.task.join().await;
    }
}

/// Has connections to `address` steered to a socket beside it, or listens on it where that is not to be had.
///
/// # Errors
/// One sentence for the status.
pub(super) fn open(
    address: SocketAddr,
    classifier: &dyn Classifier,
    steering: Option<&dyn Steering>,
) -> Result<Bound, String> {
    let watched = classifier.watch(address);
    // Steering first: an address that we hold ourselves would keep another server from every address of its port.
    let unsteered = match steering.filter(|_| address.port() != 0).map(|steering| steer(address, steering)) {
        Some(Ok((listener, guard))) => return Ok(Bound { listener, steered: Some(guard), watched }),
        Some(Err(reason)) => format!("; it is not steered: {reason}"),
        None => String::new(),
    };
    match bind(address) {
        Ok(listener) => Ok(Bound { listener, steered: None, watched }),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(format!(
            "gateway.listen {address} is in use by another program; stop that one or choose another address (`ss -ltnp` \
             shows who has it){unsteered}"
        )),
        Err(error) => Err(format!("failed to listen on {address}: {error}")),
    }
}

type Steered = (TcpListener, Box<dyn Send + Sync>);

fn steer(address: SocketAddr, steering: &dyn Steering) -> Result<Steered, String> {
    let beside = SocketAddr::new(address.ip(), 0);
    let listener = bind(beside).map_err(|error| format!("failed to listen beside it: {error}"))?;
    let guard = steering.steer(address, listener.as_fd())?;
    Ok((listener, guard))
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    // The address of a link that is yet to come.
    if address.is_ipv4() {
        socket.set_freebind_v4(true)?;
    } else {
        socket.set_freebind_v6(true)?;
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// What is spoken on a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Speaks {
    Plain,
    Tls,
}

impl Bound {
    pub(super) fn serve(self, speaks: Speaks, shared: Arc<Shared>, stop: Stop) -> Listener {
        let Self { listener, steered, watched } = self;
        let local = listener.local_addr().ok();
        let task = task::spawn("listener", accept_loop(listener, speaks, shared, stop));
        Listener { local, steered, _watched: watched, task }
    }
}

async fn accept_loop(listener: TcpListener, speaks: Speaks, shared: Arc<Shared>, mut stop: Stop) {
    let mut connections = Group::new("connection");
    loop {
        let has_room = shared.connections.load(Ordering::Relaxed) < shared.config.max_connections;
        let accepted = tokio::select! {
            () = stop.requested() => break,
            () = connections.one_ended() => continue,
            accepted = listener.accept(), if has_room => accepted,
            // Another listener may have made room.
            () = tokio::time::sleep(ACCEPT_PAUSE), if !has_room => continue,
        };
        match accepted {
            Ok((stream, peer)) => accept(&mut connections, stream, peer, speaks, &shared, &stop),
            Err(error) => {
                tracing::warn!(%error, listener = "gateway", "failed to accept a connection");
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
        tracing::debug!(listener = "gateway", "connections were cut");
    }
}

fn accept(group: &mut Group, stream: TcpStream, peer: SocketAddr, speaks: Speaks, shared: &Arc<Shared>, stop: &Stop) {
    let Ok(local) = stream.local_addr() else { return };
    // Answers are small and whole; waiting for more to send only delays them.
    stream.set_nodelay(true).ok();
    let started = Instant::now();
    let caller = shared.classifier.classify(stream.as_fd(), peer, local);
    shared.counts.accepted(started.elapsed());
    let open = connection::Open::new(Arc::clone(shared), Arc::new(caller), peer, local);
    let stop = stop.clone();
    match (speaks, &shared.tls) {
        (Speaks::Plain, _) => group.spawn_bare(open.serve(stream, stop)),
        (Speaks::Tls, Some(_)) => group.spawn_bare(open.serve_tls(stream, stop)),
        // A listener for TLS is opened only where there is an identity.
        (Speaks::Tls, None) => {}
    }
}
