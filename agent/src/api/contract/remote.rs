//! Other members over gRPC: what carries `mesh::remote`.
//!
//! Invariant: a member is dialled by its address and believed by its certificate only; before a node is a member itself it
//! believes the authority in its token.

use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use hyper_util::rt::TokioIo;
use rustls::{AlertDescription, ClientConfig};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use weft_proto::v1;
use weft_proto::v1::node_client::NodeClient;
use weft_proto::weft::v1 as proto;
use weft_proto::weft::v1::enrolment_client::EnrolmentClient;
use weft_proto::weft::v1::membership_client::MembershipClient;

use super::wire;
use crate::foundation::error::chain;
use crate::foundation::id::NodeId;
use crate::foundation::secret::Secret;
use crate::identity::certificate::server_name;
use crate::identity::request::Request;
use crate::identity::{Identity, Purpose, pinned};
use crate::mesh::remote::{Enrolled, Enrolment, Facts, Place, Remote, RemoteError};
use crate::mesh::update::Update;

/// How long a connection may take, and a call.
const PATIENCE: Duration = Duration::from_secs(5);
const CALL: Duration = Duration::from_secs(15);
/// How long it may take until a store has got the log.
const SEAT: Duration = Duration::from_secs(90);
/// A dead member is noticed by its missing answer to a ping.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// A mesh of ten thousand members is about 3 MB.
const LARGEST_UPDATE_BYTES: usize = 16 * 1024 * 1024;

/// Speaks for this node.
#[derive(Debug, Clone)]
pub struct Grpc {
    identity: Identity,
}

impl Grpc {
    /// Speaks for the node with this identity.
    pub fn new(identity: Identity) -> Self {
        Self { identity }
    }
}

/// A TLS connection to the member at `place`, proven to be that member.
pub(super) async fn dial(identity: &Identity, place: &Place) -> Result<TlsStream<TcpStream>, RemoteError> {
    let address = place.address.to_string();
    let config = identity.client_config(Purpose::Grpc).map_err(|error| unreachable(&address, &error))?;
    connect(config, server_name(&place.id), &address).await
}

/// A gRPC connection to the member at `place`.
pub(super) async fn channel(identity: &Identity, place: &Place) -> Result<Channel, RemoteError> {
    over(dial(identity, place).await?, &place.address.to_string()).await
}

async fn connect(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    address: &str,
) -> Result<TlsStream<TcpStream>, RemoteError> {
    let connecting = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        TlsConnector::from(config).connect(name, stream).await
    };
    match tokio::time::timeout(PATIENCE, connecting).await {
        Ok(connected) => connected.map_err(|error| unreachable(address, &error)),
        Err(_elapsed) => {
            let reason = format!("no connection within {} s", PATIENCE.as_secs());
            Err(RemoteError::Unreachable { address: address.to_owned(), reason })
        }
    }
}

/// What a failed connection means. A revoked certificate is told by TLS, after the handshake.
fn unreachable(address: &str, error: &(dyn Error + 'static)) -> RemoteError {
    if is_revoked(error) {
        return RemoteError::Dismissed("the certificate of this node is revoked there".to_owned());
    }
    RemoteError::Unreachable { address: address.to_owned(), reason: chain(error) }
}

/// A channel over a connection that is there; when it breaks, so does the channel.
async fn over(stream: TlsStream<TcpStream>, address: &str) -> Result<Channel, RemoteError> {
    let stream = Arc::new(Mutex::new(Some(TokioIo::new(stream))));
    let connector = tower::service_fn(move |_uri| {
        let taken = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
        async move { taken.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
    });
    let endpoint = Endpoint::from_static("http://weft")
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PATIENCE)
        .keep_alive_while_idle(true);
    endpoint.connect_with_connector(connector).await.map_err(|error| unreachable(address, &error))
}

/// What a failed call means.
fn failure(address: &str, status: &Status) -> RemoteError {
    if is_revoked(status) {
        return RemoteError::Dismissed("the certificate of this node is revoked there".to_owned());
    }
    match status.code() {
        Code::NotFound => RemoteError::Dismissed(status.message().to_owned()),
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Internal => {
            RemoteError::Unreachable { address: address.to_owned(), reason: chain(status) }
        }
        Code::Ok
        | Code::InvalidArgument
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::DataLoss
        | Code::Unauthenticated => RemoteError::Refused(status.message().to_owned()),
    }
}

fn is_revoked(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let within = error.downcast_ref::<io::Error>().and_then(|error| error.get_ref());
        let tls = within.and_then(|error| error.downcast_ref::<rustls::Error>()).or_else(|| error.downcast_ref());
        let alert = rustls::Error::AlertReceived(AlertDescription::CertificateRevoked);
        // HTTP/2 keeps the words of what broke its connection and nothing else.
        if tls == Some(&alert) || error.to_string().contains(&alert.to_string()) {
            return true;
        }
        next = error.source();
    }
    false
}

