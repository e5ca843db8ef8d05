//! Our nftables table against the real packet filter.

use std::net::{TcpListener, TcpStream};
use std::process::Command;

use integration_tests::gate;
use integration_tests::netns::{NetNs, veth};
use integration_tests::process::Process;
use integration_tests::wait::eventually;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::TcpMaxSeg;
use weft_agent::net::config::FirewallConfig;

use super::COMES_BACK;
use super::host::{Firewall, SETTLED, firewall_down};

const FOREIGN: &str = "table inet docker {
	chain forward {
		type filter hook forward priority filter; policy drop;
		iifname \"docker0\" accept
	}
}
";

const OURS: &str = "table inet weft_blue_1 {
	chain input {
		type filter hook input priority filter; policy accept;
		udp dport 51820 accept
	}

	chain forward {
		type filter hook forward priority filter; policy accept;
		iifname \"weft0\" accept
		oifname \"weft0\" accept
	}

	chain clamp {
		type filter hook forward priority mangle; policy accept;
		iifname \"weft0\" tcp flags syn / syn,rst tcp option maxseg size set rt mtu
		oifname \"weft0\" tcp flags syn / syn,rst tcp option maxseg size set rt mtu
	}

	chain masquerade {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr 10.80.0.0/24 oifname != \"weft0\" oifname != \"lo\" masquerade
		ip6 saddr fd80::1 oifname != \"weft0\" oifname != \"lo\" masquerade
		meta nfproto ipv6 oifname != \"weft0\" oifname != \"lo\" masquerade
	}
}
";

fn may_run() -> bool {
    gate::root_and(&["ip", "nsenter", "nft"])
}

fn everything() -> FirewallConfig {
    let masquerade = ["10.80.0.0/24", "fd80::1/128", "::/0"].map(|text| text.parse().expect("a network"));
    FirewallConfig { open_port: true, forward: true, masquerade: masquerade.to_vec() }
}

fn nft(namespace: &NetNs, words: &[&str]) -> String {
    namespace.run(&[&["nft"], words].concat()).expect("nft succeeds")
}

/// A namespace with a table of another program.
fn namespace() -> NetNs {
    let namespace = NetNs::new().expect("a namespace");
    nft(&namespace, &[FOREIGN]);
    namespace
}

#[test]
fn the_table_holds_exactly_what_is_asked_and_others_are_untouched() {
    if !may_run() {
        return;
    }
    let namespace = namespace();
    let before = nft(&namespace, &["-a", "list", "table", "inet", "docker"]);
    let firewall = Firewall::start(&namespace, everything());
    let status = firewall.until(|status| status.table.is_some());
    assert_eq!((status.table.as_deref(), status.rules), (Some("inet weft_blue_1"), 8));
    assert_eq!(nft(&namespace, &["list", "table", "inet", "weft_blue_1"]), OURS);
    assert_eq!(nft(&namespace, &["-a", "list", "table", "inet", "docker"]), before);
    assert!(status.notices.iter().any(|notice| notice.contains("chain forward of table inet docker")), "{status:?}");
    assert!(status.errors.iter().any(|error| error.contains("net.ipv4.ip_forward")), "{status:?}");
    namespace.run(&["sysctl", "-qw", "net.ipv4.ip_forward=1"]).expect("sysctl succeeds");
    firewall.pass();
    firewall.until(|status| status.errors.is_empty());
}

#[test]
fn an_unchanged_table_is_not_written_by_this_agent_nor_the_next() {
    if !may_run() {
        return;
    }
    let namespace = namespace();
    let firewall = Firewall::start(&namespace, everything());
    firewall.until(|status| status.table.is_some());
    // Handles count every object ever made.
    let listing = nft(&namespace, &["-a", "list", "ruleset"]);
    firewall.pass();
    firewall.pass();
    assert_eq!(firewall.metric("weft_firewall_changes_total"), 1);
    drop(firewall);
    let next = Firewall::start(&namespace, everything());
    next.until(|status| status.table.is_some());
    assert_eq!(next.metric("weft_firewall_changes_total"), 0);
    assert_eq!(nft(&namespace, &["-a", "list", "ruleset"]), listing);
}

