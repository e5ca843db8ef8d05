//! What the `wireguard` reconciler tells the outside.

use std::net::SocketAddr;
use std::time::SystemTime;

use crate::foundation::id::NodeId;
use crate::model::Link;
use crate::model::key::PublicKey;

/// The state after the newest pass.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// The link, once it exists.
    pub link: Option<Link>,
    /// Why the embedded device is used although `backend = "auto"`; `None` on the kernel backend or when it was asked for.
    pub fallback_reason: Option<String>,
    /// The port that is bound now.
    pub listen_port: Option<u16>,
    /// How many peers the device holds.
    pub peers: usize,
    /// Steps the last pass applied; 0 when everything was as wanted.
    pub applied_steps: usize,
    /// What failed in the last pass, each a full sentence that names the object and the fix.
    pub errors: Vec<String>,
}

/// One peer as the device sees it, read on demand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerFigures {
    pub name: NodeId,
    pub public_key: PublicKey,
    pub endpoint: Option<SocketAddr>,
    pub last_handshake: Option<SystemTime>,
    /// Bytes of WireGuard messages: padded payload + 32 each, handshakes and keepalives included.
    pub rx_bytes: u64,
    pub tx_bytes: u64,
}
