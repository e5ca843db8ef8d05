//! The tunnel device: its key, port and peers, kept as the model says, in the kernel or on the embedded device.
//!
//! In: [`settings::Settings`] and [`Model`], each as a `watch`. Out: [`Handle`] with the status, the
//! [`Link`] for the other domains, and per-peer figures on demand.
//!
//! Invariants: a link that is not ours is never touched. A stop leaves the kernel link as it is; [`down`] is the
//! explicit verb. State, address, MTU and routes of the link are not this domain's.

pub mod config;
pub mod device;
pub mod figures;
pub mod import;
pub mod key_file;
mod metrics;
mod nudge;
pub mod plan;
pub mod platform;
mod reconciler;
mod resolver;
pub mod settings;
pub mod spec;
pub mod status;

use std::sync::Arc;

use tokio::sync::watch;

use crate::foundation::id::LinkName;
use crate::foundation::lifecycle::{Blocker, Stop};
use crate::foundation::metrics::Metrics;
use crate::foundation::reconcile::{self, Trigger};
use crate::foundation::task::Task;
use crate::model::{Backend, Link, Model};
use figures::{FiguresError, FiguresReader};
use platform::linux::Linux;
use platform::{Platform, PlatformError};
use reconciler::{Inputs, LinkError, Ownership, Wireguard};
use settings::Settings;
use status::{PeerFigures, Status};

/// The running domain; dropping it ends the reconciler and the embedded device, and leaves a kernel link alone.
#[derive(Debug)]
pub struct Handle {
    reconciler: reconcile::Handle<Arc<Status>>,
    link: watch::Receiver<Option<Link>>,
    figures: FiguresReader,
    _follow: [Task; 3],
}

impl Handle {
    /// The state after the newest pass, and its changes.
    pub fn status(&self) -> watch::Receiver<Arc<Status>> {
        self.reconciler.status()
    }

    /// The link, once the device behind it is ours and holds its key and peers.
    pub fn link(&self) -> watch::Receiver<Option<Link>> {
        self.link.clone()
    }

    /// Asks for a pass that looks at the host anew; fire it when a link of the host changed.
    pub fn trigger(&self) -> &Trigger {
        self.reconciler.trigger()
    }

    /// The peers as the device sees them now.
    ///
    /// # Errors
    /// There is no device, or it does not answer.
    pub async fn figures(&self) -> Result<Vec<PeerFigures>, FiguresError> {
        self.figures.read().await
    }

    /// Reads figures without holding the handle.
    pub fn figures_reader(&self) -> FiguresReader {
        self.figures.clone()
    }
}

/// Starts the domain on this host. `readiness` drops when the device is as wanted for the first time.
pub fn start(
    settings: watch::Receiver<Arc<Settings>>,
    model: watch::Receiver<Arc<Model>>,
    metrics: &Metrics,
    readiness: Blocker,
    stop: Stop,
) -> Handle {
    start_on(Arc::new(Linux::default()), settings, model, metrics, readiness, stop)
}

/// Starts the domain on any host.
pub fn start_on<P: Platform>(
    platform: Arc<P>,
    settings: watch::Receiver<Arc<Settings>>,
    model: watch::Receiver<Arc<Model>>,
    metrics: &Metrics,
    readiness: Blocker,
    stop: Stop,
) -> Handle {
    let trigger = Trigger::default();
    let follow = [trigger.follow(settings.clone()), trigger.follow(model.clone()), trigger.follow(platform.failures())];
    let (link_tx, link) = watch::channel(None);
    let figures = FiguresReader::new(Arc::downgrade(&platform), link.clone(), model.clone());
    let counters = metrics::Counters::default();
    let inputs = Inputs {
        platform,
        settings,
        model,
        link: link_tx,
        counters: counters.clone(),
        trigger: trigger.clone(),
        blocker: readiness,
    };
    let reconciler = reconcile::start(Wireguard::new(inputs), trigger, Arc::default(), stop);
    metrics::register(metrics, &counters, reconciler.status(), figures.clone());
    Handle { reconciler, link, figures, _follow: follow }
}

/// What [`down`] took away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// The link; `None` if there was none.
    pub link: Option<LinkName>,
}

/// Why the link could not be taken away.
#[derive(Debug, thiserror::Error)]
pub enum DownError {
    #[error("link {link} is the embedded device of a running agent; stop that agent, which takes it away")]
    Running { link: LinkName },
    #[error("the link is left alone")]
    NotOurs(#[source] LinkError),
    #[error(transparent)]
    Platform(#[from] PlatformError),
}

/// Deletes exactly our kernel link. Doing it again does nothing.
///
/// # Errors
/// The link is not ours, or the kernel refuses.
pub async fn down(settings: &Settings) -> Result<Removed, DownError> {
    down_on(Arc::new(Linux::default()), settings).await
}

/// [`down`] on any host.
///
/// # Errors
/// The link is not ours, or the host refuses.
pub async fn down_on<P: Platform>(platform: Arc<P>, settings: &Settings) -> Result<Removed, DownError> {
    // Whatever the configuration asks for by now, the link to take away is the one that is there.
    let settings = Settings { backend: config::BackendChoice::Auto, ..settings.clone() };
    let present = Ownership::new(Arc::clone(&platform)).present(&settings).await;
    let link = match present {
        Ok(None) => return Ok(Removed { link: None }),
        Ok(Some(link)) => link,
        Err(LinkError::OtherProcess { link }) => return Err(DownError::Running { link }),
        Err(LinkError::Platform(error)) => return Err(DownError::Platform(error)),
        Err(error) => return Err(DownError::NotOurs(error)),
    };
    match link.backend {
        Backend::Userspace => Err(DownError::Running { link: link.name }),
        Backend::Kernel => {
            platform.delete(&link).await?;
            Ok(Removed { link: Some(link.name) })
        }
    }
}
