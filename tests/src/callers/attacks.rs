//! Connections that look local and are not what they look like: each must be external, or known for what it is.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use integration_tests::gate;
use integration_tests::netns::{NetNs, veth};
use integration_tests::process::Process;
use nix::sys::socket::{Backlog, listen};
use weft_agent::ebpf::callers::Callers;

use super::world::World;

const PATIENCE: Duration = Duration::from_secs(20);
/// Outside the range of ports that connections get by themselves.
const PORT: u16 = 18_080;
/// Connections that one process begins at once; below the usual limit of open files.
const HELD: usize = 900;

fn inside(namespace: &NetNs, program: &std::path::Path, words: &[&str]) -> Command {
    let mut command = namespace.command(program);
    command.args(words);
    command
}

#[test]
fn another_namespace_with_the_same_addresses_and_ports_is_never_confused() {
    if !gate::root() {
        return;
    }
    World::run(|world| async move {
        let callers = world.start().await;
        let server = world.serve(&callers, &format!("127.0.0.1:{PORT}"));
        let to = server.address;
        let there = Arc::new(NetNs::new().expect("a namespace"));
        let other = there.enter(|| TcpListener::bind(to)).expect("entered").expect("free there");
        let seen = world.blocking(move |world| {
            let _sink = std::thread::spawn(move || {
                // Its callers read to the end, which is at once.
                for accepted in other.incoming().take(200) {
                    drop(accepted);
                }
            });
            for number in 0..200_u16 {
                let port = (30_000 + number).to_string();
                let words = ["from", &port, &to.to_string()];
                let theirs = Process::spawn("there", inside(&there, &world.program("connector"), &words));
                let mut own = Command::new(world.program("connector"));
                own.args(words);
                let identity = world.one(own, &server);
                assert!(identity.verdict.is_internal, "{identity:?}");
                // How it ends does not matter: the sink may have reset it.
                theirs.expect("it starts").wait_for_exit(PATIENCE).expect("it ends");
            }
            server.end()
        });
        let seen = seen.await;
        assert_eq!((seen.right, seen.unknown, seen.wrong), (200, 0, Vec::new()));
    });
}

#[test]
fn a_neighbour_on_a_link_is_external() {
    if !gate::root() {
        return;
    }
    World::run(|world| async move {
        let callers = world.start().await;
        let there = NetNs::new().expect("a namespace");
        veth((&world.here, "wa", &["10.94.0.1/24"]), (&there, "wb", &["10.94.0.2/24"])).expect("a pair of links");
        let server = world.serve(&callers, &format!("10.94.0.1:{PORT}"));
        let outcome = world.blocking(move |world| {
            let words = ["say", &server.address.to_string(), "1"];
            let neighbour = world.one(inside(&there, &world.program("connector"), &words), &server);
            let own = world.one(world.connector(server.address), &server);
            (neighbour, own)
        });
        let (neighbour, own) = outcome.await;
        assert!(neighbour.record.is_none() && !neighbour.verdict.is_internal, "{neighbour:?}");
        assert!(own.verdict.is_internal, "the host itself, at the same address: {own:?}");
    });
}

#[test]
fn a_packet_let_in_by_route_localnet_is_external() {
    if !gate::root_and(&["sysctl"]) {
        return;
    }
    World::run(|world| async move {
        let callers = world.start().await;
        let there = NetNs::new().expect("a namespace");
        veth((&world.here, "wa", &["10.94.0.1/24"]), (&there, "wb", &["10.94.0.2/24"])).expect("a pair of links");
        world.here.run(&["sysctl", "-qw", "net.ipv4.conf.wa.route_localnet=1"]).expect("set");
        there.run(&["sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1"]).expect("set");
        // There, the loopback network is no longer its own, but the neighbour's.
        there.run(&["ip", "address", "del", "127.0.0.1/8", "dev", "lo"]).expect("removed");
        there.run(&["ip", "route", "add", "127.0.3.3/32", "via", "10.94.0.1", "src", "10.94.0.2"]).expect("added");
        let server = world.serve(&callers, &format!("127.0.3.3:{PORT}"));
        let outcome = world.blocking(move |world| {
            let words = ["say", &server.address.to_string(), "1"];
            let attacker = world.one(inside(&there, &world.program("connector"), &words), &server);
            let own = world.one(world.connector(server.address), &server);
            (attacker, own)
        });
        let (attacker, own) = outcome.await;
        assert!(attacker.record.is_none() && !attacker.verdict.is_internal, "{attacker:?}");
        assert!(own.verdict.is_internal, "{own:?}");
    });
}

