//! What the processes use: read often while somebody looks, seldom otherwise.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Done, Platform, Supervisor, Usage, clock};
use crate::process::error::Error;
use crate::process::handle::Reply;
use crate::process::machine::Input;
use crate::process::view::{Figures, Reason, What};

/// While somebody looks.
const WATCHED: Duration = Duration::from_secs(2);
/// While nobody does.
const IDLE: Duration = Duration::from_secs(30);
/// While a process has `max_memory_restart`.
const LIMITED: Duration = Duration::from_secs(1);
/// Figures that are not older are not read again for somebody who asks.
const FRESH: Duration = Duration::from_secs(1);

/// When figures were read, and who waits for them.
#[derive(Default)]
pub(super) struct Sampling {
    last: Option<Instant>,
    under_way: bool,
    waiting: Vec<Reply<()>>,
    soon: bool,
}

impl<P: Platform> Supervisor<P> {
    pub(super) fn sampling_deadline(&self) -> Option<Instant> {
        if self.sampling.under_way || self.instances.values().all(|instance| instance.pid.is_none()) {
            return None;
        }
        let Some(last) = self.sampling.last else { return Some(clock()) };
        Some(last + self.interval())
    }

    fn interval(&self) -> Duration {
        if self.sampling.soon {
            return FRESH;
        }
        let has_limit = self.processes.values().any(|process| process.spec.definition.max_memory_restart.is_some());
        if has_limit {
            LIMITED
        } else if self.watchers.count.load(Ordering::Relaxed) > 0 {
            WATCHED
        } else {
            IDLE
        }
    }

    /// Somebody began to look.
    pub(super) fn sample_soon(&mut self) {
        self.sampling.soon = true;
    }

    /// Reads the figures for somebody who waits, unless they are fresh.
    pub(super) fn sample_for(&mut self, reply: Reply<()>, now: Instant) {
        let is_fresh = self.sampling.last.is_some_and(|last| now.saturating_duration_since(last) < FRESH);
        if is_fresh && !self.sampling.under_way {
            return self.answer(reply, Ok(()));
        }
        self.sampling.waiting.push(reply);
        if !self.sampling.under_way {
            self.sample(now);
        }
    }

    pub(super) fn sample(&mut self, now: Instant) {
        self.sampling.under_way = true;
        self.sampling.soon = false;
        let running = self.instances.values().filter_map(|instance| Some((instance, instance.pid?)));
        let (keys, places): (Vec<_>, Vec<_>) =
            running.map(|(instance, pid)| ((instance.id, instance.generation), (instance.place(), pid))).unzip();
        let platform = std::sync::Arc::clone(&self.platform);
        self.pending.push(Box::pin(async move {
            let usages = platform.usage(places).await;
            let usages = keys.into_iter().zip(usages).map(|((id, generation), usage)| (id, generation, usage));
            Done::Sampled(usages.collect(), now)
        }));
    }

    pub(super) fn on_sampled(&mut self, usages: Vec<(u32, u64, Option<Usage>)>, at: Instant, now: Instant) {
        self.sampling.under_way = false;
        self.sampling.last = Some(now);
        for (id, generation, usage) in usages {
            if let (true, Some(usage)) = (self.is_current(id, generation), usage) {
                self.take_usage(id, usage, at, now);
            }
        }
        for reply in std::mem::take(&mut self.sampling.waiting) {
            self.answer::<()>(reply, Ok::<(), Error>(()));
        }
    }

    fn take_usage(&mut self, id: u32, usage: Usage, at: Instant, now: Instant) {
        let Some(instance) = self.instances.get_mut(&id).filter(|instance| instance.pid.is_some()) else { return };
        let (then, before) = instance.sampled.unwrap_or((at, usage.cpu_micros));
        let elapsed = at.saturating_duration_since(then).as_secs_f64();
        let used = usage.cpu_micros.saturating_sub(before) as f64 / 1e6;
        let cpu_percent = if elapsed > 0.01 { used / elapsed * 100.0 } else { instance.figures.cpu_percent };
        // A tenth of a percent: what differs less is no change for anybody.
        let figures = Figures { cpu_percent: (cpu_percent * 10.0).round() / 10.0, memory_bytes: usage.memory_bytes };
        instance.sampled = Some((at, usage.cpu_micros));
        if instance.figures != figures {
            instance.figures = figures;
            self.touched.insert(id);
        }
        self.check_memory(id, usage.memory_bytes, now);
    }

    fn check_memory(&mut self, id: u32, bytes: u64, now: Instant) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        let Some(process) = self.processes.get(&instance.process) else { return };
        let Some(limit) = process.spec.definition.max_memory_restart.filter(|limit| bytes > limit.0) else { return };
        let why = format!("it used {bytes} bytes of memory, more than max_memory_restart = {}", limit.0);
        tracing::warn!(process = %instance.name, why, "a process is restarted");
        instance.error = Some(why.into());
        self.announce(id, What::MemoryLimit);
        self.feed(id, Input::Unfit(Reason::Memory), now);
    }
}
