//! Area `gateway`: the pm3 API against nginx, its two transports against each other, passing requests on
//! to servers and to other nodes, many connections, and what it costs to know who calls.
//!
//! One core each: the server under test is kept on the first CPU, the load generator on the second. CPU per request is the
//! figure that counts: requests per second on a busy machine tell of the scheduler more than of the server.

mod callers;
mod hop;
mod load;
mod owner;
mod servers;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use integration_tests::netns::NetNs;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;

use super::agent::{cpu_seconds, resident_mb};
use super::{Context, Row, Target, median};
use load::{Crowd, Outcome, Protocol};

/// Connections that ask in lock-step; as many calls are in flight where few connections carry many.
const CONNECTIONS: usize = 64;
const IN_FLIGHT: usize = 16;
const MANY: usize = 10_000;
const SESSIONS: usize = 1000;
/// What a connection or a session may keep in memory, budgets of our own.
const CONNECTION_KIB: f64 = 20.0;
const SESSION_KIB: f64 = 24.0;
const PM3: &str = "127.0.3.3:80";

pub(crate) fn run(context: &Context) -> Result<Vec<Row>> {
    let (_soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("more file descriptors")?;
    let host = NetNs::new()?;
    let mut rows = transports(&host, context)?;
    rows.extend(passing_on(&host, context)?);
    rows.push(hop::run(context)?);
    rows.extend(many(&host, context)?);
    rows.extend(callers::run(&host, context)?);
    Ok(rows)
}

/// Processor time and replies of one run.
#[derive(Debug, Clone, Copy)]
struct Sample {
    cpu_micros: f64,
    per_second: f64,
}

/// Loads one server from a thread of the namespace on a CPU of its own.
fn measure(host: &NetNs, server: &Server<'_>, seconds: u64) -> Result<Sample> {
    let duration = Duration::from_secs(seconds);
    let outcome = host.enter(|| -> Result<(Outcome, f64)> {
        stay_on(1)?;
        let mut crowd = Crowd::open(server.address, server.protocol, server.connections)?;
        // The first replies fill caches and buffers.
        crowd.run(server.in_flight, Duration::from_millis(200))?;
        let before = cpu_seconds(server.pid)?;
        let outcome = crowd.run(server.in_flight, duration)?;
        Ok((outcome, cpu_seconds(server.pid)? - before))
    })?;
    let (outcome, used) = outcome.with_context(|| format!("load on {}", server.address))?;
    ensure!(outcome.starved == 0, "{} connections of {} got no reply", outcome.starved, server.connections);
    Ok(Sample { cpu_micros: used * 1e6 / outcome.replies as f64, per_second: outcome.per_second })
}

/// What is loaded, and how.
struct Server<'a> {
    address: SocketAddr,
    pid: u32,
    protocol: &'a Protocol,
    connections: usize,
    in_flight: usize,
}

/// HTTP against nginx and against our own WebSocket.
fn transports(host: &NetNs, context: &Context) -> Result<Vec<Row>> {
    let mut agent = servers::agent(host, context, "")?;
    let pid = agent.process().context("the agent runs")?.pid();
    let nginx = servers::nginx_static(host)?;
    let (http, web_socket) = (Protocol::http("pm3", "/ping"), Protocol::web_socket());
    let pm3: SocketAddr = PM3.parse()?;
    let ours = Server { address: pm3, pid, protocol: &http, connections: CONNECTIONS, in_flight: 1 };
    let theirs = Server { address: nginx.address, pid: nginx.pid(), ..ours };
    let lock_step = Server { protocol: &web_socket, ..ours };
    let at_once = Server { connections: CONNECTIONS / IN_FLIGHT, in_flight: IN_FLIGHT, ..lock_step };
    let mut samples: [Vec<Sample>; 4] = Default::default();
    for _ in 0..context.rounds {
        for (server, samples) in [&theirs, &ours, &lock_step, &at_once].into_iter().zip(&mut samples) {
            samples.push(measure(host, server, context.seconds)?);
        }
    }
    let figure = |of: usize, which: fn(&Sample) -> f64| median(samples[of].iter().map(which).collect());
    let per_core = |of: usize| 1e6 / figure(of, |sample| sample.cpu_micros);
    let against_nginx = |what: &str, unit, which: fn(&Sample) -> f64, target| Row {
        what: format!("GET /ping keep-alive, {CONNECTIONS} connections, {what}"),
        unit,
        ours: figure(1, which),
        alternative_name: "nginx, static file".to_owned(),
        alternative: figure(0, which),
        target,
    };
    let against_http = |what: String, of: usize, target| Row {
        what,
        unit: "1/s",
        ours: per_core(of),
        alternative_name: "HTTP, as many in flight".to_owned(),
        alternative: per_core(1),
        target: Target::AtLeast(target),
    };
    Ok(vec![
        against_nginx("server CPU", "us", |sample| sample.cpu_micros, Target::AtMost(0.8)),
        against_nginx("answered", "1/s", |sample| sample.per_second, Target::AtLeast(1.0)),
        against_http(format!("WebSocket calls a core, {CONNECTIONS} sessions in lock-step"), 2, 1.35),
        against_http(format!("WebSocket calls a core, {IN_FLIGHT} in flight a session"), 3, 2.0),
    ])
}

