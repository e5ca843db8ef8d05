//! Other members as this room asks them. What carries the calls is `api`'s.

use std::collections::BTreeMap;
use std::net::IpAddr;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use ipnet::IpNet;

use super::update::Update;
use crate::foundation::id::NodeId;
use crate::foundation::secret::Secret;
use crate::identity::request::Request;
use crate::identity::token::Token;
use crate::model::key::PublicKey;
use crate::model::mesh::{Ports, Seat};

/// What a node says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub id: NodeId,
    pub public_key: PublicKey,
    pub ports: Ports,
    /// Where others reach it, as configured.
    pub endpoint: Option<IpAddr>,
    /// Addresses of its interfaces that another host may reach.
    pub interfaces: Vec<IpAddr>,
    /// The addresses it wants and no others, from its configuration; empty: the mesh gives them.
    pub addresses: Vec<IpNet>,
    /// What part in the consensus it asks for; `None`: as before.
    pub seat: Option<Seat>,
    /// Where its Raft listener answers, as configured.
    pub raft_address: Option<String>,
}

/// What a joiner asks for.
#[derive(Debug, Clone)]
pub struct Enrolment {
    pub token: Token,
    pub request: Request,
    pub facts: Facts,
}

/// What lets a joiner in.
#[derive(Debug, Clone)]
pub struct Enrolled {
    pub certificate_pem: String,
    pub ca_pem: String,
    pub mesh: Update,
}

/// Why another node did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RemoteError {
    /// The answer is no, with the reason for people.
    #[error("{0}")]
    Refused(String),
    /// This node is not known there any more, or its certificate is refused.
    #[error("{0}")]
    Dismissed(String),
    #[error("failed to reach {address}: {reason}")]
    Unreachable { address: String, reason: String },
}

/// Where a member answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub id: NodeId,
    pub address: std::net::SocketAddr,
}

/// The other members. An object, because the composition root gives the one that speaks gRPC.
pub trait Remote: Send + Sync + std::fmt::Debug + 'static {
    /// Asks the member at `address`, known by the authority in the token only, to be let in.
    fn enrol(&self, address: String, enrolment: Enrolment) -> BoxFuture<'static, Result<Enrolled, RemoteError>>;
    /// Follows the mesh as `place` has it, until that ends. `own` is told first.
    fn follow(
        &self,
        place: Place,
        own: Facts,
    ) -> BoxFuture<'static, Result<BoxStream<'static, Result<Update, RemoteError>>, RemoteError>>;
    /// Has this node removed.
    fn leave(&self, place: Place, id: NodeId) -> BoxFuture<'static, Result<(), RemoteError>>;
    /// Tells the mesh which part in the consensus this node, now with the store `raft_id`, asks for. Without a number it only
    /// asks whether it would be let in.
    fn take_seat(&self, place: Place, own: Facts, raft_id: Option<u64>) -> BoxFuture<'static, Result<(), RemoteError>>;
    /// Says whom this node cannot reach, and why.
    fn say_blocked(
        &self,
        place: Place,
        blocked: BTreeMap<NodeId, String>,
    ) -> BoxFuture<'static, Result<(), RemoteError>>;
    /// The key of the authority in PEM, for a node with a vote.
    fn authority(&self, place: Place) -> BoxFuture<'static, Result<Secret<String>, RemoteError>>;
    /// Another certificate for the key of `request`.
    fn renew(&self, place: Place, request: Request) -> BoxFuture<'static, Result<String, RemoteError>>;
}
