//! `cargo xtask`: everything a developer or CI does with this repository.
//!
//! One module a verb. A verb prints what it does before it does it, changes nothing outside `target/` unless its help
//! says so, and fails with one message that names what to type next.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line tool talks to its user")]

mod bench;
mod demo;
mod dist;
mod ebpf;
mod fuzz;
mod interrupt;
mod repo;
mod run;
mod setup;
mod test;
mod tidy;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Everything a developer or CI does with this repository.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Install missing packages, build, and run the agent on this host until Ctrl-C.
    Run,
    /// Three agents in three network namespaces, with real traffic between them; leaves nothing behind.
    Demo,
    /// Install the packages that are missing (Debian, Ubuntu).
    Setup(setup::Arguments),
    /// Run all tests with their set-up: structure, unit, integration, guests.
    Test(test::Arguments),
    /// What CI checks: format, structure, lints, documentation, tests. Changes nothing.
    Verify,
    /// Format and apply the lints' suggestions.
    Fix,
    /// Check the structure rules of STYLE.md.
    Tidy,
    /// Build the BPF object from `agent-ebpf`, or check the committed one.
    Ebpf(ebpf::Args),
    /// Run the properties over what comes from outside (frames, URLs, headers, queries) many more times than `test` does.
    Fuzz(fuzz::Arguments),
    /// Measure the budgets against their alternatives.
    Bench(bench::Arguments),
    /// Boot the guests and run their scenarios.
    VmTest(test::VmArguments),
    /// Build the release tarball: binary, unit, completions, checksum.
    Dist,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().verb {
        Verb::Run => run::run(),
        Verb::Demo => demo::run(),
        Verb::Setup(arguments) => setup::run(&arguments),
        Verb::Test(arguments) => test::run(&arguments),
        Verb::Verify => test::verify(),
        Verb::Fix => test::fix(),
        Verb::Tidy => tidy::run(),
        Verb::Ebpf(arguments) => ebpf::run(arguments.check),
        Verb::Fuzz(arguments) => fuzz::run(&arguments),
        Verb::Bench(arguments) => bench::run(&arguments),
        Verb::VmTest(arguments) => test::vm(&arguments),
        Verb::Dist => dist::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
