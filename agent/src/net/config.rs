//! The `[network]` and `[firewall]` tables.

use ipnet::IpNet;
use serde::Deserialize;

/// `[network]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Absent: from the underlay route (its MTU less 60 for IPv4 or 80 for IPv6 endpoints).
    pub mtu: Option<u16>,
    /// Routes for the allowed IPs of the peers.
    pub routes: bool,
    /// Routing table of those routes; 254 is `main`.
    pub table: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self { mtu: None, routes: true, table: 254 }
    }
}

/// `[firewall]`: everything in one nftables table of ours, `inet weft_<instance>`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FirewallConfig {
    /// Accept UDP to the tunnel's port.
    pub open_port: bool,
    /// Accept packets that are forwarded from and to the tunnel; also needs `net.ipv4.ip_forward`.
    pub forward: bool,
    /// Source networks whose packets leave other links with the address of those.
    pub masquerade: Vec<IpNet>,
}
