//! The metrics of this domain. Per-peer figures are read from the device at scrape, at most once a second.
//!
//! Labels are bounded by the number of configured peers: `peer` is its name, `peer_id` its public key.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::gauge::ConstGauge;
use tokio::sync::watch;
use tokio::time::Instant;

use super::figures::FiguresReader;
use super::status::{PeerFigures, Status};
use crate::foundation::metrics::Metrics;

const FIGURES_AGE: Duration = Duration::from_secs(1);

/// What the reconciler counts.
#[derive(Debug, Clone, Default)]
pub(super) struct Counters {
    passes: Counter<u64, AtomicU64>,
    steps: Counter<u64, AtomicU64>,
    failures: Counter<u64, AtomicU64>,
    nudges: Counter<u64, AtomicU64>,
}

impl Counters {
    pub(super) fn pass(&self, steps: usize, failed: bool) {
        self.passes.inc();
        self.steps.inc_by(steps as u64);
        self.failures.inc_by(u64::from(failed));
    }

    pub(super) fn nudged(&self, peers: usize) {
        self.nudges.inc_by(peers as u64);
    }
}

/// Registers everything; per-peer figures come from `reader` just before a scrape.
pub(super) fn register(
    metrics: &Metrics,
    counters: &Counters,
    status: watch::Receiver<Arc<Status>>,
    reader: FiguresReader,
) {
    let snapshot = Arc::new(Mutex::new(Snapshot::default()));
    metrics.register(|registry| {
        let Counters { passes, steps, failures, nudges } = counters.clone();
        registry.register("wireguard_reconcile_passes", "Passes of the WireGuard reconciler", passes);
        registry.register("wireguard_reconcile_steps", "Changes written to the WireGuard device", steps);
        registry.register("wireguard_reconcile_errors", "Passes that left something undone", failures);
        let help = "Messages sent to peers that were new or given another endpoint, so that they shake hands at once";
        registry.register("wireguard_first_messages", help, nudges);
        registry.register_collector(Box::new(Figures { status, snapshot: Arc::clone(&snapshot) }));
    });
    metrics.before_scrape(Box::new(move || {
        let (reader, snapshot) = (reader.clone(), Arc::clone(&snapshot));
        Box::pin(async move { renew(&reader, &snapshot).await })
    }));
}

#[derive(Debug, Default)]
struct Snapshot {
    read_at: Option<Instant>,
    peers: Vec<PeerFigures>,
}

async fn renew(reader: &FiguresReader, snapshot: &Mutex<Snapshot>) {
    let read_at = snapshot.lock().unwrap_or_else(PoisonError::into_inner).read_at;
    if read_at.is_some_and(|at| at.elapsed() < FIGURES_AGE) {
        return;
    }
    // Without a device there is nothing to show; the status says why.
    let peers = reader.read().await.unwrap_or_default();
    *snapshot.lock().unwrap_or_else(PoisonError::into_inner) = Snapshot { read_at: Some(Instant::now()), peers };
}

struct Figures {
    status: watch::Receiver<Arc<Status>>,
    snapshot: Arc<Mutex<Snapshot>>,
}

impl fmt::Debug for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Figures")
    }
}

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let status = Arc::clone(&self.status.borrow());
        encode_link(&mut encoder, &status)?;
        let snapshot = self.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        encode_bytes(&mut encoder, &snapshot.peers)?;
        encode_handshakes(&mut encoder, &snapshot.peers)
    }
}

fn encode_link(encoder: &mut DescriptorEncoder<'_>, status: &Status) -> fmt::Result {
    if let Some(link) = &status.link {
        let labels = [("backend", link.backend.to_string()), ("link", link.name.to_string())];
        let help = "The tunnel device in use; always 1";
        let mut info = encoder.encode_descriptor("wireguard_info", help, None, MetricType::Gauge)?;
        ConstGauge::new(1_i64).encode(info.encode_family(&labels)?)?;
    }
    if let Some(port) = status.listen_port {
        let help = "The UDP port the tunnel is bound to";
        let gauge = encoder.encode_descriptor("wireguard_listen_port", help, None, MetricType::Gauge)?;
        ConstGauge::new(i64::from(port)).encode(gauge)?;
    }
    Ok(())
}

fn encode_bytes(encoder: &mut DescriptorEncoder<'_>, peers: &[PeerFigures]) -> fmt::Result {
    let help = "Bytes of WireGuard messages, with their overhead, handshakes and keepalives";
    let mut family = encoder.encode_descriptor("wireguard_peer_bytes", help, None, MetricType::Counter)?;
    for peer in peers {
        for (direction, bytes) in [("rx", peer.rx_bytes), ("tx", peer.tx_bytes)] {
            let [name, id] = peer_labels(peer);
            let labels = [name, id, ("direction", direction.to_owned())];
            ConstCounter::new(bytes).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn encode_handshakes(encoder: &mut DescriptorEncoder<'_>, peers: &[PeerFigures]) -> fmt::Result {
    let name = "wireguard_peer_last_handshake_timestamp_seconds";
    let help = "When the newest handshake with the peer completed; absent before the first";
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for peer in peers {
        let Some(at) = peer.last_handshake else { continue };
        let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        ConstGauge::new(seconds).encode(family.encode_family(&peer_labels(peer))?)?;
    }
    Ok(())
}

fn peer_labels(peer: &PeerFigures) -> [(&'static str, String); 2] {
    [("peer", peer.name.to_string()), ("peer_id", peer.public_key.to_string())]
}
