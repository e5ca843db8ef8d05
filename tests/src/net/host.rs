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
use weft_agent::net::config::{Config, Settings};
use weft_agent::net::status::Status;
use weft_agent::net::{self, Inputs};
use weft_agent::sys::rtnetlink::Connection;
use weft_agent::sys::rtnetlink::monitor::Monitor;

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

/// A running reconciler, on a thread inside the namespace; it ends with its guard and leaves everything in place.
pub(super) struct Agent {
    status: watch::Receiver<Arc<Status>>,
    trigger: Trigger,
    metrics: Metrics,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Agent {
    fn start(namespace: &NetNs, settings: Settings, model: Model) -> Self {
        let file = std::fs::File::open(namespace.path()).expect("the namespace has a name");
        let (ready_tx, ready) = std::sync::mpsc::channel();
        let (end, ended) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            nix::sched::setns(&file, nix::sched::CloneFlags::CLONE_NEWNET).expect("root may enter");
            runtime().block_on(async {
                let (metrics, shutdown) = (Metrics::default(), Shutdown::default());
                let monitor = Monitor::start().expect("a netlink socket");
                let name = "weft0".parse().expect("a name");
                let info = Connection::open().expect("a netlink socket").link_by_name(&name).await;
                let index = info.expect("links can be read").expect("weft0 is there").index;
                let (_settings, settings) = watch::channel(Arc::new(settings));
                let (_model, model) = watch::channel(Arc::new(model));
                let (_link, link) = watch::channel(Some(Link { name, index, backend: Backend::Kernel }));
                let inputs = Inputs { settings, model, link };
                let handle = net::start(inputs, &metrics, &monitor, shutdown.stop()).expect("a netlink socket");
                ready_tx.send((handle.status(), handle.trigger().clone(), metrics)).expect("the test waits");
                // An error means that the guard is gone, which is an end too.
                drop(ended.await);
            });
        });
        let (status, trigger, metrics) = ready.recv_timeout(SETTLED).expect("the reconciler starts");
        Self { status, trigger, metrics, end: Some(end), thread: Some(thread) }
    }

    /// Waits for a status.
    pub(super) fn until(&self, deadline: Duration, holds: impl Fn(&Status) -> bool) -> Arc<Status> {
        let found = eventually_some(deadline, "the status", || {
            let status = self.status.borrow().clone();
            holds(&status).then_some(status)
        });
        found.with_context(|| format!("the last was {:?}", self.status.borrow())).expect("the status is reached")
    }

    /// Causes `count` passes, one after the other.
    pub(super) fn passes(&self, count: u64) {
        for _ in 0..count {
            let before = self.metric("weft_network_passes_total");
            self.trigger.fire();
            eventually(SETTLED, "a pass", || self.metric("weft_network_passes_total") > before).expect("a pass runs");
        }
    }

    /// The value of a metric without labels.
    pub(super) fn metric(&self, name: &str) -> u64 {
        let text = runtime().block_on(self.metrics.scrape()).expect("metrics format");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.expect("the metric is there").parse().expect("a number")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
