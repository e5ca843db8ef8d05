//! Host names of endpoints, resolved beside the passes: a slow resolver never holds up a peer.
//!
//! In: the names the model has, and which of them want a new look. Out: [`Resolved`] for `spec`, and errors for the
//! status. Invariant: a name that once resolved keeps its addresses until a later answer replaces them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;

use super::platform::Platform;
use super::spec::{HANDSHAKE_OVERDUE, Resolved};
use crate::foundation::reconcile::Trigger;
use crate::foundation::task::{self, Task};

const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LONGEST: Duration = Duration::from_secs(60);
/// The host resolver blocks a thread per lookup.
const LOOKUPS_AT_ONCE: usize = 16;

pub(super) type HostPort = (String, u16);

/// The names of the endpoints, each with its newest answer.
#[derive(Debug)]
pub(super) struct Resolver<P> {
    platform: Arc<P>,
    trigger: Trigger,
    permits: Arc<Semaphore>,
    names: BTreeMap<HostPort, Name>,
    /// Counts the answers that differ from the one before.
    answers: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Name {
    answer: watch::Receiver<Answer>,
    again: Arc<Notify>,
    _task: Task,
}

#[derive(Debug, Clone, Default)]
struct Answer {
    addresses: Vec<SocketAddr>,
    error: Option<String>,
    answered_at: Option<Instant>,
}

impl<P: Platform> Resolver<P> {
    /// A resolver that fires `trigger` when an answer changes.
    pub(super) fn new(platform: Arc<P>, trigger: Trigger) -> Self {
        let permits = Arc::new(Semaphore::new(LOOKUPS_AT_ONCE));
        Self { platform, trigger, permits, names: BTreeMap::new(), answers: Arc::default() }
    }

    /// Keeps exactly `wanted` resolved.
    pub(super) fn keep<'n>(&mut self, wanted: impl Iterator<Item = &'n HostPort>) {
        let mut before = std::mem::take(&mut self.names);
        for name in wanted {
            if !self.names.contains_key(name) {
                let entry = before.remove(name).unwrap_or_else(|| self.start(name));
                self.names.insert(name.clone(), entry);
            }
        }
    }

    /// Changes whenever a pass could see another answer than before.
    pub(super) fn answers(&self) -> u64 {
        self.answers.load(Ordering::Acquire)
    }

    /// Looks `name` up again, unless its answer is younger than the time a handshake may take.
    pub(super) fn look_again(&self, name: &HostPort) {
        let Some(entry) = self.names.get(name) else { return };
        let answered_at = entry.answer.borrow().answered_at;
        if answered_at.is_some_and(|at| at.elapsed() >= HANDSHAKE_OVERDUE) {
            entry.again.notify_one();
        }
    }

    /// The newest addresses of those of `names` that ever resolved.
    pub(super) fn resolved<'n>(&self, names: impl Iterator<Item = &'n HostPort>) -> Resolved {
        let known = names.filter_map(|name| self.names.get_key_value(name));
        let answers = known.map(|(name, entry)| (name.clone(), entry.answer.borrow().addresses.clone()));
        answers.filter(|(_, addresses)| !addresses.is_empty()).collect()
    }

    /// The names whose newest lookup failed, with the reason.
    pub(super) fn errors(&self) -> impl Iterator<Item = (HostPort, String)> {
        self.names.iter().filter_map(|(name, entry)| Some((name.clone(), entry.answer.borrow().error.clone()?)))
    }

    fn start(&self, name: &HostPort) -> Name {
        let (answer_tx, answer) = watch::channel(Answer::default());
        let again = Arc::new(Notify::new());
        let lookups = Lookups {
            platform: Arc::clone(&self.platform),
            permits: Arc::clone(&self.permits),
            name: name.clone(),
            answer: answer_tx,
            again: Arc::clone(&again),
            trigger: self.trigger.clone(),
            answers: Arc::clone(&self.answers),
        };
        Name { answer, again, _task: task::spawn("wireguard-resolve", lookups.run()) }
    }
}

/// The task of one name.
struct Lookups<P> {
    platform: Arc<P>,
    permits: Arc<Semaphore>,
    name: HostPort,
    answer: watch::Sender<Answer>,
    again: Arc<Notify>,
    trigger: Trigger,
    answers: Arc<AtomicU64>,
}

impl<P: Platform> Lookups<P> {
    async fn run(self) {
        let mut retry_after = RETRY_FIRST;
        loop {
            let result = self.look_up().await;
            let failed = result.is_err();
            if self.answer.send_if_modified(|answer| answer.take(result)) {
                self.answers.fetch_add(1, Ordering::Release);
                self.trigger.fire();
            }
            if failed {
                tokio::time::sleep(retry_after).await;
                retry_after = (retry_after * 2).min(RETRY_LONGEST);
            } else {
                retry_after = RETRY_FIRST;
                self.again.notified().await;
            }
        }
    }

    async fn look_up(&self) -> Result<Vec<SocketAddr>, String> {
        let (host, port) = &self.name;
        // Never closed: the semaphore lives as long as we do.
        let _permit = self.permits.acquire().await;
        match tokio::time::timeout(LOOKUP_TIMEOUT, self.platform.resolve(host, *port)).await {
            Err(_elapsed) => Err(format!("no answer within {} s", LOOKUP_TIMEOUT.as_secs())),
            Ok(Err(error)) => Err(error.to_string()),
            Ok(Ok(addresses)) if addresses.is_empty() => Err("it has no address".to_owned()),
            Ok(Ok(addresses)) => Ok(addresses),
        }
    }
}

impl Answer {
    /// Takes a new answer in; returns whether a pass would see a difference.
    fn take(&mut self, result: Result<Vec<SocketAddr>, String>) -> bool {
        match result {
            Ok(addresses) => {
                let changed = self.addresses != addresses || self.error.is_some();
                *self = Self { addresses, error: None, answered_at: Some(Instant::now()) };
                changed
            }
            Err(error) => {
                let error = Some(error);
                let changed = self.error != error;
                self.error = error;
                changed
            }
        }
    }
}
