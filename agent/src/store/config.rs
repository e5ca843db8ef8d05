//! The `[store]` and `[raft]` tables.

use std::net::{Ipv6Addr, SocketAddr};

use serde::Deserialize;

use super::entry::Encoding;

/// `[store]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How entries are written to the log: `protobuf`, `protobuf+snappy` or `json`. Every member reads all.
    pub log_format: Encoding,
    /// Entries after which the log is folded into a snapshot.
    pub snapshot_entries: u64,
    /// A leader's sign of life, in milliseconds. Members elect another after 5 to 10 of them have not come.
    pub heartbeat_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { log_format: Encoding::default(), snapshot_entries: 20_000, heartbeat_ms: 100 }
    }
}

/// `[raft]`: how the store's members reach each other, by mutual TLS.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RaftConfig {
    /// False: this node is alone with its store.
    pub enabled: bool,
    pub listen: SocketAddr,
    /// Where other members reach this one, `HOST:PORT`; absent: the address that packets to other hosts leave from.
    pub advertise: Option<String>,
}

impl Default for RaftConfig {
    fn default() -> Self {
        Self { enabled: true, listen: SocketAddr::from((Ipv6Addr::UNSPECIFIED, 9443)), advertise: None }
    }
}

impl RaftConfig {
    /// Checks the values.
    ///
    /// # Errors
    /// [`ConfigError::Advertise`].
    pub fn validate(&self) -> Result<(), ConfigError> {
        let is_address = |text: &String| {
            text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        };
        match self.advertise.as_ref().filter(|text| !is_address(text)) {
            Some(text) => Err(ConfigError::Advertise(text.clone())),
            None => Ok(()),
        }
    }
}

/// A `[store]` or `[raft]` table that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("store.snapshot_entries = {0} is not between 100 and 1000000")]
    SnapshotEntries(u64),
    #[error("raft.advertise = {0:?} is not HOST:PORT")]
    Advertise(String),
    #[error("store.heartbeat_ms = {0} is not between 10 and 5000")]
    Heartbeat(u64),
}

impl Config {
    /// Checks the values against each other and the bounds.
    ///
    /// # Errors
    /// The first value that is out of its bounds.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if !(100..=1_000_000).contains(&self.snapshot_entries) {
            return Err(ConfigError::SnapshotEntries(self.snapshot_entries));
        }
        if !(10..=5000).contains(&self.heartbeat_ms) {
            return Err(ConfigError::Heartbeat(self.heartbeat_ms));
        }
        Ok(())
    }
}
