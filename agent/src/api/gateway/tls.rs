//! TLS on the gateway: the node's own certificate, and who a client's certificate proves it to be.
//!
//! A client that names `pm3` (SNI) and shows a certificate of this mesh is internal, wherever it comes from; every other one
//! is what the kernel says about it. A certificate of anybody else, an expired or a revoked one fails the handshake.
//!
//! Invariants: a handshake is bounded in time and counted as a connection; who was taken out of the mesh is refused its next
//! request on a connection that is still open.

use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConnection;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::identity::certificate::{self, Member};
use crate::identity::{Identity, Purpose, TlsError};
use crate::pm3::caller::{Basis, Caller, Standing};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The name that a client of the API asks for.
const API: &str = "pm3";

/// What a handshake needs.
pub(super) struct Tls {
    acceptor: TlsAcceptor,
    identity: Identity,
}

/// A client as its handshake shows it.
pub(super) struct Shown {
    pub(super) stream: TlsStream<TcpStream>,
    /// The member of the mesh that asked for the API.
    pub(super) member: Option<Arc<Member>>,
}

impl Tls {
    pub(super) fn new(identity: Identity) -> Result<Self, TlsError> {
        let config = identity.server_config(Purpose::Gateway)?;
        Ok(Self { acceptor: TlsAcceptor::from(config), identity })
    }

    /// Shakes hands; `None`: it failed, which is the client's affair.
    pub(super) async fn accept(&self, stream: TcpStream) -> Option<Shown> {
        let stream = match timeout(HANDSHAKE_TIMEOUT, self.acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::debug!(%error, listener = "gateway", "a handshake failed");
                return None;
            }
            Err(_elapsed) => return None,
        };
        let member = self.member(stream.get_ref().1).map(Arc::new);
        Some(Shown { stream, member })
    }

    fn member(&self, session: &ServerConnection) -> Option<Member> {
        let member = certificate::member(session.peer_certificates()).ok()?;
        (session.server_name() == Some(API) && self.admits(&member)).then_some(member)
    }

    /// Whether a member still is one.
    pub(super) fn admits(&self, member: &Member) -> bool {
        self.identity.is_admitted(member)
    }
}

/// A caller that proved to be `member`.
pub(super) fn caller(member: &Member) -> Caller {
    Caller {
        standing: Standing::Internal,
        basis: Basis::Certificate,
        unit: Some(member.name.as_str().into()),
        reason: Some(format!("certificate of {}", member.name).into()),
        ..Caller::unknown()
    }
}
