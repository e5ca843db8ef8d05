//! With Debian's wireguard-go at the other end.

use integration_tests::key;
use integration_tests::process::Process;

use super::*;

#[test]
fn foreign_implementation_is_a_peer_like_any_other() {
    if !gate::root_and(&["ip", "nsenter", "ping", "wg", "wireguard-go"]) {
        return;
    }
    let scenario = Scenario::new(2).unwrap();
    let ours = Node::new(&scenario, 0);
    let (host, link, keys) = (scenario.host(1), link_name(), KeyPair::generate().unwrap());
    let mut command = host.command("wireguard-go");
    command.args(["-f", &link]);
    let mut process = Process::spawn("wireguard-go", command).unwrap();
    process.wait_for("wg answers", SOON, || host.run(&["wg", "show", &link]).is_ok()).unwrap();
    set_with_file(host, &link, "private-key", &keys.private, &["listen-port", "51820"]);
    bring_up(host, &link, 1);

    let endpoint = |number| format!("{}:{PORT}", Scenario::address(number));
    let both = |number| format!("{},{}", tunnel_v4(number), tunnel_v6(number));
    ours.peer(&keys.public, &["allowed-ips", &both(1), "endpoint", &endpoint(1)]);
    let theirs = ["wg", "set", &link, "peer", &ours.keys.public, "allowed-ips", &both(0), "endpoint", &endpoint(0)];
    host.run(&theirs).unwrap();
    reaches(ours.host, tunnel_v4(1));
    reaches(host, tunnel_v6(0));
    assert_eq!(counters(host, &link), swapped(counters(ours.host, &ours.link)), "both count the same bytes");
    transfer(ours.host, host, tunnel_v4(1), 10_000_000);
    transfer(host, ours.host, tunnel_v6(0), 10_000_000);

    let secret = key::preshared().unwrap();
    set_with_file(ours.host, &ours.link, "preshared-key", &secret, &["peer", &keys.public]);
    set_with_file(host, &link, "preshared-key", &secret, &["peer", &ours.keys.public]);
    reaches(ours.host, tunnel_v4(1));
    // A new key at their end forces the handshake that uses the preshared key.
    let next = KeyPair::generate().unwrap();
    set_with_file(host, &link, "private-key", &next.private, &[]);
    ours.peer(&keys.public, &["remove"]);
    ours.peer(&next.public, &["allowed-ips", &both(1), "endpoint", &endpoint(1)]);
    set_with_file(ours.host, &ours.link, "preshared-key", &secret, &["peer", &next.public]);
    reaches(ours.host, tunnel_v4(1));
    // It takes its control socket away only when it is asked to end.
    process.stop().unwrap();
}

/// Received and sent, once nothing is on its way any more.
fn counters(host: &NetNs, link: &str) -> (u64, u64) {
    let read = || host.run(&["wg", "show", link, "transfer"]).unwrap();
    let mut last = read();
    eventually(SOON, "the counters stand still", || {
        let now = read();
        std::mem::replace(&mut last, now.clone()) == now
    })
    .unwrap();
    let columns: Vec<u64> = last.split_whitespace().skip(1).map(|column| column.parse().unwrap()).collect();
    (columns[0], columns[1])
}

fn swapped((left, right): (u64, u64)) -> (u64, u64) {
    (right, left)
}
