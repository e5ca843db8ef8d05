//! The sockets that answer: which ones there should be, and the threads and tasks behind each.
//!
//! In: the model (names, mesh addresses) and the settings. Out: [`Status`]. Every address has a UDP socket with a
//! thread of its own and a TCP listener with a task; a change of the model opens and closes only what differs.
//! A mesh address is bound before it is on the link (`IP_FREEBIND`), so nothing has to wait for it.
//!
//! An address that cannot be bound is one error that names the key; all others answer, and the address is tried
//! again.

mod forward;
mod tcp;
mod udp;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use self::forward::Queue;
use super::config::Config;
use super::handler::{Handler, Shared};
use super::hook;
use super::metrics::Metrics;
use super::status::Status;
use super::upstream::host::{self, HostFiles};
use super::upstream::{Forwarder, PrepareError};
use super::wire::NotAName;
use super::zone::Zone;
use crate::foundation::error;
use crate::foundation::lifecycle::Blocker;
use crate::foundation::reconcile::{Cause, Pass, Reconciler};
use crate::model::{Link, Model, PeerChange};
use crate::sys::datagram::Socket;

/// Where `pm3` is when no loopback address is configured.
const PM3_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 3, 3);
/// The port on mesh addresses.
const PORT: u16 = 53;

/// Why the server could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("failed to make the zone of dns.domain")]
    Domain(#[source] NotAName),
    #[error("failed to prepare the forwarding of queries")]
    Forwarder(#[source] PrepareError),
}

/// One address could not be listened on.
#[derive(Debug, thiserror::Error)]
#[error("{key} {address} ({protocol}): {advice}")]
struct ListenError {
    key: &'static str,
    address: SocketAddr,
    protocol: &'static str,
    advice: String,
    #[source]
    source: io::Error,
}

impl ListenError {
    fn new(origin: Origin, address: SocketAddr, protocol: &'static str, source: io::Error) -> Self {
        let key = match origin {
            Origin::Configured => "dns.listen",
            Origin::Mesh => "dns.listen_on_mesh",
        };
        let advice = if source.kind() == io::ErrorKind::AddrInUse {
            "another server holds this address; stop it, or listen elsewhere".to_owned()
        } else if source.kind() == io::ErrorKind::PermissionDenied {
            format!("port {} needs CAP_NET_BIND_SERVICE; grant it, or use a port from 1024", address.port())
        } else {
            "the address cannot be listened on".to_owned()
        };
        Self { key, address, protocol, advice, source }
    }
}

/// Why an address is listened on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Configured,
    Mesh,
}

/// An address that answers. Dropping it closes both sockets.
#[derive(Debug)]
struct Listener {
    bound: SocketAddr,
    _udp: udp::Listener,
    _tcp: tcp::Listener,
}

/// Keeps zone, sockets and upstreams as the model and the settings want them.
#[derive(Debug)]
pub struct Server {
    config: Config,
    files: HostFiles,
    model: watch::Receiver<Arc<Model>>,
    hook: watch::Receiver<hook::State>,
    built_from: Arc<Model>,
    serial: u32,
    shared: Arc<Shared>,
    queue: Queue,
    listeners: BTreeMap<SocketAddr, Listener>,
    starting: Option<Blocker>,
    /// Waited for before the first zone, if that is a large one.
    tunnel: Option<watch::Receiver<Option<Link>>>,
}

/// The names of so many peers take the processor from the tunnel's own start: they come behind it.
const LARGE_ZONE: usize = 1000;
/// A tunnel that does not come up keeps the names no longer than this.
const TUNNEL_FIRST: Duration = Duration::from_secs(2);