#[test]
fn helpers_of_containers_and_forwarders_are_external_even_as_root() {
    if !gate::root() {
        return;
    }
    World::run(|world| async move {
        let callers = world.start().await;
        let server = world.serve(&callers, "127.0.3.3:0");
        let programs = ["slirp4netns", "pasta.avx2", "rootlessport", "sshd", "sshd-session", "socat", "docker-proxy"];
        let outcome = world.blocking(move |world| {
            programs.map(|program| (program, world.one(world.named(program, server.address), &server)))
        });
        for (program, identity) in outcome.await {
            assert!(!identity.verdict.is_internal, "{program}: {identity:?}");
            assert!(identity.verdict.reason.starts_with(program), "{identity:?}");
            assert_eq!(identity.record.expect("known for what it is").uid, 0);
        }
    });
}

#[test]
fn a_container_in_the_hosts_network_is_external_even_as_root() {
    if !gate::root() {
        return;
    }
    World::run(|world| async move {
        let callers = world.start().await;
        let server = world.serve(&callers, "127.0.3.3:0");
        let outcome = world.blocking(move |world| {
            world.one(world.in_cgroup("system.slice/docker-0123456789ab.scope", server.address), &server)
        });
        let identity = outcome.await;
        assert!(!identity.verdict.is_internal && identity.verdict.reason.contains("docker-"), "{identity:?}");
    });
}

#[test]
fn a_request_through_a_local_nginx_is_external() {
    if !gate::root_and(&["nginx", "curl"]) {
        return;
    }
    World::run(|world| async move {
        let callers = world.start().await;
        let server = world.serve(&callers, "127.0.3.3:0");
        let configured = format!("location / {{ proxy_pass http://{}; }}", server.address);
        let outcome = world.blocking(move |world| {
            let _nginx = world.nginx(&format!("127.0.0.1:{PORT}"), &configured);
            let url = format!("http://127.0.0.1:{PORT}/");
            let mut through = Command::new("curl");
            through.args(["--silent", "--max-time", "20", &url]);
            // nginx answers 502, as the server here speaks no HTTP; who called is all that matters.
            let identity = world.one_of_any(through, &server);
            let mut direct = Command::new("curl");
            direct.args(["--silent", "--http0.9", "--max-time", "20", &format!("http://{}/", server.address)]);
            (identity, world.one_of_any(direct, &server))
        });
        let (through, direct) = outcome.await;
        assert!(!through.verdict.is_internal && through.verdict.reason.contains("nginx"), "{through:?}");
        assert!(direct.verdict.is_internal, "curl itself: {direct:?}");
    });
}

#[test]
fn under_map_pressure_a_caller_is_right_or_unknown_and_never_somebody_else() {
    if !gate::root() {
        return;
    }
    World::run(|mut world| async move {
        world.settings.config.max_pending = 64;
        let callers = world.start().await;
        let listener = TcpListener::bind("127.0.3.3:0").expect("free");
        let to: SocketAddr = listener.local_addr().expect("bound");
        let _watched = callers.watch(to);
        let outcome = world.blocking(move |world| {
            // Nobody accepts and hardly anybody may wait: what does not fit is asked again by its kernel a second later.
            listen(&listener, Backlog::new(4).expect("small")).expect("it listens");
            let mut holders = [1001, 1002, 1003].map(|uid| (world.hold(to, HELD, uid), uid));
            for (holder, _uid) in &mut holders {
                holder.wait_for_log("holding", PATIENCE).expect("all have begun");
            }
            listen(&listener, Backlog::new(4096).expect("large")).expect("it listens");
            let callers_are = holders.each_ref().map(|(holder, uid)| (holder.pid(), *uid));
            accept(&callers, &listener, HELD * callers_are.len(), &callers_are)
        });
        let (right, unknown) = outcome.await;
        assert!(unknown > 0, "64 entries are less than what waits: {right} right");
        assert!(right > 0, "who fits is known: {unknown} unknown");
    });
}

/// Accepts so many; how many are known for what they are, and how many unknown.
fn accept(callers: &Callers, listener: &TcpListener, count: usize, allowed: &[(u32, u32)]) -> (usize, usize) {
    let (mut right, mut unknown) = (0, 0);
    for _ in 0..count {
        let (stream, peer) = listener.accept().expect("somebody still waits");
        let identity = callers.of(stream.as_fd(), peer, stream.local_addr().expect("accepted"));
        assert!(!identity.verdict.is_internal, "{identity:?}");
        match identity.record {
            None => unknown += 1,
            Some(record) => {
                assert!(allowed.contains(&(record.pid.expect("recorded"), record.uid)), "{record:?}");
                right += 1;
            }
        }
    }
    (right, unknown)
}
