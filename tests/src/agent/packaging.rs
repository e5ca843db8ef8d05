//! What is installed beside the binary.

use std::path::{Path, PathBuf};
use std::process::Command;

use integration_tests::agent::weft_binary;
use integration_tests::gate;

fn dist() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../agent/dist")
}

#[test]
fn the_default_configuration_is_valid() {
    let weft = weft_binary().expect("the agent is built");
    let output = Command::new(weft).args(["config", "check", "--config"]).arg(dist().join("weft.toml")).output();
    let output = output.expect("weft runs");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn systemd_accepts_the_unit() {
    if !gate::root_and(&["systemd-analyze"]) {
        return;
    }
    // The unit names the binary where the package puts it; the one just built stands in for it.
    let directory = tempfile::TempDir::new().expect("a directory");
    let text = std::fs::read_to_string(dist().join("weft.service")).expect("the unit is there");
    let weft = weft_binary().expect("the agent is built");
    assert!(text.contains("ExecStart=/usr/bin/weft "), "{text}");
    let unit = directory.path().join("weft.service");
    std::fs::write(&unit, text.replace("/usr/bin/weft", &weft.display().to_string())).expect("written");
    let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&unit).output().expect("it runs");
    let complaints = String::from_utf8_lossy(&output.stderr);
    let ours: Vec<&str> = complaints.lines().filter(|line| line.contains("weft")).collect();
    assert!(output.status.success() && ours.is_empty(), "{complaints}");
}
