//! The tunnel device of a whole agent on a real kernel: what reloads and other tools do to it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use integration_tests::agent::{PeerTable, Settings, TestAgent};
use integration_tests::gate;
use integration_tests::key::KeyPair;
use integration_tests::scenario::Scenario;
use integration_tests::wait::eventually;
use nix::sys::signal::Signal;

const PATIENCE: Duration = Duration::from_secs(20);
/// What another tool takes away comes back within a second; the rest is a slow machine's.
const SOON: Duration = Duration::from_secs(5);

#[test]
fn a_deleted_link_comes_back_at_once_with_its_peers() {
    if !gate::root_and(&["wg", "ip"]) {
        return;
    }
    let scenario = Scenario::new(1).expect("a host");
    let settings = Settings::new("alpha").expect("settings").peer(peer("beta", &["10.80.0.2/32"]));
    let agent = TestAgent::start(scenario.host(0), settings).expect("the agent starts");
    let before = allowed_ips(&agent).expect("wg shows the device");
    scenario.host(0).run(&["ip", "link", "delete", agent.link()]).expect("deleted");
    eventually(SOON, "the link is back with its peers", || allowed_ips(&agent).is_ok_and(|now| now == before))
        .expect("it comes back");
}

#[test]
fn a_reload_moves_a_prefix_and_leaves_a_moved_endpoint() {
    if !gate::root_and(&["wg"]) {
        return;
    }
    let scenario = Scenario::new(1).expect("a host");
    let (beta, gamma) = (peer("beta", &["10.80.0.2/32", "10.81.0.0/24"]), peer("gamma", &["10.80.0.3/32"]));
    let settings = Settings::new("alpha").expect("settings");
    let first = settings.clone().peer(beta.clone()).peer(gamma.clone());
    let mut agent = TestAgent::start(scenario.host(0), first).expect("the agent starts");
    // As if beta had been heard from elsewhere.
    let moved = "198.18.0.99:7";
    let set = ["wg", "set", agent.link(), "peer", &beta.public_key, "endpoint", moved];
    scenario.host(0).run(&set).expect("wg sets an endpoint");
    let (mut less, mut more) = (beta.clone(), gamma.clone());
    more.allowed_ips.push(less.allowed_ips.pop().expect("beta has two"));
    reload(&mut agent, settings.peer(less).peer(more)).expect("reloaded");
    eventually(PATIENCE, "gamma has the prefix", || {
        allowed_ips(&agent).is_ok_and(|owners| owners.get("10.81.0.0/24") == Some(&gamma.public_key))
    })
    .expect("it moves");
    let owners = allowed_ips(&agent).expect("wg shows the device");
    assert_eq!(owners.get("10.80.0.2/32"), Some(&beta.public_key));
    let endpoints = show(&agent, "endpoints").expect("wg shows endpoints");
    assert!(endpoints.contains(&format!("{}\t{moved}", beta.public_key)), "{endpoints}");
}

#[test]
fn a_reload_changes_port_and_key_on_the_same_link() {
    if !gate::root_and(&["wg"]) {
        return;
    }
    let scenario = Scenario::new(1).expect("a host");
    let settings = Settings::new("alpha").expect("settings").peer(peer("beta", &["10.80.0.2/32"]));
    let mut agent = TestAgent::start(scenario.host(0), settings.clone()).expect("the agent starts");
    let index = link_index(&agent).expect("the link is there");
    let keys = KeyPair::generate().expect("wg makes keys");
    let public = keys.public.clone();
    reload(&mut agent, settings.listen_port(51999).with_keys(keys)).expect("reloaded");
    eventually(PATIENCE, "port and key are changed", || {
        let is = |what: &str, value: &str| show(&agent, what).is_ok_and(|shown| shown.trim() == value);
        is("listen-port", "51999") && is("public-key", &public)
    })
    .expect("it changes");
    assert_eq!(link_index(&agent).expect("the link is there"), index, "the link was made anew");
    assert_eq!(allowed_ips(&agent).expect("wg shows the device").len(), 1);
}

fn peer(name: &str, allowed_ips: &[&str]) -> PeerTable {
    PeerTable {
        name: name.to_owned(),
        public_key: KeyPair::generate().expect("wg makes keys").public,
        endpoint: Some("198.18.0.1:51820".to_owned()),
        allowed_ips: allowed_ips.iter().map(|prefix| (*prefix).to_owned()).collect(),
        ..PeerTable::default()
    }
}

fn reload(agent: &mut TestAgent<'_>, settings: Settings) -> Result<()> {
    agent.reconfigure(settings)?;
    agent.process().context("the agent runs")?.signal(Signal::SIGHUP)
}

fn show(agent: &TestAgent<'_>, what: &str) -> Result<String> {
    agent.host().run(&["wg", "show", agent.link(), what])
}

/// The owner of each prefix.
fn allowed_ips(agent: &TestAgent<'_>) -> Result<BTreeMap<String, String>> {
    let text = show(agent, "allowed-ips")?;
    let owners = text
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .flat_map(|(key, prefixes)| prefixes.split_whitespace().map(|prefix| (prefix.to_owned(), key.to_owned())));
    Ok(owners.collect())
}

fn link_index(agent: &TestAgent<'_>) -> Result<String> {
    let text = agent.host().run(&["ip", "-oneline", "link", "show", "dev", agent.link()])?;
    Ok(text.split(':').next().context("ip shows an index")?.to_owned())
}
