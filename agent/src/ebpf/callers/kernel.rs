//! The programs and maps in the kernel: loaded once, pinned, adopted by the next agent.
//!
//! Invariants: a program that runs where it should and comes from our object is never loaded again; another version
//! takes its place between two runs of it; the maps are only ever opened in the layout of this version. What an earlier
//! agent wrote and this one wants too is not written again; the rest of it goes with [`Kernel::forget_left`].

use std::collections::{HashMap as Entries, HashSet};
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use aya::maps::{HashMap, Map, MapData, MapError, PerCpuArray, SockMap};
use weft_ebpf_common::callers::{
    CALLERS, COUNT_KINDS, COUNTS, CallerRecord, DESTINATIONS, Endpoint, LAYOUT, LISTENERS, PENDING, RECORD_BYTES,
    STEERED,
};

use super::attach::{self, Hook};
use super::{Settings, btf};
use crate::ebpf::pins::{self, PinError, Pins};
use crate::foundation::error::chain;
use crate::sys::bpf::sockets;

/// Why the kernel does not record callers.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("no cgroup2 hierarchy is mounted; mount one: `mount -t cgroup2 none /sys/fs/cgroup/unified`")]
    NoCgroup2,
    #[error("failed to open {}", path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error("the kernel has no BPF socket storage (Linux 5.2, CONFIG_BPF_SYSCALL), or the agent lacks CAP_BPF")]
    Storage(#[source] io::Error),
    #[error("failed to make the BPF maps of the callers")]
    Maps(#[source] Box<aya::EbpfError>),
    #[error("failed to {action} the BPF map {map}")]
    Map {
        action: &'static str,
        map: &'static str,
        #[source]
        source: Box<MapError>,
    },
    #[error("the kernel does not take {hook}")]
    Program {
        hook: Hook,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("a connection made to prove it was not recorded: {0}")]
    NotProven(String),
}

/// The error with its causes, for a status: what the verifier says besides fills pages, and goes to the log.
pub(super) fn brief(error: &KernelError) -> String {
    let whole = chain(error);
    match whole.split_once(" Verifier output") {
        Some((short, _verifier)) => {
            tracing::debug!(error = whole, "the verifier's output");
            short.trim_end_matches(['.', ':']).to_owned()
        }
        None => whole,
    }
}

/// The maps, and what is attached.
pub(super) struct Kernel {
    callers: OwnedFd,
    destinations: Mutex<Destinations>,
    steering: Mutex<Steering>,
    counts: PerCpuArray<MapData, u64>,
    /// Why nothing can be steered, if so.
    pub(super) no_steering: Option<String>,
    /// The programs were there already.
    pub(super) adopted: bool,
    /// Callers outside this cgroup are unknown; `None`: there are none outside.
    pub(super) only_below: Option<PathBuf>,
}

struct Destinations {
    map: HashMap<MapData, [u8; 32], u32>,
    /// What this agent wants in the map and knows to be there.
    held: HashSet<[u8; 32]>,
    /// What an earlier agent left there.
    left: HashSet<[u8; 32]>,
}

struct Steering {
    addresses: HashMap<MapData, [u8; 32], u32>,
    listeners: SockMap<MapData>,
    /// Addresses of an earlier agent, with places whose listeners ended with it: they go to whoever listens there.
    left: Entries<[u8; 32], u32>,
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel").field("adopted", &self.adopted).finish_non_exhaustive()
    }
}

impl Kernel {
    /// Adopts what is pinned and attaches what is missing.
    ///
    /// # Errors
    /// [`KernelError`]; what was attached before stays.
    pub(super) fn open(settings: &Settings) -> Result<Self, KernelError> {
        let pins = Pins::new(&settings.pin_root, &settings.instance);
        let directory = pins.callers_directory(LAYOUT);
        prepare(&pins, &directory)?;
        let (group, outside) = cgroup(settings)?;
        let mut adopted = true;
        for hook in [Hook::Connect4, Hook::Connect6, Hook::SockOps] {
            adopted &= attach::ensure(hook, &directory, &group, settings.config.max_pending)?;
        }
        let namespace = open_file(Path::new("/proc/thread-self/ns/net"))?;
        let steering = attach::ensure(Hook::Steer, &directory, &namespace, settings.config.max_pending);
        Ok(Self {
            callers: sockets::open_map(&directory.join(CALLERS)).map_err(KernelError::Storage)?,
            destinations: Mutex::new(Destinations::open(&directory)?),
            steering: Mutex::new(Steering::open(&directory)?),
            counts: PerCpuArray::try_from(Map::PerCpuArray(open(&directory, COUNTS)?))
                .map_err(failed("open", COUNTS))?,
            adopted: adopted && steering.as_ref().is_ok_and(|adopted| *adopted),
            no_steering: steering.err().map(|error| brief(&error)),
            only_below: outside,
        })
    }

