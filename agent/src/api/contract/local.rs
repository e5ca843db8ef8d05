//! `weft.v1.Local`: what this agent itself is to do, asked over its control socket.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tonic::{Request, Response, Status};
use weft_proto::weft::v1 as proto;
use weft_proto::weft::v1::local_server::Local;

use super::failures;
use crate::api::Sources;
use crate::mesh::Joined;
use crate::model::key::PublicKey;
use crate::wireguard::status::PeerFigures;

/// How long the answer to a join waits for the tunnel; a mesh whose members are not reached is joined nevertheless.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(10);

pub(super) struct Service(pub(super) Arc<Sources>);

#[tonic::async_trait]
impl Local for Service {
    async fn join_mesh(&self, request: Request<proto::JoinMeshRequest>) -> Result<Response<proto::JoinedMesh>, Status> {
        let proto::JoinMeshRequest { address, token } = request.into_inner();
        let token = zeroize::Zeroizing::new(token);
        let joined = self.0.mesh_handle.join(&address, &token).await.map_err(|error| failures::join(&error))?;
        tracing::info!(mesh = %joined.mesh, members = joined.members, "joined");
        // What the caller does next is to reach a member: a first packet that finds no address or session yet is lost.
        if tokio::time::timeout(PATIENCE, settled(&self.0, &joined)).await.is_err() {
            tracing::info!("joined, and no member has answered over the tunnel yet");
        }
        Ok(Response::new(proto::JoinedMesh {
            mesh: joined.mesh.to_string(),
            addresses: joined.addresses.iter().map(ToString::to_string).collect(),
            members: u32::try_from(joined.members).unwrap_or(u32::MAX),
            elapsed_ms: u64::try_from(joined.elapsed.as_millis()).unwrap_or(u64::MAX),
        }))
    }

    async fn leave_mesh(&self, _: Request<proto::LeaveMeshRequest>) -> Result<Response<proto::LeftMesh>, Status> {
        let left = self.0.mesh_handle.leave().await.map_err(|error| failures::join(&error))?;
        tracing::info!(mesh = %left, "left");
        Ok(Response::new(proto::LeftMesh { mesh: left.to_string() }))
    }
}

/// Waits until this node has its addresses and a session with a member.
async fn settled(sources: &Sources, joined: &Joined) {
    let has = |network: &ipnet::IpNet| UdpSocket::bind((network.addr(), 0)).is_ok();
    while !joined.addresses.iter().all(has) || !has_session(sources).await {
        // No event tells of either: a handshake is seen by asking the device.
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether a member has answered; peers of `weft.toml` do not count.
async fn has_session(sources: &Sources) -> bool {
    let members: BTreeSet<PublicKey> = sources.mesh.borrow().others().map(|member| member.public_key).collect();
    let figures = sources.figures.read().await;
    let met = |peer: &PeerFigures| peer.last_handshake.is_some_and(|at| at > SystemTime::UNIX_EPOCH);
    figures.wireguard.iter().any(|peer| members.contains(&peer.public_key) && met(peer))
}
