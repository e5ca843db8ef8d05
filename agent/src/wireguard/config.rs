//! The `[wireguard]` and `[[peer]]` tables.

use std::path::PathBuf;

use ipnet::IpNet;
use serde::Deserialize;

use crate::foundation::id::{LinkName, NodeId};
use crate::model::key::PublicKey;
use crate::model::peer::Endpoint;

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
