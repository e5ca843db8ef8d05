//! The timer thread: keepalives, rekeying and retries of the peers that are awake, and the MTU of the link.
//!
//! With no peer awake it waits for events alone and costs nothing.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::outbound::send_one;
use crate::peer::Peer;
use crate::shared::{Shared, lower};
use crate::tun::MtuWatch;

/// The noise core's clock advances with each tick; its shortest interval is 5 seconds with a third of a second of jitter.
const TICK_MILLISECONDS: u16 = 250;
/// Ticks between two looks at which session indices have ended.
const TICKS_PER_CLEANUP: u32 = 64;

/// Runs until the device stops; an error is the end of the device.
pub(crate) fn run(shared: &Shared, watch: &MtuWatch) -> io::Result<()> {
    let mut awake: Vec<Arc<Peer>> = Vec::new();
    let mut ticks = 0u32;
    while !wait(shared, watch, !awake.is_empty())? {
        awake.append(&mut shared.timers.take());
        awake.retain(|peer| !peer.is_removed() && tick(shared, peer));
        ticks = ticks.wrapping_add(1);
        if ticks.is_multiple_of(TICKS_PER_CLEANUP) || awake.is_empty() {
            shared.forget_ended_sessions();
        }
    }
    Ok(())
}

/// Waits for the next tick or an event; true when the device is to stop.
fn wait(shared: &Shared, watch: &MtuWatch, ticking: bool) -> io::Result<bool> {
    let timeout = if ticking { PollTimeout::from(TICK_MILLISECONDS) } else { PollTimeout::NONE };
    let mut events = [
        PollFd::new(shared.stop.as_fd(), PollFlags::POLLIN),
        PollFd::new(shared.timers.wake.as_fd(), PollFlags::POLLIN),
        PollFd::new(watch.as_fd(), PollFlags::POLLIN),
    ];
    match poll(&mut events, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    let raised = |event: &PollFd<'_>| event.any() == Some(true);
    if raised(&events[0]) {
        return Ok(true);
    }
    if raised(&events[1]) {
        lower(&shared.timers.wake);
    }
    if raised(&events[2]) {
        watch.acknowledge();
        shared.set_mtu(watch.current()?);
    }
    Ok(false)
}

/// Runs the timers of a peer; false when it sleeps.
fn tick(shared: &Shared, peer: &Arc<Peer>) -> bool {
    let mut state = peer.lock();
    let Some(message) = state.tick() else { return false };
    if let (Some(message), Some(endpoint)) = (message, state.endpoint) {
        send_one(shared, peer, &mut state, endpoint, message);
    }
    true
}
