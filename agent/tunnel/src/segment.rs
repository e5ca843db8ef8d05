//! From what a TUN read returns to packets as they travel: one super-packet becomes many, checksums are finished, and
//! each is padded as WireGuard wants it.
//!
//! In: the virtio header and the bytes behind it. Out: packets that share one allocation, in order. Pure. A frame
//! that contradicts itself is refused as a whole; nothing in it can cause a panic.

use bytes::BytesMut;

use crate::checksum;
use crate::packet::{self, Ip, TCP, TCP_CHECKSUM, UDP, UDP_CHECKSUM, UDP_HEADER};
use crate::vnet::{Gso, VnetHeader};

/// WireGuard pads to a multiple of this, up to the MTU (section 5.4.6 of the paper).
const PADDING: usize = 16;

const FLAG_FIN: u8 = 0x01;
const FLAG_PSH: u8 = 0x08;
const FLAG_CWR: u8 = 0x80;

/// The frame does not hold what its headers claim.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Cuts frames into packets, reusing one allocation as long as the packets are dropped before the next frame.
#[derive(Debug, Default)]
pub(crate) struct Segmenter {
    scratch: BytesMut,
}

impl Segmenter {
    /// Appends the packets of `frame` to `packets`, padded for a link of `mtu` bytes.
    pub(crate) fn split(
        &mut self,
        vnet: VnetHeader,
        frame: &[u8],
        mtu: usize,
        packets: &mut Vec<BytesMut>,
    ) -> Result<Ip, Malformed> {
        let ip = Ip::parse(frame).ok_or(Malformed)?;
        let frame = &frame[..ip.total_len];
        match vnet.gso {
            Gso::None => self.single(vnet, &ip, frame, mtu, packets)?,
            Gso::TcpV4(size) | Gso::TcpV6(size) => {
                let cut = Cut::tcp(&ip, frame, size, mtu)?;
                self.tcp(&cut, packets);
            }
            Gso::Udp(size) => {
                let cut = Cut::udp(&ip, frame, size, mtu)?;
                self.udp(&cut, packets);
            }
        }
        Ok(ip)
    }

    fn single(
        &mut self,
        vnet: VnetHeader,
        ip: &Ip,
        frame: &[u8],
        mtu: usize,
        packets: &mut Vec<BytesMut>,
    ) -> Result<(), Malformed> {
        self.scratch.reserve(frame.len() + PADDING);
        self.scratch.extend_from_slice(frame);
        if let Some(partial) = vnet.checksum {
            let start = usize::from(partial.start);
            let field = start + usize::from(partial.offset);
            if start < ip.header_len || field + 2 > frame.len() {
                self.scratch.clear();
                return Err(Malformed);
            }
            let mut sum = checksum::finish(checksum::add(0, &self.scratch[start..]));
            if ip.protocol == UDP && sum == [0, 0] {
                // Zero says "no checksum" in UDP.
                sum = [0xff, 0xff];
            }
            self.scratch[field..field + 2].copy_from_slice(&sum);
        }
        packets.push(self.take_padded(mtu));
        Ok(())
    }

    fn tcp(&mut self, cut: &Cut<'_>, packets: &mut Vec<BytesMut>) {
        let transport = cut.ip.header_len;
        let first_sequence = u32_at(cut.headers, transport + 4);
        let flags = cut.headers[transport + 13];
        self.reserve(cut);
        let mut sequence = first_sequence;
        for (index, payload) in cut.payload.chunks(cut.size).enumerate() {
            let is_last = (index + 1) * cut.size >= cut.payload.len();
            self.append(cut, index, payload);
            let segment = &mut self.scratch[..];
            segment[transport + 4..transport + 8].copy_from_slice(&sequence.to_be_bytes());
            let mut kept = flags;
            if !is_last {
                kept &= !(FLAG_FIN | FLAG_PSH);
            }
            if index > 0 {
                kept &= !FLAG_CWR;
            }
            segment[transport + 13] = kept;
            write_checksum(segment, &cut.ip, transport + TCP_CHECKSUM);
            packets.push(self.take_padded(cut.mtu));
            sequence = sequence.wrapping_add(cut.size_u32());
        }
    }

