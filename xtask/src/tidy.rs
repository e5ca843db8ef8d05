//! `cargo xtask tidy`: the rules of STYLE.md that a compiler does not check.
//!
//! In: the files that git tracks or would track. Out: findings as `file:line: what is wrong`. Each rule is a function
//! from text to findings, so each has a test that shows it can fail. Nothing is changed.

mod files;
mod layers;
mod lexer;
mod manifests;
mod paths;
mod source;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::repo;

/// What a rule found. Line 0 stands for the file as a whole.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    file: String,
    line: usize,
    what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.what)
    }
}

pub(crate) fn run() -> Result<()> {
    let mut findings = Vec::new();
    let mut count = 0;
    for file in tracked_files()? {
        let path = repo::root().join(&file);
        // Text only; a file that git lists and that is gone is about to be committed as gone.
        let Some(text) = fs::read(&path).ok().and_then(|bytes| String::from_utf8(bytes).ok()) else { continue };
        count += 1;
        findings.extend(check(&file, &text)?);
    }
    for finding in &findings {
        println!("{finding}");
    }
    ensure!(findings.is_empty(), "tidy: {} findings; STYLE.md has the rules", findings.len());
    println!("tidy: {count} files keep the rules");
    Ok(())
}

/// Every finding in one file. `file` is relative to the root of the repository.
fn check(file: &str, text: &str) -> Result<Vec<Finding>> {
    let mut findings = files::check(file, text);
    if file.ends_with(".rs") {
        let lexed = lexer::split(text);
        let paths = paths::find(&lexed.code);
        findings.extend(source::check(file, text, &lexed, &paths));
        findings.extend(layers::check(file, &paths));
    } else if file.ends_with("Cargo.toml") {
        findings.extend(manifests::check(file, text).with_context(|| format!("failed to parse {file}"))?);
    } else if file.ends_with("Cargo.lock") {
        findings.extend(manifests::check_lock(file, text));
    }
    Ok(findings)
}

fn tracked_files() -> Result<Vec<String>> {
    let mut git = Command::new("git");
    git.current_dir(repo::root()).args(["-c", "safe.directory=*", "ls-files"]);
    git.args(["--cached", "--others", "--exclude-standard", "-z"]);
    let listing = repo::capture(&mut git).context("tidy asks git which files are ours")?;
    Ok(listing.split('\0').filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

fn finding(file: &str, line: usize, what: impl Into<String>) -> Finding {
    Finding { file: file.to_owned(), line, what: what.into() }
}
