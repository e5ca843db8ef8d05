//! bench area `agent`: what an idle agent costs, and how soon a started one carries packets.
//!
//! Both on the embedded device, the dearer of the two backends. The budgets are absolute: the alternative is the limit.

use std::fs;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use integration_tests::agent::{PeerTable, Settings, TestAgent};
use integration_tests::key::KeyPair;
use integration_tests::scenario::Scenario;

use super::{Context, Row, Target, median};

const PEERS: usize = 100;
const RSS_BUDGET_MB: f64 = 30.0;
const CPU_BUDGET_PERCENT: f64 = 0.2;
const FIRST_PACKET_BUDGET_MS: f64 = 300.0;
/// An idle agent's wake-ups are seconds apart: the sample is that many measurements long, a minute by default.
const IDLE_SAMPLE: u64 = 15;
const ECHO_PORT: u16 = 7;

pub(crate) fn run(context: &Context) -> Result<Vec<Row>> {
    let mut rows = idle(context)?;
    rows.push(first_packet(context)?);
    Ok(rows)
}

fn idle(context: &Context) -> Result<Vec<Row>> {
    let scenario = Scenario::new(1)?;
    let mut settings = embedded("alpha", "10.80.0.1/16", context)?;
    for number in 0..PEERS {
        settings = settings.peer(PeerTable {
            name: format!("peer-{number}"),
            public_key: KeyPair::generate()?.public,
            allowed_ips: vec![format!("10.80.1.{number}/32"), format!("fd80::1:{number:x}/128")],
            ..PeerTable::default()
        });
    }
    let mut agent = TestAgent::start(scenario.host(0), settings)?;
    let pid = agent.process().context("the agent runs")?.pid();
    let before = cpu_seconds(pid)?;
    let started = Instant::now();
    std::thread::sleep(Duration::from_secs(IDLE_SAMPLE * context.seconds));
    let percent = (cpu_seconds(pid)? - before) / started.elapsed().as_secs_f64() * 100.0;
    let budget = |what: &str, unit, ours, budget| Row {
        what: format!("{what}, idle with {PEERS} peers"),
        unit,
        ours,
        alternative_name: "budget".to_owned(),
        alternative: budget,
        target: Target::AtMost(1.0),
    };
    Ok(vec![
        budget("resident memory", "MB", resident_mb(pid)?, RSS_BUDGET_MB),
        budget("CPU", "%", percent, CPU_BUDGET_PERCENT),
    ])
}

fn first_packet(context: &Context) -> Result<Row> {
    let rounds = (0..context.rounds).map(|_| start_to_first_packet(context)).collect::<Result<Vec<f64>>>()?;
    Ok(Row {
        what: "agent start to first packet through the tunnel".to_owned(),
        unit: "ms",
        ours: median(rounds),
        alternative_name: "budget".to_owned(),
        alternative: FIRST_PACKET_BUDGET_MS,
        target: Target::AtMost(1.0),
    })
}

/// Milliseconds from starting alpha's process until a datagram has been to beta's mesh address and back.
fn start_to_first_packet(context: &Context) -> Result<f64> {
    let scenario = Scenario::new(2)?;
    let alpha = embedded("alpha", "10.80.0.1/24", context)?;
    let beta = embedded("beta", "10.80.0.2/24", context)?;
    let beta_peer = peer("beta", &beta, 1);
    let _beta = TestAgent::start(scenario.host(1), beta.peer(peer("alpha", &alpha, 0)))?;
    let echo = scenario.host(1).enter(|| UdpSocket::bind(("10.80.0.2", ECHO_PORT)))??;
    echo.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut agent = TestAgent::prepare(scenario.host(0), alpha.peer(beta_peer))?;
    let socket = scenario.host(0).enter(|| UdpSocket::bind(("0.0.0.0", 0)))??;
    socket.set_read_timeout(Some(Duration::from_millis(2)))?;
    std::thread::scope(|scope| {
        let answering = scope.spawn(|| -> std::io::Result<()> {
            let mut byte = [0];
            let (_, from) = echo.recv_from(&mut byte)?;
            echo.send_to(&byte, from).map(drop)
        });
        let started = Instant::now();
        agent.launch()?;
        let took = first_echo(&socket, started)?;
        answering.join().ok().context("the echo thread panicked")??;
        Ok(took)
    })
}

fn first_echo(socket: &UdpSocket, started: Instant) -> Result<f64> {
    while started.elapsed() < Duration::from_secs(9) {
        // Until the link is up there is no route to the address.
        socket.send_to(&[1], ("10.80.0.2", ECHO_PORT)).ok();
        if socket.recv(&mut [0]).is_ok() {
            return Ok(started.elapsed().as_secs_f64() * 1000.0);
        }
    }
    bail!("no packet came back within nine seconds")
}

fn embedded(node: &str, address: &str, context: &Context) -> Result<Settings> {
    let settings = Settings::new(node)?.binary(&context.weft).addresses(&[address]);
    Ok(settings.wireguard("backend = \"userspace\""))
}

fn peer(name: &str, settings: &Settings, number: usize) -> PeerTable {
    PeerTable {
        name: name.to_owned(),
        public_key: settings.keys().public.clone(),
        endpoint: Some(format!("{}:51820", Scenario::address(number))),
        allowed_ips: vec![format!("10.80.0.{}/32", number + 1)],
        ..PeerTable::default()
    }
}

/// User and system time of a process (proc(5), `stat` fields 14 and 15).
pub(super) fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the agent is gone")?;
    // The name in parentheses may hold spaces.
    let (_, fields) = stat.rsplit_once(')').context("no name in stat")?;
    let fields = fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
    let ticks: f64 = fields.sum::<Result<f64, _>>()?;
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("no clock tick")?;
    Ok(ticks / u32::try_from(per_second).map(f64::from)?)
}

/// Resident memory of a process.
pub(super) fn resident_mb(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the agent is gone")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024.0 / 1e6)
}
