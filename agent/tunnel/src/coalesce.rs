//! From packets as they arrive to as few TUN writes as possible: runs of one TCP or UDP flow become super-packets.
//!
//! In: decrypted packets in the order of arrival. Out: frames for the TUN, each a virtio header and the pieces behind
//! it. Pure. Packets of one flow never change their order; a packet joins only when the kernel's own receive offload
//! would join it (same headers, next in sequence, right checksum), so that cutting the super-packet again gives the
//! packets that came in.

use std::io::IoSlice;
use std::net::IpAddr;

use bytes::BytesMut;

use crate::checksum;
use crate::packet::{self, Ip, TCP, TCP_CHECKSUM, UDP, UDP_CHECKSUM, UDP_HEADER};
use crate::vnet::{self, Gso, PartialChecksum, VnetHeader};

/// How many of the newest groups are searched for the flow of a packet; a flow not found starts a new group.
const SEARCHED_GROUPS: usize = 16;
/// Packets in a group: one piece each, well below the kernel's 1024 pieces a write.
const MAX_PACKETS: usize = 128;
const MAX_TOTAL_LEN: usize = 65_535;

const FLAG_PSH: u8 = 0x08;
const FLAG_ACK: u8 = 0x10;

/// Collects packets until [`Coalescer::drain`].
#[derive(Debug)]
pub(crate) struct Coalescer {
    groups: Vec<Group>,
    /// Groups in use; those behind keep their allocations for the next batch.
    used: usize,
    join_tcp: bool,
    join_udp: bool,
}

/// What makes packets one flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Flow {
    source: IpAddr,
    destination: IpAddr,
    ports: [u8; 4],
    protocol: u8,
}

/// A packet or a super-packet in the making.
#[derive(Debug)]
struct Group {
    packets: Vec<BytesMut>,
    flow: Option<Flow>,
    ip: Ip,
    /// IP and transport header.
    headers_len: usize,
    /// Payload of each packet but the last.
    size: usize,
    total_len: usize,
    next_sequence: u32,
    /// Nothing may join any more.
    closed: bool,
}

/// A packet that may join others.
struct Candidate {
    flow: Flow,
    ip: Ip,
    headers_len: usize,
    payload_len: usize,
    sequence: u32,
    /// PSH is set: it may join, nothing may follow.
    is_end: bool,
}

impl Coalescer {
    /// What may be joined is what the TUN takes as one.
    pub(crate) fn new(join_tcp: bool, join_udp: bool) -> Self {
        Self { groups: Vec::new(), used: 0, join_tcp, join_udp }
    }

    /// Takes a packet that is exactly as long as its header `ip` says.
    pub(crate) fn push(&mut self, ip: Ip, packet: BytesMut) {
        let Some(flow) = Flow::of(&ip, &packet) else {
            // Without ports it cannot be told which flow it belongs to, so nothing may be moved before it.
            for group in &mut self.groups[..self.used] {
                group.closed = true;
            }
            self.start(ip, None, packet);
            return;
        };
        let newest = self.newest_group(&flow);
        let Some(candidate) = self.candidate(flow, ip, &packet) else {
            if let Some(index) = newest {
                self.groups[index].closed = true;
            }
            self.start(ip, Some(flow), packet);
            return;
        };
        if let Some(index) = newest
            && self.groups[index].accepts(&candidate, &packet)
        {
            self.groups[index].join(&candidate, packet);
            return;
        }
        self.start_joinable(&candidate, packet);
    }

