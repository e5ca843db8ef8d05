//! `cargo xtask bench [AREA…]`: the budgets, each as a ratio to an alternative measured in the same run.
//!
//! An area is a file here with `run(&Context) -> anyhow::Result<Vec<Row>>`. It makes its own namespaces and
//! processes and takes them away again. Nothing here asserts: a row that misses its target says so.

pub(crate) mod accounting;
pub(crate) mod agent;
pub(crate) mod dns;
pub(crate) mod peers;
pub(crate) mod tunnel;

/// What every area gets.
#[derive(Debug)]
pub(crate) struct Context {
    /// Rounds in alternation; medians are reported.
    pub(crate) rounds: usize,
    /// Seconds per measurement.
    pub(crate) seconds: u64,
    /// Our binary, built with the release profile.
    pub(crate) weft: std::path::PathBuf,
}

/// One line of the table.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) unit: &'static str,
    pub(crate) ours: f64,
    pub(crate) alternative_name: String,
    pub(crate) alternative: f64,
    pub(crate) target: Target,
}

/// What `ours / alternative` must be; for an absolute budget `alternative` is the budget.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    AtMost(f64),
    AtLeast(f64),
}

impl Row {
    pub(crate) fn ratio(&self) -> f64 {
        self.ours / self.alternative
    }

    pub(crate) fn met(&self) -> bool {
        match self.target {
            Target::AtMost(limit) => self.ratio() <= limit,
            Target::AtLeast(limit) => self.ratio() >= limit,
        }
    }
}
