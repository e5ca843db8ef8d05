//! A connection to another gateway whose other end has proven to be the node that was asked for.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::super::hosts::link::Upload;
use crate::foundation::id::NodeId;
use crate::foundation::task;
use crate::identity::certificate::{self, Member, Role};
use crate::identity::{Identity, Purpose, TlsError};

/// For the connection and the handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A peer that is gone answers no ping; only asked while something is under way.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// What may be under way without the reader's word: enough for a fast link with a long way.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;

/// Where a node's gateway answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) id: NodeId,
    pub(super) address: SocketAddr,
}

/// Why a peer cannot be asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("peer {} cannot be reached at {}", .place.id, .place.address)]
    Unreachable {
        place: Place,
        #[source]
        source: io::Error,
    },
    #[error("peer {} did not answer at {} within {} s", .place.id, .place.address, CONNECT_TIMEOUT.as_secs())]
    TooLate { place: Place },
    #[error("who answers at {} did not prove to be a node of this mesh", .place.address)]
    NoProof {
        place: Place,
        #[source]
        source: io::Error,
    },
    #[error("who answers at {} is {found}, not {}", .place.address, .place.id)]
    AnotherNode { place: Place, found: NodeId },
    #[error("too many requests to peer {} are under way; try again", .id)]
    Busy { id: NodeId },
}

/// Opens connections.
pub(super) struct Dialer {
    identity: Identity,
    shared: TlsConnector,
    alone: TlsConnector,
}

/// One shared connection.
pub(super) struct Link {
    pub(super) sender: SendRequest<Upload>,
    pub(super) member: Member,
}

impl Dialer {
    pub(super) fn new(identity: &Identity) -> Result<Self, TlsError> {
        let config = identity.client_config(Purpose::Gateway)?;
        let speaking = |protocol: &[u8]| {
            let mut config = rustls::ClientConfig::clone(&config);
            config.alpn_protocols = vec![protocol.to_vec()];
            TlsConnector::from(Arc::new(config))
        };
        Ok(Self { shared: speaking(b"h2"), alone: speaking(b"http/1.1"), identity: identity.clone() })
    }

    /// Whether this member still is one.
    pub(super) fn admits(&self, member: &Member) -> bool {
        self.identity.is_admitted(member)
    }

    /// A connection that many requests share.
    pub(super) async fn shared(&self, place: &Place) -> Result<Link, DialError> {
        let (stream, member) = self.connect(place, &self.shared).await?;
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_INTERVAL);
        let shaken = builder.handshake(TokioIo::new(stream)).await;
        let (sender, connection) =
            shaken.map_err(|error| DialError::Unreachable { place: place.clone(), source: io::Error::other(error) })?;
        let peer = place.id.clone();
        task::detach("hop", async move {
            if let Err(error) = connection.await {
                tracing::debug!(%peer, %error, "a connection to a peer ended");
            }
        });
        Ok(Link { sender, member })
    }

    /// A connection for one request by HTTP/1.1.
    pub(super) async fn alone(&self, place: &Place) -> Result<TlsStream<TcpStream>, DialError> {
        Ok(self.connect(place, &self.alone).await?.0)
    }

    async fn connect(&self, place: &Place, tls: &TlsConnector) -> Result<(TlsStream<TcpStream>, Member), DialError> {
        let too_late = |_elapsed| DialError::TooLate { place: place.clone() };
        let unreachable = |source| DialError::Unreachable { place: place.clone(), source };
        let no_proof = |source| DialError::NoProof { place: place.clone(), source };
        let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(place.address)).await.map_err(too_late)?;
        let stream = stream.map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        // The API's name: by it, and by our certificate, the other end knows us for a node of the mesh.
        let name = ServerName::try_from("pm3").map_err(|error| no_proof(io::Error::other(error)))?;
        let stream = timeout(CONNECT_TIMEOUT, tls.connect(name, stream)).await.map_err(too_late)?;
        let stream = stream.map_err(no_proof)?;
        let member = certificate::member(stream.get_ref().1.peer_certificates());
        let member = member.map_err(|error| no_proof(io::Error::other(error)))?;
        if member.name != place.id || member.role != Role::Node {
            return Err(DialError::AnotherNode { place: place.clone(), found: member.name });
        }
        Ok((stream, member))
    }
}