impl Server {
    /// A server that does nothing until its first pass.
    ///
    /// # Errors
    /// [`ServerError`]; a socket that cannot be bound is none, it shows in the status.
    pub fn new(
        config: Config,
        files: HostFiles,
        model: watch::Receiver<Arc<Model>>,
        hook: watch::Receiver<hook::State>,
        metrics: Metrics,
        starting: Blocker,
    ) -> Result<Self, ServerError> {
        // The node alone, whose domain must be right; the peers come with the first pass, and delay nobody.
        let built_from = Arc::new(alone(&model.borrow()));
        // Greater than any serial of the run before, as secondaries and caches expect.
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let serial = u32::try_from(since_epoch.as_secs() & u64::from(u32::MAX)).unwrap_or(1);
        let zone = Zone::build(&built_from, pm3_address(&config), serial).map_err(ServerError::Domain)?;
        metrics.set_names(zone.mesh_names());
        let forwarder =
            Forwarder::new(Vec::new(), config.cache_entries, metrics.clone()).map_err(ServerError::Forwarder)?;
        let shared = Arc::new(Shared {
            zone: ArcSwap::from_pointee(zone),
            forwarder: ArcSwap::from_pointee(forwarder),
            metrics,
        });
        let queue = Queue::start(Handler::new(Arc::clone(&shared)));
        let starting = Some(starting);
        Ok(Self {
            config,
            files,
            model,
            hook,
            built_from,
            serial,
            shared,
            queue,
            listeners: BTreeMap::new(),
            starting,
            tunnel: None,
        })
    }

    /// A large zone is built once there is a link, which holds its peers then.
    #[must_use]
    pub fn behind(self, tunnel: watch::Receiver<Option<Link>>) -> Self {
        Self { tunnel: Some(tunnel), ..self }
    }

    async fn let_tunnel_start(&mut self) {
        let Some(mut tunnel) = self.tunnel.take() else { return };
        let is_large = self.config.enabled && self.model.borrow().peers().len() > LARGE_ZONE;
        if is_large {
            // Late, or gone with the agent: either way the names are due.
            drop(tokio::time::timeout(TUNNEL_FIRST, tunnel.wait_for(Option::is_some)).await);
        }
    }

    async fn renew_zone(&mut self) -> Result<(), NotAName> {
        let model = Arc::clone(&self.model.borrow_and_update());
        if !self.config.enabled {
            return Ok(());
        }
        if have_same_names(&model, &self.built_from) {
            self.built_from = model;
            return Ok(());
        }
        let (serial, pm3) = (self.serial.wrapping_add(1), pm3_address(&self.config));
        let source = Arc::clone(&model);
        // Thousands of names take tens of milliseconds.
        let zone = match tokio::task::spawn_blocking(move || Zone::build(&source, pm3, serial)).await {
            Ok(zone) => zone?,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        };
        self.serial = serial;
        self.shared.metrics.set_names(zone.mesh_names());
        self.shared.zone.store(Arc::new(zone));
        self.built_from = model;
        Ok(())
    }

    fn wanted(&self) -> BTreeMap<SocketAddr, Origin> {
        if !self.config.enabled {
            return BTreeMap::new();
        }
        let mut wanted = BTreeMap::new();
        if self.config.listen_on_mesh {
            for network in &self.built_from.node.addresses {
                wanted.insert(SocketAddr::new(network.addr(), PORT), Origin::Mesh);
            }
        }
        wanted.extend(self.config.listen.iter().map(|address| (*address, Origin::Configured)));
        // A wildcard socket answers on the mesh addresses of its family and port already.
        let wildcards: Vec<SocketAddr> =
            wanted.keys().copied().filter(|address| address.ip().is_unspecified()).collect();
        wanted.retain(|address, _| {
            !wildcards.iter().any(|wildcard| {
                wildcard != address && wildcard.port() == address.port() && wildcard.is_ipv4() == address.is_ipv4()
            })
        });
        wanted
    }

    fn renew_listeners(&mut self) -> Vec<ListenError> {
        let wanted = self.wanted();
        self.listeners.retain(|address, _| wanted.contains_key(address));
        let mut errors = Vec::new();
        for (address, origin) in wanted {
            if self.listeners.contains_key(&address) {
                continue;
            }
            match self.listen(address, origin) {
                Ok(listener) => {
                    tracing::info!(address = %listener.bound, "answering DNS");
                    self.listeners.insert(address, listener);
                }
                Err(error) => errors.push(error),
            }
        }
        errors
    }

