//! The addresses of this host that another one may reach.

use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

/// Every address of a link that is up, but for loopback, link-local and multicast ones and those of the link `except`; in
/// the kernel's order, each once. Empty if the kernel does not tell.
pub fn reachable(except: &str) -> Vec<IpAddr> {
    let Ok(addresses) = getifaddrs() else { return Vec::new() };
    let mut found = Vec::new();
    for entry in addresses {
        let is_up = entry.flags.contains(InterfaceFlags::IFF_UP) && !entry.flags.contains(InterfaceFlags::IFF_LOOPBACK);
        let Some(address) = entry.address.filter(|_| is_up && entry.interface_name != except) else { continue };
        let ipv4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        let ipv6 = address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip()));
        if let Some(address) = ipv4.or(ipv6).filter(|address| is_unicast(*address) && !found.contains(address)) {
            found.push(address);
        }
    }
    found
}

fn is_unicast(address: IpAddr) -> bool {
    let is_link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !(is_link_local || address.is_loopback() || address.is_multicast() || address.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_this_host_alone_are_no_way_to_it() {
        for text in ["127.0.0.1", "::1", "169.254.1.1", "fe80::1", "224.0.0.1", "0.0.0.0"] {
            assert!(!is_unicast(text.parse().expect("an address")), "{text}");
        }
        assert!(is_unicast("192.0.2.1".parse().expect("an address")));
        assert!(reachable("").iter().all(|address| is_unicast(*address)));
    }
}
