//! Addresses, MTU, state and routes of the tunnel link, and our nftables table.

pub mod config;
pub mod status;
