//! What is asked against the rules that come of it, and the pass over a fake packet filter.

use proptest::prelude::*;

use super::plan::{Change, Standing, plan};
use super::platform::Forwarding;
use super::platform::fake::FakePlatform;
use super::render::DroppingChain;
use super::spec::{Place, Rule, Ruleset, ruleset};
use super::*;
use crate::foundation::lifecycle::Shutdown;
use crate::net::config::FirewallConfig;

fn everything() -> FirewallConfig {
    let masquerade = vec!["10.80.0.0/24".parse().expect("a network"), "fd80::/64".parse().expect("a network")];
    FirewallConfig { open_port: true, forward: true, masquerade }
}

fn settings(asked: FirewallConfig) -> FirewallSettings {
    let (instance, link) = ("blue-1".parse().expect("a label"), "weft0".parse().expect("a name"));
    asked.validate(instance, link, 51820).expect("valid settings")
}

fn rules(asked: FirewallConfig) -> Ruleset {
    ruleset(&settings(asked)).expect("the port is set").expect("something is asked")
}

#[test]
fn nothing_asked_is_no_table() {
    assert_eq!(ruleset(&settings(FirewallConfig::default())), Ok(None));
}

#[test]
fn only_what_is_asked_becomes_a_rule() {
    let open = rules(FirewallConfig { open_port: true, ..FirewallConfig::default() });
    assert_eq!(open.table, "weft_blue_1");
    let [chain] = open.chains.as_slice() else { panic!("one chain: {open:?}") };
    assert_eq!((chain.place, chain.rules.as_slice()), (Place::Input, [Rule::AcceptUdp { port: 51820 }].as_slice()));
    let forward = rules(FirewallConfig { forward: true, ..FirewallConfig::default() });
    let places: Vec<Place> = forward.chains.iter().map(|chain| chain.place).collect();
    assert_eq!(places, [Place::Forward, Place::Clamp]);
    assert_eq!(rules(everything()).rules(), 1 + 2 + 2 + 2);
}

#[test]
fn a_port_that_is_not_fixed_cannot_be_opened() {
    let settings = FirewallSettings { listen_port: 0, ..settings(everything()) };
    let text = ruleset(&settings).expect_err("no port").to_string();
    assert!(text.contains("firewall.open_port") && text.contains("wireguard.listen_port"), "{text}");
}

#[test]
fn a_table_is_written_only_when_it_differs() {
    let wanted = rules(everything());
    assert_eq!(plan(Some(&wanted), Standing::AsWanted), None);
    assert_eq!(plan(Some(&wanted), Standing::Absent), Some(Change::Replace(wanted.clone())));
    assert_eq!(plan(Some(&wanted), Standing::Different), Some(Change::Replace(wanted.clone())));
    assert_eq!(plan(None, Standing::Absent), None);
    assert_eq!(plan(None, Standing::Different), Some(Change::Remove));
}

#[test]
fn every_other_ruleset_looks_different_when_listed() {
    let all = render::normal(&rules(everything()));
    let closed = render::normal(&rules(FirewallConfig { open_port: false, ..everything() }));
    let other_port = settings(everything());
    let other_port = ruleset(&FirewallSettings { listen_port: 1, ..other_port }).expect("a port").expect("rules");
    assert_eq!(all, render::normal(&rules(everything())));
    assert_ne!(all, closed);
    assert_ne!(all, render::normal(&other_port));
}

proptest! {
    #[test]
    fn the_transaction_names_no_other_table(open_port: bool, forward: bool, lengths in proptest::collection::btree_set(0_u8..=32, 0..4)) {
        let networks = lengths.into_iter().map(|length| ipnet::IpNet::new_assert([10, 80, 0, 1].into(), length).trunc());
        let asked = FirewallConfig { open_port, forward, masquerade: networks.collect() };
        if let Some(ruleset) = ruleset(&settings(asked)).expect("the port is set") {
            let batch = serde_json::to_value(render::replacement(&ruleset)).expect("it serialises");
            for command in batch["nftables"].as_array().expect("a list") {
                let (_, object) = command.as_object().and_then(|map| map.iter().next()).expect("one command");
                let (kind, object) = object.as_object().and_then(|map| map.iter().next()).expect("one object");
                let table = if kind == "table" { &object["name"] } else { &object["table"] };
                prop_assert_eq!(table, "weft_blue_1");
                prop_assert_eq!(&object["family"], "inet");
            }
        }
    }
}

struct Running {
    platform: FakePlatform,
    handle: Handle,
    settings: watch::Sender<Arc<FirewallSettings>>,
    relaying: watch::Sender<bool>,
    _shutdown: Shutdown,
}

