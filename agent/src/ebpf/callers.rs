//! Who is calling the gateway, and that its addresses reach it.
//!
//! In: the addresses the gateway listens on, accepted sockets. Out: an [`Identity`] for each socket, with the verdict of
//! the [`policy`]. The kernel records every caller inside its `connect(2)` and hands the record to the socket that
//! `accept` returns (`agent-ebpf/src/callers.rs`); here it is read by the descriptor, in one system call.
//!
//! Where that cannot be had, the owner of the caller's socket is asked of `sock_diag(7)`, and where that fails too nobody
//! is internal: [`Status`] says which, and why. Once a minute a connection of our own proves that records arrive.
//!
//! Invariants: who is not known is external; a record counts only in our own network namespace; nothing here delays or
//! refuses a connection; programs, links and maps stay in their pins when the agent ends.

mod attach;
mod btf;
pub mod config;
mod kernel;
mod metrics;
mod origin;
mod owner;
pub mod policy;
pub mod status;
mod steering;
mod verdicts;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::watch;
use weft_ebpf_common::callers::CallerRecord;

use crate::foundation::error::chain;
use crate::foundation::id::InstanceName;
use crate::foundation::metrics::Metrics;
use crate::foundation::task::{self, Task};
use crate::sys::netns;
use config::Config;
use kernel::{Kernel, KernelError};
use policy::{Policy, Verdict};
use status::{Basis, Status};
pub use steering::{SteerError, Steered};
use verdicts::{Subject, Verdicts};

/// How often a connection of our own proves that callers are recorded.
const PROOF_INTERVAL: Duration = Duration::from_secs(60);
/// Where the own connection goes: an address nobody listens on. Its port stays the same as long as it is free, also for
/// the next agent, so that proving writes nothing.
const PROOF_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 3, 254));
/// How long the own connection may take; on loopback it stands when `connect` returns.
const PROOF_DEADLINE: Duration = Duration::from_secs(2);

/// What the classification is told once, at start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub instance: InstanceName,
    /// Where the instances have their directories; on a BPF file system.
    pub pin_root: PathBuf,
    pub config: Config,
    pub policy: Policy,
    /// Whose connections are recorded: the processes of this cgroup. `None`: of the whole host.
    pub cgroup: Option<PathBuf>,
}

impl Settings {
    /// The settings of an instance at the usual place, for the whole host.
    ///
    /// # Errors
    /// The first value of `config` that is wrong.
    pub fn new(instance: InstanceName, config: Config) -> Result<Self, config::ConfigError> {
        let policy = config.policy(instance.as_str())?;
        Ok(Self { instance, pin_root: PathBuf::from("/sys/fs/bpf/weft"), config, policy, cgroup: None })
    }
}

/// Who opened a connection, as far as the kernel vouches for it.
#[derive(Debug, Clone)]
pub struct Identity {
    pub basis: Basis,
    /// `None`: nobody knows; the verdict is external.
    pub record: Option<Record>,
    pub verdict: Arc<Verdict>,
}

/// What the kernel said about the process that connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    pub uid: u32,
    pub gid: Option<u32>,
    pub pid: Option<u32>,
    /// Id of its cgroup2 group, the inode of its directory.
    pub cgroup: Option<u64>,
    /// Name of the thread, ended by zeros.
    pub comm: Option<[u8; 16]>,
    /// Nanoseconds since boot, suspend included.
    pub connected_at: Option<u64>,
}

/// The classification. Cheap to clone; dropping the last clone leaves programs and pins as they are.
#[derive(Debug, Clone)]
pub struct Callers {
    shared: Arc<Shared>,
    _proving: Arc<Option<Task>>,
}

#[derive(Debug)]
struct Shared {
    settings: Settings,
    /// The cookie of our network namespace; `None` before Linux 5.14.
    netns: Option<u64>,
    kernel: ArcSwapOption<Kernel>,
    wanted: Mutex<steering::Wanted>,
    verdicts: Verdicts,
    unknown: Arc<Verdict>,
    status: watch::Sender<Status>,
    tally: metrics::Tally,
}

