use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RData;
use proptest::prelude::*;

use super::*;
use crate::dns::wire::WireName;
use crate::dns::zone::tests::zone;

/// A query as `dig` would send it.
fn query(name: &str, rtype: u16) -> Vec<u8> {
    let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    bytes.extend_from_slice(WireName::parse(name).expect("a name").as_bytes());
    bytes.extend_from_slice(&rtype.to_be_bytes());
    bytes.extend_from_slice(&CLASS_IN.to_be_bytes());
    bytes
}

fn with_edns(mut query: Vec<u8>, payload: u16, version: u8) -> Vec<u8> {
    query[11] += 1;
    query.extend_from_slice(&[0, 0, 41]);
    query.extend_from_slice(&payload.to_be_bytes());
    query.extend_from_slice(&[0, version, 0x80, 0, 0, 0]);
    query
}

fn reply_over(transport: Transport, query: &[u8]) -> Option<Vec<u8>> {
    let mut output = vec![0xee; 65_535];
    match answer(query, &zone(3), transport, &mut output) {
        Outcome::Reply { length, .. } => Some(output[..length].to_vec()),
        Outcome::Ignore | Outcome::Elsewhere => None,
    }
}

fn reply(query: &[u8]) -> Message {
    let bytes = reply_over(Transport::Udp, query).expect("a reply");
    Message::from_vec(&bytes).expect("a well-formed reply")
}

#[test]
fn an_address_is_answered_with_authority() {
    let message = reply(&query("n0001.weft.internal", rtype::A));
    assert_eq!(message.metadata.id, 0x1234);
    assert!(message.metadata.authoritative && message.metadata.recursion_desired);
    assert!(message.metadata.recursion_available);
    assert_eq!(message.metadata.response_code, ResponseCode::NoError);
    assert_eq!(message.answers.len(), 1);
    assert_eq!(message.answers[0].name.to_string(), "n0001.weft.internal.");
    assert!(matches!(&message.answers[0].data, RData::A(address) if address.0.octets() == [10, 80, 0, 3]));
    assert!(message.edns.is_none());
}

#[test]
fn the_case_of_the_question_is_kept() {
    let mut mixed = query("n0001.weft.internal", rtype::A);
    mixed[13] = b'N';
    mixed[19..23].copy_from_slice(b"WeFT");
    let bytes = reply_over(Transport::Udp, &mixed).expect("a reply");
    assert_eq!(&bytes[12..mixed.len()], &mixed[12..]);
    assert_eq!(Message::from_vec(&bytes).expect("well-formed").answers.len(), 1);
}

#[test]
fn nodata_and_nxdomain_carry_the_soa_of_the_zone() {
    for (name, code) in [("alpha.weft.internal", ResponseCode::NoError), ("no.weft.internal", ResponseCode::NXDomain)] {
        let message = reply(&query(name, rtype::PTR));
        assert_eq!(message.metadata.response_code, code);
        assert!(message.answers.is_empty() && message.metadata.authoritative);
        assert_eq!(message.authorities.len(), 1);
        assert_eq!(message.authorities[0].name.to_string(), "weft.internal.");
        assert!(matches!(message.authorities[0].data, RData::SOA(_)));
    }
}

#[test]
fn edns_is_answered_with_edns() {
    let message = reply(&with_edns(query("alpha.weft.internal", rtype::TXT), 4096, 0));
    let edns = message.edns.expect("an OPT record");
    assert_eq!((edns.max_payload(), edns.version(), edns.flags().dnssec_ok), (UDP_PAYLOAD, 0, true));
}

#[test]
fn an_unknown_edns_version_is_badvers() {
    let message = reply(&with_edns(query("alpha.weft.internal", rtype::A), 1232, 1));
    let edns = message.edns.expect("an OPT record");
    assert_eq!((edns.rcode_high(), edns.version()), (1, 0));
    assert!(message.answers.is_empty());
}

#[test]
fn other_classes_and_meta_types_are_refused() {
    let mut chaos = query("version.bind", rtype::TXT);
    let at = chaos.len() - 1;
    chaos[at] = 3;
    assert_eq!(reply(&chaos).metadata.response_code, ResponseCode::Refused);
    for meta in [41, 251, 252] {
        assert_eq!(reply(&query("weft.internal", meta)).metadata.response_code, ResponseCode::Refused);
    }
}

#[test]
fn other_opcodes_are_not_implemented() {
    let mut notify = query("weft.internal", rtype::SOA);
    notify[2] = 4 << 3;
    let bytes = reply_over(Transport::Udp, &notify).expect("a reply");
    assert_eq!((bytes.len(), bytes[3] & 15, (bytes[2] >> 3) & 15), (12, 4, 4));
}

