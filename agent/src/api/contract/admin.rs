//! `v1.Admin`: which nodes may vote.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use weft_proto::v1::admin_server::Admin;
use weft_proto::{DeleteRaftAclRequest, GetRaftAclRequest, RaftAcl, RaftAclList};

use super::failures;
use crate::api::Sources;
use crate::mesh::RegistryError;
use crate::mesh::acl::{Acl, Action};

pub(super) struct Service(pub(super) Arc<Sources>);

#[tonic::async_trait]
impl Admin for Service {
    async fn put_raft_acl(&self, request: Request<RaftAcl>) -> Result<Response<()>, Status> {
        let RaftAcl { name, patterns, action } = request.into_inner();
        let acl = Acl::parse(name, patterns, action).map_err(|error| failures::registry(&error.into()))?;
        self.0.mesh_handle.put_acl(&acl).await.map_err(|error| failures::registry(&error))?;
        tracing::info!(name = acl.name, patterns = ?acl.patterns, action = ?acl.action, "put a Raft ACL");
        Ok(Response::new(()))
    }

    async fn delete_raft_acl(&self, request: Request<DeleteRaftAclRequest>) -> Result<Response<()>, Status> {
        let name = request.into_inner().name;
        self.0.mesh_handle.delete_acl(&name).await.map_err(|error| failures::registry(&error))?;
        tracing::info!(name, "deleted a Raft ACL");
        Ok(Response::new(()))
    }

    async fn get_raft_acl(&self, request: Request<GetRaftAclRequest>) -> Result<Response<RaftAcl>, Status> {
        let name = request.into_inner().name;
        let found = all(&self.0).await?.into_iter().find(|acl| acl.name == name);
        match found {
            Some(acl) => Ok(Response::new(shown(acl))),
            None => Err(failures::registry(&RegistryError::UnknownAcl(name))),
        }
    }

    async fn list_raft_ac_ls(&self, _: Request<()>) -> Result<Response<RaftAclList>, Status> {
        let items = all(&self.0).await?.into_iter().map(shown).collect();
        Ok(Response::new(RaftAclList { items }))
    }
}

async fn all(sources: &Sources) -> Result<Vec<Acl>, Status> {
    sources.mesh_handle.acls().await.map_err(|error| failures::registry(&error))
}

fn shown(acl: Acl) -> RaftAcl {
    let action = match acl.action {
        Action::Deny => 0,
        Action::Allow => 1,
    };
    RaftAcl { name: acl.name, patterns: acl.patterns, action }
}
