//! The `[accounting]` table.

use std::path::PathBuf;

use serde::Deserialize;

/// `[accounting]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Count bytes and packets per peer in eBPF.
    pub enabled: bool,
    pub attach: AttachChoice,
    /// Another object than the one inside the binary.
    pub object: Option<PathBuf>,
    /// How many peers can ever be counted apart, 1 to 1,000,000, removed ones included. Each takes 80 bytes of kernel
    /// memory per CPU. Taken when the maps are made; `weft down` lets them be made anew.
    pub max_peers: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self { enabled: true, attach: AttachChoice::Auto, object: None, max_peers: 16_384 }
    }
}

/// Why `[accounting]` is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("accounting.max_peers = {0} is not from 1 to 1000000")]
    MaxPeers(u32),
}

impl Config {
    /// Checks what the types do not.
    ///
    /// # Errors
    /// The first value that is out of range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if !(1..=1_000_000).contains(&self.max_peers) {
            return Err(ConfigError::MaxPeers(self.max_peers));
        }
        Ok(())
    }
}

/// Which hook the programs attach to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachChoice {
    /// tcx where the kernel has it (6.6), else clsact.
    Auto,
    Tcx,
    Clsact,
}