/// As a reverse proxy, against nginx before the same server.
fn passing_on(host: &NetNs, context: &Context) -> Result<Vec<Row>> {
    let behind = servers::nginx_behind(host)?;
    let route = format!("[[gateway.host.bench.route]]\nupstream = [\"{}\"]\n", behind.address);
    let mut agent = servers::agent(host, context, &route)?;
    let nginx = servers::nginx_proxy(host, behind.address)?;
    let protocol = Protocol::http("bench", "/ping");
    let pid = agent.process().context("the agent runs")?.pid();
    let ours = Server { address: PM3.parse()?, pid, protocol: &protocol, connections: CONNECTIONS, in_flight: 1 };
    let theirs = Server { address: nginx.address, pid: nginx.pid(), ..ours };
    let (mut mine, mut others) = (Vec::new(), Vec::new());
    for _ in 0..context.rounds {
        others.push(measure(host, &theirs, context.seconds)?);
        mine.push(measure(host, &ours, context.seconds)?);
    }
    let row = |what: &str, unit, which: fn(&Sample) -> f64, target| Row {
        what: format!("GET passed on to the same server, {what}"),
        unit,
        ours: median(mine.iter().map(which).collect()),
        alternative_name: "nginx".to_owned(),
        alternative: median(others.iter().map(which).collect()),
        target,
    };
    Ok(vec![
        row("answered", "1/s", |sample| sample.per_second, Target::AtLeast(0.8)),
        row("CPU", "us", |sample| sample.cpu_micros, Target::AtMost(1.25)),
    ])
}

/// Many at once: each gets replies, and what each costs in memory.
fn many(host: &NetNs, context: &Context) -> Result<Vec<Row>> {
    let row = |what: String, ours, budget| Row {
        what,
        unit: "KiB",
        ours,
        alternative_name: "budget".to_owned(),
        alternative: budget,
        target: Target::AtMost(1.0),
    };
    let connection = held(host, context, &Protocol::http("pm3", "/ping"), MANY)?;
    let session = held(host, context, &Protocol::web_socket(), SESSIONS)?;
    Ok(vec![
        row(format!("memory a connection, {MANY} open and all answered"), connection, CONNECTION_KIB),
        row(format!("memory a WebSocket session, {SESSIONS} that all call"), session, SESSION_KIB),
    ])
}

/// KiB that one of `count` connections adds to a fresh agent. Every one must get a reply.
fn held(host: &NetNs, context: &Context, protocol: &Protocol, count: usize) -> Result<f64> {
    let mut agent = servers::agent(host, context, "")?;
    let pid = agent.process().context("the agent runs")?.pid();
    let address = PM3.parse()?;
    let (outcome, grown) = host.enter(|| -> Result<(Outcome, f64)> {
        // One of each, so that what is made once is not counted.
        Crowd::open(address, protocol, 1)?.run(1, Duration::from_millis(100))?;
        let before = resident_mb(pid)?;
        let mut crowd = Crowd::open(address, protocol, count)?;
        let outcome = crowd.run(1, Duration::from_secs(context.seconds.max(3)))?;
        Ok((outcome, resident_mb(pid)? - before))
    })??;
    ensure!(outcome.starved == 0, "{} of {count} connections got no reply", outcome.starved);
    Ok(grown * 1e6 / 1024.0 / count as f64)
}

/// Keeps this thread on one CPU where there are two.
fn stay_on(cpu: usize) -> Result<()> {
    if std::thread::available_parallelism().is_ok_and(|count| count.get() > cpu) {
        let mut only = CpuSet::new();
        only.set(cpu)?;
        sched_setaffinity(Pid::from_raw(0), &only)?;
    }
    Ok(())
}
