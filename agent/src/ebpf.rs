//! The BPF programs of the agent: loading, pins, and the accounting of bytes per peer.

pub mod config;
pub mod status;
