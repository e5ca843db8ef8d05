//! One typed wrapper a pinned map: keys and values of the kernel on one side, ours on the other.
//!
//! Addresses are in network byte order in the maps, indexes in the host's. Only the agent of an instance writes its
//! maps, but for the counters, which only the programs write.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, IterableMap as _, Map, MapData, MapError, PerCpuArray};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use weft_ebpf_common::{COUNTERS, PEER_COUNTERS_WORDS, PEERS, PeerCounters, V4_PREFIXES, V6, V6_PREFIXES};

use super::pins::Pins;
use super::platform::ReadCounters;
use super::spec::Sizes;
use super::table::AddressTable;
use crate::model::key::PublicKey;
use crate::model::ordered::Ordered;
use crate::sys::bpf::{BatchShape, lookup_batch};

/// A map operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("failed to {action} the BPF map {}", path.display())]
pub struct MapAccessError {
    pub action: &'static str,
    pub path: PathBuf,
    #[source]
    pub source: Box<MapError>,
}

pub(super) fn failed(action: &'static str, path: &Path) -> impl FnOnce(MapError) -> MapAccessError {
    let path = path.to_owned();
    move |source| MapAccessError { action, path, source: Box::new(source) }
}

/// A hash from `K` to an index.
#[derive(Debug)]
pub(super) struct IndexMap<K: Pod> {
    path: PathBuf,
    map: HashMap<MapData, K, u32>,
    capacity: u32,
}

impl<K: Pod> IndexMap<K> {
    pub(super) fn open(pins: &Pins, name: &str) -> Result<Self, MapAccessError> {
        let path = pins.map(name);
        let open = || -> Result<_, MapError> {
            let data = MapData::from_pin(&path)?;
            let capacity = data.info()?.max_entries();
            Ok((HashMap::try_from(Map::HashMap(data))?, capacity))
        };
        let (map, capacity) = open().map_err(failed("open", &path))?;
        Ok(Self { path, map, capacity })
    }

    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }

    pub(super) fn set(&mut self, key: K, index: u32) -> Result<(), MapAccessError> {
        self.map.insert(key, index, 0).map_err(failed("write", &self.path))
    }

    pub(super) fn remove(&mut self, key: &K) -> Result<(), MapAccessError> {
        self.map.remove(key).map_err(failed("write", &self.path))
    }

    /// Every entry, by `key` from the bytes in the kernel.
    pub(super) fn entries<T: Ord, const N: usize>(
        &self,
        key: impl Fn([u8; N]) -> T,
        bytes: impl Fn(K) -> [u8; N],
    ) -> Result<BTreeMap<T, u32>, MapAccessError> {
        let shape = BatchShape { key_bytes: N, value_bytes: size_of::<u32>(), count: self.capacity };
        if let Ok(Some(batch)) = lookup_batch(self.map.map().fd(), shape) {
            let (keys, _) = batch.keys.as_chunks::<N>();
            let (values, _) = batch.values.as_chunks::<4>();
            return Ok(keys.iter().zip(values).map(|(k, v)| (key(*k), u32::from_ne_bytes(*v))).collect());
        }
        let mut entries = BTreeMap::new();
        for entry in self.map.iter() {
            let (found, index) = entry.map_err(failed("read", &self.path))?;
            entries.insert(key(bytes(found)), index);
        }
        Ok(entries)
    }
}

/// A trie from networks to an index.
#[derive(Debug)]
struct PrefixMap<K: Pod> {
    path: PathBuf,
    map: LpmTrie<MapData, K, u32>,
    capacity: u32,
}

impl<K: Pod> PrefixMap<K> {
    fn open(pins: &Pins, name: &str) -> Result<Self, MapAccessError> {
        let path = pins.map(name);
        let open = || -> Result<_, MapError> {
            let data = MapData::from_pin(&path)?;
            let capacity = data.info()?.max_entries();
            Ok((LpmTrie::try_from(Map::LpmTrie(data))?, capacity))
        };
        let (map, capacity) = open().map_err(failed("open", &path))?;
        Ok(Self { path, map, capacity })
    }

