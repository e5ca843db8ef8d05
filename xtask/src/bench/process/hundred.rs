//! A hundred processes: started, one of them killed, stopped; and what each supervisor keeps in memory meanwhile.
//!
//! PMDaemon has no daemon that could be measured: who starts a process with it is gone before the process is.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use integration_tests::agent::TestAgent;
use integration_tests::scenario::Scenario;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::super::agent::resident_mb;
use super::super::{Context, Row, Target, median};
use super::pen::Pen;
use super::pm2::Pm2;
use super::pmdaemon::PmDaemon;
use super::supervisord::Supervisord;
use super::{DEADLINE, agent, cgroup, pid_in, pids};

const PROCESSES: usize = 100;
const STOP_BUDGET_MS: f64 = 300.0;
const CRASH_BUDGET_MS: f64 = 10.0;
/// PM2 takes ten seconds to stop a hundred; three rounds of it are enough.
const SLOW_ROUNDS: usize = 3;
/// How long every supervisor is left alone with its hundred before its memory is looked at.
const SETTLED: Duration = Duration::from_secs(20);
/// After so long nothing more happens.
const GIVEN_UP: Duration = Duration::from_secs(5);

/// Milliseconds of every round.
#[derive(Debug, Default)]
struct Times {
    start: Vec<f64>,
    crash: Vec<f64>,
    stop: Vec<f64>,
}

pub(super) fn run(context: &Context, scenario: &Scenario) -> Result<Vec<Row>> {
    let (mut supervisord, pm2) = (Supervisord::start(PROCESSES)?, Pm2::start(PROCESSES)?);
    let mut ours = agent(context, scenario, PROCESSES)?;
    let mut floors = Vec::new();
    let mut times: [Times; 4] = Default::default();
    let [mine, of_supervisord, of_pm2, of_pmdaemon] = &mut times;
    for round in 0..context.rounds {
        floors.push(floor()?);
        mine.start.push(timed(|| ours.cli_text(&["start", "s"]).map(drop))?);
        mine.crash.push(crash_of_ours(&ours, round)?);
        mine.stop.push(timed(|| ours.cli_text(&["stop", "s"]).map(drop))?);
        of_supervisord.start.push(timed(|| supervisord.control(&["start", "s:*"]))?);
        of_supervisord.crash.push(crash(supervisord.pen(), round)?.context("supervisord starts it again")?);
        of_supervisord.stop.push(timed(|| supervisord.control(&["stop", "s:*"]))?);
        if round < SLOW_ROUNDS {
            of_pm2.start.push(timed(|| pm2.start_all())?);
            of_pm2.crash.push(crash(pm2.pen(), round)?.context("PM2 starts it again")?);
            of_pm2.stop.push(timed(|| pm2.control(&["stop", "s"]))?);
            of_pmdaemon.start.push(pmdaemon(round)?);
        }
    }
    let memory = memory(&mut ours, &mut supervisord, &pm2)?;
    Ok(rows(floors, times, memory))
}

