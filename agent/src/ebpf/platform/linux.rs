//! The real host: pinned maps, tcx links that live in their pins, clsact filters at a place of their own.
//!
//! Invariants: a hook is changed only after it was seen, so no program runs twice; a running program that already is
//! the wanted one is never loaded again; neither a qdisc nor anything of somebody else's is removed.

use std::io;
use std::mem;
use std::path::Path;
use std::sync::Arc;

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact};
use aya::programs::{LinkOrder, ProgramInfo, SchedClassifier, TcAttachType};
use weft_ebpf_common::LAYOUT;

use super::{Hooks, MapContents, Platform, PlatformError, ReadCounters, Slot, Slots};
use crate::ebpf::Settings;
use crate::ebpf::loader::{LoadError, Object, program_name};
use crate::ebpf::logs;
use crate::ebpf::maps::{CounterMap, Maps};
use crate::ebpf::pins::{self, HookPin, Pins};
use crate::ebpf::plan::Step;
use crate::ebpf::spec::Sizes;
use crate::ebpf::status::Hook;
use crate::foundation::task::Task;
use crate::model::Link;
use crate::sys::bpf::{self, Side};
use crate::sys::tc::{self, Filter};

/// The place of our filters; another filter here is somebody else's, and stays.
const PRIORITY: u16 = 50;
const HANDLE: TcHandle = TcHandle::new(0, 1);

/// The host.
#[derive(Debug)]
pub struct Linux {
    pins: Pins,
    object: Object,
    sizes: Sizes,
    open: Option<Open>,
    runtime: tokio::runtime::Handle,
}

/// The maps, once they exist.
#[derive(Debug)]
struct Open {
    maps: Maps,
    counters: Arc<CounterMap>,
    /// `None` where the log records cannot be read; the counting does not need them.
    logs: Option<Task>,
}

impl Linux {
    /// Takes nothing from the host yet. Needs a tokio runtime.
    ///
    /// # Errors
    /// The configured object is not readable.
    pub fn new(settings: &Settings) -> Result<Self, LoadError> {
        Ok(Self {
            pins: Pins::new(&settings.pin_root, &settings.instance),
            object: Object::open(settings.config.object.as_deref(), settings.l2_length)?,
            sizes: Sizes::for_peers(settings.config.max_peers),
            open: None,
            runtime: tokio::runtime::Handle::current(),
        })
    }

    fn open(&mut self) -> Result<&mut Open, PlatformError> {
        match self.open.take() {
            Some(open) => Ok(self.open.insert(open)),
            None => self.reopen(),
        }
    }

    /// Opens what is pinned now, which another program may have replaced.
    fn reopen(&mut self) -> Result<&mut Open, PlatformError> {
        let _in_runtime = self.runtime.enter();
        let logs = self.open.take().and_then(|open| open.logs).or_else(|| logs::follow(&self.pins));
        let maps = Maps::open(&self.pins)?;
        let counters = Arc::new(CounterMap::open(&self.pins)?);
        Ok(self.open.insert(Open { maps, counters, logs }))
    }

    fn slots(&self, link: &Link, side: Side, found: &[HookPin]) -> Result<(Slots, bool), PlatformError> {
        let failed = |source: io::Error| match source.raw_os_error() {
            Some(libc::ENOSYS) => PlatformError::Load(LoadError::NoBpf),
            Some(_) | None => PlatformError::Observe { link: link.name.to_string(), source },
        };
        let running = bpf::tcx_programs(link.index, side).map_err(failed)?;
        let filters = tc::filters(link.index, side).map_err(failed)?;
        let ours: Vec<&HookPin> = found.iter().filter(|pin| pin.side == side).collect();
        let mut slots = Slots { clsact: self.filter_without_pin(&filters, side), ..Slots::default() };
        for pin in ours {
            match pin.hook {
                Hook::Tcx => {
                    let (slot, behind) = self.tcx_slot(pin, link, running.as_deref().unwrap_or_default());
                    slots.tcx = worse(slots.tcx, slot);
                    slots.behind |= behind;
                }
                Hook::Clsact => slots.clsact = self.clsact_slot(pin, link, &filters, slots.clsact),
            }
        }
        Ok((slots, running.is_some()))
    }