impl Running {
    fn start(platform: FakePlatform, asked: FirewallConfig) -> Self {
        let shutdown = Shutdown::default();
        let (settings_tx, settings_rx) = watch::channel(Arc::new(settings(asked)));
        let (relaying, relaying_rx) = watch::channel(false);
        let handle = start_on(platform.clone(), settings_rx, relaying_rx, &Metrics::default(), shutdown.stop());
        Self { platform, handle, settings: settings_tx, relaying, _shutdown: shutdown }
    }

    async fn until(&self, what: impl Fn(&FirewallStatus) -> bool) -> Arc<FirewallStatus> {
        let mut status = self.handle.status();
        status.wait_for(|status| what(status)).await.expect("the reconciler runs").clone()
    }
}

#[tokio::test(start_paused = true)]
async fn a_table_that_somebody_altered_is_made_right_and_others_stay() {
    let platform = FakePlatform::default();
    let foreign = Ruleset { table: "docker".to_owned(), chains: Vec::new() };
    platform.filter().tables.push(foreign.clone());
    let running = Running::start(platform, everything());
    running.until(|status| status.rules == 7 && status.applied_steps == 1).await;
    running.handle.trigger().fire();
    running.until(|status| status.applied_steps == 0).await;
    assert_eq!(running.platform.filter().writes, 1);
    running.platform.filter().tables[1].chains.clear();
    running.handle.trigger().fire();
    running.until(|status| status.applied_steps == 1).await;
    assert_eq!(running.platform.filter().tables, [foreign, rules(everything())]);
}

#[tokio::test(start_paused = true)]
async fn a_relay_forwards_on_the_tunnel_for_as_long_as_it_is_one() {
    let running = Running::start(FakePlatform::default(), FirewallConfig::default());
    running.platform.filter().forwarding = Forwarding { ipv4: false, ipv6: false };
    running.relaying.send_replace(true);
    let status = running.until(|status| status.rules == 4).await;
    assert_eq!((status.errors.as_slice(), status.notices.as_slice()), ([].as_slice(), [].as_slice()));
    assert_eq!(running.platform.filter().forwarding_links.len(), 1);
    running.relaying.send_replace(false);
    running.until(|status| status.table.is_none()).await;
    assert!(running.platform.filter().tables.is_empty() && running.platform.filter().forwarding_links.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_relay_without_nft_forwards_and_says_what_may_be_in_the_way() {
    let platform = FakePlatform::default();
    platform.filter().installed = false;
    let running = Running::start(platform, FirewallConfig::default());
    running.relaying.send_replace(true);
    let status = running.until(|status| !status.notices.is_empty()).await;
    assert!(status.errors.is_empty() && status.notices[0].contains("nftables"), "{status:?}");
    assert_eq!(running.platform.filter().forwarding_links.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn asking_for_nothing_any_more_removes_the_table() {
    let running = Running::start(FakePlatform::default(), everything());
    running.until(|status| status.table.is_some()).await;
    running.settings.send_replace(Arc::new(settings(FirewallConfig::default())));
    running.until(|status| status.table.is_none()).await;
    assert!(running.platform.filter().tables.is_empty());
}

#[tokio::test(start_paused = true)]
async fn nft_is_missed_only_when_something_is_asked() {
    let platform = FakePlatform::default();
    platform.filter().installed = false;
    let running = Running::start(platform, FirewallConfig::default());
    running.settings.send_replace(Arc::new(settings(everything())));
    let status = running.until(|status| !status.errors.is_empty()).await;
    assert!(status.errors.len() == 1 && status.errors[0].contains("package nftables"), "{:?}", status.errors);
    running.platform.filter().installed = true;
    running.until(|status| status.errors.is_empty() && status.rules == 7).await;
}

#[tokio::test(start_paused = true)]
async fn a_host_that_does_not_forward_and_a_chain_that_drops_are_named() {
    let platform = FakePlatform::default();
    platform.filter().forwarding = Forwarding { ipv4: false, ipv6: true };
    let drop = |place, chain: &str| DroppingChain { family: "ip", table: "filter".into(), chain: chain.into(), place };
    platform.filter().foreign = vec![drop(Place::Forward, "FORWARD"), drop(Place::Input, "INPUT")];
    let running = Running::start(platform, FirewallConfig { open_port: false, ..everything() });
    let status = running.until(|status| status.rules == 6).await;
    assert!(status.errors[0].contains("net.ipv4.ip_forward"), "{:?}", status.errors);
    let [notice] = status.notices.as_slice() else { panic!("one notice: {:?}", status.notices) };
    assert!(notice.contains("chain FORWARD of table ip filter"), "{notice}");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_run_while_nothing_is_asked() {
    let running = Running::start(FakePlatform::default(), FirewallConfig::default());
    let asked = running.until(|status| status.table.is_some());
    tokio::time::timeout(std::time::Duration::from_secs(100), asked).await.expect_err("nothing is asked");
    assert_eq!(running.platform.filter().reads, 1);
}
