//! The gateway: the pm3 API over HTTP/1.1, HTTP/2, WebSocket and TLS on the pm3 address and the mesh addresses, and virtual hosts
//! beside it on the same listeners.
//!
//! A connection is classified once, when it is accepted; a request can only lose trust ([`request`]). Whoever is not internal
//! gets one clear refusal on loopback and a closed connection from elsewhere, where an answer would only help a scan.
//!
//! | task | in | out |
//! |---|---|---|
//! | `gateway` | `watch` of the model, ended listeners | `watch` of the status |
//! | `listener`, a socket each | connections | a task a connection |
//!
//! Invariants: an address that cannot be had is in the status and tried again, it stops nothing; connections, heads, bodies,
//! messages and times are bounded.

mod codec;
pub mod config;
mod connection;
mod heads;
mod hop;
mod hosts;
mod listener;
mod metrics;
mod request;
mod session;
mod tls;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use hyper_util::rt::TokioExecutor;
use hyper_util::server::conn::auto;
use tokio::sync::watch;

use crate::foundation::error::chain;
use crate::foundation::lifecycle::Stop;
use crate::foundation::metrics::Metrics;
use crate::foundation::task::{self, Task};
use crate::identity::Identity;
use crate::identity::certificate::Member;
use crate::model::Model;
use crate::pm3::Pm3;
use crate::pm3::caller::Classifier;
use config::Config;
use hop::Hop;
use hosts::Hosts;
use listener::Speaks;
use metrics::Counts;
use request::Names;
use tls::Tls;

/// Between two attempts to have an address that another program holds.
const RETRY: Duration = Duration::from_secs(5);
/// The ports on the mesh addresses.
const MESH_PORT: u16 = 80;
pub const MESH_TLS_PORT: u16 = 443;

/// Sends connections for an address that another program holds to a listener of ours.
pub trait Steering: Send + Sync + 'static {
    /// Steers `address` to `socket` for as long as the guard lives.
    ///
    /// # Errors
    /// One sentence on why the kernel does not.
    fn steer(&self, address: SocketAddr, socket: BorrowedFd<'_>) -> Result<Box<dyn Send + Sync>, String>;
}

/// What the gateway serves and asks.
pub struct Inputs {
    pub config: Config,
    pub pm3: Arc<Pm3>,
    pub model: watch::Receiver<Arc<Model>>,
    pub classifier: Arc<dyn Classifier>,
    pub steering: Option<Arc<dyn Steering>>,
    pub metrics: Metrics,
    /// Whose certificate is shown, and whose are believed. `None`: no TLS.
    pub identity: Option<Identity>,
    /// Where the gateways of the peers speak TLS, on their mesh addresses.
    pub peer_port: u16,
}

/// What the gateway does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    pub listening: Vec<SocketAddr>,
    /// Addresses whose connections are steered to us, whoever else holds them.
    pub steered: Vec<SocketAddr>,
    /// Those of both that speak without TLS.
    pub plain: Vec<SocketAddr>,
    /// What the classification of callers rests on.
    pub classification: String,
    /// Why that is not the best there is.
    pub classification_fallback: Option<String>,
    pub errors: Vec<String>,
}

/// The running gateway; dropping it closes its listeners.
#[derive(Debug)]
#[must_use = "dropping the gateway closes it"]
pub struct Gateway {
    status: watch::Receiver<Status>,
    _task: Task,
}

impl Gateway {
    /// What it does now.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }
}

/// What every connection shares.
struct Shared {
    config: Config,
    pm3: Arc<Pm3>,
    names: Names,
    classifier: Arc<dyn Classifier>,
    server: auto::Builder<TokioExecutor>,
    hosts: Hosts,
    hop: Hop,
    tls: Option<Tls>,
    /// Connections now.
    connections: AtomicUsize,
    counts: Counts,
}

impl Shared {
    /// Whether a member of the mesh still is one.
    fn admits(&self, member: &Member) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.admits(member))
    }
}

