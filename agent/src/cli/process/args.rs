//! What can be typed about processes.

use std::path::PathBuf;

use clap::Args;

use crate::api::process::Item;

#[derive(Debug, Args)]
pub(in crate::cli) struct PsArgs {
    /// Only these: an id, a name, a status
    names: Vec<String>,
    /// Only this namespace
    #[arg(long)]
    namespace: Option<String>,
    /// Show it again every second, in place on a terminal, else whenever it changed; Ctrl-C ends it
    #[arg(long, short)]
    pub(super) watch: bool,
    /// Exact figures as JSON with a schema number; with --watch one list a line
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

impl PsArgs {
    pub(super) fn wants(&self, item: &Item) -> bool {
        let is_named =
            |name: &String| [&item.name, &item.process, &item.status].contains(&name) || item.id.to_string() == *name;
        (self.names.is_empty() || self.names.iter().any(is_named))
            && self.namespace.as_ref().is_none_or(|namespace| *namespace == item.namespace)
    }
}

#[derive(Debug, Args)]
pub(in crate::cli) struct NameArgs {
    /// An id, the name of an instance, or of a process with all its instances
    pub(in crate::cli) name: String,
    /// Everything as JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct NamesArgs {
    /// Ids, names of instances or processes, namespace:NAME, or all
    #[arg(required = true)]
    pub(in crate::cli) names: Vec<String>,
    /// The answer as JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct DeleteArgs {
    /// Ids, names of processes, namespace:NAME, or all
    #[arg(required = true)]
    pub(in crate::cli) names: Vec<String>,
    /// The answer as JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct RestartArgs {
    /// Ids, names of instances or processes, namespace:NAME, or all
    #[arg(required = true)]
    pub(in crate::cli) names: Vec<String>,
    /// Another port or range from now on
    #[arg(long, short)]
    pub(in crate::cli) port: Option<String>,
    /// Another number of instances from now on
    #[arg(long, short)]
    pub(in crate::cli) instances: Option<u32>,
    /// The answer as JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ReloadArgs {
    /// A process, an id, or all; absent: the agent's configuration
    pub(in crate::cli) name: Option<String>,
    /// The answer as JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ScaleArgs {
    /// The name of a process
    pub(in crate::cli) name: String,
    /// 4 for that many, +2 for so many more, -1 for so many fewer
    #[arg(allow_hyphen_values = true)]
    pub(in crate::cli) instances: String,
    /// The answer as JSON
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct LogsArgs {
    /// An id, a name, namespace:NAME, or all
    #[arg(default_value = "all")]
    pub(super) name: String,
    /// Go on with the lines that come, Ctrl-C ends it
    #[arg(long, short)]
    pub(super) follow: bool,
    /// At most so many lines of the past, the newest
    #[arg(long, short = 'n', default_value_t = 20)]
    pub(super) lines: usize,
    /// Only lines from this time on, like 2026-01-02T03:04:05Z
    #[arg(long, value_name = "TIME")]
    pub(super) since: Option<String>,
    /// Only standard output
    #[arg(long, conflicts_with = "err")]
    pub(super) out: bool,
    /// Only standard error
    #[arg(long)]
    pub(super) err: bool,
    /// The lines alone, without time and name
    #[arg(long)]
    pub(super) raw: bool,
    /// One JSON object a line
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct SendArgs {
    /// An id, the name of an instance, or of a process with all its instances
    pub(super) name: String,
    /// What is written
    pub(super) words: Vec<String>,
    /// The processes that got it as JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ImportArgs {
    /// ecosystem.config.js, an ecosystem file in JSON, YAML or TOML, or what `pm2 save` wrote (~/.pm2/dump.pm2)
    pub(super) file: PathBuf,
    /// env_NAME over env
    #[arg(long, value_name = "NAME")]
    pub(super) env_profile: Option<String>,
    /// Where the tables are written [default: standard output]
    #[arg(long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct StartArgs {
    /// A program, a script, a line in quotes, a file of definitions (.json, .yaml, .toml, *.config.js), or what was defined
    /// before: an id, a name, namespace:NAME, all
    pub(super) script: String,
    /// Its arguments
    #[arg(last = true)]
    pub(super) arguments: Vec<String>,
    /// Its name [default: that of the program or script]
    #[arg(long, short)]
    pub(super) name: Option<String>,
    /// How many instances: a number, or max for one a processor
    #[arg(long, short)]
    pub(super) instances: Option<String>,
    /// Handed to it as PORT: 3000, 3000-3003, auto:5000-5100
    #[arg(long, short)]
    pub(super) port: Option<String>,
    /// Its working directory [default: the one you are in]
    #[arg(long, value_name = "DIR")]
    pub(super) cwd: Option<PathBuf>,
    /// A variable, NAME=VALUE, or NAME to hand on yours; may be given more than once
    #[arg(long, short, value_name = "NAME[=VALUE]")]
    pub(super) env: Vec<String>,
    /// A file of NAME=VALUE lines, read at every start
    #[arg(long, value_name = "FILE")]
    pub(super) env_file: Option<PathBuf>,
    /// What it reads as its standard input: null, pipe for `weft send`, or a file [default: null]
    #[arg(long, value_name = "null|pipe|FILE")]
    pub(super) stdin: Option<String>,
    /// What runs the script; none: it runs itself
    #[arg(long)]
    pub(super) interpreter: Option<String>,
    /// A group of processes that can be named together
    #[arg(long)]
    pub(super) namespace: Option<String>,
    /// The user it runs as
    #[arg(long)]
    pub(super) user: Option<String>,
    /// The group it runs as
    #[arg(long)]
    pub(super) group: Option<String>,
    /// Restart it when it uses more memory, like 300M
    #[arg(long, value_name = "SIZE")]
    pub(super) max_memory: Option<String>,
    /// Restart it, or start it again if it has ended, at these times of the host's time zone, like '30 4 * * *' or, with
    /// seconds, '0 30 4 * * *'
    #[arg(long, value_name = "CRON")]
    pub(super) cron_restart: Option<String>,
    /// Restart it when a file below its working directory changes, or below PATH in there; may be given more than once
    #[arg(long, value_name = "PATH", num_args = 0..=1, require_equals = true, default_missing_value = ".")]
    pub(super) watch: Vec<PathBuf>,
    /// A name or path that it is not restarted for, like '*.log' or lib/generated; may be given more than once [default: '.*'
    /// and node_modules]
    #[arg(long, value_name = "GLOB", requires = "watch")]
    pub(super) ignore_watch: Vec<String>,
    /// Do not start it again when it ends
    #[arg(long)]
    pub(super) no_autorestart: bool,
    /// Automatic restarts before it is given up
    #[arg(long, value_name = "NUMBER")]
    pub(super) max_restarts: Option<u32>,
    /// How long it may take to end, like 5s, before it is killed
    #[arg(long, value_name = "TIME")]
    pub(super) kill_timeout: Option<String>,
    /// Of a file of definitions: env_NAME over env
    #[arg(long, value_name = "NAME")]
    pub(super) env_profile: Option<String>,
    /// Of a file of definitions: only these, separated by commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(super) only: Vec<String>,
    /// Ask http://… for its health: it is online once that answers 2xx; {port} stands for its port
    #[arg(long, value_name = "URL")]
    pub(super) health_check_url: Option<String>,
    /// Do not wait until it is online
    #[arg(long)]
    pub(super) no_wait: bool,
    /// The answer as JSON
    #[arg(long)]
    pub(super) json: bool,
}

impl StartArgs {
    /// Whether anything says that a new process is meant.
    pub(super) fn defines(&self) -> bool {
        let texts =
            [&self.name, &self.instances, &self.port, &self.interpreter, &self.namespace, &self.user, &self.group];
        texts.iter().any(|text| text.is_some())
            || !(self.arguments.is_empty() && self.env.is_empty() && self.watch.is_empty())
            || self.cwd.is_some()
            || self.env_file.is_some()
            || self.stdin.is_some()
            || self.health_check_url.is_some()
            || self.max_memory.is_some()
            || self.kill_timeout.is_some()
            || self.cron_restart.is_some()
            || self.max_restarts.is_some()
            || self.no_autorestart
    }
}
