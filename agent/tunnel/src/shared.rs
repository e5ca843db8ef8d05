//! What the threads of a device share, and the order of its locks.
//!
//! Order: `registry`, then the state of one peer, then `sessions` or the inbox of the timers; none is taken twice by
//! a thread. The data path takes `registry` and `sessions` for reading, once a batch.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use gotatun::noise::index_table::IndexTable;
use gotatun::noise::rate_limiter::RateLimiter;
use gotatun::x25519::{PublicKey, StaticSecret};
use ipnet::IpNet;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::peer::Peer;
use crate::routes::Routes;
use crate::socket::UdpSocket;
use crate::tun::Tun;

/// Handshakes a second from one address before it must prove that it owns the address, at the price of a retry. A
/// hundred cost about two percent of a core, and a site of some hundred peers behind one address still gets in at once.
const HANDSHAKES_PER_SECOND: u64 = 100;

/// One device.
pub(crate) struct Shared {
    pub(crate) name: String,
    pub(crate) tun: Tun,
    registry: RwLock<Registry>,
    sessions: RwLock<HashMap<u32, Arc<Peer>>>,
    pub(crate) index_table: IndexTable,
    socket: RwLock<Arc<UdpSocket>>,
    mtu: AtomicUsize,
    pub(crate) timers: TimerInbox,
    stopping: AtomicBool,
    /// Readable from the moment the device is to stop.
    pub(crate) stop: EventFd,
    /// Readable when the inbound thread is to look for another socket.
    pub(crate) socket_changed: EventFd,
    pub(crate) health: Health,
    /// Changes that were carried out.
    configured: AtomicU64,
}

/// The configuration.
#[derive(Default)]
pub(crate) struct Registry {
    pub(crate) identity: Option<Identity>,
    pub(crate) fwmark: u32,
    pub(crate) peers: HashMap<[u8; 32], Entry>,
    /// Peers in the order they were added, which is the order they are listed in. Removed ones stay for a while, so
    /// that removing one does not cost a walk over all.
    order: Vec<Arc<Peer>>,
    pub(crate) routes: Routes<Arc<Peer>>,
}

/// Removed peers that `Registry::order` may hold beyond as many as there are others.
const REMOVED_IN_ORDER: usize = 64;

impl Registry {
    /// The peers that are there, in the order they were added.
    pub(crate) fn listed(&self) -> impl Iterator<Item = &Entry> {
        let present = self.order.iter().filter(|peer| !peer.is_removed());
        present.filter_map(|peer| self.peers.get(&peer.key))
    }

    pub(crate) fn find_or_add(&mut self, key: [u8; 32]) -> Arc<Peer> {
        if let Some(entry) = self.peers.get(&key) {
            return Arc::clone(&entry.peer);
        }
        let peer = Arc::new(Peer::new(key));
        self.order.push(Arc::clone(&peer));
        self.peers.insert(key, Entry { peer: Arc::clone(&peer), allowed_ips: BTreeSet::new() });
        peer
    }

    pub(crate) fn remove(&mut self, key: &[u8; 32]) {
        let Some(entry) = self.peers.remove(key) else { return };
        entry.peer.remove();
        for net in &entry.allowed_ips {
            self.routes.remove(*net);
        }
        if self.order.len() > 2 * self.peers.len() + REMOVED_IN_ORDER {
            self.order.retain(|peer| !peer.is_removed());
        }
    }

    pub(crate) fn remove_all(&mut self) {
        for entry in self.peers.values() {
            entry.peer.remove();
        }
        self.peers.clear();
        self.order.clear();
        self.routes = Routes::default();
    }
}

/// A peer and the prefixes it owns in `routes`.
pub(crate) struct Entry {
    pub(crate) peer: Arc<Peer>,
    pub(crate) allowed_ips: BTreeSet<IpNet>,
}

/// The keys of the device.
pub(crate) struct Identity {
    pub(crate) private: StaticSecret,
    pub(crate) public: PublicKey,
    pub(crate) rate_limiter: Arc<RateLimiter>,
}

impl Identity {
    pub(crate) fn new(private: StaticSecret) -> Self {
        let public = PublicKey::from(&private);
        let rate_limiter = Arc::new(RateLimiter::new(&public, HANDSHAKES_PER_SECOND));
        Self { private, public, rate_limiter }
    }
}