    /// Who connected this accepted socket; `None` if nobody was recorded.
    ///
    /// # Errors
    /// The descriptor is no socket.
    pub(super) fn record(&self, socket: BorrowedFd<'_>) -> io::Result<Option<CallerRecord>> {
        let bytes = sockets::stored::<RECORD_BYTES>(self.callers.as_fd(), socket)?;
        Ok(bytes.as_ref().map(CallerRecord::from_bytes))
    }

    /// Records connections to `address`.
    pub(super) fn watch(&self, netns: u64, address: SocketAddr) -> Result<(), KernelError> {
        let key = endpoint(netns, address);
        let mut destinations = self.destinations.lock().unwrap_or_else(PoisonError::into_inner);
        let is_there = destinations.left.remove(&key) || destinations.held.contains(&key);
        if !is_there {
            destinations.map.insert(key, 1, 0).map_err(failed("write", DESTINATIONS))?;
        }
        destinations.held.insert(key);
        Ok(())
    }

    /// Records them no longer.
    pub(super) fn unwatch(&self, netns: u64, address: SocketAddr) {
        let key = endpoint(netns, address);
        let mut destinations = self.destinations.lock().unwrap_or_else(PoisonError::into_inner);
        destinations.held.remove(&key);
        // It may be gone with its map; then nothing is recorded either.
        destinations.map.remove(&key).ok();
    }

    /// Where at `ip` an earlier agent had connections recorded.
    pub(super) fn left_at(&self, netns: u64, ip: IpAddr) -> Option<SocketAddr> {
        let destinations = self.destinations.lock().unwrap_or_else(PoisonError::into_inner);
        let mut addresses = destinations.left.iter().filter_map(|key| {
            let address = SocketAddr::new(ip, u16::from_ne_bytes([key[24], key[25]]));
            (*key == endpoint(netns, address)).then_some(address)
        });
        addresses.next()
    }

    /// The place an earlier agent had steered `address` to.
    pub(super) fn left_place(&self, address: SocketAddr) -> Option<u32> {
        let steering = self.steering.lock().unwrap_or_else(PoisonError::into_inner);
        steering.left.get(&endpoint(0, address)).copied()
    }

    /// Sends connections for `address` to `listener`.
    pub(super) fn steer(&self, index: u32, address: SocketAddr, listener: BorrowedFd<'_>) -> Result<(), KernelError> {
        let key = endpoint(0, address);
        let mut steering = self.steering.lock().unwrap_or_else(PoisonError::into_inner);
        // An address of an earlier agent must not reach this listener.
        steering.forget(|left, place| place == index && *left != key).map_err(failed("write", STEERED))?;
        steering.listeners.set(index, &listener, 0).map_err(failed("write", LISTENERS))?;
        if steering.left.remove(&key) == Some(index) {
            return Ok(());
        }
        steering.addresses.insert(key, index, 0).map_err(failed("write", STEERED))
    }

    /// Leaves connections for `address` to whoever listens there.
    pub(super) fn unsteer(&self, index: u32, address: SocketAddr) {
        let mut steering = self.steering.lock().unwrap_or_else(PoisonError::into_inner);
        // Either may be gone with its map, the listener also by being closed.
        steering.addresses.remove(&endpoint(0, address)).ok();
        steering.listeners.clear_index(&index).ok();
    }

    /// What the programs counted, by `Count`.
    pub(super) fn counts(&self) -> Result<[u64; COUNT_KINDS as usize], KernelError> {
        let mut counts = [0; COUNT_KINDS as usize];
        for (index, count) in (0_u32..).zip(&mut counts) {
            *count = self.counts.get(&index, 0).map_err(failed("read", COUNTS))?.iter().sum();
        }
        Ok(counts)
    }

    /// Takes away what an earlier agent asked for and this one has not asked for by now.
    pub(super) fn forget_left(&self) -> Result<(), KernelError> {
        let mut destinations = self.destinations.lock().unwrap_or_else(PoisonError::into_inner);
        let Destinations { map, left, .. } = &mut *destinations;
        left.drain().try_for_each(|key| gone_is_fine(map.remove(&key))).map_err(failed("write", DESTINATIONS))?;
        let mut steering = self.steering.lock().unwrap_or_else(PoisonError::into_inner);
        steering.forget(|_, _| true).map_err(failed("write", STEERED))
    }
}

impl Destinations {
    fn open(directory: &Path) -> Result<Self, KernelError> {
        let map = hash(directory, DESTINATIONS)?;
        let left = map.keys().collect::<Result<_, _>>().map_err(failed("read", DESTINATIONS))?;
        Ok(Self { map, left, held: HashSet::new() })
    }
}

