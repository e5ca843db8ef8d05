//! bench area `process`: what supervision costs, against the floor of the kernel and against supervisord, PM2 and PMDaemon.
//!
//! Each of them runs the same programs from a configuration of its own, in a directory and a cgroup of its own. supervisord
//! is Debian's `supervisor`; the others come from their registries.

mod floods;
mod hundred;
mod pen;
mod pm2;
pub(super) mod pmdaemon;
mod supervisord;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use integration_tests::agent::{Settings, TestAgent};
use integration_tests::scenario::Scenario;
use integration_tests::wait::eventually;

use super::agent::cpu_seconds;
use super::{Context, Row, Target};

const MANY: usize = 1000;
const DEADLINE: Duration = Duration::from_secs(120);
const IDLE_BUDGET_PERCENT: f64 = 0.5;

pub(crate) fn run(context: &Context) -> Result<Vec<Row>> {
    let scenario = Scenario::new(1)?;
    let mut rows = hundred::run(context, &scenario)?;
    rows.push(idle(context, &scenario)?);
    rows.extend(floods::run(context, &scenario)?);
    Ok(rows)
}

/// An agent that only supervises; `count` times `sleep`, not started.
fn agent<'a>(context: &Context, scenario: &'a Scenario, count: usize) -> Result<TestAgent<'a>> {
    let tables = format!(
        "[accounting]\nenabled = false\n[gateway]\nenabled = false\n[dns]\nenabled = false\n[process.s]\n\
         script = \"/bin/sleep\"\nargs = [\"100000\"]\ninstances = {count}\nautostart = false\n"
    );
    let settings = Settings::new("alpha")?.binary(&context.weft).wireguard("backend = \"userspace\"").table(&tables);
    TestAgent::start(scenario.host(0), settings)
}

/// Where the processes of `agent` live.
fn cgroup(agent: &TestAgent<'_>) -> Result<PathBuf> {
    Ok(pen::mount()?.join("weft").join(agent.instance()))
}

fn pid_in(directory: &Path) -> Option<u32> {
    fs::read_to_string(directory.join("cgroup.procs")).ok()?.lines().next()?.parse().ok()
}

/// The agent and its log keeper.
fn pids(agent: &mut TestAgent<'_>) -> Result<Vec<u32>> {
    let keeper = pid_in(&cgroup(agent)?.join("log-keeper"));
    Ok([agent.process().context("the agent runs")?.pid()].into_iter().chain(keeper).collect())
}

fn idle(context: &Context, scenario: &Scenario) -> Result<Row> {
    let mut agent = agent(context, scenario, MANY)?;
    agent.cli_text(&["start", "s"])?;
    let all = pids(&mut agent)?;
    let used = || all.iter().map(|pid| cpu_seconds(*pid)).sum::<Result<f64>>();
    // What the start left to do is no idling.
    let settled = || {
        used().is_ok_and(|first| {
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_millis(500) {
                std::thread::yield_now();
            }
            used().is_ok_and(|second| second - first < 0.011)
        })
    };
    eventually(DEADLINE, "the agent is idle", settled)?;
    let (before, begun) = (used()?, Instant::now());
    std::thread::sleep(Duration::from_secs(15 * context.seconds));
    let percent = (used()? - before) / begun.elapsed().as_secs_f64() * 100.0;
    Ok(Row {
        what: format!("CPU, idle with {MANY} processes"),
        unit: "%",
        ours: percent,
        alternative_name: "budget".to_owned(),
        alternative: IDLE_BUDGET_PERCENT,
        target: Target::AtMost(1.0),
    })
}
