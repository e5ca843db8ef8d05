//! The exact IPv4 addresses: the table of [`weft_ebpf_common::table`], and the hash for those whose bucket is full.
//!
//! Invariants: an address is written by one store of one word, so a packet finds the old owner or the new one; an
//! address that moves from the hash to the table is in the table before it leaves the hash, and the programs ask the
//! table first. The table is mapped into memory at the first change: an agent that finds everything in order makes no
//! writable mapping.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::{Array, IterableMap as _, Map, MapData, MapError};
use weft_ebpf_common::table::{BUCKETS, Bucket, SLOTS, bucket_of, index_of, slot};
use weft_ebpf_common::{V4, V4_TABLE};

use super::maps::{IndexMap, MapAccessError, failed};
use super::pins::Pins;
use crate::sys::bpf::{BatchShape, SharedWords, lookup_batch};

/// Words of the whole table.
const WORDS: usize = BUCKETS as usize * SLOTS;

/// The table and the hash behind it.
pub(super) struct AddressTable {
    path: PathBuf,
    map: Array<MapData, Bucket>,
    /// Mapped by the first change.
    words: Option<SharedWords>,
    overflow: IndexMap<[u8; 4]>,
    /// What is in `overflow`, which is almost always nothing.
    overflowed: BTreeSet<[u8; 4]>,
}

impl fmt::Debug for AddressTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddressTable").field("path", &self.path).finish_non_exhaustive()
    }
}

impl AddressTable {
    /// Opens the pinned maps.
    ///
    /// # Errors
    /// One is missing or of another shape.
    pub(super) fn open(pins: &Pins) -> Result<Self, MapAccessError> {
        let path = pins.map(V4_TABLE);
        let open = || -> Result<_, MapError> {
            let data = MapData::from_pin(&path)?;
            let found = data.info()?.max_entries();
            if found != BUCKETS {
                return Err(MapError::OutOfBounds { index: BUCKETS, max_entries: found });
            }
            Array::try_from(Map::Array(data))
        };
        let map = open().map_err(failed("open", &path))?;
        let overflow = IndexMap::<[u8; 4]>::open(pins, V4)?;
        let overflowed = overflow.entries(|octets: [u8; 4]| octets, |key| key)?.into_keys().collect();
        Ok(Self { path, map, words: None, overflow, overflowed })
    }

    /// How many addresses are sure to fit.
    pub(super) fn capacity(&self) -> u32 {
        self.overflow.capacity()
    }

    /// Every address with its index.
    ///
    /// # Errors
    /// The maps may not be read.
    pub(super) fn entries(&self) -> Result<BTreeMap<IpAddr, u32>, MapAccessError> {
        let mut entries = self.overflow.entries(|octets: [u8; 4]| IpAddr::from(octets), |key| key)?;
        // Both may have an address while it moves; the table is what the programs ask first.
        entries.extend(self.slots()?.into_iter().filter(|slot| *slot != 0).map(|slot| {
            let address = Ipv4Addr::from((slot as u32).to_ne_bytes());
            (IpAddr::V4(address), (slot >> 32) as u32)
        }));
        Ok(entries)
    }

    fn slots(&self) -> Result<Vec<u64>, MapAccessError> {
        let shape = BatchShape { key_bytes: 4, value_bytes: size_of::<Bucket>(), count: BUCKETS };
        if let Ok(Some(batch)) = lookup_batch(self.map.map().fd(), shape) {
            let (words, _) = batch.values.as_chunks::<8>();
            return Ok(words.iter().map(|word| u64::from_ne_bytes(*word)).collect());
        }
        let buckets: Result<Vec<Bucket>, MapError> = self.map.iter().collect();
        Ok(buckets.map_err(failed("read", &self.path))?.concat())
    }

    /// Says who has an address; what was said before ends in the same moment.
    ///
    /// # Errors
    /// The maps may not be written, or the bucket and the hash are full.
    pub(super) fn set(&mut self, octets: [u8; 4], index: u32) -> Result<(), MapAccessError> {
        let address = u32::from_ne_bytes(octets);
        if let Some(place) = place(self.bucket(address)?, address) {
            place.store(slot(address, index), Ordering::Release);
            if self.overflowed.contains(&octets) {
                self.overflow.remove(&octets)?;
                self.overflowed.remove(&octets);
            }
            return Ok(());
        }
        self.overflow.set(octets, index)?;
        self.overflowed.insert(octets);
        Ok(())
    }

    /// Makes an address nobody's.
    ///
    /// # Errors
    /// The maps may not be written.
    pub(super) fn remove(&mut self, octets: [u8; 4]) -> Result<(), MapAccessError> {
        let address = u32::from_ne_bytes(octets);
        if let Some(place) = holder(self.bucket(address)?, address) {
            place.store(0, Ordering::Release);
        }
        if self.overflowed.contains(&octets) {
            self.overflow.remove(&octets)?;
            self.overflowed.remove(&octets);
        }
        Ok(())
    }

    fn bucket(&mut self, address: u32) -> Result<&[AtomicU64], MapAccessError> {
        let words = match self.words.take() {
            Some(words) => words,
            None => SharedWords::of(self.map.map().fd(), WORDS)
                .map_err(|error| failed("map", &self.path)(MapError::IoError(error)))?,
        };
        let first = bucket_of(address) as usize * SLOTS;
        Ok(&self.words.insert(words).words()[first..first + SLOTS])
    }
}

/// The slot that is an address's already.
fn holder(bucket: &[AtomicU64], address: u32) -> Option<&AtomicU64> {
    bucket.iter().find(|slot| index_of(slot.load(Ordering::Relaxed), address).is_some())
}

/// The slot to write an address to: its own, else the first that is free.
fn place(bucket: &[AtomicU64], address: u32) -> Option<&AtomicU64> {
    holder(bucket, address).or_else(|| bucket.iter().find(|slot| slot.load(Ordering::Relaxed) == 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_keeps_its_slot_and_a_new_one_takes_the_first_that_is_free() {
        let bucket: [AtomicU64; SLOTS] = Default::default();
        for address in 1..=SLOTS as u32 {
            place(&bucket, address).expect("there is room").store(slot(address, 1), Ordering::Relaxed);
        }
        assert!(place(&bucket, 100).is_none(), "a full bucket has no place for another");
        place(&bucket, 3).expect("has one").store(slot(3, 2), Ordering::Relaxed);
        assert_eq!(bucket[2].load(Ordering::Relaxed), slot(3, 2));
        holder(&bucket, 5).expect("has one").store(0, Ordering::Relaxed);
        assert!(holder(&bucket, 5).is_none());
        assert!(std::ptr::eq(place(&bucket, 100).expect("one is free"), &raw const bucket[4]));
    }
}
