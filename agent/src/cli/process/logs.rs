//! `weft logs`.

use tokio::signal::unix::{SignalKind, signal};

use super::args::LogsArgs;
use super::path;
use crate::api::process::{Line, time_of};
use crate::cli::client::Client;
use crate::cli::output::{self, Style, Tone};
use crate::cli::{Exit, Failure};
use crate::foundation::rfc3339;

pub(in crate::cli) async fn run(client: &Client, args: &LogsArgs) -> Result<Exit, Failure> {
    let mut interrupted = signal(SignalKind::interrupt()).map_err(Failure::Runtime)?;
    tokio::select! {
        exit = print(client, args) => exit,
        _ = interrupted.recv() => Ok(Exit::Ok),
    }
}

async fn print(client: &Client, args: &LogsArgs) -> Result<Exit, Failure> {
    let kind = match (args.out, args.err) {
        (true, _) => "stdout",
        (_, true) => "stderr",
        (false, false) => "all",
    };
    let mut query = format!("?lines={}&type={kind}&follow={}", args.lines, args.follow);
    if let Some(since) = &args.since {
        query.push_str(&format!("&since={}", since.replace('+', "%2B")));
    }
    let style = Style::of_stdout();
    let mut lines = client.get_lines(&(path(&args.name, "logs") + &query)).await?;
    while let Some(line) = lines.next().await? {
        if args.json {
            output::print(&format!("{line}\n"))?;
        } else if let Ok(line) = serde_json::from_str::<Line>(&line) {
            output::print(&render(&line, args.raw, style))?;
        }
    }
    Ok(Exit::Ok)
}

fn render(line: &Line, raw: bool, style: Style) -> String {
    if raw {
        return format!("{}\n", line.text);
    }
    let time = rfc3339::format(time_of(line.time_ms));
    let tone = if line.stream == "stderr" { Tone::Warning } else { Tone::Neutral };
    format!(
        "{} {} {}\n",
        style.paint(Tone::Faint, &time),
        style.paint(Tone::Heading, &line.name),
        style.paint(tone, &line.text)
    )
}
