//! What the tests of this room share: small meshes.

use std::sync::Arc;
use std::time::SystemTime;

use crate::foundation::id::NodeId;
use crate::model::key::PublicKey;
use crate::model::mesh::{Member, Mesh, Ports};

pub(super) fn id(name: &str) -> NodeId {
    name.parse().expect("an id")
}

pub(super) fn member(name: &str, number: u8, endpoint: Option<&str>) -> Arc<Member> {
    Arc::new(Member {
        id: id(name),
        public_key: PublicKey::from_bytes([number; 32]),
        primary_endpoint: endpoint.map(|text| text.parse().expect("an address")),
        endpoints: Vec::new(),
        ports: Ports { raft: 9443, grpc: 8443, wireguard: 51820 },
        ipv4: Some(std::net::Ipv4Addr::new(10, 80, 0, number)),
        ipv6: Some(format!("fd00:0:0:{number:x}::/64").parse().expect("a network")),
        is_voter: false,
        created_at: SystemTime::UNIX_EPOCH,
        updated_at: SystemTime::UNIX_EPOCH,
    })
}

/// Alpha's view of these members.
pub(super) fn mesh(members: &[Arc<Member>]) -> Mesh {
    let mut mesh = Mesh::empty(id("alpha"));
    mesh.ipv4 = Some("10.80.0.0/16".parse().expect("a network"));
    for member in members {
        mesh.members.insert(member.id.clone(), Arc::clone(member));
    }
    mesh
}