#[test]
fn anything_but_one_question_is_a_format_error_of_twelve_bytes() {
    let good = query("alpha.weft.internal", rtype::A);
    let broken = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        bytes
    };
    let two_opt = with_edns(with_edns(good.clone(), 1232, 0), 1232, 0);
    for bad in [broken(5, 0), broken(5, 2), broken(7, 1), broken(12, 0xc0), good[..20].to_vec(), two_opt] {
        let bytes = reply_over(Transport::Udp, &bad).expect("a reply");
        assert_eq!((bytes.len(), bytes[3] & 15), (12, 1), "{bad:?}");
    }
}

#[test]
fn replies_and_fragments_are_ignored() {
    let mut response = query("alpha.weft.internal", rtype::A);
    response[2] |= 0x80;
    assert!(reply_over(Transport::Udp, &response).is_none());
    assert!(reply_over(Transport::Udp, &response[..11]).is_none());
}

#[test]
fn a_reply_too_large_for_the_client_is_truncated_and_whole_over_tcp() {
    let mut model = crate::dns::zone::tests::mesh(0);
    model.node.addresses = (1..=60).map(|n| format!("10.80.1.{n}/16").parse().expect("an address")).collect();
    let zone = Zone::build(&model, std::net::Ipv4Addr::LOCALHOST, 1).expect("built");
    let plain = query("alpha.weft.internal", rtype::A);
    let size = |query: &[u8], transport| {
        let mut output = vec![0; 65_535];
        let Outcome::Reply { length, .. } = answer(query, &zone, transport, &mut output) else { panic!("no reply") };
        let message = Message::from_vec(&output[..length]).expect("well-formed");
        (message.metadata.truncation, message.answers.len(), length)
    };
    assert_eq!(size(&plain, Transport::Udp), (true, 0, plain.len()));
    assert_eq!(size(&plain, Transport::Tcp).1, 60);
    let (truncated, answers, length) = size(&with_edns(plain.clone(), 4096, 0), Transport::Udp);
    assert!(!truncated && answers == 60 && length <= 1232);
    assert!(size(&with_edns(plain, 600, 0), Transport::Udp).0);
}

#[test]
fn names_that_are_not_ours_are_left_to_others() {
    let mut output = [0; 1232];
    assert_eq!(answer(&query("example.com", rtype::A), &zone(1), Transport::Udp, &mut output), Outcome::Elsewhere);
    let root = [0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];
    assert_eq!(answer(&root, &zone(1), Transport::Udp, &mut output), Outcome::Elsewhere);
}

#[test]
fn a_refusal_keeps_question_and_edns() {
    let mut output = [0; 1232];
    let asked = with_edns(query("example.com", rtype::A), 1232, 0);
    let Outcome::Reply { length, rcode } = refuse(&asked, Rcode::Refused, Transport::Udp, &mut output) else {
        panic!("no reply")
    };
    let message = Message::from_vec(&output[..length]).expect("well-formed");
    assert_eq!((rcode, message.metadata.response_code), (Rcode::Refused, ResponseCode::Refused));
    assert_eq!((message.queries.len(), message.edns.is_some()), (1, true));
}

proptest! {
    #[test]
    fn no_input_panics_or_is_amplified_when_malformed(bytes in proptest::collection::vec(any::<u8>(), 0..700)) {
        let mut output = vec![0; 1232];
        if let Outcome::Reply { length, rcode } = answer(&bytes, &zone(3), Transport::Udp, &mut output) {
            prop_assert!(length <= usize::from(UDP_PAYLOAD));
            if matches!(rcode, Rcode::FormErr | Rcode::NotImp) {
                prop_assert_eq!(length, HEADER);
            }
        }
    }

    #[test]
    fn a_damaged_query_never_panics_and_every_reply_parses(
        flips in proptest::collection::vec((0_usize..80, any::<u8>()), 1..4),
        cut in 0_usize..80,
        tcp in any::<bool>(),
    ) {
        let mut bytes = with_edns(query("n0001.weft.internal", rtype::ANY), 1232, 0);
        for (at, value) in flips {
            let length = bytes.len();
            bytes[at % length] = value;
        }
        bytes.truncate(bytes.len().min(cut + 8));
        let transport = if tcp { Transport::Tcp } else { Transport::Udp };
        if let Some(reply) = reply_over(transport, &bytes) {
            prop_assert!(Message::from_vec(&reply).is_ok() || reply.len() == HEADER, "{reply:?}");
        }
    }
}
