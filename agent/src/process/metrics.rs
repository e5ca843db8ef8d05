//! What `/metrics` says about processes.

use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use tokio::sync::watch;

use super::view::{HealthStatus, Snapshot, Status, View};
use crate::foundation::metrics::Metrics as Registry;

/// Counters of the supervisor itself.
#[derive(Debug, Clone, Default)]
pub(super) struct Metrics {
    pub(super) started: Counter,
    pub(super) start_failures: Counter,
    pub(super) adopted: Counter,
}

impl Metrics {
    pub(super) fn new(registry: &Registry, snapshot: watch::Receiver<Arc<Snapshot>>) -> Self {
        let metrics = Self::default();
        registry.register(|registry| {
            let registry = registry.sub_registry_with_prefix("process");
            registry.register("starts", "Processes started", metrics.started.clone());
            registry.register("start_failures", "Processes that could not be started", metrics.start_failures.clone());
            registry.register(
                "adoptions",
                "Running processes taken over from an earlier agent",
                metrics.adopted.clone(),
            );
            registry.register_collector(Box::new(Instances { snapshot }));
        });
        metrics
    }
}

/// Name, help, unit, value.
type Gauge = (&'static str, &'static str, Option<&'static Unit>, fn(&View) -> f64);

/// One line of each figure for each instance; their number is bounded by the supervisor.
#[derive(Debug)]
struct Instances {
    snapshot: watch::Receiver<Arc<Snapshot>>,
}

impl Collector for Instances {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let snapshot = Arc::clone(&self.snapshot.borrow());
        let gauges: [Gauge; 4] = [
            ("up", "1 while the process is online", None, |view| f64::from(u8::from(view.status == Status::Online))),
            ("cpu_ratio", "Processors used, sampled", None, |view| view.figures.cpu_percent / 100.0),
            ("resident_memory", "Resident memory, sampled", Some(&Unit::Bytes), |view| {
                view.figures.memory_bytes as f64
            }),
            ("healthy", "1 healthy, 0 unhealthy, -1 no check or none yet", None, |view| match view.health.status {
                HealthStatus::Healthy => 1.0,
                HealthStatus::Unhealthy => 0.0,
                HealthStatus::None | HealthStatus::Unknown => -1.0,
            }),
        ];
        for (name, help, unit, value) in gauges {
            let mut family =
                encoder.encode_descriptor(name, help, unit, prometheus_client::metrics::MetricType::Gauge)?;
            for view in snapshot.processes.iter() {
                ConstGauge::new(value(view)).encode(family.encode_family(&labels(view))?)?;
            }
        }
        let mut family =
            encoder.encode_descriptor("restarts", "Restarts", None, prometheus_client::metrics::MetricType::Counter)?;
        for view in snapshot.processes.iter() {
            ConstCounter::new(view.restarts).encode(family.encode_family(&labels(view))?)?;
        }
        Ok(())
    }
}

fn labels(view: &View) -> [(&'static str, String); 2] {
    [("name", view.name.to_string()), ("namespace", view.namespace.to_string())]
}
