//! What the DNS server counts.
//!
//! The serving threads count a whole batch in plain integers and add them up once ([`Tally`]), so that a query pays
//! for no shared cache line of its own.

use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use super::answer::Rcode;
use crate::foundation::metrics::Metrics as Registry;

/// Upper bounds in seconds: an answer of the next room, of the provider, of the other side of the world, and trouble.
const UPSTREAM_BOUNDS: [f64; 9] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 5.0];

/// How a query came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Proto {
    Udp,
    Tcp,
}

/// Who gave the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AnsweredBy {
    Zone,
    Cache,
    Upstream,
    /// Nobody: refused, malformed, not implemented, overloaded.
    Refused,
}

impl EncodeLabelValue for Proto {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let text = match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        };
        EncodeLabelValue::encode(&text, encoder)
    }
}

impl EncodeLabelValue for AnsweredBy {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let text = match self {
            Self::Zone => "zone",
            Self::Cache => "cache",
            Self::Upstream => "upstream",
            Self::Refused => "refused",
        };
        EncodeLabelValue::encode(&text, encoder)
    }
}

impl EncodeLabelValue for Rcode {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let text = match self {
            Self::NoError => "NOERROR",
            Self::FormErr => "FORMERR",
            Self::ServFail => "SERVFAIL",
            Self::NxDomain => "NXDOMAIN",
            Self::NotImp => "NOTIMP",
            Self::Refused => "REFUSED",
            Self::BadVers => "BADVERS",
        };
        EncodeLabelValue::encode(&text, encoder)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueryLabels {
    proto: Proto,
    answered_by: AnsweredBy,
    rcode: Rcode,
}

/// The metrics of this domain. Clones count into the same figures.
#[derive(Debug, Clone)]
pub struct Metrics {
    queries: Family<QueryLabels, Counter>,
    ignored: Counter,
    upstream_seconds: Histogram,
    names: Gauge,
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &Registry) -> Self {
        let metrics = Self {
            queries: Family::default(),
            ignored: Counter::default(),
            upstream_seconds: Histogram::new(UPSTREAM_BOUNDS),
            names: Gauge::default(),
        };
        registry.register(|registry| {
            registry.register("dns_queries", "Queries answered", metrics.queries.clone());
            let ignored = "Datagrams without a reply: no query, too long, or the reply could not be sent";
            registry.register("dns_ignored", ignored, metrics.ignored.clone());
            let upstream = "Time until an upstream answered a forwarded query";
            registry.register("dns_upstream_seconds", upstream, metrics.upstream_seconds.clone());
            registry.register("dns_zone_names", "Names of the mesh that are answered", metrics.names.clone());
        });
        metrics
    }

    pub(super) fn count(&self, proto: Proto, answered_by: AnsweredBy, rcode: Rcode) {
        self.queries.get_or_create(&QueryLabels { proto, answered_by, rcode }).inc();
    }

    pub(super) fn ignored(&self, count: u64) {
        self.ignored.inc_by(count);
    }

    pub(super) fn upstream_took(&self, duration: Duration) {
        self.upstream_seconds.observe(duration.as_secs_f64());
    }

    pub(super) fn set_names(&self, count: usize) {
        self.names.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// A counter of one serving thread.
    pub(super) fn tally(&self) -> Tally {
        Tally { metrics: self.clone(), zone: Default::default(), refused: Default::default(), ignored: 0 }
    }
}

/// One slot: what was counted since the last flush, and the shared counter once it has been needed.
type Slot = (u64, Option<Counter>);

/// Counts UDP queries of one thread until they are added to the shared figures.
#[derive(Debug)]
pub(super) struct Tally {
    metrics: Metrics,
    zone: [Slot; Rcode::ALL.len()],
    refused: [Slot; Rcode::ALL.len()],
    ignored: u64,
}

impl Tally {
    /// Counts a reply of the fast path.
    pub(super) fn reply(&mut self, rcode: Rcode) {
        let slots = match rcode {
            Rcode::NoError | Rcode::NxDomain => &mut self.zone,
            Rcode::FormErr | Rcode::ServFail | Rcode::NotImp | Rcode::Refused | Rcode::BadVers => &mut self.refused,
        };
        slots[rcode as usize].0 += 1;
    }

    pub(super) fn ignored(&mut self, count: usize) {
        self.ignored += count as u64;
    }

    /// Adds everything counted to the shared figures.
    pub(super) fn flush(&mut self) {
        let by_answerer = [(AnsweredBy::Zone, &mut self.zone), (AnsweredBy::Refused, &mut self.refused)];
        for (answered_by, slots) in by_answerer {
            for (rcode, (count, counter)) in Rcode::ALL.into_iter().zip(slots) {
                if *count == 0 {
                    continue;
                }
                let labels = QueryLabels { proto: Proto::Udp, answered_by, rcode };
                let counter = counter.get_or_insert_with(|| self.metrics.queries.get_or_create(&labels).clone());
                counter.inc_by(std::mem::take(count));
            }
        }
        self.metrics.ignored(std::mem::take(&mut self.ignored));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_tally_adds_up_under_its_labels() {
        let registry = Registry::default();
        let mut tally = Metrics::new(&registry).tally();
        for rcode in [Rcode::NoError, Rcode::NoError, Rcode::NxDomain, Rcode::FormErr] {
            tally.reply(rcode);
        }
        tally.flush();
        tally.reply(Rcode::NoError);
        tally.flush();
        let text = registry.scrape().await.expect("it formats");
        for line in [
            "weft_dns_queries_total{proto=\"udp\",answered_by=\"zone\",rcode=\"NOERROR\"} 3",
            "weft_dns_queries_total{proto=\"udp\",answered_by=\"zone\",rcode=\"NXDOMAIN\"} 1",
            "weft_dns_queries_total{proto=\"udp\",answered_by=\"refused\",rcode=\"FORMERR\"} 1",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
