//! The way without eBPF: who owns the caller's socket, asked of `sock_diag(7)` once the connection was accepted, and which
//! process holds it, searched for below `/proc`.
//!
//! It tells the truth about sockets that still exist in our network namespace, and nothing about the others.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use super::origin::Cgroups;
use super::verdicts::Subject;
use crate::sys::tcp_owner;

/// Who owns the other end of a connection: `peer` and `local` are the addresses of the accepted socket.
///
/// # Errors
/// The kernel has no `sock_diag` for TCP.
pub(super) fn of(peer: SocketAddr, local: SocketAddr, cgroups: &Cgroups) -> io::Result<Option<Subject>> {
    let Some(owner) = tcp_owner::of(peer, local)? else { return Ok(None) };
    let path = owner.cgroup.and_then(|id| cgroups.path(id, None));
    let candidates = path.map(|path| cgroups.processes(&path)).unwrap_or_default();
    // A process may have moved since it made the socket.
    let pid = holder(candidates.into_iter(), owner.inode).or_else(|| holder(all_processes(), owner.inode));
    Ok(Some(Subject { uid: owner.uid, cgroup: owner.cgroup, pid, comm: None }))
}

/// Whether the kernel answers at all.
///
/// # Errors
/// Why not.
pub(super) fn works() -> io::Result<()> {
    let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    tcp_owner::of(nobody, nobody).map(drop)
}

fn all_processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The process that has the socket with this inode open.
fn holder(mut processes: impl Iterator<Item = u32>, inode: u32) -> Option<u32> {
    let wanted = format!("socket:[{inode}]");
    processes.find(|pid| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let mut links = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
        links.any(|link| link.as_os_str() == wanted.as_str())
    })
}
