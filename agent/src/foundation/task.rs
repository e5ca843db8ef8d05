//! The one way to start a task.
//!
//! Invariants: a task stops when its [`Task`] drops; a panic in a task ends the agent, because a half-dead agent
//! reports health it does not have (the kernel objects stay, and the service manager starts the next agent).

use std::future::Future;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;
use tokio::task::JoinHandle;
use tracing::Instrument as _;

/// Exit status of an agent that ended because one of its tasks panicked (`EX_SOFTWARE` of `sysexits.h`).
pub const EXIT_PANIC: i32 = 70;

/// A running task; dropping it stops the task.
#[derive(Debug)]
#[must_use = "dropping a task stops it"]
pub struct Task<T = ()> {
    handle: JoinHandle<T>,
}

impl<T> Task<T> {
    /// Waits for the task to end by itself; `None` if it was stopped.
    pub async fn join(mut self) -> Option<T> {
        (&mut self.handle).await.ok()
    }

    /// Whether the task has ended.
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

/// Starts `future` as a task called `name`, in a span of that name.
pub fn spawn<F>(name: &'static str, future: F) -> Task<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let span = tracing::info_span!("task", name);
    let guarded = async move {
        match AssertUnwindSafe(future).catch_unwind().await {
            Ok(output) => output,
            Err(_) => {
                tracing::error!(task = name, "a task panicked: the agent ends");
                std::process::exit(EXIT_PANIC);
            }
        }
    };
    #[expect(clippy::disallowed_methods, reason = "this is the one place that may")]
    let handle = tokio::spawn(guarded.instrument(span));
    Task { handle }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn dropping_a_task_stops_it() {
        let (tx, rx) = tokio::sync::oneshot::channel::<()>();
        let task = spawn("test", async move {
            let _keep = tx;
            std::future::pending::<()>().await;
        });
        drop(task);
        assert!(rx.await.is_err(), "the sender went away with the task");
    }

    #[tokio::test]
    async fn join_returns_the_output() {
        assert_eq!(spawn("test", async { 7 }).join().await, Some(7));
    }
}
