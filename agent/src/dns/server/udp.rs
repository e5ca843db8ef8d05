//! One UDP socket and the thread that serves it.
//!
//! The thread takes a batch of queries with one system call, answers from the zone what it can, and sends the
//! replies with one more. What needs an upstream goes to the queue; nothing here waits for it. No allocation, lock
//! or reference count a query.

use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use super::super::answer::{self, Outcome, Rcode, Transport, UDP_PAYLOAD};
use super::super::handler::Shared;
use super::super::metrics::Tally;
use super::super::zone::Zone;
use super::forward::{Job, Queue};
use crate::foundation::error;
use crate::foundation::task::EXIT_PANIC;
use crate::sys::datagram::{Batch, Slot, Socket};

/// Queries per batch; beyond this the system call is a small part of the whole.
const BATCH: usize = 32;
/// The longest query taken: a name, a question, and the options that clients add.
const QUERY_MAX: usize = 1536;

/// A served socket. Dropping it ends the thread.
#[derive(Debug)]
pub(super) struct Listener {
    socket: Arc<Socket>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    pub(super) fn start(socket: Socket, shared: Arc<Shared>, queue: Queue) -> io::Result<Self> {
        let socket = Arc::new(socket);
        let stopping = Arc::new(AtomicBool::new(false));
        let server = Server {
            tally: shared.metrics.tally(),
            socket: Arc::clone(&socket),
            stopping: Arc::clone(&stopping),
            shared,
            queue,
        };
        let thread = thread::Builder::new().name("dns-udp".to_owned()).spawn(move || guarded(server))?;
        Ok(Self { socket, stopping, thread: Some(thread) })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        self.socket.shut_down();
        if let Some(thread) = self.thread.take() {
            // It ends by itself or has ended the whole agent.
            thread.join().ok();
        }
    }
}

/// The rule of `foundation::task` for a thread: a panic ends the agent.
fn guarded(server: Server) {
    if std::panic::catch_unwind(AssertUnwindSafe(|| server.run())).is_err() {
        tracing::error!(thread = "dns-udp", "a thread panicked: the agent ends");
        std::process::exit(EXIT_PANIC);
    }
}

struct Server {
    socket: Arc<Socket>,
    stopping: Arc<AtomicBool>,
    shared: Arc<Shared>,
    queue: Queue,
    tally: Tally,
}

impl Server {
    fn run(mut self) {
        let mut batch = Batch::new(BATCH, QUERY_MAX, usize::from(UDP_PAYLOAD));
        loop {
            let received = batch.receive(&self.socket);
            if self.stopping.load(Ordering::Acquire) {
                return;
            }
            match received {
                Ok(count) => self.serve(&mut batch, count),
                // Errors of earlier sends arrive here (ICMP) and concern one client; none of them lasts.
                Err(failure) => tracing::debug!(error = error::chain(&failure), "receiving DNS queries"),
            }
        }
    }

    fn serve(&mut self, batch: &mut Batch, count: usize) {
        let zone = self.shared.zone.load();
        for index in 0..count {
            let Slot { request, reply } = batch.slot(index);
            let outcome = match answer::answer(request, &zone, Transport::Udp, reply) {
                Outcome::Elsewhere => self.pass_on(&zone, batch, index),
                decided @ (Outcome::Reply { .. } | Outcome::Ignore) => decided,
            };
            match outcome {
                Outcome::Reply { length, rcode } => {
                    self.tally.reply(rcode);
                    batch.queue(index, length);
                }
                Outcome::Ignore => self.tally.ignored(1),
                Outcome::Elsewhere => {}
            }
        }
        self.tally.ignored(batch.send(&self.socket));
        self.tally.flush();
    }

    /// Puts a query that needs an upstream into the queue, or says why not.
    fn pass_on(&self, zone: &Zone, batch: &mut Batch, index: usize) -> Outcome {
        let Some(origin) = batch.origin(index) else { return Outcome::Ignore };
        let Slot { request, reply } = batch.slot(index);
        let recursion_desired = request[2] & 1 != 0;
        if !recursion_desired || !zone.may_forward(origin.peer.ip()) {
            return answer::refuse(request, Rcode::Refused, Transport::Udp, reply);
        }
        let job = Job { query: request.to_vec(), origin, socket: Arc::clone(&self.socket) };
        if self.queue.push(job) {
            Outcome::Elsewhere
        } else {
            answer::refuse(request, Rcode::ServFail, Transport::Udp, reply)
        }
    }
}