impl Callers {
    /// Adopts or attaches the programs and proves that they work, on a thread for blocking work. It never fails: what it
    /// rests on is its [`Status`]. Needs a tokio runtime.
    pub async fn start(settings: Settings, metrics: &Metrics) -> Self {
        let opened = tokio::task::spawn_blocking(move || {
            let shared = Shared::new(settings);
            shared.check();
            Arc::new(shared)
        });
        let shared = match opened.await {
            Ok(shared) => shared,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        };
        metrics::register(metrics, &shared);
        let proving = shared.settings.config.enabled.then(|| prove_again(Arc::downgrade(&shared)));
        Self { shared, _proving: Arc::new(proving) }
    }

    /// Has connections to `address` recorded; call it before `listen`. An unspecified address means every address with
    /// that port. Ends when the guard drops.
    pub fn watch(&self, address: SocketAddr) -> Watched {
        self.shared.watch(address);
        Watched { shared: Arc::clone(&self.shared), address }
    }

    /// Sends new connections for `address` to `listener`, whoever else listens there, and has them recorded. The listener
    /// is any listening TCP socket of this network namespace. Ends when the guard drops.
    ///
    /// # Errors
    /// The kernel cannot, or too many addresses are steered already.
    pub fn steer(&self, address: SocketAddr, listener: BorrowedFd<'_>) -> Result<Steered, SteerError> {
        let listener = listener.try_clone_to_owned().map_err(SteerError::Listener)?;
        let watched = self.watch(address);
        steering::steer(&self.shared, address, listener, watched)
    }

    /// Who connected this accepted socket: `peer` and `local` are its addresses. One system call for a process that called
    /// within the last second.
    pub fn of(&self, socket: BorrowedFd<'_>, peer: SocketAddr, local: SocketAddr) -> Identity {
        let identity = self.shared.identify(socket, peer, local);
        self.shared.tally.count(&identity);
        identity
    }

    /// What the classification rests on, and its changes.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.shared.status.subscribe()
    }

    /// Whether the programs were found in place by the last check that had to open them.
    pub fn adopted(&self) -> bool {
        self.shared.kernel.load().as_ref().is_some_and(|kernel| kernel.adopted)
    }
}

/// Connections to an address are recorded while this lives.
#[derive(Debug)]
pub struct Watched {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.shared.unwatch(self.address);
    }
}

impl Shared {
    fn new(settings: Settings) -> Self {
        let status = Status {
            basis: Basis::Nothing,
            fallback_reason: None,
            is_chosen: false,
            can_steer: false,
            steering_error: None,
            notes: Vec::new(),
        };
        let unknown =
            Verdict { is_internal: false, reason: "the kernel recorded nobody".into(), unit: None, executable: None };
        Self {
            netns: netns::cookie().ok(),
            kernel: ArcSwapOption::empty(),
            wanted: Mutex::default(),
            verdicts: Verdicts::new(settings.policy.clone()),
            unknown: Arc::new(unknown),
            status: watch::channel(status).0,
            tally: metrics::Tally::default(),
            settings,
        }
    }

    fn identify(&self, socket: BorrowedFd<'_>, peer: SocketAddr, local: SocketAddr) -> Identity {
        match (&*self.kernel.load(), self.netns) {
            (Some(kernel), Some(netns)) => self.by_storage(kernel, netns, socket),
            _ => self.by_owner(peer, local),
        }
    }

    /// A socket without a record is nobody's, even if another way could name somebody.
    fn by_storage(&self, kernel: &Kernel, netns: u64, socket: BorrowedFd<'_>) -> Identity {
        let Some(found) = kernel.record(socket).ok().flatten().filter(|record| record.netns == netns) else {
            return self.nobody(Basis::Storage);
        };
        let subject =
            Subject { uid: found.uid, cgroup: Some(found.cgroup), pid: Some(found.pid), comm: Some(found.comm) };
        let verdict = self.verdicts.of(&subject, Some(found.connected_at));
        Identity { basis: Basis::Storage, verdict, record: Some(Record::from(found)) }
    }

