//! The owner of every process: one task that takes requests and what happens on the host, lets the machines decide, and
//! carries out what they say.
//!
//! In: [`Request`]s, ends of host calls, time. Out: the snapshot, events, the saved list. Invariants: nothing here blocks, host
//! calls are futures whose ends come back as inputs; what an earlier life of an instance says is told apart by its generation
//! and ignored; replies are sent after the snapshot that shows their effect.

mod adopt;
mod beside;
mod configure;
mod depend;
mod instance;
mod probing;
mod publish;
mod requests;
mod rollout;
mod sample;
mod saved;
mod scheduling;
mod sending;
mod watching;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{broadcast, mpsc, watch};

use super::definition::Definition;
use super::error::Error;
use super::handle::{Reply, Request, Watchers};
use super::health::Monitor;
use super::machine::{Action, Input};
use super::metrics::Metrics;
use super::platform::linux::LogPolicy;
use super::platform::{Found, Launch, Platform, Purpose, StartError, Usage};
use super::spec::Spec;
use super::succession::Succession;
use super::view::{Event, Exit, Snapshot, Status};
use crate::foundation::lifecycle::{Blocker, Stop};
use instance::{Instance, Process};
use rollout::Rollouts;
use saved::Store;

/// Instances of one agent; each has descriptors, a cgroup and log files.
const MOST_INSTANCES: usize = 5000;
/// Inputs that are worked off before the snapshot is renewed.
const BATCH: usize = 256;
/// How long `pre_start` and `post_stop` may take.
const HOOK_LIMIT: Duration = Duration::from_secs(60);

/// What the supervisor starts with.
pub(super) struct Inputs<P> {
    pub(super) platform: P,
    pub(super) log_policy: LogPolicy,
    pub(super) state_file: PathBuf,
    pub(super) configured: Vec<Spec>,
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) snapshot: watch::Sender<Arc<Snapshot>>,
    pub(super) events: broadcast::Sender<Event>,
    pub(super) watchers: Arc<Watchers>,
    pub(super) metrics: Metrics,
}

/// What came to its end on the host.
enum Done<C> {
    Checked(Box<Definition>, Result<(), StartError>, Reply<Vec<u32>>),
    Spawned(u32, u64, Result<C, StartError>),
    Ended(u32, u64, Exit),
    Swept(u32, u64),
    /// A health check has ended.
    Probed(u32, u64, Result<(), String>),
    /// How a process is to be followed by the next, and the port of that.
    Looked(u32, u64, Option<u16>, Succession),
    /// A process that stood by serves, or why it is gone.
    StoodBy(u32, u64, Result<C, String>),
    /// A process that another took the place of is gone.
    Drained(u32, u64),
    /// Input was written, or not.
    Sent(Result<Vec<u32>, Error>, Reply<Vec<u32>>),
    /// A cgroup that belongs to nobody was cleared.
    Cleared,
    Sampled(Vec<(u32, u64, Option<Usage>)>, Instant),
    Saved(u64, Result<(), String>),
}

/// The state, with its one owner.
pub(super) struct Supervisor<P: Platform> {
    platform: Arc<P>,
    log_policy: LogPolicy,
    processes: BTreeMap<Arc<str>, Process>,
    instances: BTreeMap<u32, Instance<P::Child>>,
    next_id: u32,
    pending: FuturesUnordered<BoxFuture<'static, Done<P::Child>>>,
    timers: BTreeSet<(Instant, u32)>,
    /// Instances whose view is to be renewed.
    touched: BTreeSet<u32>,
    rollouts: Rollouts,
    store: Store,
    sampling: sample::Sampling,
    watches: watching::Watches,
    requests: mpsc::Receiver<Request>,
    snapshot: watch::Sender<Arc<Snapshot>>,
    events: broadcast::Sender<Event>,
    watchers: Arc<Watchers>,
    metrics: Metrics,
    /// Sent after the next snapshot.
    replies: Vec<Box<dyn FnOnce() + Send>>,
}

/// What woke the task.
enum Wake<C> {
    Request(Option<Request>),
    Done(Done<C>),
    Time,
    Watched,
    FilesChanged(watching::Changed),
    Stop,
}

