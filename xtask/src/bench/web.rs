//! Area `web`: the web API with a hundred processes against nginx, which serves the same bytes from a file, and against
//! PMDaemon, whose API it is; many connections; many WebSocket subscribers.
//!
//! One core each: the server under test is kept on the first CPU, the load generator on the second. CPU per request is the
//! figure that counts: requests per second on a busy machine tell of the scheduler more than of the server.

mod crowd;
mod servers;

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use integration_tests::agent::TestAgent;
use integration_tests::netns::NetNs;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::agent::{cpu_seconds, resident_mb};
use super::{Context, Row, Target, median};

const WEB: &str = "127.0.0.1:9615";
const LIST: &str = "/api/processes";
const PROCESSES: usize = 100;
/// The key of PMDaemon's web server, which has none without.
const KEY: &str = "bench";
const ACCEPT: &str = "Accept: application/json";
/// Connections that ask in lock-step.
const CONNECTIONS: usize = 64;
const MANY: usize = 10_000;
const SUBSCRIBERS: usize = 1000;
/// Changes that every subscriber must hear of.
const CHANGES: usize = 20;
/// What an open connection may keep in memory, a budget of our own.
const CONNECTION_KIB: f64 = 16.0;

pub(crate) fn run(context: &Context) -> Result<Vec<Row>> {
    let (_soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("more file descriptors")?;
    let host = NetNs::new()?;
    let mut agent = servers::agent(&host, context)?;
    let mut rows = list(&host, context, &mut agent)?;
    rows.extend(many(&host, &mut agent)?);
    rows.push(subscribers(&host, &agent)?);
    Ok(rows)
}

/// Processor time and answers of one run.
#[derive(Debug, Clone, Copy)]
struct Sample {
    cpu_micros: f64,
    per_second: f64,
}

fn list(host: &NetNs, context: &Context, agent: &mut TestAgent<'_>) -> Result<Vec<Row>> {
    let pid = agent.process().context("the agent runs")?.pid();
    let body = host.run(&["curl", "-sS", &format!("http://{WEB}{LIST}")])?;
    ensure!(body.contains(&format!("\"total\":{PROCESSES}")), "there are not {PROCESSES} processes: {body}");
    let nginx = servers::nginx(host, LIST, &body)?;
    let pmdaemon = servers::pmdaemon(host, KEY)?;
    let (mut ours, mut of_nginx, mut of_pmdaemon) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..context.rounds {
        of_nginx.push(measure(host, context, (&nginx.address, nginx.process.pid()), ACCEPT)?);
        ours.push(measure(host, context, (WEB, pid), ACCEPT)?);
        let address = (pmdaemon.address.as_str(), pmdaemon.process.pid());
        of_pmdaemon.push(measure(host, context, address, &format!("X-API-Key: {KEY}"))?);
    }
    let what = format!("GET {LIST}, {PROCESSES} processes, {} bytes, {CONNECTIONS} connections", body.len());
    let row = |figured: &str, unit, figure: fn(&Sample) -> f64, others: (&str, &[Sample]), target| Row {
        what: format!("{what}, {figured}"),
        unit,
        ours: median(ours.iter().map(figure).collect()),
        alternative_name: others.0.to_owned(),
        alternative: median(others.1.iter().map(figure).collect()),
        target,
    };
    let others = [("nginx, static file", of_nginx.as_slice()), ("pmdaemon", of_pmdaemon.as_slice())];
    Ok(others
        .into_iter()
        .flat_map(|others| {
            [
                row("server CPU", "us", |sample| sample.cpu_micros, others, Target::AtMost(1.0)),
                row("answered", "1/s", |sample| sample.per_second, others, Target::AtLeast(1.0)),
            ]
        })
        .collect())
}

/// Loads the server of a process, with one header more.
fn measure(host: &NetNs, context: &Context, (address, pid): (&str, u32), header: &str) -> Result<Sample> {
    let (connections, duration) = (format!("-c{CONNECTIONS}"), format!("-d{}s", context.seconds));
    let url = format!("http://{address}{LIST}");
    let words = ["taskset", "--cpu-list", "1", "wrk", "-t1", &connections, &duration, "-H", header, &url];
    let before = cpu_seconds(pid)?;
    let report = host.run(&words)?;
    let used = cpu_seconds(pid)? - before;
    ensure!(!report.contains("Non-2xx") && !report.contains("Socket errors"), "wrk was refused:\n{report}");
    let requests = word_before(&report, " requests in")?;
    let per_second = report.split_once("Requests/sec:").context("wrk tells a rate")?.1;
    let per_second = per_second.split_whitespace().next().context("a rate")?.parse()?;
    Ok(Sample { cpu_micros: used * 1e6 / requests, per_second })
}

/// The number that stands before `label` in the report of wrk.
fn word_before(report: &str, label: &str) -> Result<f64> {
    let before = report.split_once(label).with_context(|| format!("wrk did not print {label:?}:\n{report}"))?.0;
    let word = before.split_whitespace().next_back().context("a number stands before its label")?;
    word.parse().with_context(|| format!("{word:?} stands before {label:?}"))
}

/// All open at once, and every one answered while all are.
fn many(host: &NetNs, agent: &mut TestAgent<'_>) -> Result<Vec<Row>> {
    let pid = agent.process().context("the agent runs")?.pid();
    let address: SocketAddr = WEB.parse()?;
    let before = resident_mb(pid)?;
    let (answered, grown) = host.enter(|| -> Result<(usize, f64)> {
        let mut crowd = crowd::Crowd::connect(address, MANY)?;
        let answered = crowd.ask_all(LIST)?;
        Ok((answered, resident_mb(pid)? - before))
    })??;
    let row = |what: String, unit, ours, alternative, target| Row {
        what,
        unit,
        ours,
        alternative_name: "budget".to_owned(),
        alternative,
        target,
    };
    let (many, kib) = (MANY as f64, grown * 1e6 / 1024.0 / MANY as f64);
    Ok(vec![
        row(format!("answered of {MANY} open connections"), "", answered as f64, many, Target::AtLeast(1.0)),
        row(format!("memory a connection, {MANY} open and answered"), "KiB", kib, CONNECTION_KIB, Target::AtMost(1.0)),
    ])
}

/// Every subscriber hears of every change.
fn subscribers(host: &NetNs, agent: &TestAgent<'_>) -> Result<Row> {
    let address: SocketAddr = WEB.parse()?;
    let heard = host.enter(|| -> Result<usize> {
        let crowd = crowd::Subscribers::connect(address, SUBSCRIBERS)?;
        for number in 0..CHANGES {
            agent.cli_text(&["start", "sleep 100000", "--name", &format!("change-{number}")])?;
        }
        crowd.hear(&|text| (0..CHANGES).filter(|number| is_started(text, *number)).count())
    })??;
    Ok(Row {
        what: format!("{CHANGES} starts heard by {SUBSCRIBERS} WebSocket subscribers"),
        unit: "",
        ours: heard as f64,
        alternative_name: "all of them".to_owned(),
        alternative: (CHANGES * SUBSCRIBERS) as f64,
        target: Target::AtLeast(1.0),
    })
}

fn is_started(text: &str, number: usize) -> bool {
    text.contains(&format!("{{\"event\":\"started\",\"process\":\"change-{number}\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_wrk_are_found() {
        let report = "  80482 requests in 8.10s, 1.43GB read\nRequests/sec:   9936.05\n";
        assert!((word_before(report, " requests in").expect("there") - 80_482.0).abs() < f64::EPSILON);
        assert!(word_before(report, "Latency").is_err());
    }

    #[test]
    fn a_start_is_told_from_others() {
        let text = r#"{"type":"process_event","data":{"event":"started","process":"change-1","timestamp":"x"}}"#;
        assert!(is_started(text, 1) && !is_started(text, 0) && !is_started(text, 11));
    }
}
