//! A disk of its own that a test can fill, and what an agent says when it has.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

use integration_tests::agent::{Settings, TestAgent};
use integration_tests::gate;
use integration_tests::netns::NetNs;
use integration_tests::wait::eventually;

use super::{DEADLINE, TOOLS};

/// A file system in memory; it goes away on drop.
#[derive(Debug)]
pub(super) struct SmallDisk {
    directory: TempDir,
}

impl SmallDisk {
    pub(super) fn new(mebibytes: usize) -> Result<Self> {
        let directory = TempDir::with_prefix("weft-disk-")?;
        let options = format!("size={mebibytes}m,mode=0700");
        mount(Some("tmpfs"), directory.path(), Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
            .context("failed to mount a small disk")?;
        Ok(Self { directory })
    }

    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }

    /// Leaves nothing free.
    pub(super) fn fill(&self) -> Result<()> {
        let mut file = fs::File::create(self.ballast())?;
        let block = vec![1_u8; 64 * 1024];
        while file.write_all(&block).is_ok() {}
        Ok(())
    }

    /// Leaves `mebibytes` free.
    fn leave(&self, mebibytes: u64) -> Result<()> {
        let found = nix::sys::statvfs::statvfs(self.path())?;
        let free = found.blocks_available() * found.fragment_size();
        let bytes = free.saturating_sub(mebibytes * 1024 * 1024);
        fs::write(self.ballast(), vec![1_u8; usize::try_from(bytes)?])?;
        Ok(())
    }

    pub(super) fn empty(&self) -> Result<()> {
        fs::remove_file(self.ballast()).context("failed to remove the ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A guard has nobody to report to.
        umount2(self.path(), MntFlags::MNT_DETACH).ok();
    }
}

fn numbers(agent: &TestAgent<'_>) -> Option<usize> {
    let answer = agent.cli_json(&["store", "query", "SELECT a FROM t"]).ok()?;
    answer["rows"].as_array().map(Vec::len)
}

fn write(agent: &TestAgent<'_>) -> std::process::Output {
    agent.cli(&["store", "exec", "INSERT INTO t DEFAULT VALUES"]).expect("it runs")
}

#[test]
fn a_full_disk_refuses_writes_by_name_and_takes_them_again_when_there_is_room() {
    if !gate::root_and(&TOOLS) {
        return;
    }
    let host = NetNs::new().expect("a namespace");
    let disk = SmallDisk::new(64).expect("a small disk");
    let mut agent = TestAgent::prepare(&host, Settings::new("alpha").expect("keys")).expect("prepared");
    std::os::unix::fs::symlink(disk.path(), agent.directory().join("state")).expect("linked");
    agent.launch().expect("started");
    agent.wait_until_ready().expect("ready");
    agent.cli_json(&["store", "exec", "CREATE TABLE t (a INTEGER PRIMARY KEY)"]).expect("made");
    assert!(write(&agent).status.success());

    disk.leave(12).expect("nearly filled");
    eventually(DEADLINE, "writes are refused", || !write(&agent).status.success()).expect("refused");
    let said = String::from_utf8_lossy(&write(&agent).stderr).into_owned();
    assert!(said.contains("is full") && said.contains("state_dir") && said.contains("MiB are free"), "{said}");
    let kept = numbers(&agent).expect("what is there can be read");
    assert!(kept >= 1, "{kept}");
    let status = agent.cli_json(&["store", "status"]).expect("it answers");
    assert!(status["errors"].to_string().contains("is full"), "{status}");
    let doctor = agent.cli_json(&["doctor"]).expect("it answers");
    assert!(doctor["agent"]["problems"].to_string().contains("is full"), "{doctor}");

    disk.empty().expect("emptied");
    eventually(DEADLINE, "writes are taken again", || write(&agent).status.success()).expect("written");
    assert_eq!(numbers(&agent), Some(kept + 1));

    // Not a byte left, and the agent dies with it.
    disk.fill().expect("filled");
    eventually(DEADLINE, "writes are refused", || !write(&agent).status.success()).expect("refused");
    agent.kill9().expect("killed");
    agent.launch().expect("started");
    let refused = || {
        let output = write(&agent);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        !output.status.success()
            && ["is full", "No space left", "no agent answers"].iter().any(|why| said.contains(why))
    };
    eventually(DEADLINE, "it says why it does not write", refused).expect("told");
    disk.empty().expect("emptied");
    agent.kill9().ok();
    agent.restart().expect("it starts where there is room");
    eventually(DEADLINE, "writes are taken again", || write(&agent).status.success()).expect("written");
    assert!(numbers(&agent).is_some_and(|found| found >= kept + 2), "nothing acknowledged is lost");
    let doctor = agent.cli_json(&["doctor"]).expect("it answers");
    let uses = doctor["agent"]["uses"].to_string();
    assert!(uses.contains("store: leader of 1 member(s), ") && uses.contains(" behind, log sync "), "{doctor}");
}