    fn set(&mut self, key: &Key<K>, index: u32) -> Result<(), MapAccessError> {
        self.map.insert(key, index, 0).map_err(failed("write", &self.path))
    }

    fn remove(&mut self, key: &Key<K>) -> Result<(), MapAccessError> {
        self.map.remove(key).map_err(failed("write", &self.path))
    }

    fn read_into(
        &self,
        entries: &mut BTreeMap<IpNet, u32>,
        prefix: impl Fn(u8, K) -> Option<IpNet>,
    ) -> Result<(), MapAccessError> {
        for entry in self.map.iter() {
            let (key, index) = entry.map_err(failed("read", &self.path))?;
            let length = u8::try_from(key.prefix_len()).ok();
            entries.extend(length.and_then(|length| prefix(length, key.data())).map(|prefix| (prefix, index)));
        }
        Ok(())
    }
}

/// All maps that user space writes.
#[derive(Debug)]
pub(super) struct Maps {
    peers: IndexMap<[u8; 32]>,
    v4: AddressTable,
    v6: IndexMap<[u8; 16]>,
    v4_prefixes: PrefixMap<[u8; 4]>,
    v6_prefixes: PrefixMap<[u8; 16]>,
}

impl Maps {
    /// Opens the pinned maps.
    ///
    /// # Errors
    /// One is missing or of another shape.
    pub(super) fn open(pins: &Pins) -> Result<Self, MapAccessError> {
        Ok(Self {
            peers: IndexMap::open(pins, PEERS)?,
            v4: AddressTable::open(pins)?,
            v6: IndexMap::open(pins, V6)?,
            v4_prefixes: PrefixMap::open(pins, V4_PREFIXES)?,
            v6_prefixes: PrefixMap::open(pins, V6_PREFIXES)?,
        })
    }

    /// How much the maps take; fixed when they were made.
    pub(super) fn sizes(&self) -> Sizes {
        Sizes {
            indexes: self.peers.capacity,
            addresses: self.v4.capacity().min(self.v6.capacity),
            prefixes: self.v4_prefixes.capacity.min(self.v6_prefixes.capacity),
        }
    }

    pub(super) fn indexes(&self) -> Result<Ordered<PublicKey, u32>, MapAccessError> {
        Ok(self.peers.entries(PublicKey::from_bytes, |key| key)?.into_iter().collect())
    }

    pub(super) fn addresses(&self) -> Result<BTreeMap<IpAddr, u32>, MapAccessError> {
        let mut addresses = self.v4.entries()?;
        addresses.extend(self.v6.entries(|octets: [u8; 16]| IpAddr::from(octets), |key| key)?);
        Ok(addresses)
    }

    pub(super) fn prefixes(&self) -> Result<BTreeMap<IpNet, u32>, MapAccessError> {
        let mut prefixes = BTreeMap::new();
        self.v4_prefixes.read_into(&mut prefixes, |length, octets| {
            Ipv4Net::new(Ipv4Addr::from(octets), length).ok().map(IpNet::V4)
        })?;
        self.v6_prefixes.read_into(&mut prefixes, |length, octets| {
            Ipv6Net::new(Ipv6Addr::from(octets), length).ok().map(IpNet::V6)
        })?;
        Ok(prefixes)
    }

    pub(super) fn assign_index(&mut self, key: &PublicKey, index: u32) -> Result<(), MapAccessError> {
        self.peers.set(*key.as_bytes(), index)
    }

    pub(super) fn set_address(&mut self, address: IpAddr, index: u32) -> Result<(), MapAccessError> {
        match address {
            IpAddr::V4(address) => self.v4.set(address.octets(), index),
            IpAddr::V6(address) => self.v6.set(address.octets(), index),
        }
    }

