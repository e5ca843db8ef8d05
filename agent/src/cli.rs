//! The command line of `weft`: what can be typed, and what it ends with.
//!
//! In: arguments, the environment, and the answers of an agent over its control socket. Out: text or JSON on standard
//! output, complaints on standard error, an exit code. A command never touches the host itself but for `agent`, `down`
//! without an agent, `doctor` (which only looks), `import`, which writes the files it names, and `log-keeper`.

mod agent;
mod args;
mod cert;
mod client;
mod config;
mod dns;
mod doctor;
mod down;
mod mesh;
mod output;
mod peers;
mod ping;
mod process;
mod status;
mod store;
mod tail;
mod top;
mod version;
mod wg_quick;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::api::CommandError;
use crate::app::Launch;
use crate::config::{Config, LoadError, ResolveError};
use crate::foundation::error::chain;
use args::{Check, PingArgs, StatusArgs, TailArgs, TopArgs};
use client::ClientError;

/// What the composition root does for the command line.
#[derive(Debug, Clone, Copy)]
pub struct Daemon {
    /// Runs the agent until it is asked to stop.
    pub run: fn(Launch) -> ExitCode,
    /// Removes what is ours from the kernel while no agent runs; the lines say what was removed.
    pub remove: fn(&Config) -> Result<Vec<String>, CommandError>,
}

/// Runs the command line of this process.
pub fn main(daemon: Daemon) -> ExitCode {
    run(std::env::args_os(), daemon)
}

fn run(arguments: impl IntoIterator<Item = OsString>, daemon: Daemon) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come as errors too, with exit code 0. A reader that is gone needs no help.
            error.print().ok();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match &cli.command {
        Command::Agent(args) => agent::run(&cli.target, args, daemon).unwrap_or_else(|failure| failure.report().into()),
        Command::LogKeeper => keep_logs(&cli.target).unwrap_or_else(Failure::report).into(),
        Command::Client(command) => dispatch(&cli.target, command, daemon).unwrap_or_else(Failure::report).into(),
    }
}

fn keep_logs(target: &Target) -> Result<Exit, Failure> {
    let missing = || Failure::Usage("log-keeper needs --run-dir".to_owned());
    process::keep_logs(target.run_dir.as_deref().ok_or_else(missing)?)
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    Ok,
    Failed,
    Usage,
    NotRunning,
    Degraded,
}

impl Exit {
    fn from_code(code: u8) -> Self {
        match code {
            0 => Self::Ok,
            2 => Self::Usage,
            3 => Self::NotRunning,
            4 => Self::Degraded,
            _ => Self::Failed,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Ok => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::NotRunning => 3,
            Exit::Degraded => 4,
        })
    }
}

