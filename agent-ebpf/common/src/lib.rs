//! What the accounting program and user space agree on: the names of the maps and the shape of their values. What the
//! programs that record callers agree on is in [`callers`].
//!
//! | map | key | value | written by |
//! |---|---|---|---|
//! | [`PEERS`] | 32 bytes of a public key | peer index | user space |
//! | [`V4_TABLE`] | bucket | [`table::Bucket`] | user space, word by word through memory |
//! | [`V4`], [`V6`] | address, network byte order | peer index | user space |
//! | [`V4_PREFIXES`], [`V6_PREFIXES`] | prefix length in host byte order, address in network byte order | peer index | user space |
//! | [`COUNTERS`] | peer index | [`PeerCounters`], one per CPU | the program |
//!
//! Peer indexes and counters are in host byte order. Index [`UNATTRIBUTED`] is nobody's. Whoever changes a shape here
//! raises [`LAYOUT`]: pinned maps of another layout are never opened.

#![no_std]

pub mod callers;
pub mod table;

/// The version of everything in this file; part of the pin directory's name.
pub const LAYOUT: u32 = 2;

/// Which index each public key has. The programs do not read it.
pub const PEERS: &str = "PEERS";
/// Addresses that belong to one peer, as [`table`] says.
pub const V4_TABLE: &str = "V4_TABLE";
/// Addresses that belong to one peer and found no room in [`V4_TABLE`].
pub const V4: &str = "V4";
/// Addresses that belong to one peer.
pub const V6: &str = "V6";
/// Networks routed to a peer, asked only when the address itself is unknown.
pub const V4_PREFIXES: &str = "V4_PREFIXES";
/// Networks routed to a peer, asked only when the address itself is unknown.
pub const V6_PREFIXES: &str = "V6_PREFIXES";
/// The counters.
pub const COUNTERS: &str = "COUNTERS";
/// Log records of the programs, in the format of aya-log.
pub const LOGS: &str = "AYA_LOGS";

/// The program on the receiving side of the link.
pub const INGRESS: &str = "weft_ingress";
/// The program on the sending side of the link.
pub const EGRESS: &str = "weft_egress";
/// The global that says how many bytes stand before the IP header: 0 on an L3 link, 14 on Ethernet.
pub const L2_LENGTH: &str = "L2_LENGTH";

/// The peer index of packets whose address belongs to no peer.
pub const UNATTRIBUTED: u32 = 0;

/// How bytes are classed; an index into [`Counters::class_bytes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Class {
    Tcp = 0,
    Udp = 1,
    /// ICMP and ICMPv6.
    Icmp = 2,
    /// Anything else; also IPv6 packets with extension headers.
    Other = 3,
}

/// The number of classes.
pub const CLASSES: usize = 4;

impl Class {
    /// The class of an IP protocol number (IPv4 `protocol`, IPv6 `next header`).
    #[inline(always)]
    pub const fn of(protocol: u8) -> Self {
        // The common ones first: this runs for every packet.
        if protocol == 6 {
            Self::Tcp
        } else if protocol == 17 {
            Self::Udp
        } else if protocol == 1 || protocol == 58 {
            Self::Icmp
        } else {
            Self::Other
        }
    }
}

/// One direction of one peer on one CPU. The sum of the classes is the number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Counters {
    pub packets: u64,
    pub class_bytes: [u64; CLASSES],
}

/// Both directions of one peer on one CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct PeerCounters {
    pub rx: Counters,
    pub tx: Counters,
}

/// Words of 64 bits in a [`PeerCounters`].
pub const PEER_COUNTERS_WORDS: usize = size_of::<PeerCounters>() / 8;

impl Counters {
    const WORDS: usize = 1 + CLASSES;

    const fn from_words(words: &[u64; PEER_COUNTERS_WORDS], first: usize) -> Self {
        let class_bytes = [words[first + 1], words[first + 2], words[first + 3], words[first + 4]];
        Self { packets: words[first], class_bytes }
    }
}

impl PeerCounters {
    /// The counters that lie in memory as these words.
    pub const fn from_words(words: &[u64; PEER_COUNTERS_WORDS]) -> Self {
        Self { rx: Counters::from_words(words, 0), tx: Counters::from_words(words, Counters::WORDS) }
    }

    /// How the counters lie in memory.
    pub const fn to_words(&self) -> [u64; PEER_COUNTERS_WORDS] {
        let (rx, tx) = (&self.rx.class_bytes, &self.tx.class_bytes);
        [self.rx.packets, rx[0], rx[1], rx[2], rx[3], self.tx.packets, tx[0], tx[1], tx[2], tx[3]]
    }
}

// Without padding: every byte belongs to a word.
const _: () = assert!(size_of::<PeerCounters>() == 8 * 2 * Counters::WORDS && align_of::<PeerCounters>() == 8);
const _: () = assert!(core::mem::offset_of!(PeerCounters, tx) == 8 * Counters::WORDS);
const _: () = assert!(core::mem::offset_of!(Counters, class_bytes) == 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_round_trip_in_the_order_of_memory() {
        let words = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
        let counters = PeerCounters::from_words(&words);
        assert_eq!(counters.rx, Counters { packets: 1, class_bytes: [2, 3, 4, 5] });
        assert_eq!(counters.tx, Counters { packets: 6, class_bytes: [7, 8, 9, 10] });
        assert_eq!(counters.to_words(), words);
    }

    #[test]
    fn protocols_have_their_class() {
        let classes = [1, 6, 17, 58, 50].map(Class::of);
        assert_eq!(classes, [Class::Icmp, Class::Tcp, Class::Udp, Class::Icmp, Class::Other]);
    }
}
