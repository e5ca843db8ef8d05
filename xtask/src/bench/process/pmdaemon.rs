//! A PMDaemon of the bench's own. It has no daemon: its command starts processes and returns.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use integration_tests::process::Process;
use serde_json::json;
use tempfile::TempDir;

use super::super::registry;
use super::pen::Pen;

/// Its programs end with the guard.
pub(in super::super) struct PmDaemon {
    program: PathBuf,
    home: TempDir,
    pen: Pen,
}

impl PmDaemon {
    pub(in super::super) fn new(count: usize) -> Result<Self> {
        let (program, home, pen) = (registry::pmdaemon()?, TempDir::with_prefix("weft-pmdaemon-")?, Pen::new()?);
        // It takes `instances` for a cluster of Node; here each has a name.
        let apps: Vec<_> = (0..count)
            .map(|number| json!({ "name": format!("s{number}"), "script": "/bin/sleep", "args": ["100000"] }))
            .collect();
        fs::write(home.path().join("s.json"), json!({ "apps": apps }).to_string())?;
        Ok(Self { program, home, pen })
    }

    pub(super) fn pen(&self) -> &Pen {
        &self.pen
    }

    pub(in super::super) fn start_all(&self) -> Result<()> {
        let file = self.home.path().join("s.json");
        self.control(&["--config", file.to_str().context("the path is text")?, "start"])
    }

    /// Its web server on `port` of the loopback; `command` is to replace itself with the words that follow.
    pub(in super::super) fn serve(&self, mut command: Command, port: u16, key: &str) -> Result<Process> {
        command.arg(&self.program).args(["web", "--port", &port.to_string(), "--api-key", key]);
        command.env("PMDAEMON_HOME", self.home.path());
        Process::spawn("pmdaemon", command)
    }

    pub(super) fn control(&self, words: &[&str]) -> Result<()> {
        let mut command = self.pen.command(&self.program);
        let output = command.args(words).env("PMDAEMON_HOME", self.home.path()).output().context("it is installed")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "pmdaemon {words:?}: {text}{errors}");
        Ok(())
    }
}
