//! What our pins are called, and which of them are there.
//!
//! One directory of the BPF file system an instance and layout: `<root>/<instance>/v<layout>/`, holding the maps under
//! their own names, a tcx link as `tcx-<side>-<program>`, and the program of a clsact filter as
//! `clsact-<side>-<ifindex>-<program>`. `<program>` says which object runs, so that the same object is never loaded
//! again. What records callers is beside it in `callers-v<layout>/`, each link as `<hook>-<program>`. The BPF file system
//! refuses dots in names.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use weft_ebpf_common::{COUNTERS, LAYOUT, LOGS, PEERS, V4, V4_PREFIXES, V4_TABLE, V6, V6_PREFIXES};

use super::status::Hook;
use crate::foundation::id::InstanceName;
use crate::sys::bpf::Side;
use crate::sys::file::{self, FileError};

/// Every map that is pinned.
pub(super) const MAPS: [&str; 8] = [PEERS, V4_TABLE, V4, V6, V4_PREFIXES, V6_PREFIXES, COUNTERS, LOGS];

/// Begins the name of the directory of the caller programs; the layout follows.
const CALLERS_PREFIX: &str = "callers-v";

/// Which object a program comes from: a hash of the object and of what the loader sets in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ProgramId(pub(super) u64);

impl ProgramId {
    /// FNV-1a over an object's bytes and what the loader sets in it.
    pub(super) fn of(object: &[u8], settings: &[u8]) -> Self {
        let hash = object.iter().chain(settings).fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Self(hash)
    }
}

impl std::fmt::Display for ProgramId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A pin that keeps a program attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HookPin {
    pub(super) hook: Hook,
    pub(super) side: Side,
    pub(super) program: ProgramId,
    /// The link a clsact filter is on; a tcx link knows its own.
    pub(super) ifindex: u32,
}

impl HookPin {
    pub(super) fn file_name(&self) -> String {
        let side = side_name(self.side);
        match self.hook {
            Hook::Tcx => format!("tcx-{side}-{}", self.program),
            Hook::Clsact => format!("clsact-{side}-{}-{}", self.ifindex, self.program),
        }
    }

    fn parse(name: &str) -> Option<Self> {
        let mut parts = name.split('-');
        let hook = match parts.next()? {
            "tcx" => Hook::Tcx,
            "clsact" => Hook::Clsact,
            _ => return None,
        };
        let side = match parts.next()? {
            "ingress" => Side::Ingress,
            "egress" => Side::Egress,
            _ => return None,
        };
        let ifindex = match hook {
            Hook::Tcx => 0,
            Hook::Clsact => parts.next()?.parse().ok()?,
        };
        let program = ProgramId(u64::from_str_radix(parts.next()?, 16).ok()?);
        parts.next().is_none().then_some(Self { hook, side, program, ifindex })
    }
}

pub(super) fn side_name(side: Side) -> &'static str {
    match side {
        Side::Ingress => "ingress",
        Side::Egress => "egress",
    }
}

