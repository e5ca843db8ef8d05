//! Joining another mesh and leaving it, as this node does it.
//!
//! The order is such that a crash at any point leaves a node of the old mesh or one of the new: the state of the new mesh is
//! written first and is good only for the new key; the identity, one file, then changes sides.

use std::sync::{Arc, PoisonError};
use std::time::Instant;

use ipnet::IpNet;

use super::plan::{self, Standing};
use super::remote::{Enrolment, RemoteError};
use super::saved;
use super::shared::Shared;
use super::update::{State, Update};
use crate::foundation::id::NodeId;
use crate::identity::authority::AuthorityError;
use crate::identity::certificate::{self, CertificateError, MeshId};
use crate::identity::request::Request;
use crate::identity::token::{NotAToken, Token};
use crate::identity::{IdentityError, Material};
use crate::model::mesh::Member;
use crate::sys::file::FileError;

/// The port of the contract, where an address names none.
const PORT: u16 = 8443;

/// Why this node did not change sides; it is where it was.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error(transparent)]
    Token(#[from] NotAToken),
    #[error("{0:?} is no HOST:PORT of a member's gRPC listener, like 192.0.2.1:8443")]
    Address(String),
    #[error("this node is a member of mesh {0} already; `weft leave` first")]
    Member(MeshId),
    #[error(
        "this node founded mesh {mesh} or has its only vote, and it has {others} other members; have them leave first, or let \
         another one vote (mesh.role = \"voter\" there)"
    )]
    Founder { mesh: MeshId, others: usize },
    #[error("the token is of the mesh that this node founded; use it on the node that is to join")]
    OwnToken,
    #[error(transparent)]
    Remote(#[from] RemoteError),
    #[error("failed to make a key")]
    Key(#[from] AuthorityError),
    #[error("what the mesh sent is not what its token promised")]
    Answer(#[source] CertificateError),
    #[error("the certificate of the mesh is not of the authority in the token")]
    OtherAuthority,
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("failed to give the lead of the mesh away")]
    Store(#[from] crate::store::StoreError),
    #[error("failed to keep the state of the mesh")]
    State(#[source] FileError),
    #[error("this node is alone in its mesh and has nothing to leave")]
    Alone,
    #[error("no node that keeps the state of the mesh is known")]
    NoKeeper,
    #[error("the change broke off; `weft status` says where this node is")]
    Broken,
}

/// A mesh this node has become a member of.
#[derive(Debug, Clone)]
pub struct Joined {
    pub mesh: MeshId,
    pub addresses: Vec<IpNet>,
    pub members: usize,
    pub elapsed: std::time::Duration,
}

pub(super) async fn join(shared: &Arc<Shared>, address: &str, token: &str) -> Result<Joined, JoinError> {
    let began = Instant::now();
    let token: Token = token.parse()?;
    let address = with_port(address)?;
    refuse_others(shared, &token)?;
    let (request, key_pem) = Request::new()?;
    let authority = token.authority;
    let facts = shared.facts();
    let enrolled = shared.remote.enrol(address, Enrolment { token, request, facts }).await?;
    let ca = certificate::from_pem(&enrolled.ca_pem).map_err(JoinError::Answer)?;
    if certificate::fingerprint(&ca).map_err(JoinError::Answer)? != authority {
        return Err(JoinError::OtherAuthority);
    }
    let material =
        Material { ca_pem: enrolled.ca_pem, ca_key_pem: None, certificate_pem: enrolled.certificate_pem, key_pem };
    let own = shared.identity.id().clone();
    let state = State::empty(own).after(&enrolled.mesh);
    blocking(shared, move |shared| change_sides(shared, &material, &enrolled.mesh)).await?;
    let mesh = &state.mesh;
    Ok(Joined {
        mesh: shared.identity.mesh(),
        addresses: super::project::mesh_addresses(mesh),
        members: mesh.members.len(),
        elapsed: began.elapsed(),
    })
}

/// The state, then the identity, then everybody here; nothing else is written meanwhile.
fn change_sides(shared: &Shared, material: &Material, mesh: &Update) -> Result<(), JoinError> {
    let _nothing_else = shared.saving.lock().unwrap_or_else(PoisonError::into_inner);
    let state = State::empty(shared.identity.id().clone()).after(mesh);
    saved::write_for(&shared.directory, material, &state).map_err(JoinError::State)?;
    shared.identity.replace(material)?;
    shared.publish(mesh);
    shared.moves.send_modify(|moves| *moves += 1);
    Ok(())
}

/// Founds a mesh of this node alone.
fn found_anew(shared: &Shared) -> Result<(), JoinError> {
    let _nothing_else = shared.saving.lock().unwrap_or_else(PoisonError::into_inner);
    shared.identity.found_anew()?;
    shared.publish(&State::empty(shared.identity.id().clone()).complete());
    shared.moves.send_modify(|moves| *moves += 1);
    Ok(())
}

/// Does what waits for the disk off the threads that must not.
async fn blocking(
    shared: &Arc<Shared>,
    work: impl FnOnce(&Shared) -> Result<(), JoinError> + Send + 'static,
) -> Result<(), JoinError> {
    let shared = Arc::clone(shared);
    match tokio::task::spawn_blocking(move || work(&shared)).await {
        Ok(result) => result,
        Err(_panicked) => Err(JoinError::Broken),
    }
}

fn refuse_others(shared: &Shared, token: &Token) -> Result<(), JoinError> {
    let mesh = shared.identity.mesh();
    if token.authority == shared.identity.fingerprint() {
        return Err(if shared.keeps() { JoinError::OwnToken } else { JoinError::Member(mesh) });
    }
    if !shared.keeps() {
        return Err(JoinError::Member(mesh));
    }
    let state = Arc::clone(&shared.state.borrow());
    let others: Vec<&Arc<Member>> = state.mesh.others().collect();
    match (others.len(), others.iter().any(|member| member.is_voter)) {
        (0, _) => Ok(()),
        (_, true) => Err(JoinError::Member(mesh)),
        (others, false) => Err(JoinError::Founder { mesh, others }),
    }
}

/// HOST:PORT, with the contract's port where none is named.
fn with_port(address: &str) -> Result<String, JoinError> {
    let refuse = || JoinError::Address(address.to_owned());
    if let Ok(ip) = address.trim_matches(['[', ']']).parse::<std::net::IpAddr>() {
        return Ok(std::net::SocketAddr::from((ip, PORT)).to_string());
    }
    match address.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0) => {
            Ok(address.to_owned())
        }
        None if !address.is_empty() && !address.contains(char::is_whitespace) => Ok(format!("{address}:{PORT}")),
        Some(_) | None => Err(refuse()),
    }
}

/// Leaves the mesh, and founds one of its own again.
pub(super) async fn leave(shared: &Arc<Shared>) -> Result<MeshId, JoinError> {
    let left = shared.identity.mesh();
    let own = shared.identity.id().clone();
    let store = Arc::clone(&shared.store.status().borrow());
    let has_other_voters = store.members.iter().any(|member| member.voter && member.node != own);
    // Without its store it has nothing that the others could miss.
    let has_lost_all = plan::standing(&store, &own) == Standing::Waiting && shared.keepers().is_empty();
    if shared.keeps() && has_lost_all {
        blocking(shared, found_anew).await?;
        return Ok(left);
    }
    if shared.keeps() && !has_other_voters {
        return Err(match shared.state.borrow().mesh.members.len() {
            0 | 1 => JoinError::Alone,
            members => JoinError::Founder { mesh: left, others: members - 1 },
        });
    }
    if shared.keeps() && store.leader.as_ref() == Some(&own) {
        shared.store.transfer_leader(None).await?;
    }
    dismissed(shared, &own).await?;
    blocking(shared, found_anew).await?;
    Ok(left)
}

/// Has the mesh remove this node; one that removed it before is as good.
async fn dismissed(shared: &Shared, own: &NodeId) -> Result<(), JoinError> {
    let mut failed = JoinError::NoKeeper;
    // The word that this node is revoked is lost when the connection breaks before it is read.
    for _attempt in 0..ATTEMPTS {
        for place in shared.keepers() {
            match shared.remote.leave(place, own.clone()).await {
                Ok(()) | Err(RemoteError::Dismissed(_)) => return Ok(()),
                Err(error) => failed = error.into(),
            }
        }
    }
    Err(failed)
}

/// How often the members are asked to let this node go.
const ATTEMPTS: usize = 3;

/// Where this node keeps the newest state it knows.
pub(super) async fn save(shared: Arc<Shared>) {
    let mut state = shared.state.subscribe();
    loop {
        state.mark_unchanged();
        let saving = Arc::clone(&shared);
        let written = tokio::task::spawn_blocking(move || write_newest(&saving)).await;
        match written {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = %crate::foundation::error::chain(&error), "the state of the mesh was not kept")
            }
            Err(error) => tracing::warn!(%error, "the state of the mesh was not kept"),
        }
        if state.changed().await.is_err() {
            return;
        }
        // A burst of changes is one write.
        tokio::time::sleep(SETTLE).await;
    }
}

/// Writes the newest state there is; one that this node has left behind never comes after a newer one.
fn write_newest(shared: &Shared) -> Result<(), FileError> {
    let _nothing_else = shared.saving.lock().unwrap_or_else(PoisonError::into_inner);
    let newest = Arc::clone(&shared.state.borrow());
    saved::write(&shared.directory, &shared.identity, &newest)
}

/// How long a burst of changes may go on before it is written.
const SETTLE: std::time::Duration = std::time::Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_leave_the_port_out() {
        for (text, expected) in [
            ("192.0.2.1", "192.0.2.1:8443"),
            ("192.0.2.1:99", "192.0.2.1:99"),
            ("2001:db8::1", "[2001:db8::1]:8443"),
            ("[2001:db8::1]:99", "[2001:db8::1]:99"),
            ("alpha.example.org", "alpha.example.org:8443"),
        ] {
            assert_eq!(with_port(text).ok().as_deref(), Some(expected));
        }
        for text in ["", "a b", ":1", "host:port", "host:0"] {
            assert!(with_port(text).is_err(), "{text}");
        }
    }
}
