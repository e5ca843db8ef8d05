//! The thread that writes: takes what is queued, writes it as one batch, syncs once, tells everybody.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use openraft::storage::IOFlushed;
use tokio::sync::{mpsc, oneshot};

use super::segments::Segments;
use super::{Memory, batch, head};
use crate::store::disk::Syncs;
use crate::store::raft::Config;

/// A batch is closed when it is this large; what is left is the next one's.
const BATCH_BYTES: usize = 2 * 1024 * 1024;

/// What the log asks the thread for.
pub(super) enum Request {
    /// Entries up to index `last`.
    Append { records: Vec<u8>, last: u64, done: IOFlushed<Config> },
    /// Anything else that must be durable.
    Sync { records: Vec<u8>, done: oneshot::Sender<io::Result<()>> },
    /// Entries up to index `to` may go.
    Purge { record: Vec<u8>, to: u64 },
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Append { .. } => "Append",
            Self::Sync { .. } => "Sync",
            Self::Purge { .. } => "Purge",
        })
    }
}

/// Starts the thread. It ends, and lets go of `lock`, when the last [`super::Log`] is dropped and the queue is empty.
pub(super) fn start(mut writer: Writer, mut requests: mpsc::Receiver<Request>, lock: Arc<File>) -> io::Result<()> {
    let work = move || {
        let _lock = lock;
        while let Some(first) = requests.blocking_recv() {
            writer.serve(first, &mut requests);
        }
    };
    thread::Builder::new().name("raft-log".to_owned()).spawn(work).map(drop)
}

pub(super) struct Writer {
    segments: Segments,
    /// Of the next batch.
    sequence: u64,
    memory: Arc<Mutex<Memory>>,
    batch: Vec<u8>,
    syncs: Syncs,
    /// After a failure the content of the files is unknown, so nothing is acknowledged any more.
    failed: Option<(io::ErrorKind, String)>,
}

enum Waiting {
    Raft(IOFlushed<Config>),
    Caller(oneshot::Sender<io::Result<()>>),
}

impl Writer {
    /// Goes on with batch `sequence` at the end of `segments`.
    pub(super) fn new(segments: Segments, sequence: u64, memory: Arc<Mutex<Memory>>, syncs: Syncs) -> Self {
        Self { segments, sequence, memory, batch: Vec::new(), syncs, failed: None }
    }

    fn serve(&mut self, first: Request, requests: &mut mpsc::Receiver<Request>) {
        batch::begin(&mut self.batch);
        let mut waiting = Vec::new();
        let (mut highest, mut purge) = (0, None);
        let mut next = Some(first);
        while let Some(request) = next {
            match request {
                Request::Append { records, last, done } => {
                    self.batch.extend_from_slice(&records);
                    highest = highest.max(last);
                    waiting.push(Waiting::Raft(done));
                }
                Request::Sync { records, done } => {
                    self.batch.extend_from_slice(&records);
                    waiting.push(Waiting::Caller(done));
                }
                Request::Purge { record, to } => {
                    self.batch.extend_from_slice(&record);
                    purge = Some(to);
                }
            }
            next = if self.batch.len() < BATCH_BYTES { requests.try_recv().ok() } else { None };
        }
        let result = self.write(highest).and_then(|()| purge.map_or(Ok(()), |to| self.segments.purge(to)));
        if let Err(error) = &result {
            tracing::error!(%error, "the Raft log cannot be written; this node takes no part until it is opened again");
            self.failed.get_or_insert((error.kind(), error.to_string()));
        }
        for waiting in waiting {
            let result = result.as_ref().copied().map_err(|error| io::Error::new(error.kind(), error.to_string()));
            match waiting {
                Waiting::Raft(done) => done.io_completed(result),
                // A caller that is gone does not need to know.
                Waiting::Caller(done) => done.send(result).unwrap_or_default(),
            }
        }
    }

    fn write(&mut self, highest: u64) -> io::Result<()> {
        if let Some((kind, text)) = &self.failed {
            return Err(io::Error::new(*kind, text.clone()));
        }
        if !self.segments.has_room(self.batch.len()) {
            self.segments.roll()?;
        }
        if self.segments.is_fresh() {
            self.write_head()?;
        }
        batch::seal(&mut self.batch, self.sequence);
        let began = Instant::now();
        self.segments.append(&self.batch, highest)?;
        self.syncs.note(began.elapsed());
        self.sequence += 1;
        Ok(())
    }

    /// The first batch of a segment says what the ones before it came to.
    fn write_head(&mut self) -> io::Result<()> {
        let records = head(&self.memory.lock().unwrap_or_else(PoisonError::into_inner));
        let mut bytes = Vec::new();
        batch::begin(&mut bytes);
        bytes.extend(records);
        batch::seal(&mut bytes, self.sequence);
        self.segments.append(&bytes, 0)?;
        self.sequence += 1;
        Ok(())
    }
}