/// Why a command could not be carried out.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Config(#[from] LoadError),
    #[error("the configuration cannot be used")]
    Settings(#[from] ResolveError),
    #[error("failed to write the answer")]
    Write(#[from] io::Error),
    #[error("failed to start")]
    Runtime(#[source] io::Error),
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error(transparent)]
    Import(#[from] wg_quick::ImportError),
    #[error(transparent)]
    Ping(#[from] ping::PingError),
    #[error(transparent)]
    Dns(#[from] dns::DnsError),
    #[error(transparent)]
    Mesh(#[from] mesh::MeshError),
    #[error(transparent)]
    Cert(#[from] cert::CertError),
    #[error(transparent)]
    Store(#[from] store::StoreCommandError),
    #[error(transparent)]
    Definitions(#[from] process::FileError),
    #[error("{0}")]
    Usage(String),
    #[error("the log keeper ended")]
    LogKeeper(#[source] io::Error),
}

impl Failure {
    /// Tells the reason on standard error, and the exit code for it.
    fn report(self) -> Exit {
        let exit = match &self {
            // The reader of a pipe has seen enough: no failure of ours.
            Self::Write(error) if error.kind() == io::ErrorKind::BrokenPipe => return Exit::Ok,
            Self::Client(error) => error.exit(),
            Self::Ping(error) => error.exit(),
            Self::Dns(error) => error.exit(),
            Self::Store(store::StoreCommandError::Bind(_)) => Exit::Usage,
            Self::Usage(_) => Exit::Usage,
            Self::Config(_)
            | Self::Settings(_)
            | Self::Write(_)
            | Self::Runtime(_)
            | Self::Command(_)
            | Self::Cert(_)
            | Self::LogKeeper(_)
            | Self::Mesh(_)
            | Self::Definitions(_)
            | Self::Import(_)
            | Self::Store(_) => Exit::Failed,
        };
        output::complain(&format!("weft: {}\n", chain(&self)));
        exit
    }
}

/// Encrypted mesh between hosts, with names and per-peer accounting, and supervised processes, by one agent a host.
#[derive(Debug, Parser)]
#[command(
    name = "weft",
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 ok, 1 failed, 2 wrong usage, 3 no agent runs, 4 degraded.\n\nFirst steps:\n  \
                  weft config check          is the configuration right?\n  \
                  sudo weft agent            run the agent here\n  \
                  weft status                what does it do?\n  \
                  weft doctor                what does this kernel offer, and what to do about it?"
)]
struct Cli {
    #[command(flatten)]
    target: Target,
    #[command(subcommand)]
    command: Command,
}

const TARGET: &str = "Which agent";

/// Which agent is meant.
#[derive(Debug, Args)]
struct Target {
    /// The configuration file [default: /etc/weft/weft.toml if it exists]
    #[arg(long, global = true, value_name = "FILE", env = "WEFT_CONFIG", hide_env_values = true, help_heading = TARGET)]
    config: Option<PathBuf>,
    /// The directory of the agent's control socket [default: run_dir of the configuration]
    #[arg(long, global = true, value_name = "DIR", help_heading = TARGET)]
    run_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent until it is asked to stop
    ///
    /// SIGTERM or Ctrl-C stops the agent and leaves kernel tunnels, routes and counters as they are; the next agent takes
    /// them over. SIGHUP or `weft reload` reads the configuration again. To take everything away: `weft down`.
    #[command(after_help = "Example:\n  sudo weft agent --config ./weft.toml --set log.level=debug")]
    Agent(AgentArgs),
    /// Keep what processes write; started by the agent
    #[command(hide = true)]
    LogKeeper,
    #[command(flatten)]
    Client(ClientCommand),
}

/// What ends by itself.
#[derive(Debug, Subcommand)]
enum ClientCommand {
    /// Show what the agent does, and what does not work
    #[command(after_help = args::STATUS_EXAMPLES)]
    Status(StatusArgs),
    /// Show every peer: connected or not and why, bytes, endpoint
    #[command(
        after_help = "Bytes are those inside the tunnel, counted in eBPF. Where nothing is counted, the device's own \
                            figure stands there, marked (outer): it holds encryption overhead and keepalives."
    )]
    Peers(JsonArgs),
    /// Show the traffic of each peer and what each process uses, live, the busiest first
    #[command(
        after_help = "Examples:\n  weft top                   live on a terminal; p: peers, processes or both; q ends it\n  \
                            weft top --show processes\n  \
                            weft top --once            one measurement, then exit\n  \
                            weft top --json | jq .     one JSON object a line, an interval each"
    )]
    Top(TopArgs),
    /// Ask a peer through the tunnel whether it is there (ICMP echo)
    #[command(after_help = "Examples:\n  weft ping beta\n  weft ping 10.80.0.2 --count 1")]
    Ping(PingArgs),
    /// Show the agent's log: what was, then what comes
    #[command(
        after_help = "Examples:\n  weft tail                          the last 100 lines, then live, Ctrl-C ends it\n  \
                            weft tail --level warn --no-follow\n  \
                            weft tail --mesh --level error     of every node\n  \
                            weft tail --domain dns --after 2026-01-02T03:04:05Z --json"
    )]
    Tail(TailArgs),
    /// Show what this kernel offers, what Weft falls back to, why, and the fix
    ///
    /// Looks at the host itself, so it works before the first start; with an agent running it also shows what that uses.
    /// Exit code 4: something Weft needs or would do better with is missing.
    Doctor(JsonArgs),
    /// Take everything of ours out of the kernel and stop the agent
    ///
    /// Link, routes, BPF programs and counters, and the nftables table; nothing else. Keys and configuration stay. Works
    /// without a running agent too.
    Down(JsonArgs),
    /// Have the agent read its configuration again; with a name, restart a process without a gap
    ///
    /// Configuration: what differs is applied, the rest is not touched; no session or counter is lost. One that is wrong, or
    /// that needs a restart, is refused whole. Process: one instance after the other. Its next process is started beside the one
    /// that runs and takes its place once it is healthy and listens where that does, or has lived for min_uptime; then the one
    /// before is asked to end. One that does not come up changes nothing. Where both cannot be there at once, as with a port
    /// bound without SO_REUSEPORT, the one that runs is stopped first, and a notice says so.
    #[command(after_help = "Examples:\n  weft reload\n  weft reload web")]
    Reload(process::ReloadArgs),
    #[command(flatten)]
    Process(process::ProcessCommand),
    /// Check configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Take over the configuration of another tool
    #[command(subcommand)]
    Import(ImportCommand),
    /// Ask the mesh's name server
    #[command(subcommand)]
    Dns(DnsCommand),
    #[command(flatten)]
    Mesh(mesh::MeshCommand),
    /// Make certificates for operators and tools
    #[command(subcommand)]
    Cert(cert::CertCommand),
    /// Read, change and save the replicated database
    #[command(subcommand)]
    Store(StoreCommand),
    /// Print a completion script for a shell
    #[command(after_help = "Examples:\n  weft completions bash > /etc/bash_completion.d/weft\n  \
                            weft completions zsh > \"${fpath[1]}/_weft\"\n  \
                            weft completions fish > ~/.config/fish/completions/weft.fish")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Show the version of this program and of the running agent
    Version(JsonArgs),
}

