//! Addresses, MTU and routes of the link against a real kernel. A veth stands for the tunnel link: to rtnetlink it is
//! a link like any other, and it exists on every kernel.

mod firewall;
mod host;

use std::io::Write as _;
use std::time::Duration;

use host::{Host, SETTLED};
use integration_tests::gate;
use weft_agent::net::config::Config;

/// What another program removes is back after this at the latest.
const COMES_BACK: Duration = Duration::from_secs(1);

fn may_run() -> bool {
    gate::root_and(&["ip", "nsenter"])
}

#[test]
fn a_fresh_link_is_configured() {
    if !may_run() {
        return;
    }
    let host = Host::new();
    let agent = host.start(&["10.80.0.1/24", "fd80::1/64"], &["10.80.0.2/32", "10.99.0.0/16", "fd99::/48"]);
    let status = agent.until(SETTLED, |status| status.routes == 2);
    assert_eq!((status.mtu, status.addresses, status.errors.as_slice()), (Some(1440), 2, [].as_slice()));
    assert!(host.ip(&["link", "show", "weft0"]).contains("mtu 1440"));
    assert!(host.ip(&["address", "show", "weft0"]).contains("inet 10.80.0.1/24"));
    let routes = host.ip(&["-4", "route", "show", "dev", "weft0"]);
    assert!(routes.contains("10.99.0.0/16 proto 87 scope link metric 1024"), "{routes}");
    assert!(!routes.contains("10.80.0.2"), "the connected network covers it: {routes}");
    assert!(host.ip(&["-6", "route", "show", "dev", "weft0"]).contains("fd99::/48 proto 87"));
}

#[test]
fn an_address_that_another_program_removes_comes_back() {
    if !may_run() {
        return;
    }
    let host = Host::new();
    let agent = host.start(&["10.80.0.1/24", "fd80::1/64"], &[]);
    agent.until(SETTLED, |status| status.addresses == 2);
    for address in ["10.80.0.1/24", "fd80::1/64"] {
        host.ip(&["address", "del", address, "dev", "weft0"]);
        host.eventually(COMES_BACK, &["address", "show", "weft0"], |text| text.contains(address));
    }
}

#[test]
fn a_route_that_another_program_removes_comes_back_and_a_foreign_one_is_untouched() {
    if !may_run() {
        return;
    }
    let host = Host::new();
    host.ip(&["link", "set", "weft0", "up"]);
    host.ip(&["route", "add", "10.98.0.0/16", "dev", "weft0", "proto", "static"]);
    let agent = host.start(&["10.80.0.1/24"], &["10.99.0.0/16"]);
    agent.until(SETTLED, |status| status.routes == 1);
    host.ip(&["route", "del", "10.99.0.0/16"]);
    host.eventually(COMES_BACK, &["route"], |text| text.contains("10.99.0.0/16 dev weft0 proto 87"));
    assert!(host.ip(&["route"]).contains("10.98.0.0/16 dev weft0 proto static"));
}

#[test]
fn a_link_that_somebody_sets_down_is_set_up_with_everything() {
    if !may_run() {
        return;
    }
    let host = Host::new();
    let agent = host.start(&["10.80.0.1/24", "fd80::1/64"], &["10.99.0.0/16", "fd99::/48"]);
    agent.until(SETTLED, |status| status.routes == 2);
    host.ip(&["link", "set", "weft0", "down"]);
    host.eventually(COMES_BACK, &["-6", "route"], |text| text.contains("fd99::/48 dev weft0 proto 87"));
    host.eventually(COMES_BACK, &["route"], |text| text.contains("10.99.0.0/16 dev weft0 proto 87"));
    host.eventually(COMES_BACK, &["address", "show", "weft0"], |text| text.contains("fd80::1/64"));
}

#[test]
fn the_mtu_follows_the_underlay_link_and_its_route() {
    if !may_run() {
        return;
    }
    let host = Host::new();
    let agent = host.start(&["10.80.0.1/24"], &[]);
    agent.until(SETTLED, |status| status.mtu == Some(1440));
    host.ip(&["link", "set", "eth0", "mtu", "1400"]);
    agent.until(COMES_BACK, |status| status.mtu == Some(1340));
    host.ip(&["route", "replace", "default", "via", "192.0.2.1", "mtu", "1380"]);
    agent.until(COMES_BACK, |status| status.mtu == Some(1320));
    host.ip(&["route", "add", "198.51.100.7/32", "via", "192.0.2.1", "mtu", "1200"]);
    agent.until(COMES_BACK, |status| status.mtu == Some(1280));
    host.ip(&["route", "del", "198.51.100.7/32"]);
    agent.until(COMES_BACK, |status| status.mtu == Some(1320));
}

