//! The TUN interface: creating it, what its kernel offers, and its MTU.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType};
use nix::sys::{socket, uio};

use crate::device::CreateError;
use crate::sys::{self, TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_USO4, TUN_F_USO6};
use crate::vnet;

const DEVICE: &str = "/dev/net/tun";
/// Names are 1 to 15 bytes (`IFNAMSIZ` counts a zero).
const MAX_NAME: usize = 15;

/// An interface that lives as long as this value.
#[derive(Debug)]
pub(crate) struct Tun {
    file: File,
    name: String,
    pub(crate) tcp_offload: bool,
    pub(crate) udp_offload: bool,
}

impl Tun {
    pub(crate) fn create(name: &str) -> Result<Self, CreateError> {
        check_name(name)?;
        if nix::net::if_::if_nametoindex(name).is_ok() {
            // Attaching would adopt a persistent TUN of somebody else.
            return Err(CreateError::NameTaken { name: name.to_owned() });
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(DEVICE)
            .map_err(|source| open_error(name, source))?;
        sys::tun_attach(&file, name).map_err(|source| attach_error(name, source))?;
        let tcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6;
        let udp_offload = sys::tun_set_offload(&file, tcp | TUN_F_USO4 | TUN_F_USO6).is_ok();
        let tcp_offload = udp_offload || sys::tun_set_offload(&file, tcp).is_ok();
        Ok(Self { file, name: name.to_owned(), tcp_offload, udp_offload })
    }

    /// Reads one frame without waiting: the virtio header and the length of what is behind it in `frame`.
    pub(crate) fn read(&self, frame: &mut [u8]) -> io::Result<([u8; vnet::LEN], usize)> {
        let mut header = [0; vnet::LEN];
        let length = uio::readv(&self.file, &mut [IoSliceMut::new(&mut header), IoSliceMut::new(frame)])?;
        let length = length.checked_sub(vnet::LEN).ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok((header, length))
    }

    /// Writes one frame, virtio header first.
    pub(crate) fn write(&self, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        uio::writev(&self.file, pieces)?;
        Ok(())
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Tells when the MTU of an interface may have changed, without asking again and again.
#[derive(Debug)]
pub(crate) struct MtuWatch {
    events: std::os::fd::OwnedFd,
    query: std::net::UdpSocket,
    name: String,
}

impl MtuWatch {
    pub(crate) fn new(tun: &Tun) -> io::Result<Self> {
        let events = socket::socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkRoute,
        )?;
        let link_group = u32::try_from(libc::RTMGRP_LINK).expect("a bit mask");
        socket::bind(std::os::fd::AsRawFd::as_raw_fd(&events), &NetlinkAddr::new(0, link_group))?;
        Ok(Self {
            events,
            query: std::net::UdpSocket::bind("127.0.0.1:0").or_else(|_| std::net::UdpSocket::bind("[::]:0"))?,
            name: tun.name.clone(),
        })
    }

    pub(crate) fn current(&self) -> io::Result<usize> {
        sys::mtu(&self.query, &self.name)
    }

    /// Forgets what has been announced so far; the caller asks for the value next.
    pub(crate) fn acknowledge(&self) {
        let mut ignored = [0; 8192];
        loop {
            let result =
                socket::recv(std::os::fd::AsRawFd::as_raw_fd(&self.events), &mut ignored, MsgFlags::MSG_DONTWAIT);
            match result {
                Ok(0) | Err(nix::errno::Errno::EAGAIN) => return,
                // An overrun only says that there was more.
                Ok(_) | Err(nix::errno::Errno::EINTR | nix::errno::Errno::ENOBUFS) => {}
                Err(_) => return,
            }
        }
    }
}

impl AsFd for MtuWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

fn check_name(name: &str) -> Result<(), CreateError> {
    let is_valid = (1..=MAX_NAME).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%'));
    if is_valid { Ok(()) } else { Err(CreateError::InvalidName { name: name.to_owned() }) }
}

fn open_error(name: &str, source: io::Error) -> CreateError {
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => CreateError::NoTunDevice { source },
        Some(libc::EACCES | libc::EPERM) => CreateError::Permission { name: name.to_owned(), source },
        _ => CreateError::Tun { name: name.to_owned(), source },
    }
}

fn attach_error(name: &str, source: io::Error) -> CreateError {
    match source.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => CreateError::Permission { name: name.to_owned(), source },
        Some(libc::EBUSY | libc::EEXIST) => CreateError::NameTaken { name: name.to_owned() },
        _ => CreateError::Tun { name: name.to_owned(), source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_kernel_would_refuse_are_refused_first() {
        for name in ["", "a/b", "sixteen-letters-", ".", "..", "a b", "a%d", "w:0"] {
            assert!(matches!(check_name(name), Err(CreateError::InvalidName { .. })), "{name:?}");
        }
        check_name("weft0").unwrap();
        check_name("fifteen-letters").unwrap();
    }
}
