//! One nftables table of ours, `inet weft_<instance>`, with what `[firewall]` asks for and nothing else.
//!
//! In: settings. Out: a [`FirewallStatus`]. Invariants: the table is replaced as a whole in one transaction, so there
//! is no moment with half of it; an unchanged table is not written; no other table is touched. Where nothing is asked
//! there is no table, and the program `nft` is not needed. Sysctls of the host are never set, only reported; while this node
//! is a relay of the mesh, forwarding is on for the tunnel's own link, and the table accepts what is forwarded there.
//!
//! An `accept` ends the evaluation of our chain only: a chain of another table at the same hook still sees the packet
//! and may drop it. Such chains are named in the status, because only their owner can let the packet pass.

pub mod plan;
pub mod platform;
pub mod reconciler;
pub mod render;
pub mod spec;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use tokio::sync::watch;

use super::config::FirewallSettings;
use super::status::FirewallStatus;
use crate::foundation::error::chain;
use crate::foundation::id::InstanceName;
use crate::foundation::lifecycle::Stop;
use crate::foundation::metrics::Metrics;
use crate::foundation::reconcile::{self, Trigger};
use crate::foundation::task::Task;
use crate::sys::nftables;
use platform::linux::LinuxPlatform;
use platform::{NftError, Platform};
use reconciler::FirewallReconciler;

/// The running reconciler; dropping it stops the reconciler and leaves the table in place.
#[derive(Debug)]
pub struct Handle {
    inner: reconcile::Handle<Arc<FirewallStatus>>,
    _follow: [Task; 2],
    watch: Option<Task>,
}

impl Handle {
    /// The status after the newest pass, and its changes.
    pub fn status(&self) -> watch::Receiver<Arc<FirewallStatus>> {
        self.inner.status()
    }

    /// Wakes the reconciler.
    pub fn trigger(&self) -> &Trigger {
        self.inner.trigger()
    }
}

/// Keeps the table as wanted in the network namespace of the calling thread. What another program does to it is seen
/// at once, or on a kernel that does not announce it, at the next slow check.
///
/// `relaying`: whether the mesh sends packets of others through this node.
pub fn start(
    settings: watch::Receiver<Arc<FirewallSettings>>,
    relaying: watch::Receiver<bool>,
    metrics: &Metrics,
    stop: Stop,
) -> Handle {
    let table = spec::table_name(&settings.borrow().instance);
    let mut handle = start_on(LinuxPlatform::default(), settings, relaying, metrics, stop);
    match nftables::watch_table(table, handle.trigger().clone()) {
        Ok(task) => handle.watch = Some(task),
        Err(error) => tracing::info!(error = chain(&error), "nftables changes are not announced"),
    }
    handle
}

/// Keeps the table as wanted on any platform.
pub fn start_on<P: Platform>(
    platform: P,
    settings: watch::Receiver<Arc<FirewallSettings>>,
    relaying: watch::Receiver<bool>,
    metrics: &Metrics,
    stop: Stop,
) -> Handle {
    let trigger = Trigger::default();
    let follow = [trigger.follow(settings.clone()), trigger.follow(relaying.clone())];
    let reconciler = FirewallReconciler::new(platform, settings, relaying, metrics);
    Handle { inner: reconcile::start(reconciler, trigger, Arc::default(), stop), _follow: follow, watch: None }
}

/// Removes the table of `instance`; returns whether there was one. The agent must not run, or it makes it again.
///
/// # Errors
/// `nft` failed. That it is not installed is no error: then there is no table of ours.
pub async fn down(instance: &InstanceName) -> Result<bool, NftError> {
    let table = spec::table_name(instance);
    match LinuxPlatform::default().remove_if_present(&table).await {
        Err(NftError::Missing(_)) => Ok(false),
        other => other,
    }
}
