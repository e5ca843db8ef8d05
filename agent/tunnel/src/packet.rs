//! What the device must know of an inner packet: its length, where it goes, and the headers that segmentation touches.
//!
//! Pure. Every length is checked against the bytes that are there; a packet that does not hold what it claims is `None`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::checksum;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const UDP_HEADER: usize = 8;

/// Offsets of the checksum field in its header.
pub(crate) const TCP_CHECKSUM: usize = 16;
pub(crate) const UDP_CHECKSUM: usize = 6;

const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;

/// The IP header of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ip {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// Length of the IPv4 header with its options, or 40.
    pub(crate) header_len: usize,
    /// Length of the packet by its own account, at most the bytes that are there.
    pub(crate) total_len: usize,
    /// What follows the header; for a fragment this is not to be looked into.
    pub(crate) protocol: u8,
    pub(crate) is_fragment: bool,
}

impl Ip {
    pub(crate) fn parse(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => Self::parse_v4(packet),
            6 => Self::parse_v6(packet),
            _ => None,
        }
    }

    fn parse_v4(packet: &[u8]) -> Option<Self> {
        let header: &[u8; V4_HEADER] = packet.first_chunk()?;
        let header_len = usize::from(header[0] & 0x0f) * 4;
        let total_len = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if header_len < V4_HEADER || total_len < header_len || total_len > packet.len() {
            return None;
        }
        let fragment_bits = u16::from_be_bytes([header[6], header[7]]) & 0x3fff;
        Some(Self {
            source: IpAddr::V4(Ipv4Addr::new(header[12], header[13], header[14], header[15])),
            destination: IpAddr::V4(Ipv4Addr::new(header[16], header[17], header[18], header[19])),
            header_len,
            total_len,
            protocol: header[9],
            is_fragment: fragment_bits != 0,
        })
    }

    fn parse_v6(packet: &[u8]) -> Option<Self> {
        let header: &[u8; V6_HEADER] = packet.first_chunk()?;
        let total_len = V6_HEADER + usize::from(u16::from_be_bytes([header[4], header[5]]));
        if total_len > packet.len() {
            return None;
        }
        let source: [u8; 16] = *header[8..].first_chunk()?;
        let destination: [u8; 16] = *header[24..].first_chunk()?;
        Some(Self {
            source: IpAddr::V6(Ipv6Addr::from(source)),
            destination: IpAddr::V6(Ipv6Addr::from(destination)),
            header_len: V6_HEADER,
            total_len,
            protocol: header[6],
            is_fragment: false,
        })
    }

    pub(crate) fn is_v4(&self) -> bool {
        self.destination.is_ipv4()
    }

    /// The sum of the pseudo-header for a transport header and payload of `length` bytes.
    pub(crate) fn pseudo_sum(&self, length: usize) -> u64 {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                checksum::pseudo_v4(source, destination, self.protocol, length)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                checksum::pseudo_v6(source, destination, self.protocol, length)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
                unreachable!("both addresses come from one header")
            }
        }
    }
}

/// Writes the total length into the IP header; `packet` is the packet from its IP header on.
pub(crate) fn set_ip_len(packet: &mut [u8], ip: &Ip, total_len: usize) {
    if ip.is_v4() {
        let length = u16::try_from(total_len).expect("callers keep packets below 64 KiB");
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        update_ip_checksum(packet, ip);
    } else {
        let length = u16::try_from(total_len - V6_HEADER).expect("callers keep packets below 64 KiB");
        packet[4..6].copy_from_slice(&length.to_be_bytes());
    }
}

/// Computes the IPv4 header checksum anew.
pub(crate) fn update_ip_checksum(packet: &mut [u8], ip: &Ip) {
    packet[10..12].fill(0);
    let sum = checksum::finish(checksum::add(0, &packet[..ip.header_len]));
    packet[10..12].copy_from_slice(&sum);
}

pub(crate) fn ipv4_id(packet: &[u8]) -> u16 {
    u16::from_be_bytes([packet[4], packet[5]])
}

