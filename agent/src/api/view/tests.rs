use std::time::Duration;

use super::*;
use crate::api::tests::{figures, model};

fn peer_at(age: Option<u64>) -> proto::Peer {
    let now = SystemTime::now();
    let mut figures = figures();
    figures.wireguard[0].last_handshake = age.map(|age| now - Duration::from_secs(age));
    peers(&model(), &figures, now).peers.remove(0)
}

#[test]
fn a_session_counts_as_connected_for_180_seconds() {
    assert_eq!(peer_at(Some(179)).state, "connected");
    let idle = peer_at(Some(180));
    assert_eq!((idle.state.as_str(), idle.handshake_age_seconds), ("idle", Some(180)));
}

#[test]
fn a_peer_without_handshake_says_what_to_look_at() {
    let never = peer_at(None);
    assert_eq!((never.state.as_str(), never.handshake_age_seconds), ("never", None));
    assert!(never.reason.contains("UDP to 192.0.2.7:51820"), "{}", never.reason);
    let gamma = peers(&model(), &Figures::default(), SystemTime::now()).peers.remove(1);
    assert!(gamma.reason.contains("does not hold"), "{}", gamma.reason);
}

#[test]
fn a_handshake_before_the_clock_was_set_back_is_new() {
    let now = SystemTime::now();
    let mut figures = figures();
    figures.wireguard[0].last_handshake = Some(now + Duration::from_secs(3600));
    let peer = peers(&model(), &figures, now).peers.remove(0);
    assert_eq!((peer.state.as_str(), peer.handshake_age_seconds), ("connected", Some(0)));
}

#[test]
fn peers_come_in_the_order_of_their_names() {
    let list = peers(&model(), &figures(), SystemTime::now());
    assert_eq!(list.peers.iter().map(|peer| peer.name.as_str()).collect::<Vec<_>>(), ["beta", "gamma"]);
}

#[test]
fn without_counters_a_sample_says_so() {
    let sample = sample(&model(), &Figures::default(), 5);
    assert_eq!((sample.at_ms, sample.peers.len(), sample.errors.len()), (5, 0, 1));
}

#[test]
fn json_of_an_older_agent_without_new_fields_is_read() {
    let status: proto::Status = serde_json::from_str("{\"schema\":1,\"node\":\"alpha\"}").expect("read");
    assert_eq!((status.schema, status.node.as_str(), status.problems.len()), (1, "alpha", 0));
}

#[test]
fn a_fallback_is_told_with_its_reason() {
    let wireguard =
        proto::WireguardStatus { fallback_reason: Some("no kernel module".to_owned()), ..Default::default() };
    let accounting = proto::AccountingStatus {
        hook: Some("clsact".to_owned()),
        fallback_reason: Some("Linux 6.1".to_owned()),
        ..Default::default()
    };
    let expected = ["wireguard: embedded device, no kernel module", "accounting: clsact, Linux 6.1"];
    assert_eq!(fallbacks(&wireguard, &accounting), expected);
}

#[test]
fn a_notice_names_its_part() {
    let net = net::status::Status { notices: vec!["a wider route".to_owned()], ..Default::default() };
    let firewall = net::status::FirewallStatus { notices: vec!["a foreign drop".to_owned()], ..Default::default() };
    assert_eq!(notices(&net, &firewall), ["network: a wider route", "firewall: a foreign drop"]);
}
