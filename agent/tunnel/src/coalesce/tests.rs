use proptest::prelude::*;

use super::*;
use crate::packet::build;
use crate::segment::Segmenter;

/// Pushes the packets and returns the frames as the kernel would get them.
fn coalesce(packets: &[Vec<u8>]) -> Vec<(VnetHeader, Vec<u8>)> {
    let mut coalescer = Coalescer::new(true, true);
    for packet in packets {
        coalescer.push(Ip::parse(packet).unwrap(), BytesMut::from(&packet[..]));
    }
    drain(&mut coalescer)
}

fn drain(coalescer: &mut Coalescer) -> Vec<(VnetHeader, Vec<u8>)> {
    let mut frames = Vec::new();
    coalescer.drain(|pieces| {
        let bytes: Vec<u8> = pieces.iter().flat_map(|piece| piece.to_vec()).collect();
        let header = VnetHeader::decode(bytes.first_chunk().unwrap()).unwrap();
        frames.push((header, bytes[vnet::LEN..].to_vec()));
    });
    frames
}

/// Cuts the frames again, without padding.
fn cut(frames: &[(VnetHeader, Vec<u8>)]) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    let mut segmenter = Segmenter::default();
    for (vnet, frame) in frames {
        segmenter.split(*vnet, frame, 0, &mut packets).unwrap();
    }
    packets.iter().map(|packet| packet.to_vec()).collect()
}

/// A run of segments of one stream, as a sender cuts it; identifications count up from 0.
fn stream(v6: bool, port: u16, sizes: &[usize]) -> Vec<Vec<u8>> {
    let mut sequence = 1000u32;
    let mut packets = Vec::new();
    for (index, size) in sizes.iter().enumerate() {
        let payload: Vec<u8> = (0..*size).map(|byte| u8::try_from(byte % 251).unwrap()).collect();
        let mut packet = build::tcp(v6, port, sequence, 0x10, &payload);
        if !v6 {
            set_id(&mut packet, u16::try_from(index).unwrap());
        }
        sequence += u32::try_from(*size).unwrap();
        packets.push(packet);
    }
    packets
}

fn set_id(packet: &mut [u8], id: u16) {
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    let ip = Ip::parse(packet).unwrap();
    packet::update_ip_checksum(packet, &ip);
}

#[test]
fn consecutive_segments_become_one_frame_that_cuts_to_the_same() {
    for v6 in [false, true] {
        let packets = stream(v6, 5, &[1000, 1000, 1000, 400]);
        let frames = coalesce(&packets);
        assert_eq!(frames.len(), 1);
        assert_eq!(cut(&frames), packets);
    }
}

#[test]
fn interleaved_flows_become_one_frame_each() {
    let (left, right) = (stream(false, 5, &[1000; 4]), stream(false, 6, &[1000; 4]));
    let mixed: Vec<_> = left.iter().zip(&right).flat_map(|(a, b)| [a.clone(), b.clone()]).collect();
    let frames = coalesce(&mixed);
    assert_eq!(frames.len(), 2);
    assert_eq!(cut(&frames), [left, right].concat());
}

#[test]
fn short_segment_and_push_end_a_frame() {
    assert_eq!(coalesce(&stream(false, 5, &[1000, 400, 400])).len(), 2);
    assert_eq!(coalesce(&stream(false, 5, &[400, 1000])).len(), 2);
    let mut packets = stream(true, 5, &[1000; 3]);
    packets[1] = build::tcp(true, 5, 2000, 0x18, &[0; 1000]);
    let frames = coalesce(&packets);
    assert_eq!(frames.len(), 2);
    assert_eq!(frames[0].1[40 + 13], 0x18);
}

#[test]
fn what_must_not_join_stays_alone() {
    let packets = stream(false, 5, &[1000; 2]);
    let ip = Ip::parse(&packets[1]).unwrap();
    let check = |what: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut second = packets[1].clone();
        change(&mut second);
        assert_eq!(coalesce(&[packets[0].clone(), second]).len(), 2, "{what}");
    };
    check("broken checksum", &|packet| packet[60] ^= 1);
    check("other type of service", &|packet| packet[1] = 4);
    check("other life time", &|packet| packet[8] = 3);
    check("other identification", &|packet| packet[5] = 9);
    let other = |change: &dyn Fn(&mut [u8])| {
        let mut transport = packets[1][ip.header_len..].to_vec();
        change(&mut transport);
        build::packet(false, TCP, &transport)
    };
    for (at, what) in [(4, "a gap"), (8, "acknowledgement"), (14, "window"), (28, "timestamp"), (13, "flags")] {
        let mut second = other(&|transport| transport[at] ^= 4);
        set_id(&mut second, 1);
        assert_eq!(coalesce(&[packets[0].clone(), second]).len(), 2, "{what}");
    }
}

