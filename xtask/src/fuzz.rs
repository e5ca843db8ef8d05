//! `cargo xtask fuzz`: the properties over parsers, each with many more cases than a test run takes.
//!
//! A target is a property whose name ends with [`SUFFIX`]; `cargo xtask test` runs it with proptest's 256 cases. Each run
//! has seeds of its own, and a failure prints the smallest input that shows it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;

use crate::repo;

/// How the name of a target ends.
const SUFFIX: &str = "_without_a_panic";

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Only targets whose name holds this text.
    filter: Option<String>,
    /// Cases a target.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    cases: u32,
    /// Name the targets and run nothing.
    #[arg(long)]
    list: bool,
}

/// One target after its run.
struct Outcome {
    name: String,
    took: Duration,
    passed: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let targets = targets(arguments.filter.as_deref())?;
    if arguments.list {
        targets.iter().for_each(|name| println!("{name}"));
        return Ok(());
    }
    let mut outcomes = Vec::new();
    for (number, name) in targets.iter().enumerate() {
        println!("fuzz: {name} ({} of {}), {} cases", number + 1, targets.len(), arguments.cases);
        outcomes.push(run_one(name, arguments.cases));
    }
    report(&outcomes, arguments.cases)
}

fn targets(filter: Option<&str>) -> Result<Vec<String>> {
    let listed = repo::capture(&mut repo::cargo(&["test", "--workspace", "--lib", "--quiet", "--", "--list"]))?;
    let names = listed.lines().filter_map(|line| line.strip_suffix(": test"));
    let wanted = names.filter(|name| name.ends_with(SUFFIX) && filter.is_none_or(|filter| name.contains(filter)));
    let mut targets: Vec<String> = wanted.map(str::to_owned).collect();
    targets.sort();
    ensure!(
        !targets.is_empty(),
        "no target has {:?} in its name; `cargo xtask fuzz --list` names them",
        filter.unwrap_or_default()
    );
    Ok(targets)
}

fn run_one(name: &str, cases: u32) -> Outcome {
    let begun = Instant::now();
    let mut command = repo::cargo(&["test", "--workspace", "--lib", "--quiet", "--", "--exact", name]);
    command.env("PROPTEST_CASES", cases.to_string());
    // Paths and names that fit nothing are rejected before the property is asked: that is no reason to give up.
    command.env("PROPTEST_MAX_GLOBAL_REJECTS", cases.to_string());
    let passed = repo::execute(&mut command).is_ok();
    Outcome { name: name.to_owned(), took: begun.elapsed(), passed }
}

fn report(outcomes: &[Outcome], cases: u32) -> Result<()> {
    let width = outcomes.iter().map(|outcome| outcome.name.len()).max().unwrap_or(0);
    for Outcome { name, took, passed } in outcomes {
        let verdict = if *passed { "ok" } else { "FAILED" };
        println!("{name:width$}  {cases} cases  {:6.1} s  {verdict}", took.as_secs_f64());
    }
    let failed: Vec<&str> = outcomes.iter().filter(|outcome| !outcome.passed).map(|o| o.name.as_str()).collect();
    let total = u64::from(cases) * outcomes.len() as u64;
    ensure!(failed.is_empty(), "{} of {} targets failed: {}", failed.len(), outcomes.len(), failed.join(" "));
    println!("fuzz: {} targets, {total} cases, 0 failed", outcomes.len());
    Ok(())
}
