//! Keeps packages that are installed for tests from starting their services on this host.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::packages::Package;
use crate::repo;

/// Debian's maintainer scripts ask this program before they start a service; 101 is no.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Holds the answer "no" while packages are installed.
#[derive(Debug)]
pub(super) struct Quiet {
    ours: bool,
}

impl Quiet {
    /// Answers no from now on, unless the host has a policy of its own or we are not root (then apt-get runs through
    /// sudo and [`Self::end`] stops what was started).
    pub(super) fn begin() -> Result<Self> {
        let ours = repo::is_root() && !Path::new(POLICY).exists();
        if ours {
            fs::write(POLICY, "#!/bin/sh\nexit 101\n").with_context(|| format!("failed to write {POLICY}"))?;
            fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755)).context("failed to set its mode")?;
        }
        Ok(Self { ours })
    }

    /// Gives the host its own policy back and keeps the new services from starting at boot.
    pub(super) fn end(self, installed: &[Package]) {
        let services: Vec<&str> = installed.iter().flat_map(|package| package.services).copied().collect();
        drop(self);
        if services.is_empty() || !Path::new("/run/systemd/system").exists() {
            return;
        }
        if let Err(error) =
            repo::execute(repo::as_root("systemctl").args(["disable", "--quiet", "--now"]).args(services))
        {
            eprintln!("setup: {error:#}");
        }
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        if self.ours {
            fs::remove_file(POLICY).ok();
        }
    }
}
