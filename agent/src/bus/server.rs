//! `nats-server` as a child.
//!
//! Invariants: the child learns everything from one file of mode 0600; one that an earlier agent left behind (after SIGKILL) is
//! ended before another is started, or by `weft down`; dropping the guard kills it.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::spec::{Change, Spec};
use crate::foundation::task;
use crate::sys::file::{self, FileError};

/// From SIGTERM to SIGKILL.
const GRACE: Duration = Duration::from_secs(5);
/// Between two looks at a process that was asked to end.
const STEP: Duration = Duration::from_millis(50);

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub(super) enum ServerError {
    #[error(
        "bus.enabled starts {}, which is not installed; `cargo xtask setup` or `apt-get install nats-server` installs it, \
         bus.server names it elsewhere", .0.display()
    )]
    Missing(PathBuf),
    #[error("failed to start {}", program.display())]
    Start {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("failed to write the configuration of the message bus")]
    Write(#[from] FileError),
    #[error("failed to have the message bus read its configuration again")]
    Signal(#[source] nix::Error),
}

/// A running server.
pub(super) struct Server {
    child: Child,
    pid: u32,
    spec: Spec,
    files: Files,
    program: PathBuf,
    run_dir: PathBuf,
    started: Instant,
    ended: Option<io::Result<ExitStatus>>,
}

struct Files {
    config: PathBuf,
    pid: PathBuf,
    url: PathBuf,
}

impl Files {
    fn below(run_dir: &Path) -> Self {
        let directory = run_dir.join("bus");
        let [config, pid, url] = ["nats-server.conf", "nats-server.pid", "client.url"].map(|name| directory.join(name));
        Self { config, pid, url }
    }

    fn write(&self, spec: &Spec) -> Result<(), FileError> {
        if let Some(directory) = self.config.parent() {
            file::create_directory(directory, 0o700)?;
        }
        file::write_atomic(&self.config, spec.render(&self.pid).expose().as_bytes(), 0o600)?;
        file::write_atomic(&self.url, format!("{}\n", spec.client_url.expose()).as_bytes(), 0o600)
    }

    /// Whether one of them was there.
    fn remove(&self) -> bool {
        let removed = [&self.config, &self.url, &self.pid].map(|path| std::fs::remove_file(path).is_ok());
        removed.contains(&true)
    }
}

impl Server {
    pub(super) async fn start(program: &Path, run_dir: &Path, spec: Spec) -> Result<Self, ServerError> {
        let files = Files::below(run_dir);
        end_left_behind(&files).await;
        files.write(&spec)?;
        let mut command = Command::new(program);
        command.arg("--config").arg(&files.config).env_clear().kill_on_drop(true);
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|source| {
            let program = program.to_owned();
            let is_missing = source.kind() == io::ErrorKind::NotFound;
            if is_missing { ServerError::Missing(program) } else { ServerError::Start { program, source } }
        })?;
        if let (Some(output), Some(errors)) = (child.stdout.take(), child.stderr.take()) {
            task::detach("bus-log", follow(output));
            task::detach("bus-log", follow(errors));
        }
        let pid = child.id().unwrap_or_default();
        let (program, run_dir) = (program.to_owned(), run_dir.to_owned());
        Ok(Self { child, pid, spec, files, program, run_dir, started: Instant::now(), ended: None })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    pub(super) fn age(&self) -> Duration {
        self.started.elapsed()
    }

    pub(super) fn routes(&self) -> Vec<String> {
        self.spec.routes()
    }

    /// Waits until the child has ended. Cancel-safe.
    pub(super) async fn ended(server: &mut Option<Self>) {
        match server {
            Some(server) if server.ended.is_none() => server.ended = Some(server.child.wait().await),
            Some(_) => {}
            None => std::future::pending().await,
        }
    }

    /// How it ended, if it has.
    pub(super) fn why_ended(&mut self) -> Option<String> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().transpose();
        }
        self.ended.as_ref().map(|ended| match ended {
            Ok(status) => {
                format!("{} ended with {status}; `weft tail --domain bus` has its last lines", self.program.display())
            }
            Err(error) => format!("{} is lost: {error}", self.program.display()),
        })
    }

    /// Has it do what `spec` says.
    pub(super) async fn change_to(&mut self, spec: Spec) -> Result<(), ServerError> {
        match self.spec.change_to(&spec) {
            Change::Nothing => Ok(()),
            Change::Reload => {
                self.files.write(&spec)?;
                kill(pid(self.pid), Signal::SIGHUP).map_err(ServerError::Signal)?;
                self.spec = spec;
                Ok(())
            }
            Change::Restart => {
                self.end().await;
                *self = Self::start(&self.program, &self.run_dir, spec).await?;
                Ok(())
            }
        }
    }

    /// Ends it.
    pub(super) async fn stop(mut self) {
        self.end().await;
        self.files.remove();
    }

    async fn end(&mut self) {
        // It may have ended by itself.
        kill(pid(self.pid), Signal::SIGTERM).ok();
        if timeout(GRACE, self.child.wait()).await.is_err() {
            self.child.kill().await.ok();
        }
    }
}

fn pid(number: u32) -> Pid {
    Pid::from_raw(i32::try_from(number).unwrap_or(i32::MAX))
}

/// Ends what an agent that was killed left below `run_dir`, and takes its files away; whether there was any of it.
pub(super) async fn remove(run_dir: &Path) -> bool {
    let files = Files::below(run_dir);
    let was_running = end_left_behind(&files).await;
    let removed = files.remove();
    was_running || removed
}

/// The server of an agent that was killed still has the ports; whether there was one.
async fn end_left_behind(files: &Files) -> bool {
    let Some(left) = left_behind(files) else { return false };
    tracing::info!(pid = left.as_raw(), "the message bus of an earlier agent is ended");
    kill(left, Signal::SIGTERM).ok();
    let gone = async {
        while left_behind(files).is_some() {
            tokio::time::sleep(STEP).await;
        }
    };
    if timeout(GRACE, gone).await.is_err() {
        kill(left, Signal::SIGKILL).ok();
    }
    true
}

/// The process of the pid file, if it was told of this very configuration.
fn left_behind(files: &Files) -> Option<Pid> {
    let number: i32 = std::fs::read_to_string(&files.pid).ok()?.trim().parse().ok()?;
    let line = std::fs::read(format!("/proc/{number}/cmdline")).ok()?;
    let own = files.config.as_os_str().as_encoded_bytes();
    line.split(|byte| *byte == 0).any(|argument| argument == own).then(|| Pid::from_raw(number))
}

/// What the server says goes to the log; it says `[PID] [LEVEL] TEXT`.
async fn follow(output: impl AsyncRead + Unpin) {
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let text = line.split_once("] ").map_or(line.as_str(), |(_pid, rest)| rest);
        match text.get(..5) {
            Some("[ERR]" | "[FTL]") => tracing::warn!("{text}"),
            Some("[WRN]") => tracing::info!("{text}"),
            Some(_) | None => tracing::debug!("{text}"),
        }
    }
}