    /// What a pinned tcx link does, and whether another program runs before it.
    fn tcx_slot(&self, pin: &HookPin, link: &Link, running: &[u32]) -> (Slot, bool) {
        let info = bpf::tcx_link(&self.pins.hook(pin)).ok();
        let Some(info) = info.filter(|info| info.ifindex == link.index) else { return (Slot::Stale, false) };
        let Some(place) = running.iter().position(|id| *id == info.program_id) else { return (Slot::Stale, false) };
        let slot = if pin.program == self.object.id() { Slot::Current } else { Slot::Outdated };
        (slot, place > 0)
    }

    /// A filter at our place counts as ours by its name even if a crash lost its pin.
    fn filter_without_pin(&self, filters: &[Filter], side: Side) -> Slot {
        match at_our_place(filters) {
            None => Slot::Empty,
            Some(filter) if is_ours(filter, side) => Slot::Outdated,
            Some(_) => Slot::Foreign,
        }
    }

    fn clsact_slot(&self, pin: &HookPin, link: &Link, filters: &[Filter], without_pin: Slot) -> Slot {
        if pin.ifindex == link.index && self.runs(pin, filters) {
            return if pin.program == self.object.id() { Slot::Current } else { Slot::Outdated };
        }
        match without_pin {
            Slot::Empty | Slot::Stale => Slot::Stale,
            Slot::Current | Slot::Outdated | Slot::Foreign => without_pin,
        }
    }

    /// Whether the pinned program is the one at our place.
    fn runs(&self, pin: &HookPin, filters: &[Filter]) -> bool {
        let pinned = ProgramInfo::from_pin(self.pins.hook(pin)).ok().map(|info| info.id());
        at_our_place(filters).is_some_and(|filter| filter.program_id.is_some() && filter.program_id == pinned)
    }

    fn attach(&self, hook: Hook, side: Side, link: &Link) -> Result<(), PlatformError> {
        let mut ebpf = self.object.load(&self.pins, self.sizes)?;
        let program = self.object.program(&mut ebpf, side)?;
        let attached = match hook {
            Hook::Tcx => self.attach_tcx(program, side, link),
            Hook::Clsact => self.attach_clsact(program, side, link),
        };
        attached.map_err(|source| PlatformError::Attach { link: link.name.to_string(), hook, source })
    }

    fn attach_tcx(&self, program: &mut SchedClassifier, side: Side, link: &Link) -> Result<(), BoxedError> {
        let wanted = self.pin(Hook::Tcx, side, 0);
        let pinned = self.pins.hooks(LAYOUT)?.into_iter().find(|pin| pin.hook == Hook::Tcx && pin.side == side);
        if let Some(pinned) = pinned {
            // The link keeps its place and its pin: the program changes between two packets.
            let path = self.pins.hook(&pinned);
            let existing = SchedClassifierLink::try_from(FdLink::from(PinnedLink::from_pin(&path)?))?;
            let id = program.attach_to_link(existing)?;
            drop(FdLink::try_from(program.take_link(id)?)?);
            return Ok(std::fs::rename(path, self.pins.hook(&wanted))?);
        }
        let options = TcAttachOptions::TcxOrder(LinkOrder::first());
        let id = program.attach_with_options(link.name.as_str(), attach_type(side), options)?;
        let attached = FdLink::try_from(program.take_link(id)?)?;
        drop(attached.pin(self.pins.hook(&wanted))?);
        Ok(())
    }

