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
}

impl Default for Config {
    fn default() -> Self {
        Self { enabled: true, attach: AttachChoice::Auto, object: None }
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
