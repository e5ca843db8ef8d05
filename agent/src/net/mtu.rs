//! From the MTU of the way to the peers to the MTU of the tunnel.

/// What WireGuard adds to a packet: outer IP header (20 or 40 bytes), UDP (8), message header (16) and tag (16).
const OVERHEAD_V4: u32 = 60;
const OVERHEAD_V6: u32 = 80;

/// The least an IPv6 link may have (RFC 8200 section 5); below it the kernel takes IPv6 off the link.
pub const LEAST: u32 = 1280;

/// What a link gets that has never been up and of which no way to a peer is known: Ethernet less the IPv6 overhead.
pub const UNKNOWN_WAY: u32 = 1420;

/// What one way to a peer carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    pub ipv6: bool,
    /// The least of the links' MTUs and the MTU set on the route.
    pub mtu: u32,
}

/// The largest tunnel MTU whose packets fit every way; `None` if no way is known.
pub fn tunnel_mtu(ways: impl IntoIterator<Item = Way>) -> Option<u32> {
    let fits = ways.into_iter().map(|way| way.mtu.saturating_sub(if way.ipv6 { OVERHEAD_V6 } else { OVERHEAD_V4 }));
    fits.min().map(|mtu| mtu.max(LEAST))
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: Way = Way { ipv6: false, mtu: 1500 };
    const V6: Way = Way { ipv6: true, mtu: 1500 };

    #[test]
    fn the_overhead_is_60_over_ipv4_and_80_over_ipv6() {
        assert_eq!(tunnel_mtu([V4]), Some(1440));
        assert_eq!(tunnel_mtu([V6]), Some(1420));
    }

    #[test]
    fn the_narrowest_way_decides() {
        assert_eq!(tunnel_mtu([V4, V6, Way { ipv6: false, mtu: 9000 }]), Some(1420));
        assert_eq!(tunnel_mtu([V6, Way { ipv6: false, mtu: 1400 }]), Some(1340));
    }

    #[test]
    fn it_never_falls_below_what_ipv6_needs() {
        assert_eq!(tunnel_mtu([Way { ipv6: true, mtu: 1280 }]), Some(1280));
        assert_eq!(tunnel_mtu([Way { ipv6: true, mtu: 0 }]), Some(1280));
    }

    #[test]
    fn without_a_way_nothing_is_known() {
        assert_eq!(tunnel_mtu([]), None);
    }
}