    fn attach_clsact(&self, program: &mut SchedClassifier, side: Side, link: &Link) -> Result<(), BoxedError> {
        let name = link.name.as_str();
        let outdated = at_our_place(&tc::filters(link.index, side)?).is_some();
        let id = if outdated {
            let existing = SchedClassifierLink::attached(name, attach_type(side), PRIORITY, HANDLE, None)?;
            program.attach_to_link(existing)?
        } else {
            // Present already, perhaps somebody's: it only matters that there is one, and attaching tells.
            drop(qdisc_add_clsact(name));
            let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
            program.attach_with_options(name, attach_type(side), TcAttachOptions::Netlink(options))?
        };
        // A link of this kind detaches when it is dropped, and the filter is to stay.
        mem::forget(program.take_link(id)?);
        let wanted = self.pin(Hook::Clsact, side, link.index);
        self.unpin(Hook::Clsact, side)?;
        program.pin(self.pins.hook(&wanted))?;
        Ok(())
    }

    fn pin(&self, hook: Hook, side: Side, ifindex: u32) -> HookPin {
        HookPin { hook, side, program: self.object.id(), ifindex }
    }

    fn unpin(&self, hook: Hook, side: Side) -> Result<(), pins::PinError> {
        for pin in self.pins.hooks(LAYOUT)? {
            if pin.hook == hook && pin.side == side {
                pins::remove(&self.pins.hook(&pin))?;
            }
        }
        Ok(())
    }

    fn detach(&self, hook: Hook, side: Side, link: &Link) -> Result<(), PlatformError> {
        match hook {
            Hook::Tcx => {}
            Hook::Clsact => remove_named_filter(link.index, side)?,
        }
        for pin in self.pins.hooks(LAYOUT)? {
            if pin.hook == hook && pin.side == side {
                take_off(&self.pins, LAYOUT, &pin)?;
            }
        }
        Ok(self.unpin(hook, side)?)
    }
}

type BoxedError = Box<dyn std::error::Error + Send + Sync>;

impl Platform for Linux {
    fn observe_maps(&mut self) -> Result<Option<MapContents>, PlatformError> {
        if !self.pins.has_maps() {
            self.open = None;
            return Ok(None);
        }
        let maps = &self.reopen()?.maps;
        let indexes = maps.indexes()?;
        Ok(Some(MapContents {
            sizes: maps.sizes(),
            next_index: indexes.values().max().map_or(1, |highest| highest + 1),
            indexes,
            addresses: maps.addresses()?,
            prefixes: maps.prefixes()?,
        }))
    }

    fn observe_hooks(&mut self, link: &Link) -> Result<Hooks, PlatformError> {
        let found = self.pins.hooks(LAYOUT)?;
        let (ingress, tcx_supported) = self.slots(link, Side::Ingress, &found)?;
        let (egress, _same) = self.slots(link, Side::Egress, &found)?;
        let old_layouts = self.pins.layouts()?.into_iter().filter(|layout| *layout != LAYOUT).collect();
        Ok(Hooks { tcx_supported, ingress, egress, old_layouts })
    }

    fn apply(&mut self, step: &Step, link: &Link) -> Result<(), PlatformError> {
        match step {
            Step::CreateMaps(sizes) => {
                self.pins.create()?;
                drop(self.object.load(&self.pins, *sizes)?);
                self.open()?;
            }
            Step::AssignIndex { key, index } => self.open()?.maps.assign_index(key, *index)?,
            Step::SetAddress { address, index } => self.open()?.maps.set_address(*address, *index)?,
            Step::SetPrefix { prefix, index } => self.open()?.maps.set_prefix(*prefix, *index)?,
            Step::RemoveAddress(address) => self.open()?.maps.remove_address(*address)?,
            Step::RemovePrefix(prefix) => self.open()?.maps.remove_prefix(*prefix)?,
            Step::Detach { hook, side } => self.detach(*hook, *side, link)?,
            Step::Attach { hook, side } | Step::Replace { hook, side } => self.attach(*hook, *side, link)?,
            Step::RemoveLayout(layout) => {
                remove_layout(&self.pins, *layout)?;
            }
        }
        Ok(())
    }

