//! A process as it is written down: in `[process.NAME]`, in an ecosystem file, in a request, in the saved list.
//!
//! The keys are PMDaemon's; its documents and PM2's call some of them by two names, which are aliases here. A key that is not
//! known is refused by name. [`Definition::validate`] turns one into a [`Spec`], which cannot be wrong in itself.

pub mod health;
pub mod stdin;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use self::health::HealthCheck;
use self::stdin::Stdin;
use super::quantity::{Count, Patterns, Ports, Size, Span, Watch, Words};

/// One process, as written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// Letters, digits, `.`, `_` and `-`, up to 64; the key of the table in `weft.toml`.
    #[serde(default)]
    pub name: String,
    /// A program, a file that an interpreter runs (`.js`, `.py`, `.sh`, …), or a line `PROGRAM ARGUMENT…`.
    #[serde(alias = "exec")]
    pub script: String,
    #[serde(default, skip_serializing_if = "is_default")]
    pub args: Words,
    /// The working directory; absent: `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<PathBuf>,
    /// What runs `script`; `none`: it runs itself; absent: by the ending of its name.
    #[serde(default, alias = "exec_interpreter", skip_serializing_if = "Option::is_none")]
    pub interpreter: Option<String>,
    #[serde(default, alias = "node_args", skip_serializing_if = "is_default")]
    pub interpreter_args: Words,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, Scalar>,
    /// A file of `NAME=value` lines, read at every start; `env` wins over it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env_file: Option<PathBuf>,
    /// What it reads as its standard input: `null`, `pipe` (`weft send` writes into it), or the absolute path of a file.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stdin: Stdin,
    #[serde(default = "default_namespace")]
    pub namespace: String,
    #[serde(default = "one")]
    pub instances: Count,
    #[serde(default)]
    pub exec_mode: ExecMode,
    /// Handed to the process as `PORT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<Ports>,
    /// Start it with the agent; else it waits for `weft start`.
    #[serde(default = "yes")]
    pub autostart: bool,
    #[serde(default = "yes")]
    pub autorestart: bool,
    /// This many automatic restarts within `restart_window`, and it is given up as errored.
    #[serde(default = "max_restarts")]
    pub max_restarts: u32,
    #[serde(default = "restart_window")]
    pub restart_window: Span,
    /// A run that lasts at least this long and 30 s begins the back-off anew.
    #[serde(default = "min_uptime")]
    pub min_uptime: Span,
    /// A fixed delay before each automatic restart, in place of the back-off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_delay: Option<Span>,
    /// The first delay of the back-off, which grows by half with each restart up to 15 s.
    #[serde(default = "back_off")]
    pub exp_backoff_restart_delay: Span,
    /// It is restarted, or started again if it has ended, at these times of the host's clock and time zone:
    /// `MINUTE HOUR DAY MONTH WEEKDAY`, with seconds before them if there are six fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cron_restart: Option<String>,
    /// It is restarted when files change: `true` for those below `cwd`, or paths.
    #[serde(default, skip_serializing_if = "is_default")]
    pub watch: Watch,
    /// Names or paths that it is not restarted for; absent: `.*` and `node_modules`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ignore_watch: Option<Patterns>,
    /// How long no file must have changed before that restart.
    #[serde(default = "watch_delay", skip_serializing_if = "is_watch_delay")]
    pub watch_delay: Span,
    /// Exit codes after which it is not started again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop_exit_codes: Vec<i32>,
    #[serde(default)]
    pub kill_signal: KillSignal,
    /// How long it may take after `kill_signal` before everything of it is killed.
    #[serde(default = "kill_timeout")]
    pub kill_timeout: Span,
    /// It is restarted when its memory is above this.
    #[serde(default, alias = "max_memory", skip_serializing_if = "Option::is_none")]
    pub max_memory_restart: Option<Size>,
    #[serde(default, alias = "uid", skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(default, alias = "gid", skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub limits: Limits,
    #[serde(default, skip_serializing_if = "is_default")]
    pub isolation: Isolation,
    /// It is online once it is healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// It is started once all instances of these are online, or have ended well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depends_on: Vec<String>,
    /// Run before each start, with its rights and environment; if it fails, that is a failed start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pre_start: Option<String>,
    /// Run after each end, when nothing of the process is left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub post_stop: Option<String>,
    #[serde(default, alias = "out_log", skip_serializing_if = "Option::is_none")]
    pub out_file: Option<PathBuf>,
    #[serde(default, alias = "err_file", alias = "err_log", skip_serializing_if = "Option::is_none")]
    pub error_file: Option<PathBuf>,
}

/// A value of an environment variable; numbers and booleans are taken as their text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "ScalarForm", into = "String")]
pub struct Scalar(pub String);

