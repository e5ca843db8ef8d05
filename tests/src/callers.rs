//! Who calls: recorded by the kernel, read from the accepted socket, judged; and addresses steered past another server.

mod attacks;
mod steering;
mod world;

use std::net::SocketAddr;
use std::time::Duration;

use integration_tests::gate;
use integration_tests::wait::eventually;
use weft_agent::ebpf::callers::status::Basis;

use world::World;

/// How many connections the churn makes, and by how many processes, eight at once.
const CHURN: usize = 100_000;
const PROCESSES: usize = 160;

#[test]
fn every_one_of_100_000_connections_under_churn_has_its_caller() {
    if !gate::root() {
        return;
    }
    World::run(|world| async move {
        let callers = world.start().await;
        // IPv4, IPv6, and IPv4 by an IPv6 socket at either end.
        let listen = ["127.0.3.3:0", "[::1]:0", "[::]:0", "127.0.0.1:0"];
        let servers: Vec<_> = listen.iter().map(|address| world.serve(&callers, address)).collect();
        let mut targets: Vec<SocketAddr> = servers.iter().map(|server| server.address).collect();
        targets[2].set_ip("127.0.0.1".parse().expect("an address"));
        let SocketAddr::V4(last) = targets[3] else { unreachable!("asked for IPv4") };
        targets[3] = SocketAddr::new(last.ip().to_ipv6_mapped().into(), last.port());
        let each = CHURN / PROCESSES;
        let spread: Vec<(SocketAddr, u32)> =
            (0..PROCESSES).map(|number| (targets[number % 4], [0, 1000, 1001, 65534][number / 4 % 4])).collect();
        let failed = world.blocking(move |world| {
            let mut failed = Vec::new();
            for eight in spread.chunks(8) {
                let running: Vec<_> = eight.iter().map(|(to, uid)| world.say(*to, each, *uid)).collect();
                failed.extend(running.into_iter().filter_map(|mut child| {
                    let status = child.wait_for_exit(Duration::from_secs(120)).expect("it ends");
                    (!status.success()).then(|| child.log())
                }));
            }
            failed
        });
        assert_eq!(failed.await, Vec::<String>::new());
        let mut seen = world::Seen::default();
        for server in servers {
            seen.add(&server.end());
        }
        assert_eq!(seen, world::Seen { right: (each * PROCESSES) as u64, unknown: 0, wrong: Vec::new() });
        let counts = world.metrics.scrape().await.expect("it formats");
        assert!(counts.contains("callers_kernel_total{event=\"unknown\"} 0"), "{counts}");
    });
}

#[test]
fn standing_follows_user_unit_and_program() {
    if !gate::root() {
        return;
    }
    World::run(|world| async move {
        let callers = world.start().await;
        let server = world.serve(&callers, "127.0.3.3:0");
        let to = server.address;
        let outcome = world.blocking(move |world| {
            let root = world.one(world.connector(to), &server);
            let user = world.one(world.as_user(to, 1000), &server);
            let proxy = world.one(world.named("nginx", to), &server);
            let unit = world.one(world.in_cgroup("system.slice/haproxy.service", to), &server);
            let supervised = world.one(world.in_supervised("web@0.1", to), &server);
            [root, user, proxy, unit, supervised]
        });
        let [root, user, proxy, unit, supervised] = outcome.await;
        assert!(root.verdict.is_internal && root.verdict.reason.contains("uid 0"), "{root:?}");
        assert!(!user.verdict.is_internal && user.verdict.reason.contains("uid 1000"), "{user:?}");
        assert!(!proxy.verdict.is_internal && proxy.verdict.reason.contains("nginx"), "{proxy:?}");
        assert!(!unit.verdict.is_internal && unit.verdict.reason.contains("haproxy.service"), "{unit:?}");
        assert_eq!(unit.verdict.unit.as_deref(), Some("haproxy.service"));
        assert!(supervised.verdict.is_internal, "{supervised:?}");
        assert_eq!(supervised.verdict.unit.as_deref(), Some("web"));
    });
}

