//! Who owns the other end of a loopback connection, found as programs without the kernel's help find it: the inode of the
//! socket in `/proc/net/tcp`, then the process that has it open, among all descriptors of all processes.

use std::fs;
use std::net::{SocketAddr, SocketAddrV4};

use anyhow::{Context as _, Result, bail};

/// The process that holds the socket bound to `end` and connected to `other`.
pub(super) fn by_scanning(end: SocketAddr, other: SocketAddr) -> Result<u32> {
    let (SocketAddr::V4(end), SocketAddr::V4(other)) = (end, other) else { bail!("IPv4 only") };
    let table = fs::read_to_string("/proc/thread-self/net/tcp")?;
    let inode = inode(&table, end, other).context("no such connection")?;
    let wanted = format!("socket:[{inode}]");
    for process in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else { continue };
        for descriptor in descriptors.flatten() {
            if fs::read_link(descriptor.path()).is_ok_and(|target| target.as_os_str() == wanted.as_str()) {
                return Ok(pid);
            }
        }
    }
    bail!("nobody has {wanted} open")
}

/// Addresses are in the machine's byte order there (proc_pid_net(5)).
fn inode(table: &str, end: SocketAddrV4, other: SocketAddrV4) -> Option<&str> {
    let shown =
        |address: SocketAddrV4| format!("{:08X}:{:04X}", u32::from_ne_bytes(address.ip().octets()), address.port());
    let (end, other) = (shown(end), shown(other));
    table.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        (words.next()? == end && words.next()? == other).then(|| words.nth(6))?
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_owner_of_a_connection_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        let (_accepted, peer) = listener.accept().expect("accepted");
        assert_eq!(by_scanning(peer, listener.local_addr().expect("bound")).expect("found"), std::process::id());
        drop(client);
    }
}
