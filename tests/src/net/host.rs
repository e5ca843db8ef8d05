//! A host in a namespace: `eth0` with a default route for the underlay, and `weft0` as it is just after it was made.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use integration_tests::netns::{NetNs, veth};
use integration_tests::wait::{eventually, eventually_some};
use tokio::sync::{oneshot, watch};
use weft_agent::foundation::lifecycle::Shutdown;
use weft_agent::foundation::metrics::Metrics;
use weft_agent::foundation::reconcile::Trigger;
use weft_agent::model::key::PublicKey;
use weft_agent::model::peer::Peer;
use weft_agent::model::{Backend, Link, Model, Node};
use weft_agent::net::config::{Config, FirewallConfig, FirewallSettings, Settings};
use weft_agent::net::status::{FirewallStatus, Status};
use weft_agent::net::{self, Inputs};
use weft_agent::sys::rtnetlink::monitor::{Change, Monitor};

/// How long a start may take.
pub(super) const SETTLED: Duration = Duration::from_secs(10);

pub(super) struct Host {
    namespace: NetNs,
    /// Holds the other end of `eth0`.
    _gateway: NetNs,
}

impl Host {
    pub(super) fn new() -> Self {
        let (namespace, gateway) = (NetNs::new().expect("a namespace"), NetNs::new().expect("a namespace"));
        veth((&namespace, "eth0", &["192.0.2.2/24"]), (&gateway, "eth0", &["192.0.2.1/24"])).expect("a link");
        let host = Self { namespace, _gateway: gateway };
        host.ip(&["route", "add", "default", "via", "192.0.2.1"]);
        host.ip(&["link", "add", "weft0", "type", "veth", "peer", "name", "far0"]);
        host.ip(&["link", "set", "far0", "up"]);
        host
    }

    pub(super) fn ip(&self, words: &[&str]) -> String {
        self.namespace.run(&[&["ip"], words].concat()).expect("ip succeeds")
    }

    pub(super) fn eventually(&self, deadline: Duration, words: &[&str], holds: impl Fn(&str) -> bool) {
        eventually(deadline, &format!("ip {words:?}"), || holds(&self.ip(words))).expect("the reconciler reacts");
    }

    /// Starts the reconciler with one peer, `beta`, at 198.51.100.7.
    pub(super) fn start(&self, addresses: &[&str], allowed: &[&str]) -> Agent {
        self.start_with(Config::default(), addresses, allowed)
    }

    pub(super) fn start_with(&self, config: Config, addresses: &[&str], allowed: &[&str]) -> Agent {
        let settings = config.validate(0).expect("a valid table");
        Agent::start(&self.namespace, settings, model(addresses, allowed))
    }

    /// Does `work` while a monitor cannot read, then lets it read everything; returns whether it woke a subscriber that
    /// wants no change.
    pub(super) fn with_monitor(&self, work: impl FnOnce() + Send) -> bool {
        let woken = self.namespace.enter(|| {
            runtime().block_on(async {
                let monitor = Monitor::start().expect("a netlink socket");
                let (unwilling, last) = (Trigger::default(), Trigger::default());
                monitor.subscribe_to(|_change| false, unwilling.clone());
                let marker = |change: &Change| matches!(change, Change::Link { name, .. } if name == "marker");
                monitor.subscribe_to(marker, last.clone());
                work();
                let read = async {
                    // What was lost may hold the marker: it is made anew until it is read.
                    while last.count() == 0 || unwilling.count() == last.count() {
                        self.ip(&["link", "add", "marker", "type", "bridge"]);
                        self.ip(&["link", "del", "marker"]);
                        tokio::task::yield_now().await;
                    }
                };
                tokio::time::timeout(SETTLED, read).await.expect("the monitor reads on");
                unwilling.count() > 0
            })
        });
        woken.expect("the namespace can be entered")
    }

    /// Runs `weft down`'s part; returns the addresses and routes it removed.
    pub(super) fn down(&self) -> (usize, usize) {
        let removed = self.namespace.enter(|| {
            let name = "weft0".parse().expect("a name");
            runtime().block_on(net::down(&name)).expect("everything of ours can be removed")
        });
        let removed = removed.expect("the namespace can be entered");
        (removed.addresses, removed.routes)
    }
}

fn model(addresses: &[&str], allowed: &[&str]) -> Model {
    let node = Node {
        id: "alpha".parse().expect("a label"),
        addresses: addresses.iter().map(|text| text.parse().expect("an address")).collect(),
        public_key: PublicKey::from_bytes([0xaa; 32]),
    };
    let beta = Peer {
        name: "beta".parse().expect("a label"),
        public_key: PublicKey::from_bytes([1; 32]),
        preshared_key: None,
        endpoint: Some("198.51.100.7:51820".parse().expect("an endpoint")),
        allowed_ips: allowed.iter().map(|text| text.parse().expect("a network")).collect(),
        persistent_keepalive: None,
    };
    Model::new(node, "weft.internal".to_owned(), vec![beta]).expect("a consistent model")
}

