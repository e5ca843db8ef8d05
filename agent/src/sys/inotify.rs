//! inotify(7) that the runtime waits for.

#![expect(unsafe_code, reason = "the runtime has no safe way to wait for a descriptor with an interest of its own")]

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use nix::sys::inotify::{InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A new instance, and what is readable when there are events.
///
/// # Errors
/// The user has too many (`EMFILE`), or there are no more descriptors.
pub fn open() -> io::Result<(Inotify, AsyncFd<OwnedFd>)> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    let descriptor = inotify.as_fd().try_clone_to_owned()?;
    // SAFETY: the registration owns the descriptor, so that nobody closes it before.
    let readable =
        unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }.map_err(io::Error::from)?;
    Ok((inotify, readable))
}
