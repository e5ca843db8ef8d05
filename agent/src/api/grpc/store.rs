//! The gRPC service `weft.store.v1.Store`.

use std::pin::Pin;
use std::time::Instant;

use futures_util::stream::{self, Stream, StreamExt as _};
use tokio::io::AsyncReadExt as _;
use tonic::{Request, Response, Status as Refusal};
use weft_proto::v1;
use weft_proto::weft::store::v1 as proto;
use weft_proto::weft::store::v1::store_server::{Store, StoreServer};

use crate::api::error::{ApiError, ErrorCode};
use crate::foundation::id::{InvalidName, NodeId};
use crate::foundation::lifecycle::Stop;
use crate::store::{Consistency, Handle, Outcome, StoreError, contract};

/// The largest request: an entry of the log and what is around it.
const MAX_REQUEST_BYTES: usize = 2 * 1024 * 1024;
/// Bytes of one piece of a backup.
const PIECE_BYTES: usize = 256 * 1024;
/// Tables of one watch.
const MAX_TABLES: usize = 64;

type Streaming<T> = Pin<Box<dyn Stream<Item = Result<T, Refusal>> + Send>>;

/// The service. Its streams end when `stop` is requested; whoever reaches it may do everything.
pub fn service(store: Handle, directory: std::path::PathBuf, stop: Stop) -> StoreServer<Service> {
    StoreServer::new(Service { store, directory, stop }).max_decoding_message_size(MAX_REQUEST_BYTES)
}

/// The service's state.
#[derive(Debug)]
pub struct Service {
    store: Handle,
    /// Where a backup lies while it is sent.
    directory: std::path::PathBuf,
    stop: Stop,
}

impl Service {
    fn until_stop<T: Send + 'static>(
        &self,
        items: impl Stream<Item = Result<T, Refusal>> + Send + 'static,
    ) -> Streaming<T> {
        let mut stop = self.stop.clone();
        let stopped = Box::pin(async move { stop.requested().await });
        Box::pin(items.take_until(stopped))
    }
}

#[tonic::async_trait]
impl Store for Service {
    async fn apply(&self, request: Request<v1::RaftLogEntry>) -> Result<Response<v1::RaftApplyResponse>, Refusal> {
        self.store.apply(request.into_inner()).await.map(Response::new).map_err(refusal)
    }

    async fn execute(
        &self,
        request: Request<proto::ExecuteRequest>,
    ) -> Result<Response<proto::ExecuteResponse>, Refusal> {
        let began = Instant::now();
        let mut statements = Vec::new();
        for step in request.into_inner().steps {
            let entry = step.entry.ok_or_else(|| invalid("a step has no entry".to_owned()))?;
            let mut statement = contract::statement(entry).map_err(refusal)?;
            for table in &step.own_tables {
                statement = statement.touching(table);
            }
            if let Some(rows) = step.expecting {
                statement = statement.expecting(rows);
            }
            statements.push(statement);
        }
        let outcomes = self.store.transaction(statements).await.map_err(refusal)?;
        let index = outcomes.first().map_or(0, |outcome| match outcome {
            Outcome::Executed(executed) => executed.index,
            Outcome::Rows(rows) => rows.index,
        });
        let results = outcomes.into_iter().map(|outcome| contract::response(outcome, began.elapsed())).collect();
        Ok(Response::new(proto::ExecuteResponse { results, index }))
    }

    async fn query(&self, request: Request<proto::QueryRequest>) -> Result<Response<v1::SqlQueryResult>, Refusal> {
        let began = Instant::now();
        let proto::QueryRequest { query, local } = request.into_inner();
        let entry = v1::RaftLogEntry {
            r#type: v1::RaftCommandType::Query.into(),
            sql_query: query,
            ..v1::RaftLogEntry::default()
        };
        let statement = contract::statement(entry).map_err(refusal)?;
        let consistency = if local { Consistency::Local } else { Consistency::Linearizable };
        let rows = self.store.query(statement, consistency).await.map_err(refusal)?;
        Ok(Response::new(contract::query_result(rows, contract::spell(began.elapsed()))))
    }

    type WatchStream = Streaming<proto::Change>;

    async fn watch(&self, request: Request<proto::WatchRequest>) -> Result<Response<Self::WatchStream>, Refusal> {
        let tables = request.into_inner().tables;
        if tables.is_empty() || tables.len() > MAX_TABLES {
            return Err(invalid(format!("watch names 1 to {MAX_TABLES} tables; this one names {}", tables.len())));
        }
        let names: Vec<&str> = tables.iter().map(String::as_str).collect();
        let changes = self.store.watch(&names);
        let first = stream::iter([Ok(proto::Change { index: self.store.figures().applied })]);
        let later = stream::unfold(changes, |mut changes| async move {
            let index = changes.changed().await?;
            Some((Ok(proto::Change { index }), changes))
        });
        Ok(Response::new(self.until_stop(first.chain(later))))
    }

    type BackupStream = Streaming<proto::Piece>;

