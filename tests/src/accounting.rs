//! The accounting against a real kernel: a veth pair stands for the tunnel, so 14 bytes of Ethernet come before IP.
//!
//! Figures are compared to the byte. Neighbours are entered by hand, so that peers exchange only what the test sends.

#[path = "accounting/world.rs"]
mod world;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use integration_tests::gate;
use integration_tests::wait::eventually_some;
use weft_agent::ebpf::config::AttachChoice;
use weft_agent::ebpf::status::Hook;
use weft_agent::ebpf::{self};
use weft_agent::sys::bpf::{Side, tcx_programs};
use weft_ebpf_common::table::{SLOTS, bucket_of};

use world::{ByName as _, World, peer};

/// Bytes of an IPv4 and an IPv6 header, of UDP's and of ICMP's.
const V4: u64 = 20;
const V6: u64 = 40;
const UDP: u64 = 8;

fn both_hooks(check: impl Fn(AttachChoice)) {
    if !gate::root_and(&["ip", "tc", "ping", "nsenter"]) {
        return;
    }
    check(AttachChoice::Tcx);
    check(AttachChoice::Clsact);
}

#[test]
fn every_byte_of_both_families_counts_for_its_peer() {
    both_hooks(|attach| {
        World::run(attach, |world| async move {
            let running = world.start(vec![peer("beta", 1, &["10.91.0.2/32", "fd91::2/128"])]).await;
            assert!(running.status().errors.is_empty(), "{:?}", running.status());
            world.send("10.91.0.2", 10, 100);
            world.send("fd91::2", 7, 300);
            world.ping("10.91.0.2", 3, 56);
            let beta = running.figures().await.peers.remove(0);
            assert_eq!(beta.tx.udp_bytes, 10 * (100 + UDP + V4) + 7 * (300 + UDP + V6));
            assert_eq!(beta.tx.icmp_bytes, 3 * (56 + 8 + V4));
            assert_eq!(beta.tx.bytes, beta.tx.udp_bytes + beta.tx.icmp_bytes);
            assert_eq!(beta.tx.packets, 10 + 7 + 3);
            assert_eq!((beta.rx.icmp_bytes, beta.rx.packets), (3 * (56 + 8 + V4), 3));
        });
    });
}

#[test]
fn networks_are_asked_only_for_unknown_addresses() {
    both_hooks(|attach| {
        World::run(attach, |world| async move {
            let routed = peer("routed", 1, &["10.92.0.0/16", "fd92::/32"]);
            let exact = peer("exact", 2, &["10.92.3.5/32", "fd92::5/128"]);
            let running = world.start(vec![routed, exact]).await;
            world.send("10.92.3.4", 2, 100);
            world.send("10.92.3.5", 3, 100);
            world.send("fd92::4", 4, 100);
            world.send("fd92::5", 5, 100);
            let figures = running.figures().await;
            assert_eq!(figures.of("routed").tx.bytes, 2 * (100 + UDP + V4) + 4 * (100 + UDP + V6));
            assert_eq!(figures.of("exact").tx.bytes, 3 * (100 + UDP + V4) + 5 * (100 + UDP + V6));
        });
    });
}

#[test]
fn more_addresses_than_a_bucket_takes_count_each_for_its_own() {
    both_hooks(|attach| {
        World::run(attach, |world| async move {
            let crowd = of_one_bucket(SLOTS + 3);
            crowd.iter().for_each(|address| world.reach(*address));
            let owner = |name: &str, key: u8, addresses: &[Ipv4Addr]| {
                let texts: Vec<String> = addresses.iter().map(|address| format!("{address}/32")).collect();
                peer(name, key, &texts.iter().map(String::as_str).collect::<Vec<_>>())
            };
            let two_peers =
                |first: &[Ipv4Addr], second: &[Ipv4Addr]| vec![owner("first", 1, first), owner("second", 2, second)];
            let send_to_all = || crowd.iter().for_each(|address| world.send(&address.to_string(), 1, 100));
            let (early, late) = crowd.split_at(4);
            let running = world.start(two_peers(early, late)).await;
            send_to_all();
            let figures = running.figures().await;
            assert_eq!((figures.of("first").tx.packets, figures.of("second").tx.packets), (4, 7));
            // Slots get free, and what stood in the hash moves or stays: everybody is still found once.
            running.replace_peers(two_peers(&early[2..], &late[..5])).await;
            running.replace_peers(two_peers(&late[..2], &[early, &late[2..]].concat())).await;
            send_to_all();
            let figures = running.figures().await;
            assert_eq!((figures.of("first").tx.packets, figures.of("second").tx.packets), (4 + 2, 7 + 9));
            drop(running);
            let again = world.start(two_peers(&late[..2], &[early, &late[2..]].concat())).await;
            assert_eq!(again.status().prefixes, crowd.len());
            send_to_all();
            let figures = again.figures().await;
            assert_eq!((figures.of("first").tx.packets, figures.of("second").tx.packets), (4 + 4, 7 + 18));
            assert_eq!(figures.unattributed_tx.udp_bytes, 0);
        });
    });
}

