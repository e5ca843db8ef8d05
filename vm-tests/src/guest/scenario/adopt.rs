//! Links that are there before the agent: ours is adopted, a foreign one is refused.

use anyhow::{Context as _, Result, ensure};
use integration_tests::agent::TestAgent;
use integration_tests::key::KeyPair;
use integration_tests::netns::NetNs;
use integration_tests::wait::eventually_some;
use serde_json::Value;

use crate::guest::figures;
use crate::guest::lab::{self, INNER, INNER6, Lab, PATIENCE, UNDERLAY, number, reach};
use crate::guest::report::Report;
use crate::guest::stream::Stream;

pub(super) fn ours(report: &mut Report) -> Result<()> {
    let lab = Lab::new(1)?;
    let mut settings = lab.settings()?.into_iter();
    let (own, other) = settings.next().zip(settings.next()).context("the lab has two hosts")?;
    let peer = other.keys().public.clone();
    let mut agent = TestAgent::prepare(lab.host(0), own)?;
    let _beta = lab::start(lab.host(1), other)?;
    let key = agent.directory().join("private.key");
    make_link(lab.host(0), agent.link(), key.to_str().context("a temporary path is text")?, &peer)?;
    // Putting the first clsact qdisc on a link in use stops its sending side for a moment, whoever does it: the kernel's
    // `qdisc_graft` calls `dev_deactivate`. It is there before the traffic, so that what is lost is the agent's doing.
    // Where there is tcx the agent leaves it alone.
    lab.host(0).run(&["tc", "qdisc", "add", "dev", agent.link(), "clsact"])?;
    reach(lab.host(0), INNER[1])?;
    let link = figures::ifindex(&agent)?;
    let handshake = figures::wg(&agent, "latest-handshakes")?;

    let stream = Stream::start("alpha to beta", lab.host(0), &[lab.host(1)], INNER[1])?;
    stream.flow(50)?;
    agent.launch()?;
    lab::settle(&mut agent)?;
    stream.flow(50)?;
    let sent = stream.finish_without_loss()?;
    let status = agent.cli_json(&["status"])?;
    ensure!(number(&status, "/wireguard/link_index")? == link, "the agent made another link: {status}");
    ensure!(figures::ifindex(&agent)? == link, "the link was made anew");
    ensure!(figures::wg(&agent, "latest-handshakes")? == handshake, "the session was made anew");
    // What was missing on the link, the agent brought: an address and an allowed IP of the other family.
    reach(lab.host(0), INNER6[1])?;
    report.note(format_args!("link {link} and its session kept; 0 of {sent} datagrams lost"));
    Ok(())
}

/// What wg-quick does with a small file.
fn make_link(host: &NetNs, link: &str, key: &str, peer: &str) -> Result<()> {
    let endpoint = format!("{}:51820", UNDERLAY[1]);
    let inner = format!("{}/24", INNER[0]);
    host.run(&["ip", "link", "add", link, "type", "wireguard"])?;
    let allowed = format!("{}/32", INNER[1]);
    let settings = ["private-key", key, "listen-port", "51820", "peer", peer, "allowed-ips", &allowed];
    host.run(&[&["wg", "set", link][..], &settings, &["endpoint", &endpoint]].concat())?;
    host.run(&["ip", "address", "add", &inner, "dev", link])?;
    host.run(&["ip", "link", "set", "mtu", "1420", "up", "dev", link])?;
    Ok(())
}

pub(super) fn foreign(report: &mut Report) -> Result<()> {
    for kind in ["wireguard", "dummy"] {
        let lab = Lab::new(1)?;
        let settings = lab.settings()?.into_iter().next().context("the lab has hosts")?;
        let mut agent = TestAgent::prepare(lab.host(0), settings)?;
        make_foreign(lab.host(0), agent.link(), kind)?;
        let before = describe(lab.host(0), agent.link(), kind)?;
        agent.launch()?;
        let message = eventually_some(PATIENCE, "the agent says what is wrong", || told(&mut agent));
        let message = message.with_context(|| format!("its log: {}", agent.log()))?;
        ensure!(message.contains(agent.link()), "the message does not name {}: {message}", agent.link());
        let ready = agent.cli(&["status", "--check", "ready"]).is_ok_and(|output| output.status.success());
        ensure!(!ready, "the agent says it is ready, on a {kind} link that is not its own");
        let after = describe(lab.host(0), agent.link(), kind)?;
        ensure!(before == after, "the agent changed a foreign {kind} link:\n{before}\n{after}");
        report.note(format_args!("{kind}: {message}"));
    }
    Ok(())
}

fn make_foreign(host: &NetNs, link: &str, kind: &str) -> Result<()> {
    host.run(&["ip", "link", "add", link, "type", kind])?;
    host.run(&["ip", "address", "add", "10.77.0.1/24", "dev", link])?;
    if kind == "wireguard" {
        let key = tempfile::NamedTempFile::new()?;
        std::fs::write(key.path(), KeyPair::generate()?.private)?;
        host.run(&["wg", "set", link, "private-key", key.path().to_str().context("a temporary path is text")?])?;
    }
    Ok(())
}

fn describe(host: &NetNs, link: &str, kind: &str) -> Result<String> {
    let mut text = host.run(&["ip", "-details", "address", "show", "dev", link])?;
    text += &host.run(&["ip", "route", "show", "table", "all", "dev", link])?;
    if kind == "wireguard" {
        text += &host.run(&["wg", "showconf", link])?;
    }
    Ok(text)
}

/// What the agent says is wrong: in its status, or in its log if it ended.
fn told(agent: &mut TestAgent<'_>) -> Option<String> {
    if !agent.process()?.is_running() {
        return Some(agent.log());
    }
    // A degraded agent makes the command end with exit code 4; the answer is the same.
    let output = agent.cli(&["status", "--json"]).ok()?;
    let status: Value = serde_json::from_slice(&output.stdout).ok()?;
    status.pointer("/problems/0")?.as_str().map(str::to_owned)
}
