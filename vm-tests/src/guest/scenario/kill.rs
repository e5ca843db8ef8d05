//! The agent dies under traffic: the kernel carries on, the next agent takes over without touching it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use integration_tests::agent::TestAgent;
use integration_tests::process::Process;
use nix::sys::signal::Signal;

use crate::guest::figures;
use crate::guest::lab::{self, INNER, Lab, NAMES, PATIENCE};
use crate::guest::report::Report;
use crate::guest::stream::{DATAGRAM, Stream};
use crate::guest::trace;

/// Datagrams that pass in each phase.
const PHASE: u64 = 100;
/// The TCP stream beside the datagrams, slow enough that nothing is dropped for want of room.
const IPERF3: &[&str] = &["--client", INNER[1], "--bitrate", "4M", "--time", "12"];
const IPERF3_DEADLINE: Duration = Duration::from_secs(60);

pub(super) fn kill(report: &mut Report) -> Result<()> {
    let lab = Lab::new(1)?;
    let mut agents = lab.agents()?;
    let (alpha, beta) = (lab.host(0), lab.host(1));
    let agent = agents.first_mut().context("the lab has agents")?;
    let link = figures::ifindex(agent)?;
    let handshake = figures::wg(agent, "latest-handshakes")?;
    let before = figures::peer(agent, NAMES[1])?;
    let out = Stream::start("alpha to beta", alpha, &[beta], INNER[1])?;
    let back = Stream::start("beta to alpha", beta, &[alpha], INNER[0])?;
    let (mut server, mut client) = iperf3(&lab)?;
    out.flow(PHASE)?;

    agent.kill9()?;
    out.flow(PHASE)?;
    back.flow(PHASE)?;
    let trace_file = agent.directory().join("trace");
    launch_traced(agent, trace_file.to_str().context("a temporary path is text")?)?;
    out.flow(PHASE)?;
    // Nothing has changed: reading the configuration again writes nothing either.
    agent.process().context("the agent runs")?.signal(Signal::SIGHUP)?;
    out.flow(PHASE)?;

    let status = client.wait_for_exit(IPERF3_DEADLINE)?;
    ensure!(status.success(), "the TCP connection did not survive: {}", client.tail());
    server.wait_for_exit(PATIENCE)?;
    let (sent, returned) = (out.finish_without_loss()?, back.finish_without_loss()?);
    report.note(format_args!("0 of {} datagrams lost; the TCP stream ran through", sent + returned));
    ensure!(figures::ifindex(agent)? == link, "the link was made anew");
    ensure!(figures::wg(agent, "latest-handshakes")? == handshake, "the session was made anew");
    let after = figures::peer(agent, NAMES[1])?;
    let counted = [after.tx.udp_bytes - before.tx.udp_bytes, after.rx.udp_bytes - before.rx.udp_bytes];
    let wanted = [sent * DATAGRAM, returned * DATAGRAM];
    ensure!(counted == wanted, "accounting counted {counted:?} UDP bytes sent and received, the streams {wanted:?}");
    report.note(format_args!("UDP bytes counted without and with the agent: {counted:?}, exactly the streams'"));
    let steered = steered(agent)?;
    check_running(report, &std::fs::read_to_string(&trace_file)?, steered)?;
    agent.stop()?;
    check_stopped(report, &std::fs::read_to_string(&trace_file)?)
}

/// How many addresses of the gateway are steered.
fn steered(agent: &TestAgent<'_>) -> Result<usize> {
    let status = agent.cli_json(&["status"])?;
    Ok(lab::at(&status, "/gateway/steered")?.as_array().context("/gateway/steered is no list")?.len())
}

fn iperf3(lab: &Lab) -> Result<(Process, Process)> {
    let mut command = lab.host(1).command("iperf3");
    command.args(["--server", "--one-off", "--forceflush"]);
    let mut server = Process::spawn("iperf3 server", command)?;
    server.wait_for_log("Server listening", PATIENCE)?;
    let mut command = lab.host(0).command("iperf3");
    command.args(IPERF3);
    Ok((server, Process::spawn("iperf3 client", command)?))
}

fn launch_traced(agent: &mut TestAgent<'_>, file: &str) -> Result<()> {
    // `-D` makes the tracer the child: the process started is the agent, and is killed or stopped as such.
    let calls = format!("trace={}", trace::CALLS);
    agent.launch_under(&["strace", "-D", "-f", "-s", "256", "-e", &calls, "-e", "signal=none", "-o", file])?;
    lab::settle(agent)
}

/// Start and reload of the new agent write nothing, but for one thing: the sockets the gateway listens on ended with the
/// process that had them, so the new ones take their places in the map that steers to them.
fn check_running(report: &mut Report, trace: &str, steered: usize) -> Result<()> {
    // A tracer that saw nothing would prove nothing.
    ensure!(trace.contains("RTM_GETLINK"), "the trace shows no look at the link: {} bytes", trace.len());
    let mut writes = trace::writes(trace);
    let listeners = writes.remove("BPF_MAP_UPDATE_ELEM LISTENERS").unwrap_or_default();
    ensure!(writes.is_empty(), "the restarted agent wrote to the kernel: {writes:?}");
    ensure!(listeners == steered, "{steered} addresses are steered, {listeners} listeners were written");
    report.note(format_args!(
        "start and reload of the new agent: 0 writing calls of {} traced, beside {listeners} new sockets in LISTENERS",
        trace.lines().count()
    ));
    Ok(())
}

/// A stop takes away what led to the sockets that end with it.
fn check_stopped(report: &mut Report, trace: &str) -> Result<()> {
    let mut writes = trace::writes(trace);
    writes.retain(|write, _| !["LISTENERS", "STEERED", "DESTINATIONS"].iter().any(|map| write.ends_with(map)));
    ensure!(writes.is_empty(), "the stopping agent wrote to the kernel: {writes:?}");
    report.note("its stop: 0 writing calls beside those on maps that lead to its sockets");
    Ok(())
}
