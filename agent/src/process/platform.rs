//! The host as the supervisor uses it: start a process in a cgroup of its own, hear of its end, signal it, clear the cgroup,
//! see what it uses, find what an earlier agent left running.

pub mod fake;
pub mod linux;

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::definition::{Definition, KillSignal};
use super::view::Exit;
use super::watched::Rules;
use crate::sys::listeners::Listener;

/// One process to be started.
#[derive(Debug, Clone)]
pub struct Launch {
    pub definition: Arc<Definition>,
    /// The name of the instance.
    pub name: Arc<str>,
    /// The name of its FIFOs and log files, which stays when the number of instances changes.
    pub log_name: Arc<str>,
    pub place: Place,
    pub record: Record,
}

/// Why a command is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// What it writes is not kept.
    Check,
    /// What it writes goes into the logs of the process.
    Hook,
}

/// Which life of which instance; its cgroup is `NAME@INDEX.GENERATION`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    pub process: Arc<str>,
    pub index: u32,
    pub generation: u64,
}

impl Place {
    /// The name of its cgroup.
    pub fn cgroup(&self) -> String {
        format!("{}@{}.{}", self.process, self.index, self.generation)
    }

    /// The place that the cgroup `name` stands for.
    pub fn parse(name: &str) -> Option<Self> {
        let (process, rest) = name.rsplit_once('@')?;
        let (index, generation) = rest.split_once('.')?;
        Some(Self { process: process.into(), index: index.parse().ok()?, generation: generation.parse().ok()? })
    }
}

/// What is written beside a running process for the next agent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Record {
    pub port: Option<u16>,
    pub restarts: u64,
    /// Of the definition it was started with.
    pub fingerprint: u64,
    /// It was to take the place of another and had not yet.
    #[serde(default)]
    pub standby: bool,
    /// Milliseconds since 1970.
    pub started_ms: u64,
}

/// What runs in the cgroups of this agent.
#[derive(Debug, Clone)]
pub struct Found<C> {
    pub place: Place,
    /// The main process and what is known of it; `None`: it has ended, and others of its cgroup live.
    pub main: Option<(C, Record)>,
}

/// Why a process was not started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct StartError {
    /// One sentence: what is wrong and what to do.
    pub why: String,
    /// The same start would fail again.
    pub permanent: bool,
}

/// What the cgroup of a process uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// CPU time since it was made.
    pub cpu_micros: u64,
    pub memory_bytes: u64,
}

/// The host.
pub trait Platform: Send + Sync + 'static {
    /// A running process.
    type Child: Clone + Send + Sync + 'static;

    /// Files that are watched.
    type Watch: Send + 'static;

    /// Looks whether `definition` could be started now, without doing it.
    fn check(&self, definition: &Definition) -> impl Future<Output = Result<(), StartError>> + Send;

    /// Starts a process.
    fn spawn(&self, launch: Launch) -> impl Future<Output = Result<Self::Child, StartError>> + Send;

    /// The process id of a child.
    fn pid(&self, child: &Self::Child) -> u32;

    /// Waits for its end.
    fn ended(&self, child: Self::Child) -> impl Future<Output = Exit> + Send;

    /// Asks it to end. One that is gone needs no signal.
    fn signal(&self, child: &Self::Child, signal: KillSignal);

    /// Kills everything in the cgroup, waits until nothing is left and takes the cgroup away.
    fn sweep(&self, place: Place) -> impl Future<Output = ()> + Send;

    /// Runs a command of the process beside it, with its rights and environment, to its end; an end that is not good says why.
    fn run(
        &self,
        launch: Launch,
        command: &str,
        purpose: Purpose,
        limit: Duration,
    ) -> impl Future<Output = Result<(), String>> + Send;

    /// Writes into the standard input of a process that has a pipe there: all of it or nothing. Why it was not written.
    fn send(&self, place: &Place, input: Vec<u8>) -> impl Future<Output = Result<(), String>> + Send;

    /// Nothing will be written under this name any more: what is left is written, then nobody waits for more.
    fn retire(&self, log_name: &str) -> impl Future<Output = ()> + Send;

    /// What each cgroup uses, by its main process; `None`: it is gone.
    fn usage(&self, places: Vec<(Place, u32)>) -> impl Future<Output = Vec<Option<Usage>>> + Send;

    /// Everything that runs in cgroups of this agent.
    fn find(&self) -> impl Future<Output = Vec<Found<Self::Child>>> + Send;

    /// Begins to watch files; what is ours is left out.
    fn watch(&self, rules: Rules) -> impl Future<Output = Result<Self::Watch, String>> + Send;

    /// Waits for a change and says where; a change that is under way when the future is dropped may go unseen.
    fn change(&self, watch: &mut Self::Watch) -> impl Future<Output = Result<PathBuf, String>> + Send;

    /// Where the processes of a cgroup listen; `None`: this kernel does not tell.
    fn listeners(&self, place: Place) -> impl Future<Output = Option<Vec<Listener>>> + Send;

    /// Ports of the kernel's choice.
    fn ephemeral_ports(&self) -> RangeInclusive<u16>;

    /// A process that stood by is the one of its instance now: the next agent is told.
    fn promote(&self, child: &Self::Child, place: &Place, record: &Record);

    /// Whether nothing listens on `port` of this host.
    fn is_port_free(&self, port: u16) -> bool;

    /// The time of day, which may jump.
    fn wall_clock(&self) -> SystemTime;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_read_back_from_its_cgroup() {
        let place = Place { process: "a@b".into(), index: 3, generation: 17 };
        assert_eq!(Place::parse(&place.cgroup()), Some(place));
        for other in ["log-keeper", "web@", "web@1", "web@x.1"] {
            assert_eq!(Place::parse(other), None, "{other}");
        }
    }
}
