//! What goes through the tunnel arrives, whatever happens to the configuration meanwhile.

use std::net::UdpSocket;

use integration_tests::key;

use super::*;

const TWENTY_MEGABYTES: usize = 20_000_000;

#[test]
fn bytes_arrive_unchanged_in_both_directions_and_families() {
    if !may_run() {
        return;
    }
    let scenario = Scenario::new(2).unwrap();
    let (left, right) = pair(&scenario);
    reaches(left.host, tunnel_v4(1));
    reaches(right.host, tunnel_v6(0));
    transfer(left.host, right.host, tunnel_v4(1), TWENTY_MEGABYTES);
    transfer(right.host, left.host, tunnel_v6(0), TWENTY_MEGABYTES);
    assert!(left.device.is_alive() && right.device.is_alive());
}

#[test]
fn tunnel_over_ipv6_carries_ipv4() {
    if !may_run() {
        return;
    }
    let scenario = Scenario::new(2).unwrap();
    let (left, right) = pair(&scenario);
    let endpoint = format!("[{}]:{PORT}", Scenario::address6(1));
    left.peer(&right.keys.public, &["endpoint", &endpoint]);
    transfer(left.host, right.host, tunnel_v4(1), 2_000_000);
    let seen = right.show("endpoints", &left.keys.public);
    assert_eq!(seen, [format!("[{}]:{PORT}", Scenario::address6(0))]);
}

#[test]
fn without_ipv6_the_device_uses_ipv4() {
    if !may_run() {
        return;
    }
    let scenario = Scenario::new(2).unwrap();
    for host in scenario.hosts() {
        host.run(&["sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"]).unwrap();
    }
    let host = scenario.host(0);
    let link = link_name();
    let device = host.enter(|| Device::create(Options::new(&link))).unwrap().unwrap();
    assert!(device.is_alive());
    drop(device);
}

#[test]
fn packets_of_every_size_up_to_the_mtu_pass() {
    if !may_run() {
        return;
    }
    let scenario = Scenario::new(2).unwrap();
    let (left, right) = pair(&scenario);
    reaches(left.host, tunnel_v4(1));
    for mtu in [1280, 1420, 9000] {
        for node in [&left, &right] {
            node.host.run(&["ip", "link", "set", &node.link, "mtu", &mtu.to_string()]).unwrap();
        }
        for size in [0, 1, 15, 16, 17, 1000, mtu - 29, mtu - 28] {
            let size = size.to_string();
            left.host.run(&["ping", "-M", "do", "-c", "1", "-W", "5", "-s", &size, "10.99.0.2"]).unwrap();
        }
        transfer(left.host, right.host, tunnel_v6(1), 1_000_000);
    }
}

#[test]
fn padding_follows_the_mtu_of_the_link() {
    if !may_run() {
        return;
    }
    let scenario = Scenario::new(2).unwrap();
    let (left, right) = pair(&scenario);
    reaches(left.host, tunnel_v4(1));
    left.host.run(&["ip", "link", "set", &left.link, "mtu", "1300"]).unwrap();
    let key = &right.keys.public;
    // 28 bytes of headers: 1300 is not a multiple of 16, and padding must not go beyond it.
    let grown = |node: &Node<'_>| {
        let before = node.transfer(key).1;
        node.host.run(&["ping", "-c", "1", "-W", "5", "-s", "1270", "10.99.0.2"]).unwrap();
        node.transfer(key).1 - before
    };
    eventually(SOON, "a packet of 1298 bytes is padded to the MTU of 1300", || grown(&left) == 1300 + 32).unwrap();
}

#[test]
fn datagrams_keep_their_borders() {
    if !may_run() {
        return;
    }
    let scenario = Scenario::new(2).unwrap();
    let (left, right) = pair(&scenario);
    reaches(left.host, tunnel_v4(1));
    let receiver = right.host.enter(|| UdpSocket::bind((tunnel_v4(1), 0))).unwrap().unwrap();
    receiver.set_read_timeout(Some(SOON)).unwrap();
    let sender = left.host.enter(|| UdpSocket::bind((tunnel_v4(0), 0))).unwrap().unwrap();
    let target = receiver.local_addr().unwrap();
    for round in 0..50u8 {
        let sizes = [1200, 1200, 1200, 300, 1, 1300];
        for size in sizes {
            sender.send_to(&vec![round; size], target).unwrap();
        }
        let mut buffer = [0; 2000];
        for size in sizes {
            let length = receiver.recv(&mut buffer).unwrap();
            assert_eq!((length, buffer[0]), (size, round));
        }
    }
}

#[test]
fn preshared_key_changes_under_traffic() {
    if !may_run() {
        return;
    }
    let scenario = Scenario::new(2).unwrap();
    let (left, right) = pair(&scenario);
    reaches(left.host, tunnel_v4(1));
    let before = left.transfer(&right.keys.public);
    let handshake = left.handshake(&right.keys.public);
    std::thread::scope(|scope| {
        scope.spawn(|| transfer(left.host, right.host, tunnel_v4(1), TWENTY_MEGABYTES));
        for _ in 0..5 {
            let secret = key::preshared().unwrap();
            set_with_file(left.host, &left.link, "preshared-key", &secret, &["peer", &right.keys.public]);
            set_with_file(right.host, &right.link, "preshared-key", &secret, &["peer", &left.keys.public]);
        }
    });
    assert_eq!(left.handshake(&right.keys.public), handshake, "the session stays");
    assert!(left.transfer(&right.keys.public).1 > before.1 + 20_000_000, "counters go on");
}

