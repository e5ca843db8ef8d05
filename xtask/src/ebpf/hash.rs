//! Hashes of files: SHA-256 by `sha256sum` of coreutils, so that no crate is built for it.
//!
//! The hash of the sources is computed again by a test of the agent, by the same recipe: for every file below
//! `agent-ebpf` without `target`, in the byte order of the paths, `<sha256>  <path>\n`; the hash of that text.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

/// The hash over a tree of sources.
#[derive(Debug)]
pub(crate) struct Hashes {
    pub(crate) total: String,
}

impl Hashes {
    /// Hashes every file below `directory` that is a source.
    pub(crate) fn of_sources(directory: &Path) -> anyhow::Result<Self> {
        let mut files = Vec::new();
        collect(directory, Path::new(""), &mut files)?;
        files.sort();
        let mut text = String::new();
        for file in &files {
            let name = file.to_str().with_context(|| format!("{} is not UTF-8", file.display()))?;
            text.push_str(&format!("{}  {name}\n", of_file(&directory.join(file))?));
        }
        Ok(Self { total: of_bytes(text.as_bytes())? })
    }
}

fn collect(root: &Path, below: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(root.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            if path != Path::new("target") {
                collect(root, &path, files)?;
            }
        } else {
            files.push(path);
        }
    }
    Ok(())
}

/// SHA-256 of a file's content, in lower-case hexadecimal digits.
pub(crate) fn of_file(path: &Path) -> anyhow::Result<String> {
    of_bytes(&std::fs::read(path).with_context(|| format!("failed to read {}", path.display()))?)
}

fn of_bytes(content: &[u8]) -> anyhow::Result<String> {
    let mut child = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("failed to start sha256sum (package coreutils)")?;
    child.stdin.take().context("the pipe was asked for")?.write_all(content)?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "sha256sum failed: {}", output.status);
    let text = String::from_utf8(output.stdout)?;
    Ok(text.split_whitespace().next().context("sha256sum printed nothing")?.to_owned())
}
