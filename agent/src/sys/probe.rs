//! Questions to the kernel about what it can do, asked in ways that leave nothing behind.

#![expect(unsafe_code, reason = "bpf(2) has no safe wrapper for a bare question")]

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt};

/// `BPF_MAP_CREATE` and its smallest attributes (`union bpf_attr`, linux/bpf.h).
const MAP_CREATE: libc::c_long = 0;
const MAP_TYPE_ARRAY: u32 = 2;

/// `union bpf_attr` as far as the smallest map needs it.
#[repr(C)]
struct MapAttributes {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

/// Makes a BPF map of one entry and drops it.
///
/// # Errors
/// `EPERM`: not allowed. `ENOSYS`: the kernel was built without BPF.
pub fn bpf_map() -> io::Result<()> {
    let attributes = MapAttributes { map_type: MAP_TYPE_ARRAY, key_size: 4, value_size: 4, max_entries: 1 };
    // SAFETY: `attributes` is as large as the size we tell, alive for the call, and holds no pointer.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, MAP_CREATE, &raw const attributes, size_of::<MapAttributes>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel just made this descriptor for us and nobody else knows it.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

/// Whether the kernel has a generic netlink family of this name. May load the module that brings it.
///
/// # Errors
/// The question could not be asked.
pub fn netlink_family(name: &str) -> io::Result<bool> {
    let socket = Socket::new(NETLINK_GENERIC)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&family_request(name), 0)?;
    let (answer, _sender) = socket.recv_from_full()?;
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let code = answer.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, code) {
        (Some(NLMSG_ERROR), Some(code)) if code == -libc::ENOENT => Ok(false),
        (Some(NLMSG_ERROR), Some(code)) => Err(io::Error::from_raw_os_error(-code)),
        (Some(_), _) => Ok(true),
        (None, _) => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
/// The family of the families, and the question for one by its name (linux/genetlink.h).
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

fn family_request(name: &str) -> Vec<u8> {
    let attribute_bytes = 4 + name.len() + 1;
    let total = 20 + attribute_bytes.next_multiple_of(4);
    let mut bytes = Vec::with_capacity(total);
    bytes.extend(u32::try_from(total).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend(GENL_ID_CTRL.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST.to_ne_bytes());
    // Sequence number and port: one question, one answer, on a socket of its own.
    bytes.extend([0; 8]);
    // Command, version, two reserved bytes.
    bytes.extend([CTRL_CMD_GETFAMILY, 1, 0, 0]);
    bytes.extend(u16::try_from(attribute_bytes).unwrap_or(u16::MAX).to_ne_bytes());
    bytes.extend(CTRL_ATTR_FAMILY_NAME.to_ne_bytes());
    bytes.extend(name.as_bytes());
    bytes.resize(total, 0);
    bytes
}

/// Whether UDP sockets can send one buffer as many datagrams.
///
/// # Errors
/// The kernel cannot.
pub fn udp_send_offload() -> io::Result<()> {
    Ok(setsockopt(&udp_socket()?, sockopt::UdpGsoSegment, &1200)?)
}

/// Whether UDP sockets can receive many datagrams as one buffer.
///
/// # Errors
/// The kernel cannot.
pub fn udp_receive_offload() -> io::Result<()> {
    Ok(setsockopt(&udp_socket()?, sockopt::UdpGroSegment, &true)?)
}

fn udp_socket() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_family_of_the_families_is_always_there() {
        assert!(netlink_family("nlctrl").expect("asked"));
        assert!(!netlink_family("weft-no-such").expect("asked"));
    }

    #[test]
    fn udp_offloads_are_in_every_kernel_we_support() {
        udp_send_offload().expect("UDP_SEGMENT since 4.18");
        udp_receive_offload().expect("UDP_GRO since 5.0");
    }
}
