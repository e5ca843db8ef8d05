//! What the DNS server tells the outside.

use std::net::SocketAddr;

/// The state now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// Sockets that answer.
    pub listening: Vec<SocketAddr>,
    /// Names in the zone.
    pub names: usize,
    /// Upstreams in use.
    pub upstreams: Vec<SocketAddr>,
    /// How the host's resolver points at us; `None`: it does not.
    pub hook: Option<String>,
    pub errors: Vec<String>,
}
