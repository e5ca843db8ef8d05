//! What the supervisor publishes: every instance as it is, with versions that make a difference cheap to see. Plain data.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::definition::Definition;

pub use crate::sys::pidfd::Exit;

/// All instances at one moment, in the order of their ids.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Grows with every change.
    pub version: u64,
    pub processes: Arc<[Arc<View>]>,
}

/// One instance.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// [`Snapshot::version`] at which it changed last.
    pub version: u64,
    pub id: u32,
    /// `web`, or `web-0`, `web-1` in a cluster.
    pub name: Arc<str>,
    /// `web`.
    pub process: Arc<str>,
    pub instance: u32,
    pub namespace: Arc<str>,
    pub status: Status,
    pub pid: Option<u32>,
    pub port: Option<u16>,
    /// Automatic and asked-for restarts since it was made or the counters were reset.
    pub restarts: u64,
    pub created: SystemTime,
    /// When the running process was started.
    pub started: Option<SystemTime>,
    pub figures: Figures,
    pub health: Health,
    /// Why it was last restarted.
    pub restart_reason: Option<Reason>,
    /// When `cron_restart` restarts it next.
    pub next_restart: Option<SystemTime>,
    /// How the process before this one, or the last one, ended.
    pub last_exit: Option<Exit>,
    /// Why it does not run, or why it was last restarted.
    pub error: Option<Arc<str>>,
    /// When the back-off lets it start again.
    pub next_start: Option<SystemTime>,
    pub definition: Arc<Definition>,
    pub out_log: Arc<Path>,
    pub error_log: Arc<Path>,
}

/// What an instance does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Starting,
    Online,
    Stopping,
    Stopped,
    Errored,
    Restarting,
}

impl Status {
    /// PMDaemon's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Online => "online",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Errored => "errored",
            Self::Restarting => "restarting",
        }
    }
}

/// Why an instance got another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Somebody asked for it: `restart`, `reload`.
    Asked,
    /// It ended by itself, or could not be started.
    Ended,
    /// `max_memory_restart`.
    Memory,
    /// Its health check.
    Health,
    /// `cron_restart`.
    Cron,
    /// A file changed: `watch`.
    Watch,
}

impl Reason {
    /// Its name in every interface.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Ended => "ended",
            Self::Memory => "memory",
            Self::Health => "health",
            Self::Cron => "cron",
            Self::Watch => "watch",
        }
    }
}

/// What it uses, sampled.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Figures {
    /// Of one processor, 100 is all of it; everything in its cgroup.
    pub cpu_percent: f64,
    /// Resident memory of everything in its cgroup.
    pub memory_bytes: u64,
}

/// What its health checks say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Health {
    pub status: HealthStatus,
    pub last_check: Option<SystemTime>,
    /// `http`, `tcp` or `script`.
    pub kind: Option<&'static str>,
    /// The URL, address or command.
    pub target: Option<Arc<str>>,
    pub total: u64,
    pub successful: u64,
    pub last_error: Option<Arc<str>>,
    /// Its last checks, the oldest first; those of earlier processes of the instance are among them.
    pub history: Arc<[Checked]>,
}

/// How one health check went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// When it ended.
    pub at: SystemTime,
    pub took: Duration,
    /// Why it failed; `None`: it was well.
    pub error: Option<Arc<str>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HealthStatus {
    /// No check is defined.
    #[default]
    None,
    /// None has been carried out yet.
    Unknown,
    Healthy,
    Unhealthy,
}

impl HealthStatus {
    /// Its name in every interface.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// Something that happened to an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub at: SystemTime,
    pub id: u32,
    pub name: Arc<str>,
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Created,
    Started,
    Online,
    Stopping,
    Stopped,
    Exited,
    Restarting,
    Errored,
    HealthChanged,
    MemoryLimit,
    /// `cron_restart` has come.
    Scheduled,
    /// A file that is watched has changed.
    FilesChanged,
    Deleted,
}

impl What {
    /// Its name in every interface.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Started => "started",
            Self::Online => "online",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Exited => "exited",
            Self::Restarting => "restarting",
            Self::Errored => "errored",
            Self::HealthChanged => "health_changed",
            Self::MemoryLimit => "memory_limit_exceeded",
            Self::Scheduled => "cron_restart",
            Self::FilesChanged => "watch",
            Self::Deleted => "deleted",
        }
    }
}