    /// Hands each frame to `write` as its pieces, virtio header first, and forgets it.
    pub(crate) fn drain(&mut self, mut write: impl FnMut(&[IoSlice<'_>])) {
        for group in &mut self.groups[..self.used] {
            let header = group.finish().encode();
            let mut pieces = [IoSlice::new(&[]); MAX_PACKETS + 1];
            pieces[0] = IoSlice::new(&header);
            let mut count = 1;
            for (index, packet) in group.packets.iter().enumerate() {
                let skipped = if index == 0 { 0 } else { group.headers_len };
                pieces[count] = IoSlice::new(&packet[skipped..]);
                count += 1;
            }
            write(&pieces[..count]);
            group.packets.clear();
        }
        self.used = 0;
    }

    fn newest_group(&self, flow: &Flow) -> Option<usize> {
        let first = self.used.saturating_sub(SEARCHED_GROUPS);
        (first..self.used).rev().find(|index| self.groups[*index].flow.as_ref() == Some(flow))
    }

    fn candidate(&self, flow: Flow, ip: Ip, packet: &[u8]) -> Option<Candidate> {
        // Options and extension headers are rare and would have to be equal too.
        let is_plain = !ip.is_v4() || ip.header_len == 20;
        if !is_plain || ip.is_fragment {
            return None;
        }
        let candidate = match ip.protocol {
            TCP if self.join_tcp => Candidate::tcp(flow, ip, packet)?,
            UDP if self.join_udp => Candidate::udp(flow, ip, packet)?,
            _ => return None,
        };
        let transport = &packet[ip.header_len..];
        checksum::is_valid(checksum::add(ip.pseudo_sum(transport.len()), transport)).then_some(candidate)
    }

    fn start(&mut self, ip: Ip, flow: Option<Flow>, packet: BytesMut) {
        let group = self.next_group(ip);
        group.flow = flow;
        group.closed = true;
        group.packets.push(packet);
    }

    fn start_joinable(&mut self, candidate: &Candidate, packet: BytesMut) {
        let group = self.next_group(candidate.ip);
        group.flow = Some(candidate.flow);
        group.headers_len = candidate.headers_len;
        group.size = candidate.payload_len;
        group.total_len = packet.len();
        group.next_sequence = candidate.end();
        group.closed = candidate.is_end;
        group.packets.push(packet);
    }

    fn next_group(&mut self, ip: Ip) -> &mut Group {
        if self.used == self.groups.len() {
            self.groups.push(Group {
                packets: Vec::new(),
                flow: None,
                ip,
                headers_len: 0,
                size: 0,
                total_len: 0,
                next_sequence: 0,
                closed: false,
            });
        }
        self.used += 1;
        let group = &mut self.groups[self.used - 1];
        group.ip = ip;
        group
    }
}

impl Flow {
    /// `None` where there are no ports to read.
    fn of(ip: &Ip, packet: &[u8]) -> Option<Self> {
        if ip.is_fragment || !matches!(ip.protocol, TCP | UDP) {
            return None;
        }
        let ports = *packet.get(ip.header_len..)?.first_chunk()?;
        Some(Self { source: ip.source, destination: ip.destination, ports, protocol: ip.protocol })
    }
}

impl Candidate {
    fn tcp(flow: Flow, ip: Ip, packet: &[u8]) -> Option<Self> {
        let headers_len = ip.header_len + packet::tcp_header_len(packet, &ip)?;
        let payload_len = packet.len() - headers_len;
        let flags = packet[ip.header_len + 13];
        if payload_len == 0 || flags & !FLAG_PSH != FLAG_ACK {
            return None;
        }
        let sequence = u32::from_be_bytes(*packet[ip.header_len + 4..].first_chunk()?);
        Some(Self { flow, ip, headers_len, payload_len, sequence, is_end: flags & FLAG_PSH != 0 })
    }

    fn udp(flow: Flow, ip: Ip, packet: &[u8]) -> Option<Self> {
        let header: &[u8; UDP_HEADER] = packet.get(ip.header_len..)?.first_chunk()?;
        let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
        let has_checksum = header[UDP_CHECKSUM..] != [0, 0];
        if length != packet.len() - ip.header_len || length == UDP_HEADER || !has_checksum {
            return None;
        }
        let headers_len = ip.header_len + UDP_HEADER;
        Some(Self { flow, ip, headers_len, payload_len: length - UDP_HEADER, sequence: 0, is_end: false })
    }

    fn end(&self) -> u32 {
        let length = u32::try_from(self.payload_len).expect("part of a 64 KiB packet");
        self.sequence.wrapping_add(length)
    }
}

impl Group {
    fn accepts(&self, candidate: &Candidate, packet: &[u8]) -> bool {
        let Some(first) = self.packets.first() else { return false };
        let is_next = candidate.ip.protocol == UDP || candidate.sequence == self.next_sequence;
        let fits = !self.closed
            && self.packets.len() < MAX_PACKETS
            && candidate.headers_len == self.headers_len
            && candidate.payload_len <= self.size
            && self.total_len + candidate.payload_len <= MAX_TOTAL_LEN;
        is_next && fits && self.follows_in_ip(candidate, packet, first) && same_transport(candidate, packet, first)
    }

    /// Same type of service, life time and flow label, and for IPv4 the identification that cutting would give.
    fn follows_in_ip(&self, candidate: &Candidate, packet: &[u8], first: &[u8]) -> bool {
        if !candidate.ip.is_v4() {
            return packet[..4] == first[..4] && packet[7] == first[7];
        }
        let step = u16::try_from(self.packets.len()).expect("at most MAX_PACKETS");
        packet[1] == first[1]
            && packet[6..9] == first[6..9]
            && packet::ipv4_id(packet) == packet::ipv4_id(first).wrapping_add(step)
    }

    fn join(&mut self, candidate: &Candidate, packet: BytesMut) {
        self.total_len += candidate.payload_len;
        self.next_sequence = candidate.end();
        if candidate.is_end {
            let flags = self.ip.header_len + 13;
            self.packets[0][flags] |= FLAG_PSH;
        }
        self.closed = candidate.is_end || candidate.payload_len < self.size;
        self.packets.push(packet);
    }

    /// Turns the first packet's headers into those of the whole.
    fn finish(&mut self) -> VnetHeader {
        if self.packets.len() < 2 {
            return VnetHeader::default();
        }
        let transport = self.ip.header_len;
        let transport_len = self.total_len - transport;
        let first = &mut self.packets[0];
        packet::set_ip_len(first, &self.ip, self.total_len);
        let size = u16::try_from(self.size).expect("part of a 64 KiB packet");
        let (gso, offset) = match (self.ip.protocol, self.ip.is_v4()) {
            (TCP, true) => (Gso::TcpV4(size), TCP_CHECKSUM),
            (TCP, false) => (Gso::TcpV6(size), TCP_CHECKSUM),
            _ => (Gso::Udp(size), UDP_CHECKSUM),
        };
        if gso == Gso::Udp(size) {
            let length = u16::try_from(transport_len).expect("part of a 64 KiB packet");
            first[transport + 4..transport + 6].copy_from_slice(&length.to_be_bytes());
        }
        let pseudo = checksum::partial(self.ip.pseudo_sum(transport_len));
        first[transport + offset..transport + offset + 2].copy_from_slice(&pseudo);
        let word = |value: usize| u16::try_from(value).expect("an offset in the headers");
        VnetHeader {
            checksum: Some(PartialChecksum { start: word(transport), offset: word(offset) }),
            gso,
            header_len: word(self.headers_len),
        }
    }
}

/// TCP: acknowledgement, window and options equal (all but sequence, flags and checksum). UDP has nothing more.
fn same_transport(candidate: &Candidate, packet: &[u8], first: &[u8]) -> bool {
    if candidate.ip.protocol == UDP {
        return true;
    }
    let at = candidate.ip.header_len;
    packet[at + 8..at + 13] == first[at + 8..at + 13]
        && packet[at + 14..at + 16] == first[at + 14..at + 16]
        && packet[at + 18..candidate.headers_len] == first[at + 18..candidate.headers_len]
}

const _: () = assert!(MAX_PACKETS < 1024 && vnet::LEN == 10, "one write takes 1024 pieces");

#[cfg(test)]
mod tests;
