//! What the gateway counts, in `/metrics`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::http::StatusCode;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::Shared;
use crate::foundation::metrics::Metrics;

/// By the first digit of the status.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Counters that many connections add to.
#[derive(Debug, Default)]
pub(super) struct Counts {
    accepted: AtomicU64,
    classification_nanos: AtomicU64,
    answers: [AtomicU64; CLASSES.len()],
    closed: AtomicU64,
    sessions: AtomicU64,
    calls: AtomicU64,
}

impl Counts {
    /// A connection was accepted, and to know its caller took so long.
    pub(super) fn accepted(&self, classification: Duration) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
        let nanos = u64::try_from(classification.as_nanos()).unwrap_or(u64::MAX);
        self.classification_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    pub(super) fn answered(&self, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100).wrapping_sub(1);
        if let Some(count) = self.answers.get(class) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A request that deserved no answer.
    pub(super) fn closed(&self) {
        self.closed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn session_began(&self) {
        self.sessions.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn session_ended(&self) {
        self.sessions.fetch_sub(1, Ordering::Relaxed);
    }

    /// A call within a session.
    pub(super) fn called(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
    }
}

/// Registers the collector.
pub(super) fn register(metrics: &Metrics, shared: &Arc<Shared>) {
    let collector = GatewayCollector { shared: Arc::downgrade(shared) };
    metrics.register(|registry| registry.register_collector(Box::new(collector)));
}

struct GatewayCollector {
    shared: Weak<Shared>,
}

impl std::fmt::Debug for GatewayCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GatewayCollector")
    }
}

impl Collector for GatewayCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(shared) = self.shared.upgrade() else { return Ok(()) };
        let counts = &shared.counts;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut gauge = |name: &str, help: &str, value: u64| {
            let value = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            value.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
        };
        let open = shared.connections.load(Ordering::Relaxed) as u64;
        gauge("gateway_connections", "Connections to the gateway now", open)?;
        gauge("gateway_connections_limit", "Connections the gateway takes", shared.config.max_connections as u64)?;
        gauge("gateway_sessions", "Sessions over WebSocket or raw bytes now", read(&counts.sessions))?;
        let mut counter = |name: &str, help: &str, value: u64| {
            ConstCounter::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)
        };
        counter("gateway_connections_accepted", "Connections accepted", read(&counts.accepted))?;
        counter("gateway_calls", "Calls within sessions", read(&counts.calls))?;
        let closed =
            "Requests whose connection was closed without an answer: of another host, or of an external caller";
        counter("gateway_closed", closed, read(&counts.closed))?;
        let seconds = Duration::from_nanos(read(&counts.classification_nanos)).as_secs_f64();
        let help = "Time spent on who the callers of accepted connections are";
        let encoded = encoder.encode_descriptor("gateway_classification_seconds", help, None, MetricType::Counter)?;
        ConstCounter::new(seconds).encode(encoded)?;
        let help = "Requests answered, by the class of their status";
        let mut family = encoder.encode_descriptor("gateway_answers", help, None, MetricType::Counter)?;
        for (class, count) in CLASSES.iter().zip(&counts.answers) {
            ConstCounter::new(read(count)).encode(family.encode_family(&[("status", *class)])?)?;
        }
        Ok(())
    }
}
