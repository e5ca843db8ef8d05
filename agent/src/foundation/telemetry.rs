//! Structured logs: one subscriber for the process, its level changeable while it runs.

mod history;

use std::io::IsTerminal as _;

use serde::Deserialize;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{EnvFilter, Layer as _, Registry, fmt, reload};

use history::HistoryLayer;
pub use history::{History, Line, Snapshot};

/// The `[log]` table.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// A level (`error`, `warn`, `info`, `debug`, `trace`) or directives (`info,weft_agent::dns=debug`).
    pub level: String,
    /// `text` for people, `json` for machines.
    pub format: Format,
}

impl Default for Config {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: Format::Text }
    }
}

/// How a log line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Text,
    Json,
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error(
        "log.level {level:?} is not valid; accepted are error, warn, info, debug, trace, or directives like \"info,weft_agent::dns=debug\""
    )]
    Level {
        level: String,
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    #[error("a log subscriber is already installed")]
    Installed(#[source] TryInitError),
    #[error("the log subscriber is gone")]
    Reload(#[source] reload::Error),
}

/// Changes the level of a running subscriber.
#[derive(Clone)]
pub struct LevelHandle(reload::Handle<EnvFilter, Registry>);

impl std::fmt::Debug for LevelHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LevelHandle")
    }
}

impl LevelHandle {
    /// Takes a new level or new directives at once.
    ///
    /// # Errors
    /// [`TelemetryError::Level`] for text that is not a level; nothing changes then.
    pub fn set(&self, level: &str) -> Result<(), TelemetryError> {
        self.0.reload(parse_level(level)?).map_err(TelemetryError::Reload)
    }
}

/// What a bare `info` leaves out: a library that tells each of its steps at that level.
const INFO: &str = "info,openraft=warn";

/// Checks a level without installing it.
///
/// # Errors
/// [`TelemetryError::Level`].
pub fn parse_level(level: &str) -> Result<EnvFilter, TelemetryError> {
    let directives = if level == "info" { INFO } else { level };
    EnvFilter::builder().parse(directives).map_err(|source| TelemetryError::Level { level: level.to_owned(), source })
}

/// Installs the subscriber; the history keeps lines from here on and is written once it is started. Lines go to standard error; systemd's journal adds its own times, a terminal gets ours.
///
/// # Errors
/// A level that is not valid, or a subscriber that is installed already.
pub fn init(config: &Config) -> Result<(LevelHandle, History), TelemetryError> {
    let (filter, handle) = reload::Layer::new(parse_level(&config.level)?);
    let under_journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let base = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let layer = match (config.format, under_journal) {
        (Format::Json, _) => base.json().flatten_event(true).boxed(),
        (Format::Text, true) => base.without_time().boxed(),
        (Format::Text, false) => base.boxed(),
    };
    let history = History::default();
    let kept = HistoryLayer(history.clone());
    let subscriber = tracing_subscriber::registry().with(filter).with(layer).with(kept);
    subscriber.try_init().map_err(TelemetryError::Installed)?;
    Ok((LevelHandle(handle), history))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_level_names_the_key_and_what_is_accepted() {
        let error = parse_level("info,=").expect_err("not a directive").to_string();
        assert!(error.contains("log.level") && error.contains("accepted are error, warn"), "{error}");
    }

    #[test]
    fn a_bare_info_says_nothing_of_a_librarys_steps() {
        assert_eq!(parse_level("info").expect("a level").to_string(), "openraft=warn,info");
        assert_eq!(parse_level("debug").expect("a level").to_string(), "debug");
    }
}