#[derive(Debug, Args)]
struct AgentArgs {
    /// One value over the file and the environment, like log.level=debug; may be given more than once
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// The key of the web API on port 9615; better: web.api_key_file, or WEFT_API_KEY in the environment
    ///
    /// Every user of this host can read the arguments of a process. PMDAEMON_API_KEY is read too.
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
}

#[derive(Debug, Args)]
struct JsonArgs {
    /// Exact figures as JSON with a schema number
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Check a configuration file without starting anything
    ///
    /// Prints one error naming the key, the place and what is accepted; or `ok`.
    Check {
        /// The file [default: the one of --config]
        file: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
enum ImportCommand {
    /// Write weft.toml and key files that mean the same as a wg-quick file
    ///
    /// The link keeps its name, so an agent started with them adopts the running link with its sessions. What Weft does
    /// otherwise is named line by line. Files that exist are never overwritten.
    #[command(after_help = "Examples:\n  sudo weft import wg-quick /etc/wireguard/wg0.conf\n  \
                            weft import wg-quick wg0.conf --output ./weft && weft config check ./weft/weft.toml")]
    WgQuick(ImportArgs),
    /// Print [process.NAME] tables that mean the same as an ecosystem file of PM2
    ///
    /// What means nothing here is named on standard error; a key that nobody knows is refused. A *.config.js file is evaluated
    /// by Node.js.
    #[command(
        after_help = "Examples:\n  weft import pm2 ecosystem.config.js >> /etc/weft/weft.toml && weft reload\n  \
                            weft import pm2 apps.yaml --output processes.toml"
    )]
    Pm2(process::ImportArgs),
}

#[derive(Debug, Args)]
struct ImportArgs {
    /// The file; its name without .conf is the link's
    file: PathBuf,
    /// Where weft.toml and keys/ are written
    #[arg(long, value_name = "DIR", default_value = "/etc/weft")]
    output: PathBuf,
    /// Import although the file runs commands (PreUp, PostUp, PreDown, PostDown), which Weft does not
    #[arg(long)]
    skip_hooks: bool,
    /// What was written, as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum DnsCommand {
    /// Ask the agent's name server for a name
    #[command(
        after_help = "A name without a dot is looked up in the mesh domain.\n\nExamples:\n  weft dns query beta\n  \
                            weft dns query beta.weft.internal AAAA\n  weft dns query 2.0.80.10.in-addr.arpa PTR"
    )]
    Query(QueryArgs),
}

#[derive(Debug, Args)]
struct QueryArgs {
    /// The name
    name: String,
    /// The record type: A, AAAA, PTR, TXT, …
    #[arg(default_value = "A", value_name = "TYPE")]
    kind: String,
    /// Another server, ADDRESS or ADDRESS:PORT, than the running agent's
    #[arg(long, value_name = "ADDRESS")]
    server: Option<String>,
    /// The answer as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum StoreCommand {
    /// Show the rows of a query
    #[command(after_help = "Examples:\n  weft store query 'SELECT name FROM sqlite_schema'\n  \
                            weft store query 'SELECT * FROM t WHERE id = ? AND at < :t' --bind int:7 --bind :t=time:2026-01-02T03:04:05Z")]
    Query(SqlArgs),
    /// Carry out statements, all or none
    ///
    /// The statements are one entry of the replicated log. What would differ between members (random(), the time now) is
    /// refused: bind it with --bind. Weft's own tables (weft_…) are written only where --own-table names them.
    #[command(after_help = "Examples:\n  weft store exec 'CREATE TABLE t (id INTEGER PRIMARY KEY, at TIMESTAMP)'\n  \
                            weft store exec 'INSERT INTO t (at) VALUES (?)' --bind time:2026-01-02T03:04:05Z\n  \
                            weft store exec 'DELETE FROM t' 'DROP TABLE t'")]
    Exec(ExecArgs),
    /// Say whenever rows of tables change, until Ctrl-C
    Watch {
        /// The tables
        #[arg(required = true)]
        tables: Vec<String>,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Save the whole database to a file
    Backup {
        /// The file, which does not exist yet
        file: PathBuf,
        /// What was written, as JSON
        #[arg(long)]
        json: bool,
    },
    /// Begin a new store from a backup, while no agent runs
    ///
    /// The store of this node becomes a cluster of one with the content of the backup; what was there is kept beside it. Other
    /// nodes join it again.
    #[command(
        after_help = "Example:\n  systemctl stop weft && sudo weft store restore ./weft.db && systemctl start weft"
    )]
    Restore(RestoreArgs),
    /// Add, promote, demote or remove a member of the store
    #[command(subcommand)]
    Member(MemberCommand),
    /// Show the role, the leader, the members and the sizes
    Status(JsonArgs),
}

