//! The loop of the composition root: commands, signals, readiness, the watchdog.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info, warn};

use super::Launch;
use super::domains::Domains;
use crate::api::{Command, CommandError, CommandResult};
use crate::config::{self, Config, Source, restart_keys};
use crate::foundation::error::chain;
use crate::foundation::lifecycle::Readiness;
use crate::foundation::task::{self, Task};
use crate::foundation::telemetry::LevelHandle;

/// How the loop ended.
pub(super) enum End {
    /// Everything stays in the kernel.
    Keep,
    /// What is ours is to be removed, and this caller told.
    Remove(oneshot::Sender<CommandResult>),
}

/// The signals the agent answers.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Takes the signals over, so that none kills the agent from here on.
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

/// Carries out commands and signals until one of them ends the agent.
pub(super) async fn run(
    launch: Launch,
    domains: &Domains,
    level: &LevelHandle,
    signals: &mut Signals,
    mut commands: mpsc::Receiver<Command>,
) -> End {
    let mut reloader = Reloader { running: launch.config.clone(), launch, domains, level };
    loop {
        let command = tokio::select! {
            _ = signals.terminate.recv() => return End::Keep,
            _ = signals.interrupt.recv() => return End::Keep,
            _ = signals.hangup.recv() => None,
            command = commands.recv() => match command {
                Some(command) => Some(command),
                None => return End::Keep,
            },
        };
        match command {
            None => reloader.on_signal().await,
            Some(Command::Reload(reply)) => answer(reply, reloader.reload().await),
            Some(Command::Shutdown(reply)) => {
                answer(reply, Ok(vec!["stopping; tunnel, addresses, routes, counters and processes stay".to_owned()]));
                return End::Keep;
            }
            Some(Command::Down(reply)) => return End::Remove(reply),
        }
    }
}

fn answer(reply: oneshot::Sender<CommandResult>, result: CommandResult) {
    // A caller that went away needs no answer.
    if let Err(unheard) = reply.send(result) {
        info!(?unheard, "nobody waits for the answer to a command");
    }
}

/// Reads the configuration again and hands over what differs.
struct Reloader<'a> {
    running: Config,
    launch: Launch,
    domains: &'a Domains,
    level: &'a LevelHandle,
}

impl Reloader<'_> {
    async fn on_signal(&mut self) {
        notify(&[NotifyState::Reloading]);
        match self.reload().await {
            Ok(lines) => info!(changed = ?lines, "configuration reloaded"),
            Err(error) => error!(%error, "the configuration was not reloaded; the running one stays"),
        }
        notify(&[NotifyState::Ready]);
    }

    /// All or nothing: the running configuration stays if anything in the new one cannot be taken.
    async fn reload(&mut self) -> CommandResult {
        let refuse = |error: &(dyn std::error::Error + 'static)| CommandError(chain(error));
        let source = self.launch.file.as_deref().map_or(Source::Default, Source::File);
        let mut wanted = config::load(source, &self.launch.overrides).map_err(|error| refuse(&error))?;
        // It came with the start and cannot change.
        wanted.web.api_key.clone_from(&self.running.web.api_key);
        let restart = restart_keys(&self.running, &wanted);
        if !restart.is_empty() {
            let keys = restart.join(", ");
            return Err(CommandError(format!(
                "{keys} can only be changed by a restart of the agent; nothing was taken"
            )));
        }
        let settings = config::resolve(&wanted).map_err(|error| refuse(&error))?;
        self.level.set(&wanted.log.level).map_err(|error| refuse(&error))?;
        let specs = settings.process.processes.clone();
        let mut changed = self.domains.apply(settings);
        // Without a supervisor there is nobody to tell; every request says why.
        changed.extend(self.domains.process.handle.configure(specs).await.unwrap_or_default());
        if wanted.log.level != self.running.log.level {
            changed.push("log level changed".to_owned());
        }
        self.running = wanted;
        if changed.is_empty() {
            changed.push("nothing changed".to_owned());
        }
        Ok(changed)
    }
}

/// Tells the service manager when the agent is ready.
pub(super) fn announce_ready(readiness: Readiness) -> Task {
    task::spawn("ready", async move {
        readiness.ready().await;
        info!("ready");
        notify(&[NotifyState::Ready]);
    })
}

/// Pings the service manager's watchdog, if it watches; a blocked runtime stops the pings.
pub(super) fn watchdog() -> Option<Task> {
    let limit: Duration = sd_notify::watchdog_enabled()?;
    Some(task::spawn("watchdog", async move {
        let mut interval = tokio::time::interval(limit / 2);
        loop {
            interval.tick().await;
            notify(&[NotifyState::Watchdog]);
        }
    }))
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!(%error, "failed to notify the service manager");
    }
}
