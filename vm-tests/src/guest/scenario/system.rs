//! A machine that systemd booted, with the agent installed as `cargo xtask dist` installs it: the unit, its sandbox,
//! its watchdog, and systemd-resolved on a real bus. The scenarios follow each other on one machine.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use integration_tests::wait::eventually;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::guest::report::Report;
use crate::tool;

const UNIT: &str = "weft.service";
const LINK: &str = "weft0";
/// What a host that supervises nothing adds to the unit.
const SANDBOX: &str = include_str!("../../../../agent/dist/sandbox.conf");
const DROP_IN: &str = "/etc/systemd/system/weft.service.d/sandbox.conf";
const CONFIG: &str = "/etc/weft/weft.toml";
const ADDRESS: &str = "10.80.0.1";
/// Booting under emulation takes half a minute, ten times that on a busy host.
const PATIENCE: Duration = Duration::from_secs(300);
/// What the agent keeps of root (linux/capability.h): CHOWN 0, DAC_OVERRIDE 1, KILL 5, SETGID 6, SETUID 7, SETPCAP 8,
/// NET_BIND_SERVICE 10, NET_ADMIN 12, SYS_PTRACE 19, SYS_RESOURCE 24, PERFMON 38, BPF 39.
const KEPT: u64 = 0b1_1110_0011 | 1 << 10 | 1 << 12 | 1 << 19 | 1 << 24 | 1 << 38 | 1 << 39;
/// The same under the sandbox: CHOWN 0, SETPCAP 8, and those of the network and BPF.
const SANDBOXED: u64 = 1 | 1 << 8 | 1 << 10 | 1 << 12 | 1 << 19 | 1 << 38 | 1 << 39;
/// What no unit of ours has in its bounding set: SYS_MODULE 16, SYS_RAWIO 17, SYS_BOOT 22, SYS_TIME 25.
const NEVER: u64 = 1 << 16 | 1 << 17 | 1 << 22 | 1 << 25;
const GAMMA: &str = "\n[[peer]]\nname = \"gamma\"\npublic_key = \"c2NlbmFyaW9zIG9mIGEgYm9vdGVkIHN5c3RlbSwgMDI=\"\nallowed_ips = [\"10.80.0.3/32\"]\n";

pub(super) fn unit(report: &mut Report) -> Result<()> {
    active()?;
    let status = weft_json(&["status"])?;
    for (pointer, wanted) in [("/wireguard/backend", "kernel"), ("/accounting/hook", "tcx"), ("/state", "ready")] {
        ensure!(status.pointer(pointer).is_some_and(|value| value == wanted), "{pointer} is not {wanted}: {status}");
    }
    let process = main_process()?;
    let effective = capabilities(&process, "CapEff")?;
    let bounding = capabilities(&process, "CapBnd")?;
    ensure!(bounding & NEVER == 0, "what the unit starts could have {:x}", bounding & NEVER);
    ensure!(effective & !KEPT == 0 && effective != 0, "the agent holds {effective:x}");
    report.note(format_args!("active; effective capabilities {effective:x}"));
    let before = index()?;
    let text = fs::read_to_string(CONFIG)?;
    fs::write(CONFIG, format!("{text}{GAMMA}"))?;
    systemctl(&["reload", UNIT])?;
    eventually(PATIENCE, "the reloaded peer is on the link", || {
        tool::output(Command::new("wg").args(["show", LINK, "allowed-ips"]))
            .is_ok_and(|all| all.contains("10.80.0.3/32"))
    })?;
    ensure!(index()? == before && property("ActiveState")? == "active", "a reload is no restart");
    ensure!(property("NRestarts")? == "0", "the unit was restarted");
    Ok(())
}

pub(super) fn resolved(report: &mut Report) -> Result<()> {
    active()?;
    eventually(PATIENCE, "resolved knows the link's server", || {
        resolvectl(&["dns", LINK]).is_ok_and(|answer| answer.contains(ADDRESS))
    })?;
    let domains = resolvectl(&["domain", LINK])?;
    ensure!(domains.contains("~weft.internal"), "resolved routes no mesh domain to us: {domains}");
    let default = resolvectl(&["default-route", LINK])?;
    ensure!(default.trim_end().ends_with("no"), "resolved would ask us for every name: {default}");
    let answer = resolvectl(&["query", "--legend=no", "beta.weft.internal"])?;
    ensure!(answer.contains("10.80.0.2"), "resolved does not find the peer by name: {answer}");
    let answer = tool::output(Command::new("getent").args(["ahostsv4", "alpha.weft.internal"]))?;
    ensure!(answer.contains(ADDRESS), "the host's own lookup does not find us: {answer}");
    report.note(format_args!("resolvectl: {}", domains.trim()));
    // The hook outlives a restart of resolved: the agent sets it, resolved keeps it.
    systemctl(&["restart", "systemd-resolved.service"])?;
    eventually(PATIENCE, "resolved has the link's server after its own restart", || {
        resolvectl(&["dns", LINK]).is_ok_and(|answer| answer.contains(ADDRESS))
    })
}

