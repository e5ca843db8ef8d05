//! The programs and maps in the kernel: loaded once, pinned, adopted by the next agent.
//!
//! Invariants: a program that runs where it should and comes from our object is never loaded again; another version
//! takes its place between two runs of it; the maps are only ever opened in the layout of this version.

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
    CALLERS, COUNT_KINDS, COUNTS, CallerRecord, DESTINATIONS, Endpoint, LAYOUT, LISTENERS, MAX_LISTENERS, PENDING,
    RECORD_BYTES, STEERED,
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
    destinations: Mutex<HashMap<MapData, [u8; 32], u32>>,
    steering: Mutex<Steering>,
    counts: PerCpuArray<MapData, u64>,
    /// Why nothing can be steered, if so.
    pub(super) no_steering: Option<String>,
    /// The programs were there already.
    pub(super) adopted: bool,
    /// Callers outside this cgroup are unknown; `None`: there are none outside.
    pub(super) only_below: Option<PathBuf>,
}

struct Steering {
    addresses: HashMap<MapData, [u8; 32], u32>,
    listeners: SockMap<MapData>,
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel").field("adopted", &self.adopted).finish_non_exhaustive()
    }
}

impl Kernel {
    /// Adopts what is pinned and attaches what is missing. What an earlier agent asked to be recorded is forgotten.
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
        let kernel = Self {
            callers: sockets::open_map(&directory.join(CALLERS)).map_err(KernelError::Storage)?,
            destinations: Mutex::new(hash(&directory, DESTINATIONS)?),
            steering: Mutex::new(Steering {
                addresses: hash(&directory, STEERED)?,
                listeners: SockMap::try_from(Map::SockMap(open(&directory, LISTENERS)?))
                    .map_err(failed("open", LISTENERS))?,
            }),
            counts: PerCpuArray::try_from(Map::PerCpuArray(open(&directory, COUNTS)?))
                .map_err(failed("open", COUNTS))?,
            adopted: adopted && steering.as_ref().is_ok_and(|adopted| *adopted),
            no_steering: steering.err().map(|error| brief(&error)),
            only_below: outside,
        };
        kernel.forget()?;
        Ok(kernel)
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
        let mut destinations = self.destinations.lock().unwrap_or_else(PoisonError::into_inner);
        destinations.insert(endpoint(netns, address), 1, 0).map_err(failed("write", DESTINATIONS))
    }

    /// Records them no longer.
    pub(super) fn unwatch(&self, netns: u64, address: SocketAddr) {
        let mut destinations = self.destinations.lock().unwrap_or_else(PoisonError::into_inner);
        // It may be gone with its map; then nothing is recorded either.
        destinations.remove(&endpoint(netns, address)).ok();
    }

    /// Sends connections for `address` to `listener`.
    pub(super) fn steer(&self, index: u32, address: SocketAddr, listener: BorrowedFd<'_>) -> Result<(), KernelError> {
        let mut steering = self.steering.lock().unwrap_or_else(PoisonError::into_inner);
        steering.listeners.set(index, &listener, 0).map_err(failed("write", LISTENERS))?;
        steering.addresses.insert(endpoint(0, address), index, 0).map_err(failed("write", STEERED))
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

    fn forget(&self) -> Result<(), KernelError> {
        let mut destinations = self.destinations.lock().unwrap_or_else(PoisonError::into_inner);
        clear(&mut destinations).map_err(failed("write", DESTINATIONS))?;
        let mut steering = self.steering.lock().unwrap_or_else(PoisonError::into_inner);
        clear(&mut steering.addresses).map_err(failed("write", STEERED))?;
        for index in 0..MAX_LISTENERS {
            // Most places are empty.
            steering.listeners.clear_index(&index).ok();
        }
        Ok(())
    }
}

fn clear(map: &mut HashMap<MapData, [u8; 32], u32>) -> Result<(), MapError> {
    let keys: Vec<[u8; 32]> = map.keys().collect::<Result<_, _>>()?;
    keys.iter().try_for_each(|key| map.remove(key))
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
