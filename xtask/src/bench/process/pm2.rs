//! A PM2 of the bench's own: its home is a directory that goes away, its daemon one that nobody else talks to.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tempfile::TempDir;

use super::super::registry;
use super::pen::Pen;

/// It ends with the guard, and its programs with it.
pub(super) struct Pm2 {
    program: PathBuf,
    home: TempDir,
    pen: Pen,
    pid: u32,
}

impl Pm2 {
    /// A daemon without processes.
    pub(super) fn start(count: usize) -> Result<Self> {
        let (program, home, pen) = (registry::pm2()?, TempDir::with_prefix("weft-pm2-")?, Pen::new()?);
        let app = json!({
            "name": "s", "script": "/bin/sleep", "args": ["100000"], "interpreter": "none", "exec_mode": "fork",
            "instances": count,
        });
        fs::write(home.path().join("s.json"), json!({ "apps": [app] }).to_string())?;
        let mut pm2 = Self { program, home, pen, pid: 0 };
        pm2.control(&["ping"])?;
        let pid = fs::read_to_string(pm2.home.path().join("pm2.pid")).context("PM2's daemon runs")?;
        pm2.pid = pid.trim().parse().context("the number of PM2's daemon")?;
        Ok(pm2)
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    pub(super) fn pen(&self) -> &Pen {
        &self.pen
    }

    /// Starts all; they are online when it returns.
    pub(super) fn start_all(&self) -> Result<()> {
        let file = self.home.path().join("s.json");
        self.control(&["start", file.to_str().context("the path is text")?])
    }

    pub(super) fn control(&self, words: &[&str]) -> Result<()> {
        let mut command = self.pen.command(&self.program);
        command.args(words).env("PM2_HOME", self.home.path()).env("PM2_DISABLE_VERSION_CHECK", "true");
        let output = command.output().context("PM2 is installed")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "pm2 {words:?}: {text}{errors}");
        Ok(())
    }
}

impl Drop for Pm2 {
    fn drop(&mut self) {
        // It stops its programs; what it leaves goes with its cgroup.
        drop(self.control(&["kill"]));
    }
}