/// Stays on for the scenarios after it.
pub(super) fn sandbox(report: &mut Report) -> Result<()> {
    active()?;
    let before = index()?;
    fs::write(DROP_IN, SANDBOX).with_context(|| format!("failed to write {DROP_IN}"))?;
    let text = fs::read_to_string(CONFIG)?;
    fs::write(CONFIG, format!("{text}\n[supervisor]\nenabled = false\n"))?;
    systemctl(&["daemon-reload"])?;
    systemctl(&["restart", UNIT])?;
    active()?;
    let process = main_process()?;
    for set in ["CapEff", "CapBnd"] {
        let held = capabilities(&process, set)?;
        ensure!(held & !SANDBOXED == 0 && held != 0, "{set} is {held:x} in the sandbox");
    }
    ensure!(process.contains("NoNewPrivs:\t1"), "the agent may gain privileges");
    ensure!(process.contains("Seccomp:\t2"), "no filter of system calls is on");
    ensure!(index()? == before, "the link was made anew");
    let status = weft_json(&["status"])?;
    for (pointer, wanted) in [("/wireguard/backend", "kernel"), ("/accounting/hook", "tcx"), ("/state", "ready")] {
        ensure!(status.pointer(pointer).is_some_and(|value| value == wanted), "{pointer} is not {wanted}: {status}");
    }
    report.note("everything ready with the sandbox of a host that supervises nothing");
    Ok(())
}

pub(super) fn watchdog(report: &mut Report) -> Result<()> {
    active()?;
    let (before, first) = (index()?, property("MainPID")?);
    kill(Pid::from_raw(first.parse()?), Signal::SIGSTOP).context("failed to stop the agent")?;
    eventually(PATIENCE, "systemd has replaced the agent that hung", || {
        property("NRestarts").is_ok_and(|count| count == "1")
            && property("ActiveState").is_ok_and(|state| state == "active")
    })?;
    let second = property("MainPID")?;
    ensure!(second != first, "the unit is active with the process that hung");
    ensure!(index()? == before, "the link was made anew");
    report.note(format_args!("process {first} stopped, {second} took over link {before}"));
    Ok(())
}

pub(super) fn stop(report: &mut Report) -> Result<()> {
    active()?;
    let before = index()?;
    systemctl(&["stop", UNIT])?;
    ensure!(property("Result")? == "success", "the unit ended with {}", property("Result")?);
    ensure!(index()? == before, "stopping the unit took the link");
    let servers = resolvectl(&["dns", LINK])?;
    ensure!(!servers.contains(ADDRESS), "the hook is left behind with nobody to answer: {servers}");
    tool::output(Command::new("weft").args(["down", "--config", CONFIG]))?;
    ensure!(index().is_err(), "weft down left the link");
    report.note("link kept by the stop, gone after weft down; the hook went with the agent");
    Ok(())
}

/// The status of the agent's process (proc(5)).
fn main_process() -> Result<String> {
    let path = format!("/proc/{}/status", property("MainPID")?);
    fs::read_to_string(&path).with_context(|| format!("failed to read {path}"))
}

fn active() -> Result<()> {
    let reached = eventually(PATIENCE, "the unit is active", || property("ActiveState").is_ok_and(|s| s == "active"));
    reached.with_context(|| journal().unwrap_or_default())
}

/// What the agent said last.
fn journal() -> Result<String> {
    tool::output(Command::new("journalctl").args(["-u", UNIT, "-n", "20", "-o", "cat", "--no-pager"]))
}

fn property(name: &str) -> Result<String> {
    let text = tool::output(Command::new("systemctl").args(["show", UNIT, "--value", "-p", name]))?;
    Ok(text.trim().to_owned())
}

fn systemctl(args: &[&str]) -> Result<String> {
    tool::output(Command::new("systemctl").args(args)).with_context(|| journal().unwrap_or_default())
}

fn resolvectl(args: &[&str]) -> Result<String> {
    tool::output(Command::new("resolvectl").args(args))
}

fn weft_json(args: &[&str]) -> Result<Value> {
    // A status that is not ready ends with another code than 0; what it says is what is asked for.
    let output = Command::new("weft").args(args).arg("--json").output().context("failed to run weft")?;
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("weft prints no JSON: {}", String::from_utf8_lossy(&output.stderr)))
}

/// The link's index, which changes when it is made anew.
fn index() -> Result<String> {
    let path = format!("/sys/class/net/{LINK}/ifindex");
    Ok(fs::read_to_string(&path).with_context(|| format!("there is no link {LINK}"))?.trim().to_owned())
}

/// A set of capabilities in a process's status, `CapBnd:\t00000000a80425fb`.
fn capabilities(status: &str, set: &str) -> Result<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(set)?.strip_prefix(':'));
    let text = line.with_context(|| format!("the process has no {set}"))?;
    u64::from_str_radix(text.trim(), 16).with_context(|| format!("{set} is no number: {text}"))
}
