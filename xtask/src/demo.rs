//! `cargo xtask demo`: three agents in three network namespaces form a mesh by token, with traffic by name; one is killed and
//! comes back.
//!
//! Everything lives in namespaces and a temporary directory behind guards: success, failure and Ctrl-C leave nothing.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use integration_tests::agent::{Settings, TestAgent};
use integration_tests::netns::NetNs;
use integration_tests::process::Process;
use integration_tests::scenario::Scenario;
use integration_tests::wait::eventually;

use crate::interrupt::Interrupt;
use crate::{repo, setup};

const NODES: [&str; 3] = ["alpha", "beta", "gamma"];
const DOMAIN: &str = "weft.internal";
const IPERF_SECONDS: &str = "4";
const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) fn run() -> Result<()> {
    let interrupt = Interrupt::listen()?;
    ensure!(repo::is_root(), "the demo makes network namespaces: run `sudo cargo xtask demo`");
    setup::for_test()?;
    println!("building (about six minutes the first time on two cores)");
    repo::execute(&mut repo::cargo(&["build", "--workspace"]))?;
    let result = show(&interrupt);
    if interrupt.heard() {
        println!("\ninterrupted; agents, namespaces and files are gone");
        return Ok(());
    }
    result?;
    println!("\ndone; agents, namespaces and files are gone");
    Ok(())
}

fn show(interrupt: &Interrupt) -> Result<()> {
    println!("\n== three hosts on one network: {} in 192.0.2.0/24, each a mesh of its own", NODES.join(", "));
    let scenario = Scenario::new(NODES.len())?;
    let mut agents = Vec::new();
    for (number, host) in scenario.hosts().iter().enumerate() {
        interrupt.check()?;
        agents.push(TestAgent::start(host, Settings::new(NODES[number])?)?);
        println!("{} is ready at {}", NODES[number], Scenario::address(number));
    }
    println!("\n== beta and gamma join the mesh of alpha, each with a token of its own");
    for number in 1..NODES.len() {
        interrupt.check()?;
        join(&agents[0], &agents[number], NODES[number])?;
    }
    let alpha = &agents[0];
    agents.iter().try_for_each(TestAgent::wait_until_counting)?;
    let resolver = resolver_file()?;
    for (from, to) in [(0, 1), (0, 2), (1, 2)] {
        interrupt.check()?;
        ping_by_name(scenario.host(from), resolver.path(), NODES[from], NODES[to])?;
    }
    interrupt.check()?;
    transfer(&scenario, resolver.path(), alpha)?;
    for words in [&["status"][..], &["peers"], &["dns", "query", "beta.weft.internal"]] {
        interrupt.check()?;
        show_command(alpha, words)?;
    }
    interrupt.check()?;
    println!("\n== alpha, who leads the mesh, is killed and comes back; beta or gamma leads then");
    agents[0].kill9()?;
    ping_by_name(scenario.host(1), resolver.path(), NODES[1], NODES[2])?;
    agents[0].launch()?;
    agents[0].wait_until_ready()?;
    ping_by_name(scenario.host(0), resolver.path(), NODES[0], NODES[1])
}

/// What an operator types on both hosts.
fn join(alpha: &TestAgent<'_>, joiner: &TestAgent<'_>, name: &str) -> Result<()> {
    let made = alpha.cli_json(&["token", "create"])?;
    let token = made["token"].as_str().context("no token was made")?;
    let address = Scenario::address(0);
    println!("alpha$ weft token create\n    weft join {address} --token {}…", token.get(..16).unwrap_or(token));
    print!("{name}$ weft join {address} --token …\n    {}", joiner.cli_text(&["join", &address, "--token", token])?);
    Ok(())
}

fn show_command(alpha: &TestAgent<'_>, words: &[&str]) -> Result<()> {
    println!("\nalpha$ weft {}", words.join(" "));
    print!("{}", alpha.cli_text(words)?);
    Ok(())
}

/// A resolv.conf that asks the agent, as `[dns] hook` would make the host's.
fn resolver_file() -> Result<tempfile::NamedTempFile> {
    let mut file = tempfile::NamedTempFile::new().context("failed to make a file")?;
    writeln!(file, "nameserver 127.0.3.3\noptions timeout:2 attempts:2")?;
    Ok(file)
}

/// A command on `host` that resolves names with `resolver`, in a mount namespace of its own.
fn by_name(host: &NetNs, resolver: &Path, words: &[&str]) -> Command {
    let mut command = host.command("unshare");
    command.args(["--mount", "sh", "-c", "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\""]);
    command.arg(resolver).args(words);
    command
}

fn ping_by_name(host: &NetNs, resolver: &Path, from: &str, to: &str) -> Result<()> {
    let name = format!("{to}.{DOMAIN}");
    let mut reply = String::new();
    // The first packet starts the handshake and may be answered late.
    eventually(DEADLINE, &format!("{from} reaches {name}"), || {
        let output = by_name(host, resolver, &["ping", "-c", "3", "-i", "0.2", "-W", "2", &name]).output();
        output.is_ok_and(|output| {
            reply = String::from_utf8_lossy(&output.stdout).into_owned();
            output.status.success()
        })
    })?;
    println!("{from}$ ping {name}\n    {}", reply.lines().last().unwrap_or_default());
    Ok(())
}

/// A TCP stream from alpha to beta, and `weft top` while it runs.
fn transfer(scenario: &Scenario, resolver: &Path, alpha: &TestAgent<'_>) -> Result<()> {
    let mut server = scenario.host(1).command("iperf3");
    server.args(["--server", "--one-off", "--forceflush"]);
    let mut server = Process::spawn("iperf3 on beta", server)?;
    server.wait_for_log("Server listening", DEADLINE)?;
    let words = ["iperf3", "--client", "beta.weft.internal", "--time", IPERF_SECONDS, "--interval", "0"];
    println!("\nalpha$ {} &", words.join(" "));
    let mut client = Process::spawn("iperf3 on alpha", by_name(scenario.host(0), resolver, &words))?;
    server.wait_for_log("Accepted connection", DEADLINE)?;
    show_command(alpha, &["top", "--once"])?;
    let status = client.wait_for_exit(DEADLINE)?;
    ensure!(status.success(), "iperf3 ended with {status}: {}", client.tail());
    println!("\nalpha$ wait");
    let report = client.log();
    report
        .lines()
        .filter(|line| line.contains("sender") || line.contains("receiver"))
        .for_each(|line| println!("{line}"));
    Ok(())
}
