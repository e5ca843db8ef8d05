//! The Raft log: our own append-only segments, and openraft's view of them.
//!
//! Everything that must survive (entries, votes, truncations, purges) is a record in one journal. [`writer`] is the only one
//! that touches the files: a thread that takes whatever is queued, writes it as one batch with a checksum, calls `fdatasync`
//! once, and only then says that it is durable. [`recovery`] reads the journal back at a start. The entries that are not purged
//! also stay in memory, bounded by how often the store takes snapshots, so that nothing reads the files while the node runs.
//!
//! Invariants: nothing is acknowledged before it is synced; after a failed write or sync nothing is acknowledged ever again,
//! until the files are read anew; a torn last batch is cut off; damage anywhere else is an error, never skipped.

mod batch;
mod recovery;
mod segments;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::VecDeque;
use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use tokio::sync::{mpsc, oneshot};

use super::disk::Syncs;
use super::error::OpenError;
use super::raft::{Config, Entry, Id, Vote};
use batch::Record;
use writer::{Request, Writer};

/// What waits for the disk. Raft itself waits for what it sends, so the queue is never deep.
const QUEUE: usize = 1024;

/// The log of this node; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Log {
    shared: Arc<Mutex<Memory>>,
    writer: mpsc::Sender<Request>,
}

/// The journal's content.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Without gaps; the first one follows `purged`.
    pub(super) entries: VecDeque<Entry>,
    pub(super) purged: Option<Id>,
    pub(super) vote: Option<Vote>,
    /// Bytes of the entries' content.
    pub(super) bytes: usize,
}

impl Memory {
    fn first(&self) -> u64 {
        self.purged.map_or(0, |id| id.index + 1)
    }

    pub(super) fn last(&self) -> Option<Id> {
        self.entries.back().map(|entry| entry.log_id).or(self.purged)
    }

    fn push(&mut self, entry: Entry) {
        self.bytes += content_bytes(&entry);
        self.entries.push_back(entry);
    }

    fn truncate_after(&mut self, last: Option<Id>) {
        let keep = last.map_or(0, |id| id.index + 1);
        while let Some(entry) = self.entries.pop_back_if(|entry| entry.log_id.index >= keep) {
            self.bytes -= content_bytes(&entry);
        }
    }

    fn purge(&mut self, to: Id) {
        while let Some(entry) = self.entries.pop_front_if(|entry| entry.log_id.index <= to.index) {
            self.bytes -= content_bytes(&entry);
        }
        self.purged = self.purged.max(Some(to));
    }
}

fn content_bytes(entry: &Entry) -> usize {
    match &entry.payload {
        openraft::EntryPayload::Normal(payload) => payload.0.len() + 64,
        openraft::EntryPayload::Blank | openraft::EntryPayload::Membership(_) => 64,
    }
}

impl Log {
    /// Opens the log in `directory`, which exists, and starts its thread, which holds `lock` and notes in `syncs` how long
    /// the disk takes.
    ///
    /// # Errors
    /// [`OpenError::Damaged`] and failures of files.
    pub(super) fn open(directory: &Path, lock: Arc<File>, syncs: Syncs) -> Result<Self, OpenError> {
        let recovered = recovery::recover(directory)?;
        let (sender, requests) = mpsc::channel(QUEUE);
        let shared = Arc::new(Mutex::new(recovered.memory));
        let writer = Writer::new(recovered.segments, recovered.next_batch, Arc::clone(&shared), syncs);
        writer::start(writer, requests, lock).map_err(|source| OpenError::File {
            action: "start the thread that writes",
            path: directory.to_owned(),
            source,
        })?;
        Ok(Self { shared, writer: sender })
    }

    /// Bytes of the entries that are not purged.
    pub(super) fn bytes(&self) -> usize {
        self.memory().bytes
    }

    /// The last purged entry.
    pub(super) fn purged(&self) -> Option<Id> {
        self.memory().purged
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&self, request: Request) -> Result<(), io::Error> {
        self.writer.send(request).await.map_err(|_gone| io::Error::other("the log is closed"))
    }

    async fn durable(&self, record: Vec<u8>) -> Result<(), io::Error> {
        let (done, synced) = oneshot::channel();
        self.send(Request::Sync { records: record, done }).await?;
        synced.await.map_err(|_gone| io::Error::other("the log is closed"))?
    }
}

impl RaftLogReader<Config> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let memory = self.memory();
        let first = memory.first();
        let place = |index: u64| usize::try_from(index.saturating_sub(first)).unwrap_or(usize::MAX);
        let start = match range.start_bound() {
            Bound::Included(start) => place(*start),
            Bound::Excluded(start) => place(start.saturating_add(1)),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => place(end.saturating_add(1)),
            Bound::Excluded(end) => place(*end),
            Bound::Unbounded => usize::MAX,
        };
        let end = end.min(memory.entries.len());
        Ok(memory.entries.range(start.min(end)..end).cloned().collect())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.memory().vote)
    }
}

impl RaftLogStorage<Config> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Config>, io::Error> {
        let memory = self.memory();
        Ok(LogState { last_purged_log_id: memory.purged, last_log_id: memory.last() })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        // First, so that a segment that is begun meanwhile has it in its head.
        self.memory().vote = Some(*vote);
        self.durable(Record::Vote(vote).bytes()).await
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Config>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut records = Vec::new();
        let mut last = 0;
        {
            // Readable from here on; that it is durable says the callback.
            let mut memory = self.memory();
            for entry in entries {
                Record::Entry(&entry).put(&mut records);
                last = entry.log_id.index;
                memory.push(entry);
            }
        }
        self.send(Request::Append { records, last, done: callback }).await
    }

    async fn truncate_after(&mut self, last: Option<Id>) -> Result<(), io::Error> {
        self.memory().truncate_after(last);
        self.durable(Record::Truncate(last.as_ref()).bytes()).await
    }

    async fn purge(&mut self, to: Id) -> Result<(), io::Error> {
        self.memory().purge(to);
        // Nobody waits for the disk: a purge that is lost is done again.
        self.send(Request::Purge { record: Record::Purge(&to).bytes(), to: to.index }).await
    }
}

/// Reads one record into `memory`.
fn replay(memory: &mut Memory, record: batch::Parsed) -> Result<(), &'static str> {
    match record {
        batch::Parsed::Entry(entry) => {
            // The segments before may be gone, and with them the entries that a purge further on covers.
            if memory.entries.back().is_some_and(|last| last.log_id.index + 1 != entry.log_id.index) {
                return Err("an entry does not follow the one before it");
            }
            memory.push(entry);
        }
        batch::Parsed::Vote(vote) => memory.vote = Some(vote),
        batch::Parsed::Truncate(last) => memory.truncate_after(last),
        batch::Parsed::Purge(to) => memory.purge(to),
    }
    Ok(())
}

/// Whether the entries begin right after the purged ones.
fn is_whole(memory: &Memory) -> bool {
    memory.entries.front().is_none_or(|entry| entry.log_id.index == memory.first())
}

/// The records that a segment begins with, so that those before it can go: the vote and how far the log is purged.
fn head(memory: &Memory) -> Vec<u8> {
    let mut records = Vec::new();
    if let Some(vote) = &memory.vote {
        Record::Vote(vote).put(&mut records);
    }
    if let Some(purged) = &memory.purged {
        Record::Purge(purged).put(&mut records);
    }
    records
}
