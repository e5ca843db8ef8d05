//! Files that are watched: a task for each process that has `watch` and that somebody wants to run; it says what changed.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::{Platform, Supervisor, clock};
use crate::foundation::task::{self, Task};
use crate::process::machine::Input;
use crate::process::view::{Reason, What};
use crate::process::watched::{Debounce, Rules};

/// Changes that wait for the owner; who reports another one waits too.
const CHANGES: usize = 64;
/// A process that is restarted more often than this within [`STORM`] changes its own files.
const MOST_RESTARTS: usize = 20;
const STORM: Duration = Duration::from_secs(60);

/// What one task says: which, and where something changed or why it watches no more.
pub(super) type Changed = (Arc<str>, u64, Result<PathBuf, String>);

/// Every watch.
pub(super) struct Watches {
    by_process: BTreeMap<Arc<str>, Watching>,
    next: u64,
    sender: mpsc::Sender<Changed>,
    pub(super) changes: mpsc::Receiver<Changed>,
}

struct Watching {
    number: u64,
    /// Of the definition it was begun for.
    fingerprint: u64,
    recent: VecDeque<Instant>,
    /// Ends with it.
    _task: Option<Task>,
}

impl Default for Watches {
    fn default() -> Self {
        let (sender, changes) = mpsc::channel(CHANGES);
        Self { by_process: BTreeMap::new(), next: 0, sender, changes }
    }
}

impl<P: Platform> Supervisor<P> {
    /// Begins or ends the watch of a process by its definition and by whether somebody wants it to run.
    pub(super) fn keep_watch(&mut self, name: &str) {
        let Some((name, process)) = self.processes.get_key_value(name) else {
            self.watches.by_process.remove(name);
            return;
        };
        let is_wanted = |id: &u32| self.instances.get(id).is_some_and(|instance| instance.wanted && !instance.leaving);
        let rules = match process.ids.iter().any(is_wanted) {
            // It was checked with the definition.
            true => Rules::of(&process.spec.definition).ok().flatten(),
            false => None,
        };
        let (name, fingerprint) = (Arc::clone(name), process.fingerprint);
        let is_kept = process.watch_error.is_none()
            && self.watches.by_process.get(&name).is_some_and(|watching| watching.fingerprint == fingerprint);
        if is_kept && rules.is_some() {
            return;
        }
        self.watches.by_process.remove(&name);
        self.set_watch_error(&name, None);
        let Some(rules) = rules else { return };
        self.watches.next += 1;
        let number = self.watches.next;
        let (platform, changes) = (Arc::clone(&self.platform), self.watches.sender.clone());
        let task = task::spawn("process watch", report(platform, rules, Arc::clone(&name), number, changes));
        let watching = Watching { number, fingerprint, recent: VecDeque::new(), _task: Some(task) };
        self.watches.by_process.insert(name, watching);
    }

    /// The same for the process of an instance.
    pub(super) fn keep_watch_of(&mut self, id: u32) {
        let name = self.instances.get(&id).map(|instance| Arc::clone(&instance.process));
        if let Some(name) = name {
            self.keep_watch(&name);
        }
    }

    pub(super) fn on_files_changed(&mut self, (name, number, result): Changed, now: Instant) {
        let current = self.watches.by_process.get_mut(&name).filter(|watching| watching.number == number);
        let Some(watching) = current else { return };
        let path = match result {
            Ok(path) => path,
            Err(why) => {
                tracing::warn!(process = %name, why, "files are not watched");
                return self.set_watch_error(&name, Some(why));
            }
        };
        watching.recent.retain(|then| now.saturating_duration_since(*then) < STORM);
        watching.recent.push_back(now);
        if watching.recent.len() > MOST_RESTARTS {
            watching._task = None;
            let why = format!(
                "watch: it was restarted {MOST_RESTARTS} times within a minute, now for {}, and is not watched until it is \
                 restarted: name what it writes itself in ignore_watch",
                path.display()
            );
            tracing::warn!(process = %name, why, "files are not watched any more");
            return self.set_watch_error(&name, Some(why));
        }
        tracing::info!(process = %name, path = %path.display(), "a watched file changed");
        for id in self.processes.get(&name).map(|process| process.ids.clone()).unwrap_or_default() {
            if self.instances.get(&id).is_some_and(|instance| instance.wanted && !instance.leaving) {
                self.announce(id, What::FilesChanged);
                self.feed(id, Input::Restart(Reason::Watch), now);
            }
        }
    }

    fn set_watch_error(&mut self, name: &str, why: Option<String>) {
        let Some(process) = self.processes.get_mut(name) else { return };
        let why: Option<Arc<str>> = why.map(Arc::from);
        if process.watch_error != why {
            process.watch_error = why;
            self.touched.extend(&process.ids);
        }
    }
}

/// Says every change until nobody wants to hear of it.
async fn report<P: Platform>(
    platform: Arc<P>,
    rules: Rules,
    name: Arc<str>,
    number: u64,
    changes: mpsc::Sender<Changed>,
) {
    let delay = rules.delay;
    let mut watch = match platform.watch(rules).await {
        Ok(watch) => watch,
        Err(why) => return drop(changes.send((name, number, Err(why))).await),
    };
    loop {
        let result = settled(&*platform, &mut watch, delay).await;
        let is_over = result.is_err();
        if changes.send((Arc::clone(&name), number, result)).await.is_err() || is_over {
            return;
        }
    }
}

/// Waits for a change and for the end of those that follow it; returns where the last one was.
async fn settled<P: Platform>(platform: &P, watch: &mut P::Watch, delay: Duration) -> Result<PathBuf, String> {
    let mut last = platform.change(watch).await?;
    let mut debounce = Debounce::new(delay, clock());
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(debounce.deadline().into()) => return Ok(last),
            next = platform.change(watch) => {
                last = next?;
                debounce.again(clock());
            }
        }
    }
}
