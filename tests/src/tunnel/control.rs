//! The control socket and the life of a device.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use weft_tunnel::CreateError;

use super::*;

/// 0x…01, 0x…02 and so on: valid as public keys, which any 32 bytes are.
fn public_key(number: usize) -> String {
    format!("{number:064x}")
}

fn socket_path(link: &str) -> PathBuf {
    Path::new("/var/run/wireguard").join(format!("{link}.sock"))
}

/// Sends one request and returns the whole answer.
fn ask(link: &str, request: &str) -> String {
    let mut stream = UnixStream::connect(socket_path(link)).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let mut chunk = [0; 65_536];
    while !answer.ends_with(b"\n\n") {
        let length = stream.read(&mut chunk).unwrap();
        assert_ne!(length, 0, "the answer ends with an empty line");
        answer.extend_from_slice(&chunk[..length]);
    }
    String::from_utf8(answer).unwrap()
}

fn device(scenario: &Scenario) -> (Device, String) {
    let link = link_name();
    let device = scenario.host(0).enter(|| Device::create(Options::new(&link))).unwrap().unwrap();
    (device, link)
}

#[test]
fn device_leaves_nothing_behind() {
    if !may_run() {
        return;
    }
    let scenario = Scenario::new(1).unwrap();
    let (device, link) = device(&scenario);
    let path = socket_path(&link);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_to_string(path.with_extension("name")).unwrap(), format!("{link}\n"));
    let started = Instant::now();
    drop(device);
    assert!(started.elapsed() < Duration::from_secs(2), "stopping took {:?}", started.elapsed());
    assert!(!path.exists() && !path.with_extension("name").exists());
    assert!(scenario.host(0).run(&["ip", "link", "show", &link]).is_err());
}

#[test]
fn kernel_of_this_machine_offers_every_offload() {
    if !may_run() {
        return;
    }
    let scenario = Scenario::new(1).unwrap();
    let (device, _) = device(&scenario);
    let features = device.features();
    assert!(features.tun_tcp_offload && features.udp_send_runs && features.udp_receive_runs, "{features:?}");
}