    fn by_owner(&self, peer: SocketAddr, local: SocketAddr) -> Identity {
        let found = owner::of(peer, local, self.verdicts.cgroups()).ok().flatten();
        let Some(subject) = found else { return self.nobody(Basis::SockDiag) };
        let record = Record {
            uid: subject.uid,
            gid: None,
            pid: subject.pid,
            cgroup: subject.cgroup,
            comm: None,
            connected_at: None,
        };
        // Whether a proxy holds the socket is not known without its process, and then it is not trusted.
        let verdict = match subject.pid {
            Some(_) => self.verdicts.of(&subject, None),
            None => Arc::new(Verdict {
                reason: "no process of the caller's socket was found".into(),
                ..(*self.unknown).clone()
            }),
        };
        Identity { basis: Basis::SockDiag, record: Some(record), verdict }
    }

    fn nobody(&self, basis: Basis) -> Identity {
        Identity { basis, record: None, verdict: Arc::clone(&self.unknown) }
    }

    fn watch(&self, address: SocketAddr) {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        wanted.watch(address);
        if let (Some(kernel), Some(netns)) = (&*self.kernel.load(), self.netns)
            && let Err(error) = kernel.watch(netns, address)
        {
            tracing::warn!(%address, error = chain(&error), "callers of this address are not recorded and stay external");
        }
    }

    fn unwatch(&self, address: SocketAddr) {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        if wanted.unwatch(address)
            && let (Some(kernel), Some(netns)) = (&*self.kernel.load(), self.netns)
        {
            kernel.unwatch(netns, address);
        }
    }

    /// Proves that callers are recorded; opens the programs where they are not, and tells what came of it.
    fn check(&self) {
        if let Some(kernel) = &*self.kernel.load()
            && self.prove(kernel).is_ok()
        {
            // Whatever listens has said so a proof ago.
            if let Err(error) = kernel.forget_left() {
                tracing::warn!(error = chain(&error), "addresses of an earlier agent are still recorded or steered");
            }
            return;
        }
        let was = self.kernel.load().is_some();
        let status = match self.open() {
            Ok(kernel) => {
                let status = recorded(&kernel);
                self.kernel.store(Some(Arc::new(kernel)));
                status
            }
            Err(reason) => {
                self.kernel.store(None);
                fallen_back(reason, !self.settings.config.enabled)
            }
        };
        if was {
            tracing::warn!(now = status.summary(), "callers were not recorded any more");
        }
        announce(&status);
        self.status.send_replace(status);
    }

    fn open(&self) -> Result<Kernel, String> {
        if !self.settings.config.enabled {
            return Err("gateway.caller.enabled = false".to_owned());
        }
        let netns = self.netns.ok_or("network namespaces have no cookie before Linux 5.14")?;
        let kernel = Kernel::open(&self.settings).map_err(|error| kernel::brief(&error))?;
        self.prove(&kernel).map_err(|error| kernel::brief(&error))?;
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        wanted.apply(&kernel, netns).map_err(|error| kernel::brief(&error))?;
        Ok(kernel)
    }

    /// Makes a connection to itself and looks whether the kernel says so.
    fn prove(&self, kernel: &Kernel) -> Result<(), KernelError> {
        let netns = self.netns.unwrap_or_default();
        let (listener, address) = self.proof_listener(kernel, netns)?;
        connect_and_look(kernel, &listener, address, netns)
    }

    /// Listens where connections are recorded already, if that place is free.
    fn proof_listener(&self, kernel: &Kernel, netns: u64) -> Result<(TcpListener, SocketAddr), KernelError> {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        let known = wanted.proof.or_else(|| kernel.left_at(netns, PROOF_ADDRESS));
        let listener = match known.map(TcpListener::bind) {
            Some(Ok(listener)) => listener,
            Some(Err(_)) | None => {
                TcpListener::bind((PROOF_ADDRESS, 0)).map_err(not_proven("bind to a loopback address"))?
            }
        };
        let address = listener.local_addr().map_err(not_proven("see where it is bound"))?;
        if let Some(old) = wanted.proof.replace(address).filter(|old| *old != address && !wanted.is_watched(*old)) {
            kernel.unwatch(netns, old);
        }
        kernel.watch(netns, address)?;
        Ok((listener, address))
    }
}

