//! The `[gateway]` table.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use serde::Deserialize;

pub use super::hosts::config::{HostConfig, HostError, RouteConfig};
use crate::ebpf::callers::config as callers;

/// `[gateway]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Serve the pm3 API over TCP at all.
    pub enabled: bool,
    pub listen: Vec<SocketAddr>,
    /// The same by TLS, with the certificate of this node; empty: no TLS, on the mesh neither.
    pub tls_listen: Vec<SocketAddr>,
    /// Also ports 80 and 443 of every address of this node in the mesh.
    pub listen_on_mesh: bool,
    /// Proxies whose `X-Forwarded-For` is believed: the client is the right-most address that is none of these. Limits and
    /// counts are by that address, and servers are told it; a request through a proxy is external all the same.
    pub trusted_proxies: Vec<IpNet>,
    /// Connections at a time; further ones wait in the kernel's queue.
    pub max_connections: usize,
    /// Calls a second of one client address; absent: no limit.
    pub calls_per_second: Option<u32>,
    /// Who on this host is internal.
    pub caller: callers::Config,
    /// A table of address ranges in the iptoasn format, for `/ipinfo`.
    pub ip_table: Option<PathBuf>,
    /// Virtual hosts by their names.
    pub host: BTreeMap<String, HostConfig>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: true,
            listen: vec![SocketAddr::from(([127, 0, 3, 3], 80))],
            tls_listen: vec![SocketAddr::from(([127, 0, 3, 3], 443))],
            listen_on_mesh: true,
            trusted_proxies: Vec::new(),
            max_connections: 20_000,
            calls_per_second: None,
            caller: callers::Config::default(),
            ip_table: None,
            host: BTreeMap::new(),
        }
    }
}

/// Why the table is of no use.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("gateway.listen and gateway.tls_listen: {0} stands twice; remove one")]
    Twice(SocketAddr),
    #[error("gateway.max_connections 0 would answer nobody; set 1 or more, or gateway.enabled = false")]
    NoConnections,
    #[error("gateway.calls_per_second 0 would answer nobody; remove it for no limit")]
    NoCalls,
    #[error("gateway.trusted_proxies {0} trusts every address; name the proxies")]
    EveryProxy(IpNet),
    #[error(transparent)]
    Caller(#[from] callers::ConfigError),
    #[error(transparent)]
    Host(#[from] HostError),
}

impl Config {
    /// Checks the table.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let all: Vec<&SocketAddr> = self.listen.iter().chain(&self.tls_listen).collect();
        for (at, address) in all.iter().enumerate() {
            if all[..at].contains(address) && address.port() != 0 {
                return Err(ConfigError::Twice(**address));
            }
        }
        if self.max_connections == 0 {
            return Err(ConfigError::NoConnections);
        }
        if self.calls_per_second == Some(0) {
            return Err(ConfigError::NoCalls);
        }
        for (name, host) in &self.host {
            host.validate(name)?;
        }
        match self.trusted_proxies.iter().find(|network| network.prefix_len() == 0) {
            Some(network) => Err(ConfigError::EveryProxy(*network)),
            None => Ok(()),
        }
    }

    pub(super) fn trusts(&self, address: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|network| network.contains(&address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_answer_nobody_or_trust_everybody_is_refused() {
        let check = |change: fn(&mut Config), named: &str| {
            let mut config = Config::default();
            change(&mut config);
            assert!(config.validate().expect_err(named).to_string().contains(named));
        };
        check(|config| config.max_connections = 0, "gateway.max_connections");
        check(|config| config.calls_per_second = Some(0), "gateway.calls_per_second");
        check(
            |config| config.trusted_proxies = vec!["0.0.0.0/0".parse().expect("a network")],
            "gateway.trusted_proxies",
        );
        check(|config| config.listen.push(config.listen[0]), "gateway.listen");
        check(|config| config.tls_listen.push(config.listen[0]), "gateway.tls_listen");
        assert!(Config::default().validate().is_ok());
    }
}
