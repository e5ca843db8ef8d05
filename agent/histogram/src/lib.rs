//! What openraft uses of the crate `base2histogram`, in its place (`[patch.crates-io]` of the workspace).
//!
//! The published crate, at its first use, makes the tables of all sixteen widths it knows: 26 MB that stay resident, more than
//! the rest of an idle agent, for histograms of the least width but two. Here a bucket is computed from the bits of the value,
//! and nothing is kept but the counts.
//!
//! Buckets are four to a power of two, so a value is told to a quarter of itself; values below eight are exact. Take
//! this crate away when a release of the other makes only the tables that are asked for.

use std::fmt;
use std::marker::PhantomData;

/// Buckets of each power of two, as a shift.
const SUB_BITS: u32 = 2;
const SUBS: usize = 1 << SUB_BITS;
/// One for each of the smallest values, then [`SUBS`] for each higher bit.
const BUCKETS: usize = SUBS * (64 - SUB_BITS as usize + 1);

/// How often values of each size came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    counts: Box<[u64; BUCKETS]>,
    total: u64,
    kind: PhantomData<T>,
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self { counts: Box::new([0; BUCKETS]), total: 0, kind: PhantomData }
    }
}

impl<T> Histogram<T> {
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts one value.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Counts a value that came `times` times.
    pub fn record_n(&mut self, value: u64, times: u64) {
        self.counts[bucket(value)] += times;
        self.total += times;
    }

    /// How many values came.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The value that the share `part` (0 to 1) of all values does not exceed: the least of its bucket. 0 without values.
    pub fn percentile(&self, part: f64) -> u64 {
        let rank = ((self.total as f64 * part).ceil() as u64).max(1);
        let mut seen = 0;
        let found = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        found.map_or(0, least)
    }

    /// The usual percentiles.
    pub fn percentile_stats(&self) -> PercentileStats {
        let at = |part| self.percentile(part);
        PercentileStats {
            samples: self.total,
            p0_1: at(0.001),
            p1: at(0.01),
            p5: at(0.05),
            p10: at(0.1),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
        }
    }

    /// The least value of each bucket that holds something, and how many values it holds.
    fn filled(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.counts.iter().enumerate().filter(|(_, count)| **count > 0).map(|(index, count)| (least(index), *count))
    }
}

/// Percentiles of a histogram; `p99_9` is the value that 99.9 of 100 do not exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PercentileStats {
    pub samples: u64,
    pub p0_1: u64,
    pub p1: u64,
    pub p5: u64,
    pub p10: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { samples, p0_1, p1, p5, p10, p50, p90, p99, p99_9 } = self;
        write!(f, "{samples} values: 0.1 % {p0_1}, 1 % {p1}, 5 % {p5}, 10 % {p10}, 50 % {p50}, ")?;
        write!(f, "90 % {p90}, 99 % {p99}, 99.9 % {p99_9}")
    }
}

/// Histograms one below the other, as text.
#[derive(Debug, Clone, Default)]
pub struct AsciiChart {
    rows: Vec<(String, Histogram)>,
}

impl AsciiChart {
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn add(mut self, name: &str, histogram: Histogram) -> Self {
        self.rows.push((name.to_owned(), histogram));
        self
    }

    /// A line for each bucket that holds something.
    pub fn detailed(&self) -> impl fmt::Display + '_ {
        self
    }
}

impl fmt::Display for AsciiChart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, histogram) in &self.rows {
            writeln!(f, "{name}: {} values", histogram.total())?;
            for (from, count) in histogram.filled() {
                writeln!(f, "  from {from:>20}: {count}")?;
            }
        }
        Ok(())
    }
}

/// Where a value counts.
fn bucket(value: u64) -> usize {
    let highest = 63 - (value | 1).leading_zeros();
    if highest < SUB_BITS {
        return value as usize;
    }
    let shift = highest - SUB_BITS;
    let sub = (value >> shift) as usize & (SUBS - 1);
    SUBS * (shift as usize + 1) + sub
}

/// The least value that counts there.
fn least(index: usize) -> u64 {
    if index < SUBS {
        return index as u64;
    }
    let shift = index / SUBS - 1;
    ((SUBS + index % SUBS) as u64) << shift
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bucket_begins_where_it_says() {
        for index in 0..BUCKETS {
            assert_eq!(bucket(least(index)), index);
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        assert!((1..BUCKETS).all(|index| bucket(least(index) - 1) == index - 1));
    }

    #[test]
    fn percentiles_are_true_to_a_quarter() {
        let mut histogram = Histogram::<()>::new();
        assert_eq!(histogram.percentile(0.5), 0);
        (1..=1000).for_each(|value| histogram.record(value));
        let stats = histogram.percentile_stats();
        assert_eq!(stats.samples, 1000);
        for (told, exact) in [(stats.p1, 10), (stats.p50, 500), (stats.p99, 990)] {
            assert!(told <= exact && exact - told <= exact / 4, "{told} for {exact}");
        }
    }

    #[test]
    fn a_chart_names_what_it_holds() {
        let mut histogram = Histogram::new();
        histogram.record_n(5, 3);
        let chart = AsciiChart::new().add("batches", histogram);
        assert_eq!(chart.detailed().to_string(), "batches: 3 values\n  from                    5: 3\n");
    }
}
