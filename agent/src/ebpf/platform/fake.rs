//! A host in memory, with the kernel's rules that matter: a hook runs every program put on it, a link that is created
//! anew has none, maps outlive the agent.
//!
//! Clones share the host, as restarted agents do.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use weft_ebpf_common::PeerCounters;

use super::{Hooks, MapContents, Platform, PlatformError, ReadCounters, Slot, Slots};
use crate::ebpf::maps::MapAccessError;
use crate::ebpf::pins::{PinError, ProgramId};
use crate::ebpf::plan::Step;
use crate::ebpf::status::Hook;
use crate::model::Link;
use crate::sys::bpf::Side;

/// The host.
#[derive(Debug, Clone)]
pub struct Fake {
    /// The program this agent would load.
    program: ProgramId,
    host: Arc<Mutex<Host>>,
}

/// A program on a hook: which one, on which link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Running {
    program: ProgramId,
    ifindex: u32,
}

#[derive(Debug, Default)]
struct Host {
    without_bpffs: bool,
    without_tcx: bool,
    maps: Option<MapContents>,
    programs: BTreeMap<(&'static str, Side), Vec<Running>>,
    counters: BTreeMap<u32, PeerCounters>,
    writes: usize,
}

impl Fake {
    /// A host with everything.
    pub fn new() -> Self {
        Self { program: ProgramId(1), host: Arc::default() }
    }

    /// The same host seen by an agent with another program in it.
    pub fn with_program(&self, program: u64) -> Self {
        Self { program: ProgramId(program), host: Arc::clone(&self.host) }
    }

    /// Takes tcx away, as before 6.6.
    pub fn remove_tcx(&self) {
        self.host().without_tcx = true;
    }

    /// Unmounts the BPF file system or mounts it again.
    pub fn set_bpffs(&self, mounted: bool) {
        self.host().without_bpffs = !mounted;
    }

    /// What the maps hold.
    pub fn maps(&self) -> Option<MapContents> {
        self.host().maps.clone()
    }

    /// How many steps were applied since the host was made.
    pub fn writes(&self) -> usize {
        self.host().writes
    }

    /// How many programs run on one side of a link, on any hook.
    pub fn running(&self, side: Side, ifindex: u32) -> usize {
        let host = self.host();
        let on_side = host.programs.iter().filter(|((_, at), _)| *at == side);
        on_side.flat_map(|(_, running)| running).filter(|running| running.ifindex == ifindex).count()
    }

    /// Counts for an index, as the program would.
    pub fn count(&self, index: u32, counters: PeerCounters) {
        self.host().counters.insert(index, counters);
    }

    fn host(&self) -> MutexGuard<'_, Host> {
        self.host.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, host: &Host, hook: Hook, side: Side, ifindex: u32) -> Slot {
        match host.programs.get(&(name(hook), side)).and_then(|running| running.first()) {
            None => Slot::Empty,
            Some(running) if running.ifindex != ifindex => Slot::Stale,
            Some(running) if running.program != self.program => Slot::Outdated,
            Some(_) => Slot::Current,
        }
    }
}

impl Default for Fake {
    fn default() -> Self {
        Self::new()
    }
}

fn name(hook: Hook) -> &'static str {
    match hook {
        Hook::Tcx => "tcx",
        Hook::Clsact => "clsact",
    }
}

impl Platform for Fake {
    fn observe_maps(&mut self) -> Result<Option<MapContents>, PlatformError> {
        Ok(self.host().maps.clone())
    }

    fn observe_hooks(&mut self, link: &Link) -> Result<Hooks, PlatformError> {
        let host = self.host();
        let slots = |side| Slots {
            tcx: self.slot(&host, Hook::Tcx, side, link.index),
            clsact: self.slot(&host, Hook::Clsact, side, link.index),
            behind: false,
        };
        Ok(Hooks {
            tcx_supported: !host.without_tcx,
            ingress: slots(Side::Ingress),
            egress: slots(Side::Egress),
            old_layouts: Vec::new(),
        })
    }

    fn apply(&mut self, step: &Step, link: &Link) -> Result<(), PlatformError> {
        let mut host = self.host();
        if host.without_bpffs {
            return Err(PinError::NotBpffs("/sys/fs/bpf/weft".into()).into());
        }
        host.writes += 1;
        let running = Running { program: self.program, ifindex: link.index };
        match step {
            Step::CreateMaps(sizes) => host.maps = Some(MapContents::empty(*sizes)),
            Step::AssignIndex { .. }
            | Step::SetAddress { .. }
            | Step::SetPrefix { .. }
            | Step::RemoveAddress(_)
            | Step::RemovePrefix(_) => {
                if let Some(maps) = &mut host.maps {
                    maps.after(step);
                }
            }
            Step::Attach { hook, side } => host.programs.entry((name(*hook), *side)).or_default().push(running),
            Step::Replace { hook, side } => {
                host.programs.insert((name(*hook), *side), vec![running]);
            }
            Step::Detach { hook, side } => {
                host.programs.remove(&(name(*hook), *side));
            }
            Step::RemoveLayout(_) => {}
        }
        Ok(())
    }

    fn counters(&self) -> Option<Arc<dyn ReadCounters>> {
        self.host().maps.as_ref()?;
        Some(Arc::new(self.clone()))
    }
}

impl ReadCounters for Fake {
    fn read(&self, count: u32) -> Result<Vec<PeerCounters>, MapAccessError> {
        let host = self.host();
        Ok((0..count).map(|index| host.counters.get(&index).copied().unwrap_or_default()).collect())
    }
}
