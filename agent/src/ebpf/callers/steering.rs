//! What the gateway wants recorded and steered, kept so that it can be given to the kernel again.
//!
//! Invariant: an address is in the kernel for as long as any guard for it lives, and a steered one has one listener.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, PoisonError};

use weft_ebpf_common::callers::MAX_LISTENERS;

use super::kernel::{Kernel, KernelError};
use super::{Shared, Watched};

/// Why connections are not steered.
#[derive(Debug, thiserror::Error)]
pub enum SteerError {
    #[error("this host cannot steer connections: {0}")]
    Unavailable(String),
    #[error("failed to keep the listener")]
    Listener(#[source] io::Error),
    #[error("{0} is steered already")]
    Taken(SocketAddr),
    #[error("{MAX_LISTENERS} addresses are steered already")]
    Full,
    #[error("failed to steer {address}")]
    Kernel {
        address: SocketAddr,
        #[source]
        source: KernelError,
    },
}

/// Everything that was asked for and still holds.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// How many want each address recorded.
    watched: HashMap<SocketAddr, usize>,
    steered: HashMap<SocketAddr, Listener>,
    /// Where connections of our own prove that callers are recorded; recorded as long as it is here.
    pub(super) proof: Option<SocketAddr>,
}

#[derive(Debug)]
struct Listener {
    index: u32,
    socket: OwnedFd,
}

impl Wanted {
    pub(super) fn watch(&mut self, address: SocketAddr) {
        *self.watched.entry(address).or_default() += 1;
    }

    pub(super) fn is_watched(&self, address: SocketAddr) -> bool {
        self.watched.contains_key(&address)
    }

    /// `true`: nobody wants it any more.
    pub(super) fn unwatch(&mut self, address: SocketAddr) -> bool {
        let Some(count) = self.watched.get_mut(&address) else { return false };
        *count -= 1;
        let last = *count == 0;
        if last {
            self.watched.remove(&address);
        }
        last
    }

    /// Gives everything to a kernel that knows nothing of it.
    pub(super) fn apply(&mut self, kernel: &Kernel, netns: u64) -> Result<(), KernelError> {
        for address in self.watched.keys().chain(&self.proof) {
            kernel.watch(netns, *address)?;
        }
        for (address, listener) in &self.steered {
            kernel.steer(listener.index, *address, listener.socket.as_fd())?;
        }
        Ok(())
    }

    /// A place for one more listener, `preferred` if it is free.
    fn free_index(&self, preferred: Option<u32>) -> Option<u32> {
        let is_free = |index: &u32| self.steered.values().all(|listener| listener.index != *index);
        preferred.into_iter().chain(0..MAX_LISTENERS).find(is_free)
    }
}

/// Connections for an address go to its listener while this lives.
#[derive(Debug)]
pub struct Steered {
    shared: Arc<Shared>,
    address: SocketAddr,
    _watched: Watched,
}

pub(super) fn steer(
    shared: &Arc<Shared>,
    address: SocketAddr,
    socket: OwnedFd,
    watched: Watched,
) -> Result<Steered, SteerError> {
    let kernel = shared.kernel.load();
    let unavailable = || {
        let status = shared.status.borrow();
        SteerError::Unavailable(status.steering_error.clone().unwrap_or_default())
    };
    let kernel = kernel.as_ref().filter(|kernel| kernel.no_steering.is_none()).ok_or_else(unavailable)?;
    let mut wanted = shared.wanted.lock().unwrap_or_else(PoisonError::into_inner);
    if wanted.steered.contains_key(&address) {
        return Err(SteerError::Taken(address));
    }
    let index = wanted.free_index(kernel.left_place(address)).ok_or(SteerError::Full)?;
    kernel.steer(index, address, socket.as_fd()).map_err(|source| SteerError::Kernel { address, source })?;
    wanted.steered.insert(address, Listener { index, socket });
    Ok(Steered { shared: Arc::clone(shared), address, _watched: watched })
}

impl Drop for Steered {
    fn drop(&mut self) {
        let removed = {
            let mut wanted = self.shared.wanted.lock().unwrap_or_else(PoisonError::into_inner);
            wanted.steered.remove(&self.address)
        };
        if let (Some(listener), Some(kernel)) = (removed, &*self.shared.kernel.load()) {
            kernel.unsteer(listener.index, self.address);
        }
    }
}