/// Addresses that all belong into one bucket of the table.
fn of_one_bucket(count: usize) -> Vec<Ipv4Addr> {
    let mut buckets = BTreeMap::<u32, Vec<Ipv4Addr>>::new();
    for number in 0x100..0xff00_u32 {
        let address = Ipv4Addr::from(0x0a5c_0000 + number);
        buckets.entry(bucket_of(u32::from_ne_bytes(address.octets()))).or_default().push(address);
    }
    let mut full = buckets.into_values().find(|addresses| addresses.len() >= count).expect("16 a bucket on average");
    full.truncate(count);
    full
}

#[test]
fn addresses_of_nobody_are_unattributed_and_removed_peers_are_retired() {
    both_hooks(|attach| {
        World::run(attach, |world| async move {
            let running = world.start(vec![peer("beta", 1, &["10.91.0.2/32"])]).await;
            world.send("10.91.0.2", 10, 100);
            running.replace_peers(vec![]).await;
            let before = running.figures().await;
            assert_eq!(before.retired_tx.bytes, 10 * (100 + UDP + V4));
            world.send("10.91.0.2", 4, 100);
            let after = running.figures().await;
            let unattributed = after.unattributed_tx.udp_bytes - before.unattributed_tx.udp_bytes;
            assert_eq!(unattributed, 4 * (100 + UDP + V4));
            // The same key counts on where it stopped, under whatever name.
            running.replace_peers(vec![peer("beta-again", 1, &["10.91.0.2/32"])]).await;
            world.send("10.91.0.2", 1, 100);
            assert_eq!(running.figures().await.of("beta-again").tx.bytes, 11 * (100 + UDP + V4));
        });
    });
}

#[test]
fn segments_of_large_packets_are_counted_apart() {
    both_hooks(|attach| {
        World::run(attach, |world| async move {
            let running = world.start(vec![peer("beta", 1, &["10.91.0.2/32"])]).await;
            world.send_in_segments("10.91.0.2", 10, 1000);
            let udp = running.figures().await.of("beta").tx;
            assert_eq!((udp.packets, udp.udp_bytes), (10, 10 * (1000 + UDP + V4)));
            let sent = world.stream("10.91.0.2", 8 << 20);
            let tcp = running.figures().await.of("beta").tx;
            let (packets, headers) = (tcp.packets - udp.packets, tcp.tcp_bytes - sent.payload);
            // The end of the connection comes after the figures of TCP were read.
            assert!((sent.segments..=sent.segments + 4).contains(&packets), "{tcp:?} {sent:?}");
            // Each segment repeats 20 bytes of IPv4 and 32 of TCP with time stamps; a SYN has 8 more.
            assert!((packets * 52..=packets * 52 + 16).contains(&headers), "{tcp:?} {sent:?}");
        });
    });
}

#[test]
fn a_restart_changes_nothing_and_counts_on() {
    both_hooks(|attach| {
        World::run(attach, |world| async move {
            let peers = || vec![peer("beta", 1, &["10.91.0.2/32"])];
            let first = world.start(peers()).await;
            world.send("10.91.0.2", 1, 100);
            let (programs, pins) = (world.programs(), world.pins());
            drop(first);
            world.send("10.91.0.2", 1, 100);
            let second = world.start(peers()).await;
            assert_eq!((world.programs(), world.pins()), (programs, pins));
            assert_eq!(second.figures().await.of("beta").tx.packets, 2);
        });
    });
}

#[test]
fn another_object_replaces_the_program_without_a_gap_or_a_double() {
    both_hooks(|attach| {
        World::run(attach, |mut world| async move {
            let peers = || vec![peer("beta", 1, &["10.91.0.2/32"])];
            let first = world.start(peers()).await;
            world.send("10.91.0.2", 1, 100);
            let before = world.programs();
            drop(first);
            world.use_other_object();
            let second = world.start(peers()).await;
            let after = world.programs();
            assert_ne!(before, after, "the program was replaced");
            assert_eq!((after.0.len(), after.1.len()), (1, 1), "one program a side");
            world.send("10.91.0.2", 1, 100);
            assert_eq!(second.figures().await.of("beta").tx.packets, 2);
        });
    });
}

#[test]
fn a_change_of_hook_never_counts_twice() {
    if !gate::root_and(&["ip", "tc", "ping", "nsenter"]) {
        return;
    }
    World::run(AttachChoice::Tcx, |mut world| async move {
        let mut expected = 0;
        for attach in [AttachChoice::Tcx, AttachChoice::Clsact, AttachChoice::Clsact, AttachChoice::Auto] {
            world.settings.config.attach = attach;
            let running = world.start(vec![peer("beta", 1, &["10.91.0.2/32"])]).await;
            let hook = running.status().hook;
            assert_eq!(hook, Some(if attach == AttachChoice::Clsact { Hook::Clsact } else { Hook::Tcx }));
            world.send("10.91.0.2", 5, 100);
            expected += 5;
            assert_eq!(running.figures().await.of("beta").tx.packets, expected, "{attach:?}");
            let (ingress, egress) = world.programs();
            assert_eq!((ingress.len(), egress.len()), (1, 1), "{attach:?}");
        }
    });
}

