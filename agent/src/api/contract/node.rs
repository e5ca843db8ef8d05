//! `v1.Node`: what nodes ask of each other.

use std::sync::Arc;
use std::time::SystemTime;

use tokio_stream::Empty;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};
use weft_proto::v1;
use weft_proto::v1::node_client::NodeClient;
use weft_proto::v1::node_server::Node;

use super::caller::Caller;
use super::listener::Connection;
use super::{failures, mesh, remote, text, webrtc, wire};
use crate::api::Sources;
use crate::foundation::id::NodeId;
use crate::mesh::remote::RemoteError;
use crate::model::mesh::{Member, Mesh};

pub(super) struct Service(pub(super) Arc<Sources>);

#[tonic::async_trait]
impl Node for Service {
    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        let caller = Caller::of(&request);
        let observed = request.extensions().get::<Connection>().map(|connection| connection.ends.remote);
        let request = request.into_inner();
        let facts = wire::joining_facts(&request)?;
        let Caller::Member(member) = caller.clone() else {
            return Err(Status::permission_denied("a node joins by itself, over the network: `weft join`"));
        };
        if !caller.is_node(&facts.id) {
            let text = format!("{} may join as itself only, not as {}", member.name, facts.id);
            return Err(Status::permission_denied(text));
        }
        let handle = &self.0.mesh_handle;
        if request.as_voter {
            handle.judge_vote(&facts.id).await.map_err(|error| failures::registry(&error))?;
            if facts.ports.raft == 0 {
                return Err(Status::invalid_argument("as_voter needs raft_port: a node votes over its Raft listener"));
            }
        }
        let observed = observed.ok_or_else(|| Status::failed_precondition("a node joins over the network"))?;
        let entered = handle.announce(&facts, member.key, observed).await;
        let mesh = entered.map_err(|error| failures::registry(&error))?;
        joined(&mesh, &facts.id, request.assign_ipv4).map(Response::new)
    }

    async fn leave(&self, request: Request<v1::LeaveRequest>) -> Result<Response<()>, Status> {
        let caller = Caller::of(&request);
        let id = mesh::node_id(&request.into_inner().id)?;
        if !caller.is_node(&id) && !caller.is_operator() {
            return Err(Status::permission_denied(format!(
                "a node removes itself, an operator any, and this caller is neither for {id}: use an operator's certificate, or the \
                 command line of a node that votes"
            )));
        }
        self.0.mesh_handle.remove(&id).await.map_err(|error| failures::registry(&error))?;
        tracing::info!(node = %id, "removed a node from the mesh");
        Ok(Response::new(()))
    }

    async fn get_status(&self, request: Request<v1::GetStatusRequest>) -> Result<Response<v1::Status>, Status> {
        let wanted = request.into_inner().id;
        let mesh = self.0.mesh.borrow().clone();
        if wanted.is_empty() || wanted == mesh.own.as_str() {
            return Ok(Response::new(local(&self.0, &mesh)));
        }
        let id = mesh::node_id(&wanted)?;
        if mesh.member(&id).is_none() {
            return Err(mesh::unknown(&id));
        }
        relayed(&self.0, &id).await.map(Response::new)
    }

    type NegotiateDataChannelStream = Empty<Result<v1::DataChannelNegotiation, Status>>;

    async fn negotiate_data_channel(
        &self,
        _: Request<Streaming<v1::DataChannelNegotiation>>,
    ) -> Result<Response<Self::NegotiateDataChannelStream>, Status> {
        Err(webrtc::unimplemented())
    }
}

fn joined(mesh: &Mesh, id: &NodeId, assign_ipv4: bool) -> Result<v1::JoinResponse, Status> {
    let own = mesh.member(id).ok_or_else(|| mesh::unknown(id))?;
    let peers = mesh.members.values().filter(|member| member.id != *id);
    Ok(v1::JoinResponse {
        address_ipv4: if assign_ipv4 { text::ipv4(mesh, own) } else { String::new() },
        network_ipv6: own.ipv6.map(|network| network.to_string()).unwrap_or_default(),
        peers: peers.map(|member| wireguard_peer(mesh, member)).collect(),
    })
}

fn wireguard_peer(mesh: &Mesh, member: &Member) -> v1::WireguardPeer {
    let port = member.ports.wireguard;
    let with_port = |address: std::net::IpAddr| std::net::SocketAddr::from((address, port)).to_string();
    v1::WireguardPeer {
        id: member.id.to_string(),
        public_key: member.public_key.to_string(),
        primary_endpoint: member.primary_endpoint.map(with_port).unwrap_or_default(),
        endpoints: member.endpoints.iter().copied().map(with_port).collect(),
        address_ipv4: text::ipv4(mesh, member),
        address_ipv6: member.ipv6.map(|network| network.to_string()).unwrap_or_default(),
    }
}

/// The status of another member, asked of it.
async fn relayed(sources: &Sources, id: &NodeId) -> Result<v1::Status, Status> {
    let channel = reach(sources, id).await?;
    let status = NodeClient::new(channel).get_status(v1::GetStatusRequest { id: String::new() }).await?;
    Ok(status.into_inner())
}

/// A connection to another member, at the first of its addresses that answers.
pub(super) async fn reach(sources: &Sources, id: &NodeId) -> Result<Channel, Status> {
    let mut failed = Status::failed_precondition(format!("no address of {id} is known"));
    for place in sources.mesh_handle.places_of(id) {
        match remote::channel(&sources.identity, &place).await {
            Ok(channel) => return Ok(channel),
            Err(RemoteError::Refused(text) | RemoteError::Dismissed(text)) => {
                failed = Status::failed_precondition(text)
            }
            Err(error @ RemoteError::Unreachable { .. }) => failed = Status::failed_precondition(error.to_string()),
        }
    }
    Err(failed)
}

/// The status of this node.
fn local(sources: &Sources, mesh: &Mesh) -> v1::Status {
    let standing = mesh.member(&mesh.own).map(|member| text::status(mesh.standing(member)));
    let uptime = sources.started.elapsed();
    let peers = sources.wireguard.borrow().peers;
    v1::Status {
        id: mesh.own.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        commit: option_env!("WEFT_COMMIT").unwrap_or("unknown").to_owned(),
        build_date: option_env!("WEFT_BUILD_DATE").unwrap_or("unknown").to_owned(),
        uptime: text::go_duration(std::time::Duration::from_secs(uptime.as_secs())),
        started_at: Some(text::timestamp(SystemTime::now() - uptime)),
        features: features(sources).into_iter().map(i32::from).collect(),
        wireguard_peers: u32::try_from(peers).unwrap_or(u32::MAX),
        cluster_status: standing.unwrap_or(v1::ClusterStatus::Unknown).into(),
        current_leader: mesh.leader.as_ref().map(ToString::to_string).unwrap_or_default(),
    }
}

fn features(sources: &Sources) -> Vec<v1::Feature> {
    let mut features =
        vec![v1::Feature::Nodes, v1::Feature::LeaderProxy, v1::Feature::MeshApi, v1::Feature::PeerDiscovery];
    if sources.has_web {
        features.push(v1::Feature::Metrics);
    }
    if !sources.dns.borrow().listening.is_empty() {
        features.push(v1::Feature::MeshDns);
    }
    features
}
