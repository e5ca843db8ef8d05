//! Changes under traffic: what the kernel can do without a gap, the agent must do without a gap.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use integration_tests::agent::{Settings, TestAgent};
use integration_tests::key::{self, KeyPair};
use integration_tests::wait::eventually;
use nix::sys::signal::Signal;

use crate::guest::figures;
use crate::guest::lab::{self, INNER, Lab, NAMES, PATIENCE, node, peer, reach};
use crate::guest::report::Report;
use crate::guest::stream::{Count, Stream};

/// A service address that beta and gamma both hold, so that whoever gets a packet can answer.
const SERVICE: &str = "10.80.0.50";
/// How often it moves.
const MOVES: usize = 4;

pub(super) fn allowed_ip(report: &mut Report) -> Result<()> {
    let lab = Lab::new(2)?;
    let keys = [KeyPair::generate()?, KeyPair::generate()?, KeyPair::generate()?];
    let mut alpha = lab::start(lab.host(0), hub(&keys, 1)?)?;
    let spoke = |at: usize| Ok::<_, anyhow::Error>(node(at, &keys[at])?.peer(peer(0, &keys[0])));
    let _beta = lab::start(lab.host(1), spoke(1)?)?;
    let _gamma = lab::start(lab.host(2), spoke(2)?)?;
    for (at, address) in INNER.iter().enumerate().skip(1) {
        lab.host(at).run(&["ip", "address", "add", SERVICE, "dev", "lo"])?;
        reach(lab.host(0), address)?;
    }
    reach(lab.host(0), SERVICE)?;

    let bystander = Stream::start("alpha to beta's own address", lab.host(0), &[lab.host(1)], INNER[1])?;
    let service = Stream::start("alpha to the service", lab.host(0), &[lab.host(1), lab.host(2)], SERVICE)?;
    let mut owner = 1;
    for _ in 0..MOVES {
        owner = 3 - owner;
        alpha.reconfigure(hub(&keys, owner)?)?;
        reload(&mut alpha)?;
        let allowed = |at: usize| allowed_ips(&alpha, &keys[at]).is_ok_and(|text| text.contains(SERVICE));
        eventually(PATIENCE, "the address has moved", || allowed(owner) && !allowed(3 - owner))?;
        service.flow(20)?;
    }
    let sent = service.finish_without_loss()?;
    let others = bystander.finish_without_loss()?;
    report
        .note(format_args!("{MOVES} moves: 0 of {sent} datagrams to the moving address lost, 0 of {others} beside it"));
    Ok(())
}

/// Alpha with the service address at `owner`.
fn hub(keys: &[KeyPair; 3], owner: usize) -> Result<Settings> {
    let mut settings = node(0, &keys[0])?;
    for (at, keys) in keys.iter().enumerate().skip(1) {
        let mut table = peer(at, keys);
        if at == owner {
            table.allowed_ips.push(format!("{SERVICE}/32"));
        }
        settings = settings.peer(table);
    }
    Ok(settings)
}

fn allowed_ips(agent: &TestAgent<'_>, keys: &KeyPair) -> Result<String> {
    let text = agent.host().run(&["wg", "show", agent.link(), "allowed-ips"])?;
    let line = text.lines().find(|line| line.starts_with(&keys.public));
    Ok(line.context("wg does not show the peer")?.to_owned())
}

pub(super) fn keys(report: &mut Report) -> Result<()> {
    let lab = Lab::new(1)?;
    let keys = [KeyPair::generate()?, KeyPair::generate()?];
    let preshared = tempfile::NamedTempFile::new()?;
    write_secret(preshared.path(), &key::preshared()?)?;
    let mut alpha = lab::start(lab.host(0), end(0, &keys, preshared.path())?)?;
    let mut beta = lab::start(lab.host(1), end(1, &keys, preshared.path())?)?;
    reach(lab.host(0), INNER[1])?;
    let link = figures::ifindex(&alpha)?;
    let before = figures::peer(&alpha, NAMES[1])?;

    // The session stays; the new key is used from the next handshake on.
    let stream = Stream::start("alpha to beta", lab.host(0), &[lab.host(1)], INNER[1])?;
    write_secret(preshared.path(), &key::preshared()?)?;
    for agent in [&mut alpha, &mut beta] {
        let old = agent.host().run(&["wg", "show", agent.link(), "preshared-keys"])?;
        reload(agent)?;
        let renewed = || agent.host().run(&["wg", "show", agent.link(), "preshared-keys"]).is_ok_and(|new| new != old);
        eventually(PATIENCE, "the preshared key is set", renewed)?;
    }
    stream.flow(50)?;
    let sent = stream.finish_without_loss()?;
    report.note(format_args!("new preshared key: 0 of {sent} datagrams lost"));

    // Sessions are bound to the private key: the kernel ends them, so a gap until both ends know is all there can be.
    let stream = Stream::start("alpha to beta", lab.host(0), &[lab.host(1)], INNER[1])?;
    let keys = [KeyPair::generate()?, keys[1].clone()];
    for (at, agent) in [&mut alpha, &mut beta].into_iter().enumerate() {
        agent.reconfigure(end(at, &keys, preshared.path())?)?;
        reload(agent)?;
    }
    let public = || alpha.host().run(&["wg", "show", alpha.link(), "public-key"]).unwrap_or_default();
    eventually(PATIENCE, "the device has the new key", || public().trim() == keys[0].public)?;
    stream.flow(50)?;
    let Count { sent, received } = stream.finish()?;
    report.note(format_args!("new private key: {} of {sent} datagrams lost in the new handshake", sent - received));
    ensure!(figures::ifindex(&alpha)? == link, "the link was made anew");
    let after = figures::peer(&alpha, NAMES[1])?;
    ensure!(
        after.tx.packets >= before.tx.packets + received,
        "counters of the peer did not go on: {before:?}, {after:?}"
    );
    ensure!(after.wireguard_tx_bytes > before.wireguard_tx_bytes, "the peer was made anew: {before:?}, {after:?}");
    Ok(())
}

fn end(at: usize, keys: &[KeyPair; 2], preshared: &Path) -> Result<Settings> {
    let mut table = peer(1 - at, &keys[1 - at]);
    table.preshared_key_file = Some(preshared.to_owned());
    Ok(node(at, &keys[at])?.peer(table))
}

fn write_secret(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(())
}

fn reload(agent: &mut TestAgent<'_>) -> Result<()> {
    agent.process().context("the agent runs")?.signal(Signal::SIGHUP)
}
