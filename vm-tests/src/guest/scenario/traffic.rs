//! Traffic and its bytes: three counts of the same packets must agree.
//!
//! The arithmetic, for what beta received of alpha's TCP stream. Accounting counts inner IP packets, segmented ones by
//! segment; iperf3 counts payload. A full segment of `MTU` bytes carries `MTU - 52`: 20 IPv4, 20 TCP, 12 timestamps. So
//! with `R` bytes delivered and `S` sent, `R + 52 R/(MTU-52) <= tcp_bytes`, and `tcp_bytes` exceeds the same sum over `S`
//! only by segments that were not full, retransmissions and the control connection: 3 % and 128 KiB are allowed.
//!
//! WireGuard counts messages: each packet padded to 16 bytes (0 to 15) and 32 more, so `bytes + 32 n <= wg <= bytes + 47 n`
//! for `n` packets, and handshakes (148 and 92 bytes) and keepalives (32), for which 4 KiB are allowed.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use integration_tests::agent::TestAgent;
use integration_tests::netns::NetNs;
use integration_tests::process::Process;

use crate::guest::figures::{self, Counters, Peer};
use crate::guest::lab::{INNER, INNER6, Lab, NAMES, PATIENCE, number, reach};
use crate::guest::report::Report;

/// Payload of the stream; about five seconds under emulation.
const PAYLOAD: &str = "8M";
const STREAM_DEADLINE: Duration = Duration::from_secs(90);
const TCP_HEADERS: u64 = 20 + 20 + 12;
const WIREGUARD_HEADERS: u64 = 32;
const WIREGUARD_PADDING: u64 = 15;
const HANDSHAKES: u64 = 4096;

pub(super) fn traffic(report: &mut Report) -> Result<()> {
    let lab = Lab::new(1)?;
    let agents = lab.agents()?;
    let [alpha, beta] = agents.as_slice() else { anyhow::bail!("the lab has two hosts") };
    ping_both_ways(&lab)?;
    let before = [figures::peer(alpha, NAMES[1])?, figures::peer(beta, NAMES[0])?];
    let stream = iperf3(lab.host(0), lab.host(1))?;
    let after = [figures::peer(alpha, NAMES[1])?, figures::peer(beta, NAMES[0])?];
    let mtu = number(&beta.cli_json(&["status"])?, "/network/mtu")?;
    report.note(format_args!(
        "iperf3: {} bytes sent, {} received, {} segments repeated, {:.0} Mbit/s; MTU {mtu}",
        stream.sent,
        stream.received,
        stream.retransmits,
        stream.bits_per_second / 1e6
    ));
    check_payload(report, &stream, mtu, after[1].rx.tcp_bytes - before[1].rx.tcp_bytes)?;
    check_pair(&after)?;
    for (name, (agent, peer)) in NAMES.iter().zip([alpha, beta].into_iter().zip(&after)) {
        check_wireguard(report, name, agent, peer)?;
    }
    Ok(())
}

fn ping_both_ways(lab: &Lab) -> Result<()> {
    for (from, to) in [(0, 1), (1, 0)] {
        for address in [INNER[to], INNER6[to]] {
            // The first packet waits for addresses and handshake; then none may be missing.
            reach(lab.host(from), address)?;
            lab.host(from).run(&["ping", "-q", "-c", "5", "-i", "0.1", "-W", "10", address]).and_then(|text| {
                ensure!(text.contains(" 0% packet loss"), "packets to {address} were lost: {text}");
                Ok(())
            })?;
        }
    }
    Ok(())
}

struct Stream {
    sent: u64,
    received: u64,
    retransmits: u64,
    bits_per_second: f64,
}

fn iperf3(from: &NetNs, to: &NetNs) -> Result<Stream> {
    let mut command = to.command("iperf3");
    command.args(["--server", "--one-off", "--forceflush"]);
    let mut server = Process::spawn("iperf3 server", command)?;
    server.wait_for_log("Server listening", PATIENCE)?;
    let text = from.run(&["iperf3", "--client", INNER[1], "--bytes", PAYLOAD, "--json"])?;
    let status = server.wait_for_exit(STREAM_DEADLINE)?;
    ensure!(status.success(), "the iperf3 server ended with {status}: {}", server.tail());
    let result: serde_json::Value = serde_json::from_str(&text)?;
    let speed = result.pointer("/end/sum_received/bits_per_second").and_then(serde_json::Value::as_f64);
    Ok(Stream {
        sent: number(&result, "/end/sum_sent/bytes")?,
        received: number(&result, "/end/sum_received/bytes")?,
        retransmits: number(&result, "/end/sum_sent/retransmits")?,
        bits_per_second: speed.context("iperf3 names no speed")?,
    })
}

/// Payload and accounting.
fn check_payload(report: &mut Report, stream: &Stream, mtu: u64, counted: u64) -> Result<()> {
    let with_headers = |payload: u64| payload + payload.div_ceil(mtu - TCP_HEADERS) * TCP_HEADERS;
    let least = with_headers(stream.received);
    let most = with_headers(stream.sent) * 103 / 100 + stream.retransmits * mtu + 128 * 1024;
    report.note(format_args!("accounting: {least} <= {counted} TCP bytes received <= {most}"));
    ensure!(least <= counted, "{counted} TCP bytes were counted, {least} came through");
    ensure!(counted <= most, "{counted} TCP bytes were counted, at most {most} can have come through");
    Ok(())
}

/// What one end sent, the other received: nothing may come out of the tunnel that did not go in.
fn check_pair([alpha, beta]: &[Peer; 2]) -> Result<()> {
    for (sender, receiver) in [(alpha.tx, beta.rx), (beta.tx, alpha.rx)] {
        ensure!(receiver.bytes <= sender.bytes, "{} bytes received, only {} sent", receiver.bytes, sender.bytes);
        ensure!(
            receiver.packets <= sender.packets,
            "{} packets received, only {} sent",
            receiver.packets,
            sender.packets
        );
    }
    Ok(())
}

/// Accounting and WireGuard, and WireGuard as `weft` and as `wg` tell it.
fn check_wireguard(report: &mut Report, node: &str, agent: &TestAgent<'_>, peer: &Peer) -> Result<()> {
    let [received, sent] = figures::wg(agent, "transfer")?[..] else {
        anyhow::bail!("wg show transfer has two figures")
    };
    for (name, counted, weft, wg) in
        [("received", peer.rx, peer.wireguard_rx_bytes, received), ("sent", peer.tx, peer.wireguard_tx_bytes, sent)]
    {
        let Counters { bytes, packets, .. } = counted;
        let least = bytes + packets * WIREGUARD_HEADERS;
        let most = least + packets * WIREGUARD_PADDING + HANDSHAKES;
        report.note(format_args!("{node}: {least} <= {weft} WireGuard bytes {name} <= {most}"));
        ensure!(least <= weft && weft <= most, "WireGuard {name} {weft} bytes, accounting implies {least} to {most}");
        // `wg` was asked later: a keepalive or a handshake may lie between.
        ensure!(weft <= wg && wg <= weft + HANDSHAKES, "weft says {weft} bytes {name}, wg says {wg}");
    }
    Ok(())
}
