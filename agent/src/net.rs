//! Addresses, MTU, state and routes of the tunnel link, and our nftables table.
//!
//! In: settings, the model and the link as `watch`es, and wake-ups of the netlink monitor. Out: a [`status::Status`].
//! Invariants: only the link of that index is touched. What is ours is recognised without memory: routes carry our
//! protocol number, addresses theirs. What another program removes comes back, what another program made is never
//! changed or removed. A link that somebody sets down is set up again (to take it down, stop the agent or use
//! `weft down`); it is never bounced to apply a change. Routes never take a network away from another link.

pub mod change;
pub mod config;
mod down;
pub mod firewall;
mod interest;
pub mod metrics;
pub mod mtu;
pub mod networks;
pub mod plan;
pub mod platform;
pub mod reconciler;
pub mod spec;
pub mod status;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use tokio::sync::watch;

use crate::foundation::lifecycle::Stop;
use crate::foundation::metrics::Metrics;
use crate::foundation::reconcile::{self, Trigger};
use crate::foundation::task::Task;
use crate::model::{Link, Model};
use crate::sys::rtnetlink::Connection;
use crate::sys::rtnetlink::monitor::Monitor;
use config::Settings;
use interest::Interest;
use platform::Platform;
use platform::linux::LinuxPlatform;
use reconciler::NetReconciler;
use status::Status;

pub use down::{DownError, Removed, down};

/// Our number in `rt_protos`, on routes and addresses: how we know our own. It is unassigned in iproute2; to see
/// the name in `ip route`, write `87 weft` to a file in `/etc/iproute2/rt_protos.d/`.
pub const PROTOCOL: u8 = 87;

/// What the link is configured from.
#[derive(Debug, Clone)]
pub struct Inputs {
    pub settings: watch::Receiver<Arc<Settings>>,
    pub model: watch::Receiver<Arc<Model>>,
    /// `None`: there is no link yet, and nothing to do.
    pub link: watch::Receiver<Option<Link>>,
}

/// The running reconciler; dropping it stops the reconciler and leaves everything in place.
#[derive(Debug)]
pub struct Handle {
    inner: reconcile::Handle<Arc<Status>>,
    _follow: [Task; 3],
}

impl Handle {
    /// The status after the newest pass, and its changes.
    pub fn status(&self) -> watch::Receiver<Arc<Status>> {
        self.inner.status()
    }

    /// Wakes the reconciler.
    pub fn trigger(&self) -> &Trigger {
        self.inner.trigger()
    }
}

/// Keeps the link as wanted, on this host and in the network namespace of the calling thread.
///
/// # Errors
/// The kernel refuses the netlink socket.
pub fn start(inputs: Inputs, metrics: &Metrics, monitor: &Monitor, stop: Stop) -> io::Result<Handle> {
    let interest = Interest::default();
    let platform = LinuxPlatform::new(Connection::open()?);
    let handle = run(platform, inputs, interest.clone(), metrics, stop);
    monitor.subscribe_to(move |change| interest.wants(change), handle.trigger().clone());
    // What changed before the subscription.
    handle.trigger().fire();
    Ok(handle)
}

/// Keeps the link as wanted on any platform; whoever owns the platform fires the trigger.
pub fn start_on<P: Platform>(platform: P, inputs: Inputs, metrics: &Metrics, stop: Stop) -> Handle {
    run(platform, inputs, Interest::default(), metrics, stop)
}

fn run<P: Platform>(platform: P, inputs: Inputs, interest: Interest, metrics: &Metrics, stop: Stop) -> Handle {
    let trigger = Trigger::default();
    let follow = [
        trigger.follow(inputs.settings.clone()),
        trigger.follow(inputs.model.clone()),
        trigger.follow(inputs.link.clone()),
    ];
    let reconciler = NetReconciler::new(platform, inputs, interest, metrics);
    let inner = reconcile::start(reconciler, trigger, Arc::default(), stop);
    Handle { inner, _follow: follow }
}