impl<P: Platform> Supervisor<P> {
    pub(super) fn new(inputs: Inputs<P>) -> (Self, Vec<Spec>) {
        let supervisor = Self {
            platform: Arc::new(inputs.platform),
            log_policy: inputs.log_policy,
            processes: BTreeMap::new(),
            instances: BTreeMap::new(),
            next_id: 0,
            pending: FuturesUnordered::new(),
            timers: BTreeSet::new(),
            touched: BTreeSet::new(),
            rollouts: Rollouts::default(),
            store: Store::new(inputs.state_file),
            sampling: sample::Sampling::default(),
            watches: watching::Watches::default(),
            requests: inputs.requests,
            snapshot: inputs.snapshot,
            events: inputs.events,
            watchers: inputs.watchers,
            metrics: inputs.metrics,
            replies: Vec::new(),
        };
        (supervisor, inputs.configured)
    }

    /// Runs until the agent stops; what runs then goes on running.
    pub(super) async fn run(mut self, configured: Vec<Spec>, blocker: Blocker, mut stop: Stop) {
        self.take_over(configured).await;
        self.publish();
        drop(blocker);
        loop {
            let mut wake = self.next(&mut stop).await;
            for _ in 0..BATCH {
                let stops = self.on_wake(wake);
                if stops {
                    return self.save_now().await;
                }
                match self.ready_now() {
                    Some(next) => wake = next,
                    None => break,
                }
            }
            self.save_if_changed();
            self.publish();
        }
    }

    async fn next(&mut self, stop: &mut Stop) -> Wake<P::Child> {
        let deadline = self.timers.first().map(|(at, _)| *at).into_iter().chain(self.sampling_deadline()).min();
        let sleep = async move {
            match deadline {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        let watchers = Arc::clone(&self.watchers);
        tokio::select! {
            request = self.requests.recv() => Wake::Request(request),
            Some(done) = self.pending.next() => Wake::Done(done),
            Some(changed) = self.watches.changes.recv() => Wake::FilesChanged(changed),
            () = sleep => Wake::Time,
            () = watchers.changed.notified() => Wake::Watched,
            () = stop.requested() => Wake::Stop,
        }
    }

    /// What else there is to do before the snapshot is renewed.
    fn ready_now(&mut self) -> Option<Wake<P::Child>> {
        use futures_util::FutureExt as _;
        if let Some(Some(done)) = self.pending.next().now_or_never() {
            return Some(Wake::Done(done));
        }
        self.requests.try_recv().ok().map(|request| Wake::Request(Some(request)))
    }

    /// Returns whether the agent stops.
    fn on_wake(&mut self, wake: Wake<P::Child>) -> bool {
        let now = clock();
        match wake {
            Wake::Stop | Wake::Request(None) => return true,
            Wake::Request(Some(request)) => self.on_request(request, now),
            Wake::Done(done) => self.on_done(done, now),
            Wake::Time => self.on_time(now),
            Wake::Watched => self.sample_soon(),
            Wake::FilesChanged(changed) => self.on_files_changed(changed, now),
        }
        false
    }

    fn on_done(&mut self, done: Done<P::Child>, now: Instant) {
        match done {
            Done::Checked(definition, result, reply) => self.on_checked(*definition, result, reply, now),
            Done::Spawned(id, generation, result) => self.on_spawned(id, generation, result, now),
            Done::Ended(id, generation, exit) => self.on_ended(id, generation, exit, now),
            Done::Swept(id, generation) => {
                if self.is_current(id, generation) {
                    if let Some(instance) = self.instances.get_mut(&id) {
                        instance.forget_process();
                    }
                    self.feed(id, Input::Swept, now);
                }
            }
            Done::Probed(id, generation, result) => self.on_probed(id, generation, result, now),
            Done::Looked(id, generation, port, succession) => self.on_looked(id, generation, port, succession, now),
            Done::StoodBy(id, generation, result) => self.on_stood_by(id, generation, result, now),
            Done::Drained(id, generation) => self.on_drained(id, generation, now),
            Done::Sent(result, reply) => self.answer(reply, result),
            Done::Cleared => {}
            Done::Sampled(usages, at) => self.on_sampled(usages, at, now),
            Done::Saved(version, result) => self.on_saved(version, result),
        }
    }

    fn on_time(&mut self, now: Instant) {
        while let Some((at, id)) = self.timers.first().copied() {
            if at > now {
                break;
            }
            self.timers.pop_first();
            self.on_due(id, now);
        }
        if self.sampling_deadline().is_some_and(|at| at <= now) {
            self.sample(now);
        }
    }

    fn on_due(&mut self, id: u32, now: Instant) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        instance.timer = None;
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if is_due(instance.monitor.as_ref().and_then(Monitor::due)) {
            self.probe(id, now);
        }
        self.look_at_calendar(id, now);
        let Some(instance) = self.instances.get(&id) else { return };
        if is_due(instance.machine.deadline()) {
            self.feed(id, Input::Tick, now);
        } else {
            self.set_timer(id);
        }
    }

    fn is_current(&self, id: u32, generation: u64) -> bool {
        self.instances.get(&id).is_some_and(|instance| instance.generation == generation)
    }

    /// Gives an instance an input, carries out what its machine answers, and notes what that changes.
    fn feed(&mut self, id: u32, input: Input, now: Instant) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        let before = instance.machine.status();
        let action = instance.machine.handle(input, now);
        let after = instance.machine.status();
        if after != Status::Online {
            // What was to take its place is called off.
            instance.standby = None;
        }
        self.touched.insert(id);
        if before != after {
            self.announce_status(id, after);
        }
        match action {
            Some(Action::Spawn) => self.spawn(id, now),
            Some(Action::Signal) => self.signal(id),
            Some(Action::Sweep) => self.sweep(id),
            None => {}
        }
        self.set_timer(id);
        self.let_go(id, now);
        if before != after {
            self.release_held(now);
        }
        self.remove_if_due(id);
        self.advance_rollout(id, now);
    }

