//! `weft top`: what peers send, as rates from the difference of two samples of the counters, and what processes use.

mod processes;
mod rates;
pub(super) mod screen;

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

use tokio::signal::unix::{SignalKind, signal};
use weft_proto::weft::v1 as proto;

use super::client::{Client, ClientError};
use super::output::{self, Align, Style, Table, Tone, cell, toned};
use super::{Exit, Failure, TopArgs};
use crate::api::error::ErrorCode;
use crate::api::process::List;
use crate::sys::terminal::Keys;
use processes::ProcessFigures;
use rates::{Rate, Rates};
use screen::Screen;

/// What is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Section {
    All,
    Peers,
    Processes,
}

impl Section {
    /// The one after it.
    fn next(self) -> Self {
        match self {
            Self::All => Self::Peers,
            Self::Peers => Self::Processes,
            Self::Processes => Self::All,
        }
    }
}

/// One measurement; also the JSON of `weft top --json`.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    rates: Rates,
    /// The busiest first; empty where nothing is supervised.
    processes: Vec<ProcessFigures>,
    /// Why nothing is supervised.
    processes_error: Option<String>,
}

/// What happened.
enum Wake {
    Sample(Box<Option<proto::CounterSample>>),
    Key(u8),
}

/// Seconds as a decimal, within what the agent accepts.
pub(super) fn parse_interval(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.1..=60.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "it is not a number of seconds from 0.1 to 60".to_owned())
}

pub(super) async fn run(client: &Client, args: &TopArgs) -> Result<Exit, Failure> {
    let mut interrupted = signal(SignalKind::interrupt()).map_err(Failure::Runtime)?;
    let mut terminated = signal(SignalKind::terminate()).map_err(Failure::Runtime)?;
    tokio::select! {
        exit = measure(client, args) => exit,
        _ = interrupted.recv() => Ok(Exit::Ok),
        _ = terminated.recv() => Ok(Exit::Ok),
    }
}

async fn measure(client: &Client, args: &TopArgs) -> Result<Exit, Failure> {
    let failed = |status| ClientError::Stream(Box::new(status));
    let interval_ms = u32::try_from(args.interval.as_millis()).unwrap_or(u32::MAX);
    let request = proto::WatchCountersRequest { interval_ms };
    let mut samples = client.grpc().await?.watch_counters(request).await.map_err(failed)?.into_inner();
    let (mut display, mut section) = (Display::choose(args)?, args.section);
    let mut keys = display.keys();
    let mut last: Option<proto::CounterSample> = None;
    let mut shown: Option<Report> = None;
    loop {
        let wake = tokio::select! {
            sample = samples.message() => Wake::Sample(Box::new(sample.map_err(failed)?)),
            key = pressed(&mut keys) => Wake::Key(key?),
        };
        match wake {
            Wake::Key(b'q') => return Ok(Exit::Ok),
            Wake::Key(b'\t' | b'p') => section = section.next(),
            Wake::Key(_) => continue,
            Wake::Sample(sample) => {
                let Some(sample) = *sample else { break };
                // Asked for the first sample too: CPU is counted from the first look.
                let (processes, processes_error) = supervised(client).await?;
                if let Some(last) = &last {
                    shown = Some(Report { rates: rates::between(last, &sample), processes, processes_error });
                }
                last = Some(sample);
            }
        }
        let Some(report) = &shown else { continue };
        display.show(report, section)?;
        if args.once {
            return Ok(if report.rates.errors.is_empty() { Exit::Ok } else { Exit::Degraded });
        }
    }
    drop((keys, display));
    output::complain("the agent stopped\n");
    Ok(Exit::NotRunning)
}

/// The next key; where there is no terminal to press one, it never comes.
async fn pressed(keys: &mut Option<Keys>) -> io::Result<u8> {
    match keys {
        Some(keys) => keys.next().await,
        None => std::future::pending().await,
    }
}

/// What processes use, or why nothing is supervised.
async fn supervised(client: &Client) -> Result<(Vec<ProcessFigures>, Option<String>), Failure> {
    match client.get::<List>("/process").await {
        Ok(list) => Ok((processes::figures(list), None)),
        Err(ClientError::Refused(error)) if error.code == ErrorCode::NotReady => Ok((Vec::new(), Some(error.error))),
        Err(error) => Err(error.into()),
    }
}

/// Where the rates go.
enum Display {
    /// Redrawn in place.
    Live(Screen),
    /// One table after the other.
    Tables,
    /// One object a line.
    Json,
}

impl Display {
    fn choose(args: &TopArgs) -> io::Result<Self> {
        Ok(match (args.json, args.once || !io::stdout().is_terminal()) {
            (true, _) => Self::Json,
            (false, true) => Self::Tables,
            (false, false) => Self::Live(Screen::open()?),
        })
    }