/// The length of the TCP header that starts at `ip.header_len`, if all of it is there.
pub(crate) fn tcp_header_len(packet: &[u8], ip: &Ip) -> Option<usize> {
    let length = usize::from(packet.get(ip.header_len + 12)? >> 4) * 4;
    (length >= 20 && ip.header_len + length <= ip.total_len).then_some(length)
}

#[cfg(test)]
pub(crate) mod build {
    //! Packets for tests.

    use super::*;

    /// A TCP or UDP packet with right checksums.
    pub(crate) fn packet(v6: bool, protocol: u8, transport: &[u8]) -> Vec<u8> {
        let mut packet = if v6 {
            let mut header = vec![0u8; V6_HEADER];
            header[0] = 0x60;
            header[6] = protocol;
            header[7] = 64;
            header[8] = 0xfd;
            header[23] = 1;
            header[24] = 0xfd;
            header[39] = 2;
            header
        } else {
            let mut header = vec![0u8; V4_HEADER];
            header[0] = 0x45;
            header[6] = 0x40;
            header[8] = 64;
            header[9] = protocol;
            header[12..16].copy_from_slice(&[10, 0, 0, 1]);
            header[16..20].copy_from_slice(&[10, 0, 0, 2]);
            header
        };
        packet.extend_from_slice(transport);
        let length = packet.len();
        if v6 {
            let payload = u16::try_from(length - V6_HEADER).unwrap();
            packet[4..6].copy_from_slice(&payload.to_be_bytes());
        } else {
            packet[2..4].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
        }
        let ip = Ip::parse(&packet).unwrap();
        if !v6 {
            update_ip_checksum(&mut packet, &ip);
        }
        let field = ip.header_len + if protocol == TCP { TCP_CHECKSUM } else { UDP_CHECKSUM };
        packet[field..field + 2].fill(0);
        let sum = checksum::add(ip.pseudo_sum(transport.len()), &packet[ip.header_len..]);
        packet[field..field + 2].copy_from_slice(&checksum::finish(sum));
        packet
    }

    /// A TCP segment; `flags` as on the wire (0x10 is ACK, 0x18 PSH and ACK).
    pub(crate) fn tcp(v6: bool, port: u16, sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut header = vec![0u8; 32];
        header[..2].copy_from_slice(&port.to_be_bytes());
        header[2..4].copy_from_slice(&443u16.to_be_bytes());
        header[4..8].copy_from_slice(&sequence.to_be_bytes());
        header[12] = 8 << 4;
        header[13] = flags;
        header[20..32].copy_from_slice(&[1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 7]);
        header.extend_from_slice(payload);
        packet(v6, TCP, &header)
    }

    pub(crate) fn udp(v6: bool, port: u16, payload: &[u8]) -> Vec<u8> {
        let mut header = vec![0u8; UDP_HEADER];
        header[..2].copy_from_slice(&port.to_be_bytes());
        header[2..4].copy_from_slice(&53u16.to_be_bytes());
        let length = u16::try_from(UDP_HEADER + payload.len()).unwrap();
        header[4..6].copy_from_slice(&length.to_be_bytes());
        header.extend_from_slice(payload);
        packet(v6, UDP, &header)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn random_bytes_are_parsed_or_refused(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(ip) = Ip::parse(&data) {
                prop_assert!(ip.header_len <= ip.total_len && ip.total_len <= data.len());
            }
        }
    }

    #[test]
    fn packet_that_claims_more_than_is_there_is_refused() {
        let packet = build::udp(false, 1, b"hello");
        assert!(Ip::parse(&packet).is_some());
        assert_eq!(Ip::parse(&packet[..packet.len() - 1]), None);
    }

    #[test]
    fn padding_behind_the_packet_is_not_part_of_it() {
        let mut packet = build::udp(true, 1, b"hello");
        let length = packet.len();
        packet.resize(length + 11, 0);
        assert_eq!(Ip::parse(&packet).unwrap().total_len, length);
    }
}
