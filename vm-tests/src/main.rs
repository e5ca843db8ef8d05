//! Scenarios on distribution kernels: this program boots QEMU guests, and is itself their PID 1.
//!
//! On the host it gets Debian's cloud kernels, packs itself, the agent and the tools into an initramfs, boots it and
//! counts the verdicts. In the guest (process 1, or `--here` in a machine made for it) it runs the scenarios and
//! prints one line for each. Both sides share one table, [`guest::scenario::ALL`], so a scenario that leaves no verdict is a failure.
//!
//! In: kernel packages from apt, `target/<profile>/weft`. Out: exit status 0 or 1 and the last line `N passed, N failed`.
//! Never: KVM, a network of the host, a process it did not start.

#![expect(clippy::print_stdout, reason = "a command line program: its output is what it is for")]

mod guest;
mod host;
mod tool;

use std::process::ExitCode;

use clap::Parser;

/// Boots Debian kernels in QEMU (emulation, no KVM) and runs the scenarios in them.
#[derive(Debug, Parser)]
#[command(name = "vm-tests", version)]
struct Args {
    /// The kernel series to boot.
    #[arg(long, value_enum, default_value_t = host::Choice::All)]
    kernel: host::Choice,
    /// List the scenarios.
    #[arg(long)]
    list: bool,
    /// Seconds a guest may take from power-on to its last verdict; only one that hangs takes so long.
    #[arg(long, default_value_t = 1200)]
    timeout: u64,
    /// Run the scenarios on this very machine, as root: for a machine made for it (see Vagrantfile), never for a host in use.
    #[arg(long, conflicts_with_all = ["kernel", "timeout"])]
    here: bool,
    /// What the service of a guest booted by systemd runs.
    #[arg(long, hide = true, conflicts_with = "here")]
    booted: bool,
    /// Only these scenarios; default: all.
    scenario: Vec<String>,
}

fn main() -> ExitCode {
    if std::process::id() == 1 {
        guest::init();
    }
    let args = Args::parse();
    match run(&args) {
        Ok(tally) => {
            println!("{tally}");
            if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            println!("vm-tests: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<guest::report::Tally> {
    let scenarios = guest::scenario::select(&args.scenario)?;
    if args.list {
        for scenario in &scenarios {
            println!("{:<20} {}", scenario.name, scenario.about);
        }
        return Ok(guest::report::Tally::default());
    }
    if args.booted {
        guest::booted();
    }
    if args.here {
        return guest::here(&scenarios);
    }
    host::run(args.kernel, std::time::Duration::from_secs(args.timeout), &scenarios)
}
