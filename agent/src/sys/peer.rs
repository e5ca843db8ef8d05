//! Who is at the other end of a unix socket, as the kernel recorded it at `connect()`.
//!
//! The caller can change nothing of it afterwards: neither a later `setuid` nor a file descriptor handed on does.

#![expect(unsafe_code, reason = "SO_PEERGROUPS has no safe wrapper in the libraries we use")]

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

/// More groups than this (the kernel allows 65536) cost more memory than a check on a socket is worth.
const MOST_GROUPS: usize = 65536;

/// The supplementary groups of the peer (`SO_PEERGROUPS`, socket(7)).
///
/// # Errors
/// A socket that is not a connected unix stream, or a peer with more groups than a kernel can hold.
pub fn groups(socket: impl AsFd) -> io::Result<Vec<u32>> {
    // Most callers have a handful; ERANGE tells the size that is needed.
    let mut groups = vec![0_u32; 32];
    loop {
        let mut bytes = libc::socklen_t::try_from(groups.len() * size_of::<u32>()).map_err(io::Error::other)?;
        // SAFETY: the pointer and `bytes` describe the vector's own memory, and the kernel writes no more than that.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut bytes,
            )
        };
        let count = usize::try_from(bytes).map_err(io::Error::other)? / size_of::<u32>();
        if result == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() || count > MOST_GROUPS {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_groups_of_a_peer_are_those_it_had_when_it_connected() {
        let (left, _right) = UnixStream::pair().expect("a socket pair");
        let own: Vec<u32> = nix::unistd::getgroups().expect("readable").iter().map(|gid| gid.as_raw()).collect();
        assert_eq!(groups(&left).expect("recorded"), own);
    }

    #[test]
    fn another_kind_of_socket_is_an_error() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
        assert!(groups(&socket).is_err());
    }
}
