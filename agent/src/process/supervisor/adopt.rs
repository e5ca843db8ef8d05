//! The first minute of an agent: what was saved, what is configured, what runs already.
//!
//! A process that runs is taken over by its cgroup, start time and pidfd and goes on as it is; one that was started with
//! another definition than there is now is restarted; what nobody wants any more is cleared, in cgroups of this agent only.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use super::instance::{Origin, Process, fingerprint};
use super::{Found, Platform, Supervisor, clock};
use crate::process::config::processors;
use crate::process::machine::Input;
use crate::process::spec::Spec;

impl<P: Platform> Supervisor<P> {
    /// Restores the list and takes over what runs.
    pub(super) async fn take_over(&mut self, configured: Vec<Spec>) {
        let now = clock();
        self.restore();
        let found = self.platform.find().await;
        self.adopt(found, now);
        let lines = self.configure(configured, now);
        if !lines.is_empty() {
            tracing::info!(changed = ?lines, "processes of the configuration");
        }
        self.start_wanted(now);
        self.save_if_changed();
    }

    fn restore(&mut self) {
        let saved = match self.store.load() {
            Ok(Some(saved)) => saved,
            Ok(None) => return,
            Err(why) => {
                tracing::error!(why, "the saved list of processes cannot be read; it is kept beside");
                let path = self.store.path();
                std::fs::rename(path, path.with_extension("unreadable")).ok();
                return;
            }
        };
        self.next_id = saved.next_id;
        for process in saved.processes {
            let created = process.created();
            let spec = match process.definition.validate(processors()) {
                Ok(spec) => spec,
                Err(error) => {
                    tracing::error!(%error, "a saved process is not valid any more and is left out");
                    continue;
                }
            };
            let name = spec.definition.name.clone();
            let (fingerprint, origin) = (fingerprint(&spec), process.origin);
            let restored = Process { fingerprint, origin, created, watch_error: None, ids: Vec::new(), spec };
            self.processes.insert(name.as_str().into(), restored);
            self.grow_as_saved(&name, &process.instances);
        }
    }

    /// Makes the instances with the ids they had.
    fn grow_as_saved(&mut self, name: &str, saved: &[super::saved::SavedInstance]) {
        let next = self.next_id;
        for id in self.grow(name) {
            let Some(mut instance) = self.instances.remove(&id) else { continue };
            self.touched.remove(&id);
            if let Some(at) = instance.timer.take() {
                self.timers.remove(&(at, id));
            }
            let index = usize::try_from(instance.index).unwrap_or(usize::MAX);
            let known = saved.get(index).filter(|saved| !self.instances.contains_key(&saved.id));
            let id = known.map_or(id, |saved| saved.id);
            if let Some(saved) = known {
                instance.wanted = saved.wanted;
                instance.machine.set_restarts(saved.restarts);
            }
            instance.id = id;
            if let Some(slot) = self.processes.get_mut(name).and_then(|process| process.ids.get_mut(index)) {
                *slot = id;
            }
            self.instances.insert(id, instance);
            self.schedule(id);
            self.touched.insert(id);
        }
        self.keep_watch(name);
        let highest = self.instances.keys().next_back().map_or(0, |id| id + 1);
        self.next_id = next.max(highest);
    }

    fn adopt(&mut self, found: Vec<Found<P::Child>>, now: Instant) {
        // The newest life of each instance that served; others beside it are what a reload left.
        let mut newest: BTreeMap<(std::sync::Arc<str>, u32), (u8, u64)> = BTreeMap::new();
        for found in &found {
            let key = (std::sync::Arc::clone(&found.place.process), found.place.index);
            let best = newest.entry(key).or_default();
            *best = rank(found).max(*best);
        }
        for found in found {
            let key = (std::sync::Arc::clone(&found.place.process), found.place.index);
            let is_newest = newest.get(&key) == Some(&rank(&found));
            let index = usize::try_from(found.place.index).unwrap_or(usize::MAX);
            let id = self.processes.get(&found.place.process).and_then(|process| process.ids.get(index)).copied();
            if let Some(instance) = id.and_then(|id| self.instances.get_mut(&id)) {
                instance.newest = instance.newest.max(found.place.generation);
            }
            match id {
                Some(id) if is_newest => self.adopt_one(id, found, now),
                Some(_) | None => self.clear(&found),
            }
        }
    }

    fn adopt_one(&mut self, id: u32, found: Found<P::Child>, now: Instant) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        instance.generation = found.place.generation;
        let Some((child, record)) = found.main else {
            // Its main process ended while no agent ran; others of it are left.
            instance.machine.handle(Input::Adopted { ready: false }, now);
            return self.feed(id, Input::Exited(crate::process::view::Exit::Unknown), now);
        };
        instance.port = record.port;
        instance.fingerprint = record.fingerprint;
        let restarts = instance.machine.restarts().max(record.restarts);
        instance.machine.set_restarts(restarts);
        let started = SystemTime::UNIX_EPOCH + Duration::from_millis(record.started_ms);
        self.run_child(id, child, started, true, now);
        if let Some(instance) = self.instances.get_mut(&id) {
            // Its CPU time so far is not of this moment.
            instance.sampled = None;
            tracing::info!(process = %instance.name, pid = instance.pid, "took a running process over");
        }
        self.metrics.adopted.inc();
        self.feed(id, Input::Adopted { ready: true }, now);
    }

    /// Starts what is wanted and does not run, stops what runs and is not wanted, renews what is out of date.
    fn start_wanted(&mut self, now: Instant) {
        let mut outdated = BTreeSet::new();
        for id in self.instances.keys().copied().collect::<Vec<_>>() {
            let Some(instance) = self.instances.get(&id) else { continue };
            let (wanted, runs) = (instance.wanted, instance.pid.is_some());
            let Some(process) = self.processes.get(&instance.process) else { continue };
            if wanted && runs && instance.fingerprint != 0 && instance.fingerprint != process.fingerprint {
                outdated.insert(std::sync::Arc::clone(&instance.process));
            }
            match (wanted, runs) {
                (true, false) => self.feed(id, Input::Start, now),
                (false, true) => self.feed(id, Input::Stop, now),
                (true, true) | (false, false) => {}
            }
        }
        for name in outdated {
            self.reload_quietly(&name, now);
        }
    }

    /// Whether a process was made by a command.
    pub(super) fn is_of_command(&self, name: &str) -> bool {
        self.processes.get(name).is_some_and(|process| process.origin == Origin::Command)
    }
}

/// Which of several lives of an instance is taken over: one that served, else one that stood by, else what is left of one; of
/// several such the newest.
fn rank<C>(found: &Found<C>) -> (u8, u64) {
    let kind = match &found.main {
        Some((_, record)) if !record.standby => 2,
        Some(_) => 1,
        None => 0,
    };
    (kind, found.place.generation)
}
