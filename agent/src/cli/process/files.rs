//! Files of definitions: read for `weft start FILE`, rewritten as tables of `weft.toml` for `weft import pm2 FILE`.
//!
//! A `*.config.js` file is a program: Node.js evaluates it, with the rights of whoever typed the command.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::args::ImportArgs;
use crate::cli::output;
use crate::cli::{Exit, Failure};
use crate::process::definition::Definition;
use crate::process::ecosystem::{self, Ecosystem, EcosystemError, Format, MOST_BYTES};

/// What a file of definitions is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Data(Format),
    /// A module of Node.js.
    Module,
}

/// Why a file of definitions is of no use.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum FileError {
    #[error("failed to read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} is of no use", path.display())]
    Use {
        path: PathBuf,
        #[source]
        source: EcosystemError,
    },
    #[error("node cannot evaluate {}: {why}", path.display())]
    Module { path: PathBuf, why: String },
    #[error("{} is no file that ends in .json, .yaml, .toml, .config.js or .pm2", .0.display())]
    Kind(PathBuf),
    #[error("failed to write {}; a file that exists is not overwritten", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("a definition cannot be written as TOML")]
    Render(#[from] toml::ser::Error),
}

/// What `path` is, if it is a file of definitions.
pub(super) fn kind(path: &Path) -> Option<Kind> {
    if !path.is_file() {
        return None;
    }
    let name = path.file_name()?.to_str()?;
    let is_module = [".config.js", ".config.cjs"].iter().any(|ending| name.ends_with(ending));
    if is_module { Some(Kind::Module) } else { Format::of(path).map(Kind::Data) }
}

/// Reads a file of definitions.
pub(super) fn read(path: &Path, kind: Kind, profile: Option<&str>) -> Result<Ecosystem, FileError> {
    let failed = |source| FileError::Read { path: path.to_owned(), source };
    let path = path.canonicalize().map_err(failed)?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    let (text, format) = match kind {
        Kind::Module => (evaluate(&path)?, Format::Json),
        Kind::Data(format) => {
            let size = path.metadata().map_err(failed)?.len();
            if usize::try_from(size).is_ok_and(|size| size > MOST_BYTES) {
                return Err(FileError::Use { path, source: EcosystemError::TooLarge });
            }
            (std::fs::read_to_string(&path).map_err(failed)?, format)
        }
    };
    ecosystem::read(&text, format, directory, profile).map_err(|source| FileError::Use { path: path.clone(), source })
}

fn evaluate(path: &Path) -> Result<String, FileError> {
    let refuse = |why: String| FileError::Module { path: path.to_owned(), why };
    let program = "process.stdout.write(JSON.stringify(require(process.argv[1])))";
    let output = Command::new("node").args(["-e", program]).arg(path).output();
    let output =
        output.map_err(|error| refuse(format!("{error}; install Node.js, or write the file as JSON or YAML")))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        let line = complaint.lines().find(|line| line.contains("Error")).unwrap_or("it ended with a failure");
        return Err(refuse(line.to_owned()));
    }
    String::from_utf8(output.stdout).map_err(|_not_text| refuse("it is not text".to_owned()))
}

/// `weft import pm2 FILE`.
pub(in crate::cli) fn import(args: &ImportArgs) -> Result<Exit, Failure> {
    let kind = kind(&args.file).ok_or_else(|| FileError::Kind(args.file.clone()))?;
    let ecosystem = read(&args.file, kind, args.env_profile.as_deref())?;
    for note in &ecosystem.notes {
        output::complain(&format!("note: {note}\n"));
    }
    let text = render(&ecosystem.definitions)?;
    match &args.output {
        None => output::print(&text)?,
        Some(path) => write_new(path, &text)?,
    }
    Ok(Exit::Ok)
}

fn render(definitions: &[Definition]) -> Result<String, FileError> {
    let mut text = String::from("# Append this to weft.toml, then `weft config check` and `weft reload`.\n");
    for definition in definitions {
        let mut table = toml::Table::try_from(definition)?;
        table.remove("name");
        let process = toml::Table::from_iter([(definition.name.clone(), toml::Value::Table(table))]);
        let whole = toml::Table::from_iter([("process".to_owned(), toml::Value::Table(process))]);
        text.push('\n');
        text.push_str(&toml::to_string(&whole)?);
    }
    Ok(text)
}

/// Environments may hold secrets: nobody else may read the file.
fn write_new(path: &Path, text: &str) -> Result<(), FileError> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    opened
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|source| FileError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn what_is_imported_is_a_configuration_that_means_the_same() {
        let json = r#"{"apps":[{"name":"web","script":"app.js","instances":2,"env":{"A":"1"}}]}"#;
        let ecosystem = ecosystem::read(json, Format::Json, Path::new("/srv"), None).expect("PM2's");
        let text = render(&ecosystem.definitions).expect("written");
        let config = config::parse("weft.toml", &text, &[]).expect("a configuration");
        let mut expected = ecosystem.definitions[0].clone();
        expected.name = String::new();
        assert_eq!(config.process["web"], expected, "{text}");
    }
}
