//! `weft.v1.Local`: what this agent itself is to do, asked over its control socket.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use weft_proto::weft::v1 as proto;
use weft_proto::weft::v1::local_server::Local;

use super::failures;
use crate::api::Sources;

pub(super) struct Service(pub(super) Arc<Sources>);

#[tonic::async_trait]
impl Local for Service {
    async fn join_mesh(&self, request: Request<proto::JoinMeshRequest>) -> Result<Response<proto::JoinedMesh>, Status> {
        let proto::JoinMeshRequest { address, token } = request.into_inner();
        let token = zeroize::Zeroizing::new(token);
        let joined = self.0.mesh_handle.join(&address, &token).await.map_err(|error| failures::join(&error))?;
        tracing::info!(mesh = %joined.mesh, members = joined.members, "joined");
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