    async fn backup(&self, _: Request<proto::BackupRequest>) -> Result<Response<Self::BackupStream>, Refusal> {
        let failed = |error: std::io::Error| {
            Refusal::from(ApiError::new(ErrorCode::Failed, format!("failed to keep the backup: {error}")))
        };
        let path = self.directory.join(format!("backup-{}.part", uniquely()));
        let passing = Passing(path.clone());
        self.store.backup(path.clone()).await.map_err(refusal)?;
        let file = tokio::fs::File::open(&path).await.map_err(failed)?;
        // The file has no name any more; it goes when it is sent or the caller is gone.
        drop(passing);
        let pieces = stream::unfold(Some(file), move |file| async move {
            let mut file = file?;
            let mut data = vec![0; PIECE_BYTES];
            match file.read(&mut data).await {
                Ok(0) => None,
                Ok(length) => {
                    data.truncate(length);
                    Some((Ok(proto::Piece { data }), Some(file)))
                }
                Err(error) => Some((Err(failed(error)), None)),
            }
        });
        Ok(Response::new(self.until_stop(pieces)))
    }

    async fn change_members(
        &self,
        request: Request<proto::ChangeMembersRequest>,
    ) -> Result<Response<proto::ChangeMembersResponse>, Refusal> {
        use proto::change_members_request::Change;
        let proto::ChangeMembersRequest { node, change } = request.into_inner();
        let node: NodeId = node.parse().map_err(|error: InvalidName| invalid(error.to_string()))?;
        let change = change.ok_or_else(|| invalid("the request names no change".to_owned()))?;
        let changed = match change {
            Change::Add(proto::NewMember { number, address }) => {
                let member = crate::store::Member { raft_id: number, node, address, voter: false };
                self.store.add_learner(member).await
            }
            Change::Promote(_) => self.store.promote(&node).await,
            Change::Demote(_) => self.store.demote(&node).await,
            Change::Remove(_) => self.store.remove(&node).await,
            Change::Lead(_) => self.store.transfer_leader(Some(&node)).await,
        };
        changed.map_err(refusal)?;
        Ok(Response::new(proto::ChangeMembersResponse {}))
    }

    async fn get_status(&self, _: Request<proto::StatusRequest>) -> Result<Response<proto::Status>, Refusal> {
        let status = self.store.status().borrow().clone();
        let figures = self.store.figures();
        let member = |member: &crate::store::Member| proto::Member {
            number: member.raft_id,
            node: member.node.to_string(),
            address: member.address.clone(),
            voter: member.voter,
        };
        Ok(Response::new(proto::Status {
            role: status.role.to_string(),
            leader: status.leader.as_ref().map(ToString::to_string),
            term: figures.term,
            last_log: figures.last_log,
            applied: figures.applied,
            snapshot: figures.snapshot,
            purged: figures.purged,
            log_bytes: figures.log_bytes,
            database_bytes: figures.database_bytes,
            members: status.members.iter().map(member).collect(),
            ready: status.ready,
            errors: status.errors.iter().cloned().chain(self.store.disk_problem()).collect(),
            behind: figures.behind,
            sync_median_micros: micros(figures.sync_median),
            sync_worst_micros: micros(figures.sync_worst),
            disk_free_bytes: figures.disk_free_bytes,
            disk_needed_bytes: figures.disk_needed_bytes,
            member: self.store.raft_id().unwrap_or_default(),
        }))
    }
}

fn micros(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// A file that goes with this value.
struct Passing(std::path::PathBuf);

impl Drop for Passing {
    fn drop(&mut self) {
        // It may not have been made.
        std::fs::remove_file(&self.0).unwrap_or_default();
    }
}

fn uniquely() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn invalid(text: String) -> Refusal {
    ApiError::new(ErrorCode::InvalidArgument, text).into()
}

/// How a failure of the store leaves the agent.
fn refusal(error: StoreError) -> Refusal {
    let code = match &error {
        StoreError::Refused(crate::store::Refusal::Constraint(_) | crate::store::Refusal::Expectation { .. }) => {
            ErrorCode::Conflict
        }
        StoreError::Refused(crate::store::Refusal::OwnTable(_)) => ErrorCode::Forbidden,
        StoreError::Refused(crate::store::Refusal::Statement(_)) | StoreError::Invalid(_) => ErrorCode::InvalidArgument,
        StoreError::TooLarge { .. } | StoreError::ResultTooLarge { .. } => ErrorCode::TooLarge,
        StoreError::NoLeader(_) | StoreError::NotRunning(_) | StoreError::DiskFull(_) => ErrorCode::NotReady,
        StoreError::Timeout { .. } => ErrorCode::Timeout,
        StoreError::Busy => ErrorCode::Busy,
        StoreError::Membership(_) => ErrorCode::Conflict,
        StoreError::Unknown | StoreError::Failed(_) => ErrorCode::Failed,
    };
    ApiError::new(code, error.to_string()).into()
}