    fn counters(&self) -> Option<Arc<dyn ReadCounters>> {
        let open = self.open.as_ref()?;
        Some(Arc::<CounterMap>::clone(&open.counters))
    }
}

/// What was taken away with a layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::ebpf) struct RemovedLayout {
    pub(in crate::ebpf) hooks: usize,
    pub(in crate::ebpf) pins: usize,
}

/// Detaches and unpins everything of one layout.
pub(in crate::ebpf) fn remove_layout(pins: &Pins, layout: u32) -> Result<RemovedLayout, PlatformError> {
    let hooks = pins.hooks(layout)?;
    for pin in &hooks {
        take_off(pins, layout, pin)?;
    }
    Ok(RemovedLayout { hooks: hooks.len(), pins: pins.remove_layout(layout)? - hooks.len() })
}

/// Takes what a pin keeps attached off its hook, wherever that is.
fn take_off(pins: &Pins, layout: u32, pin: &HookPin) -> Result<(), PlatformError> {
    let path = pins.layout_directory(layout).join(pin.file_name());
    match pin.hook {
        Hook::Tcx => match bpf::detach_link(&path) {
            // The network link went away before.
            Err(source) if source.raw_os_error() != Some(libc::ENOLINK) => {
                Err(PlatformError::Detach { what: path.display().to_string(), source })
            }
            Ok(()) | Err(_) => Ok(()),
        },
        Hook::Clsact => remove_pinned_filter(&path, pin),
    }
}

/// Removes the filter whose program is the pinned one, if it still stands on the link it was put on.
fn remove_pinned_filter(path: &Path, pin: &HookPin) -> Result<(), PlatformError> {
    let pinned = ProgramInfo::from_pin(path).ok().map(|info| info.id());
    remove_filter_if(pin.ifindex, pin.side, |filter| filter.program_id.is_some() && filter.program_id == pinned)
}

/// Removes the filter at our place that carries our name.
fn remove_named_filter(ifindex: u32, side: Side) -> Result<(), PlatformError> {
    remove_filter_if(ifindex, side, |filter| is_ours(filter, side))
}

fn remove_filter_if(ifindex: u32, side: Side, ours: impl Fn(&Filter) -> bool) -> Result<(), PlatformError> {
    let failed =
        |source| PlatformError::Detach { what: format!("the filter on the link with index {ifindex}"), source };
    let filters = tc::filters(ifindex, side).map_err(failed)?;
    match at_our_place(&filters) {
        Some(filter) if ours(filter) => tc::remove(ifindex, side, filter).map_err(failed),
        Some(_) | None => Ok(()),
    }
}

/// What stands where our filter belongs. Filters of one priority are of one kind, so any other at it is in the way.
fn at_our_place(filters: &[Filter]) -> Option<&Filter> {
    let exactly = |filter: &&Filter| filter.handle == u32::from(HANDLE);
    let mut same_priority = filters.iter().filter(|filter| filter.priority == PRIORITY);
    same_priority.clone().find(exactly).or_else(|| same_priority.next())
}

fn is_ours(filter: &Filter, side: Side) -> bool {
    filter.handle == u32::from(HANDLE) && filter.program_id.is_some() && filter.name == program_name(side)
}

/// Two pins of one kind are the rest of a crash between attaching and unpinning: the worse decides, and both go.
fn worse(one: Slot, other: Slot) -> Slot {
    if one == Slot::Empty {
        other
    } else if one == other {
        one
    } else {
        Slot::Stale
    }
}

fn attach_type(side: Side) -> TcAttachType {
    match side {
        Side::Ingress => TcAttachType::Ingress,
        Side::Egress => TcAttachType::Egress,
    }
}
