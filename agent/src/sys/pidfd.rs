//! Processes by descriptor: a pidfd names one process for as long as it is open, whatever happens to its number.

#![expect(
    unsafe_code,
    reason = "pidfd_open, pidfd_send_signal and PIDFD_GET_INFO have no safe wrapper in the libraries we use"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    Signal(i32),
    /// It is gone, and nobody kept how.
    Unknown,
}

/// Opens `pid`.
///
/// # Errors
/// There is no such process (`ESRCH`).
pub fn open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers, returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Lets `pidfd` be waited for: it becomes readable when its process ends. Needs a runtime.
///
/// # Errors
/// Epoll does not take it.
pub fn watch(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor stays open and the same for as long as it lives, which the AsyncFd does not outlive.
    unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }.map_err(io::Error::from)
}

/// Sends a signal to the process, never to another that took its number.
///
/// # Errors
/// It is gone (`ESRCH`) or not ours to signal.
pub fn signal(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    // SAFETY: takes numbers and a null pointer, which asks for the defaults.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_fd().as_raw_fd(),
            signal,
            std::ptr::null::<libc::c_void>(),
            0,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Collects a child that has ended; `None` while it runs.
///
/// # Errors
/// `ECHILD`: it is no child of ours, or was collected before.
pub fn reap(pidfd: &OwnedFd) -> io::Result<Option<Exit>> {
    let status = waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG)?;
    Ok(match status {
        WaitStatus::Exited(_, code) => Some(Exit::Code(code)),
        WaitStatus::Signaled(_, signal, _) => Some(Exit::Signal(signal as i32)),
        WaitStatus::Stopped(..)
        | WaitStatus::PtraceEvent(..)
        | WaitStatus::PtraceSyscall(_)
        | WaitStatus::Continued(_)
        | WaitStatus::StillAlive => None,
    })
}

/// `struct pidfd_info` of linux/pidfd.h, version 1 with the exit code.
#[repr(C)]
#[derive(Default)]
struct Info {
    mask: u64,
    cgroup: u64,
    pid: u32,
    tgid: u32,
    ppid: u32,
    ids: [u32; 8],
    exit_code: i32,
    reserved: [u32; 2],
}

const PIDFD_INFO_EXIT: u64 = 1 << 3;

/// How a process that is no child of ours ended (`PIDFD_GET_INFO`, kernel 6.15); [`Exit::Unknown`] where the kernel does not keep it.
pub fn exit_of_stranger(pidfd: impl AsFd) -> Exit {
    nix::ioctl_readwrite!(get_info, 0xFF, 11, Info);
    let mut info = Info { mask: PIDFD_INFO_EXIT, ..Info::default() };
    // SAFETY: the request number carries the size of the structure, and the kernel writes no more.
    let asked = unsafe { get_info(pidfd.as_fd().as_raw_fd(), &raw mut info) };
    if asked.is_err() || info.mask & PIDFD_INFO_EXIT == 0 {
        return Exit::Unknown;
    }
    match info.exit_code & 0x7f {
        0 => Exit::Code(info.exit_code >> 8 & 0xff),
        signal => Exit::Signal(signal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_is_told_to_the_parent_and_to_a_stranger() {
        let mut child = std::process::Command::new("/bin/sh").args(["-c", "exit 7"]).spawn().expect("a shell");
        let pidfd = open(child.id()).expect("it is ours and not collected");
        let exit = loop {
            if let Some(exit) = reap(&pidfd).expect("our child") {
                break exit;
            }
            std::thread::yield_now();
        };
        assert_eq!(exit, Exit::Code(7));
        assert!(reap(&pidfd).is_err(), "collected once");
        assert!(matches!(exit_of_stranger(&pidfd), Exit::Code(7) | Exit::Unknown));
        assert!(child.wait().is_err(), "collected here");
        assert_eq!(signal(&pidfd, 0).expect_err("gone").raw_os_error(), Some(libc::ESRCH));
    }
}
