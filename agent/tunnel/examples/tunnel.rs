//! A device in the foreground: `tunnel INTERFACE`, configured with `wg set INTERFACE …`, ended by SIGINT or SIGTERM.
//!
//! It does what other userspace implementations' own programs do, so tests and benchmarks can put it in their place.

use std::error::Error;
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use weft_tunnel::{Device, Options};

fn main() -> Result<(), Box<dyn Error>> {
    let name = std::env::args().nth(1).ok_or("usage: tunnel INTERFACE")?;
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    // Before the device starts its threads, which inherit the mask.
    signals.thread_block()?;
    let ended = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)?;
    let device = Device::create(Options::new(name))?;
    let mut events =
        [PollFd::new(ended.as_fd(), PollFlags::POLLIN), PollFd::new(device.failed_event(), PollFlags::POLLIN)];
    while poll(&mut events, PollTimeout::NONE) == Err(nix::errno::Errno::EINTR) {}
    match device.failure() {
        Some(failure) => Err(failure.into()),
        None => Ok(()),
    }
}