impl From<Scalar> for String {
    fn from(value: Scalar) -> String {
        value.0
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ScalarForm {
    Text(String),
    Bool(bool),
    Integer(i64),
    Float(f64),
}

impl From<ScalarForm> for Scalar {
    fn from(form: ScalarForm) -> Self {
        Self(match form {
            ScalarForm::Text(text) => text,
            ScalarForm::Bool(value) => value.to_string(),
            ScalarForm::Integer(value) => value.to_string(),
            ScalarForm::Float(value) => value.to_string(),
        })
    }
}

/// Whether instances share a name and are told apart by `NODE_APP_INSTANCE`; a label for tools of PM2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExecMode {
    #[default]
    #[serde(alias = "fork_mode")]
    Fork,
    #[serde(alias = "cluster_mode")]
    Cluster,
}

/// Asks a process to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum KillSignal {
    #[default]
    #[serde(rename = "SIGTERM", alias = "TERM")]
    Term,
    #[serde(rename = "SIGINT", alias = "INT")]
    Int,
    #[serde(rename = "SIGQUIT", alias = "QUIT")]
    Quit,
    #[serde(rename = "SIGHUP", alias = "HUP")]
    Hup,
    #[serde(rename = "SIGUSR1", alias = "USR1")]
    Usr1,
    #[serde(rename = "SIGUSR2", alias = "USR2")]
    Usr2,
    #[serde(rename = "SIGKILL", alias = "KILL")]
    Kill,
}

/// What the kernel keeps a process below.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Of each instance, `memory.max`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Size>,
    /// Of each instance in processors, like 0.5 or 2, `cpu.max`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<Cpus>,
    /// Processes and threads of each instance, `pids.max`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tasks: Option<u32>,
    /// Open files of each process (`RLIMIT_NOFILE`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_files: Option<u64>,
    /// Memory that each process may lock (`RLIMIT_MEMLOCK`); absent: 8 MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locked_memory: Option<Size>,
}

/// What a process may not do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Isolation {
    /// Neither it nor its children gain privileges by running a program (`PR_SET_NO_NEW_PRIVS`).
    #[serde(default, skip_serializing_if = "is_default")]
    pub no_new_privileges: bool,
    /// The capabilities that it may hold, like `["CAP_NET_BIND_SERVICE"]`; absent: all that its user has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Vec<String>>,
}

/// Processors in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Cpus(pub u32);

impl TryFrom<f64> for Cpus {
    type Error = String;
    fn try_from(value: f64) -> Result<Self, String> {
        if (0.01..=4096.0).contains(&value) {
            Ok(Self((value * 1000.0) as u32))
        } else {
            Err(format!("{value} is not a number of processors from 0.01 to 4096"))
        }
    }
}

impl From<Cpus> for f64 {
    fn from(cpus: Cpus) -> f64 {
        f64::from(cpus.0) / 1000.0
    }
}

impl Definition {
    /// A process of this name that runs `script`, everything else by default.
    pub fn new(name: &str, script: &str) -> Self {
        Self {
            name: name.to_owned(),
            script: script.to_owned(),
            args: Words::default(),
            cwd: None,
            interpreter: None,
            interpreter_args: Words::default(),
            env: BTreeMap::new(),
            env_file: None,
            stdin: Stdin::Null,
            namespace: default_namespace(),
            instances: one(),
            exec_mode: ExecMode::Fork,
            port: None,
            autostart: true,
            autorestart: true,
            max_restarts: max_restarts(),
            restart_window: restart_window(),
            min_uptime: min_uptime(),
            restart_delay: None,
            exp_backoff_restart_delay: back_off(),
            cron_restart: None,
            watch: Watch::No,
            ignore_watch: None,
            watch_delay: watch_delay(),
            stop_exit_codes: Vec::new(),
            kill_signal: KillSignal::Term,
            kill_timeout: kill_timeout(),
            max_memory_restart: None,
            user: None,
            group: None,
            limits: Limits::default(),
            isolation: Isolation::default(),
            health_check: None,
            depends_on: Vec::new(),
            pre_start: None,
            post_stop: None,
            out_file: None,
            error_file: None,
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn default_namespace() -> String {
    "default".to_owned()
}

fn yes() -> bool {
    true
}

const fn one() -> Count {
    Count::Exactly(1)
}

fn max_restarts() -> u32 {
    16
}

const fn restart_window() -> Span {
    Span::millis(300_000)
}

const fn min_uptime() -> Span {
    Span::millis(1000)
}

const fn back_off() -> Span {
    Span::millis(100)
}

const fn watch_delay() -> Span {
    Span::millis(200)
}

fn is_watch_delay(span: &Span) -> bool {
    *span == watch_delay()
}

const fn kill_timeout() -> Span {
    Span::millis(1600)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_example_of_the_document_is_read_and_written_back() {
        let text = r#"{"name":"new-api","script":"node","args":["app.js"],"port":"3001","instances":1,"env":{"NODE_ENV":"production","N":1}}"#;
        let definition: Definition = serde_json::from_str(text).expect("the document's own example");
        assert_eq!(definition.port, Some(Ports::One(3001)));
        assert_eq!(definition.env["N"], Scalar("1".to_owned()));
        let again: Definition =
            serde_json::from_value(serde_json::to_value(&definition).expect("written")).expect("read back");
        assert_eq!(again, definition);
        assert_eq!(
            serde_json::from_str::<Definition>(r#"{"name":"a","script":"b"}"#).expect("minimal"),
            Definition::new("a", "b")
        );
    }

    #[test]
    fn an_unknown_key_is_named() {
        let error =
            serde_json::from_str::<Definition>(r#"{"name":"a","script":"b","instence":2}"#).expect_err("unknown");
        assert!(error.to_string().contains("instence"), "{error}");
    }
}
