//! Two hundred megabytes of lines: what they cost whoever keeps them, and whether all of them are kept.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use integration_tests::agent::{Settings, TestAgent};
use integration_tests::scenario::Scenario;
use integration_tests::wait::eventually;

use super::super::agent::cpu_seconds;
use super::super::{Context, Row, Target, median};
use super::{pids, supervisord::Supervisord};

/// Two million lines of a hundred bytes.
pub(super) const COMMAND: &str = "/bin/sh -c 'yes 012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678 | head -n 2000000'";
const LINES: usize = 2_000_000;
const BYTES: u64 = 200_000_000;
const DEADLINE: Duration = Duration::from_secs(300);

pub(super) fn run(context: &Context, scenario: &Scenario) -> Result<Vec<Row>> {
    let mut figures: [Vec<f64>; 2] = Default::default();
    let mut kept = usize::MAX;
    // A flood takes seconds: three rounds are enough.
    for _ in 0..context.rounds.min(3) {
        let (cpu, lines) = ours(context, scenario)?;
        figures[0].push(cpu);
        kept = kept.min(lines);
        figures[1].push(theirs()?);
    }
    let [ours, theirs] = figures.map(median);
    Ok(vec![
        Row {
            what: "CPU for 200 MB of lines".to_owned(),
            unit: "s",
            ours,
            alternative_name: "supervisord".to_owned(),
            alternative: theirs,
            target: Target::AtMost(1.0),
        },
        Row {
            what: "lines kept of two million".to_owned(),
            unit: "",
            ours: kept as f64,
            alternative_name: "all".to_owned(),
            alternative: LINES as f64,
            target: Target::AtLeast(1.0),
        },
    ])
}

/// CPU seconds of the agent and the log keeper, and the lines in the file.
fn ours(context: &Context, scenario: &Scenario) -> Result<(f64, usize)> {
    let tables = format!(
        "[accounting]\nenabled = false\n[gateway]\nenabled = false\n[dns]\nenabled = false\n\
         [supervisor]\nlog_max_size = \"1G\"\n[process.quiet]\nscript = \"/bin/sleep 100000\"\n\
         [process.flood]\nscript = {COMMAND:?}\nautostart = false\nautorestart = false\n"
    );
    let settings = Settings::new("alpha")?.binary(&context.weft).wireguard("backend = \"userspace\"").table(&tables);
    let mut agent = TestAgent::start(scenario.host(0), settings)?;
    eventually(DEADLINE, "the keeper runs", || pids(&mut agent).is_ok_and(|pids| pids.len() == 2))?;
    let all = pids(&mut agent)?;
    let used = || all.iter().map(|pid| cpu_seconds(*pid)).sum::<Result<f64>>();
    let before = used()?;
    agent.cli_text(&["start", "flood", "--no-wait"])?;
    let file = agent.directory().join("state/logs/process/flood-out.log");
    // Each line has its time before it: 25 bytes more.
    let whole = BYTES + 25 * LINES as u64;
    eventually(DEADLINE, "all is written", || fs::metadata(&file).is_ok_and(|metadata| metadata.len() >= whole))?;
    let cpu = used()? - before;
    let text = fs::read(&file).context("the log")?;
    Ok((cpu, text.iter().filter(|byte| **byte == b'\n').count()))
}

fn theirs() -> Result<f64> {
    let mut supervisord = Supervisord::start(1)?;
    let before = cpu_seconds(supervisord.pid())?;
    supervisord.control(&["start", "flood"])?;
    eventually(DEADLINE, "all is written", || supervisord.flooded() >= BYTES)?;
    let cpu = cpu_seconds(supervisord.pid())? - before;
    ensure!(cpu > 0.0, "supervisord wrote 200 MB in no time");
    Ok(cpu)
}
