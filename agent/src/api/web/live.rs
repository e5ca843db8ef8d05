//! What WebSocket subscribers are told, written once for all of them.
//!
//! | task | in | out |
//! |---|---|---|
//! | `live` | `watch` of the processes, their events, a timer | batches of messages over a bounded `broadcast` |
//! | `subscriber`, a socket each | batches | frames |
//!
//! Four kinds of message (spec, "Message Types"): `process_update` when an instance changed, `process_event`, `health_update`
//! after each check, `system_update` every [`HEARTBEAT`]. Without subscribers nothing is written and no figure is sampled.
//!
//! Invariant: state is never rebuilt from messages. A subscriber that lags is told so by the event `resync` and gets every
//! instance anew; one that does not read at all is cut off.

mod message;
mod subscriber;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{Notify, broadcast, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_tungstenite::tungstenite::Utf8Bytes;

use crate::foundation::task::{self, Task};
use crate::pm3::Pm3;
use crate::process::handle::{FiguresGuard, Handle};
use crate::process::view::{Event, HealthStatus, Snapshot};

pub(super) use subscriber::{Context, upgrade};

/// Between two messages about the host; figures are sampled as often.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Between two batches: what changes more often is told as one change.
const PACE: Duration = Duration::from_millis(50);
/// Batches that wait for the slowest subscriber, more than three seconds of the fastest change.
const BATCHES: usize = 64;
/// Subscribers at a time; each costs a socket and some 10 kB.
const MAX_SUBSCRIBERS: usize = 4096;

/// Messages that belong together.
type Batch = Arc<[Utf8Bytes]>;

/// The door for subscribers. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Live {
    batches: broadcast::Sender<Batch>,
    came: Arc<Notify>,
    process: Handle,
    pm3: Arc<Pm3>,
}

/// Too many subscribers.
#[derive(Debug)]
pub(super) struct Full;

impl Live {
    /// Starts the one task that writes the messages; it ends when the returned task drops.
    pub(super) fn start(process: Handle, pm3: Arc<Pm3>) -> (Self, Task) {
        let live = Self { batches: broadcast::Sender::new(BATCHES), came: Arc::default(), process, pm3 };
        let writer = Writer::new(live.clone());
        (live, task::spawn("live", writer.run()))
    }

    fn subscribe(&self) -> Result<broadcast::Receiver<Batch>, Full> {
        if self.batches.receiver_count() >= MAX_SUBSCRIBERS {
            return Err(Full);
        }
        let receiver = self.batches.subscribe();
        self.came.notify_one();
        Ok(receiver)
    }

    /// Everything as it is now.
    fn all(&self) -> Batch {
        let now = SystemTime::now();
        let snapshot = self.process.snapshot();
        let processes = snapshot.processes.iter().map(|view| message::process(view, now));
        processes.chain([message::system(&self.pm3.host_figures(), now)]).collect()
    }
}

/// What woke the writer.
enum Woken {
    Changed,
    Event(Result<Event, RecvError>),
    Heartbeat,
    Came,
    /// Nothing is supervised, or not any more: only the host's figures are left to tell.
    Over,
}

struct Writer {
    live: Live,
    changes: watch::Receiver<Arc<Snapshot>>,
    events: broadcast::Receiver<Event>,
    /// The version of the state that was told.
    told: u64,
    /// Health checks that were told, by instance.
    checks: HashMap<u32, (HealthStatus, u64)>,
    /// While somebody listens.
    figures: Option<FiguresGuard>,
    is_over: bool,
    batch: Vec<Utf8Bytes>,
}

impl Writer {
    fn new(live: Live) -> Self {
        let changes = live.process.changes();
        let told = changes.borrow().version;
        let events = live.process.events();
        Self { changes, events, told, checks: HashMap::new(), figures: None, is_over: false, batch: Vec::new(), live }
    }

    async fn run(mut self) {
        let mut heartbeat = tokio::time::interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let has_subscribers = self.live.batches.receiver_count() > 0;
            if !has_subscribers {
                self.figures = None;
            }
            let woken = tokio::select! {
                changed = self.changes.changed(), if !self.is_over => if changed.is_ok() { Woken::Changed } else { Woken::Over },
                event = self.events.recv(), if !self.is_over => Woken::Event(event),
                _ = heartbeat.tick(), if has_subscribers => Woken::Heartbeat,
                () = self.live.came.notified() => Woken::Came,
            };
            match woken {
                Woken::Over | Woken::Event(Err(RecvError::Closed)) => self.is_over = true,
                Woken::Came => self.figures = self.figures.take().or_else(|| Some(self.live.process.watch_figures())),
                Woken::Changed => {}
                Woken::Event(Ok(event)) => self.batch.push(message::event(&event)),
                Woken::Event(Err(RecvError::Lagged(missed))) => self.batch.push(message::resync(missed)),
                Woken::Heartbeat => {
                    self.batch.push(message::system(&self.live.pm3.host_figures(), SystemTime::now()));
                }
            }
            self.drain_events();
            self.differences();
            self.send().await;
        }
    }

    fn drain_events(&mut self) {
        loop {
            match self.events.try_recv() {
                Ok(event) => self.batch.push(message::event(&event)),
                Err(TryRecvError::Lagged(missed)) => self.batch.push(message::resync(missed)),
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
            }
        }
    }

    /// What changed since it was told.
    fn differences(&mut self) {
        let snapshot = Arc::clone(&self.changes.borrow_and_update());
        if snapshot.version == self.told {
            return;
        }
        let now = SystemTime::now();
        for view in snapshot.processes.iter().filter(|view| view.version > self.told) {
            self.batch.push(message::process(view, now));
            let check = (view.health.status, view.health.total);
            let before = self.checks.insert(view.id, check);
            if view.health.kind.is_some() && before != Some(check) {
                self.batch.push(message::health(view, now));
            }
        }
        if self.checks.len() > snapshot.processes.len() {
            self.checks.retain(|id, _| snapshot.processes.iter().any(|view| view.id == *id));
        }
        self.told = snapshot.version;
    }

    async fn send(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let batch: Batch = self.batch.drain(..).collect();
        // An error means that nobody listens.
        if self.live.batches.send(batch).is_ok() {
            tokio::time::sleep(PACE).await;
        }
    }
}
