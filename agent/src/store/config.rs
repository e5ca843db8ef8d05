//! The `[store]` table.

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

/// A `[store]` table that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("store.snapshot_entries = {0} is not between 100 and 1000000")]
    SnapshotEntries(u64),
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
