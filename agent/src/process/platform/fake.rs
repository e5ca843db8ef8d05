//! A host in memory: processes that live until a test ends them, in cgroups that can hold more than the main one.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::{broadcast, watch};

use super::{Found, Launch, Place, Platform, Purpose, Record, StartError, Usage};
use crate::process::definition::{Definition, KillSignal};
use crate::process::view::Exit;
use crate::process::watched::Rules;
use crate::sys::listeners::Listener;

/// The host; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Fake {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    next_pid: u32,
    running: BTreeMap<Place, Running>,
    /// Every start that was carried out, in order.
    starts: Vec<String>,
    /// Processes that do not end on a signal.
    stubborn: bool,
    used_ports: Vec<u16>,
    /// The fewest processes that ever ran since it was set.
    fewest: usize,
    refuse: Option<StartError>,
    /// Every command that was run, in order.
    commands: Vec<String>,
    /// Commands that do not end well.
    failing: Vec<String>,
    /// When the clock began.
    clock: Option<tokio::time::Instant>,
    /// Files that change, for those who watch.
    changes: Option<broadcast::Sender<PathBuf>>,
    /// What was sent to each cgroup.
    sent: Vec<(String, Vec<u8>)>,
    /// Where each process listens, by its name; others listen alone on the port they are given.
    listeners: BTreeMap<String, Vec<Listener>>,
    /// Processes that end as soon as they are started.
    doomed: bool,
    /// Why no file can be watched.
    blind: Option<String>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    end: watch::Sender<Option<Exit>>,
    record: Record,
}

/// A process of the fake host.
#[derive(Debug, Clone)]
pub struct Child {
    pid: u32,
    end: watch::Receiver<Option<Exit>>,
}

impl Fake {
    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Ends the process of `cgroup` as if by itself.
    pub fn end(&self, cgroup: &str, exit: Exit) {
        self.with(|state| {
            if let Some((_, running)) = state.running.iter().find(|(place, _)| place.cgroup() == cgroup) {
                running.end.send_replace(Some(exit));
            }
        });
    }

    /// The cgroups in which something runs.
    pub fn running(&self) -> Vec<String> {
        self.with(|state| state.running.keys().map(Place::cgroup).collect())
    }

    /// The cgroups of every start so far.
    pub fn starts(&self) -> Vec<String> {
        self.with(|state| state.starts.clone())
    }

    /// From now on the fewest processes that run at a time are counted.
    pub fn count_fewest(&self) {
        self.with(|state| state.fewest = state.running.len());
    }

    /// The fewest processes that ran at a time since [`Self::count_fewest`].
    pub fn fewest(&self) -> usize {
        self.with(|state| state.fewest)
    }

    /// From now on processes do not end on a signal.
    pub fn ignore_signals(&self) {
        self.with(|state| state.stubborn = true);
    }

    /// The commands that were run so far, after the cgroup they belong to.
    pub fn commands(&self) -> Vec<String> {
        self.with(|state| state.commands.clone())
    }

    /// From now on `command` fails, or no longer.
    pub fn set_failing(&self, command: &str, fails: bool) {
        self.with(|state| {
            state.failing.retain(|failing| failing != command);
            state.failing.extend(fails.then(|| command.to_owned()));
        });
    }

    /// What was sent so far, after the cgroup it was sent to.
    pub fn sent(&self) -> Vec<(String, Vec<u8>)> {
        self.with(|state| state.sent.clone())
    }

    /// A file changes; returns how many watch it.
    pub fn touch(&self, path: &str) -> usize {
        self.with(|state| state.changes.as_ref().map_or(0, |changes| changes.send(path.into()).unwrap_or(0)))
    }

    /// Processes called `process` listen there from now on.
    pub fn listen(&self, process: &str, listeners: Vec<Listener>) {
        self.with(|state| state.listeners.insert(process.to_owned(), listeners));
    }

    /// From now on every process ends at once, or no longer.
    pub fn doom(&self, doomed: bool) {
        self.with(|state| state.doomed = doomed);
    }

    /// From now on no file can be watched.
    pub fn blind(&self, why: &str) {
        self.with(|state| state.blind = Some(why.to_owned()));
    }

    /// Somebody else listens on `port`.
    pub fn use_port(&self, port: u16) {
        self.with(|state| state.used_ports.push(port));
    }

    /// Every start fails with `error` until it is `None`.
    pub fn refuse(&self, error: Option<StartError>) {
        self.with(|state| state.refuse = error);
    }
}

