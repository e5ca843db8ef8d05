//! The machine itself: kernel WireGuard without the agent. If this fails, no other verdict says anything.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context as _, Result, ensure};
use integration_tests::key::KeyPair;
use integration_tests::netns::NetNs;
use integration_tests::wait::eventually;

use crate::guest::lab::{Lab, PATIENCE, UNDERLAY};
use crate::guest::report::Report;

const INNER: [&str; 2] = ["10.99.0.1", "10.99.0.2"];

pub(super) fn kernel_wireguard(report: &mut Report) -> Result<()> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    report.note(format_args!("kernel {}", release.trim()));
    let lab = Lab::new(1)?;
    let keys = [KeyPair::generate()?, KeyPair::generate()?];
    for (at, host) in [lab.host(0), lab.host(1)].into_iter().enumerate() {
        tunnel(host, &keys[at].private, INNER[at], &keys[1 - at].public, INNER[1 - at], UNDERLAY[1 - at])?;
    }
    eventually(PATIENCE, "beta answers through the tunnel", || {
        lab.host(0).run(&["ping", "-c", "1", "-W", "1", INNER[1]]).is_ok()
    })?;
    let handshakes = lab.host(0).run(&["wg", "show", "wg0", "latest-handshakes"])?;
    let at = handshakes.split_whitespace().nth(1).context("wg shows no peer")?;
    ensure!(at != "0", "a packet came through, but wg shows no handshake");
    Ok(())
}

fn tunnel(host: &NetNs, private: &str, own: &str, public: &str, other: &str, endpoint: &str) -> Result<()> {
    let key = tempfile::NamedTempFile::new()?;
    fs::write(key.path(), private)?;
    fs::set_permissions(key.path(), fs::Permissions::from_mode(0o600))?;
    let key = key.path().to_str().context("a temporary path is text")?;
    host.run(&["ip", "link", "add", "wg0", "type", "wireguard"])?;
    let endpoint = format!("{endpoint}:51820");
    let own = format!("{own}/24");
    host.run(&[
        "wg",
        "set",
        "wg0",
        "private-key",
        key,
        "listen-port",
        "51820",
        "peer",
        public,
        "allowed-ips",
        other,
        "endpoint",
        &endpoint,
    ])?;
    host.run(&["ip", "address", "add", &own, "dev", "wg0"])?;
    host.run(&["ip", "link", "set", "wg0", "up"])?;
    Ok(())
}
