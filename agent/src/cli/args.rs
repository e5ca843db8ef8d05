//! What can be typed about the agent itself and its tunnel.

use clap::{Args, ValueEnum};

use super::top;

pub(super) const STATUS_EXAMPLES: &str = "\
Examples:
  weft status
  weft status --check ready    exit code 0 once the agent is ready, else 4
  weft status --watch --json   one JSON object a line, at every change
  weft status beta             processors, memory, disks and tunnel of node beta";

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Show the figures of a node of the mesh and its host instead, asked of it through this one
    #[arg(value_name = "NODE", conflicts_with_all = ["check", "watch"])]
    pub(super) node: Option<String>,
    /// Only say whether the agent answers, has come up, or is ready
    #[arg(long, value_enum, conflicts_with = "watch")]
    pub(super) check: Option<Check>,
    /// Show the status again whenever it changes
    #[arg(long)]
    pub(super) watch: bool,
    /// Exact figures as JSON with a schema number
    #[arg(long)]
    pub(super) json: bool,
}

/// What `status --check` asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Check {
    /// The agent answers
    Live,
    /// Everything has come up, and the tunnel link exists
    Ready,
    /// Everything has come up
    Startup,
}

impl Check {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Ready => "ready",
            Self::Startup => "startup",
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct TopArgs {
    /// Measure once and exit
    #[arg(long)]
    pub(super) once: bool,
    /// Seconds between two measurements, 0.1 to 60
    #[arg(long, default_value = "1", value_name = "SECONDS", value_parser = top::parse_interval)]
    pub(super) interval: std::time::Duration,
    /// What is shown; on a terminal p shows the next of them. JSON has all
    #[arg(long = "show", default_value = "all", value_name = "WHAT")]
    pub(super) section: top::Section,
    /// Exact figures as JSON, one object a line
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct PingArgs {
    /// A peer's name, public key, or an address in its allowed IPs
    pub(super) peer: String,
    /// How many requests, one a second
    #[arg(long, short, default_value = "4", value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) count: u16,
    /// Exact figures as JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct TailArgs {
    /// Only lines of this part of the agent, like dns or wireguard
    #[arg(long, short)]
    pub(super) domain: Option<String>,
    /// Only lines of this level or worse: error, warn, info, debug, trace
    #[arg(long, short)]
    pub(super) level: Option<String>,
    /// Only lines from this time on, like 2026-01-02T03:04:05Z
    #[arg(long, short, value_name = "TIME")]
    pub(super) after: Option<String>,
    /// Only lines before this time
    #[arg(long, short, value_name = "TIME")]
    pub(super) before: Option<String>,
    /// Only lines that hold this text
    #[arg(long, short = 's', value_name = "TEXT")]
    pub(super) contains: Option<String>,
    /// At most so many lines of history, the newest
    #[arg(long, short = 'n', default_value_t = 100)]
    pub(super) lines: u32,
    /// End after the history
    #[arg(long)]
    pub(super) no_follow: bool,
    /// The logs of all nodes as one, over the mesh; for those who may use the pm3 API
    #[arg(long)]
    pub(super) mesh: bool,
    /// The lines as they are stored, one JSON object each
    #[arg(long)]
    pub(super) json: bool,
}