#[test]
fn a_route_into_the_network_of_another_link_is_refused_while_that_network_is_there() {
    if !may_run() {
        return;
    }
    let host = Host::new();
    let agent = host.start(&["10.80.0.1/24"], &["192.0.2.128/25", "10.99.0.0/16", "172.30.0.0/16"]);
    let status = agent.until(SETTLED, |status| status.routes == 2);
    let [error] = status.errors.as_slice() else { panic!("one error: {status:?}") };
    for part in ["192.0.2.128/25", "peer beta", "192.0.2.0/24", "link eth0"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    host.ip(&["link", "add", "docker0", "type", "bridge"]);
    host.ip(&["link", "set", "docker0", "up"]);
    host.ip(&["address", "add", "172.30.0.1/16", "dev", "docker0"]);
    agent.until(COMES_BACK, |status| status.errors.len() == 2 && status.routes == 1);
    assert!(!host.ip(&["route"]).contains("172.30.0.0/16 dev weft0"));
    host.ip(&["link", "del", "docker0"]);
    agent.until(COMES_BACK, |status| status.errors.len() == 1 && status.routes == 2);
}

#[test]
fn a_restarted_agent_adopts_and_writes_nothing() {
    if !may_run() {
        return;
    }
    let host = Host::new();
    let (addresses, allowed) = (["10.80.0.1/24", "fd80::1/64"], ["10.99.0.0/16", "fd99::/48"]);
    let first = host.start(&addresses, &allowed);
    first.until(SETTLED, |status| status.routes == 2 && status.applied_steps == 0);
    drop(first);
    let before = (host.ip(&["address"]), host.ip(&["route"]));
    let second = host.start(&addresses, &allowed);
    second.until(SETTLED, |status| status.routes == 2 && status.addresses == 2);
    second.passes(3);
    assert_eq!(second.metric("weft_network_steps_total"), 0);
    assert_eq!((host.ip(&["address"]), host.ip(&["route"])), before);
}

#[test]
fn links_that_come_and_go_elsewhere_do_not_wake_the_reconciler() {
    if !may_run() {
        return;
    }
    let host = Host::new();
    let agent = host.start(&["10.80.0.1/24"], &["10.99.0.0/16"]);
    agent.until(SETTLED, |status| status.routes == 1 && status.applied_steps == 0);
    let before = agent.metric("weft_network_passes_total");
    for number in 0..5 {
        let address = format!("172.31.{number}.1/24");
        host.ip(&["link", "add", "c0", "type", "veth", "peer", "name", "c1"]);
        host.ip(&["link", "set", "c0", "up"]);
        host.ip(&["address", "add", &address, "dev", "c0"]);
        host.ip(&["link", "del", "c0"]);
    }
    // The events are read in order: when the effect of the last one is seen, all others have been read.
    host.ip(&["route", "del", "10.99.0.0/16"]);
    host.eventually(COMES_BACK, &["route"], |text| text.contains("10.99.0.0/16"));
    let passes = agent.metric("weft_network_passes_total") - before;
    assert!(passes <= 2, "{passes} passes for one change of ours");
}

#[test]
fn down_removes_exactly_what_is_ours() {
    if !may_run() {
        return;
    }
    let host = Host::new();
    let agent = host.start(&["10.80.0.1/24", "fd80::1/64"], &["10.99.0.0/16"]);
    agent.until(SETTLED, |status| status.routes == 1);
    drop(agent);
    host.ip(&["address", "add", "172.20.0.1/24", "dev", "weft0"]);
    host.ip(&["route", "add", "10.98.0.0/16", "dev", "weft0"]);
    assert_eq!(host.down(), (2, 1));
    let addresses = host.ip(&["address", "show", "weft0"]);
    assert!(!addresses.contains("10.80.0.1") && !addresses.contains("fd80::1"), "{addresses}");
    assert!(addresses.contains("172.20.0.1/24"), "{addresses}");
    let routes = host.ip(&["route"]);
    assert!(!routes.contains("10.99.0.0/16") && routes.contains("10.98.0.0/16"), "{routes}");
    assert_eq!(host.down(), (0, 0));
}

#[test]
fn a_default_route_goes_into_a_table_of_its_own() {
    if !may_run() {
        return;
    }
    let host = Host::new();
    let config = Config { table: 51_820, ..Config::default() };
    let agent = host.start_with(config, &["10.80.0.1/24"], &["0.0.0.0/0"]);
    agent.until(SETTLED, |status| status.routes == 1 && status.errors.is_empty());
    assert!(host.ip(&["route", "show", "table", "51820"]).contains("default dev weft0 proto 87"));
    assert!(host.ip(&["route"]).contains("default via 192.0.2.1 dev eth0"));
}

#[test]
fn an_overrun_of_the_event_socket_wakes_everybody() {
    if !may_run() {
        return;
    }
    let host = Host::new();
    // Far more than the socket holds, while the only thread that reads it is busy here.
    let batch: String = (0..20_000).map(|n| format!("route add 10.{}.{}.0/24 dev lo\n", n / 250, n % 250)).collect();
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(batch.as_bytes()).expect("written");
    let path = file.path().to_str().expect("text").to_owned();
    let woken = host.with_monitor(|| {
        host.ip(&["-batch", &path]);
    });
    assert!(woken, "a subscriber that wants no change at all is woken when changes were lost");
    assert!(!host.with_monitor(|| drop(host.ip(&["link", "set", "lo", "up"]))), "and not otherwise");
}
