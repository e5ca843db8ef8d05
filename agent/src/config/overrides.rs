//! Single values laid over the file: environment variables and `--set` flags.
//!
//! `WEFT_LOG__LEVEL=debug` is `log.level`: two underscores go one table down, because keys hold single ones.
//! `--set log.level=debug` says the same. `[[peer]]` cannot be given this way.

use std::ffi::OsString;

use serde::Deserialize as _;
use toml::{Table, Value};

use super::{Config, diagnose};

/// Variables that begin with `WEFT_` and are not configuration: for the command line and for tests.
const NOT_CONFIGURATION: [&str; 4] = ["WEFT_CONFIG", "WEFT_BIN", "WEFT_SOCKET", "WEFT_API_KEY"];
const NOT_CONFIGURATION_PREFIX: &str = "WEFT_TESTS_";

/// One value from outside the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    /// What to name in an error: the variable, or the flag as typed.
    source: String,
    path: Vec<String>,
    value: String,
}

/// Why an override was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OverrideError {
    #[error("--set {0:?} is not KEY=VALUE, like --set log.level=debug")]
    Form(String),
    #[error("the value of {0} is not UTF-8")]
    Encoding(String),
    #[error("{source_name}: {message}")]
    Refused { source_name: String, message: String },
}

impl Override {
    /// The configuration among `variables`, in the order of their names.
    ///
    /// # Errors
    /// A value that is not UTF-8.
    pub fn from_environment(variables: impl Iterator<Item = (OsString, OsString)>) -> Result<Vec<Self>, OverrideError> {
        let mut overrides = Vec::new();
        for (name, value) in variables {
            let Some(name) = name.to_str().filter(|name| is_configuration(name)) else { continue };
            let value = value.into_string().map_err(|_value| OverrideError::Encoding(name.to_owned()))?;
            let key = name["WEFT_".len()..].to_ascii_lowercase();
            let path = key.split("__").map(str::to_owned).collect();
            overrides.push(Self { source: name.to_owned(), path, value });
        }
        overrides.sort_by(|left, right| left.source.cmp(&right.source));
        Ok(overrides)
    }

    /// One `--set KEY=VALUE`.
    ///
    /// # Errors
    /// Text of another form.
    pub fn from_flag(flag: &str) -> Result<Self, OverrideError> {
        let (key, value) = flag
            .split_once('=')
            .filter(|(key, _)| !key.is_empty())
            .ok_or_else(|| OverrideError::Form(flag.to_owned()))?;
        let path = key.trim().split('.').map(str::to_owned).collect();
        Ok(Self { source: format!("--set {key}"), path, value: value.to_owned() })
    }
}

fn is_configuration(name: &str) -> bool {
    name.starts_with("WEFT_") && !NOT_CONFIGURATION.contains(&name) && !name.starts_with(NOT_CONFIGURATION_PREFIX)
}

/// Lays `overrides` over `table` in order; each is checked by itself, so that an error names it.
pub(super) fn apply(mut table: Table, mut config: Config, overrides: &[Override]) -> Result<Config, OverrideError> {
    for entry in overrides {
        (table, config) = apply_one(&table, entry)?;
    }
    Ok(config)
}

fn apply_one(table: &Table, entry: &Override) -> Result<(Table, Config), OverrideError> {
    let refuse = |message: String| OverrideError::Refused { source_name: entry.source.clone(), message };
    let mut first_error = None;
    // `1` may be meant as a number or as text; whichever the key takes.
    for value in readings(&entry.value) {
        let mut candidate = table.clone();
        insert(&mut candidate, &entry.path, value).map_err(refuse)?;
        match Config::deserialize(candidate.clone()) {
            Ok(config) => return Ok((candidate, config)),
            Err(error) => {
                first_error.get_or_insert_with(|| diagnose::explain_message(error.message()));
            }
        }
    }
    Err(refuse(first_error.unwrap_or_default()))
}

fn readings(text: &str) -> Vec<Value> {
    let typed = toml::from_str::<Table>(&format!("value = {text}")).ok().and_then(|mut table| table.remove("value"));
    typed.into_iter().chain([Value::String(text.to_owned())]).collect()
}

fn insert(table: &mut Table, path: &[String], value: Value) -> Result<(), String> {
    let (key, rest) = match path {
        [] => return Err("the key is empty".to_owned()),
        [key] => {
            table.insert(key.clone(), value);
            return Ok(());
        }
        [key, rest @ ..] => (key, rest),
    };
    match table.entry(key.clone()).or_insert_with(|| Value::Table(Table::new())) {
        Value::Table(inner) => insert(inner, rest, value),
        Value::String(_)
        | Value::Integer(_)
        | Value::Float(_)
        | Value::Boolean(_)
        | Value::Datetime(_)
        | Value::Array(_) => Err(format!("{key} is not a table")),
    }
}
