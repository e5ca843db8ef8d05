//! Starts the mesh, and says who renews the certificate of this node.

use std::sync::Arc;

use tokio::sync::watch;

use crate::api::contract::remote::Grpc;
use crate::config::Settings;
use crate::foundation::task::Task;
use crate::identity::{Identity, renewal};
use crate::mesh::{self, Handle, Inputs};
use crate::model::Model;
use crate::model::mesh::Ports;
use crate::store;

/// Starts the mesh and keeps the certificate of this node valid; `grpc_port` is the one that is listened on, 0: none.
pub(super) fn start(
    settings: &Settings,
    identity: &Identity,
    store: store::Handle,
    configured: watch::Receiver<Arc<Model>>,
    grpc_port: u16,
) -> (Handle, Task) {
    let raft = if settings.raft.enabled { settings.raft.listen.port() } else { 0 };
    let ports = Ports { raft, grpc: grpc_port, wireguard: settings.wireguard.listen_port };
    let mesh = mesh::start(Inputs {
        identity: identity.clone(),
        store,
        remote: Arc::new(Grpc::new(identity.clone())),
        directory: settings.state_dir.join("mesh"),
        config: settings.mesh.clone(),
        configured,
        ports,
        raft_address: settings.raft.advertise.clone(),
        link: settings.wireguard.link.to_string(),
    });
    let renewal = keep_valid(identity.clone(), mesh.clone());
    (mesh, renewal)
}

/// Keeps the certificate of this node valid: by itself where it may issue, else by one of the mesh that may.
fn keep_valid(identity: Identity, mesh: Handle) -> Task {
    let renew = move |_identity| {
        let mesh = mesh.clone();
        Box::pin(async move { mesh.renew().await }) as futures_util::future::BoxFuture<'static, _>
    };
    renewal::start(identity, Box::new(renew))
}
