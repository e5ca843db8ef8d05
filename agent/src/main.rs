//! The binary `weft`: the daemon `weft agent` and the command line.

use std::process::ExitCode;

use weft_agent::{app, cli};

fn main() -> ExitCode {
    cli::main(cli::Daemon {
        run: |launch| app::run(app::Launch { file: launch.file, overrides: launch.overrides, config: launch.config }),
        remove: app::remove,
    })
}
