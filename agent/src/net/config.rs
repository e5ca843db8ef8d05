//! The `[network]` and `[firewall]` tables.

use ipnet::IpNet;
use serde::Deserialize;

use super::mtu;
use crate::foundation::id::{InstanceName, LinkName};

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

/// A `[network]` or `[firewall]` value that is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("network.mtu = {0} is too small: IPv6 needs 1280; leave the key out to take it from the way to the peers")]
    MtuTooSmall(u16),
    #[error("network.table = {0} is reserved by the kernel; use 254 (main) or a table of your own, such as 51820")]
    TableReserved(u32),
    #[error("firewall.masquerade {given} has host bits set; write {network}")]
    HostBits { given: IpNet, network: IpNet },
    #[error("firewall.masquerade names {0} twice; remove one")]
    Duplicate(IpNet),
}

/// How the link is configured, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub mtu: Option<u16>,
    pub routes: bool,
    pub table: u32,
    /// The mark on the tunnel's own packets (`wireguard.fwmark`): policy routing may give them another way.
    pub fwmark: u32,
}

impl Config {
    /// Checks the table. `fwmark` is `wireguard.fwmark`.
    ///
    /// # Errors
    /// The first value that is refused, by its key.
    pub fn validate(self, fwmark: u32) -> Result<Settings, ConfigError> {
        let Self { mtu, routes, table } = self;
        if let Some(mtu) = mtu.filter(|mtu| u32::from(*mtu) < mtu::LEAST) {
            return Err(ConfigError::MtuTooSmall(mtu));
        }
        // 0 means any table, 253 is `default`, which holds the last resort of others, 255 is `local`.
        if matches!(table, 0 | 253 | 255) {
            return Err(ConfigError::TableReserved(table));
        }
        Ok(Settings { mtu, routes, table, fwmark })
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

/// What the firewall is made of, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirewallSettings {
    pub instance: InstanceName,
    pub link: LinkName,
    /// The tunnel's UDP port; 0 where it is not known yet.
    pub listen_port: u16,
    pub asked: FirewallConfig,
}

impl FirewallConfig {
    /// Checks the table.
    ///
    /// # Errors
    /// The first value that is refused, by its key.
    pub fn validate(
        self,
        instance: InstanceName,
        link: LinkName,
        listen_port: u16,
    ) -> Result<FirewallSettings, ConfigError> {
        let mut seen = std::collections::BTreeSet::new();
        for given in &self.masquerade {
            let network = given.trunc();
            if *given != network {
                return Err(ConfigError::HostBits { given: *given, network });
            }
            if !seen.insert(network) {
                return Err(ConfigError::Duplicate(network));
            }
        }
        Ok(FirewallSettings { instance, link, listen_port, asked: self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(config: Config) -> String {
        config.validate(0).expect_err("refused").to_string()
    }

    #[test]
    fn the_defaults_are_accepted() {
        assert_eq!(Config::default().validate(0).map(|settings| settings.table), Ok(254));
    }

    #[test]
    fn wrong_values_are_refused_by_key_and_value() {
        assert!(refusal(Config { mtu: Some(1279), ..Config::default() }).contains("network.mtu = 1279"));
        assert!(refusal(Config { table: 255, ..Config::default() }).contains("network.table = 255"));
    }

    #[test]
    fn masquerade_takes_networks_once() {
        let check = |networks: &[&str]| {
            let masquerade = networks.iter().map(|text| text.parse().expect("a network")).collect();
            let config = FirewallConfig { masquerade, ..FirewallConfig::default() };
            let (instance, link) = ("default".parse().expect("a label"), "weft0".parse().expect("a name"));
            config.validate(instance, link, 51820).map_err(|error| error.to_string())
        };
        assert!(check(&["10.80.0.0/24", "fd80::/64"]).is_ok());
        assert!(check(&["10.80.0.1/24"]).expect_err("refused").contains("write 10.80.0.0/24"));
        assert!(check(&["10.0.0.0/8", "10.0.0.0/8"]).expect_err("refused").contains("twice"));
    }
}
