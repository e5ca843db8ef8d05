//! The types openraft is instantiated with, and how they are written as bytes, on disk and on the wire alike.
//!
//! A member has a random 63-bit number, made with its store directory: a node that lost its disk and joins again under its
//! old name is another member, so that nobody votes twice.

use std::fmt;

use bytes::Bytes;
use openraft::alias::{EntryOf, LogIdOf, SnapshotMetaOf, StoredMembershipOf, VoteOf};
use openraft::{EntryPayload, LogId, Membership};
use serde::{Deserialize, Serialize};

use super::error::Refusal;
use super::statement::Outcome;
use crate::foundation::id::NodeId;

openraft::declare_raft_types!(
    /// Our instance of openraft.
    pub(super) Config:
        D = Payload,
        R = Applied,
        NodeId = u64,
        Node = Peer,
);

pub(super) type Entry = EntryOf<Config>;
pub(super) type Id = LogIdOf<Config>;
pub(super) type Vote = VoteOf<Config>;
pub(super) type StoredMembership = StoredMembershipOf<Config>;
pub(super) type SnapshotMeta = SnapshotMetaOf<Config>;
type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;

/// An encoded proposal; decoded only where it is applied.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "Vec<u8>", into = "Vec<u8>")]
pub(super) struct Payload(pub(super) Bytes);

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl From<Payload> for Vec<u8> {
    fn from(payload: Payload) -> Self {
        payload.0.to_vec()
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// What applying an entry gave; `None` for entries of the consensus itself.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Applied(pub(super) Option<Result<Vec<Outcome>, Refusal>>);

/// Who a member is and where its Raft listener answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Peer {
    pub(super) node: NodeId,
    /// `host:port`.
    pub(super) address: String,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.node, self.address)
    }
}

/// Bytes that are not what they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed {0}")]
pub(super) struct Malformed(pub(super) &'static str);

/// The id of the entry at `index` that `member` proposed as leader in `term`.
pub(super) fn log_id(term: u64, member: u64, index: u64) -> Id {
    LogId::new(LeaderId { term, node_id: member }, index)
}

/// Appends `id`: a flag, then term, member and index, little endian.
pub(super) fn put_id(out: &mut Vec<u8>, id: Option<&Id>) {
    match id {
        None => out.push(0),
        Some(id) => {
            out.push(1);
            out.extend(id.leader_id.term.to_le_bytes());
            out.extend(id.leader_id.node_id.to_le_bytes());
            out.extend(id.index.to_le_bytes());
        }
    }
}

/// Appends `vote`: term, member, whether committed.
pub(super) fn put_vote(out: &mut Vec<u8>, vote: &Vote) {
    out.extend(vote.leader_id.term.to_le_bytes());
    out.extend(vote.leader_id.node_id.to_le_bytes());
    out.push(u8::from(vote.committed));
}

/// Appends `entry`: its id, its kind, its length, its content.
pub(super) fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    put_id(out, Some(&entry.log_id));
    match &entry.payload {
        EntryPayload::Blank => {
            out.push(0);
            put_bytes(out, &[]);
        }
        EntryPayload::Normal(payload) => {
            out.push(1);
            put_bytes(out, &payload.0);
        }
        EntryPayload::Membership(membership) => {
            out.push(2);
            // Names, numbers and addresses: writing them as JSON cannot fail.
            put_bytes(out, &serde_json::to_vec(membership).unwrap_or_default());
        }
    }
}

pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// Reads what the functions above wrote, from the front.
#[derive(Debug, Clone)]
pub(super) struct Reader {
    pub(super) rest: Bytes,
}

impl Reader {
    pub(super) fn new(bytes: Bytes) -> Self {
        Self { rest: bytes }
    }

    pub(super) fn take(&mut self, length: usize, what: &'static str) -> Result<Bytes, Malformed> {
        if self.rest.len() < length { Err(Malformed(what)) } else { Ok(self.rest.split_to(length)) }
    }

    pub(super) fn byte(&mut self, what: &'static str) -> Result<u8, Malformed> {
        Ok(self.take(1, what)?[0])
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, Malformed> {
        let bytes = self.take(4, what)?;
        Ok(bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u32::from(*byte)))
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, Malformed> {
        let bytes = self.take(8, what)?;
        Ok(bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    }

    pub(super) fn bytes(&mut self, what: &'static str) -> Result<Bytes, Malformed> {
        let length = self.u32(what)?;
        self.take(usize::try_from(length).map_err(|_too_large| Malformed(what))?, what)
    }

    pub(super) fn id(&mut self) -> Result<Option<Id>, Malformed> {
        match self.byte("log id")? {
            0 => Ok(None),
            1 => {
                let (term, node_id) = (self.u64("term")?, self.u64("member")?);
                Ok(Some(LogId::new(LeaderId { term, node_id }, self.u64("index")?)))
            }
            _ => Err(Malformed("log id")),
        }
    }

    pub(super) fn vote(&mut self) -> Result<Vote, Malformed> {
        let (term, node_id) = (self.u64("term")?, self.u64("member")?);
        let committed = self.byte("vote")? != 0;
        Ok(Vote { leader_id: LeaderId { term, node_id }, committed })
    }

    pub(super) fn entry(&mut self) -> Result<Entry, Malformed> {
        let log_id = self.id()?.ok_or(Malformed("entry without a log id"))?;
        let kind = self.byte("kind of entry")?;
        let content = self.bytes("entry")?;
        let payload = match kind {
            0 => EntryPayload::Blank,
            1 => EntryPayload::Normal(Payload(content)),
            2 => {
                let membership: Membership<u64, Peer> =
                    serde_json::from_slice(&content).map_err(|_error| Malformed("membership"))?;
                EntryPayload::Membership(membership)
            }
            _ => return Err(Malformed("kind of entry")),
        };
        Ok(Entry { log_id, payload })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn there_and_back(payload: EntryPayload<Payload, u64, Peer>) {
        let entry = Entry { log_id: log_id(3, u64::MAX, 9), payload };
        let mut bytes = Vec::new();
        put_entry(&mut bytes, &entry);
        let mut reader = Reader::new(bytes.clone().into());
        assert_eq!(reader.entry(), Ok(entry));
        assert!(reader.rest.is_empty());
        for length in 0..bytes.len() {
            assert!(Reader::new(Bytes::copy_from_slice(&bytes[..length])).entry().is_err(), "cut at {length}");
        }
    }

    #[test]
    fn entries_survive_their_bytes_and_cut_ones_are_refused() {
        there_and_back(EntryPayload::Blank);
        there_and_back(EntryPayload::Normal(Payload(Bytes::from_static(b"\x01abc"))));
        let peer = Peer { node: "alpha".parse().expect("a name"), address: "[::1]:9443".to_owned() };
        let nodes = BTreeMap::from([(u64::MAX, peer)]);
        let membership = Membership::new(vec![BTreeSet::from([u64::MAX])], nodes).expect("a membership");
        there_and_back(EntryPayload::Membership(membership));
    }

    #[test]
    fn votes_survive_their_bytes() {
        let vote = Vote { leader_id: LeaderId { term: 7, node_id: 8 }, committed: true };
        let mut bytes = Vec::new();
        put_vote(&mut bytes, &vote);
        assert_eq!(Reader::new(bytes.into()).vote(), Ok(vote));
    }
}
