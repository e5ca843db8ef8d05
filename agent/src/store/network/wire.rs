//! The bodies of the messages. Pure.
//!
//! What is sent with every write is written by hand; the rest is JSON.

use bytes::Bytes;
use openraft::alias::VoteOf;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse};
use serde::{Deserialize, Serialize};

use crate::foundation::id::NodeId;
use crate::store::error::{Refusal, StoreError};
use crate::store::raft::{Config, Malformed, Reader, SnapshotMeta, put_entry, put_id, put_vote};
use crate::store::statement::Outcome;

/// Bytes before the content of a piece: its place.
pub(super) const PIECE_HEADER_BYTES: usize = 8;

/// The first frame of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) from: u64,
    pub(super) to: u64,
}

/// A snapshot that is about to be sent, or was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Offer {
    pub(super) vote: VoteOf<Config>,
    pub(super) meta: SnapshotMeta,
    pub(super) length: u64,
}

/// What a leader answers to a forwarded write.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(in crate::store) enum Proposed {
    Done(Vec<Outcome>),
    Refused(Refusal),
    /// Nothing was proposed.
    NotLeader,
    Busy,
    /// Nothing was proposed.
    DiskFull(String),
    Unknown,
    Failed(String),
}

/// A change of the membership.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::store) enum Change {
    AddLearner {
        member: u64,
        node: NodeId,
        address: String,
    },
    Promote(NodeId),
    Demote(NodeId),
    Remove(NodeId),
    /// To this node, or to any.
    Transfer(Option<NodeId>),
    /// The caller's own address.
    Address {
        member: u64,
        address: String,
    },
}

/// What came of it; the text says what went wrong.
pub(in crate::store) type Changed = Result<(), String>;

impl Proposed {
    pub(in crate::store) fn of(result: Result<Vec<Outcome>, StoreError>) -> Self {
        match result {
            Ok(outcomes) => Self::Done(outcomes),
            Err(StoreError::Refused(refusal)) => Self::Refused(refusal),
            Err(StoreError::NoLeader(_)) => Self::NotLeader,
            Err(StoreError::Busy) => Self::Busy,
            Err(StoreError::DiskFull(text)) => Self::DiskFull(text),
            Err(StoreError::Unknown | StoreError::Timeout { .. }) => Self::Unknown,
            Err(
                error @ (StoreError::Invalid(_)
                | StoreError::TooLarge { .. }
                | StoreError::ResultTooLarge { .. }
                | StoreError::NotRunning(_)
                | StoreError::Membership(_)
                | StoreError::Failed(_)),
            ) => Self::Failed(error.to_string()),
        }
    }

    pub(in crate::store) fn result(self) -> Result<Vec<Outcome>, StoreError> {
        Err(match self {
            Self::Done(outcomes) => return Ok(outcomes),
            Self::Refused(refusal) => StoreError::Refused(refusal),
            Self::NotLeader => StoreError::NoLeader("the leader has just changed".to_owned()),
            Self::Busy => StoreError::Busy,
            Self::DiskFull(text) => StoreError::DiskFull(text),
            Self::Unknown => StoreError::Unknown,
            Self::Failed(text) => StoreError::Failed(text),
        })
    }
}

/// Writes `request`, cut to about `limit` bytes of entries, one at least.
pub(super) fn append(request: &mut AppendEntriesRequest<Config>, limit: usize) -> Vec<u8> {
    let mut body = Vec::with_capacity(128 + request.entries.len() * 256);
    put_vote(&mut body, &request.vote);
    put_id(&mut body, request.prev_log_id.as_ref());
    put_id(&mut body, request.leader_commit.as_ref());
    let count = body.len();
    body.extend([0; 4]);
    let mut written = 0;
    for entry in &request.entries {
        if written > 0 && body.len() > limit {
            break;
        }
        put_entry(&mut body, entry);
        written += 1;
    }
    request.entries.truncate(written);
    body[count..count + 4].copy_from_slice(&u32::try_from(written).unwrap_or(u32::MAX).to_le_bytes());
    body
}

pub(super) fn append_request(body: Bytes) -> Result<AppendEntriesRequest<Config>, Malformed> {
    let mut reader = Reader::new(body);
    let (vote, prev_log_id, leader_commit) = (reader.vote()?, reader.id()?, reader.id()?);
    let count = reader.u32("number of entries")?;
    let mut entries = Vec::new();
    for _ in 0..count {
        entries.push(reader.entry()?);
    }
    Ok(AppendEntriesRequest { vote, prev_log_id, entries, leader_commit })
}

pub(super) fn append_response(response: &AppendEntriesResponse<Config>) -> Vec<u8> {
    let mut body = Vec::new();
    match response {
        AppendEntriesResponse::Success => body.push(0),
        AppendEntriesResponse::PartialSuccess(id) => {
            body.push(1);
            put_id(&mut body, id.as_ref());
        }
        AppendEntriesResponse::Conflict => body.push(2),
        AppendEntriesResponse::HigherVote(vote) => {
            body.push(3);
            put_vote(&mut body, vote);
        }
    }
    body
}

pub(super) fn append_answer(body: Bytes) -> Result<AppendEntriesResponse<Config>, Malformed> {
    let mut reader = Reader::new(body);
    match reader.byte("answer")? {
        0 => Ok(AppendEntriesResponse::Success),
        1 => Ok(AppendEntriesResponse::PartialSuccess(reader.id()?)),
        2 => Ok(AppendEntriesResponse::Conflict),
        3 => Ok(AppendEntriesResponse::HigherVote(reader.vote()?)),
        _ => Err(Malformed("answer")),
    }
}

/// A number alone.
pub(super) fn number(body: Bytes) -> Result<u64, Malformed> {
    Reader::new(body).u64("number")
}

#[cfg(test)]
mod tests {
    use openraft::EntryPayload;

    use super::*;
    use crate::store::raft::{Entry, Payload, Vote, log_id};

    fn request(entries: u64, bytes: usize) -> AppendEntriesRequest<Config> {
        let entry = |index| Entry {
            log_id: log_id(2, 5, index),
            payload: EntryPayload::Normal(Payload(vec![7; bytes].into())),
        };
        AppendEntriesRequest {
            vote: Vote { leader_id: log_id(2, 5, 0).leader_id, committed: true },
            prev_log_id: Some(log_id(1, 5, 9)),
            entries: (10..10 + entries).map(entry).collect(),
            leader_commit: None,
        }
    }

    #[test]
    fn entries_arrive_as_they_were_sent() {
        let mut sent = request(3, 10);
        let read = append_request(append(&mut sent, 1000).into()).expect("well formed");
        assert_eq!((read.vote, read.prev_log_id, read.leader_commit), (sent.vote, sent.prev_log_id, None));
        assert_eq!(read.entries, sent.entries);
    }

    #[test]
    fn what_is_too_much_for_one_message_is_left_for_the_next() {
        let mut sent = request(10, 100);
        let body = append(&mut sent, 250);
        assert_eq!(sent.entries.len(), 2);
        assert_eq!(append_request(body.into()).expect("well formed").entries.len(), 2);
        let mut huge = request(2, 10_000);
        append(&mut huge, 10);
        assert_eq!(huge.entries.len(), 1, "one at least");
    }

    #[test]
    fn a_cut_message_is_refused() {
        let body = append(&mut request(2, 10), 1000);
        for length in 0..body.len() {
            assert!(append_request(Bytes::copy_from_slice(&body[..length])).is_err(), "cut at {length}");
        }
    }
}
