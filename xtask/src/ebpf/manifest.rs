//! `agent/ebpf/manifest.toml`: from what and by what the committed objects were made.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

/// The manifest.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    /// Hash of `agent-ebpf`; see `hash`.
    pub(crate) sources: String,
    /// `rustc --version` and its LLVM.
    pub(crate) rustc: String,
    /// `bpf-linker --version` and its LLVM.
    pub(crate) linker: String,
    /// SHA-256 of each object.
    pub(crate) objects: BTreeMap<String, String>,
}

impl Manifest {
    /// Reads the manifest; `None` if there is none.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Option<Self>> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("failed to read {}", path.display())),
        };
        toml::from_str(&text).map(Some).with_context(|| format!("failed to parse {}", path.display()))
    }

    /// Writes the manifest.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let text = format!("# Written by `cargo xtask ebpf`.\n{}", toml::to_string(self)?);
        std::fs::write(path, text).with_context(|| format!("failed to write {}", path.display()))
    }

    /// Refuses a compiler or linker other than the one that made the committed objects.
    pub(crate) fn require(&self, rustc: &str, linker: &str) -> anyhow::Result<()> {
        ensure!(
            self.rustc == rustc && self.linker == linker,
            "nothing was compared: the committed objects were made by {}, linker {}; here are {rustc}, linker {linker}. \
             Install the former (Debian: {}), or run `cargo xtask ebpf` and commit objects made by the latter",
            self.rustc,
            self.linker,
            super::DEBIAN_PACKAGES.join(" "),
        );
        Ok(())
    }
}
