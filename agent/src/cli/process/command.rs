//! The commands about processes, and what each does.

use clap::Subcommand;

use super::args::{DeleteArgs, LogsArgs, NameArgs, NamesArgs, PsArgs, RestartArgs, ScaleArgs, SendArgs, StartArgs};
use super::{act, delete, describe, logs, ps, restart, save, scale, send, start};
use crate::cli::client::Client;
use crate::cli::{Exit, Failure, JsonArgs};

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum ProcessCommand {
    /// List processes: what runs, since when, what it uses, and why not
    #[command(visible_aliases = ["list", "ls"])]
    Ps(PsArgs),
    /// Start a program under supervision, or what was defined before
    ///
    /// It gets a cgroup of its own and is started again when it ends, at once the first time, then later and later; after
    /// --max-restarts within five minutes it is given up. It is there again after a restart of the agent and a reboot. What
    /// it writes is kept with the time of each line: `weft logs`.
    #[command(
        after_help = "Examples:\n  weft start ./server --name api --port 3000\n  weft start app.js -i max --port 3000-3003\n  \
                      weft start \"node server.js\" --env NODE_ENV=production\n  weft start api                     again, after \
                      weft stop\n  weft start ./job --no-autorestart -- --once"
    )]
    Start(Box<StartArgs>),
    /// Stop processes and wait until nothing is left of them
    ///
    /// Each is asked to end; after its kill timeout everything in its cgroup is killed. They stay defined.
    Stop(NamesArgs),
    /// Stop processes and start them again
    Restart(RestartArgs),
    /// Change how many instances of a process there are
    #[command(after_help = "Examples:\n  weft scale web 4\n  weft scale web +2\n  weft scale web -1")]
    Scale(ScaleArgs),
    /// Stop processes and forget them; their logs stay
    #[command(visible_aliases = ["del", "rm"])]
    Delete(DeleteArgs),
    /// Show everything about a process
    #[command(visible_aliases = ["show", "info"])]
    Describe(NameArgs),
    /// Show what processes write
    #[command(after_help = "Examples:\n  weft logs web -f\n  weft logs --lines 100 --err\n  \
                            weft logs web --since 2026-01-02T03:04:05Z --json")]
    Logs(LogsArgs),
    /// Write a line into the standard input of processes that have stdin = "pipe"
    ///
    /// The words are joined by a blank and end with a line feed; without any, your standard input is sent as it is, at most 4096
    /// bytes. All of it is written or nothing. Only root may.
    #[command(
        after_help = "Examples:\n  weft start ./game-server --name game --stdin pipe\n  weft send game save-all\n  \
                            printf 'stop\\n' | weft send game"
    )]
    Send(SendArgs),
    /// Set the restart counters of processes to zero
    Reset(NamesArgs),
    /// Write the list of processes to disk now; every change does so by itself
    Save(JsonArgs),
}

pub(in crate::cli) async fn run(client: &Client, command: &ProcessCommand) -> Result<Exit, Failure> {
    match command {
        ProcessCommand::Ps(args) => ps(client, args).await,
        ProcessCommand::Start(args) => start::run(client, args).await,
        ProcessCommand::Stop(args) => act(client, "stop", args).await,
        ProcessCommand::Restart(args) => restart(client, args).await,
        ProcessCommand::Scale(args) => scale(client, args).await,
        ProcessCommand::Delete(args) => delete(client, args).await,
        ProcessCommand::Describe(args) => describe(client, args).await,
        ProcessCommand::Logs(args) => logs::run(client, args).await,
        ProcessCommand::Send(args) => send::run(client, args).await,
        ProcessCommand::Reset(args) => act(client, "reset", args).await,
        ProcessCommand::Save(args) => save(client, args.json).await,
    }
}