    fn listen(&self, address: SocketAddr, origin: Origin) -> Result<Listener, ListenError> {
        let failed = |protocol| move |source| ListenError::new(origin, address, protocol, source);
        let socket = Socket::bind(address).map_err(failed("udp"))?;
        let bound = socket.local_addr();
        let tcp = tcp::Listener::start(bound, Handler::new(Arc::clone(&self.shared))).map_err(failed("tcp"))?;
        let udp = udp::Listener::start(socket, Arc::clone(&self.shared), self.queue.clone()).map_err(failed("udp"))?;
        Ok(Listener { bound, _udp: udp, _tcp: tcp })
    }

    fn listening(&self) -> Vec<SocketAddr> {
        self.listeners.values().map(|listener| listener.bound).collect()
    }

    /// A changed list of upstreams starts with an empty cache: the new ones may see other names.
    fn renew_upstreams(&mut self) -> Result<(), String> {
        let own = self.listening();
        let upstreams = match &self.config.upstream {
            Some(configured) => {
                let configured: Vec<SocketAddr> = configured.iter().map(|upstream| upstream.0).collect();
                host::without_own(&configured, &own)
            }
            None => host::read(&self.files, &own).map_err(|failure| error::chain(&failure))?,
        };
        if upstreams == self.shared.forwarder.load().upstreams() {
            return Ok(());
        }
        tracing::info!(?upstreams, "forwarding DNS");
        let forwarder = Forwarder::new(upstreams, self.config.cache_entries, self.shared.metrics.clone())
            .map_err(|failure| error::chain(&failure))?;
        self.shared.forwarder.store(Arc::new(forwarder));
        Ok(())
    }
}

fn alone(model: &Model) -> Model {
    let node = model.node.clone();
    Model::new(node, model.domain.clone(), Vec::new()).expect("the node of a model is right by itself")
}

/// Whether both models give the same zone: most changes of a peer are none of its names or addresses.
fn have_same_names(newer: &Model, older: &Model) -> bool {
    let same = |change: &PeerChange| {
        let (before, after) = (change.before.as_deref(), change.after.as_deref());
        before
            .zip(after)
            .is_some_and(|(before, after)| before.name == after.name && before.allowed_ips == after.allowed_ips)
    };
    newer.node == older.node
        && newer.domain == older.domain
        && newer.roles == older.roles
        && newer.changes_since(older).iter().all(same)
}

/// The pm3 address: the first loopback IPv4 address that we listen on.
fn pm3_address(config: &Config) -> Ipv4Addr {
    let loopback = config.listen.iter().find_map(|address| match address.ip() {
        IpAddr::V4(v4) if v4.is_loopback() => Some(v4),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    });
    loopback.unwrap_or(PM3_ADDRESS)
}

impl Reconciler for Server {
    type Status = Arc<Status>;
    const NAME: &'static str = "dns";
    /// How soon a change of the host's resolvers is seen.
    const RESYNC: Duration = Duration::from_secs(10);

    async fn pass(&mut self, _cause: Cause) -> Pass<Arc<Status>> {
        let mut errors: Vec<String> = Vec::new();
        self.let_tunnel_start().await;
        if let Err(failure) = self.renew_zone().await {
            errors.push(format!("dns.domain: {failure}; the names of before are still answered"));
        }
        errors.extend(self.renew_listeners().iter().map(|failure| error::chain(failure)));
        errors.extend(self.renew_upstreams().err());
        self.starting = None;
        // A hook that fails is tried again by its own task.
        let failed = !errors.is_empty();
        let hook = self.hook.borrow_and_update().clone();
        errors.extend(hook.error);
        let status = Status {
            listening: self.listening(),
            names: self.shared.zone.load().mesh_names(),
            upstreams: self.shared.forwarder.load().upstreams().to_vec(),
            hook: hook.hook,
            errors,
        };
        Pass { failed, status: Arc::new(status) }
    }
}

#[cfg(test)]
mod tests;