#[test]
fn endpoint_follows_a_peer_that_moves() {
    if !may_run() {
        return;
    }
    let scenario = Scenario::new(2).unwrap();
    let (left, right) = pair(&scenario);
    reaches(left.host, tunnel_v4(1));
    right.host.run(&["ip", "address", "add", "192.0.2.77/24", "dev", "eth0"]).unwrap();
    right.host.run(&["ip", "address", "delete", "192.0.2.2/24", "dev", "eth0"]).unwrap();
    right.host.run(&["ip", "address", "add", "192.0.2.77/24", "dev", "eth0"]).ok();
    reaches(right.host, tunnel_v4(0));
    assert_eq!(left.show("endpoints", &right.keys.public), [format!("192.0.2.77:{PORT}")]);
    reaches(left.host, tunnel_v4(1));
}

#[test]
fn prefix_moves_between_peers_and_so_does_its_traffic() {
    if !may_run() {
        return;
    }
    let scenario = Scenario::new(3).unwrap();
    let (left, right) = pair(&scenario);
    let third = Node::new(&scenario, 2);
    left.meet(&third);
    third.meet(&left);
    let service: IpAddr = "10.99.0.200".parse().unwrap();
    for node in [&right, &third] {
        node.host.run(&["ip", "address", "add", "10.99.0.200/32", "dev", &node.link]).unwrap();
    }
    left.peer(&right.keys.public, &["allowed-ips", &format!("{},10.99.0.200", right.allowed_ips())]);
    reaches(left.host, service);
    let before = left.transfer(&third.keys.public);
    left.peer(&third.keys.public, &["allowed-ips", &format!("{},10.99.0.200", third.allowed_ips())]);
    assert!(!left.show("allowed-ips", &right.keys.public).contains(&"10.99.0.200/32".to_owned()));
    assert!(left.show("allowed-ips", &third.keys.public).contains(&"10.99.0.200/32".to_owned()));
    reaches(left.host, service);
    assert!(left.transfer(&third.keys.public).0 > before.0, "the third host answered");
    left.peer(&right.keys.public, &["remove"]);
    reaches(left.host, service);
}

#[test]
fn source_that_is_not_the_peers_is_dropped() {
    if !may_run() {
        return;
    }
    let scenario = Scenario::new(2).unwrap();
    let (left, right) = pair(&scenario);
    reaches(left.host, tunnel_v4(1));
    right.host.run(&["ip", "address", "add", "10.99.0.66/24", "dev", &right.link]).unwrap();
    let receiver = left.host.enter(|| UdpSocket::bind((tunnel_v4(0), 0))).unwrap().unwrap();
    receiver.set_read_timeout(Some(SOON)).unwrap();
    let target = receiver.local_addr().unwrap();
    for (source, text) in [("10.99.0.66", b"forged"), ("10.99.0.2", b"honest")] {
        let sender = right.host.enter(|| UdpSocket::bind((source, 0))).unwrap().unwrap();
        sender.send_to(text, target).unwrap();
    }
    let mut buffer = [0; 100];
    let (length, from) = receiver.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..length], from.ip()), (&b"honest"[..], tunnel_v4(1)));
}

#[test]
fn keepalive_opens_the_session_by_itself() {
    if !may_run() {
        return;
    }
    let scenario = Scenario::new(2).unwrap();
    let (left, right) = pair(&scenario);
    left.peer(&right.keys.public, &["persistent-keepalive", "25"]);
    eventually(SOON, "a handshake without traffic", || left.handshake(&right.keys.public) != 0).unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    for (node, key) in [(&left, &right.keys.public), (&right, &left.keys.public)] {
        eventually(SOON, "both sides know the time of the handshake", || now.abs_diff(node.handshake(key)) < 60)
            .unwrap();
    }
    // One handshake and one keepalive, as kernel WireGuard counts them.
    assert_eq!(left.transfer(&right.keys.public), (92, 148 + 32));
    assert_eq!(right.transfer(&left.keys.public), (148 + 32, 92));
}

#[test]
fn device_stops_and_moves_under_a_flood() {
    if !may_run() {
        return;
    }
    let scenario = Scenario::new(2).unwrap();
    let (left, right) = pair(&scenario);
    reaches(left.host, tunnel_v4(1));
    let ends = std::sync::atomic::AtomicBool::new(false);
    // Two floods: messages on the port of the right device, and packets into its own link.
    let outside = left.host.enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    let inside = right.host.enter(|| UdpSocket::bind((tunnel_v4(1), 0))).unwrap().unwrap();
    std::thread::scope(|scope| {
        let flood = |socket: UdpSocket, target: SocketAddr| {
            while !ends.load(Ordering::Relaxed) {
                socket.send_to(&[4; 100], target).ok();
            }
        };
        let under: IpAddr = Scenario::address(1).parse().unwrap();
        scope.spawn(move || flood(outside, SocketAddr::new(under, PORT)));
        scope.spawn(move || flood(inside, SocketAddr::new(tunnel_v4(0), 9)));
        // A failed assertion must end the floods too, for the scope waits for them.
        let ending = EndOnDrop(&ends);
        right.host.run(&["wg", "set", &right.link, "listen-port", "40001"]).unwrap();
        reaches(right.host, tunnel_v4(0));
        let started = std::time::Instant::now();
        drop(right.device);
        let took = started.elapsed();
        drop(ending);
        assert!(took < Duration::from_secs(2), "stopping took {took:?}");
    });
}

struct EndOnDrop<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
