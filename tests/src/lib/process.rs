//! A process with its log; it is ended on drop, by its own id, and its log is shown when the test fails.

use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::NamedTempFile;

use crate::wait::{eventually, eventually_some};

/// How much of a log a failed test shows.
const SHOWN_LINES: usize = 60;
/// How long a process may take to end after SIGTERM.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// A process that was started here.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: NamedTempFile,
}

impl Process {
    /// Starts `command` with both outputs in a log file and nothing to read.
    ///
    /// # Errors
    /// The program was not found, or the log could not be made.
    pub fn spawn(name: &str, mut command: Command) -> Result<Self> {
        let log = NamedTempFile::with_prefix("weft-log-").context("failed to make a log file")?;
        let output: File = log.reopen()?;
        let errors = output.try_clone()?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("failed to start {name}: {command:?}"))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// The process id. `nsenter` replaces itself, so it is the program's own.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it wrote so far.
    pub fn log(&self) -> String {
        std::fs::read(self.log.path()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// The process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.as_pid(), signal).with_context(|| format!("failed to send {signal} to {}", self.name))
    }

    /// Ends it as a crash would and waits until it is gone.
    ///
    /// # Errors
    /// It was gone already.
    pub fn kill9(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("failed to kill {}", self.name))?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to end with SIGTERM and waits for its exit status.
    ///
    /// # Errors
    /// It does not end within ten seconds.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait_for_exit(STOP_DEADLINE)
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// It still runs at the deadline.
    pub fn wait_for_exit(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let what = format!("{} ends", self.name);
        let child = &mut self.child;
        eventually_some(deadline, &what, || child.try_wait().ok().flatten())
            .with_context(|| format!("log of {}:\n{}", self.name, self.tail()))
    }

    /// Waits until `condition` holds while the process runs.
    ///
    /// # Errors
    /// The process ended or the deadline passed; the error carries the end of its log.
    pub fn wait_for(&mut self, what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) -> Result<()> {
        let child = &mut self.child;
        let mut ended = None;
        let waited = eventually(deadline, what, || {
            let fulfilled = condition();
            ended = child.try_wait().ok().flatten();
            fulfilled || ended.is_some()
        });
        match ended {
            Some(status) => Err(anyhow::anyhow!("{} ended ({status}) before: {what}", self.name)),
            None => waited,
        }
        .with_context(|| format!("log of {}:\n{}", self.name, self.tail()))
    }

    /// Waits until the log holds `text`.
    ///
    /// # Errors
    /// As [`Self::wait_for`].
    pub fn wait_for_log(&mut self, text: &str, deadline: Duration) -> Result<()> {
        let path = self.log.path().to_owned();
        self.wait_for(&format!("its log says {text:?}"), deadline, || {
            std::fs::read(&path).is_ok_and(|log| String::from_utf8_lossy(&log).contains(text))
        })
    }

    /// The end of the log.
    pub fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
    }

    fn as_pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for Process {
    #[expect(clippy::print_stderr, reason = "a failed test shows what its processes said")]
    fn drop(&mut self) {
        // A process that ended by itself is no error here: the test has looked at what it needed.
        drop(self.child.kill());
        let status = self.child.wait();
        if std::thread::panicking() {
            let status = status.map(|status| match status.signal() {
                Some(signal) => format!("signal {signal}"),
                None => status.to_string(),
            });
            eprintln!("---- log of {} ({status:?}):\n{}\n----", self.name, self.tail());
        }
    }
}