fn rows(floors: Vec<f64>, times: [Times; 4], memory: [f64; 3]) -> Vec<Row> {
    let [mine, of_supervisord, of_pm2, of_pmdaemon] = times;
    let row = |what: &str, unit, ours, name: &str, alternative, target| Row {
        what: what.to_owned(),
        unit,
        ours,
        alternative_name: name.to_owned(),
        alternative,
        target,
    };
    let below = |what: &str, ours: f64, others: Vec<(&str, f64)>| -> Vec<Row> {
        others.into_iter().map(|(name, other)| row(what, "ms", ours, name, other, Target::AtMost(1.0))).collect()
    };
    let (start, crash, stop) = (median(mine.start), median(mine.crash), median(mine.stop));
    let mut rows = vec![row("start 100 until online", "ms", start, "posix_spawn", median(floors), Target::AtMost(2.0))];
    let starts = vec![
        ("supervisord", median(of_supervisord.start)),
        ("pm2", median(of_pm2.start)),
        ("pmdaemon", median(of_pmdaemon.start)),
    ];
    rows.extend(below("start 100 until online", start, starts));
    let stops =
        vec![("budget", STOP_BUDGET_MS), ("supervisord", median(of_supervisord.stop)), ("pm2", median(of_pm2.stop))];
    rows.extend(below("stop 100 until gone", stop, stops));
    let crashes =
        vec![("budget", CRASH_BUDGET_MS), ("supervisord", median(of_supervisord.crash)), ("pm2", median(of_pm2.crash))];
    rows.extend(below("crash to new process", crash, crashes));
    let [ours, supervisord, pm2] = memory;
    for (name, other) in [("supervisord", supervisord), ("pm2", pm2)] {
        rows.push(row("resident memory with 100, settled", "MB", ours, name, other, Target::AtMost(1.0)));
    }
    rows
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let begun = Instant::now();
    work()?;
    Ok(millis(begun))
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

/// Resident memory of each with its hundred, after the same while without anything to do: ours with the log keeper,
/// supervisord, PM2's daemon.
fn memory(ours: &mut TestAgent<'_>, supervisord: &mut Supervisord, pm2: &Pm2) -> Result<[f64; 3]> {
    ours.cli_text(&["start", "s"])?;
    supervisord.control(&["start", "s:*"])?;
    pm2.start_all()?;
    std::thread::sleep(SETTLED);
    let mine = pids(ours)?.iter().map(|pid| resident_mb(*pid)).sum::<Result<f64>>()?;
    let figures = [mine, resident_mb(supervisord.pid())?, resident_mb(pm2.pid())?];
    for (name, pen) in [("supervisord", supervisord.pen()), ("pm2", pm2.pen())] {
        ensure!(pen.sleepers().len() == PROCESSES, "{name} runs {} processes", pen.sleepers().len());
    }
    Ok(figures)
}

/// Milliseconds for a hundred starts by PMDaemon. In the first round it is seen what becomes of them.
fn pmdaemon(round: usize) -> Result<f64> {
    let pmdaemon = PmDaemon::new(PROCESSES)?;
    let took = timed(|| pmdaemon.start_all())?;
    if round == 0 {
        pmdaemon.control(&["stop", "s0"])?;
        if gone(pmdaemon.pen()).is_none() {
            eprintln!("bench: PMDaemon says that it stopped a process, which runs on: there is no row of its stops");
        }
        if crash(pmdaemon.pen(), round)?.is_none() {
            eprintln!("bench: PMDaemon starts no process again: there is no row of its crashes");
        }
    }
    Ok(took)
}

/// Milliseconds until one of the hundred is gone; `None`: all stay.
fn gone(pen: &Pen) -> Option<f64> {
    let begun = Instant::now();
    while pen.sleepers().len() == PROCESSES {
        if begun.elapsed() > GIVEN_UP {
            return None;
        }
        std::thread::yield_now();
    }
    Some(millis(begun))
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
fn crash_of_ours(agent: &TestAgent<'_>, round: usize) -> Result<f64> {
    let root = cgroup(agent)?;
    // Another instance each round: the second crash in a row is answered later, on purpose.
    let prefix = format!("s@{round}.");
    let live = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
    let find = || fs::read_dir(&root).ok()?.flatten().map(|entry| entry.path()).find(live);
    let path = find().context("the instance runs")?;
    let generation: u64 = path.extension().and_then(|life| life.to_str()).context("a life")?.parse()?;
    let next = root.join(format!("s@{round}.{}", generation + 1));
    let pid = pid_in(&path).context("a process")?;
    kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL)?;
    let begun = Instant::now();
    while pid_in(&next).is_none() {
        ensure!(begun.elapsed() < DEADLINE, "no new process came");
        std::thread::yield_now();
    }
    Ok(millis(begun))
}

/// The same of a supervisor in `pen`; `None`: none came.
fn crash(pen: &Pen, round: usize) -> Result<Option<f64>> {
    let before = pen.members();
    let sleepers = pen.sleepers();
    ensure!(sleepers.len() == PROCESSES, "{} of {PROCESSES} processes run", sleepers.len());
    kill(Pid::from_raw(i32::try_from(sleepers[round % PROCESSES])?), Signal::SIGKILL)?;
    let begun = Instant::now();
    while pen.members().iter().all(|pid| before.contains(pid)) {
        if begun.elapsed() > GIVEN_UP {
            return Ok(None);
        }
        std::thread::yield_now();
    }
    Ok(Some(millis(begun)))
}
