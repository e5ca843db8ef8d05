use std::path::PathBuf;

use super::*;
use crate::doctor::is_degraded;
use crate::doctor::probe::Resolver;

/// A host where nothing is missing.
fn good() -> Probe {
    Probe {
        kernel: "6.12.9-amd64".to_owned(),
        is_root: true,
        missing_capabilities: Vec::new(),
        tun: Answer::Yes,
        wireguard: Module::Loadable,
        bpf: Answer::Yes,
        bpffs: true,
        btf: true,
        tcx: Answer::Yes,
        clsact: Module::Loadable,
        cgroup2: Some(PathBuf::from("/sys/fs/cgroup")),
        nft: Nft::Works,
        ipv6: Ipv6::On,
        udp_send_offload: Answer::Yes,
        udp_receive_offload: Answer::Yes,
        ip_forward: Some("1".to_owned()),
        ipv6_forwarding: Some("1".to_owned()),
        rp_filter: Some("2".to_owned()),
        route_localnet: Some("0".to_owned()),
        resolver: Resolver { resolved_runs: true, link: None, written_by: None },
        locked_memory_bytes: Some(65_536),
        open_files: Some(524_288),
    }
}

#[track_caller]
fn level(probe: &Probe, facility: &str) -> Level {
    find(probe, facility).level
}

#[track_caller]
fn find(probe: &Probe, facility: &str) -> Finding {
    assess(probe).into_iter().find(|finding| finding.facility == facility).expect("every facility is judged")
}

#[test]
fn on_a_good_host_everything_is_ok() {
    let findings = assess(&good());
    let others: Vec<_> = findings.iter().filter(|finding| finding.level != Level::Ok).collect();
    assert!(others.is_empty(), "{others:?}");
    assert!(!is_degraded(&findings));
}

#[test]
fn every_finding_that_asks_for_action_says_what_to_do() {
    let bad = Probe {
        kernel: "5.4.0".to_owned(),
        missing_capabilities: vec!["CAP_BPF"],
        tun: Answer::No("No such file or directory".to_owned()),
        wireguard: Module::Absent,
        bpf: Answer::No("Function not implemented".to_owned()),
        bpffs: false,
        tcx: Answer::No("Invalid argument".to_owned()),
        clsact: Module::Absent,
        ..good()
    };
    for finding in assess(&bad) {
        if matches!(finding.level, Level::Fallback | Level::Missing) {
            assert!(finding.fix.is_some(), "{finding:?}");
        }
    }
    assert!(is_degraded(&assess(&bad)));
}

#[test]
fn without_kernel_wireguard_the_embedded_device_is_named_and_needs_the_tun() {
    let mut probe = Probe { wireguard: Module::Absent, ..good() };
    assert_eq!(level(&probe, "kernel WireGuard"), Level::Fallback);
    assert!(find(&probe, "kernel WireGuard").fallback.is_some_and(|text| text.contains("embedded")));
    probe.tun = Answer::No("No such file or directory".to_owned());
    assert_eq!(level(&probe, "/dev/net/tun"), Level::Missing);
    probe.wireguard = Module::Loadable;
    assert_eq!(level(&probe, "/dev/net/tun"), Level::Note);
}

#[test]
fn before_6_6_clsact_takes_the_place_of_tcx() {
    let mut probe = Probe { kernel: "6.1.0-18-amd64".to_owned(), tcx: Answer::No("EINVAL".to_owned()), ..good() };
    assert_eq!(find(&probe, "tcx").fallback, Some("clsact"));
    assert_eq!(level(&probe, "clsact"), Level::Ok);
    probe.clsact = Module::Absent;
    assert_eq!(level(&probe, "clsact"), Level::Missing);
}

#[test]
fn what_a_user_may_not_see_is_unknown_and_no_alarm() {
    let probe = Probe {
        is_root: false,
        missing_capabilities: vec!["CAP_NET_ADMIN"],
        bpf: Answer::Denied,
        tcx: Answer::Denied,
        nft: Nft::Denied,
        ..good()
    };
    for facility in ["privileges", "bpf(2)", "tcx", "nftables"] {
        assert_eq!(level(&probe, facility), Level::Unknown, "{facility}");
    }
    assert!(!is_degraded(&assess(&probe)));
}

#[test]
fn the_memory_limit_matters_only_before_5_11() {
    assert!(!assess(&good()).iter().any(|finding| finding.facility == "RLIMIT_MEMLOCK"));
    assert_eq!(level(&Probe { kernel: "5.10.0-28-amd64".to_owned(), ..good() }, "RLIMIT_MEMLOCK"), Level::Fallback);
}

#[test]
fn releases_of_every_distribution_have_two_numbers() {
    assert_eq!(version("6.1.0-18-amd64"), Some((6, 1)));
    assert_eq!(version("6.18.44-fc-v595"), Some((6, 18)));
    assert_eq!(version("7.0-rc3"), Some((7, 0)));
    assert_eq!(version("weird"), None);
}

#[test]
fn what_callers_are_told_by_is_named_with_what_is_missing() {
    assert_eq!(level(&good(), "caller records"), Level::Ok);
    let without = Probe { cgroup2: None, ..good() };
    assert_eq!(level(&without, "caller records"), Level::Fallback);
    assert!(find(&without, "caller records").fix.is_some_and(|fix| fix.contains("mount -t cgroup2")));
    let old = Probe { kernel: "5.10.0".to_owned(), ..good() };
    assert_eq!(level(&old, "caller records"), Level::Fallback);
    assert_eq!((level(&old, "sk_lookup"), level(&good(), "sk_lookup")), (Level::Ok, Level::Ok));
}
