//! The guest side: process 1 that makes a machine of a bare kernel, and the scenarios.
//!
//! In: names on the kernel's command line. Out: a verdict for each, on the second serial port, then QEMU's exit status.
//! The scenarios work the agent from outside, as an operator does: command line, files, and the tools of the distribution.

mod figures;
mod lab;
mod machine;
pub(crate) mod report;
pub(crate) mod scenario;
mod stream;
mod sys;
mod trace;

use std::time::Instant;

use anyhow::{Result, ensure};

use report::{Exit, Report, Tally};
use scenario::{Machine, Scenario};

/// What process 1 does; never returns.
pub(crate) fn init() -> ! {
    let exit = run_as_init().map_err(|error| machine::complain(&error)).ok();
    machine::halt(exit)
}

/// What the service of a machine booted by systemd does; never returns.
pub(crate) fn booted() -> ! {
    let exit = run_booted().map_err(|error| machine::complain(&error)).ok();
    machine::halt(exit)
}

/// Runs the scenarios on the machine as it is.
pub(crate) fn here(scenarios: &[&Scenario]) -> Result<Tally> {
    ensure!(nix::unistd::geteuid().is_root(), "--here needs root: it makes links and network namespaces");
    let mut report = Report::new(std::io::stdout());
    // The scenarios of a booted system reach into its units and its resolver: they need the machine the host side makes.
    let bare: Vec<_> = scenarios.iter().copied().filter(|scenario| scenario.machine == Machine::Bare).collect();
    ensure!(!bare.is_empty(), "these scenarios run in a guest only, without --here");
    Ok(run(&bare, &mut report))
}

fn run_as_init() -> Result<Exit> {
    machine::prepare()?;
    run_booted()
}

fn run_booted() -> Result<Exit> {
    let mut report = machine::report()?;
    let scenarios = scenario::select(&machine::arguments()?)?;
    let tally = run(&scenarios, &mut report);
    report.finish();
    Ok(if tally.failed == 0 { Exit::AllPassed } else { Exit::SomeFailed })
}

fn run(scenarios: &[&Scenario], report: &mut Report) -> Tally {
    let mut tally = Tally::default();
    for scenario in scenarios {
        let started = Instant::now();
        let outcome = (scenario.run)(report);
        tally.count(outcome.is_ok());
        report.verdict(scenario.name, started.elapsed(), &outcome);
    }
    tally
}
