//! The mesh as the contract shows it while this node is its only member.

use std::sync::Arc;
use std::time::SystemTime;

use ipnet::{IpNet, Ipv6Net};
use tokio::sync::watch;

use crate::config::Settings;
use crate::foundation::task::Task;
use crate::identity::{Identity, renewal};
use crate::model::mesh::{Member, Mesh, Ports};

/// A mesh of one, which leads itself.
pub(super) fn alone(settings: &Settings, identity: &Identity) -> watch::Receiver<Arc<Mesh>> {
    let own = settings.model.node.id.clone();
    let mut mesh = Mesh::empty(own.clone());
    mesh.leader = Some(own.clone());
    let member = member(settings, identity);
    mesh.ipv4 = settings.model.node.addresses.iter().find_map(|address| match address {
        IpNet::V4(address) => Some(address.trunc()),
        IpNet::V6(_) => None,
    });
    mesh.members.insert(own, Arc::new(member));
    watch::Sender::new(Arc::new(mesh)).subscribe()
}

/// Keeps the certificate of this node valid; it holds the authority, as every node that founded its mesh does.
pub(super) fn keep_valid(identity: Identity) -> Task {
    renewal::start(identity, Box::new(|_| Box::pin(async { Err("this node does not hold the authority".into()) })))
}

fn member(settings: &Settings, identity: &Identity) -> Member {
    let addresses = &settings.model.node.addresses;
    let ipv4 = addresses.iter().find_map(|address| if let IpNet::V4(v4) = address { Some(v4.addr()) } else { None });
    let ipv6 = addresses.iter().find_map(|address| if let IpNet::V6(v6) = address { Some(v6.addr()) } else { None });
    Member {
        id: settings.model.node.id.clone(),
        public_key: settings.model.node.public_key,
        primary_endpoint: None,
        endpoints: Vec::new(),
        ports: Ports { raft: 0, grpc: settings.grpc.listen.port(), wireguard: settings.wireguard.listen_port },
        ipv4,
        ipv6: ipv6.and_then(|address| Ipv6Net::new(address, 64).ok()).map(|network| network.trunc()),
        is_voter: true,
        created_at: identity.certificate().not_before,
        updated_at: SystemTime::now(),
    }
}
