//! Which object is loaded, and how: the one inside the binary, or another that the configuration names.
//!
//! Invariant: loading reuses the pinned maps that exist and pins those it makes; nothing is attached here.

use std::borrow::Cow;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use aya::programs::{ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfError, EbpfLoader};
use weft_ebpf_common::{COUNTERS, EGRESS, INGRESS, L2_LENGTH, LOGS, PEERS, V4, V4_PREFIXES, V6, V6_PREFIXES};

use super::pins::{Pins, ProgramId};
use super::spec::Sizes;
use crate::sys::bpf::Side;

/// Built from `agent-ebpf` by `cargo xtask ebpf`.
static PROGRAMS: &[u8] = aya::include_bytes_aligned!("../../ebpf/weft.bpf.o");
/// Only the ring buffer of the log records.
static LOGS_ONLY: &[u8] = aya::include_bytes_aligned!("../../ebpf/logs.bpf.o");

/// Bytes of the ring buffer; a power of two of pages. Records are rare, and a full buffer drops them.
const LOG_BYTES: u32 = 16_384;

/// Why the programs are not in the kernel.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("failed to read accounting.object {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "this kernel has no BPF (CONFIG_BPF_SYSCALL); traffic is not counted per peer, set accounting.enabled = false to silence this"
    )]
    NoBpf,
    #[error(
        "the kernel refuses BPF: the agent needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN (CAP_SYS_ADMIN before 5.8), and before 5.11 a higher RLIMIT_MEMLOCK (`LimitMEMLOCK=infinity` in the unit)"
    )]
    Refused(#[source] Box<EbpfError>),
    #[error("failed to make the BPF maps from {object}")]
    Maps {
        object: String,
        #[source]
        source: Box<EbpfError>,
    },
    #[error("{object} has no classifier program called {program}; it is not an accounting object of this version")]
    NoProgram { object: String, program: &'static str },
    #[error("the kernel's verifier refuses {program} of {object}")]
    Verifier {
        object: String,
        program: &'static str,
        #[source]
        source: Box<ProgramError>,
    },
    #[error("failed to open the log records of the BPF programs")]
    Logs(#[source] aya_log::Error),
    #[error("failed to watch the log records of the BPF programs")]
    LogReadiness(#[source] io::Error),
}

/// The object to load and what is set in it.
#[derive(Debug)]
pub(super) struct Object {
    name: String,
    bytes: Cow<'static, [u8]>,
    l2_length: u32,
}

impl Object {
    /// The object at `path`, or the one inside the binary.
    ///
    /// # Errors
    /// The file is not readable.
    pub(super) fn open(path: Option<&Path>, l2_length: u32) -> Result<Self, LoadError> {
        let Some(path) = path else {
            let name = "the built-in object".to_owned();
            return Ok(Self { name, bytes: Cow::Borrowed(PROGRAMS), l2_length });
        };
        let bytes = std::fs::read(path).map_err(|source| LoadError::Read { path: path.to_owned(), source })?;
        Ok(Self { name: path.display().to_string(), bytes: Cow::Owned(bytes), l2_length })
    }

    /// What tells this object from another: a hash of its bytes and its settings.
    pub(super) fn id(&self) -> ProgramId {
        ProgramId::of(&self.bytes, &self.l2_length.to_le_bytes())
    }

    /// Opens the pinned maps, making and pinning those that are missing. The programs are not in the kernel yet.
    ///
    /// # Errors
    /// The kernel refuses, or the object is not one of ours.
    pub(super) fn load(&self, pins: &Pins, sizes: Sizes) -> Result<Ebpf, LoadError> {
        let directory = pins.directory();
        EbpfLoader::new()
            .default_map_pin_directory(&directory)
            .map_pin_path(LOGS, pins.map(LOGS))
            .map_max_entries(LOGS, LOG_BYTES)
            .map_max_entries(PEERS, sizes.indexes)
            .map_max_entries(COUNTERS, sizes.indexes)
            .map_max_entries(V4, sizes.addresses)
            .map_max_entries(V6, sizes.addresses)
            .map_max_entries(V4_PREFIXES, sizes.prefixes)
            .map_max_entries(V6_PREFIXES, sizes.prefixes)
            .override_global(L2_LENGTH, &self.l2_length, true)
            .load(&self.bytes)
            .map_err(|error| self.refusal(error))
    }

    /// Brings the program of one side through the verifier.
    ///
    /// # Errors
    /// It is not there, or the verifier refuses it.
    pub(super) fn program<'a>(&self, ebpf: &'a mut Ebpf, side: Side) -> Result<&'a mut SchedClassifier, LoadError> {
        let program = program_name(side);
        let missing = || LoadError::NoProgram { object: self.name.clone(), program };
        let found = ebpf.program_mut(program).ok_or_else(missing)?;
        let classifier: &mut SchedClassifier = found.try_into().map_err(|_other_kind: ProgramError| missing())?;
        classifier.load().map_err(|source| {
            let source = Box::new(source);
            LoadError::Verifier { object: self.name.clone(), program, source }
        })?;
        Ok(classifier)
    }

    fn refusal(&self, error: EbpfError) -> LoadError {
        match os_error(&error) {
            Some(libc::ENOSYS) => LoadError::NoBpf,
            Some(libc::EPERM | libc::EACCES) => LoadError::Refused(Box::new(error)),
            Some(_) | None => LoadError::Maps { object: self.name.clone(), source: Box::new(error) },
        }
    }
}

/// What the program of one side is called in the object, and as a filter.
pub(super) fn program_name(side: Side) -> &'static str {
    match side {
        Side::Ingress => INGRESS,
        Side::Egress => EGRESS,
    }
}

/// Opens the pinned ring buffer of log records: what tells that there are some, and what hands them to the log.
///
/// # Errors
/// It is not there or not a ring buffer.
pub(super) fn open_logs(pins: &Pins) -> Result<(OwnedFd, impl FnMut() + Send + use<>), LoadError> {
    let mut only = EbpfLoader::new()
        .map_pin_path(LOGS, pins.map(LOGS))
        .map_max_entries(LOGS, LOG_BYTES)
        .load(LOGS_ONLY)
        .map_err(|source| LoadError::Maps { object: "the built-in object".to_owned(), source: Box::new(source) })?;
    let mut logger = aya_log::EbpfLogger::init(&mut only).map_err(LoadError::Logs)?;
    let readiness = logger.as_fd().try_clone_to_owned().map_err(LoadError::LogReadiness)?;
    Ok((readiness, move || logger.flush()))
}

/// The kernel's error number at the end of a chain of causes.
pub(super) fn os_error(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(current) = next {
        if let Some(io) = current.downcast_ref::<io::Error>() {
            return io.raw_os_error();
        }
        next = current.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_object_with_other_settings_is_another_program() {
        let plain = Object::open(None, 0).expect("built in");
        let ethernet = Object::open(None, 14).expect("built in");
        assert_ne!(plain.id(), ethernet.id());
        assert_eq!(plain.id(), Object::open(None, 0).expect("built in").id());
    }

    #[test]
    fn an_unreadable_object_names_the_key_and_the_path() {
        let error = Object::open(Some(Path::new("/nonexistent.o")), 0).expect_err("no such file").to_string();
        assert!(error.contains("accounting.object /nonexistent.o"), "{error}");
    }
}
