//! The replicated SQL database: a Raft log of SQL statements and an SQLite database that carries them out.
//!
//! In: statements over a [`Handle`]; connections of other members. Out: results, rows, changed tables, a status. The tables
//! that Weft itself keeps here are declared by the rooms that own them ([`Schema`]).
//!
//! | task or thread | does |
//! |---|---|
//! | `store` | opens the files, starts the consensus, opens them again after a failure, publishes the status |
//! | `store-schema` | brings the declared tables up to date while this member leads |
//! | `store-reads` | asks once for all linearizable reads that wait, that this member or its leader still leads |
//! | `raft-log`, `store`, `store-read` (threads) | write the log; carry out entries; read |
//!
//! While the leader's disk has too little room ([`Figures::disk_needed_bytes`]) writes are refused with what to do, another member
//! is asked to lead, and reads go on; writes go on when there is room again.
//!
//! Invariants: a write is acknowledged when a majority has it on disk and it is carried out here; an entry is carried out once,
//! in one order, with one result on every member; a read called linearizable sees every write that was acknowledged before it
//! began; nothing reaches a member that a certificate of the mesh does not prove to be one. A node alone is a cluster of one and
//! needs nobody. What fails here never takes tunnels, names or processes down.

mod value;
mod statement;
mod error;
mod entry;
mod raft;
mod disk;
mod log;
mod database;
mod snapshot;
mod state;
mod network;
mod members;
mod schema;
mod changes;
mod status;
mod barrier;
mod handle;
mod core;
pub mod contract;
pub mod config;
mod metrics;
pub mod offline;
#[cfg(test)]
mod tests;

pub use changes::{Changes, Touched};
pub use entry::Encoding;
pub use error::{OpenError, Refusal, StoreError};
pub use handle::{Figures, Handle};
pub use network::transport;
pub use schema::Schema;
pub use statement::{Consistency, Executed, Outcome, Rows, Statement};
pub use status::{Member, Role, Status};
pub use value::{Value, ValueError, time_text};

use std::path::PathBuf;

use crate::foundation::id::NodeId;
use crate::foundation::lifecycle::{Blocker, Stop};
use crate::foundation::metrics::Metrics;

/// Who a store without members begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Formation {
    /// Itself: a cluster of one.
    Alone,
    /// Nobody: it waits until a leader adds it.
    Join,
}

/// What a store is started with.
#[derive(Debug)]
pub struct Inputs {
    pub config: config::Config,
    pub node: NodeId,
    /// Made with mode 0700 if it is missing.
    pub directory: PathBuf,
    pub schemas: Vec<Schema>,
    pub formation: Formation,
    /// Where other members reach this one; `None`: nobody does, and it reaches nobody.
    pub network: Option<transport::Network>,
}

/// Whether a store was made in `directory`, which says nothing about whether it opens.
pub fn exists(directory: &std::path::Path) -> bool {
    core::Files::of(directory).member.exists()
}

/// Starts the store. It opens its files in the background; whether it could is in its status.
pub fn start(inputs: Inputs, metrics: &Metrics, blocker: Blocker, stop: Stop) -> Handle {
    core::start(inputs, metrics, blocker, stop)
}
