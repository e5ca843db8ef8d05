//! `cargo xtask setup`: the distribution packages that building, running and testing need.
//!
//! Idempotent: asks dpkg what is there, installs only the rest, and refreshes the package lists only when apt does not
//! know a package. Services that a package would start are not started: the tests run their own in namespaces.

mod packages;
mod services;

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

use self::packages::{Group, Package};
use crate::repo;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Only these groups; without any: build, run, test.
    #[arg(value_enum)]
    groups: Vec<Group>,
    /// Report what is missing and change nothing; exit status 1 if something is.
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let groups = match arguments.groups.as_slice() {
        [] => &[Group::Build, Group::Run, Group::Test][..],
        chosen => chosen,
    };
    let missing = missing(groups)?;
    if arguments.check {
        for package in &missing {
            println!("missing: {:22} {}", package.name, package.why);
        }
        ensure!(missing.is_empty(), "{} packages are missing: run `sudo cargo xtask setup`", missing.len());
    }
    install(&missing)
}

/// Installs what building needs and is not there.
pub(crate) fn for_build() -> Result<()> {
    install(&missing(&[Group::Build])?)
}

/// Installs what running the agent needs and is not there.
pub(crate) fn for_run() -> Result<()> {
    install(&missing(&[Group::Build, Group::Run])?)
}

/// Installs what the tests, the demo and the benches need and is not there.
pub(crate) fn for_test() -> Result<()> {
    install(&missing(&[Group::Build, Group::Run, Group::Test])?)
}

/// Installs npm where there is none; some distributions have it in the package of node.
pub(crate) fn for_npm() -> Result<()> {
    match which("npm") {
        Some(_) => Ok(()),
        None => install(&missing(&[Group::Bench])?),
    }
}

fn missing(groups: &[Group]) -> Result<Vec<Package>> {
    let distribution = distribution();
    let mut wanted = packages::of(groups);
    wanted.retain(|package| package.not_on != distribution);
    if !Path::new("/usr/bin/dpkg-query").exists() {
        let lacking: Vec<&str> = wanted.iter().filter(|p| !p.has_program()).map(|p| p.name).collect();
        ensure!(
            lacking.is_empty(),
            "this is neither Debian nor Ubuntu (no dpkg). Install what these Debian packages hold, then try again: {}",
            lacking.join(" ")
        );
        return Ok(Vec::new());
    }
    let installed = installed()?;
    Ok(wanted.into_iter().filter(|package| !installed.iter().any(|name| name == package.name)).collect())
}

/// `ID` of os-release(5).
fn distribution() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let id = text.lines().find_map(|line| line.strip_prefix("ID="));
    id.map_or("linux", |id| id.trim_matches('"')).to_owned()
}

fn installed() -> Result<Vec<String>> {
    let listing = repo::capture(Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status} ${Package}\n"]))?;
    Ok(listing.lines().filter_map(|line| line.strip_prefix("installed ")).map(str::to_owned).collect())
}

fn install(missing: &[Package]) -> Result<()> {
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    if names.is_empty() {
        println!("setup: every package is installed");
        return Ok(());
    }
    if !repo::is_root() && which("sudo").is_none() {
        bail!("packages are missing; as root run: apt-get install {}", names.join(" "));
    }
    println!("setup: installing {} packages with apt-get: {}", names.len(), names.join(" "));
    let started = Instant::now();
    let services = services::Quiet::begin()?;
    let result = install_current(&names);
    services.end(missing);
    result.context("failed to install the packages; the lines above are apt-get's")?;
    println!("setup: done in {} s", started.elapsed().as_secs());
    Ok(())
}

/// Installs with the lists that are there. An old list names versions the mirror no longer has, so a failure refreshes
/// the lists and tries once more.
fn install_current(names: &[&str]) -> Result<()> {
    if apt_knows(names)? {
        let Err(error) = apt_install(names) else { return Ok(()) };
        println!("setup: {error:#}");
    }
    println!("setup: refreshing the package lists");
    repo::execute(repo::as_root("apt-get").args(["update", "-q"])).context("failed to refresh the package lists")?;
    apt_install(names)
}

fn apt_install(names: &[&str]) -> Result<()> {
    let install = ["DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-q", "--no-install-recommends"];
    repo::execute(repo::as_root("env").args(install).args(names))
}

/// Whether apt has a candidate for each package without refreshing its lists.
fn apt_knows(names: &[&str]) -> Result<bool> {
    let policy = repo::capture(Command::new("apt-cache").arg("policy").args(names).env("LC_ALL", "C"))?;
    let candidates = policy.lines().filter(|line| line.contains("Candidate:") && !line.contains("(none)")).count();
    Ok(candidates == names.len())
}

/// Where `program` is, in `PATH` or the system directories.
pub(crate) fn which(program: &str) -> Option<std::path::PathBuf> {
    integration_tests::gate::find_tool(program)
}
