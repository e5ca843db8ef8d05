//! What members say to each other: Raft's messages, snapshots in pieces, and what a follower has its leader do.
//!
//! In: connections of other members, proven by [`transport::Secure`]. Out: one connection to each member for Raft and forwarded
//! calls, one for snapshots, made when first needed and again when lost.
//!
//! Invariants: nothing is read from a peer before its certificate proved which node it is; a member that was removed is served
//! nothing, by its number, for ever; a forwarded call is carried out only for a member of the present membership and is never
//! forwarded again; frames, connections, and calls under way are bounded.

mod frame;
mod link;
mod server;
pub mod transport;
mod wire;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use openraft::alias::{SnapshotOf, VoteOf};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::{AnyError, RPCTypes};
use tokio::io::AsyncReadExt as _;

use super::raft::{Config, Peer};
use super::snapshot::SnapshotFile;
pub(super) use frame::Kind;
pub(super) use link::{CallError, Link};
pub(super) use server::{Serving, bind, serve};
use transport::Secure;
pub(super) use wire::{Change, Changed, Proposed};

/// Bytes of entries in one message; the rest follows in the next.
const APPEND_BYTES: usize = 4 * 1024 * 1024;
/// Bytes of one piece of a snapshot.
const PIECE_BYTES: usize = 512 * 1024;
/// How long one piece may take.
const PIECE_PATIENCE: Duration = Duration::from_secs(10);
/// How long installing a snapshot may take.
const INSTALL_PATIENCE: Duration = Duration::from_secs(120);

/// The ways to all members; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Links {
    myself: u64,
    secure: Option<Arc<dyn Secure>>,
    links: Arc<Mutex<HashMap<Way, Link>>>,
}

/// To which member, for what, at which address.
type Way = (u64, Use, String);

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Use {
    Calls,
    Snapshots,
}

impl Links {
    /// Ways from member `myself`. Without `secure` there are none.
    pub(super) fn new(myself: u64, secure: Option<Arc<dyn Secure>>) -> Self {
        Self { myself, secure, links: Arc::default() }
    }

    /// The way to `member` for calls.
    pub(super) fn to(&self, member: u64, peer: &Peer) -> Option<Link> {
        self.link(member, peer, Use::Calls)
    }

    fn link(&self, member: u64, peer: &Peer, what: Use) -> Option<Link> {
        let secure = self.secure.as_ref()?;
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (member, what, peer.address.clone());
        let link =
            links.entry(key).or_insert_with(|| Link::start(self.myself, member, peer.clone(), Arc::clone(secure)));
        Some(link.clone())
    }

    /// Lets go of the ways to members that are not in `members`.
    pub(super) fn keep(&self, members: impl Fn(u64) -> bool) {
        self.links.lock().unwrap_or_else(PoisonError::into_inner).retain(|(member, _, _), _| members(*member));
    }
}

/// The way to one member, as openraft uses it.
#[derive(Debug)]
pub(super) struct Client {
    target: u64,
    peer: Peer,
    links: Links,
}

impl RaftNetworkFactory<Config> for Links {
    type Network = Client;

    async fn new_client(&mut self, target: u64, peer: &Peer) -> Client {
        Client { target, peer: peer.clone(), links: self.clone() }
    }
}

impl Client {
    async fn call(
        &self,
        action: RPCTypes,
        kind: Kind,
        body: Vec<u8>,
        patience: Duration,
    ) -> Result<Bytes, RPCError<Config>> {
        let Some(link) = self.links.to(self.target, &self.peer) else {
            let text = format!("{}: this node has no Raft listener", self.peer);
            return Err(Unreachable::from_string(text).into());
        };
        link.call(kind, body, patience).await.map_err(|error| match error {
            CallError::NotSent(_) => Unreachable::new(&AnyError::error(error)).into(),
            CallError::Lost(_) | CallError::Refused(_) => NetworkError::new(&AnyError::error(error)).into(),
            CallError::Late => {
                let (id, target) = (self.links.myself, self.target);
                Timeout { action, id, target, timeout: patience }.into()
            }
        })
    }

    async fn ask<Q: serde::Serialize, A: serde::de::DeserializeOwned>(
        &self,
        action: RPCTypes,
        kind: Kind,
        question: &Q,
        patience: Duration,
    ) -> Result<A, RPCError<Config>> {
        let body = serde_json::to_vec(question).map_err(|error| network(&error))?;
        let answer = self.call(action, kind, body, patience).await?;
        serde_json::from_slice(&answer).map_err(|error| network(&error))
    }
}

