//! Storage that belongs to sockets, and the links that programs about sockets are attached by.
//!
//! In: descriptors and pins. Out: what is stored on a socket; which program a link runs and where. A map of socket
//! storage must be described by BTF, which our objects do not carry: it is given here.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::{address, bpf, descriptor, open_pin};

// Numbers of the kernel's `enum bpf_cmd`, `enum bpf_map_type` and `enum bpf_link_type`.
const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_BTF_LOAD: libc::c_long = 18;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_MAP_TYPE_SK_STORAGE: u32 = 24;
const BPF_F_NO_PREALLOC: u32 = 1;
const BPF_LINK_TYPE_CGROUP: u32 = 3;
const BPF_LINK_TYPE_NETNS: u32 = 5;
/// Bytes of an object's name, with the zero at its end.
const NAME_BYTES: usize = 16;

#[repr(C)]
#[derive(Default)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map: u32,
    numa_node: u32,
    name: [u8; NAME_BYTES],
    ifindex: u32,
    btf: u32,
    btf_key_type: u32,
    btf_value_type: u32,
}

#[repr(C)]
#[derive(Default)]
struct BtfLoad {
    btf: u64,
    log: u64,
    size: u32,
    log_size: u32,
    log_level: u32,
    padding: u32,
}

#[repr(C)]
struct Element {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct Pin {
    path: u64,
    object: u32,
    flags: u32,
}

#[repr(C)]
struct LinkUpdate {
    link: u32,
    new_program: u32,
    flags: u32,
    old_program: u32,
}

#[repr(C)]
struct InfoByFd {
    fd: u32,
    length: u32,
    info: u64,
}

/// `struct bpf_link_info` up to its cgroup and netns parts.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    target: [u32; 4],
}

/// What a map of socket storage holds.
#[derive(Debug, Clone, Copy)]
pub struct StorageShape<'a> {
    /// At most 15 bytes.
    pub name: &'a str,
    pub value_bytes: u32,
    /// The description of both types.
    pub btf: &'a [u8],
    /// The type of the key in it, an integer of four bytes.
    pub key_type: u32,
    pub value_type: u32,
}

/// Makes a map of socket storage and pins it.
///
/// # Errors
/// `EINVAL`: the kernel has no such maps (5.2). `EPERM`: not allowed.
pub fn create_storage(shape: StorageShape<'_>, pin: &Path) -> io::Result<()> {
    let btf = load_btf(shape.btf)?;
    let mut name = [0; NAME_BYTES];
    let length = shape.name.len().min(NAME_BYTES - 1);
    name[..length].copy_from_slice(&shape.name.as_bytes()[..length]);
    let mut attributes = MapCreate {
        map_type: BPF_MAP_TYPE_SK_STORAGE,
        key_size: 4,
        value_size: shape.value_bytes,
        map_flags: BPF_F_NO_PREALLOC,
        name,
        btf: descriptor(&btf),
        btf_key_type: shape.key_type,
        btf_value_type: shape.value_type,
        ..MapCreate::default()
    };
    // SAFETY: the attributes hold no pointer.
    let map = unsafe { bpf(BPF_MAP_CREATE, &mut attributes) }?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else has it.
    let map = unsafe { OwnedFd::from_raw_fd(map) };
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let mut attributes = Pin { path: path.as_ptr().addr() as u64, object: descriptor(&map), flags: 0 };
    // SAFETY: the path ends with a zero and outlives the call.
    unsafe { bpf(BPF_OBJ_PIN, &mut attributes) }.map(drop)
}

fn load_btf(btf: &[u8]) -> io::Result<OwnedFd> {
    let size = u32::try_from(btf.len()).map_err(io::Error::other)?;
    let mut attributes = BtfLoad { btf: btf.as_ptr().addr() as u64, size, ..BtfLoad::default() };
    // SAFETY: `btf` is as long as `size` says and outlives the call; there is no log buffer.
    let loaded = unsafe { bpf(BPF_BTF_LOAD, &mut attributes) }?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(loaded) })
}

/// Opens a pinned map.
///
/// # Errors
/// There is no such pin.
pub fn open_map(pin: &Path) -> io::Result<OwnedFd> {
    open_pin(pin)
}

/// What a map of socket storage holds for a socket; `None` if nothing. One system call, no allocation.
///
/// `N` is the size of the map's values: it is the caller's to know, as the map was made with it.
///
/// # Errors
/// `map` is no such map, or `socket` no socket.
pub fn stored<const N: usize>(map: impl AsFd, socket: impl AsFd) -> io::Result<Option<[u8; N]>> {
    let key = descriptor(&socket);
    let mut value = [0_u8; N];
    let mut attributes = Element {
        map: descriptor(&map),
        padding: 0,
        key: (&raw const key).addr() as u64,
        value: address(value.as_mut_ptr()),
        flags: 0,
    };
    // SAFETY: the key has four bytes and the value the map's; both outlive the call.
    match unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &mut attributes) } {
        Ok(_) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where a link attaches its program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// To the cgroup with this id; 0 once that is gone.
    Cgroup(u64),
    /// To the network namespace with this inode; 0 once that is gone.
    Netns(u32),
    /// Elsewhere.
    Other,
}

/// A link as the kernel sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attached {
    pub program: u32,
    pub target: Target,
}

/// What the kernel says about a pinned link.
///
/// # Errors
/// There is no such pin, or it is no link.
pub fn attached(pin: &Path) -> io::Result<Attached> {
    let link = open_pin(pin)?;
    let mut info = LinkInfo::default();
    let mut attributes =
        InfoByFd { fd: descriptor(&link), length: size_of::<LinkInfo>() as u32, info: address(&raw mut info) };
    // SAFETY: `info` is as long as `length` says, and outlives the call.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes) }?;
    let [low, high, _attach_type, _reserved] = info.target;
    let target = match info.kind {
        BPF_LINK_TYPE_CGROUP => {
            let bytes: [u32; 2] = [low, high];
            let [a, b] = bytes.map(u32::to_ne_bytes);
            Target::Cgroup(u64::from_ne_bytes([a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]]))
        }
        BPF_LINK_TYPE_NETNS => Target::Netns(low),
        _ => Target::Other,
    };
    Ok(Attached { program: info.program, target })
}

/// Puts another program in the place of a pinned link's, between two runs of it.
///
/// # Errors
/// `ENOLINK` and the like: what it was attached to is gone.
pub fn replace(pin: &Path, program: impl AsFd) -> io::Result<()> {
    let link = open_pin(pin)?;
    let mut attributes =
        LinkUpdate { link: descriptor(&link), new_program: descriptor(&program), flags: 0, old_program: 0 };
    // SAFETY: the attributes hold no pointer.
    unsafe { bpf(BPF_LINK_UPDATE, &mut attributes) }.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_bpf_object_gives_nothing() {
        let file = std::fs::File::open("/dev/null").expect("there");
        assert!(attached(Path::new("/dev/null")).is_err());
        assert!(stored::<8>(&file, &file).is_err());
        assert!(replace(Path::new("/dev/null"), &file).is_err());
    }
}
