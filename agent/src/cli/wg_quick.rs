//! `weft import wg-quick`: another tool's configuration as `weft.toml` and key files. Never overwrites: it writes all or nothing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Exit, Failure, ImportArgs, output};
use crate::api::view;
use crate::config;
use crate::foundation::id::{InvalidName, LinkName};
use crate::sys::file::{self, FileError};
use crate::wireguard::import::{self, Hook, Import, Options};

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub(super) enum ImportError {
    #[error("failed to read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("wg-quick takes the link's name from the file's, and {} gives none", path.display())]
    Link {
        path: PathBuf,
        #[source]
        source: InvalidName,
    },
    #[error("{} is refused", path.display())]
    Parse {
        path: PathBuf,
        #[source]
        source: import::ImportError,
    },
    #[error("{} runs commands; take them over by hand, then import with --skip-hooks:{}", path.display(), lines(hooks))]
    Hooks { path: PathBuf, hooks: Vec<Hook> },
    #[error("{} exists already; name another directory with --output", .0.display())]
    Exists(PathBuf),
    #[error("what it means is not a configuration Weft accepts")]
    Refused(#[source] config::LoadError),
    #[error("failed to find the directory for the files")]
    Directory(#[source] io::Error),
    #[error("failed to write what was imported")]
    Write(#[source] FileError),
}

fn lines(hooks: &[Hook]) -> String {
    hooks.iter().map(|hook| format!("\n  {hook}")).collect()
}

/// What was done; the JSON of `--json`.
#[derive(Debug, Serialize)]
struct Report {
    schema: u32,
    written: Vec<PathBuf>,
    skipped_commands: Vec<String>,
    notes: Vec<String>,
}

pub(super) fn run(args: &ImportArgs) -> Result<Exit, Failure> {
    let report = carry_out(args)?;
    if args.json {
        output::print_json(&report)?;
    } else {
        output::print(&render(&report))?;
    }
    Ok(Exit::Ok)
}

fn carry_out(args: &ImportArgs) -> Result<Report, ImportError> {
    let directory = std::path::absolute(&args.output).map_err(ImportError::Directory)?;
    let imported = read(&args.file, &directory)?;
    if !imported.hooks.is_empty() && !args.skip_hooks {
        return Err(ImportError::Hooks { path: args.file.clone(), hooks: imported.hooks });
    }
    let target = directory.join("weft.toml");
    config::parse(&target.display().to_string(), &imported.toml, &[]).map_err(ImportError::Refused)?;
    let written = write(&imported, &target)?;
    Ok(Report {
        schema: view::SCHEMA,
        written,
        skipped_commands: imported.hooks.iter().map(ToString::to_string).collect(),
        notes: imported.notes,
    })
}

fn read(path: &Path, directory: &Path) -> Result<Import, ImportError> {
    let text = fs::read_to_string(path).map_err(|source| ImportError::Read { path: path.to_owned(), source })?;
    // The text holds the private key.
    let text = zeroize::Zeroizing::new(text);
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let link = LinkName::try_from(stem).map_err(|source| ImportError::Link { path: path.to_owned(), source })?;
    let options = Options { link: &link, key_directory: &directory.join("keys") };
    import::parse(&text, options).map_err(|source| ImportError::Parse { path: path.to_owned(), source })
}

/// The keys first: a configuration without them would be half of it.
fn write(imported: &Import, target: &Path) -> Result<Vec<PathBuf>, ImportError> {
    let keys: Vec<&Path> = imported.keys.iter().map(|key| key.path.as_path()).collect();
    let targets: Vec<PathBuf> = keys.into_iter().chain([target]).map(Path::to_owned).collect();
    if let Some(existing) = targets.iter().find(|path| path.symlink_metadata().is_ok()) {
        return Err(ImportError::Exists(existing.clone()));
    }
    for key in &imported.keys {
        if let Some(directory) = key.path.parent() {
            file::create_directory(directory, 0o700).map_err(ImportError::Write)?;
        }
        file::write_atomic(&key.path, key.content.as_bytes(), 0o600).map_err(ImportError::Write)?;
    }
    if let Some(directory) = target.parent() {
        file::create_directory(directory, 0o755).map_err(ImportError::Write)?;
    }
    file::write_atomic(target, imported.toml.as_bytes(), 0o644).map_err(ImportError::Write)?;
    Ok(targets)
}

fn render(report: &Report) -> String {
    let written = report.written.iter().map(|path| format!("wrote {}\n", path.display()));
    let skipped = report.skipped_commands.iter().map(|hook| format!("skipped: {hook}\n"));
    let notes = report.notes.iter().map(|note| format!("note: {note}\n"));
    written.chain(skipped).chain(notes).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use tempfile::TempDir;

    use super::*;
    use crate::foundation::error::chain;

    const KEY: &str = "YAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
    const PEER: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";

    /// A wg-quick file in a directory of its own, and how it is imported.
    fn case(more: &str) -> (TempDir, ImportArgs) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("wg0.conf");
        let text = format!(
            "[Interface]\nPrivateKey = {KEY}\nAddress = 10.9.0.1/24\n{more}\n[Peer]\nPublicKey = {PEER}\nAllowedIPs = 10.9.0.2/32\n"
        );
        fs::write(&file, text).expect("written");
        let output = directory.path().join("out");
        (directory, ImportArgs { file, output, skip_hooks: false, json: false })
    }

    #[test]
    fn the_files_are_written_with_the_keys_closed_to_others() {
        let (_directory, args) = case("");
        let report = carry_out(&args).expect("imported");
        let toml = fs::read_to_string(args.output.join("weft.toml")).expect("written");
        assert!(!toml.contains(KEY), "the key is in a file of its own: {toml}");
        let config = config::parse("weft.toml", &toml, &[]).expect("right");
        assert_eq!((config.wireguard.link.as_str(), config.peer.len()), ("wg0", 1));
        let key = config.wireguard.private_key_file.expect("it names the key file");
        assert_eq!(fs::metadata(&key).expect("written").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_to_string(&key).expect("readable").trim(), KEY);
        assert!(report.written.contains(&key), "{report:?}");
    }

    #[test]
    fn commands_are_refused_unless_skipped() {
        let (_directory, mut args) = case("PostUp = echo hello");
        let error = carry_out(&args).expect_err("it runs a command").to_string();
        assert!(error.contains("--skip-hooks") && error.contains("echo hello"), "{error}");
        assert!(!args.output.exists(), "nothing was written");
        args.skip_hooks = true;
        assert_eq!(carry_out(&args).expect("imported").skipped_commands.len(), 1);
    }

    #[test]
    fn nothing_is_overwritten() {
        let (_directory, args) = case("");
        fs::create_dir(&args.output).expect("made");
        fs::write(args.output.join("weft.toml"), "precious").expect("written");
        let error = carry_out(&args).expect_err("it exists").to_string();
        assert!(error.contains("weft.toml exists already"), "{error}");
        assert_eq!(fs::read_dir(&args.output).expect("listed").count(), 1, "not even the keys were written");
    }

    #[test]
    fn a_wrong_file_names_file_line_and_key_but_never_the_secret() {
        let (_directory, args) = case("Adress = 10.0.0.1/24");
        let error = chain(&carry_out(&args).expect_err("an unknown key"));
        assert!(error.contains("wg0.conf") && error.contains("line 4") && error.contains("Adress"), "{error}");
        assert!(!error.contains(KEY), "{error}");
    }
}
