//! The network namespace this agent works in.
//!
//! In: nothing. Out: two ways to name the namespace. A netlink socket belongs to the namespace of the thread that
//! opened it; these functions answer for the calling thread and never change its namespace.
#![expect(unsafe_code, reason = "nix has no SO_NETNS_COOKIE")]

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;

/// `SO_NETNS_COOKIE` of `asm-generic/socket.h`; Linux 5.14.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// The cookie of the calling thread's network namespace: unique until reboot, and what BPF programs see.
///
/// # Errors
/// `ENOPROTOOPT` before Linux 5.14.
pub fn cookie() -> io::Result<u64> {
    let socket = UdpSocket::bind("127.0.0.1:0").or_else(|_| UdpSocket::bind("[::1]:0"))?;
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).expect("8 fits");
    // SAFETY: the descriptor is open for the whole call, and the two pointers are to live values of the sizes given.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// The inode of the calling thread's network namespace, the number in `/proc/PID/ns/net`.
///
/// # Errors
/// `/proc` is not mounted.
pub fn inode() -> io::Result<u64> {
    Ok(std::fs::metadata("/proc/thread-self/ns/net")?.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_namespace_keeps_its_names() {
        assert_eq!(inode().expect("proc is mounted"), inode().expect("proc is mounted"));
        match (cookie(), cookie()) {
            (Ok(first), Ok(second)) => assert_eq!(first, second),
            (Err(error), _) | (_, Err(error)) => assert_eq!(error.raw_os_error(), Some(libc::ENOPROTOOPT)),
        }
    }
}
