//! The host side: kernels, initramfs, QEMU, and the count of verdicts.
//!
//! In: a choice of kernels and scenarios. Out: the tally. Guests run one after the other: two would share the cores
//! that emulate them, and time out together.

mod cpio;
mod image;
mod kernel;
mod qemu;
mod system;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::guest::report::{Exit, Tally, Verdict};
use crate::guest::scenario::{Machine, Scenario};
use crate::tool;

/// How much of the kernel's console is shown when a guest dies.
const CONSOLE_LINES: usize = 30;

/// Which kernels to boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Choice {
    #[value(name = "6.1")]
    V6_1,
    #[value(name = "6.12")]
    V6_12,
    All,
}

impl Choice {
    fn series(self) -> &'static [&'static str] {
        match self {
            Self::V6_1 => &["6.1"],
            Self::V6_12 => &["6.12"],
            Self::All => &["6.1", "6.12"],
        }
    }
}

/// Runs the scenarios in a guest for each kernel.
pub(crate) fn run(choice: Choice, timeout: Duration, scenarios: &[&Scenario]) -> Result<Tally> {
    let directory = own_directory()?;
    let cache = directory.parent().unwrap_or(&directory).join("vm");
    let mut kernels = Vec::new();
    for series in choice.series() {
        kernels.push(kernel::obtain(series, &cache)?);
    }
    let programs = image::Programs { init: directory.join("vm-tests"), agent: build_agent(&directory)? };
    let of = |machine: Machine| scenarios.iter().copied().filter(|s| s.machine == machine).collect::<Vec<_>>();
    let mut tally = Tally::default();
    let bare = of(Machine::Bare);
    for kernel in kernels.iter().filter(|_| !bare.is_empty()) {
        let boot = Boot { kernel, programs: &programs, cache: &cache, timeout, system: None };
        tally += boot.run(&bare)?;
    }
    let system = of(Machine::System);
    // systemd is the same on every kernel: the newest is enough.
    if let Some(kernel) = kernels.last().filter(|_| !system.is_empty()) {
        let root = system::obtain(&cache)?;
        let boot = Boot { kernel, programs: &programs, cache: &cache, timeout, system: Some(&root) };
        tally += boot.run(&system)?;
    }
    Ok(tally)
}

/// `target/<profile>`, where this program and the agent lie.
fn own_directory() -> Result<PathBuf> {
    let program = std::env::current_exe().context("failed to find this program's own file")?;
    Ok(program.parent().context("a program lies in a directory")?.to_owned())
}

/// Builds the agent in the profile of this program; nothing happens if it is up to date.
fn build_agent(directory: &Path) -> Result<PathBuf> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "--quiet", "--package", "weft-agent", "--bin", "weft", "--manifest-path"]).arg(manifest);
    command.arg("--target-dir").arg(directory.parent().context("a profile lies in the target directory")?);
    if directory.ends_with("release") {
        command.arg("--release");
    }
    tool::output(&mut command)?;
    Ok(directory.join("weft"))
}

/// One guest.
struct Boot<'a> {
    kernel: &'a kernel::Kernel,
    programs: &'a image::Programs,
    cache: &'a Path,
    timeout: Duration,
    /// The root of a distribution for systemd to boot; `None`: a bare machine.
    system: Option<&'a system::Root>,
}

impl Boot<'_> {
    fn run(&self, scenarios: &[&Scenario]) -> Result<Tally> {
        // Two runs may overlap; each has its own files, gone with the run.
        let work = tempfile::Builder::new().prefix("run-").tempdir_in(self.cache)?;
        let initramfs = work.path().join("initramfs.cpio");
        match self.system {
            None => image::write(self.kernel, self.programs, &initramfs)?,
            Some(root) => image::write_system(self.kernel, self.programs, root, &initramfs)?,
        }
        let names: Vec<_> = scenarios.iter().map(|scenario| scenario.name).collect();
        let guest = qemu::Guest {
            kernel: self.kernel,
            initramfs: &initramfs,
            console: work.path().join("console.log"),
            arguments: format!("weft.scenarios={}", names.join(",")),
            timeout: self.timeout,
            memory_mib: if self.system.is_some() { 2048 } else { 1024 },
        };
        println!("kernel {}{}", self.kernel.release, if self.system.is_some() { ", booted by systemd" } else { "" });
        let started = Instant::now();
        let mut verdicts = Vec::new();
        let end = guest.run(|line| {
            println!("  {line}");
            verdicts.extend(Verdict::parse(line));
        })?;
        println!("  {} s from power-on to the end", started.elapsed().as_secs());
        let tally = count(&names, &verdicts, end);
        if end != qemu::End::Said(Exit::AllPassed) {
            println!("  the guest ended: {end:?}; last lines of its console:");
            show_console(&guest.console);
        }
        Ok(tally)
    }
}

/// A scenario passed if its verdict says so; one without a verdict failed, and so did a guest that did not end well.
fn count(names: &[&str], verdicts: &[Verdict], end: qemu::End) -> Tally {
    let mut tally = Tally::default();
    for name in names {
        let mut said = verdicts.iter().filter(|verdict| verdict.name == *name);
        tally.count(said.next().is_some_and(|verdict| verdict.passed));
    }
    if tally.failed == 0 && end != qemu::End::Said(Exit::AllPassed) {
        tally.count(false);
    }
    tally
}

fn show_console(path: &Path) {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    for line in lines.iter().skip(lines.len().saturating_sub(CONSOLE_LINES)) {
        println!("  | {}", line.trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: qemu::End = qemu::End::Said(Exit::AllPassed);

    #[test]
    fn a_scenario_without_a_verdict_failed() {
        let verdicts = [Verdict { name: "one".to_owned(), passed: true }];
        assert_eq!(count(&["one", "two"], &verdicts, GOOD), Tally { passed: 1, failed: 1 });
    }

    #[test]
    fn a_guest_that_dies_after_its_last_verdict_is_a_failure() {
        let verdicts = [Verdict { name: "one".to_owned(), passed: true }];
        assert_eq!(count(&["one"], &verdicts, GOOD), Tally { passed: 1, failed: 0 });
        assert_eq!(count(&["one"], &verdicts, qemu::End::TimedOut), Tally { passed: 1, failed: 1 });
    }
}