#[test]
fn a_restart_adopts_what_runs_and_an_older_program_is_replaced_in_place() {
    if !gate::root() {
        return;
    }
    World::run(|world| async move {
        let first = world.start().await;
        assert!(!first.adopted(), "nothing was there");
        let (pins, links) = (world.pins(), world.links());
        drop(first);
        assert_eq!(world.pins(), pins, "a stop takes nothing away");
        let second = world.start().await;
        assert!(second.adopted());
        assert_eq!((world.pins(), world.links()), (pins.clone(), links.clone()), "nothing was loaded again");
        drop(second);
        world.age_pins();
        let third = world.start().await;
        assert!(!third.adopted());
        assert_eq!(world.pins(), pins, "under the new name, once");
        let newer = world.links();
        let (old_targets, new_targets): (Vec<_>, Vec<_>) =
            links.iter().zip(&newer).map(|(old, new)| (old.target, new.target)).unzip();
        assert_eq!(old_targets, new_targets);
        assert!(links.iter().zip(&newer).all(|(old, new)| old.program != new.program), "{links:?} {newer:?}");
        assert_eq!(third.status().borrow().basis, Basis::Storage);
        let server = world.serve(&third, "127.0.3.3:0");
        let to = server.address;
        let known = world.blocking(move |world| world.one(world.connector(to), &server)).await;
        assert!(known.verdict.is_internal, "{known:?}");
    });
}

#[test]
fn down_takes_links_and_maps_away() {
    if !gate::root() {
        return;
    }
    World::run(|world| async move {
        drop(world.start().await);
        let links = world.links().len();
        assert_eq!(links, 4);
        let removed = world.down();
        assert_eq!(removed, (4, 6));
        assert_eq!(world.pins(), Vec::<String>::new());
        assert_eq!(world.down(), (0, 0), "again is no error");
    });
}

#[test]
fn without_ebpf_the_owner_of_the_socket_is_asked_and_it_is_said() {
    if !gate::root() {
        return;
    }
    World::run(|mut world| async move {
        world.settings.config.enabled = false;
        let callers = world.start_any().await;
        let status = callers.status().borrow().clone();
        assert_eq!(status.basis, Basis::SockDiag);
        assert!(status.summary().contains("gateway.caller.enabled = false"), "{}", status.summary());
        let server = world.serve(&callers, "127.0.3.3:0");
        let to = server.address;
        let outcome = world.blocking(move |world| {
            let root = world.one(world.connector(to), &server);
            let user = world.one(world.as_user(to, 1000), &server);
            let proxy = world.one(world.named("nginx", to), &server);
            [root, user, proxy]
        });
        let [root, user, proxy] = outcome.await;
        assert!(root.verdict.is_internal, "{root:?}");
        assert!(!user.verdict.is_internal, "{user:?}");
        assert!(!proxy.verdict.is_internal && proxy.verdict.reason.contains("nginx"), "{proxy:?}");
    });
}

#[test]
fn an_address_is_recorded_only_while_somebody_wants_it() {
    if !gate::root() {
        return;
    }
    World::run(|world| async move {
        let callers = world.start().await;
        let server = world.serve(&callers, "127.0.3.3:0");
        let to = server.address;
        let also = callers.watch(to);
        let outcome = world.blocking(move |world| {
            let watched = world.one(world.connector(to), &server);
            server.unwatch();
            let still = world.one(world.connector(to), &server);
            drop(also);
            let mut unwatched = world.one(world.connector(to), &server);
            // The last of the records that were under way is gone at once; wait for it all the same.
            eventually(Duration::from_secs(5), "it is recorded no longer", || {
                unwatched = world.one(world.connector(to), &server);
                unwatched.record.is_none()
            })
            .expect("it ends");
            [watched, still, unwatched]
        });
        let [watched, still, unwatched] = outcome.await;
        assert!(watched.record.is_some() && still.record.is_some());
        assert!(unwatched.record.is_none() && !unwatched.verdict.is_internal);
    });
}
