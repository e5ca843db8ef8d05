//! `cargo xtask bench peers`: what many peers cost on the embedded device.
//!
//! The agent's log says how long a change took: `write_us` on the device, `pass_us` with reading the wanted state and
//! planning. `wg` works on the same device, its start-up included in its time, which is small against the rest.
//!
//! A reload parses the whole file and finds the peers that differ; a change that comes as a model does neither. What that costs
//! the domains that follow the peers is measured by the example `peer_changes`, as processor time: it is the same
//! whatever else the machine does.

use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use integration_tests::agent::{PeerTable, Settings, TestAgent};
use integration_tests::scenario::Scenario;
use integration_tests::wait::{eventually, eventually_some};
use nix::sys::signal::Signal;

use super::{Context, Row, Target, median};
use crate::repo;

const MANY: usize = 10_000;
const FEW: usize = 10;
/// Enough that a tick of the processor's clock does not matter.
const CHANGES: &str = "300";
/// A resync comes every 30 seconds.
const RESYNC: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn run(context: &Context) -> Result<Vec<Row>> {
    let scenario = Scenario::new(1)?;
    let mut rows = from_empty(&scenario, context)?;
    rows.extend(one_changed(&scenario, context)?);
    rows.push(joins_and_leaves(&scenario, context)?);
    Ok(rows)
}

/// One peer joins and leaves among few and among many, until device, routes and maps hold it.
fn joins_and_leaves(scenario: &Scenario, context: &Context) -> Result<Row> {
    repo::execute(&mut repo::cargo(&["build", "--release", "--package", "weft-agent", "--example", "peer_changes"]))?;
    let program = repo::built("release", "examples/peer_changes");
    let program = program.to_str().context("the path is text")?;
    let (mut few, mut many) = (Vec::new(), Vec::new());
    for _ in 0..context.rounds {
        for (peers, figures) in [(FEW, &mut few), (MANY, &mut many)] {
            let text = scenario.host(0).run(&[program, "wtpc", &peers.to_string(), CHANGES])?;
            let told: serde_json::Value = serde_json::from_str(&text).context("peer_changes prints JSON")?;
            figures.push(told["processor_us"].as_f64().context("it tells the processor time")?);
        }
    }
    Ok(Row {
        what: format!("tunnel, link and accounting, CPU for one peer that joins or leaves {MANY}"),
        unit: "us",
        ours: median(many),
        alternative_name: format!("{FEW}"),
        alternative: median(few),
        target: Target::AtMost(1.1),
    })
}

