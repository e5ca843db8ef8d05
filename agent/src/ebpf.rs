//! The BPF programs of the agent: loading, pins, and the accounting of bytes per peer. Who calls the gateway is in
//! [`callers`], which shares nothing with the accounting but the place of its pins.
//!
//! In: the model (which address is whose) and the link that carries the tunnel. Out: [`Status`] after each pass, and
//! [`Figures`] read from the counters on demand. The programs and their counters live in pins below the BPF file
//! system: they count on while the agent restarts, and an agent that finds them as wanted writes nothing.
//!
//! Invariants: each packet is counted once (one hook, one program); an index is never given to another key; an error
//! here never stops the agent; only what this instance pinned or attached is ever taken away.
//!
//! Kernel memory, per CPU: 80 bytes an index, 1.3 MB with the default of 16,384 peers. Addresses and networks take
//! memory as they are added, besides 0.5 MB of hash buckets for each of IPv4 and IPv6, and 0.25 MB for the table of IPv4
//! addresses.

pub mod callers;
pub mod config;
mod down;
pub mod figures;
mod loader;
mod logs;
mod maps;
mod metrics;
mod pins;
pub mod plan;
pub mod platform;
mod reconciler;
pub mod spec;
pub mod status;
mod table;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use crate::foundation::error::chain;
use crate::foundation::id::InstanceName;
use crate::foundation::lifecycle::Stop;
use crate::foundation::metrics::Metrics;
use crate::foundation::reconcile::{self, Trigger};
use crate::foundation::task::Task;
use crate::model::{Link, Model};
use config::Config;
pub use down::{DownError, Removed, down};
use figures::{FiguresError, Snapshot};
use platform::Platform;
use platform::linux::Linux;
use reconciler::Reconciler;
use status::{Figures, Status};

/// What the accounting is told once, at start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub instance: InstanceName,
    /// Where the instances have their directories; on a BPF file system.
    pub pin_root: PathBuf,
    pub config: Config,
    /// Bytes before the IP header: 0 on WireGuard links and TUN devices, 14 on Ethernet.
    pub l2_length: u32,
}

impl Settings {
    /// The settings of an instance at the usual place, for an L3 link.
    pub fn new(instance: InstanceName, config: Config) -> Self {
        Self { instance, pin_root: PathBuf::from("/sys/fs/bpf/weft"), config, l2_length: 0 }
    }
}

/// The running accounting; dropping it stops the task and leaves programs and counters as they are.
#[derive(Debug)]
pub struct Handle {
    status: watch::Receiver<Status>,
    reader: Reader,
    _running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    _reconciler: reconcile::Handle<Status>,
    _follows: [Task; 2],
}

impl Handle {
    /// The status after the newest pass, and its changes.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Reads the counters now.
    ///
    /// # Errors
    /// Nothing is counted, or the map may not be read.
    pub async fn figures(&self) -> Result<Figures, FiguresError> {
        self.reader.figures().await
    }

    /// What reads the counters, for those who outlive a borrow.
    pub fn reader(&self) -> Reader {
        self.reader.clone()
    }
}

/// Reads the counters. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reader {
    snapshot: watch::Receiver<Option<Arc<Snapshot>>>,
}

impl Reader {
    /// Reads the counters now.
    ///
    /// # Errors
    /// Nothing is counted, or the map may not be read.
    pub async fn figures(&self) -> Result<Figures, FiguresError> {
        let snapshot = self.snapshot.borrow().clone();
        let snapshot = snapshot.ok_or(FiguresError::NotCounting)?;
        let read = tokio::task::spawn_blocking(move || snapshot.read());
        match read.await {
            Ok(figures) => Ok(figures?),
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }
}

/// Starts the accounting on this host. Switched off, it takes away what an earlier run attached.
pub fn start(
    settings: Settings,
    model: watch::Receiver<Arc<Model>>,
    link: watch::Receiver<Option<Link>>,
    metrics: &Metrics,
    stop: Stop,
) -> Handle {
    if !settings.config.enabled {
        let errors = down(&settings).err().map(|error| chain(&error)).into_iter().collect();
        return not_running(Status { errors, ..Status::default() });
    }
    match Linux::new(&settings) {
        Ok(platform) => start_on(platform, settings, model, link, metrics, stop),
        Err(error) => {
            let error = chain(&error);
            tracing::warn!(error, "traffic is not counted per peer");
            not_running(Status { errors: vec![error], ..Status::default() })
        }
    }
}

/// Starts the accounting on any platform.
pub fn start_on(
    platform: impl Platform,
    settings: Settings,
    model: watch::Receiver<Arc<Model>>,
    link: watch::Receiver<Option<Link>>,
    metrics: &Metrics,
    stop: Stop,
) -> Handle {
    let trigger = Trigger::default();
    let follows = [trigger.follow(model.clone()), trigger.follow(link.clone())];
    let (snapshot_tx, snapshot) = watch::channel(None);
    let reconciler = Reconciler::new(platform, settings, model, link, snapshot_tx);
    let reconciler = reconcile::start(reconciler, trigger, Status::default(), stop);
    let (status, reader) = (reconciler.status(), Reader { snapshot });
    metrics::register(metrics, reader.clone(), status.clone());
    Handle { status, reader, _running: Some(Running { _reconciler: reconciler, _follows: follows }) }
}

fn not_running(status: Status) -> Handle {
    // The senders go away; what they sent last stays readable.
    let (_status_tx, status) = watch::channel(status);
    let (_snapshot_tx, snapshot) = watch::channel(None);
    Handle { status, reader: Reader { snapshot }, _running: None }
}

#[cfg(test)]
mod tests;
