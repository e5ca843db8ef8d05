//! The one instruction no library offers safely: telling QEMU to exit.

#![expect(unsafe_code, reason = "port I/O has no safe interface and the kernels have no /dev/port")]

use std::io;

/// Where `-device isa-debug-exit` listens.
const PORT: u16 = 0xf4;

/// Leaves QEMU with exit status `2 * code + 1`. Returns only if that failed.
pub(crate) fn exit_qemu(code: u8) -> io::Error {
    // SAFETY: asks the kernel for access to four ports; no memory is involved.
    if unsafe { libc::ioperm(PORT.into(), 4, 1) } != 0 {
        return io::Error::last_os_error();
    }
    // SAFETY: this process may write the port (just above), and only process 1 of a guest comes here, where the port
    // belongs to QEMU's debug device or to nothing.
    unsafe {
        std::arch::asm!("out dx, eax", in("dx") PORT, in("eax") u32::from(code), options(nomem, nostack));
    }
    io::Error::other("QEMU has no isa-debug-exit device")
}
