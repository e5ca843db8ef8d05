//! Reads a wg-quick(8) file and writes the tables of `weft.toml` that mean the same.
//!
//! In: the text and where its keys shall lie. Out: [`Import`]: the TOML, the key files to write, and everything the
//! file asks for that Weft does otherwise, by name. Pure: nothing is read or written here. Invariant: no key gets into
//! the TOML, an error or a note.

mod hooks;
mod names;
mod read;
mod write;

use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::foundation::id::LinkName;
use crate::model::key::KeyError;
use crate::model::peer::EndpointError;

/// How to import.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// The link; wg-quick takes it from the name of the file. A running link with the same key is then adopted.
    pub link: &'a LinkName,
    /// The directory of the key files.
    pub key_directory: &'a Path,
}

/// What came of a file.
#[derive(Debug)]
pub struct Import {
    /// The text for `weft.toml`.
    pub toml: String,
    /// To be written with mode 0600.
    pub keys: Vec<KeyFile>,
    /// Commands the file runs, which Weft does not. Not empty: refuse, unless the user asked to skip them.
    pub hooks: Vec<Hook>,
    /// What else is done otherwise, each a sentence with its line.
    pub notes: Vec<String>,
}

/// A key file to write. Its `Debug` does not show the key.
pub struct KeyFile {
    pub path: PathBuf,
    pub content: Zeroizing<String>,
}

impl std::fmt::Debug for KeyFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyFile").field("path", &self.path).finish_non_exhaustive()
    }
}

/// A command of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    pub line: usize,
    /// `PreUp`, `PostUp`, `PreDown` or `PostDown`.
    pub key: &'static str,
    pub command: String,
    /// What to do instead.
    pub instead: String,
}

impl std::fmt::Display for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}: {} = {}: Weft runs no commands; {}", self.line, self.key, self.command, self.instead)
    }
}

/// Why a file is refused. It names the place; its cause says what is wrong there.
#[derive(Debug, thiserror::Error)]
#[error("{}", place(*line))]
pub struct ImportError {
    /// From 1; 0 for the file as a whole.
    pub line: usize,
    #[source]
    pub problem: Problem,
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("[{0}] is not a section of a wg-quick file; accepted are [Interface] and [Peer]")]
    UnknownSection(String),
    #[error("this stands before the first section; begin with [Interface]")]
    NoSection,
    #[error("this is not KEY = VALUE")]
    NotAPair,
    #[error("{key} is not a key of [{section}]; accepted are {accepted}")]
    UnknownKey { key: String, section: &'static str, accepted: String },
    #[error("{key} is no key")]
    Key {
        key: &'static str,
        #[source]
        source: KeyError,
    },
    #[error("Endpoint is wrong")]
    Endpoint(#[source] EndpointError),
    #[error("{key} = {value:?} is not {accepted}")]
    Value { key: &'static str, value: String, accepted: &'static str },
    #[error("there is no [Interface] section")]
    NoInterface,
    #[error(
        "[Interface] has no PrivateKey; put it in, or the command `wg set %i private-key FILE` as wg-quick(8) shows it"
    )]
    NoPrivateKey,
    #[error("this [Peer] has no PublicKey")]
    NoPublicKey,
    #[error("this PublicKey is also that of the [Peer] in line {0}; make them one")]
    DuplicatePeer(usize),
    #[error("AllowedIPs {prefix} is also given to the [Peer] in line {first}; a prefix can belong to one peer only")]
    DuplicatePrefix { prefix: String, first: usize },
}

fn place(line: usize) -> String {
    if line == 0 { "the file is refused".to_owned() } else { format!("line {line}") }
}

/// Reads `text`.
///
/// # Errors
/// The first line that wg(8) or wg-quick(8) would refuse, or that cannot mean one thing only.
pub fn parse(text: &str, options: Options<'_>) -> Result<Import, ImportError> {
    let file = read::read(text)?;
    Ok(write::write(file, options))
}

#[cfg(test)]
mod tests;
