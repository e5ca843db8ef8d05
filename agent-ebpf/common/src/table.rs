//! The table of IPv4 addresses that belong to one peer: a hash of fixed size, each bucket one cache line.
//!
//! A slot is the address in the low half and the peer index in the high one, and is read and written as one word, so
//! that a packet sees the old owner or the new and never a mixture. An empty slot is 0. Slots are filled from the
//! first; an address whose bucket is full goes to [`crate::V4`], which the programs ask next.

/// Slots of one bucket: 64 bytes.
pub const SLOTS: usize = 8;

/// One cache line of slots.
pub type Bucket = [u64; SLOTS];

/// Buckets of the table, a power of two: with the slots, 32,768 addresses in 256 KiB.
pub const BUCKETS: u32 = 4096;

/// The bucket of an address, given as the word that lies in the packet.
///
/// Multiplicative hashing: neighbouring addresses, as leases are, go to buckets far apart and fill them evenly.
#[inline(always)]
pub const fn bucket_of(address: u32) -> u32 {
    // 2^32 over the golden ratio. What differs most between addresses is their last byte, the high one of the word, and
    // a product carries only upwards: so the bytes are turned round first.
    address.swap_bytes().wrapping_mul(0x9e37_79b1) >> (32 - BUCKETS.trailing_zeros())
}

/// The slot that says who has an address; `index` is not 0.
#[inline(always)]
pub const fn slot(address: u32, index: u32) -> u64 {
    (address as u64) | ((index as u64) << 32)
}

/// The index a slot has for an address, if it is the slot of that address.
#[inline(always)]
pub const fn index_of(slot: u64, address: u32) -> Option<u32> {
    let difference = slot ^ address as u64;
    // The low half is 0 when the address is the same; an empty slot has no index in the high half either.
    if difference << 32 == 0 && difference != 0 { Some((difference >> 32) as u32) } else { None }
}

/// The index a bucket has for an address.
#[inline(always)]
pub fn index_in(bucket: &Bucket, address: u32) -> Option<u32> {
    let mut at = 0;
    while at < SLOTS {
        // SAFETY: a reference to an element; volatile, because user space writes meanwhile, and one load is one slot.
        let slot = unsafe { core::ptr::read_volatile(&bucket[at]) };
        let found = index_of(slot, address);
        if found.is_some() {
            return found;
        }
        at += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_speaks_for_its_address_only() {
        assert_eq!(index_of(slot(0x0100_000a, 7), 0x0100_000a), Some(7));
        assert_eq!(index_of(slot(0x0100_000a, 7), 0x0200_000a), None);
        assert_eq!(index_of(slot(0, 7), 0), Some(7));
        assert_eq!(index_of(0, 0), None, "an empty slot is nobody's, not the owner of 0.0.0.0");
    }

    #[test]
    fn a_bucket_is_searched_to_its_end() {
        let mut bucket = [0; SLOTS];
        bucket[SLOTS - 1] = slot(5, 9);
        assert_eq!(index_in(&bucket, 5), Some(9));
        assert_eq!(index_in(&bucket, 6), None);
    }

    #[test]
    fn leases_of_one_network_fill_the_buckets_evenly() {
        let mut fill = [0_u8; BUCKETS as usize];
        for lease in 0..16_384_u32 {
            let address = (0x0a5d_0000 + lease).to_be();
            fill[bucket_of(address) as usize] += 1;
        }
        assert!(fill.iter().all(|taken| usize::from(*taken) <= SLOTS), "no bucket of a half full table runs over");
    }
}
