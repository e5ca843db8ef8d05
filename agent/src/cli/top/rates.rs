//! Rates as the difference of two samples. Pure.

use std::cmp::Reverse;
use std::collections::HashMap;

use serde::Serialize;
use weft_proto::weft::v1 as proto;

/// One measurement; also the JSON of `weft top --json`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub(super) struct Rates {
    pub(super) schema: u32,
    /// Milliseconds between the two samples, on the agent's clock.
    pub(super) interval_ms: u64,
    /// The busiest first.
    pub(super) peers: Vec<PeerRates>,
    pub(super) unattributed_rx: Rate,
    pub(super) unattributed_tx: Rate,
    pub(super) errors: Vec<String>,
}

/// Both directions of one peer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub(super) struct PeerRates {
    pub(super) name: String,
    /// The public key.
    pub(super) id: String,
    pub(super) rx: Rate,
    pub(super) tx: Rate,
}

/// One direction: totals since the counters were made, and how fast they grew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub(super) struct Rate {
    pub(super) bytes: u64,
    pub(super) packets: u64,
    pub(super) bytes_per_second: u64,
    pub(super) packets_per_second: u64,
}

/// The rates between two samples. A peer that was not in the first one has no rate yet.
pub(super) fn between(first: &proto::CounterSample, second: &proto::CounterSample) -> Rates {
    let interval_ms = second.at_ms.saturating_sub(first.at_ms);
    let before: HashMap<&str, &proto::PeerTraffic> = first.peers.iter().map(|peer| (peer.id.as_str(), peer)).collect();
    let mut peers: Vec<PeerRates> = second
        .peers
        .iter()
        .map(|peer| {
            let before = before.get(peer.id.as_str()).and_then(|peer| peer.traffic.as_ref());
            let (rx, tx) = directions(before, peer.traffic.as_ref(), interval_ms);
            PeerRates { name: peer.name.clone(), id: peer.id.clone(), rx, tx }
        })
        .collect();
    peers.sort_by_cached_key(|peer| (Reverse(speed(peer)), Reverse(total(peer)), peer.name.clone()));
    let (unattributed_rx, unattributed_tx) =
        directions(first.unattributed.as_ref(), second.unattributed.as_ref(), interval_ms);
    Rates { schema: second.schema, interval_ms, peers, unattributed_rx, unattributed_tx, errors: second.errors.clone() }
}

fn speed(peer: &PeerRates) -> u64 {
    peer.rx.bytes_per_second.saturating_add(peer.tx.bytes_per_second)
}

fn total(peer: &PeerRates) -> u64 {
    peer.rx.bytes.saturating_add(peer.tx.bytes)
}

fn directions(before: Option<&proto::Traffic>, now: Option<&proto::Traffic>, interval_ms: u64) -> (Rate, Rate) {
    let rx = rate(before.and_then(|traffic| traffic.rx), now.and_then(|traffic| traffic.rx), interval_ms);
    let tx = rate(before.and_then(|traffic| traffic.tx), now.and_then(|traffic| traffic.tx), interval_ms);
    (rx, tx)
}

fn rate(before: Option<proto::Counters>, now: Option<proto::Counters>, interval_ms: u64) -> Rate {
    let now = now.unwrap_or_default();
    let before = before.unwrap_or(now);
    Rate {
        bytes: now.bytes,
        packets: now.packets,
        bytes_per_second: per_second(before.bytes, now.bytes, interval_ms),
        packets_per_second: per_second(before.packets, now.packets, interval_ms),
    }
}

/// Counters that were made anew begin at zero: what they hold now came since.
fn per_second(before: u64, now: u64, interval_ms: u64) -> u64 {
    let grown = now.checked_sub(before).unwrap_or(now);
    let per_second = u128::from(grown) * 1000 / u128::from(interval_ms.max(1));
    u64::try_from(per_second).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at_ms: u64, peers: &[(&str, u64, u64)]) -> proto::CounterSample {
        let counters = |bytes| Some(proto::Counters { bytes, packets: bytes / 100, ..Default::default() });
        let peers = peers
            .iter()
            .map(|(name, rx, tx)| proto::PeerTraffic {
                name: (*name).to_owned(),
                id: format!("key of {name}"),
                traffic: Some(proto::Traffic { rx: counters(*rx), tx: counters(*tx) }),
            })
            .collect();
        proto::CounterSample { schema: 1, at_ms, peers, ..Default::default() }
    }

    #[test]
    fn the_busiest_peer_comes_first_and_rates_are_per_second() {
        let first = sample(1000, &[("beta", 0, 0), ("gamma", 1000, 0)]);
        let second = sample(3000, &[("beta", 400, 0), ("gamma", 1000, 2000)]);
        let rates = between(&first, &second);
        let shown: Vec<_> =
            rates.peers.iter().map(|p| (p.name.as_str(), p.rx.bytes_per_second, p.tx.bytes_per_second)).collect();
        assert_eq!(shown, [("gamma", 0, 1000), ("beta", 200, 0)]);
        assert_eq!(rates.peers[0].tx.packets_per_second, 10);
    }

    #[test]
    fn counters_that_were_made_anew_do_not_run_backwards() {
        let rates = between(&sample(0, &[("beta", 5000, 0)]), &sample(1000, &[("beta", 300, 0)]));
        assert_eq!(rates.peers[0].rx.bytes_per_second, 300);
    }

    #[test]
    fn a_new_peer_has_totals_but_no_rate_yet() {
        let rates = between(&sample(0, &[]), &sample(1000, &[("beta", 300, 0)]));
        assert_eq!((rates.peers[0].rx.bytes, rates.peers[0].rx.bytes_per_second), (300, 0));
    }

    #[test]
    fn samples_at_the_same_moment_do_not_divide_by_zero() {
        assert_eq!(between(&sample(7, &[("b", 0, 0)]), &sample(7, &[("b", 1, 0)])).peers[0].rx.bytes_per_second, 1000);
    }
}
