//! The `[mesh]` table.

use std::net::IpAddr;

use ipnet::Ipv4Net;
use serde::Deserialize;

use crate::model::mesh::Seat;

/// `[mesh]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the IPv4 addresses come from, in a mesh that this node founds.
    pub ipv4_range: Ipv4Net,
    /// Where others reach this node; absent: the address they see, if it is one of this host.
    pub endpoint: Option<IpAddr>,
    /// `auto`: holds the log of the mesh and votes where a vote is free; `voter`: votes; `edge`: is told what changes.
    pub role: Seat,
    /// Up to how many `auto` nodes a leader gives a vote; an odd number, 1 to 7.
    pub voters: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            ipv4_range: Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 80, 0, 0), 16),
            endpoint: None,
            role: Seat::Auto,
            voters: 3,
        }
    }
}

/// A `[mesh]` value that is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("mesh.ipv4_range {given} has host bits set; write {network}")]
    HostBits { given: Ipv4Net, network: Ipv4Net },
    #[error("mesh.ipv4_range {0} holds fewer than two nodes; use a shorter prefix, at most /30")]
    TooSmall(Ipv4Net),
    #[error("mesh.voters = {0} is not 1, 3, 5 or 7: an even number of votes survives no more failures than one less")]
    Voters(usize),
    #[error("mesh.endpoint {0} is no address that another host could reach")]
    Endpoint(IpAddr),
}

impl Config {
    /// Checks the table.
    ///
    /// # Errors
    /// The first value that is refused, by its key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let (given, network) = (self.ipv4_range, self.ipv4_range.trunc());
        if given != network {
            return Err(ConfigError::HostBits { given, network });
        }
        if given.prefix_len() > 30 {
            return Err(ConfigError::TooSmall(given));
        }
        if !matches!(self.voters, 1 | 3 | 5 | 7) {
            return Err(ConfigError::Voters(self.voters));
        }
        match self.endpoint {
            Some(address) if address.is_unspecified() || address.is_loopback() || address.is_multicast() => {
                Err(ConfigError::Endpoint(address))
            }
            Some(_) | None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_values_are_named_with_the_fix() {
        let text = |config: Config| config.validate().expect_err("refused").to_string();
        let range = |text: &str| Config { ipv4_range: text.parse().expect("a network"), ..Config::default() };
        assert_eq!(text(range("10.1.2.3/16")), "mesh.ipv4_range 10.1.2.3/16 has host bits set; write 10.1.0.0/16");
        assert!(text(range("10.1.2.4/31")).contains("at most /30"));
        let endpoint = Config { endpoint: Some("127.0.0.1".parse().expect("an address")), ..Config::default() };
        assert!(text(endpoint).contains("mesh.endpoint 127.0.0.1"));
        assert!(text(Config { voters: 2, ..Config::default() }).contains("mesh.voters = 2"));
    }
}
