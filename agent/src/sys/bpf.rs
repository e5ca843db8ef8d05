//! The few commands of bpf(2) that the loader library does not offer, or offers only to CAP_SYS_ADMIN.
//!
//! In: pins, links and descriptors of maps. Out: facts the kernel tells about them. Here only [`detach_link`] changes
//! anything, and whoever writes to [`SharedWords`]; what is about sockets and their cgroups is in [`sockets`].

#![expect(
    unsafe_code,
    reason = "bpf(2) and the readiness of a ring buffer have no safe wrapper in the libraries we use"
)]

pub mod sockets;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

// Numbers of the kernel's `enum bpf_cmd` and `enum bpf_attach_type`.
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_LINK_DETACH: libc::c_long = 34;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;

/// More programs than this on one hook of one link the kernel does not allow (`BPF_MPROG_MAX`).
const MOST_PROGRAMS: usize = 64;

/// The side of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    Ingress,
    Egress,
}

/// A tcx link as the kernel sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcxLink {
    pub program_id: u32,
    /// The network link it is attached to; 0 once that is gone.
    pub ifindex: u32,
}

#[repr(C)]
struct Get {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct InfoByFd {
    fd: u32,
    length: u32,
    info: u64,
}

/// `struct bpf_link_info` up to its tcx part.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program_id: u32,
    padding: u32,
    ifindex: u32,
    attach_type: u32,
}

#[repr(C)]
struct LinkDetach {
    link: u32,
}

#[repr(C)]
#[derive(Default)]
struct ProgramQuery {
    ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    program_ids: u64,
    count: u32,
    padding: u32,
    program_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

#[repr(C)]
#[derive(Default)]
struct LookupBatch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// One bpf(2) call.
///
/// # Safety
/// Every pointer in `attributes` is valid for what `command` reads and writes.
unsafe fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<RawFd> {
    // SAFETY: pointer and length describe `attributes`; what it points to is the caller's promise.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>() as libc::c_ulong)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { RawFd::try_from(result).map_err(io::Error::other) }
}

fn descriptor(of: impl AsFd) -> u32 {
    of.as_fd().as_raw_fd().cast_unsigned()
}

fn address<T: ?Sized>(of: *mut T) -> u64 {
    of.cast::<u8>().addr() as u64
}

/// What the kernel says about a pinned tcx link.
///
/// # Errors
/// There is no such pin, or it is no link.
pub fn tcx_link(pin: &Path) -> io::Result<TcxLink> {
    let link = open_pin(pin)?;
    let mut info = LinkInfo::default();
    let mut attributes =
        InfoByFd { fd: descriptor(&link), length: size_of::<LinkInfo>() as u32, info: address(&raw mut info) };
    // SAFETY: `info` is as long as `length` says, and outlives the call.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes) }?;
    Ok(TcxLink { program_id: info.program_id, ifindex: info.ifindex })
}

/// Takes the program of a pinned link off its hook at once. Unlinking the pin alone does so some time later.
///
/// # Errors
/// There is no such pin, or it is no link. One that is detached already is no error.
pub fn detach_link(pin: &Path) -> io::Result<()> {
    let link = open_pin(pin)?;
    let mut attributes = LinkDetach { link: descriptor(&link) };
    // SAFETY: the attributes hold no pointer.
    unsafe { bpf(BPF_LINK_DETACH, &mut attributes) }.map(drop)
}

fn open_pin(pin: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let mut attributes = Get { path: path.as_ptr().addr() as u64, fd: 0, flags: 0 };
    // SAFETY: the path ends with a zero and outlives the call.
    let opened = unsafe { bpf(BPF_OBJ_GET, &mut attributes) }?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(opened) })
}

