//! Views, snapshots and events.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use super::instance::{Instance, Process};
use super::{Platform, Supervisor, clock};
use crate::process::platform::linux::LogPolicy;
use crate::process::schedule::Alarm;
use crate::process::view::{Event, Snapshot, Status, View, What};

impl<P: Platform> Supervisor<P> {
    /// Renews the views that were touched, publishes a snapshot if one differs, then sends the replies.
    pub(super) fn publish(&mut self) {
        let version = self.snapshot.borrow().version + 1;
        let mut differs = false;
        for id in std::mem::take(&mut self.touched) {
            let Some(instance) = self.instances.get_mut(&id) else {
                differs = true;
                continue;
            };
            let Some(process) = self.processes.get(&instance.process) else { continue };
            let view = view(instance, process, &self.log_policy, version);
            let same = instance.view.as_ref().is_some_and(|old| View { version: old.version, ..view.clone() } == **old);
            if !same {
                instance.view = Some(Arc::new(view));
                differs = true;
            }
        }
        if differs {
            let processes = self.instances.values().filter_map(|instance| instance.view.clone()).collect();
            self.snapshot.send_replace(Arc::new(Snapshot { version, processes }));
        }
        for reply in self.replies.drain(..) {
            reply();
        }
    }

    /// An event of the status that was reached.
    pub(super) fn announce_status(&mut self, id: u32, status: Status) {
        let what = match status {
            Status::Online => What::Online,
            Status::Stopping => What::Stopping,
            Status::Stopped => What::Stopped,
            Status::Restarting => What::Restarting,
            Status::Errored => What::Errored,
            // The start itself is announced when the process runs.
            Status::Starting => return,
        };
        self.announce(id, what);
    }

    pub(super) fn announce(&mut self, id: u32, what: What) {
        let Some(instance) = self.instances.get(&id) else { return };
        match what {
            What::Errored => {
                tracing::error!(process = %instance.name, "a process was given up: `weft describe` says why")
            }
            What::Exited => {
                tracing::info!(process = %instance.name, exit = ?instance.last_exit, "a process ended");
            }
            What::Started => tracing::info!(process = %instance.name, pid = instance.pid, "a process was started"),
            What::FilesChanged => tracing::info!(process = %instance.name, "watch: a process is restarted"),
            What::Scheduled => tracing::info!(process = %instance.name, "cron_restart: a process is restarted"),
            What::Created
            | What::Online
            | What::Stopping
            | What::Stopped
            | What::Restarting
            | What::HealthChanged
            | What::MemoryLimit
            | What::Deleted => tracing::debug!(process = %instance.name, what = what.as_str(), "process"),
        }
        let event = Event { at: SystemTime::now(), id, name: Arc::clone(&instance.name), what };
        // Nobody may be listening.
        self.events.send(event).ok();
    }
}

/// What its machine says; it is still stopping while something of it is left beside.
fn status<C>(instance: &Instance<C>) -> Status {
    if instance.machine.is_at_rest() && instance.beside > 0 { Status::Stopping } else { instance.machine.status() }
}

fn view<C>(instance: &Instance<C>, process: &Process, logs: &LogPolicy, version: u64) -> View {
    let definition = &process.spec.definition;
    let (out, error) = logs.files(definition, &instance.log_name);
    // The paths never change while the view of an instance does so often.
    let old = instance.view.as_ref().filter(|old| *old.out_log == *out && *old.error_log == *error);
    let shared = |old: Option<&Arc<Path>>, new: &Path| old.map_or_else(|| new.into(), Arc::clone);
    let wait = instance
        .machine
        .deadline()
        .filter(|_| instance.machine.status() == Status::Restarting && instance.pid.is_none());
    View {
        version,
        id: instance.id,
        name: Arc::clone(&instance.name),
        process: Arc::clone(&instance.process),
        instance: instance.index,
        namespace: old
            .filter(|old| *old.namespace == *definition.namespace)
            .map_or_else(|| definition.namespace.as_str().into(), |old| Arc::clone(&old.namespace)),
        status: status(instance),
        pid: instance.pid,
        port: instance.port,
        restarts: instance.machine.restarts(),
        created: process.created,
        started: instance.started,
        figures: instance.figures,
        health: instance.health.clone(),
        restart_reason: instance.machine.reason(),
        next_restart: instance.alarm.as_ref().map(Alarm::next),
        last_exit: instance.last_exit,
        error: instance.error.clone().or_else(|| process.watch_error.clone()),
        next_start: wait.map(|at| SystemTime::now() + at.saturating_duration_since(clock())),
        definition: Arc::clone(definition),
        out_log: shared(old.map(|old| &old.out_log), &out),
        error_log: shared(old.map(|old| &old.error_log), &error),
    }
}
