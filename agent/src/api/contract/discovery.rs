//! `v1.PeerDiscovery`: where a member of the consensus can be reached from outside.

use std::net::SocketAddr;
use std::sync::Arc;

use tonic::{Request, Response, Status};
use weft_proto::v1;
use weft_proto::v1::peer_discovery_server::PeerDiscovery;

use crate::api::Sources;
use crate::model::mesh::{Member, Mesh, Standing};

pub(super) struct Service(pub(super) Arc<Sources>);

#[tonic::async_trait]
impl PeerDiscovery for Service {
    async fn list_peers(&self, _: Request<()>) -> Result<Response<v1::ListRaftPeersResponse>, Status> {
        let mesh = self.0.mesh.borrow().clone();
        let peers = mesh.members.values().filter_map(|member| raft_peer(&mesh, member)).collect();
        Ok(Response::new(v1::ListRaftPeersResponse { peers }))
    }
}

/// A member that can be reached from outside; one behind a NAT is no help to who asks.
fn raft_peer(mesh: &Mesh, member: &Member) -> Option<v1::RaftPeer> {
    let address = SocketAddr::from((member.primary_endpoint?, member.ports.grpc));
    Some(v1::RaftPeer {
        id: member.id.to_string(),
        address: address.to_string(),
        voter: member.is_voter,
        leader: mesh.standing(member) == Standing::Leader,
    })
}