/// The ids of the programs on the tcx hook of a link, in the order they run; `None` on a kernel without tcx.
///
/// # Errors
/// There is no such link, or CAP_NET_ADMIN is missing.
pub fn tcx_programs(ifindex: u32, side: Side) -> io::Result<Option<Vec<u32>>> {
    let mut ids = vec![0_u32; MOST_PROGRAMS];
    let mut attributes = ProgramQuery {
        ifindex,
        attach_type: match side {
            Side::Ingress => BPF_TCX_INGRESS,
            Side::Egress => BPF_TCX_EGRESS,
        },
        program_ids: address(ids.as_mut_ptr()),
        count: MOST_PROGRAMS as u32,
        ..ProgramQuery::default()
    };
    // SAFETY: `ids` has room for `count` numbers and outlives the call.
    match unsafe { bpf(BPF_PROG_QUERY, &mut attributes) } {
        Ok(_) => {
            ids.truncate(attributes.count as usize);
            Ok(Some(ids))
        }
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Some(Vec::new())),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The shape of a map and how much of it to read.
#[derive(Debug, Clone, Copy)]
pub struct BatchShape {
    pub key_bytes: usize,
    /// Of one element as the kernel copies it: for a per-CPU map, 8-byte multiples times the possible CPUs.
    pub value_bytes: usize,
    /// At most this many elements; for a hash at least as many as it holds.
    pub count: u32,
}

/// Keys and values of a map, back to back.
#[derive(Debug, Default)]
pub struct Batch {
    pub keys: Vec<u8>,
    pub values: Vec<u8>,
}

/// Reads the first elements of a map in as few calls as the kernel allows; `None` where it cannot for this kind of map.
///
/// # Errors
/// The map is not as `shape` says, or its descriptor may not be read.
pub fn lookup_batch(map: impl AsFd, shape: BatchShape) -> io::Result<Option<Batch>> {
    let most = shape.count as usize;
    let mut batch = Batch { keys: vec![0; most * shape.key_bytes], values: vec![0; most * shape.value_bytes] };
    // A cursor is a bucket number or a key, whichever the kind of map uses.
    let (mut from, mut next) = (vec![0_u8; shape.key_bytes.max(4)], vec![0_u8; shape.key_bytes.max(4)]);
    let mut done = 0;
    while done < most {
        let mut attributes = LookupBatch {
            in_batch: if done == 0 { 0 } else { address(from.as_mut_ptr()) },
            out_batch: address(next.as_mut_ptr()),
            keys: address(batch.keys[done * shape.key_bytes..].as_mut_ptr()),
            values: address(batch.values[done * shape.value_bytes..].as_mut_ptr()),
            count: (most - done) as u32,
            map: descriptor(&map),
            ..LookupBatch::default()
        };
        // SAFETY: both vectors have room for `count` more elements, the cursors for one key.
        let outcome = unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attributes) };
        let end = match outcome {
            Ok(_) => false,
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOENT) => true,
                // EINVAL: older than batches (5.6); 524, ENOTSUPP: not for this kind of map.
                Some(libc::EINVAL | libc::EOPNOTSUPP | 524) if done == 0 => return Ok(None),
                _ => return Err(error),
            },
        };
        done += attributes.count as usize;
        if end || attributes.count == 0 {
            break;
        }
        std::mem::swap(&mut from, &mut next);
    }
    batch.keys.truncate(done * shape.key_bytes);
    batch.values.truncate(done * shape.value_bytes);
    Ok(Some(batch))
}

/// A map of words that is written as memory: made with `BPF_F_MMAPABLE`, so page-aligned.
///
/// Each word is read and written whole, also by the programs.
#[derive(Debug)]
pub struct SharedWords {
    start: NonNull<AtomicU64>,
    count: usize,
}

// SAFETY: the memory belongs to the value until it is dropped, and atomics may be used from every thread.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Maps the first `count` words of a map's values, readable and writable.
    ///
    /// # Errors
    /// The map is shorter, or was not made to be mapped, or its descriptor may not be written.
    pub fn of(map: impl AsFd, count: usize) -> io::Result<Self> {
        let (protection, fd) = (libc::PROT_READ | libc::PROT_WRITE, map.as_fd().as_raw_fd());
        // SAFETY: a new mapping of a length we give back in `drop`; the kernel refuses more than the map has.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), count * 8, protection, libc::MAP_SHARED, fd, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { start, count })
    }

    /// The words.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: `count` words are mapped from a page's beginning, for as long as `self` lives.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.count) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: mapped in `of` with this length, and nobody borrows from `self` any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.count * 8) };
    }
}

/// Lets tokio tell when `source` has something to read. Needs a tokio runtime.
///
/// # Errors
/// The descriptor is of a kind that epoll does not know.
pub fn watch_readable(source: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor stays open and the same for as long as it lives, which the AsyncFd does not outlive.
    unsafe { AsyncFd::register_with_interest(source, Interest::READABLE) }.map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_that_is_no_bpf_object_gives_nothing() {
        let file = std::fs::File::open("/dev/null").expect("there");
        assert!(tcx_link(Path::new("/dev/null")).is_err());
        let shape = BatchShape { key_bytes: 4, value_bytes: 8, count: 1 };
        // The kernel answers EINVAL, as it does for a map it cannot read in batches: reading one by one fails then.
        assert!(!matches!(lookup_batch(&file, shape), Ok(Some(_))));
        assert!(SharedWords::of(&file, 8).is_err());
    }
}