#[test]
fn deleted_interface_is_a_failure_that_wakes_its_watcher() {
    if !may_run() {
        return;
    }
    let scenario = Scenario::new(1).unwrap();
    let (device, link) = device(&scenario);
    scenario.host(0).run(&["ip", "link", "delete", &link]).unwrap();
    let mut events = [PollFd::new(device.failed_event(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut events, PollTimeout::from(20_000u16)), Ok(1));
    assert!(!device.is_alive());
}

#[test]
fn what_stands_in_the_way_is_named() {
    if !may_run() {
        return;
    }
    let scenario = Scenario::new(2).unwrap();
    let (first, link) = device(&scenario);
    let create = |host: usize, options: Options| scenario.host(host).enter(|| Device::create(options)).unwrap();
    let error = create(0, Options::new(&link)).unwrap_err();
    assert!(matches!(error, CreateError::NameTaken { .. }), "{error:?}");
    // The same name in another namespace: the link is free, the control socket is not.
    let error = create(1, Options::new(&link)).unwrap_err();
    assert!(matches!(error, CreateError::ControlSocketInUse { .. }), "{error:?}");
    assert!(ask(&link, "get=1\n\n").ends_with("errno=0\n\n"), "the first device still answers");
    let port = listen_port(&link);
    let error = create(0, Options { listen_port: port, ..Options::new(link_name()) }).unwrap_err();
    assert!(matches!(error, CreateError::PortInUse { .. }), "{error:?}");
    let error = create(0, Options::new("eth0")).unwrap_err();
    assert!(matches!(error, CreateError::NameTaken { .. }), "{error:?}");
    drop(first);
}

#[test]
fn socket_that_nobody_answers_is_replaced() {
    if !may_run() {
        return;
    }
    let scenario = Scenario::new(1).unwrap();
    let link = link_name();
    fs::create_dir_all("/var/run/wireguard").unwrap();
    // Not a listener: a child that another test is starting right now would keep that one answering.
    drop(std::os::unix::net::UnixDatagram::bind(socket_path(&link)).unwrap());
    assert!(socket_path(&link).exists(), "a dead socket is left");
    let device = scenario.host(0).enter(|| Device::create(Options::new(&link))).unwrap().unwrap();
    assert!(ask(&link, "get=1\n\n").ends_with("errno=0\n\n"));
    drop(device);
}

fn listen_port(link: &str) -> u16 {
    let answer = ask(link, "get=1\n\n");
    let line = answer.lines().find_map(|line| line.strip_prefix("listen_port=")).unwrap();
    line.parse().unwrap()
}

#[test]
fn port_in_use_is_refused_and_nothing_changes() {
    if !may_run() {
        return;
    }
    let scenario = Scenario::new(2).unwrap();
    let (left, right) = pair(&scenario);
    reaches(left.host, tunnel_v4(1));
    let taken = left.host.enter(|| std::net::UdpSocket::bind("0.0.0.0:40000")).unwrap().unwrap();
    let request = format!("set=1\nlisten_port=40000\nreplace_peers=true\npublic_key={}\n\n", public_key(1));
    assert_eq!(ask(&left.link, &request), "errno=98\n\n");
    assert_eq!(listen_port(&left.link), PORT);
    reaches(left.host, tunnel_v4(1));
    drop(taken);
    assert_eq!(ask(&left.link, "set=1\nlisten_port=40000\n\n"), "errno=0\n\n");
    assert_eq!(listen_port(&left.link), 40000);
    reaches(left.host, tunnel_v4(1));
    assert_eq!(right.show("endpoints", &left.keys.public), [format!("{}:40000", Scenario::address(0))]);
    reaches(right.host, tunnel_v4(0));
}

#[test]
fn mark_is_set_on_the_live_socket() {
    if !may_run() {
        return;
    }
    let scenario = Scenario::new(2).unwrap();
    let (left, right) = pair(&scenario);
    reaches(left.host, tunnel_v4(1));
    left.host.run(&["wg", "set", &left.link, "fwmark", "0x51"]).unwrap();
    assert_eq!(left.host.run(&["wg", "show", &left.link, "fwmark"]).unwrap().trim(), "0x51");
    // Marked packets have no route: the tunnel falls silent, which shows that the mark is on them.
    left.host.run(&["ip", "rule", "add", "fwmark", "0x51", "blackhole"]).unwrap();
    assert!(left.host.run(&["ping", "-c", "1", "-W", "1", "10.99.0.2"]).is_err());
    left.host.run(&["wg", "set", &left.link, "fwmark", "0"]).unwrap();
    reaches(left.host, tunnel_v4(1));
    drop(right);
}

#[test]
fn peers_may_come_before_the_key() {
    if !may_run() {
        return;
    }
    let scenario = Scenario::new(2).unwrap();
    let right = Node::new(&scenario, 1);
    let (host, link, keys) = (scenario.host(0), link_name(), KeyPair::generate().unwrap());
    let device = host.enter(|| Device::create(Options { listen_port: PORT, ..Options::new(&link) })).unwrap().unwrap();
    let left = Node { host, number: 0, link, keys, device };
    left.meet(&right);
    right.meet(&left);
    bring_up(host, &left.link, 0);
    assert!(host.run(&["ping", "-c", "1", "-W", "1", "10.99.0.2"]).is_err(), "without a key nothing is sent");
    left.set_private_key(&left.keys.private);
    reaches(host, tunnel_v4(1));
}

#[test]
fn key_rotates_and_peers_stay() {
    if !may_run() {
        return;
    }
    let scenario = Scenario::new(2).unwrap();
    let (left, mut right) = pair(&scenario);
    reaches(left.host, tunnel_v4(1));
    let old = std::mem::replace(&mut right.keys, KeyPair::generate().unwrap());
    let before = right.transfer(&left.keys.public);
    right.set_private_key(&right.keys.private);
    left.peer(&old.public, &["remove"]);
    left.meet(&right);
    reaches(right.host, tunnel_v4(0));
    assert!(right.transfer(&left.keys.public) > before, "counters go on");
    assert_eq!(left.host.run(&["wg", "show", &left.link, "peers"]).unwrap().trim(), right.keys.public);
}

#[test]
fn updating_a_peer_keeps_its_session_and_counters() {
    if !may_run() {
        return;
    }
    let scenario = Scenario::new(2).unwrap();
    let (left, right) = pair(&scenario);
    reaches(left.host, tunnel_v4(1));
    let key = &right.keys.public;
    let (before, handshake) = (left.transfer(key), left.handshake(key));
    left.peer(key, &["persistent-keepalive", "25", "allowed-ips", "10.99.0.0/24"]);
    left.meet(&right);
    reaches(left.host, tunnel_v4(1));
    assert_eq!(left.handshake(key), handshake);
    assert!(left.transfer(key).0 >= before.0 && left.transfer(key).1 > before.1);
}

#[test]
fn ten_thousand_peers_are_set_and_listed_at_once() {
    if !may_run() {
        return;
    }
    let scenario = Scenario::new(1).unwrap();
    let (_device, link) = device(&scenario);
    let mut request = format!("set=1\nprivate_key={}\nreplace_peers=true\n", public_key(7));
    for number in 1..=10_000 {
        let (high, low) = (number / 256, number % 256);
        let key = public_key(number + 100_000);
        request.push_str(&format!("public_key={key}\nendpoint=192.0.2.9:7\nallowed_ip=10.{high}.{low}.0/24\n"));
        request.push_str(&format!("allowed_ip=fd00:{number:x}::/32\n"));
    }
    request.push('\n');
    let started = Instant::now();
    assert_eq!(ask(&link, &request), "errno=0\n\n");
    let answer = ask(&link, "get=1\n\n");
    let replaced = ask(&link, &request);
    let took = started.elapsed();
    assert_eq!(answer.matches("public_key=").count(), 10_000);
    assert_eq!(answer.matches("allowed_ip=").count(), 20_000);
    assert_eq!(replaced, "errno=0\n\n");
    // A quadratic step would take minutes.
    assert!(took < Duration::from_secs(10), "it took {took:?}");
    let one = format!("set=1\npublic_key={}\nremove=true\n\n", public_key(100_001));
    assert_eq!(ask(&link, &one), "errno=0\n\n");
    assert_eq!(ask(&link, "get=1\n\n").matches("public_key=").count(), 9_999);
}

#[test]
fn clients_that_misbehave_hurt_nobody() {
    if !may_run() {
        return;
    }
    let scenario = Scenario::new(1).unwrap();
    let (device, link) = device(&scenario);
    let mut slow = UnixStream::connect(socket_path(&link)).unwrap();
    slow.write_all(b"set=1\nlisten_port=").unwrap();
    for request in ["\n\n", "get=2\n\n", "set=1\nprivate_key=zz\n\n", "set=1\nno_such_key=1\n\n", "\u{0}\u{ff}\n\n"] {
        let answer = ask(&link, request);
        assert!(answer == "errno=22\n\n", "{request:?} got {answer:?}");
    }
    let mut garbage = UnixStream::connect(socket_path(&link)).unwrap();
    garbage.write_all(&[0xff, 0xfe, b'\n', b'\n']).unwrap();
    let mut answer = String::new();
    garbage.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "errno=22\n\n");
    assert!(ask(&link, "get=1\n\n").ends_with("errno=0\n\n"));
    assert!(device.is_alive());
    drop(device);
    let mut rest = Vec::new();
    assert_eq!(slow.read_to_end(&mut rest).unwrap_or(0), 0, "stopping closes it");
}
