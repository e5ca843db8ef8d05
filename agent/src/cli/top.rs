//! `weft top`: rates from the difference of two samples of the counters.

mod rates;
pub(super) mod screen;

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use weft_proto::weft::v1 as proto;

use super::client::{Client, ClientError};
use super::output::{self, Align, Style, Table, Tone, cell, toned};
use super::{Exit, Failure, TopArgs};
use rates::{Rate, Rates};
use screen::Screen;

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
    let mut display = Display::choose(args)?;
    let mut last: Option<proto::CounterSample> = None;
    while let Some(sample) = samples.message().await.map_err(failed)? {
        if let Some(last) = &last {
            let rates = rates::between(last, &sample);
            display.show(&rates)?;
            if args.once {
                return Ok(if rates.errors.is_empty() { Exit::Ok } else { Exit::Degraded });
            }
        }
        last = Some(sample);
    }
    drop(display);
    output::complain("the agent stopped\n");
    Ok(Exit::NotRunning)
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

    fn show(&mut self, rates: &Rates) -> io::Result<()> {
        match self {
            Self::Live(screen) => screen.draw(&render(rates, Style::of_stdout())),
            Self::Tables => output::print(&(render(rates, Style::of_stdout()) + "\n")),
            Self::Json => output::print_json_line(rates),
        }
    }
}

fn render(rates: &Rates, style: Style) -> String {
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
        let text = render(&rates, Style::Plain);
        assert!(text.starts_with("1 peer(s), over 1.0 s\nPEER "), "{text}");
        assert!(text.contains("1.00 KiB") && text.contains("2.00 KiB") && text.contains("unattributed"), "{text}");
        assert!(text.ends_with("missing: no counters\n"), "{text}");
    }
}