#[test]
fn a_table_that_somebody_altered_is_made_right() {
    if !may_run() {
        return;
    }
    let namespace = namespace();
    let firewall = Firewall::start(&namespace, everything());
    firewall.until(|status| status.table.is_some());
    let alterations: [&[&str]; 5] = [
        &["flush", "chain", "inet", "weft_blue_1", "input"],
        &["insert", "rule", "inet", "weft_blue_1", "forward", "drop"],
        &["add", "chain", "inet", "weft_blue_1", "extra"],
        &["add", "set", "inet", "weft_blue_1", "extra", "{ type ipv4_addr; }"],
        &["delete", "table", "inet", "weft_blue_1"],
    ];
    for (done, alteration) in alterations.into_iter().enumerate() {
        nft(&namespace, alteration);
        eventually(COMES_BACK, &format!("{alteration:?} is undone"), || {
            firewall.metric("weft_firewall_changes_total") == 2 + done as u64
        })
        .expect("the reconciler reacts");
        assert_eq!(nft(&namespace, &["list", "table", "inet", "weft_blue_1"]), OURS, "after {alteration:?}");
    }
}

#[test]
fn changes_of_other_tables_do_not_wake_the_reconciler() {
    if !may_run() {
        return;
    }
    let namespace = namespace();
    let firewall = Firewall::start(&namespace, everything());
    firewall.until(|status| status.table.is_some() && status.applied_steps == 0);
    let before = firewall.metric("weft_firewall_passes_total");
    for _ in 0..5 {
        nft(&namespace, &["add", "rule", "inet", "docker", "forward", "accept"]);
    }
    // The events are read in order: when the effect of the last one is seen, all others have been read.
    nft(&namespace, &["flush", "chain", "inet", "weft_blue_1", "input"]);
    eventually(COMES_BACK, "the chain is back", || firewall.metric("weft_firewall_changes_total") == 2).expect("it is");
    let passes = firewall.metric("weft_firewall_passes_total") - before;
    assert!(passes <= 2, "{passes} passes for one change of ours");
}

#[test]
fn a_change_is_one_transaction() {
    if !may_run() {
        return;
    }
    let namespace = namespace();
    let firewall = Firewall::start(&namespace, everything());
    firewall.until(|status| status.rules == 8);
    let mut monitor = Process::spawn("nft monitor", monitor(&namespace)).expect("nft is there");
    // It says nothing when it is ready: tables are made until it has seen one.
    let mut number = 0;
    eventually(SETTLED, "nft monitor starts", || {
        number += 1;
        nft(&namespace, &["add", "table", "inet", &format!("marker{number}")]);
        monitor.log().contains("add table inet marker")
    })
    .expect("it does");
    firewall.ask(FirewallConfig { open_port: false, ..everything() });
    firewall.until(|status| status.rules == 7);
    nft(&namespace, &["add", "table", "inet", "last"]);
    monitor.wait_for_log("add table inet last", SETTLED).expect("the marker is announced");
    let log = monitor.log();
    // Each transaction ends with a line about the new generation.
    let ours = log.split("# new generation").filter(|transaction| transaction.contains("weft_blue_1")).count();
    assert_eq!(ours, 1, "{log}");
    let listing = nft(&namespace, &["list", "table", "inet", "weft_blue_1"]);
    assert!(!listing.contains("dport") && listing.contains("masquerade"), "{listing}");
}

fn monitor(namespace: &NetNs) -> Command {
    let mut command = namespace.command("nft");
    command.arg("monitor");
    command
}

