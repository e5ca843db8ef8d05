//! Programs to compare with that the distribution does not have: one version each, from the registry where its authors publish
//! it, into the target directory and nowhere else.
//!
//! Invariants: a program is installed once; what is there is used as it is; a registry that cannot be reached ends the bench
//! with the command that failed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use crate::{repo, setup};

const PM2: &str = "7.0.4";
const PMDAEMON: &str = "0.1.4";

/// PM2 of the npm registry: its command.
pub(super) fn pm2() -> Result<PathBuf> {
    install("pm2", PM2, "node_modules/.bin/pm2", |directory| {
        setup::for_npm()?;
        let mut command = Command::new("npm");
        // None of its packages needs a script of its own to be installed.
        command.args(["install", "--no-audit", "--no-fund", "--no-save", "--ignore-scripts", "--prefix"]);
        command.arg(directory).arg(format!("pm2@{PM2}"));
        Ok(command)
    })
}

/// PMDaemon of crates.io: its command.
pub(super) fn pmdaemon() -> Result<PathBuf> {
    install("pmdaemon", PMDAEMON, "bin/pmdaemon", |directory| {
        let mut command = repo::cargo(&["install", "pmdaemon", "--version", PMDAEMON, "--locked", "--root"]);
        command.arg(directory);
        Ok(command)
    })
}

/// Installs beside and renames: a directory that is there is whole.
fn install(
    name: &str,
    version: &str,
    program: &str,
    command: impl FnOnce(&Path) -> Result<Command>,
) -> Result<PathBuf> {
    let directory = repo::built("peers", &format!("{name}-{version}"));
    let path = directory.join(program);
    if path.exists() {
        return Ok(path);
    }
    let parent = directory.parent().context("it has one")?;
    fs::create_dir_all(parent).with_context(|| format!("failed to make {}", parent.display()))?;
    let beside = tempfile::Builder::new().prefix(name).tempdir_in(parent)?;
    eprintln!("bench: installing {name} {version} into {}; minutes, once", directory.display());
    let started = Instant::now();
    let mut command = command(beside.path())?;
    // A table in JSON on standard output stays one.
    command.stdout(std::io::stderr());
    let explain = || format!("{name} {version} could not be installed; its registry has to be reachable once");
    repo::execute(&mut command).with_context(explain)?;
    ensure!(beside.path().join(program).exists(), "{name} {version} was installed without {program}");
    fs::rename(beside.keep(), &directory).with_context(|| format!("failed to make {}", directory.display()))?;
    eprintln!("bench: {name} is installed, {} s", started.elapsed().as_secs());
    Ok(path)
}
