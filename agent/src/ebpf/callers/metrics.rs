//! The classification in `/metrics`: what the programs counted, read at each scrape, and what was decided.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use weft_ebpf_common::callers::Count;

use super::status::Basis;
use super::{Identity, Shared};
use crate::foundation::metrics::Metrics;

/// What was decided.
#[derive(Debug, Default)]
pub(super) struct Tally {
    internal: AtomicU64,
    external: AtomicU64,
    unknown: AtomicU64,
}

impl Tally {
    pub(super) fn count(&self, identity: &Identity) {
        let which = match (&identity.record, identity.verdict.is_internal) {
            (None, _) => &self.unknown,
            (Some(_), true) => &self.internal,
            (Some(_), false) => &self.external,
        };
        which.fetch_add(1, Ordering::Relaxed);
    }
}

/// Registers the collector.
pub(super) fn register(metrics: &Metrics, shared: &Arc<Shared>) {
    let collector = CallersCollector { shared: Arc::downgrade(shared) };
    metrics.register(|registry| registry.register_collector(Box::new(collector)));
}

#[derive(Debug)]
struct CallersCollector {
    shared: Weak<Shared>,
}

impl Collector for CallersCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(shared) = self.shared.upgrade() else { return Ok(()) };
        encode_basis(&mut encoder, shared.status.borrow().basis)?;
        let tally = &shared.tally;
        let decided = [("internal", &tally.internal), ("external", &tally.external), ("unknown", &tally.unknown)];
        let help = "Connections to the gateway by what was decided about their caller; unknown ones are external too";
        let mut family = encoder.encode_descriptor("callers_classified", help, None, MetricType::Counter)?;
        for (verdict, count) in decided {
            let counter = ConstCounter::new(count.load(Ordering::Relaxed));
            counter.encode(family.encode_family(&[("verdict", verdict)])?)?;
        }
        let counts = shared.kernel.load().as_ref().and_then(|kernel| kernel.counts().ok());
        let Some(counts) = counts else { return Ok(()) };
        let help = "What the programs that record callers did";
        let mut family = encoder.encode_descriptor("callers_kernel", help, None, MetricType::Counter)?;
        let kinds = [
            ("connects", Count::Connects),
            ("unrecorded", Count::Unrecorded),
            ("known", Count::Known),
            ("unknown", Count::Unknown),
            ("steered", Count::Steered),
        ];
        for (event, kind) in kinds {
            ConstCounter::new(counts[kind as usize]).encode(family.encode_family(&[("event", event)])?)?;
        }
        Ok(())
    }
}

fn encode_basis(encoder: &mut DescriptorEncoder<'_>, current: Basis) -> Result<(), std::fmt::Error> {
    let help = "What the classification of callers rests on";
    let mut family = encoder.encode_descriptor("callers_basis", help, None, MetricType::Gauge)?;
    for (name, basis) in [("storage", Basis::Storage), ("sock_diag", Basis::SockDiag), ("nothing", Basis::Nothing)] {
        ConstGauge::new(i64::from(basis == current)).encode(family.encode_family(&[("basis", name)])?)?;
    }
    Ok(())
}
