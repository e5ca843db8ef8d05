//! Two namespaces with a veth pair, `iperf3` between them, and a BPF file system for the pins.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use integration_tests::netns::{NetNs, veth};
use integration_tests::process::Process;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

/// The other end's address; the one every map knows.
pub(super) const SERVER: &str = "10.79.0.2";
const LINK: &str = "ea";

/// The pair.
pub(super) struct Pair {
    here: NetNs,
    _there: NetNs,
    _server: Process,
    bpffs: TempDir,
}

impl Pair {
    pub(super) fn new() -> Result<Self> {
        let (here, there) = (NetNs::new()?, NetNs::new()?);
        veth((&here, LINK, &["10.79.0.1/24"]), (&there, "eb", &["10.79.0.2/24"]))?;
        let mut command = there.command("iperf3");
        command.args(["-s", "--forceflush"]);
        let mut server = Process::spawn("iperf3", command)?;
        server.wait_for_log("listening", Duration::from_secs(10))?;
        let bpffs = tempfile::tempdir()?;
        mount(Some("bpf"), bpffs.path(), Some("bpf"), MsFlags::empty(), None::<&str>)
            .context("failed to mount a BPF file system")?;
        Ok(Self { here, _there: there, _server: server, bpffs })
    }

    /// Runs `work` in the namespace that sends.
    pub(super) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.here.enter(work)
    }

    pub(super) fn link(&self) -> &str {
        LINK
    }

    pub(super) fn bpffs(&self) -> &Path {
        self.bpffs.path()
    }

    /// Datagrams of 64 bytes at a rate.
    pub(super) fn datagrams(&self, rate: &str, seconds: u64) -> Result<()> {
        self.client(&["-u", "-l", "64", "-b", rate], seconds).map(drop)
    }

    /// Datagrams of 64 bytes as fast as they go; returns how many a second.
    pub(super) fn saturate(&self, seconds: u64) -> Result<f64> {
        let sum = &self.client(&["-u", "-l", "64", "-b", "0"], seconds)?["sum"];
        let packets = sum["packets"].as_f64().context("iperf3 counts packets")?;
        Ok(packets / sum["seconds"].as_f64().context("iperf3 tells its time")?)
    }

    /// One TCP stream; returns Gbit/s.
    pub(super) fn stream(&self, seconds: u64) -> Result<f64> {
        let end = self.client(&[], seconds)?;
        let rate = end["sum_received"]["bits_per_second"].as_f64().context("iperf3 tells the rate")?;
        Ok(rate / 1e9)
    }

    fn client(&self, words: &[&str], seconds: u64) -> Result<serde_json::Value> {
        let seconds = seconds.to_string();
        let text = self.here.run(&[&["iperf3", "-J", "-c", SERVER, "-t", &seconds], words].concat())?;
        let mut report: serde_json::Value = serde_json::from_str(&text).context("iperf3 prints JSON")?;
        Ok(report["end"].take())
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        umount2(self.bpffs.path(), MntFlags::MNT_DETACH).ok();
    }
}