    fn set_timer(&mut self, id: u32) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        let wanted = instance.due();
        if instance.timer == wanted {
            return;
        }
        if let Some(old) = instance.timer.take() {
            self.timers.remove(&(old, id));
        }
        if let Some(at) = wanted {
            self.timers.insert((at, id));
        }
        instance.timer = wanted;
    }

    fn spawn(&mut self, id: u32, now: Instant) {
        if self.hold(id) {
            return;
        }
        let used: BTreeSet<u16> = self
            .instances
            .iter()
            .filter(|(other, _)| **other != id)
            .flat_map(|(_, instance)| instance.ports())
            .collect();
        let Some(instance) = self.instances.get_mut(&id) else { return };
        let Some(process) = self.processes.get(&instance.process) else { return };
        let definition = Arc::clone(&process.spec.definition);
        let port = match choose_port(&*self.platform, &definition, instance.index, &used) {
            Ok(port) => port,
            Err(error) => return self.on_start_error(id, &error, now),
        };
        instance.begin(port, process.fingerprint);
        let generation = instance.generation;
        let launch = launch(instance, definition);
        let platform = Arc::clone(&self.platform);
        self.pending.push(Box::pin(async move {
            let hook = launch.definition.pre_start.clone();
            if let Some(command) = hook
                && let Err(why) = platform.run(launch.clone(), &command, Purpose::Hook, HOOK_LIMIT).await
            {
                let error = StartError { why: format!("pre_start: {why}"), permanent: false };
                platform.sweep(launch.place).await;
                return Done::Spawned(id, generation, Err(error));
            }
            Done::Spawned(id, generation, platform.spawn(launch).await)
        }));
    }

    fn on_spawned(&mut self, id: u32, generation: u64, result: Result<P::Child, StartError>, now: Instant) {
        if !self.is_current(id, generation) {
            return;
        }
        match result {
            Ok(child) => {
                self.metrics.started.inc();
                self.run_child(id, child, SystemTime::now(), false, now);
                self.announce(id, super::view::What::Started);
                self.feed(id, Input::Spawned, now);
            }
            Err(error) => self.on_start_error(id, &error, now),
        }
    }

    /// Notes the process and waits for its end.
    fn run_child(&mut self, id: u32, child: P::Child, started: SystemTime, adopted: bool, now: Instant) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        let generation = instance.generation;
        if let Some(check) = self.processes.get(&instance.process).and_then(|process| process.spec.check.clone()) {
            let monitor = Monitor::new(check, instance.port, &instance.health, adopted, now);
            instance.health = monitor.view.clone();
            instance.monitor = Some(monitor);
        }
        instance.run(self.platform.pid(&child), child.clone(), started, now);
        let platform = Arc::clone(&self.platform);
        self.pending.push(Box::pin(async move { Done::Ended(id, generation, platform.ended(child).await) }));
    }

    fn on_start_error(&mut self, id: u32, error: &StartError, now: Instant) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        tracing::warn!(process = %instance.name, why = %error.why, "a process was not started");
        instance.error = Some(error.why.as_str().into());
        instance.forget_process();
        self.metrics.start_failures.inc();
        self.feed(id, Input::SpawnFailed { permanent: error.permanent }, now);
    }

    fn on_ended(&mut self, id: u32, generation: u64, exit: Exit, now: Instant) {
        if !self.is_current(id, generation) {
            return;
        }
        let Some(instance) = self.instances.get_mut(&id) else { return };
        instance.last_exit = Some(exit);
        instance.child = None;
        instance.pid = None;
        self.announce(id, super::view::What::Exited);
        self.feed(id, Input::Exited(exit), now);
    }

    fn signal(&mut self, id: u32) {
        let Some(instance) = self.instances.get(&id) else { return };
        let (Some(child), Some(process)) = (&instance.child, self.processes.get(&instance.process)) else { return };
        self.platform.signal(child, process.spec.definition.kill_signal);
    }

    fn sweep(&mut self, id: u32) {
        let Some(instance) = self.instances.get(&id) else { return };
        let Some(process) = self.processes.get(&instance.process) else { return };
        let (launch, generation) = (launch(instance, Arc::clone(&process.spec.definition)), instance.generation);
        let platform = Arc::clone(&self.platform);
        self.pending.push(Box::pin(async move {
            clear_away(&*platform, launch).await;
            Done::Swept(id, generation)
        }));
    }

    fn clear(&mut self, found: &Found<P::Child>) {
        let (platform, place) = (Arc::clone(&self.platform), found.place.clone());
        self.pending.push(Box::pin(async move {
            platform.sweep(place).await;
            Done::Cleared
        }));
    }
}

