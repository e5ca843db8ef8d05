//! `cargo xtask demo`: three agents in three network namespaces, each the peer of the others, with traffic by name.
//!
//! Everything lives in namespaces and a temporary directory behind guards: success, failure and Ctrl-C leave nothing.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use integration_tests::agent::{PeerTable, Settings, TestAgent};
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
    println!("\n== three hosts on one network: {} in 192.0.2.0/24, mesh 10.80.0.0/24 and fd80::/64", NODES.join(", "));
    let scenario = Scenario::new(NODES.len())?;
    let settings = NODES.map(Settings::new).into_iter().collect::<Result<Vec<_>>>()?;
    let mut agents = Vec::new();
    for (number, host) in scenario.hosts().iter().enumerate() {
        interrupt.check()?;
        agents.push(TestAgent::start(host, with_peers(&settings, number))?);
        println!("{} is ready: underlay {}, mesh 10.80.0.{}", NODES[number], Scenario::address(number), number + 1);
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
    Ok(())
}

fn show_command(alpha: &TestAgent<'_>, words: &[&str]) -> Result<()> {
    println!("\nalpha$ weft {}", words.join(" "));
    print!("{}", alpha.cli_text(words)?);
    Ok(())
}

/// The settings of node `own` with all other nodes as peers.
fn with_peers(settings: &[Settings], own: usize) -> Settings {
    let addresses = [format!("10.80.0.{}/24", own + 1), format!("fd80::{}/64", own + 1)];
    let base = settings[own].clone().addresses(&[&addresses[0], &addresses[1]]);
    let others = settings.iter().enumerate().filter(|(number, _)| *number != own);
    others.fold(base, |base, (number, other)| {
        base.peer(PeerTable {
            name: NODES[number].to_owned(),
            public_key: other.keys().public.clone(),
            endpoint: Some(format!("{}:51820", Scenario::address(number))),
            allowed_ips: vec![format!("10.80.0.{}/32", number + 1), format!("fd80::{}/128", number + 1)],
            ..PeerTable::default()
        })
    })
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
