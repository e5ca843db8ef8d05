//! The host's own resolvers, as upstreams: `/etc/resolv.conf`, or what systemd-resolved itself uses.
//!
//! In: file texts. Out: addresses. Pure but for [`read`], which only reads. Our own addresses never come out.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::sys::file::{self, FileError};

/// Where systemd-resolved's local stub listens.
const RESOLVED_STUBS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53)), IpAddr::V4(Ipv4Addr::new(127, 0, 0, 54))];

/// The files that say which resolvers this host uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFiles {
    pub resolv_conf: PathBuf,
    /// The upstreams of systemd-resolved, in the same format.
    pub resolved: PathBuf,
    /// What `resolv_conf` was before we pointed it at us.
    pub backup: PathBuf,
    /// The index of the link that systemd-resolved was told about, while it may still know it.
    pub told: PathBuf,
}

/// The nameservers of a resolv.conf(5), in order. Lines that hold no plain address are left out, never guessed at.
pub fn nameservers(text: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        if let Some(address) = words.next().and_then(|word| word.parse().ok())
            && !found.contains(&address)
        {
            found.push(address);
        }
    }
    found
}

/// Whether this is systemd-resolved's local stub, which is no upstream but a client of the real ones.
pub fn is_resolved_stub(address: &IpAddr) -> bool {
    RESOLVED_STUBS.contains(address)
}

/// The upstreams of this host, without those in `own`.
///
/// # Errors
/// A file that is there and cannot be read.
pub fn read(files: &HostFiles, own: &[SocketAddr]) -> Result<Vec<SocketAddr>, FileError> {
    let mut addresses = nameservers_of(&files.resolv_conf)?;
    if addresses.iter().any(|address| is_own(SocketAddr::new(*address, 53), own)) {
        addresses.extend(nameservers_of(&files.backup)?);
    }
    if addresses.iter().any(is_resolved_stub) {
        addresses.retain(|address| !is_resolved_stub(address));
        addresses.extend(nameservers_of(&files.resolved)?);
    }
    let mut upstreams: Vec<SocketAddr> = Vec::new();
    for address in addresses.into_iter().map(|address| SocketAddr::new(address, 53)) {
        if !upstreams.contains(&address) {
            upstreams.push(address);
        }
    }
    Ok(without_own(&upstreams, own))
}

/// `upstreams` without the addresses that we answer on ourselves.
pub fn without_own(upstreams: &[SocketAddr], own: &[SocketAddr]) -> Vec<SocketAddr> {
    upstreams.iter().copied().filter(|upstream| !is_own(*upstream, own)).collect()
}

/// A wildcard listener owns its port on the addresses that are surely this host's.
fn is_own(upstream: SocketAddr, own: &[SocketAddr]) -> bool {
    own.iter().any(|listen| {
        let wildcard = listen.ip().is_unspecified() && listen.port() == upstream.port();
        *listen == upstream || (wildcard && (upstream.ip().is_loopback() || upstream.ip().is_unspecified()))
    })
}

fn nameservers_of(path: &Path) -> Result<Vec<IpAddr>, FileError> {
    Ok(file::read_if_present(path)?.map(|text| nameservers(&text)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn read_in(resolv_conf: &str, resolved: &str, backup: &str, own: &[&str]) -> Vec<String> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::write(&path, text).expect("written");
            path
        };
        let files = HostFiles {
            resolv_conf: path("resolv.conf", resolv_conf),
            resolved: path("resolved.conf", resolved),
            backup: path("backup", backup),
            told: path("told", ""),
        };
        let own: Vec<SocketAddr> = own.iter().map(|text| text.parse().expect("an address")).collect();
        read(&files, &own).expect("readable").iter().map(ToString::to_string).collect()
    }

    #[test]
    fn only_plain_addresses_count() {
        let text = "# nameserver 192.0.2.1\nnameserver 192.0.2.2\n nameserver  2001:db8::1 \nnameserver invalid IP\n\
                    nameserver 192.0.2.2\nnameserver fe80::1%eth0\nsearch example.com\n";
        let expected: Vec<IpAddr> = ["192.0.2.2", "2001:db8::1"].map(|text| text.parse().expect("an address")).to_vec();
        assert_eq!(nameservers(text), expected);
    }

    #[test]
    fn the_stub_of_resolved_gives_way_to_its_upstreams() {
        let found = read_in("nameserver 127.0.0.53\n", "nameserver 192.0.2.9\n", "", &[]);
        assert_eq!(found, ["192.0.2.9:53"]);
    }

    #[test]
    fn our_own_address_gives_way_to_what_stood_there_before() {
        let found = read_in("nameserver 127.0.3.3\n", "", "nameserver 192.0.2.9\n", &["127.0.3.3:53"]);
        assert_eq!(found, ["192.0.2.9:53"]);
    }

    #[test]
    fn what_we_listen_on_is_no_upstream() {
        assert!(read_in("nameserver 127.0.0.1\n", "", "", &["0.0.0.0:53"]).is_empty());
        assert_eq!(read_in("nameserver 127.0.0.1\n", "", "", &["127.0.0.1:5353"]), ["127.0.0.1:53"]);
    }

    #[test]
    fn a_host_without_the_files_has_no_upstreams() {
        let nowhere = PathBuf::from("/nonexistent/file");
        let [resolv_conf, resolved, backup, told] = [(); 4].map(|()| nowhere.clone());
        let files = HostFiles { resolv_conf, resolved, backup, told };
        assert!(read(&files, &[]).expect("no error").is_empty());
    }
}