    pub(super) fn remove_address(&mut self, address: IpAddr) -> Result<(), MapAccessError> {
        match address {
            IpAddr::V4(address) => self.v4.remove(address.octets()),
            IpAddr::V6(address) => self.v6.remove(&address.octets()),
        }
    }

    pub(super) fn set_prefix(&mut self, prefix: IpNet, index: u32) -> Result<(), MapAccessError> {
        match prefix {
            IpNet::V4(net) => self.v4_prefixes.set(&v4_key(net), index),
            IpNet::V6(net) => self.v6_prefixes.set(&v6_key(net), index),
        }
    }

    pub(super) fn remove_prefix(&mut self, prefix: IpNet) -> Result<(), MapAccessError> {
        match prefix {
            IpNet::V4(net) => self.v4_prefixes.remove(&v4_key(net)),
            IpNet::V6(net) => self.v6_prefixes.remove(&v6_key(net)),
        }
    }
}

fn v4_key(net: Ipv4Net) -> Key<[u8; 4]> {
    Key::new(u32::from(net.prefix_len()), net.network().octets())
}

fn v6_key(net: Ipv6Net) -> Key<[u8; 16]> {
    Key::new(u32::from(net.prefix_len()), net.network().octets())
}

/// The counters.
pub(super) struct CounterMap {
    path: PathBuf,
    map: PerCpuArray<MapData, [u64; PEER_COUNTERS_WORDS]>,
    cpus: usize,
}

impl fmt::Debug for CounterMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CounterMap").field("path", &self.path).finish_non_exhaustive()
    }
}

impl CounterMap {
    /// Opens the pinned map.
    ///
    /// # Errors
    /// It is missing or of another shape.
    pub(super) fn open(pins: &Pins) -> Result<Self, MapAccessError> {
        let path = pins.map(COUNTERS);
        let open = || -> Result<_, MapError> {
            let map = PerCpuArray::try_from(Map::PerCpuArray(MapData::from_pin(&path)?))?;
            let cpus = aya::util::nr_cpus().map_err(|(_file, error)| MapError::IoError(error))?;
            Ok((map, cpus))
        };
        let (map, cpus) = open().map_err(failed("open", &path))?;
        Ok(Self { path, map, cpus })
    }

    fn read_in_one_call(&self, count: u32) -> Option<Vec<PeerCounters>> {
        let value_bytes = size_of::<PeerCounters>() * self.cpus;
        let shape = BatchShape { key_bytes: size_of::<u32>(), value_bytes, count };
        let batch = lookup_batch(self.map.map().fd(), shape).ok().flatten()?;
        let (words, _) = batch.values.as_chunks::<8>();
        let words: Vec<u64> = words.iter().map(|word| u64::from_ne_bytes(*word)).collect();
        let (values, _) = words.as_chunks::<PEER_COUNTERS_WORDS>();
        (values.len() == count as usize * self.cpus).then(|| values.chunks(self.cpus).map(sum).collect())
    }
}

impl ReadCounters for CounterMap {
    fn read(&self, count: u32) -> Result<Vec<PeerCounters>, MapAccessError> {
        if let Some(counters) = self.read_in_one_call(count) {
            return Ok(counters);
        }
        let mut counters = Vec::new();
        for index in 0..count {
            counters.push(sum(&self.map.get(&index, 0).map_err(failed("read", &self.path))?));
        }
        Ok(counters)
    }
}

/// Adds what the CPUs counted.
fn sum(per_cpu: &[[u64; PEER_COUNTERS_WORDS]]) -> PeerCounters {
    let mut total = [0_u64; PEER_COUNTERS_WORDS];
    for words in per_cpu {
        for (total, word) in total.iter_mut().zip(words) {
            *total = total.wrapping_add(*word);
        }
    }
    PeerCounters::from_words(&total)
}
