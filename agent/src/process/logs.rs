//! What processes write: kept whatever happens to the agent.
//!
//! A process writes into a FIFO that it holds open for reading and writing itself, so that no end of anybody else ever gives
//! it SIGPIPE, and what was not read yet waits in the kernel. A program of its own, the log keeper, reads all FIFOs and writes
//! the files. It lives in its own cgroup and outlives the agent; the next agent finds it by its socket.
//!
//! | module | what it owns |
//! |---|---|
//! | [`format`] | lines with their times (pure) |
//! | [`protocol`] | what an agent tells the keeper |
//! | [`rotate`] | one log file, its rotation and compression |
//! | [`keeper`] | the program that reads and writes |
//! | [`client`] | the agent's end |
//! | [`read`] | lines of the past and those that come |

pub mod format;
pub mod protocol;
pub mod rotate;
pub mod keeper;
pub mod client;
pub mod read;

use std::sync::Arc;
use std::time::SystemTime;

/// Which output of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    /// Its name in every interface.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// One line of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    pub time: SystemTime,
    pub stream: Stream,
    /// The name of the instance.
    pub name: Arc<str>,
    pub text: String,
}

/// Which lines a reader wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogQuery {
    /// The newest so many, of all instances together.
    pub lines: usize,
    /// `None`: both.
    pub stream: Option<Stream>,
    pub since: Option<SystemTime>,
}
