//! The host as the accounting uses it: pinned maps, and programs on the two sides of one link.

pub mod fake;
pub mod linux;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use weft_ebpf_common::PeerCounters;

use super::loader::LoadError;
use super::maps::MapAccessError;
use super::pins::PinError;
use super::plan::Step;
use super::spec::Sizes;
use super::status::Hook;
use crate::model::Link;
use crate::model::key::PublicKey;
use crate::model::ordered::Ordered;

/// What is in the pinned maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapContents {
    pub sizes: Sizes,
    /// Shared with whoever reads the counters.
    pub indexes: Ordered<PublicKey, u32>,
    pub addresses: BTreeMap<IpAddr, u32>,
    pub prefixes: BTreeMap<IpNet, u32>,
    /// Above every index that was given out.
    pub next_index: u32,
}

impl MapContents {
    /// Maps just made.
    pub fn empty(sizes: Sizes) -> Self {
        let (addresses, prefixes) = (BTreeMap::new(), BTreeMap::new());
        Self { sizes, indexes: Ordered::new(), addresses, prefixes, next_index: 1 }
    }

    /// What the maps hold after a step.
    pub fn after(&mut self, step: &Step) {
        match step {
            Step::CreateMaps(sizes) => *self = Self::empty(*sizes),
            Step::AssignIndex { key, index } => {
                self.indexes.insert(*key, *index);
                self.next_index = self.next_index.max(*index + 1);
            }
            Step::SetAddress { address, index } => {
                self.addresses.insert(*address, *index);
            }
            Step::SetPrefix { prefix, index } => {
                self.prefixes.insert(*prefix, *index);
            }
            Step::RemoveAddress(address) => {
                self.addresses.remove(address);
            }
            Step::RemovePrefix(prefix) => {
                self.prefixes.remove(prefix);
            }
            Step::Detach { .. } | Step::Attach { .. } | Step::Replace { .. } | Step::RemoveLayout(_) => {}
        }
    }
}

/// Our program's place on one hook of one side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Slot {
    #[default]
    Empty,
    /// The wanted program runs there.
    Current,
    /// Another program of ours runs there.
    Outdated,
    /// Something of ours is pinned, but has no effect on this link.
    Stale,
    /// Somebody else's filter stands where ours belongs.
    Foreign,
}

/// Both hooks of one side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Slots {
    pub tcx: Slot,
    pub clsact: Slot,
    /// Whether another tcx program runs before ours; what it consumes we do not see.
    pub behind: bool,
}

/// Both sides of the link.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hooks {
    /// Whether the kernel has tcx.
    pub tcx_supported: bool,
    pub ingress: Slots,
    pub egress: Slots,
    /// Pins of other layouts.
    pub old_layouts: Vec<u32>,
}

/// Why the host could not be observed or changed.
#[derive(Debug, thiserror::Error)]
pub enum PlatformError {
    #[error(transparent)]
    Pins(#[from] PinError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Map(#[from] MapAccessError),
    #[error("failed to see what is attached to {link}")]
    Observe {
        link: String,
        #[source]
        source: io::Error,
    },
    #[error("failed to attach the accounting to {link} ({hook}); it needs CAP_BPF and CAP_NET_ADMIN")]
    Attach {
        link: String,
        hook: Hook,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("failed to detach {what}")]
    Detach {
        what: String,
        #[source]
        source: io::Error,
    },
}

/// Reads the counters; lives on when the platform is busy.
pub trait ReadCounters: fmt::Debug + Send + Sync {
    /// The counters of the indexes from 0 up to `count`, summed over the CPUs.
    ///
    /// # Errors
    /// The map may not be read.
    fn read(&self, count: u32) -> Result<Vec<PeerCounters>, MapAccessError>;
}

/// The calls we make. Blocking, some for milliseconds: the reconciler makes them off the runtime's threads.
pub trait Platform: Send + 'static {
    /// What the pinned maps hold; `None` until all of them exist.
    ///
    /// # Errors
    /// They may not be read.
    fn observe_maps(&mut self) -> Result<Option<MapContents>, PlatformError>;

    /// What runs on the link.
    ///
    /// # Errors
    /// The kernel does not tell.
    fn observe_hooks(&mut self, link: &Link) -> Result<Hooks, PlatformError>;

    /// Makes one change; `link` is the one that was observed.
    ///
    /// # Errors
    /// The change was not made.
    fn apply(&mut self, step: &Step, link: &Link) -> Result<(), PlatformError>;

    /// A reader of the counters, once the maps exist.
    fn counters(&self) -> Option<Arc<dyn ReadCounters>>;
}
