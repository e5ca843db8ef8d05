//! One process and its instances as the supervisor keeps them.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::beside::Standby;
use crate::process::health::Monitor;
use crate::process::machine::{Machine, Policy};
use crate::process::platform::{Place, Record};
use crate::process::schedule::Alarm;
use crate::process::spec::Spec;
use crate::process::view::{Exit, Figures, Health, HealthStatus, View};

/// A definition and who made it.
pub(super) struct Process {
    pub(super) spec: Spec,
    pub(super) fingerprint: u64,
    pub(super) origin: Origin,
    pub(super) created: SystemTime,
    /// Why its files are not watched though they should be.
    pub(super) watch_error: Option<Arc<str>>,
    /// By index.
    pub(super) ids: Vec<u32>,
}

/// Where a definition came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Origin {
    /// `[process.NAME]`.
    Configuration,
    /// The command line or an interface.
    Command,
}

/// One instance.
pub(super) struct Instance<C> {
    pub(super) id: u32,
    pub(super) process: Arc<str>,
    pub(super) index: u32,
    pub(super) name: Arc<str>,
    pub(super) log_name: Arc<str>,
    pub(super) machine: Machine,
    /// Counts the lives, over agents too; part of the cgroup's name.
    pub(super) generation: u64,
    pub(super) child: Option<C>,
    pub(super) pid: Option<u32>,
    pub(super) port: Option<u16>,
    /// The highest generation there was, of one beside it too.
    pub(super) newest: u64,
    /// What is to take its place.
    pub(super) standby: Option<Standby>,
    /// Processes beside the one of this generation: the next one, and those that were asked to end.
    pub(super) beside: u32,
    /// Of the definition that the running process has.
    pub(super) fingerprint: u64,
    pub(super) started: Option<SystemTime>,
    pub(super) last_exit: Option<Exit>,
    pub(super) error: Option<Arc<str>>,
    pub(super) figures: Figures,
    pub(super) sampled: Option<(Instant, u64)>,
    pub(super) health: Health,
    /// Its checks, while a process runs.
    pub(super) monitor: Option<Monitor>,
    /// Of `cron_restart`, while somebody wants it to run.
    pub(super) alarm: Option<Alarm>,
    /// It is to be started once others are online.
    pub(super) held: bool,
    /// Somebody wants it to run; saved.
    pub(super) wanted: bool,
    /// It goes away once nothing runs.
    pub(super) leaving: bool,
    pub(super) timer: Option<Instant>,
    pub(super) view: Option<Arc<View>>,
}

impl<C> Instance<C> {
    pub(super) fn new(id: u32, spec: &Spec, index: u32) -> Self {
        Self {
            id,
            process: spec.definition.name.as_str().into(),
            index,
            name: spec.instance_name(index).into(),
            log_name: spec.log_name(index).into(),
            machine: Machine::new(Policy::of(spec), seed(id)),
            generation: 0,
            newest: 0,
            standby: None,
            beside: 0,
            child: None,
            pid: None,
            port: None,
            fingerprint: 0,
            started: None,
            last_exit: None,
            error: None,
            figures: Figures::default(),
            sampled: None,
            health: Health::default(),
            monitor: None,
            alarm: None,
            held: false,
            wanted: true,
            leaving: false,
            timer: None,
            view: None,
        }
    }

    pub(super) fn place(&self) -> Place {
        Place { process: Arc::clone(&self.process), index: self.index, generation: self.generation }
    }

    /// The ports of its processes.
    pub(super) fn ports(&self) -> impl Iterator<Item = u16> + use<C> {
        self.port.into_iter().chain(self.standby.as_ref().and_then(|standby| standby.port))
    }

    /// When something is due: of its machine, a check, or the calendar.
    pub(super) fn due(&self) -> Option<Instant> {
        let check = self.monitor.as_ref().and_then(Monitor::due);
        let alarm = self.alarm.as_ref().map(Alarm::look);
        self.machine.deadline().into_iter().chain(check).chain(alarm).min()
    }

    /// Another life begins.
    pub(super) fn begin(&mut self, port: Option<u16>, fingerprint: u64) {
        self.newest += 1;
        self.generation = self.newest;
        self.port = port;
        self.fingerprint = fingerprint;
    }

    pub(super) fn record(&self) -> Record {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Record {
            port: self.port,
            restarts: self.machine.restarts(),
            fingerprint: self.fingerprint,
            standby: false,
            started_ms: u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX),
        }
    }

    pub(super) fn run(&mut self, pid: u32, child: C, started: SystemTime, now: Instant) {
        self.pid = Some(pid);
        self.child = Some(child);
        self.started = Some(started);
        self.error = None;
        self.sampled = Some((now, 0));
    }

    /// Nothing of the process is left.
    pub(super) fn forget_process(&mut self) {
        self.child = None;
        self.pid = None;
        self.monitor = None;
        if self.health.kind.is_some() {
            self.health.status = HealthStatus::Unknown;
        }
        self.port = None;
        self.started = None;
        self.figures = Figures::default();
        self.sampled = None;
    }
}

/// Different for each instance and each agent.
fn seed(id: u32) -> u64 {
    (u64::from(std::process::id()) << 32 | u64::from(id)).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// What tells two definitions apart: an FNV-1a of their JSON, stable over versions that write the same.
pub(super) fn fingerprint(spec: &Spec) -> u64 {
    let text = serde_json::to_vec(&*spec.definition).unwrap_or_default();
    text.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