/// Kills what is left of a process, then runs `post_stop`.
async fn clear_away<P: Platform>(platform: &P, launch: Launch) {
    platform.sweep(launch.place.clone()).await;
    let (hook, place) = (launch.definition.post_stop.clone(), launch.place.clone());
    let Some(command) = hook else { return };
    if let Err(why) = platform.run(launch, &command, Purpose::Hook, HOOK_LIMIT).await {
        tracing::warn!(place = %place.cgroup(), why, "post_stop did not end well");
    }
    platform.sweep(place).await;
}

/// The runtime's clock, which a test may stop.
fn clock() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn launch<C>(instance: &Instance<C>, definition: Arc<Definition>) -> Launch {
    Launch {
        definition,
        name: Arc::clone(&instance.name),
        log_name: Arc::clone(&instance.log_name),
        place: instance.place(),
        record: instance.record(),
    }
}

/// The port of an instance: the first of its own that nobody has.
fn choose_port<P: Platform>(
    platform: &P,
    definition: &Definition,
    index: u32,
    used: &BTreeSet<u16>,
) -> Result<Option<u16>, StartError> {
    let Some(ports) = definition.port else { return Ok(None) };
    let mut wanted = ports.of_instance(index).peekable();
    if wanted.peek().is_none() {
        return Ok(None);
    }
    let free = wanted.find(|port| !used.contains(port) && platform.is_port_free(*port));
    let refused = || StartError { why: format!("port {ports} is in use by another program"), permanent: false };
    free.map(Some).ok_or_else(refused)
}

#[cfg(test)]
mod tests;
