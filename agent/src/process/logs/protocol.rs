//! What an agent tells the log keeper: JSON objects, one a line, over the keeper's socket.
//!
//! The two may be of different versions: a keeper outlives agents. What it does not understand it says, and the agent replaces
//! it; FIFOs keep what is written meanwhile.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The newest form of these messages.
pub const VERSION: u32 = 1;

/// What an agent says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Answered by [`Reply::Hello`].
    Hello,
    /// Read this FIFO from now on; known by `fifo`, other fields may change.
    Open(Target),
    /// Read what is left in it, then no more.
    Close { fifo: PathBuf },
    /// Write everything that was written into the FIFOs until now; answered by [`Reply::Synced`].
    Sync { id: u64 },
    /// Write everything and end.
    Quit,
}

/// Where a FIFO goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    pub fifo: PathBuf,
    pub file: PathBuf,
    /// A file that would grow beyond this is rotated.
    pub max_bytes: u64,
    /// A file whose first line is older than this is rotated.
    pub max_age_s: u64,
    /// Rotated files that stay.
    pub keep: u32,
    /// Rotated files are compressed.
    pub compress: bool,
}

/// What the keeper says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    Hello {
        version: u32,
        pid: u32,
    },
    Synced {
        id: u64,
    },
    /// A command was not understood or could not be carried out.
    Failed {
        why: String,
    },
}
