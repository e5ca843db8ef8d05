//! `weft ps --watch`: the list again and again, in place on a terminal.

use std::io::{self, IsTerminal as _};
use std::time::{Duration, SystemTime};

use tokio::signal::unix::{SignalKind, signal};

use super::args::PsArgs;
use super::{listed, show};
use crate::api::process::List;
use crate::cli::client::Client;
use crate::cli::output::{self, Style};
use crate::cli::top::screen::Screen;
use crate::cli::{Exit, Failure};

/// Figures are not sampled more often.
const INTERVAL: Duration = Duration::from_secs(1);

/// Where the lists go.
enum Display {
    /// Redrawn in place.
    Live(Screen),
    /// One table after the other.
    Tables,
    /// One object a line.
    Json,
}

/// Until it is interrupted or the agent ends.
pub(super) async fn run(client: &Client, args: &PsArgs) -> Result<Exit, Failure> {
    let mut interrupted = signal(SignalKind::interrupt()).map_err(Failure::Runtime)?;
    let mut terminated = signal(SignalKind::terminate()).map_err(Failure::Runtime)?;
    tokio::select! {
        exit = follow(client, args) => exit,
        _ = interrupted.recv() => Ok(Exit::Ok),
        _ = terminated.recv() => Ok(Exit::Ok),
    }
}

async fn follow(client: &Client, args: &PsArgs) -> Result<Exit, Failure> {
    let mut shown: Option<List> = None;
    // Before the screen is opened: a refusal is read where it can be.
    let mut list = listed(client, args).await?;
    let mut display = match (args.json, io::stdout().is_terminal()) {
        (true, _) => Display::Json,
        (false, false) => Display::Tables,
        (false, true) => Display::Live(Screen::open()?),
    };
    loop {
        display.show(&list, shown.as_ref())?;
        shown = Some(list);
        tokio::time::sleep(INTERVAL).await;
        list = listed(client, args).await?;
    }
}

impl Display {
    /// A list that is as it was is written on a terminal only, where its uptimes go on.
    fn show(&mut self, list: &List, before: Option<&List>) -> io::Result<()> {
        let table = || show::table(list, SystemTime::now(), Style::of_stdout());
        match self {
            Self::Live(screen) => screen.draw(&table()),
            Self::Tables | Self::Json if before == Some(list) => Ok(()),
            Self::Tables => output::print(&(table() + "\n")),
            Self::Json => output::print_json_line(list),
        }
    }
}