fn network(error: &(impl std::error::Error + 'static)) -> RPCError<Config> {
    NetworkError::new(error).into()
}

impl RaftNetworkV2<Config> for Client {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        mut request: AppendEntriesRequest<Config>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Config>, RPCError<Config>> {
        let whole = request.entries.len();
        let body = wire::append(&mut request, APPEND_BYTES);
        let answer = self.call(RPCTypes::AppendEntries, Kind::Append, body, option.soft_ttl()).await?;
        let answer = wire::append_answer(answer).map_err(|error| network(&error))?;
        let sent = request.entries.last().map(|entry| entry.log_id);
        if answer.is_success() && request.entries.len() < whole {
            return Ok(AppendEntriesResponse::PartialSuccess(sent));
        }
        Ok(answer)
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Config>,
        option: RPCOption,
    ) -> Result<VoteResponse<Config>, RPCError<Config>> {
        self.ask(RPCTypes::Vote, Kind::Vote, &request, option.soft_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Config>,
        option: RPCOption,
    ) -> Result<VoteResponse<Config>, RPCError<Config>> {
        self.ask(RPCTypes::Vote, Kind::PreVote, &request, option.soft_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<Config>,
        snapshot: SnapshotOf<Config, SnapshotFile>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Config>, StreamingError<Config>> {
        let Some(link) = self.links.link(self.target, &self.peer, Use::Snapshots) else {
            let text = format!("{}: this node has no Raft listener", self.peer);
            return Err(StreamingError::Unreachable(Unreachable::from_string(text)));
        };
        tokio::select! {
            sent = send_snapshot(&link, vote, snapshot) => sent,
            closed = cancel => Err(StreamingError::Closed(closed)),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Config>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Config>, RPCError<Config>> {
        self.ask(RPCTypes::TransferLeader, Kind::Transfer, &request, option.soft_ttl()).await
    }
}

/// Sends a snapshot from where the other side already has it, has it installed, and returns the answer.
async fn send_snapshot(
    link: &Link,
    vote: VoteOf<Config>,
    snapshot: SnapshotOf<Config, SnapshotFile>,
) -> Result<SnapshotResponse<Config>, StreamingError<Config>> {
    let lost = |error: &(dyn std::error::Error + 'static)| {
        StreamingError::Network(NetworkError::from_string(crate::foundation::error::chain(error)))
    };
    let path = snapshot.snapshot.0;
    let length = std::fs::metadata(&path).map_err(|error| lost(&error))?.len();
    let offer = wire::Offer { vote, meta: snapshot.meta, length };
    let body = serde_json::to_vec(&offer).map_err(|error| lost(&error))?;
    let answer = link.call(Kind::SnapshotOffer, body.clone(), PIECE_PATIENCE).await.map_err(|error| lost(&error))?;
    let mut at = wire::number(answer).map_err(|error| lost(&error))?.min(length);
    let mut file = open_at(&path, at).await.map_err(|error| lost(&error))?;
    while at < length {
        let piece = read_piece(&mut file, at).await.map_err(|error| lost(&error))?;
        let read = u64::try_from(piece.len() - wire::PIECE_HEADER_BYTES).unwrap_or_default();
        if read == 0 {
            return Err(StreamingError::Network(NetworkError::from_string(
                "the snapshot became shorter while it was sent",
            )));
        }
        link.call(Kind::SnapshotPiece, piece, PIECE_PATIENCE).await.map_err(|error| lost(&error))?;
        at += read;
    }
    let answer = link.call(Kind::SnapshotInstall, body, INSTALL_PATIENCE).await.map_err(|error| lost(&error))?;
    serde_json::from_slice(&answer).map_err(|error| lost(&error))
}

async fn open_at(path: &Path, at: u64) -> std::io::Result<tokio::fs::File> {
    use tokio::io::AsyncSeekExt as _;
    let mut file = tokio::fs::File::open(path).await?;
    file.seek(std::io::SeekFrom::Start(at)).await?;
    Ok(file)
}

async fn read_piece(file: &mut tokio::fs::File, at: u64) -> std::io::Result<Vec<u8>> {
    let mut piece = at.to_le_bytes().to_vec();
    let limit = u64::try_from(PIECE_BYTES).unwrap_or(u64::MAX);
    file.take(limit).read_to_end(&mut piece).await?;
    Ok(piece)
}
