//! `v1.Mesh`: the members, read from the newest state of this node.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use weft_proto::v1;
use weft_proto::v1::mesh_server::Mesh;

use super::text;
use crate::api::Sources;
use crate::foundation::id::NodeId;

pub(super) struct Service(pub(super) Arc<Sources>);

#[tonic::async_trait]
impl Mesh for Service {
    async fn get_node(&self, request: Request<v1::GetNodeRequest>) -> Result<Response<v1::MeshNode>, Status> {
        let id = node_id(&request.into_inner().id)?;
        let mesh = self.0.mesh.borrow().clone();
        match mesh.member(&id) {
            Some(member) => Ok(Response::new(text::mesh_node(&mesh, member))),
            None => Err(unknown(&id)),
        }
    }

    async fn list_nodes(&self, _: Request<()>) -> Result<Response<v1::NodeList>, Status> {
        let mesh = self.0.mesh.borrow().clone();
        let nodes = mesh.members.values().map(|member| text::mesh_node(&mesh, member)).collect();
        Ok(Response::new(v1::NodeList { nodes }))
    }
}

/// A node id as it came in a request.
pub(super) fn node_id(text: &str) -> Result<NodeId, Status> {
    text.parse().map_err(|error: crate::foundation::id::InvalidName| Status::invalid_argument(error.to_string()))
}

pub(super) fn unknown(id: &NodeId) -> Status {
    Status::not_found(format!("there is no node {id} in this mesh; `weft status` lists its members"))
}
