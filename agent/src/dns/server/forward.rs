//! The queue between the UDP threads and the upstreams.
//!
//! In: [`Job`]s. Out: their replies, sent straight to the clients. A full queue is said so, never waited for.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::mpsc;

use super::super::answer::Transport;
use super::super::handler::Handler;
use crate::foundation::task::{self, Task};
use crate::sys::datagram::{Origin, Socket};

/// About a second of what a busy host asks; older questions have been asked again by their clients.
const WAITING: usize = 512;
/// Answered side by side. More than the upstreams take at a time, because cached answers need none.
const SERVED: usize = 384;

/// A query that the zone cannot answer.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) query: Vec<u8>,
    pub(super) origin: Origin,
    pub(super) socket: Arc<Socket>,
}

/// Takes jobs from any thread. The last clone that drops stops the task.
#[derive(Debug, Clone)]
pub(super) struct Queue {
    jobs: mpsc::Sender<Job>,
    _task: Arc<Task>,
}

impl Queue {
    pub(super) fn start(handler: Handler) -> Self {
        let (jobs, waiting) = mpsc::channel(WAITING);
        Self { jobs, _task: Arc::new(task::spawn("dns-forward", run(waiting, handler))) }
    }

    /// Whether there was room.
    pub(super) fn push(&self, job: Job) -> bool {
        self.jobs.try_send(job).is_ok()
    }
}

async fn run(mut waiting: mpsc::Receiver<Job>, handler: Handler) {
    let mut served = FuturesUnordered::new();
    loop {
        tokio::select! {
            job = waiting.recv(), if served.len() < SERVED => match job {
                Some(job) => served.push(AssertUnwindSafe(serve(job, &handler)).catch_unwind()),
                None => return,
            },
            Some(result) = served.next() => if result.is_err() {
                // One request failed; the panic hook has written where.
                tracing::error!("a forwarded DNS query panicked; its client gets no reply");
            },
        }
    }
}

async fn serve(job: Job, handler: &Handler) {
    let Some(reply) = handler.reply(job.query, job.origin.peer, Transport::Udp).await else { return };
    if let Err(error) = job.socket.send(&reply, &job.origin) {
        tracing::debug!(client = %job.origin.peer, %error, "a DNS reply could not be sent");
    }
}
