//! `weft down`: exactly our objects go.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use integration_tests::agent::TestAgent;
use integration_tests::netns::NetNs;
use integration_tests::wait::eventually;
use serde_json::Value;

use crate::guest::lab::{self, INNER, Lab, PATIENCE, reach};
use crate::guest::report::Report;

/// Objects of somebody else, as like ours as they can be.
const FOREIGN: &[&str] = &[
    "ip link add wg-other type wireguard",
    "ip address add 10.66.0.1/24 dev wg-other",
    "ip link set wg-other up",
    "ip route add 10.67.0.0/16 dev wg-other",
    "ip rule add fwmark 7 lookup 77",
    "nft add table inet other",
    "nft add chain inet other input { type filter hook input priority 0 ; }",
    "nft add rule inet other input udp dport 51820 accept",
];
const FIREWALL: &str = "[firewall]\nopen_port = true\nforward = true\nmasquerade = [\"10.80.0.0/24\"]\n";
const PINS: &str = "/sys/fs/bpf/weft";
const FOREIGN_PIN: &str = "/sys/fs/bpf/weft/somebody-else";

pub(super) fn down(report: &mut Report) -> Result<()> {
    let lab = Lab::new(1)?;
    let host = lab.host(0);
    for line in FOREIGN {
        host.run(&line.split(' ').collect::<Vec<_>>())?;
    }
    fs::create_dir_all(FOREIGN_PIN)?;
    settle(host)?;
    let mut settings = lab.settings()?.into_iter();
    let (own, other) = settings.next().zip(settings.next()).context("the lab has two hosts")?;
    let mut agent = TestAgent::prepare(host, own.table(FIREWALL))?;
    let beta = lab::start(lab.host(1), other)?;
    let before = Snapshot::take(host)?;
    agent.launch()?;
    lab::settle(&mut agent)?;
    reach(host, INNER[1])?;
    let mut status = Value::Null;
    let table = eventually(PATIENCE, "the firewall table is there", || {
        status = agent
            .cli(&["status", "--json"])
            .map_or(Value::Null, |output| serde_json::from_slice(&output.stdout).unwrap_or(Value::Null));
        status.pointer("/firewall/table").is_some_and(Value::is_string)
    });
    table.with_context(|| format!("status: {status}"))?;
    let up = Snapshot::take(host)?;
    for (part, (there, now)) in PARTS.iter().zip(before.0.iter().zip(&up.0)) {
        // A part that shows nothing of the agent could not show that it is gone.
        ensure!(there != now || *part == "ip rule", "{part} shows nothing of a running agent");
    }
    agent.stop()?;
    ensure!(Snapshot::take(host)?.0[1..] == up.0[1..], "stopping the agent took something away");
    agent.cli_text(&["down"])?;
    let after = Snapshot::take(host)?;
    for (part, (there, left)) in PARTS.iter().zip(before.0.iter().zip(&after.0)) {
        ensure!(there == left, "{part} differs after weft down; before:\n{there}\nafter:\n{left}");
    }
    fs::remove_dir(FOREIGN_PIN)?;
    // Nothing of the other agent on this machine was ours to take.
    ensure!(beta.cli(&["status", "--check", "ready"])?.status.success(), "the other agent suffered");
    ensure!(Path::new(PINS).join(beta.instance()).exists(), "the pins of the other agent are gone");
    report.note(format_args!("equal before start and after down: {}", PARTS.join(", ")));
    // The second time there is nothing to do, which is fine.
    agent.cli_text(&["down"])?;
    Ok(())
}

/// What a snapshot looks at.
const PARTS: &[&str] = &["links and addresses", "routes", "ip rule", "nftables", "pins"];

/// What the agent could have changed on a host, a text for each of [`PARTS`].
#[derive(Debug, PartialEq, Eq)]
struct Snapshot([String; 5]);

impl Snapshot {
    fn take(host: &NetNs) -> Result<Self> {
        let run = |line: &str| host.run(&line.split(' ').collect::<Vec<_>>());
        let both =
            |object: &str| Ok::<_, anyhow::Error>(run(&format!("ip -4 {object}"))? + &run(&format!("ip -6 {object}"))?);
        Ok(Self([
            run("ip -brief address show")? + &run("ip -brief link show")?,
            both("route show table all")?,
            both("rule show")?,
            run("nft list ruleset")?,
            tree(Path::new(PINS))?.join("\n"),
        ]))
    }
}

/// Every path below `directory`.
fn tree(directory: &Path) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    if !directory.exists() {
        return Ok(paths);
    }
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        paths.push(path.display().to_string());
        if path.is_dir() {
            paths.extend(tree(&path)?);
        }
    }
    paths.sort();
    Ok(paths)
}

/// Link-local addresses take a second to be found unique; a snapshot before that differs from one after.
fn settle(host: &NetNs) -> Result<()> {
    eventually(PATIENCE, "addresses are settled", || {
        host.run(&["ip", "-6", "address", "show", "tentative"]).is_ok_and(|text| text.trim().is_empty())
    })
}
