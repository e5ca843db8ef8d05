//! Counts every packet of the tunnel link for the peer it comes from or goes to.
//!
//! Two programs, `weft_ingress` and `weft_egress`, for tcx or clsact on an L3 link. Ingress looks the source address
//! up (WireGuard has proved it belongs to the peer), egress the destination: first as an exact address, then, only
//! when that is unknown, as part of a routed network. Packets nobody owns count under index 0.
//!
//! What is counted is what is on the wire after segmentation: a GSO packet counts its segments, and the headers once
//! for each. Invariants: no packet is changed, and the verdict is always "next program".

#![no_std]
#![no_main]

use aya_ebpf::bindings::{__sk_buff, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, TC_ACT_UNSPEC};
use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::maps::{Array, HashMap, PerCpuArray};
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::warn;
use weft_ebpf_common::table::{BUCKETS, Bucket, bucket_of, index_in};
use weft_ebpf_common::{CLASSES, Class, Counters, PeerCounters, UNATTRIBUTED};

// Sizes are set by the loader; these are for loading the object by hand.
#[map]
static PEERS: HashMap<[u8; 32], u32> = HashMap::pinned(16_384, BPF_F_NO_PREALLOC);
#[map]
static V4_TABLE: Array<Bucket> = Array::pinned(BUCKETS, BPF_F_MMAPABLE);
#[map]
static V4: HashMap<u32, u32> = HashMap::pinned(32_768, BPF_F_NO_PREALLOC);
#[map]
static V6: HashMap<[u32; 4], u32> = HashMap::pinned(32_768, BPF_F_NO_PREALLOC);
#[map]
static V4_PREFIXES: LpmTrie<u32, u32> = LpmTrie::pinned(16_384, BPF_F_NO_PREALLOC);
#[map]
static V6_PREFIXES: LpmTrie<[u32; 4], u32> = LpmTrie::pinned(16_384, BPF_F_NO_PREALLOC);
#[map]
static COUNTERS: PerCpuArray<PeerCounters> = PerCpuArray::pinned(16_384, 0);
/// How many short packets this CPU has seen; bounds the log.
#[map]
static SHORT: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Bytes before the IP header.
#[unsafe(no_mangle)]
static L2_LENGTH: u32 = 0;

/// `__sk_buff::protocol` is in network byte order.
const ETH_P_IP: u32 = 0x0800_u16.to_be() as u32;
const ETH_P_IPV6: u32 = 0x86dd_u16.to_be() as u32;

const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;

/// Which of the two addresses is the peer's, and where it counts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    /// From the peer: its address is the source.
    Rx,
    /// To the peer: its address is the destination.
    Tx,
}

/// The packet ends before its IP header does.
struct Short;

/// What the IP header says.
struct Owner {
    index: u32,
    protocol: u8,
}

#[classifier]
pub fn weft_ingress(ctx: TcContext) -> i32 {
    account(&ctx, Direction::Rx)
}

#[classifier]
pub fn weft_egress(ctx: TcContext) -> i32 {
    account(&ctx, Direction::Tx)
}

#[inline(always)]
fn account(ctx: &TcContext, direction: Direction) -> i32 {
    // SAFETY: the kernel passes a valid context, and the field is plain data.
    let ethertype = unsafe { (*ctx.skb.skb).protocol };
    let l2 = l2_length();
    let owner = match ethertype {
        ETH_P_IP => v4_owner(ctx, l2, direction),
        ETH_P_IPV6 => v6_owner(ctx, l2, direction),
        _ => Ok(Owner { index: UNATTRIBUTED, protocol: u8::MAX }),
    };
    let owner = match owner {
        Ok(owner) => owner,
        Err(Short) => {
            report_short(ctx);
            Owner { index: UNATTRIBUTED, protocol: u8::MAX }
        }
    };
    add(ctx, l2, direction, &owner);
    TC_ACT_UNSPEC
}

#[inline(always)]
fn v4_owner(ctx: &TcContext, l2: usize, direction: Direction) -> Result<Owner, Short> {
    let offset = match direction {
        Direction::Rx => 12,
        Direction::Tx => 16,
    };
    let start = ctx.data() + l2;
    let (address, protocol) = if start + V4_HEADER <= ctx.data_end() {
        // SAFETY: the comparison above proved the header's bytes to be there, and IP headers begin at even addresses.
        unsafe { (word(start + offset), *((start + 9) as *const u8)) }
    } else {
        let address = ctx.load(l2 + offset).map_err(|_| Short)?;
        (address, ctx.load(l2 + 9).map_err(|_| Short)?)
    };
    let listed = V4_TABLE.get(bucket_of(address)).and_then(|bucket| index_in(bucket, address));
    let index = match listed {
        Some(index) => index,
        None => v4_unlisted(address),
    };
    Ok(Owner { index, protocol })
}

/// Who has an address that is not in the table.
#[inline(always)]
fn v4_unlisted(address: u32) -> u32 {
    // SAFETY: user space replaces values as a whole, and an index is one word.
    match unsafe { V4.get(address) } {
        Some(index) => *index,
        None => V4_PREFIXES.get(Key::new(32, address)).copied().unwrap_or(UNATTRIBUTED),
    }
}

