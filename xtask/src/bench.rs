//! `cargo xtask bench [AREA…]`: the budgets, each as a ratio to an alternative measured in the same run.
//!
//! An area is a file here with `run(&Context) -> anyhow::Result<Vec<Row>>`. It makes its own namespaces and
//! processes and takes them away again. Nothing here asserts: a row that misses its target says so.

pub(crate) mod accounting;
pub(crate) mod agent;
pub(crate) mod dns;
pub(crate) mod gateway;
pub(crate) mod mesh;
pub(crate) mod peers;
pub(crate) mod store;
pub(crate) mod process;
pub(crate) mod tunnel;
pub(crate) mod web;
mod registry;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde_json::json;

use crate::{repo, setup};

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

type Area = fn(&Context) -> Result<Vec<Row>>;

/// Every area by the name it is asked for.
const AREAS: &[(&str, Area)] = &[
    ("accounting", accounting::run),
    ("agent", agent::run),
    ("dns", dns::run),
    ("gateway", gateway::run),
    ("mesh", mesh::run),
    ("tunnel", tunnel::run),
    ("peers", peers::run),
    ("web", web::run),
    ("store", store::run),
    ("process", process::run),
];

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Only these areas; without any: all.
    #[arg(value_parser = AREAS.iter().map(|(name, _)| *name).collect::<Vec<_>>())]
    areas: Vec<String>,
    /// Rounds in alternation; medians are reported.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds per measurement.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// One JSON object on standard output instead of the table.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    ensure!(repo::is_root(), "the benches make network namespaces: run `sudo cargo xtask bench`");
    ensure!(arguments.rounds > 0 && arguments.seconds > 0, "--rounds and --seconds are at least 1");
    let chosen = |name: &str| arguments.areas.is_empty() || arguments.areas.iter().any(|area| area == name);
    if !arguments.json {
        setup::for_test()?;
        println!("release build: about twelve minutes on two cores the first time");
    }
    repo::execute(&mut repo::cargo(&["build", "--release", "--package", "weft-agent"]))?;
    let context =
        Context { rounds: arguments.rounds, seconds: arguments.seconds, weft: repo::built("release", "weft") };
    let mut results = Vec::new();
    for (name, area) in AREAS.iter().filter(|(name, _)| chosen(name)) {
        eprintln!("bench: {name}");
        let rows = area(&context).with_context(|| format!("bench area {name}"))?;
        results.extend(rows.into_iter().map(|row| (*name, row)));
    }
    if arguments.json {
        let rows: Vec<_> = results.iter().map(|(area, row)| to_json(area, row)).collect();
        println!("{}", json!({ "schema": 1, "rows": rows }));
    } else {
        print_table(&results);
    }
    Ok(())
}

fn to_json(area: &str, row: &Row) -> serde_json::Value {
    let target = match row.target {
        Target::AtMost(limit) => json!({ "at_most": limit }),
        Target::AtLeast(limit) => json!({ "at_least": limit }),
    };
    json!({
        "area": area, "what": row.what, "unit": row.unit, "ours": row.ours, "alternative_name": row.alternative_name,
        "alternative": row.alternative, "ratio": row.ratio(), "target": target, "met": row.met(),
    })
}

fn print_table(results: &[(&str, Row)]) {
    let heads = ["area", "what", "ours", "against", "its figure", "ratio", "target", ""].map(str::to_owned);
    let lines: Vec<[String; 8]> =
        std::iter::once(heads).chain(results.iter().map(|(area, row)| cells(area, row))).collect();
    let widths: [usize; 8] =
        std::array::from_fn(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0));
    for line in &lines {
        let cells: Vec<String> = line.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        println!("{}", cells.join("  ").trim_end());
    }
    let missed = results.iter().filter(|(_, row)| !row.met()).count();
    println!("{} of {} targets met", results.len() - missed, results.len());
}

fn cells(area: &str, row: &Row) -> [String; 8] {
    let target = match row.target {
        Target::AtMost(limit) => format!("<= {limit}"),
        Target::AtLeast(limit) => format!(">= {limit}"),
    };
    [
        area.to_owned(),
        row.what.clone(),
        format!("{} {}", figure(row.ours), row.unit),
        row.alternative_name.clone(),
        format!("{} {}", figure(row.alternative), row.unit),
        format!("{:.2}", row.ratio()),
        target,
        if row.met() { "met" } else { "MISSED" }.to_owned(),
    ]
}

/// Three significant digits or so.
fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// The middle of the rounds.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ours: f64, target: Target) -> Row {
        Row { what: "x".to_owned(), unit: "ns", ours, alternative_name: "y".to_owned(), alternative: 100.0, target }
    }

    #[test]
    fn a_target_is_about_the_ratio() {
        assert!(row(130.0, Target::AtMost(1.3)).met());
        assert!(!row(131.0, Target::AtMost(1.3)).met());
        assert!(row(93.0, Target::AtLeast(0.93)).met());
        assert!(!row(92.0, Target::AtLeast(0.93)).met());
    }

    #[test]
    fn a_figure_that_is_not_there_misses_its_target() {
        assert!(!row(f64::NAN, Target::AtMost(1.0)).met());
        assert!(!row(f64::NAN, Target::AtLeast(1.0)).met());
    }

    #[test]
    fn the_median_of_an_even_count_is_between_the_middle_two() {
        assert!((median(vec![4.0, 1.0, 3.0, 2.0]) - 2.5).abs() < f64::EPSILON);
        assert!((median(vec![9.0, 1.0, 3.0]) - 3.0).abs() < f64::EPSILON);
    }
}
