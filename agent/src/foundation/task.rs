//! The one way to start a task.
//!
//! Invariants: a task stops when its [`Task`] drops; a panic in a task ends the agent, because a half-dead agent
//! reports health it does not have (the kernel objects stay, and the service manager starts the next agent).

use std::future::Future;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;
use tokio::task::{JoinHandle, JoinSet};
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

/// Starts `future` as a task that nobody owns and that ends by itself. A panic in it ends only that task.
pub fn detach(name: &'static str, future: impl Future<Output = ()> + Send + 'static) {
    let span = tracing::debug_span!("task", name);
    #[expect(clippy::disallowed_methods, reason = "spawned here so that it is named as every other")]
    drop(tokio::spawn(future.instrument(span)));
}

/// Many short tasks of one kind, such as connections. A panic in one ends only that one; dropping the group stops all.
#[derive(Debug)]
#[must_use = "dropping a group stops its tasks"]
pub struct Group {
    name: &'static str,
    tasks: JoinSet<()>,
}

impl Group {
    /// An empty group of tasks called `name`.
    pub fn new(name: &'static str) -> Self {
        Self { name, tasks: JoinSet::new() }
    }

    /// Starts `future` in this group, in a span of the group's name.
    pub fn spawn(&mut self, future: impl Future<Output = ()> + Send + 'static) {
        let span = tracing::info_span!("task", name = self.name);
        self.tasks.spawn(future.instrument(span));
    }

    /// Starts `future` in this group without a span: entering one at every wake-up costs more than a small request.
    pub fn spawn_bare(&mut self, future: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(future);
    }

    /// How many tasks have not been seen to end.
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Whether no task is left.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Waits until one task has ended; for ever while there is none. Cancel-safe.
    pub async fn one_ended(&mut self) {
        match self.tasks.join_next().await {
            None => std::future::pending().await,
            Some(Ok(())) => {}
            Some(Err(error)) => tracing::error!(task = self.name, %error, "a task of the group failed"),
        }
    }
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
    async fn a_panic_in_a_group_ends_only_that_task() {
        let mut group = Group::new("test");
        let (tx, rx) = tokio::sync::oneshot::channel();
        group.spawn(async { panic!("on purpose") });
        group.spawn(async move { tx.send(()).expect("the receiver waits") });
        group.one_ended().await;
        group.one_ended().await;
        assert!(group.is_empty());
        assert_eq!(rx.await, Ok(()));
    }

    #[tokio::test]
    async fn join_returns_the_output() {
        assert_eq!(spawn("test", async { 7 }).join().await, Some(7));
    }
}