    fn udp(&mut self, cut: &Cut<'_>, packets: &mut Vec<BytesMut>) {
        let transport = cut.ip.header_len;
        self.reserve(cut);
        for (index, payload) in cut.payload.chunks(cut.size).enumerate() {
            self.append(cut, index, payload);
            let length = u16::try_from(UDP_HEADER + payload.len()).expect("a part of a 64 KiB packet");
            let segment = &mut self.scratch[..];
            segment[transport + 4..transport + 6].copy_from_slice(&length.to_be_bytes());
            write_checksum(segment, &cut.ip, transport + UDP_CHECKSUM);
            packets.push(self.take_padded(cut.mtu));
        }
    }

    fn reserve(&mut self, cut: &Cut<'_>) {
        let count = cut.payload.len().div_ceil(cut.size);
        self.scratch.reserve(count * (cut.headers.len() + PADDING) + cut.payload.len());
    }

    /// Headers and payload of segment `index`, with the IP header made its own.
    fn append(&mut self, cut: &Cut<'_>, index: usize, payload: &[u8]) {
        self.scratch.extend_from_slice(cut.headers);
        self.scratch.extend_from_slice(payload);
        let total_len = self.scratch.len();
        let segment = &mut self.scratch[..];
        if cut.ip.is_v4() {
            // Each segment is a packet of its own to fragmentation; the count wraps as the field does.
            let step = u16::try_from(index & 0xffff).expect("masked to 16 bits");
            let id = packet::ipv4_id(cut.headers).wrapping_add(step);
            segment[4..6].copy_from_slice(&id.to_be_bytes());
        }
        packet::set_ip_len(segment, &cut.ip, total_len);
    }

    fn take_padded(&mut self, mtu: usize) -> BytesMut {
        let length = self.scratch.len();
        let padded = length.next_multiple_of(PADDING).min(mtu).max(length);
        self.scratch.resize(padded, 0);
        self.scratch.split()
    }
}

/// How a super-packet is cut.
struct Cut<'a> {
    ip: Ip,
    headers: &'a [u8],
    payload: &'a [u8],
    size: usize,
    mtu: usize,
}

impl<'a> Cut<'a> {
    fn tcp(ip: &Ip, frame: &'a [u8], size: u16, mtu: usize) -> Result<Self, Malformed> {
        let length = packet::tcp_header_len(frame, ip).ok_or(Malformed)?;
        Self::new(ip, frame, TCP, length, size, mtu)
    }

    fn udp(ip: &Ip, frame: &'a [u8], size: u16, mtu: usize) -> Result<Self, Malformed> {
        Self::new(ip, frame, UDP, UDP_HEADER, size, mtu)
    }

    fn new(
        ip: &Ip,
        frame: &'a [u8],
        protocol: u8,
        transport_len: usize,
        size: u16,
        mtu: usize,
    ) -> Result<Self, Malformed> {
        let headers_len = ip.header_len + transport_len;
        if size == 0 || ip.protocol != protocol || ip.is_fragment || headers_len >= frame.len() {
            return Err(Malformed);
        }
        let (headers, payload) = frame.split_at(headers_len);
        Ok(Self { ip: *ip, headers, payload, size: usize::from(size), mtu })
    }

    fn size_u32(&self) -> u32 {
        u32::try_from(self.size).expect("made from 16 bits")
    }
}

/// Computes the transport checksum of a packet from its bytes; `field` is the offset of the checksum.
fn write_checksum(segment: &mut [u8], ip: &Ip, field: usize) {
    segment[field..field + 2].fill(0);
    let transport = &segment[ip.header_len..];
    let mut sum = checksum::finish(checksum::add(ip.pseudo_sum(transport.len()), transport));
    if ip.protocol == UDP && sum == [0, 0] {
        sum = [0xff, 0xff];
    }
    segment[field..field + 2].copy_from_slice(&sum);
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests;