/// Opens the listeners and keeps them open.
pub fn start(inputs: Inputs, mut stop: Stop) -> Gateway {
    let Inputs { config, pm3, mut model, classifier, steering, metrics, identity, peer_port } = inputs;
    let (status_tx, status) = watch::channel(Status::default());
    let names = Names::new(pm3.node().as_str(), pm3.machine());
    // The configuration was checked before the start.
    let hosts = Hosts::new(&config.host, pm3.node().as_str()).unwrap_or_else(|error| {
        tracing::error!(%error, "no virtual host is served");
        Hosts::none()
    });
    let hop = Hop::new(model.clone(), peer_port, identity.as_ref());
    let tls = identity.and_then(|identity| match Tls::new(identity) {
        Ok(tls) => Some(tls),
        Err(error) => {
            tracing::error!(error = chain(&error), "the gateway serves no TLS");
            None
        }
    });
    let shared = Arc::new(Shared {
        config,
        pm3,
        names,
        classifier,
        server: connection::server(),
        hosts,
        hop,
        tls,
        connections: AtomicUsize::new(0),
        counts: Counts::default(),
    });
    shared.pm3.carry_by(Arc::new(hop::Errands(Arc::downgrade(&shared))));
    self::metrics::register(&metrics, &shared);
    let task = task::spawn("gateway", async move {
        let mut open = BTreeMap::new();
        let mut retry = tokio::time::interval(RETRY);
        loop {
            let wanted = wanted(&shared, &model.borrow_and_update());
            let status = reconcile(&mut open, &wanted, &shared, steering.as_deref(), &stop);
            status_tx.send_if_modified(|current| {
                let differs = *current != status;
                if differs {
                    tell(&status);
                    *current = status;
                }
                differs
            });
            tokio::select! {
                () = stop.requested() => break,
                _ = retry.tick() => {}
                Ok(()) = model.changed() => {}
            }
        }
        let listeners = open.into_values().map(listener::Listener::finished);
        futures_util::future::join_all(listeners).await;
    });
    Gateway { status, _task: task }
}

fn tell(status: &Status) {
    tracing::info!(listening = ?status.listening, steered = ?status.steered, "gateway");
    for error in &status.errors {
        tracing::warn!("{error}");
    }
}

fn wanted(shared: &Shared, model: &Model) -> Vec<(SocketAddr, Speaks)> {
    let config = &shared.config;
    let on_mesh = |port, speaks| {
        let addresses = model.node.addresses.iter().map(move |network| SocketAddr::new(network.addr(), port));
        addresses.filter(|_| config.listen_on_mesh).map(move |address| (address, speaks))
    };
    let plain = config.listen.iter().map(|address| (*address, Speaks::Plain));
    let tls = config.tls_listen.iter().map(|address| (*address, Speaks::Tls));
    let tls = tls.chain(on_mesh(MESH_TLS_PORT, Speaks::Tls).filter(|_| !config.tls_listen.is_empty()));
    let tls = tls.filter(|_| shared.tls.is_some());
    plain.chain(on_mesh(MESH_PORT, Speaks::Plain)).chain(tls).collect()
}

/// Opens what is wanted and not open, closes what is open and not wanted.
fn reconcile(
    open: &mut BTreeMap<SocketAddr, listener::Listener>,
    wanted: &[(SocketAddr, Speaks)],
    shared: &Arc<Shared>,
    steering: Option<&dyn Steering>,
    stop: &Stop,
) -> Status {
    let mut status = Status {
        classification: shared.classifier.basis(),
        classification_fallback: shared.classifier.fallback_reason(),
        ..Status::default()
    };
    open.retain(|address, _| wanted.iter().any(|(wanted, _)| wanted == address));
    for (address, speaks) in wanted {
        if !open.contains_key(address) {
            match listener::open(*address, shared.classifier.as_ref(), steering) {
                Ok(bound) => {
                    open.insert(*address, bound.serve(*speaks, Arc::clone(shared), stop.clone()));
                }
                Err(error) => status.errors.push(error),
            }
        }
    }
    for (address, listener) in open {
        let list = if listener.is_steered() { &mut status.steered } else { &mut status.listening };
        let shown = listener.address(*address);
        list.push(shown);
        if wanted.contains(&(*address, Speaks::Plain)) {
            status.plain.push(shown);
        }
    }
    status
}
