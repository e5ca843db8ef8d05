//! The 10 bytes in front of each packet on a TUN opened with `IFF_VNET_HDR`: `struct virtio_net_hdr`.
//!
//! They say which checksum is still to be computed and whether the packet stands for many (segmentation offload).
//! Fields are in the machine's byte order, which is what the kernel uses unless told otherwise.

/// Length of the header.
pub(crate) const LEN: usize = 10;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// Set beside a TCP type when a segment carries CWR.
const GSO_ECN: u8 = 0x80;

/// A decoded header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct VnetHeader {
    /// Where the checksum that is still to be computed starts, and the offset of its field from there.
    pub(crate) checksum: Option<PartialChecksum>,
    pub(crate) gso: Gso,
    /// Bytes in front of the payload; written for the kernel, never trusted when read.
    pub(crate) header_len: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PartialChecksum {
    pub(crate) start: u16,
    pub(crate) offset: u16,
}

/// What kind of super-packet follows; the size is that of each segment's payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Gso {
    #[default]
    None,
    TcpV4(u16),
    TcpV6(u16),
    Udp(u16),
}

impl VnetHeader {
    /// `None` for a type this device never asked for.
    pub(crate) fn decode(bytes: &[u8; LEN]) -> Option<Self> {
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let size = word(4);
        let gso = match bytes[1] & !GSO_ECN {
            GSO_NONE => Gso::None,
            GSO_TCPV4 => Gso::TcpV4(size),
            GSO_TCPV6 => Gso::TcpV6(size),
            GSO_UDP_L4 => Gso::Udp(size),
            _ => return None,
        };
        let partial = PartialChecksum { start: word(6), offset: word(8) };
        let checksum = (bytes[0] & NEEDS_CSUM != 0).then_some(partial);
        Some(Self { checksum, gso, header_len: word(2) })
    }

    pub(crate) fn encode(self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        let (kind, size) = match self.gso {
            Gso::None => (GSO_NONE, 0),
            Gso::TcpV4(size) => (GSO_TCPV4, size),
            Gso::TcpV6(size) => (GSO_TCPV6, size),
            Gso::Udp(size) => (GSO_UDP_L4, size),
        };
        bytes[1] = kind;
        bytes[2..4].copy_from_slice(&self.header_len.to_ne_bytes());
        bytes[4..6].copy_from_slice(&size.to_ne_bytes());
        if let Some(partial) = self.checksum {
            bytes[0] = NEEDS_CSUM;
            bytes[6..8].copy_from_slice(&partial.start.to_ne_bytes());
            bytes[8..10].copy_from_slice(&partial.offset.to_ne_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoded_header_decodes_to_itself() {
        for gso in [Gso::None, Gso::TcpV4(1360), Gso::TcpV6(1), Gso::Udp(65_000)] {
            let header = VnetHeader { checksum: Some(PartialChecksum { start: 20, offset: 16 }), gso, header_len: 52 };
            assert_eq!(VnetHeader::decode(&header.encode()), Some(header));
        }
    }

    #[test]
    fn unknown_segmentation_is_refused() {
        assert_eq!(VnetHeader::decode(&[0, 3, 0, 0, 0, 0, 0, 0, 0, 0]), None);
    }

    #[test]
    fn ecn_mark_does_not_hide_the_type() {
        let mut bytes = VnetHeader { gso: Gso::TcpV4(1000), ..VnetHeader::default() }.encode();
        bytes[1] |= GSO_ECN;
        assert_eq!(VnetHeader::decode(&bytes).unwrap().gso, Gso::TcpV4(1000));
    }
}
