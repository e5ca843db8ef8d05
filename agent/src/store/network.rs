//! What members say to each other.

use openraft::alias::{SnapshotOf, VoteOf};
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse};

use super::raft::{Config, Peer};
use super::snapshot::SnapshotFile;

/// Connects to other members; a member without a listener has none.
#[derive(Debug, Clone)]
pub(super) struct Network;

/// The way to one member.
#[derive(Debug)]
pub(super) struct Client {
    peer: Peer,
}

impl RaftNetworkFactory<Config> for Network {
    type Network = Client;

    async fn new_client(&mut self, _target: u64, peer: &Peer) -> Client {
        Client { peer: peer.clone() }
    }
}

impl Client {
    fn unreachable(&self) -> Unreachable<Config> {
        Unreachable::from_string(format!("{}: this node has no Raft listener", self.peer))
    }
}

impl RaftNetworkV2<Config> for Client {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        _request: AppendEntriesRequest<Config>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<Config>, RPCError<Config>> {
        Err(self.unreachable().into())
    }

    async fn vote(
        &mut self,
        _request: VoteRequest<Config>,
        _option: RPCOption,
    ) -> Result<VoteResponse<Config>, RPCError<Config>> {
        Err(self.unreachable().into())
    }

    async fn full_snapshot(
        &mut self,
        _vote: VoteOf<Config>,
        _snapshot: SnapshotOf<Config, SnapshotFile>,
        _cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Config>, StreamingError<Config>> {
        Err(StreamingError::Unreachable(self.unreachable()))
    }
}