#[test]
fn a_link_made_anew_is_counted_again() {
    both_hooks(|attach| {
        World::run(attach, |world| async move {
            let running = world.start(vec![peer("beta", 1, &["10.91.0.2/32"])]).await;
            world.send("10.91.0.2", 3, 100);
            world.remake_link();
            running.announce_link(world.link()).await;
            world.send("10.91.0.2", 4, 100);
            assert!(running.status().errors.is_empty(), "{:?}", running.status());
            assert_eq!(running.figures().await.of("beta").tx.packets, 7);
        });
    });
}

#[test]
fn down_takes_ours_away_and_leaves_the_rest() {
    both_hooks(|attach| {
        World::run(attach, |world| async move {
            world.add_foreign_filter(10);
            let running = world.start(vec![peer("beta", 1, &["10.91.0.2/32"])]).await;
            drop(running);
            let removed = ebpf::down(&world.settings).expect("it is all ours");
            assert_eq!((removed.hooks, removed.maps), (2, 8));
            assert_eq!(world.programs(), (vec![], vec![]));
            assert!(world.pins().is_empty());
            assert_eq!(world.filters(), 1, "somebody else's filter stays");
            let again = ebpf::down(&world.settings).expect("nothing to do");
            assert_eq!((again.hooks, again.maps), (0, 0));
        });
    });
}

#[test]
fn a_foreign_filter_in_our_place_is_named_and_kept() {
    if !gate::root_and(&["ip", "tc", "ping", "nsenter"]) {
        return;
    }
    World::run(AttachChoice::Clsact, |world| async move {
        world.add_foreign_filter(50);
        let running = world.start(vec![]).await;
        let status = running.status();
        assert_eq!(status.hook, None);
        assert!(status.errors.iter().any(|error| error.contains("foreign filter")), "{status:?}");
        drop(running);
        ebpf::down(&world.settings).expect("removed");
        assert_eq!(world.filters(), 1);
    });
}

#[test]
fn without_a_bpf_file_system_the_status_names_the_fix() {
    if !gate::root_and(&["ip", "tc", "ping", "nsenter"]) {
        return;
    }
    World::run(AttachChoice::Auto, |mut world| async move {
        let elsewhere = tempfile::tempdir().expect("a temporary directory");
        world.settings.pin_root = elsewhere.path().join("weft");
        let running = world.start_any(vec![]).await;
        let status = running.status();
        assert_eq!(status.hook, None);
        assert!(status.errors[0].contains("mount -t bpf bpf /sys/fs/bpf"), "{status:?}");
        assert!(!world.settings.pin_root.exists());
    });
}

/// Collects what the programs log.
struct Collected(Mutex<Vec<String>>);

static COLLECTED: Collected = Collected(Mutex::new(Vec::new()));

impl log::Log for Collected {
    fn enabled(&self, _metadata: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if record.target().starts_with("accounting") {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

#[test]
fn short_packets_count_as_unattributed_and_reach_the_log() {
    if !gate::root_and(&["ip", "tc", "ping", "nsenter"]) {
        return;
    }
    log::set_logger(&COLLECTED).expect("no other test installs a logger");
    log::set_max_level(log::LevelFilter::Trace);
    World::run(AttachChoice::Clsact, |mut world| async move {
        // The kernel refuses to test with a packet that is too short, so IP begins later than it does.
        world.settings.l2_length = 40;
        let running = world.start(vec![]).await;
        let before = running.figures().await.unattributed_rx;
        let pin: PathBuf = world.pin_starting_with("clsact-ingress-");
        let program = SchedClassifier::from_pin(pin).expect("the program is pinned");
        // Ethernet with the type of IPv4, and ten bytes where its header should be.
        let mut frame = [0_u8; 50];
        frame[12] = 0x08;
        for _ in 0..4 {
            let options = TestRunOptions { data_in: Some(&frame), repeat: 1, ..TestRunOptions::default() };
            let verdict = program.test_run(options).expect("the kernel runs it").return_value.cast_signed();
            assert_eq!(verdict, -1, "the next program is always asked");
        }
        let after = running.figures().await.unattributed_rx;
        assert_eq!((after.packets - before.packets, after.other_bytes - before.other_bytes), (4, 40));
        let lines = world.blocking(|| {
            eventually_some(Duration::from_secs(5), "three log lines", || {
                let lines = COLLECTED.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
                (lines.len() >= 3).then_some(lines)
            })
        });
        let lines = lines.await.expect("the first, second and fourth are logged");
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(lines[0].contains("ends inside its IP header; 1 such"), "{lines:?}");
    });
}

#[test]
fn the_kernel_tells_that_a_link_has_no_programs() {
    if !gate::root_and(&["ip", "tc", "ping", "nsenter"]) {
        return;
    }
    World::run(AttachChoice::Auto, |world| async move {
        assert_eq!(tcx_programs(world.link().index, Side::Egress).expect("answered"), Some(vec![]));
    });
}
