//! Processes: started, watched, restarted, kept when the agent goes, adopted when it comes.
//!
//! | module | what it owns |
//! |---|---|
//! | [`quantity`] | durations, sizes, ports, counts as people write them (pure) |
//! | [`definition`] | a process as it is written down |
//! | [`schedule`] | `cron_restart` (pure but for the time zone of the host) |
//! | [`watched`] | which files a process is restarted for (pure) |
//! | [`spec`] | a definition that was checked (pure) |
//! | [`config`] | `[supervisor]` and `[process.NAME]` |
//! | [`view`] | what is published |
//! | [`health`] | what health checks say, and what follows (pure); the checks |
//! | [`ecosystem`] | files of definitions, PMDaemon's and PM2's (pure) |
//! | [`machine`] | the life of one instance (pure) |
//! | [`succession`] | how a running process is followed by the next (pure) |
//! | [`platform`] | the host: cgroups, pidfds, spawning |
//! | [`logs`] | what processes write |
//! | [`error`] | why something was not done |
//! | [`handle`] | what the rest of the agent calls |
//! | `supervisor` | the owner of the state |
//!
//! In: [`Settings`], requests. Out: a `watch` of [`view::Snapshot`], events, log files, the saved list. Invariants: every
//! instance has a cgroup of its own, and everything in it dies with it; an agent that ends, however it ends, leaves processes
//! and their logs running; the next one restarts nothing that is as it should be, and touches nothing of another instance.

pub mod quantity;
pub mod definition;
pub mod health;
pub mod schedule;
pub mod watched;
pub mod spec;
pub mod ecosystem;
pub mod config;
pub mod view;
pub mod machine;
pub mod succession;
pub mod platform;
pub mod logs;
mod metrics;
pub mod error;
pub mod handle;
mod supervisor;
#[cfg(test)]
pub(crate) mod testing;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{broadcast, mpsc, watch};

use self::handle::{Handle, Shared, Watchers};
use self::logs::client::{Launcher, LogKeeper};
use self::metrics::Metrics;
use self::platform::linux::{HostError, Linux, LogPolicy};
use self::spec::Spec;
use self::supervisor::{Inputs, Supervisor};
use crate::foundation::error::chain;
use crate::foundation::id::InstanceName;
use crate::foundation::lifecycle::{Blocker, Stop};
use crate::foundation::metrics::Metrics as Registry;
use crate::foundation::task::{self, Task};

/// Requests that wait for the owner; their senders wait too.
const REQUESTS: usize = 256;
/// Events a reader may be behind before it has to read the snapshot again.
const EVENTS: usize = 1024;

/// What the domain needs to know before it starts.
#[derive(Debug, Clone)]
pub struct Settings {
    pub config: config::Config,
    pub instance: InstanceName,
    pub state_dir: PathBuf,
    pub run_dir: PathBuf,
    pub processes: Vec<Spec>,
}

/// The running supervisor; dropping it stops supervising and leaves the processes.
#[derive(Debug)]
pub struct Running {
    pub handle: Handle,
    _tasks: Vec<Task>,
}

/// Starts to supervise. A host that lacks what it takes is told by every request, and in the log.
pub fn start(settings: Settings, registry: &Registry, blocker: Blocker, stop: Stop) -> Running {
    if !settings.config.enabled {
        return Running { handle: Handle::disabled("supervisor.enabled is false"), _tasks: Vec::new() };
    }
    match start_on_host(settings, registry, blocker, stop) {
        Ok(running) => running,
        Err(error) => {
            let why = chain(&error);
            tracing::error!(why, "this host cannot supervise processes");
            Running { handle: Handle::disabled(&why), _tasks: Vec::new() }
        }
    }
}

fn start_on_host(settings: Settings, registry: &Registry, blocker: Blocker, stop: Stop) -> Result<Running, HostError> {
    let log_policy = LogPolicy {
        directory: settings.state_dir.join("logs/process"),
        max_bytes: settings.config.log_max_size.0,
        max_age_s: settings.config.log_max_age.0.as_secs(),
        keep: settings.config.log_keep,
        compress: settings.config.log_compress,
    };
    let launcher: Launcher = platform::linux::keeper::launcher(&settings.instance, &settings.run_dir);
    let (logs, logs_task) = LogKeeper::start(&settings.run_dir, launcher);
    let own = [&settings.run_dir, &settings.state_dir].map(PathBuf::clone);
    let platform = Linux::prepare(&settings.instance, own, logs.clone(), log_policy.clone())?;
    let (requests, received) = mpsc::channel(REQUESTS);
    let (publish, snapshot) = watch::channel(Arc::default());
    let events = broadcast::Sender::new(EVENTS);
    let watchers = Arc::new(Watchers::default());
    let inputs = Inputs {
        platform,
        log_policy,
        state_file: settings.state_dir.join("processes.json"),
        configured: settings.processes,
        requests: received,
        snapshot: publish,
        events: events.clone(),
        watchers: Arc::clone(&watchers),
        metrics: Metrics::new(registry, snapshot.clone()),
    };
    let (supervisor, configured) = Supervisor::new(inputs);
    let supervisor = task::spawn("process", supervisor.run(configured, blocker, stop));
    let shared = Shared { requests, snapshot, events, logs, watchers };
    Ok(Running { handle: Handle { shared: Ok(Arc::new(shared)) }, _tasks: vec![supervisor, logs_task] })
}
