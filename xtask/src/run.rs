//! `cargo xtask run`: from a fresh Debian to a running agent on this host.
//!
//! Changes the host: installs packages, writes `/etc/weft/weft.toml` if there is none, and the agent then brings its
//! link up. Ctrl-C stops the agent; the configuration and the state stay, and `weft down` takes the rest away.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use integration_tests::wait::{eventually, eventually_some};

use crate::interrupt::Interrupt;
use crate::{repo, setup};

const CONFIG: &str = "/etc/weft/weft.toml";
/// What a host without a configuration starts with.
const DEFAULT_CONFIG: &str = include_str!("../../agent/dist/weft.toml");
const READY_DEADLINE: Duration = Duration::from_secs(30);
const STOP_DEADLINE: Duration = Duration::from_secs(15);
/// Longer than any agent runs.
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

pub(crate) fn run() -> Result<()> {
    let interrupt = Interrupt::listen()?;
    ensure!(
        repo::is_root() || setup::which("sudo").is_some(),
        "the agent makes links, routes and BPF programs: run `cargo xtask run` as root"
    );
    println!("1/4 packages");
    setup::for_run()?;
    mount_bpffs();
    println!("2/4 build: the first one takes about six minutes on two cores, later ones seconds");
    repo::execute(&mut repo::cargo(&["build", "--workspace"]))?;
    println!("3/4 configuration: {CONFIG}");
    write_default_config()?;
    interrupt.check()?;
    println!("4/4 agent");
    let weft = repo::built("debug", "weft");
    let mut agent = Agent::start(&weft)?;
    agent.wait_until_ready(&interrupt)?;
    if !interrupt.heard() {
        print_next_steps(&weft)?;
    }
    agent.wait_until_stopped(&interrupt)
}

/// Writes a default that works on one host and shows how to add a peer. An existing file is left alone.
fn write_default_config() -> Result<()> {
    if Path::new(CONFIG).exists() {
        println!("    exists, left as it is");
        return Ok(());
    }
    let mut file = tempfile::NamedTempFile::new().context("failed to make a temporary file")?;
    std::io::Write::write_all(&mut file, DEFAULT_CONFIG.as_bytes())?;
    repo::execute(repo::as_root("install").args(["-D", "-m", "0640"]).arg(file.path()).arg(CONFIG))?;
    println!("    written; peers are added there");
    Ok(())
}

/// Counters that outlive the agent are pinned in bpffs. systemd mounts it; other systems and containers do not.
fn mount_bpffs() {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    if mounts.lines().any(|line| line.contains(" /sys/fs/bpf bpf ")) {
        return;
    }
    let mounted = repo::execute(repo::as_root("mount").args(["-t", "bpf", "bpf", "/sys/fs/bpf"]));
    if let Err(error) = mounted {
        println!("    no bpffs, so `weft doctor` will name it: {error:#}");
    }
}

fn print_next_steps(weft: &Path) -> Result<()> {
    let weft = weft.display();
    let sudo = if repo::is_root() { "" } else { "sudo " };
    repo::execute(repo::as_root(weft.to_string()).arg("status"))?;
    println!(
        "
The agent runs. In another terminal:
  {sudo}{weft} status      what is up
  {sudo}{weft} doctor      what this kernel offers, and what to fix
  {sudo}{weft} peers       bytes per peer; `top` shows the same, live
  curl http://127.0.0.1:9615/metrics
  dig @127.0.3.3 $(hostname -s).weft.internal

control socket /run/weft/weft.sock   metrics http://127.0.0.1:9615/metrics   DNS 127.0.3.3:53   state /var/lib/weft
(these are the defaults; {CONFIG} may say otherwise)

To add a peer, edit {CONFIG} and type `{sudo}{weft} reload`.
Ctrl-C stops the agent; `{sudo}{weft} down` removes its link, routes, table and BPF pins."
    );
    Ok(())
}

/// The agent, as our child; asked to stop on drop.
#[derive(Debug)]
struct Agent {
    child: Child,
    weft: PathBuf,
}

impl Agent {
    fn start(weft: &Path) -> Result<Self> {
        let mut command = repo::as_root(weft);
        command.args(["agent", "--config", CONFIG]);
        let child = command.spawn().with_context(|| format!("failed to start {}", weft.display()))?;
        Ok(Self { child, weft: weft.to_owned() })
    }

    fn wait_until_ready(&mut self, interrupt: &Interrupt) -> Result<()> {
        let mut ended = None;
        eventually(READY_DEADLINE, "the agent is ready", || {
            ended = self.child.try_wait().ok().flatten();
            ended.is_some() || interrupt.heard() || is_ready(&self.weft)
        })?;
        match ended {
            Some(status) => bail!("the agent ended ({status}); its messages are above"),
            None => Ok(()),
        }
    }

    /// The terminal sends Ctrl-C to the agent too; a signal that only we got is passed on.
    fn wait_until_stopped(mut self, interrupt: &Interrupt) -> Result<()> {
        let mut status = None;
        eventually(FOREVER, "the agent ends", || {
            status = self.child.try_wait().ok().flatten();
            status.is_some() || interrupt.heard()
        })?;
        if let (Some(status), false) = (status, interrupt.heard()) {
            bail!("the agent ended by itself ({status}); its messages are above");
        }
        println!("stopping the agent");
        self.terminate();
        let status = eventually_some(STOP_DEADLINE, "the agent ends", || self.child.try_wait().ok().flatten())?;
        ensure!(status.success(), "the agent ended with {status}");
        Ok(())
    }

    fn terminate(&self) {
        // An error means that it is gone already. `kill` runs as root, because sudo may stand between us.
        repo::as_root("kill").arg(self.child.id().to_string()).stderr(std::process::Stdio::null()).status().ok();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.terminate();
            let ended = eventually(STOP_DEADLINE, "the agent ends", || matches!(self.child.try_wait(), Ok(Some(_))));
            if ended.is_err() {
                self.child.kill().ok();
            }
        }
    }
}

fn is_ready(weft: &Path) -> bool {
    let mut command: Command = repo::as_root(weft);
    command.args(["status", "--check", "ready"]);
    command.output().is_ok_and(|output| output.status.success())
}
