//! Only the ring buffer of the log records: with it user space opens the pinned buffer of programs that already run,
//! without loading anything else.

#![no_std]
#![no_main]

use aya_ebpf::macros::map;
use aya_ebpf::maps::RingBuf;

/// The size only matters where the pin is missing; the loader sets the same as for the programs.
#[map]
static AYA_LOGS: RingBuf = RingBuf::with_byte_size(4096, 0);

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
