//! What `cargo xtask bench accounting` compares the accounting with: a program that does nothing, and the least that
//! counting per peer can be, one hit in a per-CPU hash and an addition. IPv4 on Ethernet only.

#![no_std]
#![no_main]

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::PerCpuHashMap;
use aya_ebpf::programs::TcContext;

const ETHERNET: usize = 14;
const DESTINATION: usize = 16;
const V4_HEADER: usize = 20;

#[map]
static BARE: PerCpuHashMap<u32, u64> = PerCpuHashMap::with_max_entries(4096, 0);

#[classifier]
pub fn empty(_ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

#[classifier]
pub fn bare(ctx: TcContext) -> i32 {
    let start = ctx.data() + ETHERNET;
    if start + V4_HEADER <= ctx.data_end() {
        let at = start + DESTINATION;
        // SAFETY: the comparison above proved the header's bytes to be there, and IP headers begin at even addresses.
        let (low, high) = unsafe { (*(at as *const u16), *((at + 2) as *const u16)) };
        let address = u32::from(low) | (u32::from(high) << 16);
        if let Some(bytes) = BARE.get_ptr_mut(address) {
            // SAFETY: the map's element of this CPU.
            unsafe { *bytes += u64::from(ctx.len()) };
        }
    }
    TC_ACT_UNSPEC
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
