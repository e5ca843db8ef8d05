//! The accounting in `/metrics`: the counters of the maps, read just before each scrape.
//!
//! Labels are bounded by the peers of the model; peers that left it are in the `retired` sums.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use tokio::sync::watch;

use super::Reader;
use super::figures::FiguresError;
use super::status::{Counters, Figures, Hook, Status};
use crate::foundation::metrics::Metrics;

/// Registers the collector and its refresh.
pub(super) fn register(metrics: &Metrics, reader: Reader, status: watch::Receiver<Status>) {
    let newest = Arc::new(Mutex::new(None));
    let collector = FiguresCollector { newest: Arc::clone(&newest), status };
    metrics.register(|registry| registry.register_collector(Box::new(collector)));
    metrics.before_scrape(Box::new(move || {
        let (reader, newest) = (reader.clone(), Arc::clone(&newest));
        Box::pin(async move {
            match reader.figures().await {
                Ok(figures) => *newest.lock().unwrap_or_else(PoisonError::into_inner) = Some(figures),
                // Without maps there are no series; the status says why.
                Err(FiguresError::NotCounting | FiguresError::Read(_)) => {
                    *newest.lock().unwrap_or_else(PoisonError::into_inner) = None;
                }
            }
        })
    }));
}

#[derive(Debug)]
struct FiguresCollector {
    newest: Arc<Mutex<Option<Figures>>>,
    status: watch::Receiver<Status>,
}

impl Collector for FiguresCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.encode_hooks(&mut encoder)?;
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(figures) = newest.as_ref() else { return Ok(()) };
        encode_peers(&mut encoder, figures)?;
        let unattributed = (&figures.unattributed_rx, &figures.unattributed_tx);
        encode_sum(
            &mut encoder,
            ["unattributed_bytes", "unattributed_packets"],
            "of packets whose address belongs to no peer",
            unattributed,
        )?;
        let retired = (&figures.retired_rx, &figures.retired_tx);
        encode_sum(&mut encoder, ["retired_bytes", "retired_packets"], "of peers that were removed", retired)
    }
}

impl FiguresCollector {
    fn encode_hooks(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let attached = self.status.borrow().hook;
        let help = "Whether the accounting programs are attached, by hook";
        let mut family = encoder.encode_descriptor("accounting_attached", help, None, MetricType::Gauge)?;
        for hook in [Hook::Tcx, Hook::Clsact] {
            let labels = [("hook", hook.to_string())];
            let gauge = ConstGauge::new(i64::from(attached == Some(hook)));
            gauge.encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// The name, the help and the figure of one series.
type Series<'a> = (&'a str, &'a str, fn(&Counters) -> u64);

fn encode_peers(encoder: &mut DescriptorEncoder<'_>, figures: &Figures) -> Result<(), std::fmt::Error> {
    let series: [Series<'_>; 2] = [
        ("peer_bytes", "Bytes of inner IP packets exchanged with a peer, as on the wire after segmentation", |c| {
            c.bytes
        }),
        ("peer_packets", "Inner IP packets exchanged with a peer, segments counted apart", |c| c.packets),
    ];
    for (name, help, read) in series {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for peer in &figures.peers {
            for (direction, counters) in [("rx", &peer.rx), ("tx", &peer.tx)] {
                let labels = [
                    ("peer", peer.name.as_str().to_owned()),
                    ("peer_id", peer.public_key.to_string()),
                    ("direction", direction.to_owned()),
                ];
                ConstCounter::new(read(counters)).encode(family.encode_family(&labels)?)?;
            }
        }
    }
    encode_protocols(encoder, figures)
}

fn encode_protocols(encoder: &mut DescriptorEncoder<'_>, figures: &Figures) -> Result<(), std::fmt::Error> {
    let help = "Bytes of inner IP packets exchanged with a peer, by protocol class";
    let mut family = encoder.encode_descriptor("peer_protocol_bytes", help, None, MetricType::Counter)?;
    for peer in &figures.peers {
        for (direction, counters) in [("rx", &peer.rx), ("tx", &peer.tx)] {
            let classes = [
                ("tcp", counters.tcp_bytes),
                ("udp", counters.udp_bytes),
                ("icmp", counters.icmp_bytes),
                ("other", counters.other_bytes),
            ];
            for (protocol, bytes) in classes {
                let labels = [
                    ("peer", peer.name.as_str().to_owned()),
                    ("peer_id", peer.public_key.to_string()),
                    ("direction", direction.to_owned()),
                    ("protocol", protocol.to_owned()),
                ];
                ConstCounter::new(bytes).encode(family.encode_family(&labels)?)?;
            }
        }
    }
    Ok(())
}

fn encode_sum(
    encoder: &mut DescriptorEncoder<'_>,
    [bytes, packets]: [&str; 2],
    of_what: &str,
    (rx, tx): (&Counters, &Counters),
) -> Result<(), std::fmt::Error> {
    let series: [Series<'_>; 2] =
        [(bytes, "Bytes", |counters| counters.bytes), (packets, "Packets", |counters| counters.packets)];
    for (name, what, read) in series {
        let help = format!("{what} {of_what}");
        let mut family = encoder.encode_descriptor(name, &help, None, MetricType::Counter)?;
        for (direction, counters) in [("rx", rx), ("tx", tx)] {
            ConstCounter::new(read(counters)).encode(family.encode_family(&[("direction", direction)])?)?;
        }
    }
    Ok(())
}
