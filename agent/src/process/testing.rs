//! A supervisor over a fake host, for the tests of what stands above it.

use std::sync::Arc;

use tempfile::TempDir;

use super::{
    EVENTS, Handle, Inputs, LogKeeper, LogPolicy, Metrics, REQUESTS, Registry, Shared, Supervisor, Watchers, broadcast,
    mpsc, task, watch,
};
use crate::foundation::lifecycle::{Readiness, Shutdown};
use crate::process::platform::fake::Fake;

/// It runs while this lives; its list is in a directory of its own.
pub(crate) struct Supervised {
    pub(crate) handle: Handle,
    pub(crate) host: Fake,
    _directory: TempDir,
    _shutdown: Shutdown,
    _tasks: [task::Task; 2],
}

/// Starts one that supervises nothing yet. Its processes write no logs.
pub(crate) fn start() -> Supervised {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let launcher = Arc::new(|| Err(std::io::ErrorKind::Unsupported.into()));
    let (logs, logs_task) = LogKeeper::start(directory.path(), launcher);
    let log_policy = LogPolicy {
        directory: directory.path().to_owned(),
        max_bytes: 1 << 20,
        max_age_s: 60,
        keep: 1,
        compress: false,
    };
    let (requests, received) = mpsc::channel(REQUESTS);
    let (publish, snapshot) = watch::channel(Arc::default());
    let events = broadcast::Sender::new(EVENTS);
    let (watchers, host, shutdown) = (Arc::new(Watchers::default()), Fake::default(), Shutdown::default());
    let (supervisor, configured) = Supervisor::new(Inputs {
        platform: host.clone(),
        log_policy,
        state_file: directory.path().join("processes.json"),
        configured: Vec::new(),
        requests: received,
        snapshot: publish,
        events: events.clone(),
        watchers: Arc::clone(&watchers),
        metrics: Metrics::new(&Registry::default(), snapshot.clone()),
    });
    let run = supervisor.run(configured, Readiness::default().block("process"), shutdown.stop());
    let handle = Handle { shared: Ok(Arc::new(Shared { requests, snapshot, events, logs, watchers })) };
    let tasks = [task::spawn("process", run), logs_task];
    Supervised { handle, host, _directory: directory, _shutdown: shutdown, _tasks: tasks }
}
