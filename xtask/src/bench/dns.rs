//! Area `dns`: the agent against knot over the same 1,000 names, one serving thread each, in alternation.
//!
//! dnsperf asks for as long as both keep up. CPU per query is the figure that counts: queries per second on a busy
//! machine tell of the scheduler more than of the server.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use integration_tests::agent::{PeerTable, Settings, TestAgent};
use integration_tests::key::KeyPair;
use integration_tests::netns::NetNs;
use integration_tests::process::Process;

use super::agent::cpu_seconds;
use super::{Context, Row, Target, median};

const NAMES: usize = 1000;
const KNOT_PORT: u16 = 5301;
const WEFT_PORT: u16 = 5302;
const START_DEADLINE: Duration = Duration::from_secs(20);

/// One measurement.
#[derive(Debug, Clone, Copy)]
struct Sample {
    queries_per_second: f64,
    cpu_micros_per_query: f64,
}

pub(crate) fn run(context: &Context) -> Result<Vec<Row>> {
    let host = NetNs::new()?;
    let directory = tempfile::tempdir()?;
    let questions = directory.path().join("questions");
    fs::write(&questions, question_list())?;
    let mut agent = TestAgent::start(&host, settings(context)?)?;
    let weft = agent.process().context("the agent runs")?.pid();
    let knot = start_knot(&host, directory.path())?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..context.rounds {
        theirs.push(measure(&host, context, &questions, KNOT_PORT, knot.pid())?);
        ours.push(measure(&host, context, &questions, WEFT_PORT, weft)?);
    }
    let row = |what: &str, unit, figure: fn(&Sample) -> f64, target| Row {
        what: format!("{what}, {NAMES} names, one thread"),
        unit,
        ours: median(ours.iter().map(figure).collect()),
        alternative_name: "knot".to_owned(),
        alternative: median(theirs.iter().map(figure).collect()),
        target,
    };
    Ok(vec![
        row("server CPU per query", "us", |sample| sample.cpu_micros_per_query, Target::AtMost(1.0)),
        row("queries answered", "1/s", |sample| sample.queries_per_second, Target::AtLeast(1.0)),
    ])
}

fn name(index: usize) -> String {
    format!("n{index:04}")
}

fn address(index: usize) -> String {
    format!("10.81.{}.{}", index / 256, index % 256)
}

/// Every name once, in an order that no cache line guesses.
fn question_list() -> String {
    (0..NAMES).fold(String::new(), |mut list, step| {
        // Writing to a String cannot fail.
        writeln!(list, "{}.weft.internal A", name(step * 7919 % NAMES)).ok();
        list
    })
}

fn settings(context: &Context) -> Result<Settings> {
    let dns = format!("[dns]\nlisten = [\"127.0.0.1:{WEFT_PORT}\"]\nlisten_on_mesh = false\nupstream = []");
    let mut settings = Settings::new("alpha")?.binary(&context.weft).addresses(&["10.80.0.1/15"]);
    settings = settings.wireguard("backend = \"userspace\"").table(&dns);
    for index in 0..NAMES {
        settings = settings.peer(PeerTable {
            name: name(index),
            public_key: KeyPair::generate()?.public,
            allowed_ips: vec![format!("{}/32", address(index))],
            ..PeerTable::default()
        });
    }
    Ok(settings)
}

fn start_knot(host: &NetNs, directory: &Path) -> Result<Process> {
    let mut zone = "$ORIGIN weft.internal.\n$TTL 60\n@ SOA ns h 1 60 60 60 60\n@ NS ns\nns A 10.80.0.53\n".to_owned();
    for index in 0..NAMES {
        writeln!(zone, "{} A {}", name(index), address(index)).context("writing to a String")?;
    }
    fs::write(directory.join("weft.internal.zone"), zone)?;
    let text = format!(
        "server:\n  rundir: {directory:?}\n  listen: 127.0.0.1@{KNOT_PORT}\n  udp-workers: 1\n  tcp-workers: 1\n  \
         background-workers: 1\nlog:\n  - target: stderr\n    any: error\ndatabase:\n  storage: {directory:?}\nzone:\n  \
         - domain: weft.internal\n    storage: {directory:?}\n    file: weft.internal.zone\n    zonefile-load: whole\n    \
         journal-content: none\n"
    );
    let config = directory.join("knot.conf");
    fs::write(&config, text)?;
    let mut command = host.command("knotd");
    command.arg("-c").arg(&config);
    let mut knot = Process::spawn("knotd", command)?;
    let port = KNOT_PORT.to_string();
    let question = ["dig", "+short", "+tries=1", "+time=1", "-p", &port, "@127.0.0.1", "n0000.weft.internal"];
    knot.wait_for("knot answers", START_DEADLINE, || host.run(&question).is_ok_and(|text| text.starts_with("10.")))?;
    Ok(knot)
}

fn measure(host: &NetNs, context: &Context, questions: &Path, port: u16, pid: u32) -> Result<Sample> {
    let (port, seconds) = (port.to_string(), context.seconds.to_string());
    let questions = questions.to_str().context("a temporary path is text")?;
    let before = cpu_seconds(pid)?;
    let report = host.run(&[
        "dnsperf",
        "-s",
        "127.0.0.1",
        "-p",
        &port,
        "-d",
        questions,
        "-l",
        &seconds,
        "-c",
        "20",
        "-q",
        "200",
        "-T",
        "1",
    ])?;
    let used = cpu_seconds(pid)? - before;
    let completed = figure_after(&report, "Queries completed:")?;
    ensure!(completed > 0.0 && report.contains("NOERROR"), "dnsperf got no answers:\n{report}");
    Ok(Sample {
        queries_per_second: figure_after(&report, "Queries per second:")?,
        cpu_micros_per_query: used / completed * 1e6,
    })
}

fn figure_after(report: &str, label: &str) -> Result<f64> {
    let rest = report.split_once(label).with_context(|| format!("dnsperf did not print {label:?}:\n{report}"))?.1;
    let word = rest.split_whitespace().next().context("a figure follows its label")?;
    word.parse().with_context(|| format!("{label:?} is followed by {word:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_dnsperf_are_found() {
        let report = "Statistics:\n\n  Queries sent:         10\n  Queries completed:    9 (90.00%)\n  \
                      Queries per second:   1234.500000\n";
        assert!((figure_after(report, "Queries completed:").expect("there") - 9.0).abs() < f64::EPSILON);
        assert!((figure_after(report, "Queries per second:").expect("there") - 1234.5).abs() < f64::EPSILON);
        assert!(figure_after(report, "Queries lost:").is_err());
    }

    #[test]
    fn every_name_is_asked_once() {
        let list = question_list();
        let names: std::collections::BTreeSet<&str> = list.lines().collect();
        assert_eq!((list.lines().count(), names.len()), (NAMES, NAMES));
    }
}