impl Remote for Grpc {
    fn enrol(&self, address: String, enrolment: Enrolment) -> BoxFuture<'static, Result<Enrolled, RemoteError>> {
        Box::pin(async move {
            let config =
                pinned::client_config(enrolment.token.authority).map_err(|error| unreachable(&address, &error))?;
            // Not looked at: the authority in the token decides.
            let name = ServerName::try_from("weft").map_err(|error| unreachable(&address, &error))?;
            let channel = over(connect(config, name, &address).await?, &address).await?;
            let mut client = EnrolmentClient::new(channel).max_decoding_message_size(LARGEST_UPDATE_BYTES);
            let mut request = tonic::Request::new(wire::enrol_request(&enrolment));
            request.set_timeout(CALL);
            let answer = client.enrol(request).await.map_err(|status| failure(&address, &status))?.into_inner();
            let broken = |what: String| {
                RemoteError::Refused(format!("{address} answered what this version cannot read: {what}"))
            };
            let mesh = answer.mesh.ok_or_else(|| broken("no mesh".to_owned()))?;
            let mesh = wire::read_update(&mesh).map_err(broken)?;
            Ok(Enrolled { certificate_pem: answer.certificate_pem, ca_pem: answer.ca_pem, mesh })
        })
    }

    fn follow(
        &self,
        place: Place,
        own: Facts,
    ) -> BoxFuture<'static, Result<BoxStream<'static, Result<Update, RemoteError>>, RemoteError>> {
        let identity = self.identity.clone();
        Box::pin(async move {
            let address = place.address.to_string();
            let channel = channel(&identity, &place).await?;
            let failed = |status: Status| failure(&address, &status);
            let mut request = tonic::Request::new(wire::join_request(&own));
            request.set_timeout(CALL);
            NodeClient::new(channel.clone()).join(request).await.map_err(failed)?;
            let mut client = MembershipClient::new(channel).max_decoding_message_size(LARGEST_UPDATE_BYTES);
            let updates = client.watch_mesh(proto::WatchMeshRequest {}).await.map_err(failed)?.into_inner();
            let read = move |sent: Result<proto::MeshUpdate, Status>| {
                let sent = sent.map_err(|status| failure(&address, &status))?;
                wire::read_update(&sent)
                    .map_err(|what| RemoteError::Refused(format!("{address} told what cannot be: {what}")))
            };
            Ok(updates.map(read).boxed())
        })
    }

    fn leave(&self, place: Place, id: NodeId) -> BoxFuture<'static, Result<(), RemoteError>> {
        let identity = self.identity.clone();
        Box::pin(async move {
            let address = place.address.to_string();
            let mut client = NodeClient::new(channel(&identity, &place).await?);
            let mut request = tonic::Request::new(v1::LeaveRequest { id: id.to_string() });
            request.set_timeout(CALL);
            client.leave(request).await.map_err(|status| failure(&address, &status))?;
            Ok(())
        })
    }

    fn take_seat(&self, place: Place, own: Facts, raft_id: Option<u64>) -> BoxFuture<'static, Result<(), RemoteError>> {
        let identity = self.identity.clone();
        Box::pin(async move {
            let address = place.address.to_string();
            let mut client = MembershipClient::new(channel(&identity, &place).await?);
            let mut request = tonic::Request::new(proto::TakeSeatRequest {
                seat: own.seat.unwrap_or_default().as_str().to_owned(),
                raft_address: own.raft_address.unwrap_or_default(),
                raft_id,
            });
            request.set_timeout(SEAT);
            client.take_seat(request).await.map_err(|status| failure(&address, &status))?;
            Ok(())
        })
    }

    fn say_blocked(
        &self,
        place: Place,
        blocked: BTreeMap<NodeId, String>,
    ) -> BoxFuture<'static, Result<(), RemoteError>> {
        let identity = self.identity.clone();
        Box::pin(async move {
            let address = place.address.to_string();
            let mut client = MembershipClient::new(channel(&identity, &place).await?);
            let mut request = tonic::Request::new(wire::blocked_peers(&blocked));
            request.set_timeout(CALL);
            client.say_blocked(request).await.map_err(|status| failure(&address, &status))?;
            Ok(())
        })
    }

    fn authority(&self, place: Place) -> BoxFuture<'static, Result<Secret<String>, RemoteError>> {
        let identity = self.identity.clone();
        Box::pin(async move {
            let address = place.address.to_string();
            let mut client = MembershipClient::new(channel(&identity, &place).await?);
            let mut request = tonic::Request::new(());
            request.set_timeout(CALL);
            let answer = client.get_authority(request).await.map_err(|status| failure(&address, &status))?;
            Ok(Secret::new(answer.into_inner().key_pem))
        })
    }

    fn renew(&self, place: Place, request: Request) -> BoxFuture<'static, Result<String, RemoteError>> {
        let identity = self.identity.clone();
        Box::pin(async move {
            let address = place.address.to_string();
            let mut client = MembershipClient::new(channel(&identity, &place).await?);
            let mut request = tonic::Request::new(proto::RenewRequest { request_pem: request.pem().to_owned() });
            request.set_timeout(CALL);
            let renewed = client.renew(request).await.map_err(|status| failure(&address, &status))?;
            Ok(renewed.into_inner().certificate_pem)
        })
    }
}
