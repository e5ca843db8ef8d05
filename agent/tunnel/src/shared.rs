//! What the threads of a device share, and the order of its locks.
//!
//! Order: `registry`, then the state of one peer, then `sessions` or the inbox of the timers; none is taken twice by
//! a thread. The data path takes `registry` and `sessions` for reading, once a batch.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
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

/// Handshakes a second from one address before it must prove that it owns the address; the same as kernel WireGuard's
/// order of magnitude (20 a second with a burst of 5 there, counted in full seconds here).
const HANDSHAKES_PER_SECOND: u64 = 25;

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
    /// Readable from the moment the device is to stop.
    pub(crate) stop: EventFd,
    /// Readable when the inbound thread is to look for another socket.
    pub(crate) socket_changed: EventFd,
    pub(crate) health: Health,
}

/// The configuration.
#[derive(Default)]
pub(crate) struct Registry {
    pub(crate) identity: Option<Identity>,
    pub(crate) fwmark: u32,
    pub(crate) peers: HashMap<[u8; 32], Entry>,
    /// Keys in the order they were added, which is the order they are listed in. Removed ones are left out lazily.
    pub(crate) order: Vec<Arc<Peer>>,
    pub(crate) routes: Routes<Arc<Peer>>,
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
            stop: event()?,
            socket_changed: event()?,
            health: Health { failure: OnceLock::new(), failed: event()? },
        })
    }

    pub(crate) fn registry(&self) -> RwLockReadGuard<'_, Registry> {
        self.registry.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn registry_mut(&self) -> RwLockWriteGuard<'_, Registry> {
        self.registry.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn sessions(&self) -> RwLockReadGuard<'_, HashMap<u32, Arc<Peer>>> {
        self.sessions.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn sessions_mut(&self) -> RwLockWriteGuard<'_, HashMap<u32, Arc<Peer>>> {
        self.sessions.write().unwrap_or_else(PoisonError::into_inner)
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