/// Everything at once, against `wg setconf` of the same peers: a running agent is told of all of them by a reload, with
/// nothing else to do; and an agent starts with all of them and with every domain, making its link first.
fn from_empty(scenario: &Scenario, context: &Context) -> Result<Vec<Row>> {
    let (mut told, mut started, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..context.rounds {
        let mut agent = TestAgent::start(scenario.host(0), settings(0, 0, context)?)?;
        agent.reconfigure(settings(MANY, 0, context)?)?;
        agent.process().context("the agent runs")?.signal(Signal::SIGHUP)?;
        told.push(newest(&agent, MANY, 0)?.pass_us / 1000.0);
        drop(agent);
        let agent = TestAgent::start(scenario.host(0), everything(MANY, 0, context)?)?;
        started.push(newest(&agent, MANY, 0)?.pass_us / 1000.0);
        drop(agent);
        let agent = TestAgent::start(scenario.host(0), settings(0, 0, context)?)?;
        theirs.push(setconf(&agent)?);
    }
    let theirs = median(theirs);
    let row = |what: &str, ours| Row {
        what: format!("{MANY} peers from empty, {what}"),
        unit: "ms",
        ours,
        alternative_name: "wg setconf".to_owned(),
        alternative: theirs,
        target: Target::AtMost(1.5),
    };
    Ok(vec![row("by a reload", median(told)), row("whole agent at its start", median(started))])
}

/// One peer of few and of many gets another keepalive by a reload; then nothing changes for a resync.
fn one_changed(scenario: &Scenario, context: &Context) -> Result<Vec<Row>> {
    let mut few = TestAgent::start(scenario.host(0), settings(FEW, 0, context)?)?;
    let few_change = reloads(&mut few, FEW, context)?;
    drop(few);
    let mut many = TestAgent::start(scenario.host(0), settings(MANY, 0, context)?)?;
    let many_change = reloads(&mut many, MANY, context)?;
    let dump = Instant::now();
    scenario.host(0).run(&["wg", "show", many.link(), "dump"])?;
    let dump_ms = dump.elapsed().as_secs_f64() * 1000.0;
    let row = |what: String, unit, ours, alternative_name: String, alternative, target| Row {
        what,
        unit,
        ours,
        alternative_name,
        alternative,
        target,
    };
    Ok(vec![
        row(
            format!("update for one changed peer of {MANY}"),
            "us",
            many_change.write_us,
            format!("of {FEW}"),
            few_change.write_us,
            Target::AtMost(1.5),
        ),
        row(
            format!("whole pass for one changed peer of {MANY}"),
            "ms",
            many_change.pass_us / 1000.0,
            "wg show dump".to_owned(),
            dump_ms,
            Target::AtMost(1.0),
        ),
        row(
            format!("writes of a resync without change, {MANY} peers"),
            "writes",
            resync_writes(&many)?,
            "one".to_owned(),
            1.0,
            Target::AtMost(0.0),
        ),
    ])
}

/// What the log says of a change.
#[derive(Debug, Clone, Copy)]
struct Took {
    write_us: f64,
    pass_us: f64,
}

fn reloads(agent: &mut TestAgent<'_>, peers: usize, context: &Context) -> Result<Took> {
    let (mut writes, mut passes) = (Vec::new(), Vec::new());
    for round in 0..context.rounds.max(5) {
        agent.reconfigure(settings(peers, round + 1, context)?)?;
        agent.process().context("the agent runs")?.signal(Signal::SIGHUP)?;
        let took = newest(agent, 1, round)?;
        writes.push(took.write_us);
        passes.push(took.pass_us);
    }
    // Every domain answers the same reload at the same time, and they share the processors: the least is the update's own.
    let write_us = writes.into_iter().fold(f64::INFINITY, f64::min);
    Ok(Took { write_us, pass_us: median(passes) })
}

/// Waits for the log line of the change number `earlier` (from 0) of `changes` peers.
fn newest(agent: &TestAgent<'_>, changes: usize, earlier: usize) -> Result<Took> {
    let wanted = format!("changes={changes} ");
    eventually_some(PATIENCE, "the agent logs its change of peers", || {
        let log = agent.log();
        let line = log.lines().filter(|line| line.contains("peers changed") && line.contains(&wanted)).nth(earlier)?;
        Some(Took { write_us: field(line, "write_us=")?, pass_us: field(line, "pass_us=")? })
    })
}

fn field(line: &str, name: &str) -> Option<f64> {
    line.split_once(name)?.1.split_whitespace().next()?.parse().ok()
}

/// Milliseconds of `wg setconf` with `MANY` peers on the agent's device.
fn setconf(agent: &TestAgent<'_>) -> Result<f64> {
    let mut text = format!("[Interface]\nPrivateKey = {}\n", agent.settings().keys().private);
    for number in 0..MANY {
        let PeerTable { public_key, allowed_ips, .. } = peer(number);
        writeln!(text, "[Peer]\nPublicKey = {public_key}\nAllowedIPs = {}", allowed_ips.join(", "))?;
    }
    let file = agent.directory().join("setconf.conf");
    fs::write(&file, text)?;
    let file = file.to_str().context("a temporary path is text")?;
    let started = Instant::now();
    agent.host().run(&["wg", "setconf", agent.link(), file])?;
    Ok(started.elapsed().as_secs_f64() * 1000.0)
}

/// Changes that were written between two passes of the reconciler.
fn resync_writes(agent: &TestAgent<'_>) -> Result<f64> {
    let passes = metric(agent, "weft_wireguard_reconcile_passes_total")?;
    let writes = metric(agent, "weft_wireguard_reconcile_steps_total")?;
    eventually(RESYNC, "a resync", || {
        metric(agent, "weft_wireguard_reconcile_passes_total").is_ok_and(|now| now > passes)
    })?;
    Ok(metric(agent, "weft_wireguard_reconcile_steps_total")? - writes)
}

fn metric(agent: &TestAgent<'_>, name: &str) -> Result<f64> {
    let text = agent.host().run(&["curl", "--silent", "--fail", "--max-time", "5", "http://127.0.0.1:9615/metrics"])?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|value| value.trim().parse().ok()).with_context(|| format!("no metric {name}"))
}

/// `wg setconf` makes no routes, no names and no counters either: each is another domain's cost, at the same time on the
/// same processors.
const WIREGUARD_ALONE: &str = "[network]\nroutes = false\n[dns]\nenabled = false\n[accounting]\nenabled = false";

/// A node with `peers` peers, the first of them with a keepalive that tells rounds apart.
fn settings(peers: usize, round: usize, context: &Context) -> Result<Settings> {
    Ok(everything(peers, round, context)?.table(WIREGUARD_ALONE))
}

/// The same with every domain as it is by default.
fn everything(peers: usize, round: usize, context: &Context) -> Result<Settings> {
    let settings = Settings::new("alpha")?.binary(&context.weft).addresses(&["10.80.0.1/32"]);
    let mut settings = settings.wireguard("backend = \"userspace\"");
    for number in 0..peers {
        let mut peer = peer(number);
        if number == 0 {
            peer.persistent_keepalive = Some(u16::try_from(60 + round)?);
        }
        settings = settings.peer(peer);
    }
    Ok(settings)
}

fn peer(number: usize) -> PeerTable {
    let (high, low) = (number / 250, number % 250 + 1);
    PeerTable {
        name: format!("peer-{number}"),
        // Any 32 bytes are a public key; digits are base64.
        public_key: format!("{number:042}A="),
        allowed_ips: vec![format!("10.81.{high}.{low}/32")],
        ..PeerTable::default()
    }
}
