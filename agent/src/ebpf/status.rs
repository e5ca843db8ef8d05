//! What the accounting tells the outside.

use crate::foundation::id::NodeId;
use crate::model::key::PublicKey;

/// The state after the newest pass.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// The hook in use; `None`: nothing is counted (see `errors`, or accounting is off).
    pub hook: Option<Hook>,
    /// Why `hook` is not the best there is.
    pub fallback_reason: Option<String>,
    pub peers: usize,
    pub prefixes: usize,
    pub errors: Vec<String>,
}

/// Where the programs sit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    Tcx,
    Clsact,
}

impl std::fmt::Display for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        })
    }
}

/// Bytes and packets of one direction since the counters were made. A GSO packet counts its segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Bytes of inner IP packets, as they are on the wire after segmentation (headers repeated per segment).
    pub bytes: u64,
    pub packets: u64,
    /// `bytes` by protocol class.
    pub tcp_bytes: u64,
    pub udp_bytes: u64,
    pub icmp_bytes: u64,
    pub other_bytes: u64,
}

impl From<weft_ebpf_common::Counters> for Counters {
    fn from(raw: weft_ebpf_common::Counters) -> Self {
        let [tcp_bytes, udp_bytes, icmp_bytes, other_bytes] = raw.class_bytes;
        let bytes = tcp_bytes + udp_bytes + icmp_bytes + other_bytes;
        Self { bytes, packets: raw.packets, tcp_bytes, udp_bytes, icmp_bytes, other_bytes }
    }
}

impl std::ops::AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.packets += other.packets;
        self.tcp_bytes += other.tcp_bytes;
        self.udp_bytes += other.udp_bytes;
        self.icmp_bytes += other.icmp_bytes;
        self.other_bytes += other.other_bytes;
    }
}

/// Both directions of one peer, as seen from this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCounters {
    pub name: NodeId,
    pub public_key: PublicKey,
    pub rx: Counters,
    pub tx: Counters,
}

/// Everything the maps hold, read at once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Figures {
    pub peers: Vec<PeerCounters>,
    /// Packets whose address belongs to no peer.
    pub unattributed_rx: Counters,
    pub unattributed_tx: Counters,
    /// All peers that are no longer in the model together, so that totals never fall.
    pub retired_rx: Counters,
    pub retired_tx: Counters,
}