impl Steering {
    fn open(directory: &Path) -> Result<Self, KernelError> {
        let addresses = hash(directory, STEERED)?;
        let left = addresses.iter().collect::<Result<_, _>>().map_err(failed("read", STEERED))?;
        let listeners = SockMap::try_from(Map::SockMap(open(directory, LISTENERS)?));
        Ok(Self { addresses, left, listeners: listeners.map_err(failed("open", LISTENERS))? })
    }

    /// Steers the addresses of an earlier agent that `is_meant` no longer.
    fn forget(&mut self, is_meant: impl Fn(&[u8; 32], u32) -> bool) -> Result<(), MapError> {
        let Self { addresses, left, .. } = self;
        let meant = left.extract_if(|key, place| is_meant(key, *place));
        meant.map(|(key, _)| key).try_for_each(|key| gone_is_fine(addresses.remove(&key)))
    }
}

fn gone_is_fine(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// The directory, and the one map that the loader cannot make.
fn prepare(pins: &Pins, directory: &Path) -> Result<(), KernelError> {
    pins.create_callers(LAYOUT)?;
    if is_torn(directory)? {
        // Programs whose maps are not all pinned write where nobody reads: they begin anew.
        remove_pins(directory)?;
    }
    let storage = directory.join(CALLERS);
    if storage.exists() {
        return Ok(());
    }
    let shape = sockets::StorageShape {
        name: CALLERS,
        value_bytes: RECORD_BYTES as u32,
        btf: &btf::describe(),
        key_type: btf::KEY,
        value_type: btf::VALUE,
    };
    sockets::create_storage(shape, &storage).map_err(KernelError::Storage)
}

/// Whether some maps are pinned and others are not.
fn is_torn(directory: &Path) -> Result<bool, KernelError> {
    let names = pins::names_below(directory)?;
    let maps = [CALLERS, DESTINATIONS, PENDING, STEERED, LISTENERS, COUNTS];
    let missing = maps.iter().any(|map| !names.iter().any(|name| name == map));
    Ok(!names.is_empty() && missing)
}

/// Takes everything below a directory of ours off and away; returns how many links and maps there were.
pub(super) fn remove_pins(directory: &Path) -> Result<(usize, usize), KernelError> {
    let (mut links, mut maps) = (0, 0);
    for name in pins::names_below(directory)? {
        let path = directory.join(&name);
        if Hook::of_pin(&name).is_some() {
            links += 1;
            // Unlinking takes it off too, some time later; this is at once. One that is detached already is no error.
            crate::sys::bpf::detach_link(&path).ok();
        } else {
            maps += 1;
        }
        pins::remove(&path)?;
    }
    Ok((links, maps))
}

/// The cgroup to attach to, and its path where it is not the root of all.
fn cgroup(settings: &Settings) -> Result<(File, Option<PathBuf>), KernelError> {
    /// The root's directory in every cgroup2 hierarchy; a cgroup namespace shows another as its root.
    const ROOT_INODE: u64 = 1;
    let path = match &settings.cgroup {
        Some(path) => path.clone(),
        None => super::origin::cgroup_mount().ok_or(KernelError::NoCgroup2)?,
    };
    let file = open_file(&path)?;
    let inode = file.metadata().map_err(|source| KernelError::Open { path: path.clone(), source })?.ino();
    Ok((file, (inode != ROOT_INODE).then_some(path)))
}

fn open_file(path: &Path) -> Result<File, KernelError> {
    fs::File::open(path).map_err(|source| KernelError::Open { path: path.to_owned(), source })
}

fn open(directory: &Path, map: &'static str) -> Result<MapData, KernelError> {
    MapData::from_pin(directory.join(map)).map_err(failed("open", map))
}

fn hash(directory: &Path, map: &'static str) -> Result<HashMap<MapData, [u8; 32], u32>, KernelError> {
    HashMap::try_from(Map::HashMap(open(directory, map)?)).map_err(failed("open", map))
}

fn failed(action: &'static str, map: &'static str) -> impl FnOnce(MapError) -> KernelError {
    move |source| KernelError::Map { action, map, source: Box::new(source) }
}

fn endpoint(netns: u64, address: SocketAddr) -> [u8; 32] {
    let octets = match address.ip() {
        // Any IPv4 and any IPv6 address are one thing here.
        ip if ip.is_unspecified() => [0; 16],
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let (words, _) = octets.as_chunks::<4>();
    let address_words = [words[0], words[1], words[2], words[3]].map(u32::from_ne_bytes);
    Endpoint { netns, address: address_words, port: u32::from(address.port()), reserved: 0 }.to_bytes()
}
