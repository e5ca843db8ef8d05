//! A cgroup for a supervisor to compare with: what it starts is in there, wherever it puts it, and ends with the guard.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use integration_tests::wait::eventually;

#[derive(Debug)]
pub(super) struct Pen {
    path: PathBuf,
}

impl Pen {
    pub(super) fn new() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = mount()?.join(format!("weft-bench-{}-{number}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("failed to make {}", path.display()))?;
        Ok(Self { path })
    }

    /// A command that begins its life in there.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""]).arg(&self.path).arg(program);
        command
    }

    /// All processes in there.
    pub(super) fn members(&self) -> Vec<u32> {
        let text = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Those that run `sleep`, which is what every supervisor here is given to run.
    pub(super) fn sleepers(&self) -> Vec<u32> {
        let is_sleep = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n");
        self.members().into_iter().filter(is_sleep).collect()
    }
}

impl Drop for Pen {
    fn drop(&mut self) {
        fs::write(self.path.join("cgroup.kill"), "1").ok();
        drop(eventually(Duration::from_secs(10), "the cgroup is empty", || fs::remove_dir(&self.path).is_ok()));
    }
}

/// Where cgroup2 is mounted.
pub(super) fn mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).context("no cgroup2")?;
    Ok(PathBuf::from(mount.split(' ').nth(1).context("no mount point")?))
}
