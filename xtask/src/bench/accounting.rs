//! bench area `accounting`: what counting costs a packet, and what is left of the throughput.
//!
//! Nanoseconds a run are the kernel's own (`kernel.bpf_stats_enabled`), on the egress side of a veth pair under
//! datagrams of 64 bytes. The empty program's are the price of being asked and measured, and are taken off both
//! others: a bare hit in a per-CPU hash with an addition, and ours. Programs take turns in every round.
//! Throughput is the median of ratios, each of two measurements one after the other.

mod programs;
mod traffic;

use anyhow::Result;

use super::{Context, Row, Target, median};
use programs::{Accounting, Comparison, Measured, Stats, Where, timed};
use traffic::Pair;

/// Peers in the maps, one address each.
pub(super) const PEERS: u32 = 1000;
/// Datagrams a second while runs are timed: enough samples, and a CPU that is not saturated.
const TIMED_RATE: &str = "20M";
/// Pairs with and without accounting in each round: single ratios scatter by a fifth.
const PAIRS: usize = 3;

pub(crate) fn run(context: &Context) -> Result<Vec<Row>> {
    let pair = Pair::new()?;
    pair.inside(|| {
        let mut rows = costs(context, &pair)?;
        rows.extend(throughput(context, &pair)?);
        Ok(rows)
    })?
}

fn costs(context: &Context, pair: &Pair) -> Result<Vec<Row>> {
    let (mut empty, mut bare) = (Comparison::load("empty")?, Comparison::load("bare")?);
    let mut hit = Accounting::load(pair.bpffs(), "hit", Where::Addresses)?;
    let mut miss = Accounting::load(pair.bpffs(), "miss", Where::Networks)?;
    let _stats = Stats::enable()?;
    let mut samples: [Vec<f64>; 5] = Default::default();
    for _round in 0..context.rounds {
        let time =
            |program: &mut dyn Measured| timed(program, pair.link(), || pair.datagrams(TIMED_RATE, context.seconds));
        let mut figures = [time(&mut empty)?, time(&mut bare)?, time(&mut hit)?, 0.0, time(&mut miss)?];
        // The same maps in the same memory: only the trie differs.
        hit.add_networks()?;
        figures[3] = time(&mut hit)?;
        hit.remove_networks()?;
        for (figure, samples) in figures.into_iter().zip(&mut samples) {
            samples.push(figure);
        }
    }
    let [empty, bare, hit, crowded, miss] = samples.map(median);
    let row = |what: &str, ours: f64, name: &str, alternative: f64, limit| Row {
        what: what.to_owned(),
        unit: "ns",
        ours: ours - empty,
        alternative_name: name.to_owned(),
        alternative: alternative - empty,
        target: Target::AtMost(limit),
    };
    let bare_name = "bare per-CPU hash hit and add";
    Ok(vec![
        row("a packet above an empty program, 1,000 peers", hit, bare_name, bare, 1.3),
        row("the same beside 1,000 networks in the trie", crowded, "without networks", hit, 1.15),
        row("an unknown address, found in the trie of 1,000 networks", miss, bare_name, bare, 4.0),
    ])
}

fn throughput(context: &Context, pair: &Pair) -> Result<Vec<Row>> {
    let mut accounting = Accounting::load(pair.bpffs(), "throughput", Where::Addresses)?;
    let (mut ratios, mut plain): ([Vec<f64>; 2], [Vec<f64>; 2]) = Default::default();
    for round in 0..context.rounds * PAIRS {
        // The machine drifts: each figure is compared with its neighbour, and who goes first takes turns.
        let (mut with, mut without) = ([0.0; 2], [0.0; 2]);
        for accounted in [round % 2 == 0, round % 2 != 0] {
            let _attached = accounted.then(|| accounting.attach_both(pair.link())).transpose()?;
            let figures = [pair.stream(context.seconds)?, pair.saturate(context.seconds)?];
            *(if accounted { &mut with } else { &mut without }) = figures;
        }
        for kind in 0..2 {
            ratios[kind].push(with[kind] / without[kind]);
            plain[kind].push(without[kind]);
        }
    }
    let ([tcp_ratio, udp_ratio], [plain_tcp, plain_udp]) = (ratios.map(median), plain.map(median));
    let (tcp, udp) = (plain_tcp * tcp_ratio, plain_udp * udp_ratio);
    let row = |what: &str, unit, ours, alternative, limit| Row {
        what: what.to_owned(),
        unit,
        ours,
        alternative_name: "not accounted".to_owned(),
        alternative,
        target: Target::AtLeast(limit),
    };
    Ok(vec![
        row("TCP with GSO, accounted on both sides of the link", "Gbit/s", tcp, plain_tcp, 0.95),
        row("64-byte UDP, accounted on both sides of the link", "packets/s", udp, plain_udp, 0.93),
    ])
}
