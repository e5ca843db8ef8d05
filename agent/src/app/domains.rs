//! The domains, started in the order they depend on each other, and the `watch`es that feed them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::api::{Figures, FiguresReader};
use crate::config::Settings;
use crate::foundation::error::chain;
use crate::foundation::id::LinkName;
use crate::foundation::lifecycle::{Blocker, Readiness, Shutdown};
use crate::foundation::metrics::Metrics;
use crate::foundation::task::{self, Task};
use crate::model::{Backend, Model};
use crate::sys::rtnetlink::monitor::{Change, Monitor};
use crate::{dns, ebpf, net, process, wireguard};

/// How long the tunnel may have the start to itself.
const FIRST_PASS: Duration = Duration::from_secs(1);

/// Why the domains could not be started.
#[derive(Debug, thiserror::Error)]
pub(super) enum DomainsError {
    #[error("failed to open a netlink socket; does this kernel have NETLINK_ROUTE?")]
    Netlink(#[source] std::io::Error),
    #[error(transparent)]
    Dns(#[from] dns::server::ServerError),
}

/// Everything that runs, and the senders a reload writes to.
pub(super) struct Domains {
    wireguard_settings: watch::Sender<Arc<wireguard::settings::Settings>>,
    /// What `weft.toml` says; the mesh makes the model of it.
    configured: watch::Sender<Arc<Model>>,
    model: watch::Receiver<Arc<Model>>,
    network_settings: watch::Sender<Arc<net::config::Settings>>,
    firewall_settings: watch::Sender<Arc<net::config::FirewallSettings>>,
    pub(super) wireguard: wireguard::Handle,
    pub(super) net: net::Handle,
    pub(super) firewall: net::firewall::Handle,
    pub(super) accounting: Arc<ebpf::Handle>,
    pub(super) dns: dns::Handle,
    pub(super) process: process::Running,
    _ready: [Task; 2],
    _relaying: Task,
    _monitor: Monitor,
}

/// Whether this node carries packets between others, for those who care for nothing else.
async fn relays(mut model: watch::Receiver<Arc<Model>>, relaying: watch::Sender<bool>) {
    while model.changed().await.is_ok() {
        let now = model.borrow_and_update().is_relay;
        relaying.send_if_modified(|before| std::mem::replace(before, now) != now);
    }
}

impl Domains {
    /// Starts all of them, the tunnel first: what the others load and build waits until the device holds its peers. Every
    /// failure that leaves the rest useful is in the status of its domain instead of here.
    pub(super) async fn start(
        settings: Settings,
        (configured, model): (watch::Sender<Arc<Model>>, watch::Receiver<Arc<Model>>),
        metrics: &Metrics,
        readiness: &Readiness,
        shutdown: &Shutdown,
    ) -> Result<Self, DomainsError> {
        let monitor = Monitor::start().map_err(DomainsError::Netlink)?;
        let (wireguard_settings, wireguard_rx) = watch::channel(Arc::clone(&settings.wireguard));
        let model_rx = model.clone();
        let (network_settings, network_rx) = watch::channel(settings.network);
        let (firewall_settings, firewall_rx) = watch::channel(settings.firewall);

        let blocker = readiness.block("wireguard");
        let wireguard = wireguard::start(wireguard_rx, model_rx.clone(), metrics, blocker, shutdown.stop());
        let link = settings.wireguard.link.clone();
        first_pass(&wireguard).await;
        let ours = move |change: &Change| matches!(change, Change::Link { name, .. } if name == link.as_str());
        monitor.subscribe_to(ours, wireguard.trigger().clone());
        let inputs = net::Inputs { settings: network_rx, model: model_rx.clone(), link: wireguard.link() };
        let net = net::start(inputs, metrics, &monitor, shutdown.stop()).map_err(DomainsError::Netlink)?;
        let (relaying_tx, relaying) = watch::channel(model_rx.borrow().is_relay);
        let relaying_task = task::spawn("relaying", relays(model_rx.clone(), relaying_tx));
        let firewall = net::firewall::start(firewall_rx, relaying, metrics, shutdown.stop());
        let counting = settings.accounting.config.enabled;
        let accounting = ebpf::start(settings.accounting, model_rx.clone(), wireguard.link(), metrics, shutdown.stop());
        let blocker = readiness.block("dns");
        let dns = dns::start(settings.dns, model_rx, wireguard.link(), metrics, blocker, shutdown.stop())?;
        let process = process::start(settings.process, metrics, readiness.block("process"), shutdown.stop());
        let ready = [
            ready_when(readiness.block("network"), net.status(), |status| {
                status.mtu.is_some() || !status.errors.is_empty()
            }),
            ready_when(readiness.block("accounting"), accounting.status(), move |status| {
                !counting || status.hook.is_some() || !status.errors.is_empty()
            }),
        ];
        Ok(Self {
            wireguard_settings,
            configured,
            model,
            network_settings,
            firewall_settings,
            wireguard,
            net,
            firewall,
            accounting: Arc::new(accounting),
            dns,
            process,
            _ready: ready,
            _relaying: relaying_task,
            _monitor: monitor,
        })
    }

    /// The model and its changes.
    pub(super) fn model(&self) -> watch::Receiver<Arc<Model>> {
        self.model.clone()
    }

    /// The model now.
    pub(super) fn current(&self) -> Arc<Model> {
        Arc::clone(&self.model.borrow())
    }

    /// The link of the embedded device, which goes away with this process.
    pub(super) fn embedded_link(&self) -> Option<LinkName> {
        let status = self.wireguard.status();
        let link = status.borrow().link.clone()?;
        matches!(link.backend, Backend::Userspace).then_some(link.name)
    }

    /// Hands new settings to everything that takes them while it runs; what is equal wakes nobody.
    pub(super) fn apply(&self, settings: Settings) -> Vec<String> {
        let mut changed = Vec::new();
        let mut note = |differs: bool, what: &str| {
            if differs {
                changed.push(format!("{what} changed"));
            }
        };
        note(replace(&self.wireguard_settings, settings.wireguard), "wireguard");
        // Whoever follows the model then sees at once which peers are other than before.
        let configured = Model::clone(&settings.model).sharing(&self.configured.borrow());
        note(replace(&self.configured, Arc::new(configured)), "peers or addresses");
        note(replace(&self.network_settings, settings.network), "network");
        note(replace(&self.firewall_settings, settings.firewall), "firewall");
        changed
    }

    /// Reads the figures of the device and of the BPF maps together.
    pub(super) fn figures_reader(&self) -> FiguresReader {
        let device = self.wireguard.figures_reader();
        let accounting = Arc::downgrade(&self.accounting);
        FiguresReader::new(move || {
            let (device, accounting) = (device.clone(), accounting.clone());
            Box::pin(async move {
                let mut figures = Figures::default();
                match device.read().await {
                    Ok(peers) => figures.wireguard = peers,
                    Err(error) => figures.errors.push(chain(&error)),
                }
                let Some(accounting) = accounting.upgrade() else { return figures };
                if accounting.status().borrow().hook.is_none() {
                    return figures;
                }
                match accounting.figures().await {
                    Ok(counters) => figures.counters = Some(counters),
                    Err(error) => figures.errors.push(chain(&error)),
                }
                figures
            })
        })
    }
}

/// Waits until the device was looked at once, whatever came of it.
async fn first_pass(wireguard: &wireguard::Handle) {
    let mut status = wireguard.status();
    if tokio::time::timeout(FIRST_PASS, status.changed()).await.is_err() {
        tracing::warn!("the tunnel device takes long; the rest starts beside it");
    }
}

/// Drops `blocker` once `settled` holds. A part that failed holds nobody up: its errors make the agent degraded.
fn ready_when<S: Clone + Send + Sync + 'static>(
    blocker: Blocker,
    mut status: watch::Receiver<S>,
    settled: impl Fn(&S) -> bool + Send + Sync + 'static,
) -> Task {
    task::spawn("ready-when", async move {
        // An error means that the domain is gone, and the agent with it.
        drop(status.wait_for(|status| settled(status)).await);
        drop(blocker);
    })
}

fn replace<T: PartialEq>(sender: &watch::Sender<Arc<T>>, new: Arc<T>) -> bool {
    sender.send_if_modified(|current| {
        let differs = *current != new;
        if differs {
            *current = new;
        }
        differs
    })
}
