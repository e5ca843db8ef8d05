//! `cargo xtask test`, `verify`, `fix`, `vm-test`: every gate, in the order in which a failure is cheapest to learn.
//!
//! All steps run even when one fails; the summary at the end names each with its time, and the program then fails.
//! With `CI=true` a test that would skip itself fails.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::{repo, setup, tidy};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Only tests whose name holds this text; without it everything runs.
    filter: Option<String>,
    /// Leave the guests out.
    #[arg(long)]
    no_vm: bool,
    /// A test that cannot run here fails instead of skipping itself. On when `CI` is set.
    #[arg(long)]
    strict: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VmArguments {
    /// What `vm-tests` takes: `--kernel`, `--list`, names of scenarios.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let strict = arguments.strict || std::env::var_os("CI").is_some_and(|value| !value.is_empty());
    let mut steps = Steps::default();
    match &arguments.filter {
        Some(filter) => {
            steps.run("build", build);
            steps.run("tests", || cargo_test(strict, Some(filter)));
        }
        None => all_tests(&mut steps, strict, arguments.no_vm),
    }
    steps.finish()
}

pub(crate) fn verify() -> Result<()> {
    let mut steps = Steps::default();
    steps.run("format", || done(repo::execute(&mut repo::cargo(&["fmt", "--all", "--check"]))));
    steps.run("lints", || {
        let mut clippy = repo::cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"]);
        done(repo::execute(&mut clippy))
    });
    steps.run("documentation", || {
        let mut doc = repo::cargo(&["doc", "--workspace", "--no-deps", "--document-private-items", "--quiet"]);
        done(repo::execute(doc.env("RUSTDOCFLAGS", "-D warnings")))
    });
    all_tests(&mut steps, std::env::var_os("CI").is_some(), false);
    steps.finish()
}

pub(crate) fn fix() -> Result<()> {
    let clippy = ["clippy", "--workspace", "--all-targets", "--fix", "--allow-dirty", "--allow-staged"];
    repo::execute(&mut repo::cargo(&clippy))?;
    repo::execute(&mut repo::cargo(&["fmt", "--all"]))
}

pub(crate) fn vm(arguments: &VmArguments) -> Result<()> {
    setup::for_test()?;
    build()?;
    run_guests(&arguments.arguments).map(drop)
}

fn all_tests(steps: &mut Steps, strict: bool, no_vm: bool) {
    // First of all: on a fresh machine not even `git`, which tidy asks, is there.
    let is_set_up = steps.run("set-up", || done(setup::for_test()));
    steps.run("structure", || done(tidy::run()));
    if is_set_up && steps.run("build", build) {
        if !no_vm {
            steps.run("guests", || run_guests(&[]));
        }
        steps.run("tests", || cargo_test(strict, None));
    }
}

/// Builds everything once, the agent's binary included, which the integration tests and the guests run.
fn build() -> Result<String> {
    println!("A first build takes about six minutes on two cores; cargo shows how far it is.");
    done(repo::execute(&mut repo::cargo(&["build", "--workspace"])))
}

fn run_guests(arguments: &[String]) -> Result<String> {
    // Not `cargo run`: for one package cargo chooses other features, and would build its dependencies again.
    let mut command = Command::new(repo::built("debug", "vm-tests"));
    command.current_dir(repo::root()).args(arguments);
    let (lines, status) = stream(&mut command)?;
    let last = lines.last().cloned().unwrap_or_default();
    ensure!(status.success(), "{last}");
    Ok(last)
}

fn cargo_test(strict: bool, filter: Option<&str>) -> Result<String> {
    let mut command = repo::cargo(&["test", "--workspace", "--no-fail-fast"]);
    command.args(filter);
    if strict {
        command.env("WEFT_TESTS_STRICT", "1");
    } else if !repo::is_root() {
        println!("not root: the tests that need network namespaces will skip themselves");
    }
    let (lines, status) = stream(&mut command)?;
    let passed = total(&lines, "passed");
    let failed = failed(&lines);
    // Without a name of a test it was the compiler that failed.
    ensure!(status.success() || !failed.is_empty(), "`cargo test` ended with {status}; its messages are above");
    ensure!(failed.is_empty(), "{passed} passed, {} failed: {}", failed.len(), failed.join(" "));
    // A filter that matches nothing is a typing error, not a success.
    ensure!(filter.is_none() || passed > 0, "no test has {:?} in its name", filter.unwrap_or_default());
    Ok(format!("{passed} passed, 0 failed"))
}

/// The tests that failed, by name.
fn failed(lines: &[String]) -> Vec<&str> {
    lines.iter().filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED")).collect()
}

/// Sums what the `test result:` lines say about `what`.
fn total(lines: &[String], what: &str) -> u64 {
    let results = lines.iter().filter_map(|line| line.strip_prefix("test result: "));
    let fields = results.flat_map(|rest| rest.split([';', '.']));
    fields.filter_map(|field| field.trim().strip_suffix(what)?.trim().parse::<u64>().ok()).sum()
}

/// Runs a command, shows its standard output while it runs, and returns the lines of it and how the command ended.
fn stream(command: &mut Command) -> Result<(Vec<String>, ExitStatus)> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("failed to start {}", repo::describe(command)))?;
    let output = child.stdout.take().context("the child has no standard output")?;
    let mut lines = Vec::new();
    for line in BufReader::new(output).lines() {
        let line = line.context("failed to read what the command writes")?;
        println!("{line}");
        lines.push(line);
    }
    Ok((lines, child.wait()?))
}

fn done(result: Result<()>) -> Result<String> {
    result.map(|()| "ok".to_owned())
}

/// The steps of one run and how each went.
#[derive(Debug, Default)]
struct Steps {
    finished: Vec<Step>,
}

#[derive(Debug)]
struct Step {
    name: &'static str,
    took: Duration,
    result: Result<String>,
}

impl Steps {
    /// Runs one step and tells whether it succeeded.
    fn run(&mut self, name: &'static str, work: impl FnOnce() -> Result<String>) -> bool {
        println!("\n== {name}");
        let started = Instant::now();
        let result = work();
        if let Err(error) = &result {
            eprintln!("{name}: {error:#}");
        }
        let succeeded = result.is_ok();
        self.finished.push(Step { name, took: started.elapsed(), result });
        succeeded
    }

    /// Prints the summary.
    fn finish(self) -> Result<()> {
        println!("\n== summary");
        for step in &self.finished {
            let result = match &step.result {
                Ok(text) => text.clone(),
                Err(error) => format!("FAILED: {error:#}"),
            };
            println!("{:15} {:>5} s   {result}", step.name, step.took.as_secs());
        }
        let failed: Vec<&str> = self.finished.iter().filter(|step| step.result.is_err()).map(|s| s.name).collect();
        ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_summed_over_all_test_programs() {
        let lines = [
            "test agent::a ... ok",
            "test agent::b ... FAILED",
            "test result: ok. 6 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.13s",
            "test result: FAILED. 10 passed; 2 failed; 0 ignored; 0 measured; 3 filtered out; finished in 1.00s",
        ]
        .map(str::to_owned);
        assert_eq!(total(&lines, "passed"), 16);
        assert_eq!(failed(&lines), ["agent::b"]);
    }

    #[test]
    fn one_failed_step_fails_the_run_and_the_others_still_run() {
        let mut steps = Steps::default();
        assert!(!steps.run("first", || anyhow::bail!("broken")));
        assert!(steps.run("second", || Ok("ok".to_owned())));
        let error = steps.finish().expect_err("one failed");
        assert_eq!(error.to_string(), "failed: first");
    }
}
