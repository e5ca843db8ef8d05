//! The environment of a process: little by default, the file, the definition, what is injected.
//!
//! Nothing of the agent's own environment goes into a process. Order: defaults and the account, `env_file`, `env`; then
//! `PORT` and the names by which programs know that they are supervised.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;

use super::program::Account;
use crate::process::definition::Definition;
use crate::process::platform::{Launch, StartError};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The largest `env_file`.
const MOST_FILE_BYTES: u64 = 1024 * 1024;

/// Variables by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Environment(BTreeMap<String, String>);

impl Environment {
    pub(super) fn path(&self) -> &str {
        self.0.get("PATH").map_or(DEFAULT_PATH, String::as_str)
    }

    /// `NAME=value` for execve.
    pub(super) fn lines(&self) -> Result<Vec<CString>, StartError> {
        self.0.iter().map(|(name, value)| super::text(format!("{name}={value}").as_bytes())).collect()
    }
}

/// What the definition alone gives.
pub(super) fn of_definition(definition: &Definition, account: &Account) -> Result<Environment, StartError> {
    let mut variables = BTreeMap::from([("PATH".to_owned(), DEFAULT_PATH.to_owned())]);
    let shown =
        [("HOME", &account.home), ("USER", &account.name), ("LOGNAME", &account.name), ("SHELL", &account.shell)];
    variables.extend(shown.map(|(name, value)| (name.to_owned(), value.clone())));
    if let Some(path) = &definition.env_file {
        let refuse = |why: String| StartError { why: format!("env_file {}: {why}", path.display()), permanent: true };
        let size = fs::metadata(path).map_err(|error| refuse(error.to_string()))?.len();
        if size > MOST_FILE_BYTES {
            return Err(refuse(format!("{size} bytes; {MOST_FILE_BYTES} is the limit")));
        }
        let text = fs::read_to_string(path).map_err(|error| refuse(error.to_string()))?;
        variables.extend(parse_file(&text).map_err(refuse)?);
    }
    variables.extend(definition.env.iter().map(|(name, value)| (name.clone(), value.0.clone())));
    Ok(Environment(variables))
}

/// The environment of one start.
pub(super) fn build(launch: &Launch, account: &Account) -> Result<Environment, StartError> {
    let Environment(mut variables) = of_definition(&launch.definition, account)?;
    let mut inject = |name: &str, value: String| variables.insert(name.to_owned(), value);
    if let Some(port) = launch.record.port {
        inject("PORT", port.to_string());
    }
    let index = launch.place.index.to_string();
    inject("NODE_APP_INSTANCE", index.clone());
    inject("PM2_INSTANCE_ID", index);
    inject("PMDAEMON_PROCESS_NAME", launch.name.to_string());
    inject("PMDAEMON_NAMESPACE", launch.definition.namespace.clone());
    inject("WEFT_PROCESS", launch.name.to_string());
    Ok(Environment(variables))
}

/// `NAME=value` lines; `export` and quotes as shells have them, `#` begins a comment line.
fn parse_file(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut variables = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        let (name, value) = line.split_once('=').ok_or_else(|| format!("line {} is not NAME=value", number + 1))?;
        let (name, value) = (name.trim(), value.trim());
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(format!("line {}: {name:?} is no name of a variable", number + 1));
        }
        let quoted = ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
        variables.push((name.to_owned(), quoted.unwrap_or(value).to_owned()));
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_variables_is_read_as_its_users_write_it() {
        let text = "# a comment\n\nA=1\nexport B='two words'\nC = \"x=y\"\nD=\n";
        let expected = [("A", "1"), ("B", "two words"), ("C", "x=y"), ("D", "")];
        assert_eq!(parse_file(text), Ok(expected.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()));
        assert_eq!(parse_file("A=1\nnonsense\n"), Err("line 2 is not NAME=value".to_owned()));
    }
}
