//! The binary `weft`: the daemon `weft agent` and the command line.

use std::process::ExitCode;

use weft_agent::{app, cli};

fn main() -> ExitCode {
    cli::main(cli::Daemon { run: app::run, remove: app::remove })
}
