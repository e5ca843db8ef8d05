//! Start and stop as values: what still blocks readiness, the request to stop, and who has not finished yet.
//!
//! [`Readiness`] is ready when every [`Blocker`] has dropped. [`Shutdown`] asks everybody to stop and waits until
//! every [`Stop`] clone has dropped, up to a deadline.

use std::collections::BTreeSet;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::sync::{mpsc, watch};

/// What still has to come up before the agent says that it is ready.
#[derive(Debug, Clone)]
pub struct Readiness {
    pending: Arc<watch::Sender<BTreeSet<&'static str>>>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self { pending: Arc::new(watch::Sender::new(BTreeSet::new())) }
    }
}

impl Readiness {
    /// Holds readiness back until the blocker drops. `name` is shown by `weft status --check ready`.
    pub fn block(&self, name: &'static str) -> Blocker {
        self.pending.send_modify(|names| {
            names.insert(name);
        });
        Blocker { name, pending: Arc::clone(&self.pending) }
    }

    /// The names that still block.
    pub fn pending(&self) -> Vec<&'static str> {
        self.pending.borrow().iter().copied().collect()
    }

    /// The names that block, and every change of them.
    pub fn changes(&self) -> watch::Receiver<BTreeSet<&'static str>> {
        self.pending.subscribe()
    }

    /// Waits until nothing blocks any more.
    pub async fn ready(&self) {
        let mut pending = self.pending.subscribe();
        // The sender lives in self: waiting cannot fail.
        drop(pending.wait_for(BTreeSet::is_empty).await);
    }
}

/// Holds readiness back while it lives.
#[derive(Debug)]
#[must_use = "dropping a blocker says that its part is ready"]
pub struct Blocker {
    name: &'static str,
    pending: Arc<watch::Sender<BTreeSet<&'static str>>>,
}

impl Drop for Blocker {
    fn drop(&mut self) {
        self.pending.send_modify(|names| {
            names.remove(self.name);
        });
    }
}

/// The asking side of a stop; owned by `app`.
#[derive(Debug)]
pub struct Shutdown {
    asked: watch::Sender<bool>,
    token: mpsc::Sender<()>,
    finished: mpsc::Receiver<()>,
}

impl Default for Shutdown {
    fn default() -> Self {
        // Nothing is ever sent: the channel closes when the last Stop drops.
        let (token, finished) = mpsc::channel(1);
        Self { asked: watch::Sender::new(false), token, finished }
    }
}

impl Shutdown {
    /// A token for one task: it hears the request, and holding it delays the end.
    pub fn stop(&self) -> Stop {
        Stop { asked: self.asked.subscribe(), _token: self.token.clone() }
    }

    /// Asks everybody to stop and waits until all have, or `deadline` has passed. Returns whether all have.
    pub async fn drain(self, deadline: Duration) -> bool {
        let Self { asked, token, mut finished } = self;
        asked.send_replace(true);
        drop(token);
        tokio::time::timeout(deadline, finished.recv()).await.is_ok()
    }
}

/// The hearing side of a stop.
#[derive(Debug, Clone)]
pub struct Stop {
    asked: watch::Receiver<bool>,
    _token: mpsc::Sender<()>,
}

impl Stop {
    /// Waits until the agent is asked to stop.
    pub async fn requested(&mut self) {
        // An error means that the Shutdown is gone, which is a stop too.
        drop(self.asked.wait_for(|asked| *asked).await);
    }

    /// The same for a task that looks at every wake-up.
    pub fn asked(mut self) -> Asked {
        let rung = Arc::new(Bell { is_rung: AtomicBool::new(true), task: AtomicWaker::new() });
        let waker = Waker::from(Arc::clone(&rung));
        Asked { request: Box::pin(async move { self.requested().await }), rung, waker, heard_by: None }
    }
}

/// A request to stop, cheap to look at: until it comes a look is one atomic load, where polling the channel takes a lock
/// that all tasks share.
pub struct Asked {
    request: Pin<Box<dyn Future<Output = ()> + Send>>,
    rung: Arc<Bell>,
    /// Rings [`Self::rung`].
    waker: Waker,
    heard_by: Option<Waker>,
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Asked")
    }
}

impl Asked {
    /// Whether the agent is asked to stop; the task is woken when it is.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.heard_by.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.rung.task.register(cx.waker());
            self.heard_by = Some(cx.waker().clone());
        }
        if !self.rung.is_rung.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        self.rung.is_rung.store(false, Ordering::Release);
        let polled = self.request.as_mut().poll(&mut Context::from_waker(&self.waker));
        if polled.is_ready() {
            // Whoever looks again hears it again.
            self.request = Box::pin(std::future::ready(()));
            self.rung.is_rung.store(true, Ordering::Release);
        }
        polled
    }

    /// Waits until the agent is asked to stop. Cancel-safe.
    pub async fn requested(&mut self) {
        std::future::poll_fn(|cx| self.poll(cx)).await;
    }
}

/// Passes a wake-up on and remembers that there was one.
struct Bell {
    is_rung: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_rung.store(true, Ordering::Release);
        self.task.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ready_when_the_last_blocker_drops() {
        let readiness = Readiness::default();
        let first = readiness.block("wireguard");
        let second = readiness.block("dns");
        drop(first);
        assert_eq!(readiness.pending(), ["dns"]);
        drop(second);
        readiness.ready().await;
    }

    #[tokio::test]
    async fn drain_waits_for_every_token() {
        let shutdown = Shutdown::default();
        let mut stop = shutdown.stop();
        let task = crate::foundation::task::spawn("test", async move { stop.requested().await });
        assert!(shutdown.drain(Duration::from_secs(5)).await);
        assert_eq!(task.join().await, Some(()));
    }

    #[tokio::test]
    async fn a_task_that_looks_at_every_wake_up_hears_the_request_and_hears_it_again() {
        let shutdown = Shutdown::default();
        let mut asked = shutdown.stop().asked();
        for _ in 0..3 {
            assert!(futures_util::poll!(std::pin::pin!(asked.requested())).is_pending());
        }
        let task = crate::foundation::task::spawn("test", async move {
            asked.requested().await;
            asked.requested().await;
        });
        assert!(shutdown.drain(Duration::from_secs(5)).await);
        assert_eq!(task.join().await, Some(()));
    }

    #[tokio::test(start_paused = true)]
    async fn drain_gives_up_at_the_deadline() {
        let shutdown = Shutdown::default();
        let _held = shutdown.stop();
        assert!(!shutdown.drain(Duration::from_secs(1)).await);
    }
}