/// Peers on their way to the timer thread.
pub(crate) struct TimerInbox {
    added: Mutex<Vec<Arc<Peer>>>,
    pub(crate) wake: EventFd,
}

impl TimerInbox {
    /// Hands over a peer that has just woken.
    pub(crate) fn add(&self, peer: Arc<Peer>) {
        self.added.lock().unwrap_or_else(PoisonError::into_inner).push(peer);
        raise(&self.wake);
    }

    pub(crate) fn take(&self) -> Vec<Arc<Peer>> {
        std::mem::take(&mut *self.added.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Whether the device still works.
pub(crate) struct Health {
    failure: OnceLock<String>,
    /// Readable once it has failed.
    pub(crate) failed: EventFd,
}

impl Health {
    /// The first failure stays.
    pub(crate) fn fail(&self, what: String) {
        tracing::error!(failure = %what, "embedded WireGuard device failed");
        if self.failure.set(what).is_ok() {
            raise(&self.failed);
        }
    }

    pub(crate) fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }
}

impl Shared {
    pub(crate) fn new(tun: Tun, socket: UdpSocket, mtu: usize, fwmark: u32, name: &str) -> nix::Result<Self> {
        let registry = Registry { fwmark, ..Registry::default() };
        Ok(Self {
            name: name.to_owned(),
            tun,
            registry: RwLock::new(registry),
            sessions: RwLock::default(),
            index_table: IndexTable::from_os_rng(),
            socket: RwLock::new(Arc::new(socket)),
            mtu: AtomicUsize::new(mtu),
            timers: TimerInbox { added: Mutex::default(), wake: event()? },
            stopping: AtomicBool::new(false),
            stop: event()?,
            socket_changed: event()?,
            health: Health { failure: OnceLock::new(), failed: event()? },
            configured: AtomicU64::new(0),
        })
    }

    pub(crate) fn registry(&self) -> RwLockReadGuard<'_, Registry> {
        self.registry.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn registry_mut(&self) -> RwLockWriteGuard<'_, Registry> {
        self.registry.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn sessions_mut(&self) -> RwLockWriteGuard<'_, HashMap<u32, Arc<Peer>>> {
        self.sessions.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The peer that a session or handshake of ours belongs to.
    pub(crate) fn peer_of_session(&self, index: u32) -> Option<Arc<Peer>> {
        let sessions = self.sessions.read().unwrap_or_else(PoisonError::into_inner);
        sessions.get(&index).filter(|peer| !peer.is_removed()).cloned()
    }

    /// Drops the indices that no handshake and no session uses any more.
    pub(crate) fn forget_ended_sessions(&self) {
        self.sessions_mut().retain(|index, peer| !peer.is_removed() && self.index_table.in_use(*index));
    }

    pub(crate) fn socket(&self) -> Arc<UdpSocket> {
        Arc::clone(&self.socket.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sends go to the new socket from now on; the inbound thread follows at once.
    pub(crate) fn replace_socket(&self, socket: UdpSocket) {
        *self.socket.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(socket);
        raise(&self.socket_changed);
    }

    /// Whether messages still arrive on `socket`.
    pub(crate) fn is_current(&self, socket: &Arc<UdpSocket>) -> bool {
        Arc::ptr_eq(&self.socket.read().unwrap_or_else(PoisonError::into_inner), socket)
    }

    /// Wakes every thread and has it end.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        raise(&self.stop);
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    pub(crate) fn times_configured(&self) -> u64 {
        self.configured.load(Ordering::Acquire)
    }

    /// Says that a change was carried out; the caller still holds the registry.
    pub(crate) fn note_configured(&self) {
        self.configured.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn mtu(&self) -> usize {
        self.mtu.load(Ordering::Relaxed)
    }

    pub(crate) fn set_mtu(&self, mtu: usize) {
        self.mtu.store(mtu, Ordering::Relaxed);
    }
}

/// An event that wakes a poll.
fn event() -> nix::Result<EventFd> {
    EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
}

pub(crate) fn raise(event: &EventFd) {
    if let Err(error) = event.write(1) {
        // Only a counter at its maximum refuses, and that one is readable already.
        tracing::trace!(%error, "event already raised");
    }
}

/// Makes the event unreadable again.
pub(crate) fn lower(event: &EventFd) {
    if let Err(error) = event.read() {
        tracing::trace!(%error, "event was not raised");
    }
}
