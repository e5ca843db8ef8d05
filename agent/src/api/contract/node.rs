//! `v1.Node`: what nodes ask of each other.

use std::sync::Arc;
use std::time::SystemTime;

use tokio_stream::Empty;
use tonic::{Request, Response, Status, Streaming};
use weft_proto::v1;
use weft_proto::v1::node_server::Node;

use super::{mesh, text, webrtc};
use crate::api::Sources;

pub(super) struct Service(pub(super) Arc<Sources>);

#[tonic::async_trait]
impl Node for Service {
    async fn join(&self, _: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        Err(Status::unimplemented("this version of weft takes no members yet; peers come from its configuration"))
    }

    async fn leave(&self, _: Request<v1::LeaveRequest>) -> Result<Response<()>, Status> {
        Err(Status::unimplemented("this version of weft has no members that could leave"))
    }

    async fn get_status(&self, request: Request<v1::GetStatusRequest>) -> Result<Response<v1::Status>, Status> {
        let wanted = request.into_inner().id;
        let own = self.0.mesh.borrow().own.clone();
        if wanted.is_empty() || wanted == own.as_str() {
            return Ok(Response::new(local(&self.0)));
        }
        Err(mesh::unknown(&mesh::node_id(&wanted)?))
    }

    type NegotiateDataChannelStream = Empty<Result<v1::DataChannelNegotiation, Status>>;

    async fn negotiate_data_channel(
        &self,
        _: Request<Streaming<v1::DataChannelNegotiation>>,
    ) -> Result<Response<Self::NegotiateDataChannelStream>, Status> {
        Err(webrtc::unimplemented())
    }
}

/// The status of this node.
fn local(sources: &Sources) -> v1::Status {
    let mesh = sources.mesh.borrow().clone();
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
    let mut features = vec![v1::Feature::Nodes, v1::Feature::MeshApi, v1::Feature::PeerDiscovery];
    if sources.has_web {
        features.push(v1::Feature::Metrics);
    }
    if !sources.dns.borrow().listening.is_empty() {
        features.push(v1::Feature::MeshDns);
    }
    features
}
