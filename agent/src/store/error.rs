//! Why the store refused or failed, as callers tell it apart.

use serde::{Deserialize, Serialize};

/// Why a statement was not carried out although the log has it: the same on every member. Nothing of it was applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// SQL that cannot be carried out, or may not.
    #[error("{0}")]
    Statement(String),
    /// A constraint of the tables; SQLite's words.
    #[error("{0}")]
    Constraint(String),
    #[error("statement {number} affected {found} rows where {expected} were expected; the transaction was undone")]
    Expectation { number: usize, expected: u64, found: u64 },
    /// It would affect Weft's own tables.
    #[error("{0}")]
    OwnTable(String),
}

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("{0}")]
    Invalid(String),
    #[error("the statement takes {bytes} bytes; {limit} is the limit")]
    TooLarge { bytes: usize, limit: usize },
    #[error("the result is larger than {limit_bytes} bytes; ask for less, for instance with LIMIT")]
    ResultTooLarge { limit_bytes: usize },
    /// Nothing was proposed, or it is unknown whether it was; `after` says which.
    #[error("no leader: {0}")]
    NoLeader(String),
    #[error("the store does not run: {0}")]
    NotRunning(String),
    /// It may still be carried out.
    #[error("not done within {seconds} s; it may still be carried out: read before you try again")]
    Timeout { seconds: u64 },
    /// The leader changed while it was under way.
    #[error("the leader changed while this was under way; it may have been carried out: read before you try again")]
    Unknown,
    #[error("too much is under way; try again")]
    Busy,
    /// Nothing was proposed: the leader's disk has too little room.
    #[error("{0}")]
    DiskFull(String),
    #[error("{0}")]
    Membership(String),
    #[error("{0}")]
    Failed(String),
}

/// What went wrong when the store was opened or closed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{} is in use by another agent", .0.display())]
    InUse(std::path::PathBuf),
    #[error("failed to {action} {}", path.display())]
    File {
        action: &'static str,
        path: std::path::PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} is damaged at byte {at}: {what}; move the store directory away and let this node join again, or restore a backup", path.display())]
    Damaged { path: std::path::PathBuf, at: u64, what: &'static str },
    #[error("failed to open the database {}", path.display())]
    Database {
        path: std::path::PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    #[error("the log begins after entry {purged}, but the database {} has only {applied} and no snapshot fills the gap", path.display())]
    Gap { path: std::path::PathBuf, purged: u64, applied: u64 },
    #[error("failed to listen for other members on {address}")]
    Listen {
        address: std::net::SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("failed to start the consensus: {0}")]
    Raft(String),
}