fn connect_and_look(
    kernel: &Kernel,
    listener: &TcpListener,
    address: SocketAddr,
    netns: u64,
) -> Result<(), KernelError> {
    let client = TcpStream::connect_timeout(&address, PROOF_DEADLINE).map_err(not_proven("connect to itself"))?;
    let own = client.local_addr().map_err(not_proven("see where it is connected"))?;
    loop {
        // Somebody else may have come first.
        let (accepted, peer) = listener.accept().map_err(not_proven("accept its own connection"))?;
        if peer != own {
            continue;
        }
        let record = kernel.record(accepted.as_fd()).map_err(not_proven("read the record"))?;
        let Some(record) = record else {
            let why = "its socket has no record; is this process outside the cgroup2 hierarchy that is mounted?";
            return Err(KernelError::NotProven(why.to_owned()));
        };
        if record.netns == netns && record.uid == nix::unistd::geteuid().as_raw() {
            return Ok(());
        }
        return Err(KernelError::NotProven("its record names somebody else".to_owned()));
    }
}

fn not_proven(what: &'static str) -> impl FnOnce(io::Error) -> KernelError {
    move |error| KernelError::NotProven(format!("failed to {what}: {error}"))
}

fn recorded(kernel: &Kernel) -> Status {
    let below = kernel
        .only_below
        .as_ref()
        .map(|path| format!("only processes below {} are known; the others are external", path.display()));
    Status {
        basis: Basis::Storage,
        fallback_reason: None,
        is_chosen: false,
        can_steer: kernel.no_steering.is_none(),
        steering_error: kernel.no_steering.clone(),
        notes: below.into_iter().collect(),
    }
}

fn fallen_back(reason: String, is_chosen: bool) -> Status {
    let probed = owner::works();
    let basis = if probed.is_ok() { Basis::SockDiag } else { Basis::Nothing };
    let also = probed.err().map(|error| format!("sock_diag: {error}"));
    Status {
        basis,
        fallback_reason: Some([Some(reason.clone()), also].into_iter().flatten().collect::<Vec<_>>().join("; ")),
        is_chosen,
        can_steer: false,
        steering_error: Some(reason),
        notes: Vec::new(),
    }
}

fn announce(status: &Status) {
    if status.basis == Basis::Storage || status.is_chosen {
        tracing::info!(basis = status.summary(), can_steer = status.can_steer, "callers of the gateway are classified");
    } else {
        tracing::warn!(basis = status.summary(), "callers of the gateway are classified by a lesser way");
    }
}

fn prove_again(shared: std::sync::Weak<Shared>) -> Task {
    task::spawn("callers", async move {
        let mut ticks = tokio::time::interval(PROOF_INTERVAL);
        // The first comes at once, and the start has just proven it.
        ticks.tick().await;
        loop {
            ticks.tick().await;
            let Some(shared) = shared.upgrade() else { return };
            // A panic of the check is one of a domain, and ends the agent.
            if let Err(panicked) = tokio::task::spawn_blocking(move || shared.check()).await {
                std::panic::resume_unwind(panicked.into_panic());
            }
        }
    })
}

impl From<CallerRecord> for Record {
    fn from(record: CallerRecord) -> Self {
        Self {
            uid: record.uid,
            gid: Some(record.gid),
            pid: Some(record.pid),
            cgroup: Some(record.cgroup),
            comm: Some(record.comm),
            connected_at: Some(record.connected_at),
        }
    }
}

/// Takes programs, links and maps of one instance away; returns how many links and maps there were.
///
/// # Errors
/// What could not be removed; running it again goes on from there.
pub fn down(pin_root: &std::path::Path, instance: &InstanceName) -> Result<(usize, usize), DownError> {
    let pins = super::pins::Pins::new(pin_root, instance);
    let (mut links, mut maps) = (0, 0);
    for layout in pins.callers_layouts().map_err(|error| DownError(error.into()))? {
        let directory = pins.callers_directory(layout);
        let (some_links, some_maps) = kernel::remove_pins(&directory).map_err(DownError)?;
        super::pins::remove_directory(&directory).map_err(|error| DownError(error.into()))?;
        (links, maps) = (links + some_links, maps + some_maps);
    }
    pins.remove_empty();
    Ok((links, maps))
}

/// Why something of the caller programs is still there.
#[derive(Debug, thiserror::Error)]
#[error("failed to remove what records callers")]
pub struct DownError(#[source] KernelError);
