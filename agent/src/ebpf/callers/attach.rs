//! The four hooks: what is attached where, and how one that is missing or old gets there.

use std::fmt;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSockAddr, Program, ProgramError, ProgramFd, SkLookup, SockOps};
use aya::{Ebpf, EbpfLoader};
use weft_ebpf_common::callers::{CONNECT4, CONNECT6, PENDING, SOCK_OPS, STEER};

use super::kernel::KernelError;
use crate::ebpf::pins::{self, ProgramId};
use crate::sys::bpf::sockets::{self, Target};

/// Built from `agent-ebpf` by `cargo xtask ebpf`.
static PROGRAMS: &[u8] = aya::include_bytes_aligned!("../../../ebpf/callers.bpf.o");

/// Where one of our programs sits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    Connect4,
    Connect6,
    SockOps,
    Steer,
}

impl Hook {
    /// The program of this hook in the object.
    fn program(self) -> &'static str {
        match self {
            Self::Connect4 => CONNECT4,
            Self::Connect6 => CONNECT6,
            Self::SockOps => SOCK_OPS,
            Self::Steer => STEER,
        }
    }

    fn pin_prefix(self) -> &'static str {
        match self {
            Self::Connect4 => "connect4-",
            Self::Connect6 => "connect6-",
            Self::SockOps => "sock_ops-",
            Self::Steer => "steer-",
        }
    }

    /// The hook whose link is pinned by this name.
    pub(super) fn of_pin(name: &str) -> Option<Self> {
        [Self::Connect4, Self::Connect6, Self::SockOps, Self::Steer]
            .into_iter()
            .find(|hook| name.starts_with(hook.pin_prefix()))
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect4 => "cgroup/connect4",
            Self::Connect6 => "cgroup/connect6",
            Self::SockOps => "cgroup/sock_ops",
            Self::Steer => "sk_lookup",
        })
    }
}

/// Has the program of `hook` run at `target`, a cgroup's directory or a network namespace. `true`: it did already.
///
/// # Errors
/// The kernel does not take it.
pub(super) fn ensure(hook: Hook, directory: &Path, target: &File, max_pending: u32) -> Result<bool, KernelError> {
    let failed = |source: BoxedError| KernelError::Program { hook, source };
    let wanted = format!("{}{}", hook.pin_prefix(), ProgramId::of(PROGRAMS, &[]));
    let names = pins::names_below(directory)?;
    let (mut is_current, mut outdated) = (false, None);
    for name in names.into_iter().filter(|name| Hook::of_pin(name) == Some(hook)) {
        let path = directory.join(&name);
        if !is_at(&path, target) {
            // It was attached to something that is gone or is not ours any more.
            pins::remove(&path)?;
        } else if name == wanted {
            is_current = true;
        } else {
            outdated = Some(path);
        }
    }
    if is_current {
        return Ok(true);
    }
    let mut object = load(directory, max_pending)?;
    let program = object.program_mut(hook.program()).ok_or_else(|| failed("it is not in the object".into()))?;
    let pin = directory.join(wanted);
    match outdated {
        Some(old) => replace(program, &old, &pin).map_err(failed)?,
        None => attach(program, target, &pin).map_err(failed)?,
    }
    Ok(false)
}

type BoxedError = Box<dyn std::error::Error + Send + Sync>;

/// Whether a pinned link still runs a program at `target`.
fn is_at(pin: &Path, target: &File) -> bool {
    let Ok(metadata) = target.metadata() else { return false };
    sockets::attached(pin).is_ok_and(|attached| match attached.target {
        Target::Cgroup(id) => id == metadata.ino(),
        Target::Netns(inode) => u64::from(inode) == metadata.ino(),
        Target::Other => false,
    })
}

fn load(directory: &Path, max_pending: u32) -> Result<Ebpf, KernelError> {
    EbpfLoader::new()
        .default_map_pin_directory(directory)
        .map_max_entries(PENDING, max_pending)
        .load(PROGRAMS)
        .map_err(|source| KernelError::Maps(Box::new(source)))
}

fn attach(program: &mut Program, target: &File, pin: &Path) -> Result<(), BoxedError> {
    verify(program)?;
    // Through a bpf link several programs share a cgroup in any mode.
    let mode = CgroupAttachMode::Single;
    let link = if let Ok(program) = <&mut CgroupSockAddr>::try_from(&mut *program) {
        let id = program.attach(target, mode)?;
        FdLink::try_from(program.take_link(id)?)?
    } else if let Ok(program) = <&mut SockOps>::try_from(&mut *program) {
        let id = program.attach(target, mode)?;
        FdLink::try_from(program.take_link(id)?)?
    } else {
        let program = <&mut SkLookup>::try_from(program)?;
        let id = program.attach(target)?;
        FdLink::from(program.take_link(id)?)
    };
    drop(link.pin(pin)?);
    Ok(())
}

/// The link keeps its place: the program changes between two runs.
fn replace(program: &mut Program, old: &Path, pin: &Path) -> Result<(), BoxedError> {
    verify(program)?;
    sockets::replace(old, fd(program)?.as_fd())?;
    Ok(std::fs::rename(old, pin)?)
}

fn verify(program: &mut Program) -> Result<(), ProgramError> {
    if let Ok(program) = <&mut CgroupSockAddr>::try_from(&mut *program) {
        program.load()
    } else if let Ok(program) = <&mut SockOps>::try_from(&mut *program) {
        program.load()
    } else {
        <&mut SkLookup>::try_from(program)?.load()
    }
}

fn fd(program: &mut Program) -> Result<&ProgramFd, ProgramError> {
    program.fd()
}
