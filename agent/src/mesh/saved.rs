//! The last good state on disk: after a reboot without a leader, tunnels and names come up from it.
//!
//! `state` holds a signature of the node's own key in hexadecimal, a line end, and JSON. Whatever does not verify or parse
//! is as good as absent: it is told in the log, and the mesh is asked instead.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::update::State;
use crate::foundation::error::chain;
use crate::foundation::id::NodeId;
use crate::identity::certificate::Fingerprint;
use crate::identity::{Identity, Material};
use crate::model::key::PublicKey;
use crate::model::mesh::{Member, Mesh, Ports};
use crate::sys::file::{self, FileError};

const VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    version: u32,
    own: NodeId,
    leader: Option<NodeId>,
    ipv4_range: Option<Ipv4Net>,
    ipv6_prefix: Option<Ipv6Net>,
    members: Vec<SavedMember>,
    revoked: Vec<String>,
    /// Node, peer and reason.
    #[serde(default)]
    blocked: Vec<(NodeId, NodeId, String)>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedMember {
    id: NodeId,
    public_key: PublicKey,
    primary_endpoint: Option<IpAddr>,
    endpoints: Vec<IpAddr>,
    raft_port: u16,
    grpc_port: u16,
    wireguard_port: u16,
    ipv4: Option<Ipv4Addr>,
    ipv6: Option<Ipv6Net>,
    is_voter: bool,
    created_at: u64,
    updated_at: u64,
}

/// Where it lies.
pub(super) fn path(directory: &Path) -> PathBuf {
    directory.join("state")
}

/// The state that this identity wrote last; `None`: there is none that is good.
pub(super) fn read(directory: &Path, identity: &Identity) -> Option<State> {
    let path = path(directory);
    let text = match file::read_if_present(&path) {
        Ok(text) => text?,
        Err(error) => {
            tracing::warn!(error = %chain(&error), "the last state of the mesh cannot be read");
            return None;
        }
    };
    let state = text
        .split_once('\n')
        .filter(|(signature, content)| identity.has_signed(content.as_bytes(), signature))
        .and_then(|(_signature, content)| parse(content, identity.id()));
    if state.is_none() {
        tracing::warn!(path = %path.display(), "the last state of the mesh is not what this node wrote; it is not used");
    }
    state
}

/// Replaces it, signed with the key of `identity`.
pub(super) fn write(directory: &Path, identity: &Identity, state: &State) -> Result<(), FileError> {
    let content = content(state);
    write_signed(directory, &identity.sign(content.as_bytes()), &content)
}

/// Replaces it, signed with the key of an identity that is yet to be taken on.
pub(super) fn write_for(directory: &Path, material: &Material, state: &State) -> Result<(), FileError> {
    let content = content(state);
    write_signed(directory, &material.sign(content.as_bytes()), &content)
}

fn write_signed(directory: &Path, signature: &str, content: &str) -> Result<(), FileError> {
    file::create_directory(directory, 0o700)?;
    file::write_atomic(&path(directory), format!("{signature}\n{content}").as_bytes(), 0o600)
}

fn content(state: &State) -> String {
    let State { mesh, revoked } = state;
    let saved = Saved {
        version: VERSION,
        own: mesh.own.clone(),
        leader: mesh.leader.clone(),
        ipv4_range: mesh.ipv4,
        ipv6_prefix: mesh.ipv6,
        members: mesh.members.values().map(|member| saved_member(member)).collect(),
        revoked: revoked.iter().map(Fingerprint::to_string).collect(),
        blocked: mesh.blocked.iter().map(|((node, peer), why)| (node.clone(), peer.clone(), why.clone())).collect(),
    };
    // Plain data with text keys can always be written.
    serde_json::to_string(&saved).unwrap_or_default()
}

fn parse(content: &str, own: &NodeId) -> Option<State> {
    let saved: Saved = serde_json::from_str(content).ok()?;
    if saved.version != VERSION || saved.own != *own {
        return None;
    }
    let mut mesh =
        Mesh { leader: saved.leader, ipv4: saved.ipv4_range, ipv6: saved.ipv6_prefix, ..Mesh::empty(saved.own) };
    mesh.blocked = Arc::new(saved.blocked.into_iter().map(|(node, peer, why)| ((node, peer), why)).collect());
    for member in saved.members {
        mesh.members.insert(member.id.clone(), Arc::new(loaded_member(member)));
    }
    let revoked: BTreeSet<Fingerprint> =
        saved.revoked.iter().map(|text| text.parse()).collect::<Result<_, _>>().ok()?;
    Some(State { mesh, revoked: Arc::new(revoked) })
}

fn saved_member(member: &Member) -> SavedMember {
    let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    SavedMember {
        id: member.id.clone(),
        public_key: member.public_key,
        primary_endpoint: member.primary_endpoint,
        endpoints: member.endpoints.clone(),
        raft_port: member.ports.raft,
        grpc_port: member.ports.grpc,
        wireguard_port: member.ports.wireguard,
        ipv4: member.ipv4,
        ipv6: member.ipv6,
        is_voter: member.is_voter,
        created_at: seconds(member.created_at),
        updated_at: seconds(member.updated_at),
    }
}

fn loaded_member(saved: SavedMember) -> Member {
    let time = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    Member {
        id: saved.id,
        public_key: saved.public_key,
        primary_endpoint: saved.primary_endpoint,
        endpoints: saved.endpoints,
        ports: Ports { raft: saved.raft_port, grpc: saved.grpc_port, wireguard: saved.wireguard_port },
        ipv4: saved.ipv4,
        ipv6: saved.ipv6,
        is_voter: saved.is_voter,
        created_at: time(saved.created_at),
        updated_at: time(saved.updated_at),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::authority::Authority;
    use crate::mesh::tests::{id, member, mesh};

    fn identity() -> Identity {
        let authority = Authority::create(SystemTime::now()).expect("an authority");
        Identity::in_memory(&authority, &id("alpha"), "weft.internal").expect("an identity")
    }

    #[test]
    fn what_was_written_is_read_and_what_was_touched_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let state = State {
            mesh: crate::model::mesh::Mesh {
                blocked: Arc::new([((id("alpha"), id("beta")), "a firewall".to_owned())].into()),
                ..mesh(&[member("alpha", 1, Some("192.0.2.1")), member("beta", 2, None)])
            },
            revoked: Arc::new(BTreeSet::from([Fingerprint::from_bytes([3; 32])])),
        };
        let identity = identity();
        assert_eq!(read(directory.path(), &identity), None, "there is none");
        write(directory.path(), &identity, &state).expect("written");
        assert_eq!(read(directory.path(), &identity), Some(state));
        assert_eq!(read(directory.path(), &self::identity()), None, "another node's key signed it");
        let text = std::fs::read_to_string(path(directory.path())).expect("there").replace("192.0.2.1", "192.0.2.9");
        std::fs::write(path(directory.path()), text).expect("touched");
        assert_eq!(read(directory.path(), &identity), None);
    }
}
