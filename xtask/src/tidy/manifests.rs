//! Rules about `Cargo.toml` and `Cargo.lock`: versions and lints stand once, in the workspace; packages come from crates.io.

use anyhow::Result;
use toml::{Table, Value};

use super::{Finding, finding};

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";
/// The BPF programs are a workspace of their own, with another target and toolchain.
const OWN_WORKSPACE: &str = "agent-ebpf/Cargo.toml";
/// Without the workspace's lints: nothing but generated code; shared with the workspace of the BPF programs.
const OWN_LINTS: [&str; 2] = ["proto/Cargo.toml", "agent-ebpf/common/Cargo.toml"];

pub(super) fn check(file: &str, text: &str) -> Result<Vec<Finding>> {
    let manifest: Table = text.parse()?;
    if !manifest.contains_key("package") || file == OWN_WORKSPACE {
        return Ok(Vec::new());
    }
    let mut findings = Vec::new();
    let inherits_lints = manifest.get("lints").and_then(|lints| lints.get("workspace")) == Some(&Value::Boolean(true));
    if !inherits_lints && !OWN_LINTS.contains(&file) {
        findings.push(finding(file, 0, "`[lints] workspace = true` is missing"));
    }
    let targets = manifest.get("target").and_then(Value::as_table).into_iter().flatten();
    for table in targets.filter_map(|(_, value)| value.as_table()).chain([&manifest]) {
        for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let dependencies = table.get(kind).and_then(Value::as_table).into_iter().flatten();
            let stray = dependencies.filter(|(_, value)| value.get("workspace") != Some(&Value::Boolean(true)));
            let describe =
                |name: &String| finding(file, 0, format!("{name}: its version belongs in the workspace manifest"));
            findings.extend(stray.map(|(name, _)| describe(name)));
        }
    }
    Ok(findings)
}

pub(super) fn check_lock(file: &str, text: &str) -> Vec<Finding> {
    let sources = text.lines().enumerate().filter_map(|(number, line)| {
        let source = line.strip_prefix("source = ")?.trim_matches('"');
        (source != CRATES_IO).then(|| finding(file, number + 1, format!("{source} is not crates.io")))
    });
    sources.collect()
}
