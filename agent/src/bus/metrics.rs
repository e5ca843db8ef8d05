//! What `/metrics` says about the message bus.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::ConstGauge;
use tokio::sync::watch;

use super::Status;
use crate::foundation::metrics::Metrics as Registry;

#[derive(Debug, Clone, Default)]
pub(super) struct Metrics {
    pub(super) events: Counter,
    pub(super) requests: Counter,
    pub(super) results: Counter,
    pub(super) failures: Counter,
    pub(super) restarts: Counter,
}

impl Metrics {
    pub(super) fn new(registry: &Registry, status: watch::Receiver<Status>) -> Self {
        let metrics = Self::default();
        registry.register(|registry| {
            let registry = registry.sub_registry_with_prefix("bus");
            registry.register("events", "Events published", metrics.events.clone());
            registry.register("requests", "Requests made of whoever listens", metrics.requests.clone());
            registry.register("results", "Answers to events that were kept", metrics.results.clone());
            registry.register("failures", "Events and requests that failed", metrics.failures.clone());
            registry.register("server_ends", "Ends of the server that nobody asked for", metrics.restarts.clone());
            registry.register_collector(Box::new(Now { status }));
        });
        metrics
    }
}

/// What holds now.
#[derive(Debug)]
struct Now {
    status: watch::Receiver<Status>,
}

impl Collector for Now {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let (up, routes) = {
            let status = self.status.borrow();
            (i64::from(status.connected.is_some()), i64::try_from(status.routes.len()).unwrap_or(i64::MAX))
        };
        for (name, help, value) in [
            ("up", "1 while the agent is connected to its message bus.", up),
            ("routes", "Nodes that the server here has routes to.", routes),
        ] {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}
