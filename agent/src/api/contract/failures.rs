//! How failures of the mesh leave over gRPC.

use tonic::Status;

use crate::foundation::error::chain;
use crate::identity::token::Refusal;
use crate::mesh::remote::RemoteError;
use crate::mesh::{JoinError, RegistryError};
use crate::store::StoreError;

/// The status of a change that was refused or failed.
pub(super) fn registry(error: &RegistryError) -> Status {
    let text = chain(error);
    match error {
        RegistryError::Store(
            StoreError::NoLeader(_)
            | StoreError::NotRunning(_)
            | StoreError::Timeout { .. }
            | StoreError::Unknown
            | StoreError::Busy,
        ) => Status::unavailable(text),
        RegistryError::Store(StoreError::DiskFull(_)) => Status::resource_exhausted(text),
        RegistryError::Store(_) | RegistryError::Row(_) | RegistryError::Randomness(_) => Status::internal(text),
        RegistryError::Token(Refusal::Wrong) => Status::unauthenticated(text),
        RegistryError::Token(Refusal::Expired | Refusal::Spent | Refusal::Exhausted) => Status::permission_denied(text),
        RegistryError::Address(_) => Status::resource_exhausted(text),
        RegistryError::Acl(_) | RegistryError::Reserved(_) => Status::invalid_argument(text),
        RegistryError::IdTaken(_) | RegistryError::KeyTaken(_) => Status::already_exists(text),
        RegistryError::UnknownNode(_) | RegistryError::UnknownAcl(_) | RegistryError::UnknownToken(_) => {
            Status::not_found(text)
        }
        RegistryError::LastVoter(_)
        | RegistryError::NoMoreVoters(_)
        | RegistryError::NoMoreHolders(..)
        | RegistryError::NoRaftAddress(_) => Status::failed_precondition(text),
        RegistryError::MayNotVote { .. } => Status::permission_denied(text),
        RegistryError::Contention => Status::aborted(text),
    }
}

/// The status of a join or leave that did not come to pass.
pub(super) fn join(error: &JoinError) -> Status {
    let text = chain(error);
    match error {
        JoinError::Token(_) | JoinError::Address(_) => Status::invalid_argument(text),
        JoinError::Member(_) | JoinError::Founder { .. } | JoinError::OwnToken | JoinError::Alone => {
            Status::failed_precondition(text)
        }
        JoinError::Remote(RemoteError::Refused(_) | RemoteError::Dismissed(_))
        | JoinError::OtherAuthority
        | JoinError::Answer(_) => Status::permission_denied(text),
        JoinError::Remote(RemoteError::Unreachable { .. }) | JoinError::NoKeeper | JoinError::Store(_) => {
            Status::unavailable(text)
        }
        JoinError::Broken | JoinError::Key(_) | JoinError::Identity(_) | JoinError::State(_) => Status::internal(text),
    }
}