#[inline(always)]
fn v6_owner(ctx: &TcContext, l2: usize, direction: Direction) -> Result<Owner, Short> {
    let offset = match direction {
        Direction::Rx => 8,
        Direction::Tx => 24,
    };
    let start = ctx.data() + l2;
    let (address, protocol) = if start + V6_HEADER <= ctx.data_end() {
        let first = start + offset;
        // SAFETY: the comparison above proved the header's bytes to be there, and IP headers begin at even addresses.
        unsafe { ([word(first), word(first + 4), word(first + 8), word(first + 12)], *((start + 6) as *const u8)) }
    } else {
        let address: [u32; 4] = ctx.load(l2 + offset).map_err(|_| Short)?;
        (address, ctx.load(l2 + 6).map_err(|_| Short)?)
    };
    // SAFETY: user space replaces values as a whole, and an index is one word.
    let index = match unsafe { V6.get(address) } {
        Some(index) => *index,
        None => V6_PREFIXES.get(Key::new(128, address)).copied().unwrap_or(UNATTRIBUTED),
    };
    Ok(Owner { index, protocol })
}

/// Four bytes of the packet in the order they lie there. Two halves, because an IP header is aligned to two bytes only.
///
/// # Safety
/// `address` is even, and the verifier has seen that four bytes are there.
#[inline(always)]
unsafe fn word(address: usize) -> u32 {
    // SAFETY: by the contract above.
    let (low, high) = unsafe { (*(address as *const u16), *((address + 2) as *const u16)) };
    u32::from(low) | (u32::from(high) << 16)
}

#[inline(always)]
fn add(ctx: &TcContext, l2: usize, direction: Direction, owner: &Owner) {
    let Some(counters) = COUNTERS.get_ptr_mut(owner.index) else { return };
    // SAFETY: the map's element of this CPU; bottom halves are off, so nobody else writes this direction now.
    let counters: &mut Counters = unsafe {
        match direction {
            Direction::Rx => &mut (*counters).rx,
            Direction::Tx => &mut (*counters).tx,
        }
    };
    // A packet on a hook has its link-layer header whole: the difference is never negative.
    let mut bytes = u64::from(ctx.len()).wrapping_sub(l2 as u64);
    let mut packets = 1;
    // SAFETY: the kernel passes a valid context, and the field is plain data.
    if unsafe { (*ctx.skb.skb).gso_size } != 0 {
        let packed = segmented(ctx.skb.skb, owner.protocol);
        packets = packed >> 32;
        bytes += packed & 0xffff_ffff;
    }
    counters.packets += packets;
    counters.class_bytes[Class::of(owner.protocol) as usize % CLASSES] += bytes;
}

/// What a GSO packet is on the wire: the number of its segments in the upper half, and in the lower the bytes of the
/// headers that segmentation repeats.
#[unsafe(no_mangle)]
#[inline(never)]
fn segmented(skb: *mut __sk_buff, protocol: u8) -> u64 {
    let ctx = TcContext::new(skb);
    // SAFETY: the kernel passes a valid context, and the field is plain data.
    let ethertype = unsafe { (*skb).protocol };
    let network = match ethertype {
        ETH_P_IP => u32::from(ctx.load::<u8>(l2_length()).unwrap_or(0x45) & 0x0f) * 4,
        _ => V6_HEADER as u32,
    };
    let transport = match Class::of(protocol) {
        Class::Tcp => {
            let offset = l2_length() + network as usize + 12;
            u32::from(ctx.load::<u8>(offset).unwrap_or(0x50) >> 4) * 4
        }
        Class::Udp => 8,
        Class::Icmp | Class::Other => 0,
    };
    let headers = network + transport;
    // SAFETY: the kernel passes a valid context, and the fields are plain data.
    let (known, size) = unsafe { ((*skb).gso_segs, (*skb).gso_size) };
    // A TUN writer with virtio headers leaves the count to whoever segments.
    let segments = if known != 0 || size == 0 {
        known
    } else {
        ctx.len().saturating_sub(l2_length() as u32 + headers).div_ceil(size)
    };
    let segments = segments.max(1);
    (u64::from(segments) << 32) | u64::from((segments - 1) * headers)
}

/// Says that packets without a whole IP header come in: the first, the second, the fourth, the eighth, …
#[unsafe(no_mangle)]
#[inline(never)]
fn report_short(ctx: &TcContext) {
    let Some(seen) = SHORT.get_ptr_mut(0) else { return };
    // SAFETY: the map's element of this CPU.
    let count = unsafe {
        *seen += 1;
        *seen
    };
    if count & (count - 1) == 0 {
        warn!(ctx, "packet of {} bytes ends inside its IP header; {} such on this CPU", ctx.len(), count);
    }
}

#[inline(always)]
fn l2_length() -> usize {
    // SAFETY: a valid static; volatile, because the loader sets it after compilation.
    unsafe { core::ptr::read_volatile(&L2_LENGTH) as usize }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