#[derive(Debug, Subcommand)]
enum MemberCommand {
    /// Add a node without a vote, and wait until it has everything
    Add {
        /// The node, which is in this mesh and waits with an empty store
        node: String,
        /// The number of its store, as `weft store status` shows it there
        #[arg(value_parser = store::parse_number)]
        number: u64,
        /// Where its Raft listener answers, HOST:PORT
        address: String,
    },
    /// Give a member a vote: 3, 5 or 7 are a good number
    Promote {
        /// The node
        node: String,
    },
    /// Take a member's vote; it keeps the data
    Demote {
        /// The node
        node: String,
    },
    /// Remove a member for ever; the node may join again with a new store
    Remove {
        /// The node
        node: String,
    },
    /// Have a member lead
    Lead {
        /// The node
        node: String,
    },
}

#[derive(Debug, Args)]
struct SqlArgs {
    /// The query
    sql: String,
    /// A parameter as [:NAME=]TYPE:VALUE, TYPE one of int, real, bool, text, blob (hexadecimal), time (RFC 3339), null
    #[arg(long, value_name = "PARAMETER")]
    bind: Vec<String>,
    /// Read what this node has, without asking the others
    #[arg(long)]
    local: bool,
    /// The rows as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ExecArgs {
    /// The statements
    #[arg(required = true)]
    sql: Vec<String>,
    /// A parameter as [:NAME=]TYPE:VALUE, for each of the statements
    #[arg(long, value_name = "PARAMETER")]
    bind: Vec<String>,
    /// One of Weft's own tables that may be written
    #[arg(long, value_name = "TABLE")]
    own_table: Vec<String>,
    /// Undo everything unless each statement affects so many rows
    #[arg(long, value_name = "ROWS")]
    expecting: Option<u64>,
    /// What was done, as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct RestoreArgs {
    /// The backup
    file: PathBuf,
    /// What was done, as JSON
    #[arg(long)]
    json: bool,
}

fn dispatch(target: &Target, command: &ClientCommand, daemon: Daemon) -> Result<Exit, Failure> {
    match command {
        ClientCommand::Status(args) => block_on(async { status::run(&target.client()?, args).await }),
        ClientCommand::Peers(args) => block_on(async { peers::run(&target.client()?, args.json).await }),
        ClientCommand::Top(args) => block_on(async { top::run(&target.client()?, args).await }),
        ClientCommand::Ping(args) => block_on(async { ping::run(&target.client()?, args).await }),
        ClientCommand::Tail(args) => block_on(async { tail::run(&target.client()?, args).await }),
        ClientCommand::Doctor(args) => block_on(async { doctor::run(&target.client()?, args.json).await }),
        ClientCommand::Down(args) => block_on(async { down::run(target, args.json, daemon).await }),
        ClientCommand::Reload(args) => block_on(async {
            match &args.name {
                Some(name) => process::reload(&target.client()?, name, args.json).await,
                None => down::reload(&target.client()?, args.json).await,
            }
        }),
        ClientCommand::Process(command) => block_on(async { process::run(&target.client()?, command).await }),
        ClientCommand::Config(ConfigCommand::Check { file }) => config::check(target, file.as_deref()),
        ClientCommand::Import(ImportCommand::WgQuick(args)) => wg_quick::run(args),
        ClientCommand::Import(ImportCommand::Pm2(args)) => process::import(args),
        ClientCommand::Dns(DnsCommand::Query(args)) => block_on(async { dns::run(target, args).await }),
        ClientCommand::Mesh(command) => block_on(async { mesh::run(&target.client()?, command).await }),
        ClientCommand::Cert(command) => block_on(async { cert::run(&target.client()?, command).await }),
        ClientCommand::Store(command) => block_on(async { store::run(target, command).await }),
        ClientCommand::Completions { shell } => completions(*shell),
        ClientCommand::Version(args) => block_on(async { version::run(&target.client()?, args.json).await }),
    }
}

fn block_on(work: impl Future<Output = Result<Exit, Failure>>) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::Runtime)?;
    runtime.block_on(work)
}

fn completions(shell: clap_complete::Shell) -> Result<Exit, Failure> {
    output::print(&script(shell))?;
    Ok(Exit::Ok)
}

fn script(shell: clap_complete::Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "weft", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

#[cfg(test)]
mod tests;
