//! What the store counts.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Weak};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use super::disk::Syncs;
use super::error::StoreError;
use super::handle::{Handle, Shared};
use super::statement::{Consistency, Outcome, Rows};
use super::status::Role;
use crate::foundation::metrics::Metrics as Registry;

/// Upper bounds in seconds: a commit takes one to some syncs of the disk.
const BOUNDS: [f64; 10] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum End {
    Done,
    Refused,
    Failed,
}

impl EncodeLabelValue for End {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let text = match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Failed => "failed",
        };
        EncodeLabelValue::encode(&text, encoder)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    result: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Local,
    Linearizable,
}

impl EncodeLabelValue for Kind {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let text = match self {
            Self::Local => "local",
            Self::Linearizable => "linearizable",
        };
        EncodeLabelValue::encode(&text, encoder)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueryLabels {
    consistency: Kind,
    result: End,
}

/// The counters and, at a scrape, the figures.
#[derive(Debug, Clone)]
pub(super) struct Metrics {
    writes: Family<Labels, Counter>,
    queries: Family<QueryLabels, Counter>,
    seconds: Histogram,
    leader: Gauge,
    members: Gauge,
    applied: Gauge<u64, AtomicU64>,
    log_bytes: Gauge<u64, AtomicU64>,
    database_bytes: Gauge<u64, AtomicU64>,
    behind: Gauge<u64, AtomicU64>,
    disk_free: Gauge<u64, AtomicU64>,
    disk_needed: Gauge<u64, AtomicU64>,
    pub(super) syncs: Syncs,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            writes: Family::default(),
            queries: Family::default(),
            seconds: Histogram::new(BOUNDS),
            leader: Gauge::default(),
            members: Gauge::default(),
            applied: Gauge::default(),
            log_bytes: Gauge::default(),
            database_bytes: Gauge::default(),
            behind: Gauge::default(),
            disk_free: Gauge::default(),
            disk_needed: Gauge::default(),
            syncs: Syncs::default(),
        }
    }
}

fn end<T>(result: &Result<T, StoreError>) -> End {
    match result {
        Ok(_) => End::Done,
        Err(StoreError::Refused(_)) => End::Refused,
        Err(_) => End::Failed,
    }
}

impl Metrics {
    pub(super) fn register(&self, registry: &Registry, shared: &Arc<Shared>) {
        registry.register(|registry| {
            registry.register("store_writes", "Transactions proposed to the store, by result", self.writes.clone());
            registry.register("store_queries", "Queries of the store, by consistency and result", self.queries.clone());
            registry.register("store_write_seconds", "From proposal to answer of a transaction", self.seconds.clone());
            registry.register("store_leader", "1 if this member leads the store", self.leader.clone());
            registry.register("store_members", "Members of the store, with and without a vote", self.members.clone());
            registry.register("store_applied_index", "Log entry that is carried out here", self.applied.clone());
            registry.register("store_log_bytes", "Bytes of log entries that are not purged", self.log_bytes.clone());
            registry.register("store_database_bytes", "Bytes of the database file", self.database_bytes.clone());
            let behind = "Log entries that the slowest member lacks, where it leads; else those not carried out here";
            registry.register("store_behind_entries", behind, self.behind.clone());
            let (free, needed) = ("Free bytes of the store's disk", "Free bytes below which a leader takes no writes");
            registry.register("store_disk_free_bytes", free, self.disk_free.clone());
            registry.register("store_disk_needed_bytes", needed, self.disk_needed.clone());
            let syncs = "Writing and syncing one batch of the log";
            registry.register("store_log_sync_seconds", syncs, self.syncs.seconds.clone());
        });
        let (metrics, shared) = (self.clone(), Arc::downgrade(shared));
        registry.before_scrape(Box::new(move || {
            metrics.refresh(&shared);
            Box::pin(async {})
        }));
    }

    fn refresh(&self, shared: &Weak<Shared>) {
        let Some(shared) = shared.upgrade() else { return };
        let status = shared.status.borrow().clone();
        self.leader.set(i64::from(status.role == Role::Leader));
        self.members.set(i64::try_from(status.members.len()).unwrap_or(i64::MAX));
        let figures = Handle::figures_of(&shared);
        self.applied.set(figures.applied);
        self.log_bytes.set(figures.log_bytes);
        self.database_bytes.set(figures.database_bytes);
        self.behind.set(figures.behind);
        self.disk_free.set(figures.disk_free_bytes);
        self.disk_needed.set(figures.disk_needed_bytes);
    }

    pub(super) fn write(&self, took: Duration, result: &Result<Vec<Outcome>, StoreError>) {
        self.writes.get_or_create(&Labels { result: end(result) }).inc();
        self.seconds.observe(took.as_secs_f64());
    }

    pub(super) fn query(&self, consistency: Consistency, result: &Result<Rows, StoreError>) {
        let consistency = match consistency {
            Consistency::Local => Kind::Local,
            Consistency::Linearizable => Kind::Linearizable,
        };
        self.queries.get_or_create(&QueryLabels { consistency, result: end(result) }).inc();
    }
}
