//! The `[wireguard]` and `[[peer]]` tables.
//!
//! In: what serde read. Out: [`Settings`] for the reconciler and [`Peer`]s for the model. `validate` looks at values
//! only; [`Config::settings`] and [`PeerConfig::peer`] read key files.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::Deserialize;

use super::key_file::{self, KeyFileError};
use super::settings::Settings;
use crate::foundation::id::{InstanceName, LinkName, NodeId};
use crate::model::key::PublicKey;
use crate::model::peer::{Endpoint, Peer};

/// `[wireguard]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The name of the link.
    pub link: LinkName,
    /// UDP port of the tunnel; 0 lets the kernel choose one.
    pub listen_port: u16,
    pub backend: BackendChoice,
    /// Addresses of this node with the length of their network, where no mesh assigns them.
    pub addresses: Vec<IpNet>,
    /// Default: `private.key` in the state directory, made once.
    pub private_key_file: Option<PathBuf>,
    /// Mark on the tunnel's own packets, for policy routing; 0 is none.
    pub fwmark: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            link: LinkName::try_from("weft0".to_owned()).expect("a valid name"),
            listen_port: 51820,
            backend: BackendChoice::Auto,
            addresses: Vec::new(),
            private_key_file: None,
            fwmark: 0,
        }
    }
}

/// Which WireGuard to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendChoice {
    /// The kernel's where it has one, else the embedded device, which is announced.
    Auto,
    Kernel,
    Userspace,
}

/// One `[[peer]]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerConfig {
    pub name: NodeId,
    pub public_key: PublicKey,
    /// A file with the key in base64, mode 0600.
    pub preshared_key_file: Option<PathBuf>,
    pub endpoint: Option<Endpoint>,
    #[serde(default)]
    pub allowed_ips: Vec<IpNet>,
    /// Seconds, 1 to 65535; absent or 0 is off.
    pub persistent_keepalive: Option<u16>,
}

/// A value that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("wireguard.addresses {address} is the {what}; give the node an address of its own in that network")]
    Address { address: IpNet, what: &'static str },
    #[error("wireguard.addresses names {address} twice; remove one")]
    DuplicateAddress { address: IpNet },
    #[error("peer {name}: public_key is all zeroes, which is no key; put in the output of `wg pubkey` of that peer")]
    ZeroKey { name: NodeId },
    #[error("peer {name}: allowed_ips {prefix} cannot be routed to one peer; multicast has no single receiver")]
    Multicast { name: NodeId, prefix: IpNet },
}

/// Why a peer could not be made from its table.
#[derive(Debug, thiserror::Error)]
#[error("peer {name}: preshared_key_file is of no use")]
pub struct PeerKeyError {
    pub name: NodeId,
    #[source]
    pub source: KeyFileError,
}

impl Config {
    /// Checks what the types could not.
    ///
    /// # Errors
    /// The first value that cannot be, with its key.
    pub fn validate(self) -> Result<Self, ConfigError> {
        for (index, address) in self.addresses.iter().enumerate() {
            if let Some(what) = why_not_a_host(*address) {
                return Err(ConfigError::Address { address: *address, what });
            }
            if self.addresses[..index].iter().any(|earlier| earlier.addr() == address.addr()) {
                return Err(ConfigError::DuplicateAddress { address: *address });
            }
        }
        Ok(self)
    }

    /// The settings of the tunnel device; reads the private key, or makes it on the first start.
    ///
    /// # Errors
    /// A key file that is of no use.
    pub fn settings(&self, instance: &InstanceName, state_dir: &Path) -> Result<Settings, KeyFileError> {
        let private_key = match &self.private_key_file {
            Some(path) => key_file::private_key(path)?,
            None => key_file::private_key_or_new(&state_dir.join("private.key"))?,
        };
        Ok(Settings {
            instance: instance.clone(),
            link: self.link.clone(),
            listen_port: self.listen_port,
            backend: self.backend,
            fwmark: self.fwmark,
            private_key,
        })
    }
}

