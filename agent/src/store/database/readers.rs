//! Threads that read: each with a connection of its own, so that a long query delays neither the log nor the runtime.
//!
//! SQLite's write-ahead log gives every reader one consistent state, with the position it belongs to.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tokio::sync::{mpsc, oneshot};

use super::run::{Failure, Runner};
use super::{read_position, reader};
use crate::store::error::{OpenError, StoreError};
use crate::store::statement::{Outcome, Rows, Statement};

/// Threads: as many as this machine's smallest host has processors.
const THREADS: usize = 2;
/// Queries that wait for one thread; more are told to try again.
const QUEUE: usize = 1024;

/// A query, the log index that its answer must hold at least, and where the answer goes.
type Job = (Statement, u64, oneshot::Sender<Result<Rows, StoreError>>);

/// The threads; cheap to clone.
#[derive(Debug, Clone)]
pub(in crate::store) struct Readers {
    queues: Arc<[mpsc::Sender<Job>]>,
    next: Arc<AtomicUsize>,
}

impl Readers {
    /// Starts them on the database at `path`, which exists. They hold `lock` as long as it is open.
    ///
    /// # Errors
    /// [`OpenError`].
    pub(in crate::store) fn start(path: &Path, lock: &Arc<File>) -> Result<Self, OpenError> {
        let mut queues = Vec::with_capacity(THREADS);
        for _ in 0..THREADS {
            let failed = |source| OpenError::Database { path: path.to_owned(), source };
            let runner = reader(path).and_then(Runner::reading).map_err(failed)?;
            let (queue, jobs) = mpsc::channel(QUEUE);
            start(runner, jobs, Arc::clone(lock)).map_err(|source| OpenError::File {
                action: "start a thread that reads",
                path: path.to_owned(),
                source,
            })?;
            queues.push(queue);
        }
        Ok(Self { queues: queues.into(), next: Arc::default() })
    }

    /// The rows of `statement` in what is applied here, which is the log up to `least` or more.
    ///
    /// # Errors
    /// [`StoreError`]; a state that is older than `least` is an error, never an answer.
    pub(in crate::store) async fn query(&self, statement: Statement, least: u64) -> Result<Rows, StoreError> {
        let (done, answer) = oneshot::channel();
        let place = self.next.fetch_add(1, Ordering::Relaxed) % self.queues.len();
        let stopped = || StoreError::NotRunning("the threads that read are gone".to_owned());
        self.queues[place].try_send((statement, least, done)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => StoreError::Busy,
            mpsc::error::TrySendError::Closed(_) => stopped(),
        })?;
        answer.await.map_err(|_gone| stopped())?
    }
}

fn start(mut runner: Runner, mut jobs: mpsc::Receiver<Job>, lock: Arc<File>) -> io::Result<()> {
    let work = move || {
        while let Some((statement, least, done)) = jobs.blocking_recv() {
            if !done.is_closed() {
                // Whoever asked may be gone by now.
                done.send(answer(&mut runner, &statement, least)).unwrap_or_default();
            }
        }
        // In this order, as the thread that writes does it.
        drop(runner);
        drop(lock);
    };
    thread::Builder::new().name("store-read".to_owned()).spawn(work).map(drop)
}

fn answer(runner: &mut Runner, statement: &Statement, least: u64) -> Result<Rows, StoreError> {
    let failed = |error: rusqlite::Error| StoreError::Failed(format!("failed to read the database: {error}"));
    runner.inside(|connection| connection.prepare_cached("BEGIN")?.execute([])).map_err(failed)?;
    let position = runner.inside(read_position);
    let result = runner.run(statement, 1);
    // A transaction that only read has nothing to lose.
    runner.inside(|connection| connection.prepare_cached("COMMIT")?.execute([])).map_err(failed)?;
    let index = position.map_err(failed)?.applied.map_or(0, |id| id.index);
    if index < least {
        let text = format!("the database shows its state at {index} although {least} is carried out; run weft doctor");
        return Err(StoreError::Failed(text));
    }
    match result {
        Ok(Outcome::Rows(rows)) => Ok(Rows { index, ..rows }),
        Ok(Outcome::Executed(_)) => Err(StoreError::Failed("a query gave no rows".to_owned())),
        Err(Failure::Refused(refusal)) => Err(StoreError::Refused(refusal)),
        Err(Failure::Broken(error)) => Err(failed(error)),
    }
}
