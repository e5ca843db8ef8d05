//! The hosts of a scenario: network namespaces on one underlay, each with an agent, all reaching all.
//!
//! `alpha` is host 0, `beta` 1, `gamma` 2. A host's addresses carry its number, see [`UNDERLAY`], [`INNER`], [`INNER6`].

use std::time::Duration;

use anyhow::{Context as _, Result};
use integration_tests::agent::{PeerTable, Settings, TestAgent};
use integration_tests::key::KeyPair;
use integration_tests::netns::{NetNs, veth};
use integration_tests::wait::eventually;
use serde_json::Value;

/// Names of the hosts, which are the names of their agents.
pub(crate) const NAMES: [&str; 3] = ["alpha", "beta", "gamma"];
/// The underlay addresses (RFC 5737). Alpha has a link to each of the others: only what touches alpha travels.
pub(crate) const UNDERLAY: [&str; 3] = ["192.0.2.1", "192.0.2.2", "192.0.2.3"];
/// The addresses in the tunnel.
pub(crate) const INNER: [&str; 3] = ["10.80.0.1", "10.80.0.2", "10.80.0.3"];
/// The same for IPv6.
pub(crate) const INNER6: [&str; 3] = ["fd80::1", "fd80::2", "fd80::3"];

/// Only a failure waits this long. Under emulation a handshake takes a tenth of a second and the verifier seconds for
/// a program; a host busy with other builds stretches both tenfold.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// The hosts.
#[derive(Debug)]
pub(crate) struct Lab {
    hosts: Vec<NetNs>,
}

impl Lab {
    /// Alpha and `others` more, each joined to alpha by a veth pair.
    pub(crate) fn new(others: usize) -> Result<Self> {
        let alpha = NetNs::new()?;
        let mut hosts = Vec::new();
        for (at, address) in UNDERLAY.iter().enumerate().take(others + 1).skip(1) {
            let host = NetNs::new()?;
            let link = format!("eth{at}");
            let [near, far] = [format!("{}/32", UNDERLAY[0]), format!("{address}/32")];
            veth((&alpha, &link, &[&near]), (&host, "eth0", &[&far]))?;
            // Host routes, so that several links can share alpha's address.
            alpha.run(&["ip", "route", "add", address, "dev", &link])?;
            host.run(&["ip", "route", "add", UNDERLAY[0], "dev", "eth0"])?;
            hosts.push(host);
        }
        hosts.insert(0, alpha);
        Ok(Self { hosts })
    }

    pub(crate) fn host(&self, at: usize) -> &NetNs {
        &self.hosts[at]
    }

    /// Settings for the agents of all hosts: alpha has every other host as a peer, each of those has alpha.
    pub(crate) fn settings(&self) -> Result<Vec<Settings>> {
        let keys: Vec<_> = self.hosts.iter().map(|_| KeyPair::generate()).collect::<Result<_>>()?;
        let mut all = Vec::new();
        for at in 0..self.hosts.len() {
            let peers = if at == 0 { 1..self.hosts.len() } else { 0..1 };
            all.push(peers.fold(node(at, &keys[at])?, |node, other| node.peer(peer(other, &keys[other]))));
        }
        Ok(all)
    }

    /// An agent on each host, ready, all of them reached from alpha once.
    pub(crate) fn agents(&self) -> Result<Vec<TestAgent<'_>>> {
        let mut agents = Vec::new();
        for (host, settings) in self.hosts.iter().zip(self.settings()?) {
            agents.push(start(host, settings)?);
        }
        for address in &INNER[1..self.hosts.len()] {
            reach(self.host(0), address)?;
        }
        Ok(agents)
    }
}

/// Starts an agent and waits until all of it works.
pub(crate) fn start(host: &NetNs, settings: Settings) -> Result<TestAgent<'_>> {
    let mut agent = TestAgent::start(host, settings)?;
    settle(&mut agent)?;
    Ok(agent)
}

/// Waits until everything the agent is to do is done: it is ready as soon as the tunnel works, and its programs take
/// seconds to be verified under emulation.
pub(crate) fn settle(agent: &mut TestAgent<'_>) -> Result<()> {
    agent.wait_until_ready()?;
    let mut last = None;
    let settled = eventually(PATIENCE, "the agent has done all it wants", || {
        last = agent.cli_json(&["status"]).ok();
        last.as_ref().is_some_and(is_settled)
    });
    settled.with_context(|| format!("status: {last:?}; log: {}", agent.log()))
}

fn is_settled(status: &Value) -> bool {
    let is_there = |pointer: &str| status.pointer(pointer).is_some_and(|value| !value.is_null());
    let nothing_applied = |pointer: &str| status.pointer(pointer).and_then(Value::as_u64) == Some(0);
    let addresses = status.pointer("/network/addresses").and_then(Value::as_u64).unwrap_or_default();
    is_there("/accounting/hook")
        && addresses > 0
        && nothing_applied("/wireguard/applied_steps")
        && nothing_applied("/network/applied_steps")
}

/// Settings for the agent of host `at`, without peers.
pub(crate) fn node(at: usize, keys: &KeyPair) -> Result<Settings> {
    let addresses = [format!("{}/24", INNER[at]), format!("{}/64", INNER6[at])];
    Ok(Settings::new(NAMES[at])?.with_keys(keys.clone()).addresses(&[&addresses[0], &addresses[1]]))
}

/// The `[[peer]]` table that leads to host `at`.
pub(crate) fn peer(at: usize, keys: &KeyPair) -> PeerTable {
    PeerTable {
        name: NAMES[at].to_owned(),
        public_key: keys.public.clone(),
        endpoint: Some(format!("{}:51820", UNDERLAY[at])),
        allowed_ips: vec![format!("{}/32", INNER[at]), format!("{}/128", INNER6[at])],
        ..PeerTable::default()
    }
}

/// Waits until `address` answers.
pub(crate) fn reach(from: &NetNs, address: &str) -> Result<()> {
    eventually(PATIENCE, &format!("{address} answers"), || from.run(&["ping", "-c", "1", "-W", "1", address]).is_ok())
}

/// The value at a JSON pointer (RFC 6901) of what a command printed.
pub(crate) fn at<'a>(document: &'a Value, pointer: &str) -> Result<&'a Value> {
    document.pointer(pointer).with_context(|| format!("there is no {pointer} in {document}"))
}

/// The number at a JSON pointer.
pub(crate) fn number(document: &Value, pointer: &str) -> Result<u64> {
    at(document, pointer)?.as_u64().with_context(|| format!("{pointer} is not a whole number in {document}"))
}
