//! bench area `process`: what supervision costs, against the floor of the kernel and against supervisord.
//!
//! supervisord (Debian's `supervisor`) runs the same programs from a configuration of its own, in a directory of its own.

mod floods;
mod supervisord;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use integration_tests::agent::{Settings, TestAgent};
use integration_tests::scenario::Scenario;
use integration_tests::wait::eventually;

use super::agent::{cpu_seconds, resident_mb};
use super::{Context, Row, Target, median};
use supervisord::Supervisord;

const PROCESSES: usize = 100;
const MANY: usize = 1000;
const DEADLINE: Duration = Duration::from_secs(120);
const STOP_BUDGET_MS: f64 = 300.0;
const CRASH_BUDGET_MS: f64 = 10.0;
const IDLE_BUDGET_PERCENT: f64 = 0.5;

pub(crate) fn run(context: &Context) -> Result<Vec<Row>> {
    let scenario = Scenario::new(1)?;
    let mut rows = hundred(context, &scenario)?;
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
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).context("no cgroup2")?;
    Ok(Path::new(mount.split(' ').nth(1).context("no mount point")?).join("weft").join(agent.instance()))
}

fn pid_in(directory: &Path) -> Option<u32> {
    fs::read_to_string(directory.join("cgroup.procs")).ok()?.lines().next()?.parse().ok()
}

/// The agent and its log keeper.
fn pids(agent: &mut TestAgent<'_>) -> Result<Vec<u32>> {
    let keeper = pid_in(&cgroup(agent)?.join("log-keeper"));
    Ok([agent.process().context("the agent runs")?.pid()].into_iter().chain(keeper).collect())
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

fn hundred(context: &Context, scenario: &Scenario) -> Result<Vec<Row>> {
    let mut ours = agent(context, scenario, PROCESSES)?;
    let mut theirs = Supervisord::start(PROCESSES)?;
    let mut figures: [Vec<f64>; 6] = Default::default();
    let mut memory = (0.0, 0.0);
    for round in 0..context.rounds {
        figures[0].push(floor()?);
        let begun = Instant::now();
        ours.cli_text(&["start", "s"])?;
        figures[1].push(millis(begun));
        figures[2].push(crash(&ours, round)?);
        memory.0 = pids(&mut ours)?.iter().map(|pid| resident_mb(*pid)).sum::<Result<f64>>()?;
        let begun = Instant::now();
        ours.cli_text(&["stop", "s"])?;
        figures[3].push(millis(begun));
        let begun = Instant::now();
        theirs.control(&["start", "s:*"])?;
        figures[4].push(millis(begun));
        memory.1 = resident_mb(theirs.pid())?;
        let begun = Instant::now();
        theirs.control(&["stop", "s:*"])?;
        figures[5].push(millis(begun));
    }
    let [floor, start, crash, stop, their_start, their_stop] = figures.map(median);
    let row = |what: &str, unit, ours, alternative_name: &str, alternative, target| Row {
        what: what.to_owned(),
        unit,
        ours,
        alternative_name: alternative_name.to_owned(),
        alternative,
        target,
    };
    Ok(vec![
        row("start 100 until online", "ms", start, "posix_spawn", floor, Target::AtMost(2.0)),
        row("start 100 until online", "ms", start, "supervisord", their_start, Target::AtMost(1.0)),
        row("stop 100 until gone", "ms", stop, "budget", STOP_BUDGET_MS, Target::AtMost(1.0)),
        row("stop 100 until gone", "ms", stop, "supervisord", their_stop, Target::AtMost(1.0)),
        row("crash to new process", "ms", crash, "budget", CRASH_BUDGET_MS, Target::AtMost(1.0)),
        row("resident memory with 100", "MB", memory.0, "supervisord", memory.1, Target::AtMost(1.0)),
    ])
}

/// Milliseconds for a hundred starts by the library.
fn floor() -> Result<f64> {
    let begun = Instant::now();
    let start = || Command::new("/bin/sleep").arg("100000").stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    let children = (0..PROCESSES).map(|_| start()).collect::<std::io::Result<Vec<_>>>()?;
    let took = millis(begun);
    for mut child in children {
        child.kill()?;
        child.wait()?;
    }
    Ok(took)
}

/// Milliseconds from the death of one process to the next one in its place.
fn crash(agent: &TestAgent<'_>, round: usize) -> Result<f64> {
    let root = cgroup(agent)?;
    // Another instance each round: the second crash in a row is answered later, on purpose.
    let prefix = format!("s@{round}.");
    let live = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
    let find = || fs::read_dir(&root).ok()?.flatten().map(|entry| entry.path()).find(live);
    let path = find().context("the instance runs")?;
    let generation: u64 = path.extension().and_then(|life| life.to_str()).context("a life")?.parse()?;
    let next = root.join(format!("s@{round}.{}", generation + 1));
    let pid = pid_in(&path).context("a process")?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(pid)?), nix::sys::signal::Signal::SIGKILL)?;
    let begun = Instant::now();
    while pid_in(&next).is_none() {
        ensure!(begun.elapsed() < DEADLINE, "no new process came");
        std::thread::yield_now();
    }
    Ok(millis(begun))
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
