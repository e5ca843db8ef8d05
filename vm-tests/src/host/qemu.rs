//! One QEMU guest: starts it, passes its report on as it comes, ends it at the deadline.
//!
//! In: kernel, initramfs, what to run. Out: the lines of the report and how the guest ended. The guest has two serial
//! ports: the kernel's console goes to a file (shown when the guest dies), the report comes alone on the second, so no
//! kernel message can cut a verdict in two. The guest dies with this process.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::kernel::Kernel;
use crate::guest::report::Exit;

/// Boot-time self-tests and certificates that cost seconds under emulation and say nothing about us.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr random.trust_cpu=on init_on_alloc=0 no_timer_check \
     cryptomgr.notests initcall_blacklist=jent_mod_init,crypto_kdf108_init,init_encrypted,load_system_certificate_list";

/// What the kernel does not know it hands to `/init` as environment.
const ENVIRONMENT: &str = "PATH=/bin:/sbin";

/// A guest to be run.
#[derive(Debug)]
pub(crate) struct Guest<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) initramfs: &'a Path,
    /// Where the kernel's messages go.
    pub(crate) console: PathBuf,
    /// Added to the kernel's command line, for `/init`.
    pub(crate) arguments: String,
    pub(crate) timeout: Duration,
    /// The whole root lives in it.
    pub(crate) memory_mib: u32,
}

/// How a guest ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// `/init` ran to its end and said so.
    Said(Exit),
    /// It ended in another way: a panic of the kernel or of `/init`, or QEMU did not start.
    Died(ExitStatus),
    TimedOut,
}

impl Guest<'_> {
    /// Runs the guest to its end; `line` sees each line of its report.
    pub(crate) fn run(&self, mut line: impl FnMut(&str)) -> Result<End> {
        let deadline = Instant::now() + self.timeout;
        let mut child = self.command().spawn().context("failed to start QEMU through setpriv")?;
        let report = child.stdout.take().context("the child has a piped standard output")?;
        let mut process = Process(child);
        // A guest that prints faster than we show waits; the report is a few dozen lines.
        let (tx, rx) = mpsc::sync_channel(64);
        let reader = std::thread::spawn(move || {
            for text in BufReader::new(report).split(b'\n').map_while(Result::ok) {
                if tx.send(String::from_utf8_lossy(&text).trim_end().to_owned()).is_err() {
                    break;
                }
            }
        });
        let timed_out = loop {
            match rx.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(text) => line(&text),
                Err(RecvTimeoutError::Disconnected) => break false,
                Err(RecvTimeoutError::Timeout) => break true,
            }
        };
        drop(rx);
        let status = process.end(timed_out)?;
        reader.join().ok().context("the thread that reads the report panicked")?;
        Ok(if timed_out { End::TimedOut } else { ended(status) })
    }

    fn command(&self) -> Command {
        let clock = match tsc_khz() {
            // On a busy host the guest measures its clock wrongly, up to a factor of two: hand the host's rate over.
            Some(khz) => format!("tsc=reliable tsc_early_khz={khz}"),
            None => "clocksource=hpet".to_owned(),
        };
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
        // One thread for both processors: with a thread each, a processor now and then meets the breakpoint of a code patch
        // the other has finished, and the kernel panics ("Oops: int3").
        command.args(["-machine", "pc", "-accel", "tcg,thread=single", "-cpu", "qemu64,+rdrand"]);
        command.args(["-smp", "2", "-m", &self.memory_mib.to_string(), "-nodefaults", "-no-user-config"]);
        command.args([
            "-display",
            "none",
            "-no-reboot",
            "-monitor",
            "none",
            "-device",
            "isa-debug-exit,iobase=0xf4,iosize=4",
        ]);
        command.arg("-kernel").arg(&self.kernel.vmlinux).arg("-initrd").arg(self.initramfs);
        command.args(["-append", &format!("{KERNEL_ARGUMENTS} {clock} {ENVIRONMENT} {}", self.arguments)]);
        command.args(["-serial", &format!("file:{}", self.console.display()), "-serial", "stdio"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command
    }
}

/// The debug device makes QEMU exit with twice the code plus one, so a QEMU that just stops (0) is told apart.
fn ended(status: ExitStatus) -> End {
    let said = status.code().filter(|code| code % 2 == 1).map(|code| code / 2).and_then(Exit::from_code);
    said.map_or(End::Died(status), End::Said)
}

/// The host's time stamp counter as its kernel measured it.
fn tsc_khz() -> Option<u64> {
    let messages = crate::tool::output(&mut Command::new("dmesg")).ok()?;
    parse_tsc(&messages)
}

/// From `tsc: Detected 2596.150 MHz processor`.
fn parse_tsc(messages: &str) -> Option<u64> {
    let megahertz = messages.split("tsc: Detected ").nth(1)?.split(' ').next()?;
    let (whole, thousandths) = megahertz.split_once('.')?;
    let khz = thousandths.parse::<u64>().ok().filter(|_| thousandths.len() == 3)?;
    Some(whole.parse::<u64>().ok()? * 1000 + khz)
}

/// Ends with its owner.
struct Process(Child);

impl Process {
    fn end(&mut self, kill: bool) -> Result<ExitStatus> {
        if kill {
            self.0.kill().context("failed to end QEMU")?;
        }
        self.0.wait().context("failed to wait for QEMU")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Already gone in the usual case; then both are errors nobody needs.
        let _gone = self.0.kill().and_then(|()| self.0.wait());
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn the_clock_rate_is_read_from_the_kernel_log() {
        assert_eq!(parse_tsc("[0.1] a\n[0.2] tsc: Detected 2596.150 MHz processor\n"), Some(2_596_150));
        assert_eq!(parse_tsc("nothing of the kind"), None);
    }

    #[test]
    fn only_the_debug_device_speaks_for_init() {
        let end = |code: i32| ended(ExitStatus::from_raw(code << 8));
        assert_eq!(end(1), End::Said(Exit::AllPassed));
        assert_eq!(end(3), End::Said(Exit::SomeFailed));
        assert!(matches!(end(0), End::Died(_)));
        assert!(matches!(end(251), End::Died(_)));
    }
}
