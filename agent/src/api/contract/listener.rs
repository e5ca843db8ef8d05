//! The TCP listener of the contract, `[::]:8443` by default: TLS 1.3, HTTP/2, gRPC.
//!
//! Invariants: a client that does not finish its handshake in time is dropped; connections and streams are bounded; a
//! session whose member is no longer admitted is cut.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls_pki_types::CertificateDer;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tower::ServiceExt as _;

use super::caller::Caller;
use crate::api::{Sources, http};
use crate::foundation::lifecycle::Stop;
use crate::foundation::task::{self, Task};
use crate::identity::certificate::{self, Member};
use crate::identity::{Identity, Purpose, TlsError};
use crate::mesh::Ends;

/// Streams of one connection at a time: a leader proxies the calls of a whole node over one.
const MAX_STREAMS: u32 = 256;
/// A dead client is noticed by its missing answer to a ping.
const PING_INTERVAL: std::time::Duration = std::time::Duration::from_secs(20);
/// A mesh of some hundred nodes, each with a session or two.
const MAX_CONNECTIONS: usize = 2048;
const BACKLOG: i32 = 1024;
/// How long, and for how many bytes, a refused client may go on sending.
const REFUSED_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(2);
const REFUSED_BYTES: usize = 64 * 1024;

/// Why the listener could not be made.
#[derive(Debug, thiserror::Error)]
pub enum GrpcError {
    #[error(
        "grpc.listen {address} is in use by another program; stop that one, or choose another address for grpc.listen \
         (`ss -ltnp` shows who has it), or set grpc.enabled = false"
    )]
    InUse {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("failed to listen on grpc.listen {address}; is it an address of this host?")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("the identity of this node cannot be used on grpc.listen")]
    Tls(#[from] TlsError),
}

/// The listener, not yet served.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    address: SocketAddr,
    acceptor: Arc<rustls::ServerConfig>,
    identity: Identity,
}

/// The running server; dropping it closes the listener.
#[derive(Debug)]
#[must_use = "dropping the listener closes it"]
pub struct Grpc {
    _task: Task,
}

/// Listens on `address` with the certificate of `identity`.
///
/// # Errors
/// [`GrpcError`], naming the key.
pub fn bind(address: SocketAddr, identity: Identity) -> Result<Bound, GrpcError> {
    let acceptor = identity.server_config(Purpose::Grpc)?;
    let listener = listen(address).map_err(|source| {
        if source.kind() == io::ErrorKind::AddrInUse {
            GrpcError::InUse { address, source }
        } else {
            GrpcError::Listen { address, source }
        }
    })?;
    let address = listener.local_addr().map_err(|source| GrpcError::Listen { address, source })?;
    Ok(Bound { listener, address, acceptor, identity })
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)) {
        Ok(socket) => socket,
        // A host without IPv6: its unspecified address still means every address.
        Err(_none) if address.ip().is_unspecified() && address.is_ipv6() => {
            return listen(SocketAddr::from((std::net::Ipv4Addr::UNSPECIFIED, address.port())));
        }
        Err(error) => return Err(error),
    };
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

impl Bound {
    /// The address in use; differs from the configured one where that had port 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Begins to answer.
    pub fn serve(self, sources: &Arc<Sources>, stop: Stop) -> Grpc {
        let Self { listener, address: _, acceptor, identity } = self;
        let (reporter, health) = tonic_health::server::health_reporter();
        let router = super::routes(sources, stop.clone()).route_service("/grpc.health.v1.Health/{method}", health);
        let server = Server { router, acceptor: TlsAcceptor::from(acceptor), identity };
        let task = task::spawn("grpc", async move {
            for service in ["v1.Admin", "v1.Mesh", "v1.Node", "v1.PeerDiscovery"] {
                reporter.set_service_status(service, tonic_health::ServingStatus::Serving).await;
            }
            let accept = || async { listener.accept().await.map(|(stream, _address)| stream) };
            http::accept_up_to(MAX_CONNECTIONS, "grpc", accept, server, stop).await;
        });
        Grpc { _task: task }
    }
}

struct Server {
    router: Router,
    acceptor: TlsAcceptor,
    identity: Identity,
}