impl Platform for Fake {
    type Child = Child;
    type Watch = broadcast::Receiver<PathBuf>;

    async fn check(&self, _definition: &Definition) -> Result<(), StartError> {
        self.with(|state| state.refuse.clone().map_or(Ok(()), Err))
    }

    async fn spawn(&self, launch: Launch) -> Result<Child, StartError> {
        self.with(|state| {
            if let Some(error) = &state.refuse {
                return Err(error.clone());
            }
            state.next_pid += 1;
            let (end, ended) = watch::channel(state.doomed.then_some(Exit::Code(7)));
            let child = Child { pid: state.next_pid, end: ended };
            state.starts.push(launch.place.cgroup());
            state.running.insert(launch.place, Running { child: child.clone(), end, record: launch.record });
            Ok(child)
        })
    }

    fn pid(&self, child: &Child) -> u32 {
        child.pid
    }

    async fn ended(&self, mut child: Child) -> Exit {
        match child.end.wait_for(Option::is_some).await {
            Ok(exit) => exit.unwrap_or(Exit::Unknown),
            Err(_gone) => Exit::Signal(9),
        }
    }

    fn signal(&self, child: &Child, _signal: KillSignal) {
        self.with(|state| {
            let is_meant = |running: &&Running| running.child.pid == child.pid;
            if let (false, Some(running)) = (state.stubborn, state.running.values().find(is_meant)) {
                running.end.send_replace(Some(Exit::Signal(15)));
            }
        });
    }

    async fn sweep(&self, place: Place) {
        self.with(|state| {
            state.running.remove(&place);
            state.fewest = state.fewest.min(state.running.len());
        });
    }

    async fn run(&self, launch: Launch, command: &str, _purpose: Purpose, _limit: Duration) -> Result<(), String> {
        self.with(|state| {
            state.commands.push(format!("{} {command}", launch.place.cgroup()));
            if state.failing.iter().any(|failing| failing == command) { Err("code 1".to_owned()) } else { Ok(()) }
        })
    }

    async fn send(&self, place: &Place, input: Vec<u8>) -> Result<(), String> {
        self.with(|state| state.sent.push((place.cgroup(), input)));
        Ok(())
    }

    async fn retire(&self, _log_name: &str) {}

    async fn usage(&self, places: Vec<(Place, u32)>) -> Vec<Option<Usage>> {
        let usage = Usage { cpu_micros: 0, memory_bytes: 1 << 20 };
        self.with(|state| places.iter().map(|(place, _)| state.running.contains_key(place).then_some(usage)).collect())
    }

    async fn find(&self) -> Vec<Found<Child>> {
        self.with(|state| {
            let found = |(place, running): (&Place, &Running)| Found {
                place: place.clone(),
                main: running.end.borrow().is_none().then(|| (running.child.clone(), running.record.clone())),
            };
            state.running.iter().map(found).collect()
        })
    }

    async fn watch(&self, _rules: Rules) -> Result<Self::Watch, String> {
        self.with(|state| match &state.blind {
            Some(why) => Err(why.clone()),
            None => Ok(state.changes.get_or_insert_with(|| broadcast::Sender::new(64)).subscribe()),
        })
    }

    async fn change(&self, watch: &mut Self::Watch) -> Result<PathBuf, String> {
        watch.recv().await.map_err(|error| error.to_string())
    }

    async fn listeners(&self, place: Place) -> Option<Vec<Listener>> {
        self.with(|state| {
            let Some(running) = state.running.get(&place) else { return Some(Vec::new()) };
            let given = running.record.port.map(|port| ([0, 0, 0, 0], port).into());
            let given = given.map(|address| Listener { address, can_be_shared: false });
            let told = state.listeners.get(&*place.process).cloned();
            Some(told.unwrap_or_else(|| given.into_iter().collect()))
        })
    }

    fn ephemeral_ports(&self) -> RangeInclusive<u16> {
        32768..=60999
    }

    fn promote(&self, _child: &Child, place: &Place, record: &Record) {
        self.with(|state| {
            if let Some(running) = state.running.get_mut(place) {
                running.record = record.clone();
            }
        });
    }

    fn is_port_free(&self, port: u16) -> bool {
        self.with(|state| !state.used_ports.contains(&port))
    }

    /// Goes with the runtime's clock, which a test may stop; begins in 2001.
    fn wall_clock(&self) -> SystemTime {
        let now = tokio::time::Instant::now();
        let begun = self.with(|state| *state.clock.get_or_insert(now));
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000) + (now - begun)
    }
}
