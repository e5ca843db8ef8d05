//! Seals the connections between members of the store with the certificates of the mesh.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::foundation::error::chain;
use crate::foundation::id::NodeId;
use crate::identity::certificate::{self, Member, Role};
use crate::identity::{Identity, Purpose, TlsError};
use crate::store;
use crate::store::transport::{Secure, Stream};

/// The mesh's TLS for the store.
#[derive(Clone)]
pub struct Sealed {
    identity: Identity,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealed")
    }
}

impl Sealed {
    /// Seals as this node.
    ///
    /// # Errors
    /// The TLS library refuses the combination, which no input changes.
    pub fn new(identity: Identity) -> Result<Self, TlsError> {
        let (client, server) = (identity.client_config(Purpose::Raft)?, identity.server_config(Purpose::Raft)?);
        Ok(Self { identity, client, server })
    }
}

/// How the store reaches other members, as configured.
pub(super) fn network(
    config: &store::config::RaftConfig,
    identity: &Identity,
) -> Result<Option<store::transport::Network>, TlsError> {
    if !config.enabled {
        return Ok(None);
    }
    let (advertise, is_fixed) = match &config.advertise {
        Some(advertise) => (advertise.clone(), true),
        None => (SocketAddr::new(own_address(), config.listen.port()).to_string(), false),
    };
    let secure = Arc::new(Sealed::new(identity.clone())?);
    Ok(Some(store::transport::Network { listen: config.listen, advertise, is_fixed, secure }))
}

/// The address that packets to other hosts leave from: asked of the routing table, nothing is sent. Without a route: loopback.
fn own_address() -> IpAddr {
    let ask = |from: &str, to: &str| {
        let socket = UdpSocket::bind(from).ok()?;
        socket.connect(to).ok()?;
        socket.local_addr().ok().map(|address| address.ip())
    };
    // Addresses of the documentation ranges (RFC 5737, RFC 3849).
    ask("0.0.0.0:0", "192.0.2.1:9").or_else(|| ask("[::]:0", "[2001:db8::1]:9")).unwrap_or(IpAddr::from([127, 0, 0, 1]))
}

fn refuse(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, text)
}

impl Secure for Sealed {
    fn connect(&self, node: &NodeId, stream: TcpStream) -> BoxFuture<'static, io::Result<Box<dyn Stream>>> {
        let (connector, node) = (TlsConnector::from(Arc::clone(&self.client)), node.clone());
        let identity = self.identity.clone();
        Box::pin(async move {
            let stream = connector.connect(certificate::server_name(&node), stream).await?;
            let member = proven(stream.get_ref().1.peer_certificates())?;
            if member.name != node {
                return Err(refuse(format!("{node} was called and {} answered", member.name)));
            }
            Ok(Box::new(Admitted { stream, member, identity }) as Box<dyn Stream>)
        })
    }

    fn accept(&self, stream: TcpStream) -> BoxFuture<'static, io::Result<(NodeId, Box<dyn Stream>)>> {
        let (acceptor, identity) = (TlsAcceptor::from(Arc::clone(&self.server)), self.identity.clone());
        Box::pin(async move {
            let stream = acceptor.accept(stream).await?;
            let member = proven(stream.get_ref().1.peer_certificates())?;
            let name = member.name.clone();
            Ok((name, Box::new(Admitted { stream, member, identity }) as Box<dyn Stream>))
        })
    }
}

/// The node that a verified chain is for.
fn proven(shown: Option<&[rustls_pki_types::CertificateDer<'_>]>) -> io::Result<Member> {
    let member = certificate::member(shown).map_err(|error| refuse(chain(&error)))?;
    match member.role {
        Role::Node => Ok(member),
        Role::Operator => {
            Err(refuse(format!("the certificate of operator {} is for no member of the store", member.name)))
        }
    }
}

/// A connection that breaks when its other end is revoked.
struct Admitted<S> {
    stream: S,
    member: Member,
    identity: Identity,
}

impl<S: AsyncRead + Unpin> AsyncRead for Admitted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.identity.is_admitted(&self.member) {
            return Poll::Ready(Err(refuse(format!("the certificate of {} was revoked", self.member.name))));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Admitted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::identity::authority::Authority;

    fn sealed(authority: &Authority, name: &str) -> Sealed {
        let identity = Identity::in_memory(authority, &name.parse().expect("a name"), "weft.internal");
        Sealed::new(identity.expect("issued")).expect("TLS")
    }

    type Ends = (io::Result<Box<dyn Stream>>, io::Result<(NodeId, Box<dyn Stream>)>);

    async fn meet(caller: &Sealed, wanted: &str, server: &Sealed) -> Ends {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("bound");
        let wanted = wanted.parse().expect("a name");
        let call = async { caller.connect(&wanted, TcpStream::connect(address).await.expect("connected")).await };
        let answer = async { server.accept(listener.accept().await.expect("accepted").0).await };
        tokio::join!(call, answer)
    }

    #[tokio::test]
    async fn members_of_one_mesh_prove_their_names_to_each_other() {
        let authority = Authority::create(std::time::SystemTime::now()).expect("made");
        let (alpha, beta) = (sealed(&authority, "alpha"), sealed(&authority, "beta"));
        let (caller, server) = meet(&alpha, "beta", &beta).await;
        let (mut caller, (name, mut server)) = (caller.expect("proven"), server.expect("proven"));
        assert_eq!(name.as_str(), "alpha");
        caller.write_all(b"hello").await.expect("written");
        caller.flush().await.expect("sent");
        let mut read = [0; 5];
        server.read_exact(&mut read).await.expect("read");
        assert_eq!(&read, b"hello");
        // Revoked while it is connected.
        let key = certificate::fingerprint(&alpha.identity.ca()).expect("a key");
        beta.identity.revoke(BTreeSet::from([key]));
        assert!(beta.identity.is_admitted(&member_of(&alpha)), "another key");
        beta.identity.revoke(BTreeSet::from([member_of(&alpha).key]));
        let error = server.read_exact(&mut read).await.expect_err("broken").to_string();
        assert_eq!(error, "the certificate of alpha was revoked");
    }

    fn member_of(sealed: &Sealed) -> Member {
        sealed.identity.certificate().member
    }

    #[tokio::test]
    async fn another_node_and_another_mesh_are_refused() {
        let authority = Authority::create(std::time::SystemTime::now()).expect("made");
        let other = Authority::create(std::time::SystemTime::now()).expect("made");
        let (alpha, beta) = (sealed(&authority, "alpha"), sealed(&authority, "beta"));
        let (caller, _) = meet(&alpha, "gamma", &beta).await;
        assert!(caller.is_err(), "beta is not gamma");
        let stranger = sealed(&other, "alpha");
        let (_, server) = meet(&stranger, "beta", &beta).await;
        assert!(server.is_err(), "a certificate of another mesh");
        let (caller, _) = meet(&alpha, "alpha", &stranger).await;
        assert!(caller.is_err(), "a server of another mesh");
    }
}