impl http::AsyncServe<TcpStream> for Server {
    fn serve(&self, stream: TcpStream, stop: Stop) -> impl Future<Output = ()> + Send + 'static {
        let (router, acceptor, identity) = (self.router.clone(), self.acceptor.clone(), self.identity.clone());
        async move {
            // Requests are small and wait for their answers; a failure costs latency only.
            stream.set_nodelay(true).ok();
            match tokio::time::timeout(http::HEAD_TIMEOUT, acceptor.accept(stream).into_fallible()).await {
                Ok(Ok(stream)) => session(stream, router, &identity, stop).await,
                Ok(Err((error, stream))) => {
                    tracing::debug!(listener = "grpc", %error, "a TLS handshake failed");
                    let_the_alert_arrive(stream).await;
                }
                Err(_elapsed) => tracing::debug!(listener = "grpc", "a TLS handshake took too long"),
            }
        }
    }
}

/// A client with TLS 1.3 sends its request before it hears that its certificate is refused. Closed with that unread, the
/// connection would be reset, and the alert that says why thrown away at the client.
async fn let_the_alert_arrive(mut stream: TcpStream) {
    let drained = async {
        stream.shutdown().await?;
        let mut unread = [0; 4096];
        let mut left = REFUSED_BYTES;
        while left > 0 {
            match stream.read(&mut unread).await? {
                0 => break,
                count => left = left.saturating_sub(count),
            }
        }
        io::Result::Ok(())
    };
    if let Ok(Err(error)) = tokio::time::timeout(REFUSED_TIMEOUT, drained).await {
        tracing::debug!(listener = "grpc", %error, "a refused connection ended on its own");
    }
}

/// The two ends of a TCP connection, in the extensions of every request of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Connection {
    pub(super) ends: Ends,
}

/// The certificate that the client proved to hold the key of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shown(pub(super) CertificateDer<'static>);

fn ends(stream: &TcpStream) -> io::Result<Ends> {
    let canonical = |address: SocketAddr| address.ip().to_canonical();
    Ok(Ends { local: canonical(stream.local_addr()?), remote: canonical(stream.peer_addr()?) })
}

async fn session(stream: TlsStream<TcpStream>, router: Router, identity: &Identity, mut stop: Stop) {
    let shown =
        stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).cloned().map(CertificateDer::into_owned);
    let member = match stream.get_ref().1.peer_certificates() {
        None => None,
        // TLS has verified the chain, and with it that it names a member.
        chain @ Some(_) => match certificate::member(chain) {
            Ok(member) => Some(member),
            Err(error) => return tracing::debug!(listener = "grpc", %error, "a certificate names no member"),
        },
    };
    let ends = match ends(stream.get_ref().0) {
        Ok(ends) => ends,
        Err(error) => return tracing::debug!(listener = "grpc", %error, "a connection ended before it was served"),
    };
    let caller = member.clone().map_or(Caller::Nobody, Caller::Member);
    let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(caller.clone());
        request.extensions_mut().insert(Connection { ends });
        if let Some(shown) = &shown {
            request.extensions_mut().insert(Shown(shown.clone()));
        }
        let router = router.clone();
        async move { http::Answer::Ok(router.oneshot(request).await.unwrap_or_else(|never| match never {})) }
    });
    let serving = builder().serve_connection(TokioIo::new(http::Prompt::new(stream)), service);
    let mut serving = std::pin::pin!(serving);
    let result = tokio::select! {
        result = serving.as_mut() => result,
        () = no_longer_admitted(identity, member.as_ref()) => {
            return tracing::info!(listener = "grpc", "cut the session of a member whose certificate was revoked");
        }
        () = stop.requested() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    http::log_end("grpc", result);
}

/// Waits until the member is no longer admitted; for ever for one without a certificate.
async fn no_longer_admitted(identity: &Identity, member: Option<&Member>) {
    let mut revocations = identity.revocations();
    if let Some(member) = member {
        while identity.is_admitted(member) {
            if revocations.changed().await.is_err() {
                break;
            }
        }
        if !identity.is_admitted(member) {
            return;
        }
    }
    std::future::pending().await
}

fn builder() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(http::MAX_HEAD_BYTES).unwrap_or(u32::MAX))
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(http::HEAD_TIMEOUT);
    builder
}
