//! `/system`: the figures of this host, sampled in the background, so that a caller never waits for them; and [`host`], read
//! when it is asked for.

pub mod host;
mod machine;
mod platform;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::time::MissedTickBehavior;

use super::MachineId;
use crate::foundation::task::{self, Task};
use machine::{Counters, Reading};

/// Rates are means over this time, and no answer is older.
const INTERVAL: Duration = Duration::from_secs(5);
/// The second sample comes early, so that the first rates do.
const FIRST_INTERVAL: Duration = Duration::from_millis(250);

/// The figures of this host that other interfaces show.
#[derive(Debug, Clone, PartialEq)]
pub struct HostFigures {
    /// Of all processors together, a mean since the sample before.
    pub cpu_percent: f64,
    pub cores: usize,
    pub memory_total_bytes: u64,
    /// What a new program could have without swapping (`MemAvailable`).
    pub memory_available_bytes: u64,
    /// Means over one, five and fifteen minutes (proc(5), `loadavg`).
    pub load: [f64; 3],
    /// Of the host.
    pub uptime_seconds: u64,
    pub sampled_at: SystemTime,
}

/// One sample, as `/system` shows it and as figures.
#[derive(Debug)]
struct Sample {
    json: Bytes,
    figures: Arc<HostFigures>,
}

/// The newest sample, and the task that renews it.
#[derive(Debug)]
pub(super) struct Sampler {
    newest: Arc<ArcSwap<Sample>>,
    _task: Task,
}

impl Sampler {
    /// Takes the first sample at once.
    pub(super) fn start(id: MachineId) -> Self {
        let mut last = (Instant::now(), platform::counters());
        let reading = platform::read();
        let newest = Arc::new(ArcSwap::from_pointee(Sample::new(id, &reading, machine::Rates::default())));
        let shared = Arc::clone(&newest);
        let task = task::spawn("system", async move {
            let mut interval = tokio::time::interval_at(tokio::time::Instant::now() + FIRST_INTERVAL, INTERVAL);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                interval.tick().await;
                let sample = tokio::task::spawn_blocking(|| (platform::counters(), platform::read()));
                // The blocking pool only refuses while the runtime ends.
                let Ok((counters, reading)) = sample.await else { return };
                let now = Instant::now();
                let rates = counters.since(&last.1, now.duration_since(last.0));
                last = (now, counters);
                shared.store(Arc::new(Sample::new(id, &reading, rates)));
            }
        });
        Self { newest, _task: task }
    }

    /// The newest sample as JSON.
    pub(super) fn newest(&self) -> Bytes {
        self.newest.load().json.clone()
    }

    /// The newest sample as figures.
    pub(super) fn figures(&self) -> Arc<HostFigures> {
        Arc::clone(&self.newest.load().figures)
    }
}

impl Sample {
    fn new(id: MachineId, reading: &Reading, rates: machine::Rates) -> Self {
        let figures = machine::figures(reading, rates, SystemTime::now());
        Self { json: encode(id, reading, rates), figures: Arc::new(figures) }
    }
}

fn encode(id: MachineId, reading: &Reading, rates: machine::Rates) -> Bytes {
    let value = machine::report(&id.to_string(), reading, rates);
    serde_json::to_vec(&value).map_or_else(|_never| Bytes::from_static(b"{}"), Bytes::from)
}

impl Counters {
    fn since(&self, before: &Self, elapsed: Duration) -> machine::Rates {
        let seconds = elapsed.as_secs_f64().max(0.001);
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        let total = self.cpu_total.saturating_sub(before.cpu_total).max(1) as f64;
        let busy = self.cpu_busy.saturating_sub(before.cpu_busy) as f64;
        machine::Rates {
            load_percent: busy / total * 100.0,
            rx: rate(self.rx_bytes, before.rx_bytes),
            tx: rate(self.tx_bytes, before.tx_bytes),
        }
    }
}
