//! The `[dns]` table.

use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;

/// `[dns]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub enabled: bool,
    /// Where to answer, UDP and TCP.
    pub listen: Vec<SocketAddr>,
    /// Also answer on port 53 of the node's mesh addresses.
    pub listen_on_mesh: bool,
    /// The mesh domain.
    pub domain: String,
    /// Where everything else is asked; absent: the host's own resolvers, our own addresses left out.
    pub upstream: Option<Vec<Upstream>>,
    pub hook: HookChoice,
    /// Answers kept from the upstreams.
    pub cache_entries: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: true,
            listen: vec![SocketAddr::from(([127, 0, 3, 3], 53))],
            listen_on_mesh: true,
            domain: "weft.internal".to_owned(),
            upstream: None,
            hook: HookChoice::Off,
            cache_entries: 4096,
        }
    }
}

/// An upstream resolver: `192.0.2.53` or `192.0.2.53:5353`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Upstream(pub SocketAddr);

impl TryFrom<String> for Upstream {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let with_port = text.parse::<SocketAddr>().ok().filter(|address| address.port() != 0);
        let bare = || text.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, 53));
        with_port.or_else(bare).map(Self).ok_or_else(|| format!("upstream {text:?} is not ADDRESS or ADDRESS:PORT"))
    }
}

/// Whether the host's own resolver is pointed at us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HookChoice {
    Off,
    /// systemd-resolved if it owns lookups, else `/etc/resolv.conf`.
    Auto,
    Resolved,
    ResolvConf,
}
