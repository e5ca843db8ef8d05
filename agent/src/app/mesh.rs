//! What the mesh is started with, and who renews the certificate of this node.

use std::sync::Arc;

use tokio::sync::watch;

use crate::api::contract::remote::Grpc;
use crate::config::Settings;
use crate::foundation::task::Task;
use crate::identity::{Identity, renewal};
use crate::mesh::{Handle, Inputs};
use crate::model::Model;
use crate::model::mesh::Ports;
use crate::store;

/// The inputs of the mesh; `grpc_port` is the one that is listened on, 0: none.
pub(super) fn inputs(
    settings: &Settings,
    identity: &Identity,
    store: store::Handle,
    configured: watch::Receiver<Arc<Model>>,
    grpc_port: u16,
) -> Inputs {
    let ports = Ports { raft: 0, grpc: grpc_port, wireguard: settings.wireguard.listen_port };
    Inputs {
        identity: identity.clone(),
        store,
        remote: Arc::new(Grpc::new(identity.clone())),
        directory: settings.state_dir.join("mesh"),
        config: settings.mesh.clone(),
        configured,
        ports,
        link: settings.wireguard.link.to_string(),
    }
}

/// Keeps the certificate of this node valid: by itself where it may issue, else by one of the mesh that may.
pub(super) fn keep_valid(identity: Identity, mesh: Handle) -> Task {
    let renew = move |_identity| {
        let mesh = mesh.clone();
        Box::pin(async move { mesh.renew().await }) as futures_util::future::BoxFuture<'static, _>
    };
    renewal::start(identity, Box::new(renew))
}
