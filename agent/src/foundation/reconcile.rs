//! The loop every reconciler runs in: wake, one pass, publish the status, sleep.
//!
//! Level-triggered: a wake-up says *that* something changed, never what. Wake-ups that arrive during a pass give
//! one more pass. A failed pass is tried again with back-off; a slow resync catches what no event told.

use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;

use super::lifecycle::Stop;
use super::task::{self, Task};

/// The first wait after a failed pass; doubles up to [`RETRY_LONGEST`].
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_LONGEST: Duration = Duration::from_secs(30);
/// Kernel events come in bursts; one pass answers all of a burst.
const SETTLE: Duration = Duration::from_millis(5);

/// Why a pass runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The first pass.
    Start,
    /// An input or the kernel changed.
    Change,
    /// Nothing changed; the slow check.
    Resync,
    /// The pass before failed.
    Retry,
}

/// What a pass found.
#[derive(Debug)]
pub struct Pass<S> {
    /// Published to the readers of [`Handle::status`].
    pub status: S,
    /// Whether something remains to be done; such a pass is tried again with back-off.
    pub failed: bool,
}

/// A part of the host that is kept as desired.
pub trait Reconciler: Send + 'static {
    /// What readers see between passes. It carries the errors of the last pass.
    type Status: Clone + PartialEq + Send + Sync + 'static;
    /// The name of its task and in its logs.
    const NAME: &'static str;
    /// How long nothing may happen before a pass runs anyway.
    const RESYNC: Duration = Duration::from_secs(30);

    /// How long nothing may happen from now on before a pass runs anyway.
    fn resync(&self) -> Duration {
        Self::RESYNC
    }

    /// Reads the newest desired state, observes, plans, applies.
    fn pass(&mut self, cause: Cause) -> impl Future<Output = Pass<Self::Status>> + Send;
}

/// Wakes one reconciler. Cheap to clone; waking is never blocked and never lost.
#[derive(Debug, Clone)]
pub struct Trigger(watch::Sender<u64>);

impl Default for Trigger {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl Trigger {
    /// Asks for a pass.
    pub fn fire(&self) {
        self.0.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// How often it has been fired.
    pub fn count(&self) -> u64 {
        *self.0.borrow()
    }

    /// Asks for a pass whenever `input` changes, for as long as the returned task is kept.
    pub fn follow<T: Send + Sync + 'static>(&self, mut input: watch::Receiver<T>) -> Task {
        let trigger = self.clone();
        task::spawn("trigger", async move {
            while input.changed().await.is_ok() {
                trigger.fire();
            }
        })
    }
}

/// The reading side of a running reconciler; dropping the last one stops it.
#[derive(Debug)]
pub struct Handle<S> {
    status: watch::Receiver<S>,
    trigger: Trigger,
    _task: Task,
}

impl<S: Clone> Handle<S> {
    /// The status after the newest pass, and its changes.
    pub fn status(&self) -> watch::Receiver<S> {
        self.status.clone()
    }

    /// Wakes the reconciler.
    pub fn trigger(&self) -> &Trigger {
        &self.trigger
    }
}

/// Starts `reconciler`, woken by `trigger`; `initial` is the status before the first pass.
pub fn start<R: Reconciler>(reconciler: R, trigger: Trigger, initial: R::Status, stop: Stop) -> Handle<R::Status> {
    let (status_tx, status) = watch::channel(initial);
    let wake = trigger.0.subscribe();
    let task = task::spawn(R::NAME, run(reconciler, wake, status_tx, stop));
    Handle { status, trigger, _task: task }
}

async fn run<R: Reconciler>(
    mut reconciler: R,
    mut wake: watch::Receiver<u64>,
    status: watch::Sender<R::Status>,
    mut stop: Stop,
) {
    let mut cause = Cause::Start;
    let mut retry_after = RETRY_FIRST;
    loop {
        wake.borrow_and_update();
        let pass = reconciler.pass(cause).await;
        let failed = pass.failed;
        status.send_if_modified(|current| replace_if_different(current, pass.status));
        let (timeout, timeout_cause) =
            if failed { (retry_after, Cause::Retry) } else { (reconciler.resync(), Cause::Resync) };
        retry_after = if failed { (retry_after * 2).min(RETRY_LONGEST) } else { RETRY_FIRST };
        cause = tokio::select! {
            () = stop.requested() => return,
            changed = wake.changed() => match changed {
                Ok(()) => Cause::Change,
                Err(_) => return,
            },
            () = tokio::time::sleep(timeout) => timeout_cause,
        };
        if cause == Cause::Change {
            tokio::time::sleep(SETTLE).await;
        }
    }
}

fn replace_if_different<S: PartialEq>(current: &mut S, new: S) -> bool {
    if *current == new {
        return false;
    }
    *current = new;
    true
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::foundation::lifecycle::Shutdown;

    struct Counting {
        causes: Arc<Mutex<Vec<Cause>>>,
        failures_left: u32,
    }

    impl Reconciler for Counting {
        type Status = usize;
        const NAME: &'static str = "counting";

        async fn pass(&mut self, cause: Cause) -> Pass<usize> {
            let mut causes = self.causes.lock().expect("no test panics while holding it");
            causes.push(cause);
            let failed = self.failures_left > 0;
            self.failures_left = self.failures_left.saturating_sub(1);
            Pass { status: causes.len(), failed }
        }
    }

    fn counting(failures_left: u32) -> (Counting, Arc<Mutex<Vec<Cause>>>) {
        let causes = Arc::new(Mutex::new(Vec::new()));
        (Counting { causes: Arc::clone(&causes), failures_left }, causes)
    }

    async fn passes(handle: &Handle<usize>, at_least: usize) {
        handle.status().wait_for(|count| *count >= at_least).await.expect("the reconciler runs");
    }

    #[tokio::test(start_paused = true)]
    async fn a_trigger_gives_a_pass_and_a_failure_is_retried() {
        let shutdown = Shutdown::default();
        let (reconciler, causes) = counting(1);
        let handle = start(reconciler, Trigger::default(), 0, shutdown.stop());
        passes(&handle, 2).await;
        handle.trigger().fire();
        passes(&handle, 3).await;
        assert_eq!(*causes.lock().expect("not poisoned"), [Cause::Start, Cause::Retry, Cause::Change]);
    }

    #[tokio::test(start_paused = true)]
    async fn resync_runs_without_any_event() {
        let shutdown = Shutdown::default();
        let (reconciler, causes) = counting(0);
        let handle = start(reconciler, Trigger::default(), 0, shutdown.stop());
        passes(&handle, 2).await;
        assert_eq!(*causes.lock().expect("not poisoned"), [Cause::Start, Cause::Resync]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_followed_input_wakes_the_reconciler() {
        let shutdown = Shutdown::default();
        let (reconciler, _causes) = counting(0);
        let (input, input_rx) = watch::channel(1);
        let handle = start(reconciler, Trigger::default(), 0, shutdown.stop());
        let _follow = handle.trigger().follow(input_rx);
        passes(&handle, 1).await;
        tokio::task::yield_now().await;
        input.send_replace(2);
        passes(&handle, 2).await;
    }
}
