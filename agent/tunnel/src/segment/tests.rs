use proptest::prelude::*;

use super::*;
use crate::packet::build;
use crate::vnet::PartialChecksum;

const MTU: usize = 1420;

fn split(vnet: VnetHeader, frame: &[u8]) -> Vec<BytesMut> {
    let mut packets = Vec::new();
    Segmenter::default().split(vnet, frame, MTU, &mut packets).unwrap();
    packets
}

fn transport_checksum_is_right(packet: &[u8]) -> bool {
    let ip = Ip::parse(packet).unwrap();
    let transport = &packet[ip.header_len..ip.total_len];
    checksum::is_valid(checksum::add(ip.pseudo_sum(transport.len()), transport))
}

fn ip_checksum_is_right(packet: &[u8]) -> bool {
    let ip = Ip::parse(packet).unwrap();
    !ip.is_v4() || checksum::is_valid(checksum::add(0, &packet[..ip.header_len]))
}

#[test]
fn plain_packet_is_padded_to_sixteen() {
    let frame = build::udp(false, 7, b"hello");
    let packets = split(VnetHeader::default(), &frame);
    assert_eq!(packets.len(), 1);
    assert_eq!(&packets[0][..frame.len()], &frame[..]);
    assert_eq!(packets[0].len(), frame.len().next_multiple_of(16));
    assert!(packets[0][frame.len()..].iter().all(|byte| *byte == 0));
}

#[test]
fn padding_stops_at_the_mtu() {
    let frame = build::udp(false, 7, &[1; MTU - 28]);
    let packets = split(VnetHeader::default(), &frame);
    assert_eq!(packets[0].len(), MTU);
}

#[test]
fn unfinished_checksum_is_finished() {
    let whole = build::tcp(true, 9, 1, 0x10, b"some payload");
    let ip = Ip::parse(&whole).unwrap();
    let mut frame = whole.clone();
    let field = ip.header_len + TCP_CHECKSUM;
    let pseudo = checksum::partial(ip.pseudo_sum(frame.len() - ip.header_len));
    frame[field..field + 2].copy_from_slice(&pseudo);
    let partial = PartialChecksum { start: 40, offset: 16 };
    let packets = split(VnetHeader { checksum: Some(partial), ..VnetHeader::default() }, &frame);
    assert_eq!(&packets[0][..whole.len()], &whole[..]);
}

#[test]
fn checksum_outside_the_packet_is_refused() {
    let frame = build::udp(false, 7, b"hello");
    for (start, offset) in [(0, 6), (20, 60_000), (65_535, 65_535), (32, 1)] {
        let partial = PartialChecksum { start, offset };
        let vnet = VnetHeader { checksum: Some(partial), ..VnetHeader::default() };
        let result = Segmenter::default().split(vnet, &frame, MTU, &mut Vec::new());
        assert_eq!(result, Err(Malformed), "start {start}, offset {offset}");
    }
}

fn check_tcp(v6: bool, size: u16, payload: &[u8]) {
    let frame = build::tcp(v6, 80, 0xffff_ff00, 0x19, payload);
    let gso = if v6 { Gso::TcpV6(size) } else { Gso::TcpV4(size) };
    let packets = split(VnetHeader { gso, ..VnetHeader::default() }, &frame);
    assert_eq!(packets.len(), payload.len().div_ceil(usize::from(size)));
    let headers = frame.len() - payload.len();
    let transport = headers - 32;
    let mut joined = Vec::new();
    for (index, packet) in packets.iter().enumerate() {
        let ip = Ip::parse(packet).unwrap();
        assert!(transport_checksum_is_right(packet) && ip_checksum_is_right(packet));
        let sequence = u32_at(packet, transport + 4);
        assert_eq!(sequence, 0xffff_ff00u32.wrapping_add(u32::try_from(joined.len()).unwrap()));
        let is_last = index + 1 == packets.len();
        assert_eq!(packet[transport + 13], if is_last { 0x19 } else { 0x10 });
        joined.extend_from_slice(&packet[headers..ip.total_len]);
    }
    assert_eq!(joined, payload);
}

#[test]
fn tcp_super_packet_is_cut_with_sequence_flags_and_checksums() {
    check_tcp(false, 1360, &[7; 50_000]);
    check_tcp(true, 1360, &[9; 1361]);
    check_tcp(true, 1360, &[9; 1360]);
}

#[test]
fn udp_super_packet_is_cut_with_lengths_and_checksums() {
    let frame = build::udp(true, 80, &[3; 2500]);
    let packets = split(VnetHeader { gso: Gso::Udp(1000), ..VnetHeader::default() }, &frame);
    let lengths: Vec<_> = packets.iter().map(|packet| Ip::parse(packet).unwrap().total_len).collect();
    assert_eq!(lengths, [1048, 1048, 548]);
    assert!(packets.iter().all(|packet| transport_checksum_is_right(packet)));
}

#[test]
fn allocation_is_reused_once_the_packets_are_gone() {
    let frame = build::tcp(false, 80, 1, 0x10, &[7; 40_000]);
    let vnet = VnetHeader { gso: Gso::TcpV4(1360), ..VnetHeader::default() };
    let mut segmenter = Segmenter::default();
    let mut packets = Vec::new();
    segmenter.split(vnet, &frame, MTU, &mut packets).unwrap();
    let first = packets[0].as_ptr();
    packets.clear();
    segmenter.split(vnet, &frame, MTU, &mut packets).unwrap();
    assert_eq!(packets[0].as_ptr(), first);
}

proptest! {
    #[test]
    fn random_frames_never_panic(
        header in any::<[u8; 10]>(),
        mut frame in proptest::collection::vec(any::<u8>(), 0..300),
        version in prop_oneof![Just(0x45u8), Just(0x46), Just(0x60)],
        protocol in prop_oneof![Just(6u8), Just(17), any::<u8>()],
    ) {
        if let Some(first) = frame.first_mut() {
            *first = version;
        }
        if let Some(byte) = frame.get_mut(if version == 0x60 { 6 } else { 9 }) {
            *byte = protocol;
        }
        if frame.len() > 40 {
            let length = u16::try_from(frame.len()).unwrap();
            let (at, claimed) = if version == 0x60 { (4, length - 40) } else { (2, length) };
            frame[at..at + 2].copy_from_slice(&claimed.to_be_bytes());
        }
        if let Some(vnet) = VnetHeader::decode(&header) {
            let mut packets = Vec::new();
            let result = Segmenter::default().split(vnet, &frame, MTU, &mut packets);
            prop_assert_eq!(result.is_ok(), !packets.is_empty());
        }
    }

    #[test]
    fn any_payload_is_cut_and_kept(
        v6: bool,
        size in 1u16..3000,
        payload in proptest::collection::vec(any::<u8>(), 1..5000),
    ) {
        check_tcp(v6, size, &payload);
    }
}
