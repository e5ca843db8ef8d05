//! Figures of the link's reconciler.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

use super::status::Status;
use crate::foundation::metrics::Metrics;

/// The figures; registered once.
#[derive(Debug, Clone, Default)]
pub struct NetMetrics {
    routes: Gauge,
    addresses: Gauge,
    mtu: Gauge,
    passes: Counter<u64, AtomicU64>,
    failed_passes: Counter<u64, AtomicU64>,
    steps: Counter<u64, AtomicU64>,
}

impl NetMetrics {
    /// Registers the figures.
    pub fn register(metrics: &Metrics) -> Self {
        let this = Self::default();
        metrics.register(|registry| {
            registry.register("network_routes", "Our routes through the tunnel link", this.routes.clone());
            registry.register(
                "network_addresses",
                "Addresses of the tunnel link that are as wanted",
                this.addresses.clone(),
            );
            registry.register("network_mtu_bytes", "MTU of the tunnel link", this.mtu.clone());
            registry.register(
                "network_passes",
                "Times the tunnel link was compared with what is wanted",
                this.passes.clone(),
            );
            registry.register(
                "network_failed_passes",
                "Comparisons after which something remained to be done",
                this.failed_passes.clone(),
            );
            registry.register("network_steps", "Changes made to the tunnel link", this.steps.clone());
        });
        this
    }

    /// Takes over the outcome of a pass.
    pub fn record(&self, status: &Status, failed: bool) {
        self.routes.set(gauge(status.routes));
        self.addresses.set(gauge(status.addresses));
        self.mtu.set(i64::from(status.mtu.unwrap_or(0)));
        self.passes.inc();
        self.failed_passes.inc_by(u64::from(failed));
        self.steps.inc_by(u64::try_from(status.applied_steps).unwrap_or(u64::MAX));
    }
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