/// Why there is no place for pins.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    #[error(
        "{} is not on a BPF file system, which keeps the counters while the agent restarts; mount one: `mount -t bpf bpf /sys/fs/bpf`",
        .0.display()
    )]
    NotBpffs(PathBuf),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("failed to {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The pin directory of one instance.
#[derive(Debug, Clone)]
pub(super) struct Pins {
    instance: PathBuf,
    root: PathBuf,
}

impl Pins {
    pub(super) fn new(root: &Path, instance: &InstanceName) -> Self {
        Self { instance: root.join(instance.as_str()), root: root.to_owned() }
    }

    /// Where the pins of our layout are.
    pub(super) fn directory(&self) -> PathBuf {
        self.layout_directory(LAYOUT)
    }

    /// Where the pins of some layout are.
    pub(super) fn layout_directory(&self, layout: u32) -> PathBuf {
        self.instance.join(format!("v{layout}"))
    }

    /// Where a map is pinned.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    /// Where a hook's pin is.
    pub(super) fn hook(&self, pin: &HookPin) -> PathBuf {
        self.directory().join(pin.file_name())
    }

    /// Makes the directory, readable by root only.
    ///
    /// # Errors
    /// There is no BPF file system at the root.
    pub(super) fn create(&self) -> Result<(), PinError> {
        self.require_bpffs()?;
        Ok(file::create_directory(&self.directory(), 0o700)?)
    }

    /// Where the pins of the caller programs are, apart from the counters: neither's layout matters to the other.
    pub(super) fn callers_directory(&self, layout: u32) -> PathBuf {
        self.instance.join(format!("{CALLERS_PREFIX}{layout}"))
    }

    /// The layouts of the caller programs that have a directory.
    pub(super) fn callers_layouts(&self) -> Result<Vec<u32>, PinError> {
        let names = names_below(&self.instance)?;
        Ok(names.iter().filter_map(|name| name.strip_prefix(CALLERS_PREFIX)?.parse().ok()).collect())
    }

    /// Makes the directory of the caller programs, readable by root only.
    ///
    /// # Errors
    /// There is no BPF file system at the root.
    pub(super) fn create_callers(&self, layout: u32) -> Result<(), PinError> {
        self.require_bpffs()?;
        Ok(file::create_directory(&self.callers_directory(layout), 0o700)?)
    }

    /// Whether every map is pinned.
    pub(super) fn has_maps(&self) -> bool {
        MAPS.iter().all(|name| self.map(name).exists())
    }

    /// The hooks' pins below a layout's directory.
    pub(super) fn hooks(&self, layout: u32) -> Result<Vec<HookPin>, PinError> {
        let names = names_below(&self.layout_directory(layout))?;
        Ok(names.iter().filter_map(|name| HookPin::parse(name)).collect())
    }

    /// The layouts that have a directory.
    pub(super) fn layouts(&self) -> Result<Vec<u32>, PinError> {
        let names = names_below(&self.instance)?;
        Ok(names.iter().filter_map(|name| name.strip_prefix('v')?.parse().ok()).collect())
    }

    /// Removes a layout's directory with every pin in it; returns how many there were.
    pub(super) fn remove_layout(&self, layout: u32) -> Result<usize, PinError> {
        let directory = self.layout_directory(layout);
        let names = names_below(&directory)?;
        for name in &names {
            remove(&directory.join(name))?;
        }
        remove_directory(&directory)?;
        Ok(names.len())
    }

    /// Removes the instance's directory if nothing is left in it, and the root if no instance is.
    pub(super) fn remove_empty(&self) {
        // Both stay where something else is inside: that is what the failure says.
        if fs::remove_dir(&self.instance).is_ok() {
            fs::remove_dir(&self.root).ok();
        }
    }

    fn require_bpffs(&self) -> Result<(), PinError> {
        let existing = self.root.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        match statfs(existing) {
            Ok(found) if found.filesystem_type() == BPF_FS_MAGIC => Ok(()),
            Ok(_) | Err(_) => Err(PinError::NotBpffs(self.root.clone())),
        }
    }
}

/// Unlinks a pin; one that is gone is no error.
pub(super) fn remove(path: &Path) -> Result<(), PinError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(PinError::Io { action: "unpin", path: path.to_owned(), source })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

pub(super) fn remove_directory(path: &Path) -> Result<(), PinError> {
    match fs::remove_dir(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(PinError::Io { action: "remove directory", path: path.to_owned(), source })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

pub(super) fn names_below(directory: &Path) -> Result<Vec<String>, PinError> {
    let failed = |source| PinError::Io { action: "read directory", path: directory.to_owned(), source };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(failed)?.file_name().into_string().ok());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pin: HookPin, name: &str) {
        assert_eq!(pin.file_name(), name);
        assert_eq!(HookPin::parse(name), Some(pin));
        assert!(!name.contains('.'), "the BPF file system refuses dots");
    }

    #[test]
    fn hook_pins_round_trip() {
        let program = ProgramId(0xab);
        check(HookPin { hook: Hook::Tcx, side: Side::Ingress, program, ifindex: 0 }, "tcx-ingress-00000000000000ab");
        check(
            HookPin { hook: Hook::Clsact, side: Side::Egress, program, ifindex: 7 },
            "clsact-egress-7-00000000000000ab",
        );
    }

    #[test]
    fn other_names_are_no_hook_pins() {
        for name in ["V4", "tcx-ingress", "tcx-up-00", "clsact-egress-00", "tcx-ingress-00-1"] {
            assert_eq!(HookPin::parse(name), None, "{name}");
        }
    }

    #[test]
    fn a_directory_elsewhere_is_refused_with_the_command_that_helps() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let pins = Pins::new(directory.path(), &"test".parse().expect("a label"));
        let error = pins.create().expect_err("no BPF file system").to_string();
        assert!(error.contains("mount -t bpf bpf /sys/fs/bpf"), "{error}");
        assert_eq!(fs::read_dir(directory.path()).expect("listed").count(), 0);
    }
}