    /// Of the terminal that is drawn on.
    fn keys(&self) -> Option<Keys> {
        match self {
            Self::Live(_) => Keys::of_standard_input(),
            Self::Tables | Self::Json => None,
        }
    }

    fn show(&mut self, report: &Report, section: Section) -> io::Result<()> {
        let text = || render(report, section, Style::of_stdout());
        match self {
            Self::Live(screen) => {
                let style = Style::of_stdout();
                screen.draw(&format!(
                    "{}\n{}",
                    style.paint(Tone::Faint, "p: peers, processes or both   q: quit"),
                    text()
                ))
            }
            Self::Tables => output::print(&(text() + "\n")),
            Self::Json => output::print_json_line(report),
        }
    }
}

fn render(report: &Report, section: Section, style: Style) -> String {
    let peers = || render_peers(&report.rates, style);
    let processes = || match &report.processes_error {
        Some(why) => format!("{}\n", style.paint(Tone::Faint, why)),
        None => processes::render(&report.processes, style),
    };
    match section {
        Section::All if !report.processes.is_empty() => format!("{}\n{}", peers(), processes()),
        Section::All | Section::Peers => peers(),
        Section::Processes => processes(),
    }
}

fn render_peers(rates: &Rates, style: Style) -> String {
    let mut table = Table::new(&[
        ("PEER", Align::Left),
        ("IN/s", Align::Right),
        ("OUT/s", Align::Right),
        ("PACKETS IN/s", Align::Right),
        ("OUT/s", Align::Right),
        ("TOTAL IN", Align::Right),
        ("TOTAL OUT", Align::Right),
    ]);
    for peer in &rates.peers {
        table.row(row(&peer.name, Tone::Neutral, &peer.rx, &peer.tx));
    }
    table.row(row("unattributed", Tone::Faint, &rates.unattributed_rx, &rates.unattributed_tx));
    let mut text = format!("{} peer(s), over {:.1} s\n", rates.peers.len(), rates.interval_ms as f64 / 1000.0);
    text.push_str(&table.render(style));
    for error in &rates.errors {
        text.push_str(&format!("{} {error}\n", style.paint(Tone::Bad, "missing:")));
    }
    text
}

fn row(name: &str, tone: Tone, rx: &Rate, tx: &Rate) -> Vec<output::Cell> {
    vec![
        toned(tone, name),
        cell(output::bytes(rx.bytes_per_second)),
        cell(output::bytes(tx.bytes_per_second)),
        cell(rx.packets_per_second.to_string()),
        cell(tx.packets_per_second.to_string()),
        cell(output::bytes(rx.bytes)),
        cell(output::bytes(tx.bytes)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_a_number_of_seconds_the_agent_accepts() {
        assert_eq!(parse_interval("0.5"), Ok(Duration::from_millis(500)));
        for wrong in ["0", "61", "-1", "NaN", "inf", "1s", ""] {
            assert!(parse_interval(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_table_shows_rates_and_totals() {
        let rates = Rates {
            interval_ms: 1000,
            peers: vec![rates::PeerRates {
                name: "beta".to_owned(),
                rx: Rate { bytes: 2048, packets: 4, bytes_per_second: 1024, packets_per_second: 2 },
                ..Default::default()
            }],
            errors: vec!["no counters".to_owned()],
            ..Default::default()
        };
        let text = render_peers(&rates, Style::Plain);
        assert!(text.starts_with("1 peer(s), over 1.0 s\nPEER "), "{text}");
        assert!(text.contains("1.00 KiB") && text.contains("2.00 KiB") && text.contains("unattributed"), "{text}");
        assert!(text.ends_with("missing: no counters\n"), "{text}");
    }

    #[test]
    fn sections_are_shown_alone_or_together_and_a_key_goes_round() {
        let report = |processes_error: Option<&str>| Report {
            rates: Rates::default(),
            processes: Vec::new(),
            processes_error: processes_error.map(str::to_owned),
        };
        let text = |report: &Report, section| render(report, section, Style::Plain);
        let has = |text: String| (text.contains("PEER"), text.contains("PROCESS"));
        let (empty, one) = (report(None), Report { processes: vec![processes::example()], ..report(None) });
        assert_eq!(has(text(&one, Section::All)), (true, true));
        assert_eq!(has(text(&one, Section::Peers)), (true, false));
        assert_eq!(has(text(&one, Section::Processes)), (false, true));
        assert_eq!(has(text(&empty, Section::All)), (true, false), "nothing is nothing to look at");
        let none = text(&report(Some("nothing is supervised")), Section::Processes);
        assert_eq!(none, "nothing is supervised\n");
        assert_eq!(Section::All.next().next().next(), Section::All);
    }
}