impl PeerConfig {
    /// Checks what the types could not; prefixes are cut to their network, repeated ones left out.
    ///
    /// # Errors
    /// The first value that cannot be, with the peer's name.
    pub fn validate(mut self) -> Result<Self, ConfigError> {
        if self.public_key.as_bytes() == &[0; 32] {
            return Err(ConfigError::ZeroKey { name: self.name });
        }
        let mut prefixes: Vec<IpNet> = self.allowed_ips.iter().map(IpNet::trunc).collect();
        prefixes.sort_unstable();
        prefixes.dedup();
        if let Some(prefix) = prefixes.iter().find(|prefix| prefix.network().is_multicast()) {
            return Err(ConfigError::Multicast { name: self.name, prefix: *prefix });
        }
        self.allowed_ips = prefixes;
        self.persistent_keepalive = self.persistent_keepalive.filter(|seconds| *seconds != 0);
        Ok(self)
    }

    /// The peer as the model holds it; reads its preshared key. The table must be valid.
    ///
    /// # Errors
    /// A key file that is of no use.
    pub fn peer(self) -> Result<Peer, PeerKeyError> {
        let preshared_key = match &self.preshared_key_file {
            Some(path) => {
                let key = key_file::preshared_key(path);
                Some(key.map_err(|source| PeerKeyError { name: self.name.clone(), source })?)
            }
            None => None,
        };
        Ok(Peer {
            name: self.name,
            public_key: self.public_key,
            preshared_key,
            endpoint: self.endpoint,
            allowed_ips: self.allowed_ips,
            persistent_keepalive: self.persistent_keepalive,
        })
    }
}

fn why_not_a_host(address: IpNet) -> Option<&'static str> {
    let host = address.addr();
    let has_network_address = address.prefix_len() + 1 < address.max_prefix_len();
    if host.is_unspecified() {
        Some("unspecified address")
    } else if host.is_multicast() {
        Some("address of a multicast group")
    } else if host.is_loopback() {
        Some("loopback address")
    } else if has_network_address && host == address.network() {
        // For IPv6 it is the subnet-router anycast address (RFC 4291 section 2.6.1).
        Some("address of the network itself")
    } else if has_network_address && matches!(host, IpAddr::V4(_)) && host == address.broadcast() {
        Some("broadcast address")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Result<Config, ConfigError> {
        let addresses = texts.iter().map(|text| text.parse().expect("an address")).collect();
        Config { addresses, ..Config::default() }.validate()
    }

    fn peer(allowed_ips: &str) -> Result<PeerConfig, ConfigError> {
        let key = PublicKey::from_bytes([1; 32]);
        let table = format!("name = \"beta\"\npublic_key = \"{key}\"\nallowed_ips = {allowed_ips}");
        toml::from_str::<PeerConfig>(&table).expect("a peer").validate()
    }

    #[test]
    fn node_addresses_must_be_hosts() {
        assert!(addresses(&["10.80.0.1/24", "fd80::1/64", "10.81.0.0/31", "10.82.0.0/32"]).is_ok());
        for bad in ["10.80.0.0/24", "10.80.0.255/24", "0.0.0.0/0", "224.0.0.1/24", "127.0.0.1/8", "fd80::/64"] {
            let text = addresses(&[bad]).expect_err("refused").to_string();
            assert!(text.contains("wireguard.addresses") && text.contains(bad), "{text}");
        }
    }

    #[test]
    fn an_address_given_twice_is_refused() {
        assert!(addresses(&["10.80.0.1/24", "10.80.0.1/16"]).is_err());
    }

    #[test]
    fn prefixes_are_cut_to_their_network_and_said_once() {
        let peer = peer("[\"10.0.0.7/24\", \"10.0.0.0/24\", \"fd00::1/128\"]").expect("valid");
        let texts: Vec<String> = peer.allowed_ips.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["10.0.0.0/24", "fd00::1/128"]);
    }

    #[test]
    fn multicast_and_a_zero_key_are_refused_with_the_peer() {
        assert!(peer("[\"224.0.0.0/4\"]").expect_err("refused").to_string().contains("peer beta"));
        let zero = format!("name = \"beta\"\npublic_key = \"{}\"", PublicKey::from_bytes([0; 32]));
        let zero: PeerConfig = toml::from_str(&zero).expect("a peer");
        assert!(matches!(zero.validate(), Err(ConfigError::ZeroKey { .. })));
    }

    #[test]
    fn a_bad_preshared_key_file_names_the_peer() {
        let mut peer = peer("[]").expect("valid");
        peer.preshared_key_file = Some("/nonexistent/psk".into());
        assert!(peer.peer().expect_err("missing").to_string().contains("peer beta"));
    }
}