#[test]
fn acknowledgement_between_segments_is_not_overtaken() {
    let mut packets = stream(true, 5, &[1000; 4]);
    packets.insert(2, build::tcp(true, 5, 3000, 0x10, b""));
    let frames = coalesce(&packets);
    assert_eq!(frames.len(), 3);
    assert_eq!(cut(&frames), packets);
}

#[test]
fn packet_without_ports_is_not_overtaken() {
    let mut packets = stream(true, 5, &[1000; 4]);
    let mut icmp = build::udp(true, 5, b"ping");
    icmp[6] = 58;
    packets.insert(2, icmp);
    assert_eq!(cut(&coalesce(&packets)), packets);
}

#[test]
fn datagrams_of_equal_size_become_one_frame() {
    let packets: Vec<_> = [900, 900, 900, 100].iter().map(|size| build::udp(true, 5, &vec![1; *size])).collect();
    let frames = coalesce(&packets);
    assert_eq!(frames.len(), 1);
    assert_eq!(frames[0].0.gso, Gso::Udp(900));
    assert_eq!(cut(&frames), packets);
    let mut coalescer = Coalescer::new(true, false);
    for packet in &packets {
        coalescer.push(Ip::parse(packet).unwrap(), BytesMut::from(&packet[..]));
    }
    assert_eq!(drain(&mut coalescer).len(), 4);
}

#[test]
fn frame_stays_below_sixty_four_kilobytes() {
    let packets = stream(true, 5, &[1348; 60]);
    let frames = coalesce(&packets);
    assert_eq!(frames.len(), 2);
    assert!(frames.iter().all(|(_, frame)| frame.len() <= MAX_TOTAL_LEN));
    assert_eq!(cut(&frames), packets);
}

proptest! {
    /// Any mix of flows, sizes, flags and foreign packets: each flow comes out as it went in.
    #[test]
    fn each_flow_comes_out_as_it_went_in(
        steps in proptest::collection::vec((0u16..5, any::<bool>(), 0usize..600, 0u8..8), 1..200),
    ) {
        let mut sequences = [0u32; 5];
        let mut ids = [0u16; 5];
        let mut packets = Vec::new();
        for (port, v6, size, kind) in steps {
            let slot = usize::from(port);
            let v6 = v6 && port > 2;
            let size = if size > 300 { 500 } else { size };
            let mut packet = match kind {
                0 => build::udp(v6, port, &vec![kind; size]),
                1 => build::tcp(v6, port, sequences[slot], 0x18, &vec![kind; size]),
                2 => build::tcp(v6, port, sequences[slot], 0x11, &vec![kind; size]),
                3 => build::tcp(v6, port, sequences[slot].wrapping_add(9), 0x10, &vec![kind; size]),
                _ => build::tcp(v6, port, sequences[slot], 0x10, &vec![kind; 500]),
            };
            if !v6 {
                set_id(&mut packet, ids[slot]);
                ids[slot] = ids[slot].wrapping_add(1);
            }
            let ip = Ip::parse(&packet).unwrap();
            if ip.protocol == TCP {
                let headers = ip.header_len + 32;
                sequences[slot] = sequences[slot].wrapping_add(u32::try_from(packet.len() - headers).unwrap());
            }
            packets.push(packet);
        }
        let cut = cut(&coalesce(&packets));
        prop_assert_eq!(cut.len(), packets.len());
        for port in 0..5u16 {
            for protocol in [TCP, UDP] {
                let of_flow = |packet: &&Vec<u8>| {
                    let ip = Ip::parse(packet).unwrap();
                    ip.protocol == protocol && packet[ip.header_len..ip.header_len + 2] == port.to_be_bytes()
                };
                for v6 in [false, true] {
                    let version = |packet: &&Vec<u8>| (packet[0] >> 4 == 6) == v6;
                    let came: Vec<_> = packets.iter().filter(of_flow).filter(version).collect();
                    let went: Vec<_> = cut.iter().filter(of_flow).filter(version).collect();
                    prop_assert_eq!(went, came);
                }
            }
        }
    }
}