fn runtime() -> tokio::runtime::Runtime {
    // One thread, because a namespace belongs to a thread.
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Work on a thread inside the namespace; it ends with its guard and leaves everything in place.
struct Inside {
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Inside {
    /// Runs `start` in a runtime inside and keeps the second value it returns until the guard drops.
    fn start<T: Send + 'static, K>(namespace: &NetNs, start: impl FnOnce() -> (T, K) + Send + 'static) -> (T, Self) {
        let file = std::fs::File::open(namespace.path()).expect("the namespace has a name");
        let (ready_tx, ready) = std::sync::mpsc::channel();
        let (end, ended) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            nix::sched::setns(&file, nix::sched::CloneFlags::CLONE_NEWNET).expect("root may enter");
            runtime().block_on(async {
                let (outcome, _kept) = start();
                ready_tx.send(outcome).expect("the test waits");
                // An error means that the guard is gone, which is an end too.
                drop(ended.await);
            });
        });
        let outcome = ready.recv_timeout(SETTLED).expect("it starts");
        (outcome, Self { end: Some(end), thread: Some(thread) })
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// The value of a metric without labels.
fn metric(metrics: &Metrics, name: &str) -> u64 {
    let text = runtime().block_on(metrics.scrape()).expect("metrics format");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.expect("the metric is there").parse().expect("a number")
}

/// Asks `status` until it is as wanted.
fn until<S: Clone + std::fmt::Debug>(
    status: &watch::Receiver<Arc<S>>,
    deadline: Duration,
    holds: impl Fn(&S) -> bool,
) -> Arc<S> {
    let found = eventually_some(deadline, "the status", || {
        let status = status.borrow().clone();
        holds(&status).then_some(status)
    });
    found.with_context(|| format!("the last was {:?}", status.borrow())).expect("the status is reached")
}

/// A running link reconciler.
pub(super) struct Agent {
    status: watch::Receiver<Arc<Status>>,
    trigger: Trigger,
    metrics: Metrics,
    _inside: Inside,
}

impl Agent {
    fn start(namespace: &NetNs, settings: Settings, model: Model) -> Self {
        let metrics = Metrics::default();
        let registered = metrics.clone();
        let ((status, trigger), inside) = Inside::start(namespace, move || {
            let shutdown = Shutdown::default();
            let monitor = Monitor::start().expect("a netlink socket");
            let index = nix::net::if_::if_nametoindex("weft0").expect("weft0 is there");
            let name = "weft0".parse().expect("a name");
            let (settings_tx, settings) = watch::channel(Arc::new(settings));
            let (model_tx, model) = watch::channel(Arc::new(model));
            let (link_tx, link) = watch::channel(Some(Link { name, index, backend: Backend::Kernel }));
            let inputs = Inputs { settings, model, link };
            let handle = net::start(inputs, &registered, &monitor, shutdown.stop()).expect("a netlink socket");
            let outcome = (handle.status(), handle.trigger().clone());
            (outcome, (handle, monitor, shutdown, settings_tx, model_tx, link_tx))
        });
        Self { status, trigger, metrics, _inside: inside }
    }

    /// Waits for a status.
    pub(super) fn until(&self, deadline: Duration, holds: impl Fn(&Status) -> bool) -> Arc<Status> {
        until(&self.status, deadline, holds)
    }

    /// Causes `count` passes, one after the other.
    pub(super) fn passes(&self, count: u64) {
        for _ in 0..count {
            let before = self.metric("weft_network_passes_total");
            self.trigger.fire();
            eventually(SETTLED, "a pass", || self.metric("weft_network_passes_total") > before).expect("a pass runs");
        }
    }

    pub(super) fn metric(&self, name: &str) -> u64 {
        metric(&self.metrics, name)
    }
}

/// A running firewall reconciler.
pub(super) struct Firewall {
    settings: watch::Sender<Arc<FirewallSettings>>,
    status: watch::Receiver<Arc<FirewallStatus>>,
    trigger: Trigger,
    metrics: Metrics,
    _inside: Inside,
}

impl Firewall {
    pub(super) fn start(namespace: &NetNs, asked: FirewallConfig) -> Self {
        let metrics = Metrics::default();
        let registered = metrics.clone();
        let (settings, settings_rx) = watch::channel(Arc::new(firewall_settings(asked)));
        let ((status, trigger), inside) = Inside::start(namespace, move || {
            let shutdown = Shutdown::default();
            let handle =
                net::firewall::start(settings_rx, watch::Sender::new(false).subscribe(), &registered, shutdown.stop());
            ((handle.status(), handle.trigger().clone()), (handle, shutdown))
        });
        Self { settings, status, trigger, metrics, _inside: inside }
    }

    pub(super) fn ask(&self, asked: FirewallConfig) {
        self.settings.send_replace(Arc::new(firewall_settings(asked)));
    }

    pub(super) fn until(&self, holds: impl Fn(&FirewallStatus) -> bool) -> Arc<FirewallStatus> {
        until(&self.status, SETTLED, holds)
    }

    /// Causes one pass and waits for it.
    pub(super) fn pass(&self) {
        let before = self.metric("weft_firewall_passes_total");
        self.trigger.fire();
        eventually(SETTLED, "a pass", || self.metric("weft_firewall_passes_total") > before).expect("a pass runs");
    }

    pub(super) fn metric(&self, name: &str) -> u64 {
        metric(&self.metrics, name)
    }
}

fn firewall_settings(asked: FirewallConfig) -> FirewallSettings {
    let (instance, link) = ("blue-1".parse().expect("a label"), "weft0".parse().expect("a name"));
    asked.validate(instance, link, 51820).expect("valid settings")
}

/// Runs `weft down`'s part for the firewall; returns whether there was a table.
pub(super) fn firewall_down(namespace: &NetNs) -> bool {
    let removed = namespace.enter(|| {
        let instance = "blue-1".parse().expect("a label");
        runtime().block_on(net::firewall::down(&instance)).expect("nft works")
    });
    removed.expect("the namespace can be entered")
}