#[test]
fn asking_for_nothing_removes_the_table_even_one_that_was_left_over() {
    if !may_run() {
        return;
    }
    let namespace = namespace();
    let firewall = Firewall::start(&namespace, everything());
    firewall.until(|status| status.table.is_some());
    drop(firewall);
    let _firewall = Firewall::start(&namespace, FirewallConfig::default());
    let gone = eventually(SETTLED, "the table goes", || nft(&namespace, &["list", "ruleset"]) == FOREIGN);
    gone.expect("only what is foreign is left");
}

#[test]
fn down_removes_exactly_our_table() {
    if !may_run() {
        return;
    }
    let namespace = namespace();
    assert!(!firewall_down(&namespace));
    let firewall = Firewall::start(&namespace, everything());
    firewall.until(|status| status.table.is_some());
    drop(firewall);
    assert!(firewall_down(&namespace));
    assert_eq!(nft(&namespace, &["list", "ruleset"]), FOREIGN);
    assert!(!firewall_down(&namespace));
}

#[test]
fn forwarded_packets_pass_and_leave_with_the_address_of_their_link() {
    if !may_run() || !gate::root_and(&["ping"]) {
        return;
    }
    let [peer, router, outside] = [(); 3].map(|()| NetNs::new().expect("a namespace"));
    veth((&peer, "eth0", &["10.80.0.2/24"]), (&router, "weft0", &["10.80.0.1/24"])).expect("a link");
    veth((&router, "eth0", &["192.0.2.1/24"]), (&outside, "eth0", &["192.0.2.2/24"])).expect("a link");
    peer.run(&["ip", "route", "add", "default", "via", "10.80.0.1"]).expect("ip succeeds");
    router.run(&["sysctl", "-qw", "net.ipv4.ip_forward=1"]).expect("sysctl succeeds");
    let ping = || peer.run(&["ping", "-c", "1", "-W", "1", "192.0.2.2"]);
    ping().expect_err("outside has no way back to 10.80.0.0/24");
    let firewall = Firewall::start(&router, everything());
    firewall.until(|status| status.table.is_some());
    ping().expect("the source is translated to 192.0.2.1");
}

#[test]
fn forwarded_tcp_is_clamped_to_the_tunnel_in_both_directions() {
    if !may_run() {
        return;
    }
    let [peer, router, outside] = [(); 3].map(|()| NetNs::new().expect("a namespace"));
    veth((&peer, "eth0", &["10.80.0.2/24"]), (&router, "weft0", &["10.80.0.1/24"])).expect("a link");
    veth((&router, "eth0", &["192.0.2.1/24"]), (&outside, "eth0", &["192.0.2.2/24"])).expect("a link");
    peer.run(&["ip", "route", "add", "default", "via", "10.80.0.1"]).expect("ip succeeds");
    outside.run(&["ip", "route", "add", "10.80.0.0/24", "via", "192.0.2.1"]).expect("ip succeeds");
    router.run(&["ip", "link", "set", "weft0", "mtu", "1400"]).expect("ip succeeds");
    router.run(&["sysctl", "-qw", "net.ipv4.ip_forward=1"]).expect("sysctl succeeds");
    // Neither end knows of the narrow link: both offer what Ethernet carries, less 12 bytes for time stamps.
    assert_eq!(segment_sizes(&peer, &outside), (1448, 1448));
    let firewall = Firewall::start(&router, FirewallConfig { forward: true, ..FirewallConfig::default() });
    firewall.until(|status| status.table.is_some());
    assert_eq!(segment_sizes(&peer, &outside), (1348, 1348));
}

/// The segment sizes that the two ends of a new connection use.
fn segment_sizes(client: &NetNs, server: &NetNs) -> (u32, u32) {
    let listener = server.enter(|| TcpListener::bind("192.0.2.2:0")).expect("entered").expect("a listener");
    let address = listener.local_addr().expect("bound");
    let connected =
        client.enter(|| TcpStream::connect_timeout(&address, SETTLED)).expect("entered").expect("connected");
    let (accepted, _) = listener.accept().expect("accepted");
    let size = |stream: &TcpStream| getsockopt(stream, TcpMaxSeg).expect("a TCP socket");
    (size(&connected), size(&accepted))
}
