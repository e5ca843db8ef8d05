//! `weft doctor`.

use std::fmt::Write as _;

use serde::Serialize;
use weft_proto::weft::v1 as proto;

use super::client::{Client, ClientError};
use super::output::{self, Style, Tone};
use super::{Exit, Failure};
use crate::api::view;
use crate::doctor::{self, Finding, Level, assess, probe};

/// The JSON of `weft doctor --json`.
#[derive(Debug, Serialize)]
struct Report {
    schema: u32,
    findings: Vec<Finding>,
    /// What the running agent uses; absent when none answers.
    agent: Option<Agent>,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Agent {
    /// What it uses, a line each.
    uses: Vec<String>,
    fallbacks: Vec<String>,
    problems: Vec<String>,
}

pub(super) async fn run(client: &Client, json: bool) -> Result<Exit, Failure> {
    let agent = match client.get::<proto::Status>("/status").await {
        Ok(status) => {
            let mut agent = agent(&status);
            match super::store::summary(client).await {
                Ok(line) => agent.uses.push(format!("store: {line}")),
                Err(error) => agent.problems.push(format!("store: it does not say how it is: {error}")),
            }
            Some(agent)
        }
        // The host can be looked at without it.
        Err(ClientError::NotRunning(_) | ClientError::Denied(_)) => None,
        Err(error) => return Err(error.into()),
    };
    let report = Report { schema: view::SCHEMA, findings: assess::assess(&probe::probe()), agent };
    if json {
        output::print_json(&report)?;
    } else {
        output::print(&render(&report, Style::of_stdout()))?;
    }
    Ok(exit(&report))
}

fn exit(report: &Report) -> Exit {
    let agent_degraded =
        report.agent.as_ref().is_some_and(|agent| !agent.fallbacks.is_empty() || !agent.problems.is_empty());
    if agent_degraded || doctor::is_degraded(&report.findings) { Exit::Degraded } else { Exit::Ok }
}

/// What the status says about the facilities.
fn agent(status: &proto::Status) -> Agent {
    let backend = status.wireguard.as_ref().and_then(|wireguard| wireguard.backend.as_deref());
    let hook = status.accounting.as_ref().and_then(|accounting| accounting.hook.as_deref());
    let table = status.firewall.as_ref().and_then(|firewall| firewall.table.as_deref());
    let resolver = status.dns.as_ref().and_then(|dns| dns.hook.as_deref());
    let callers = status.gateway.as_ref().and_then(|gateway| gateway.callers.as_deref());
    let bus = status.bus.as_ref().map(super::status::bus_line);
    let uses = [
        ("WireGuard", backend.unwrap_or("no device yet")),
        ("accounting", hook.unwrap_or("nothing is counted")),
        ("nftables", table.unwrap_or("no table")),
        ("host resolver", resolver.unwrap_or("left alone")),
        ("message bus", bus.as_deref().unwrap_or("off (bus.enabled)")),
        ("callers", callers.unwrap_or("no gateway, so nobody calls")),
    ];
    Agent {
        uses: uses.iter().map(|(facility, used)| format!("{facility}: {used}")).collect(),
        fallbacks: status.fallbacks.clone(),
        problems: status.problems.clone(),
    }
}

const INTO_STRING: &str = "writing to a String cannot fail";

fn render(report: &Report, style: Style) -> String {
    let width = report.findings.iter().map(|finding| finding.facility.len()).max().unwrap_or_default();
    let mut text = String::new();
    for finding in &report.findings {
        text.push_str(&render_finding(finding, width, style));
    }
    match &report.agent {
        None => text.push_str("\nNo agent was asked; this is what one would find.\n"),
        Some(agent) => text.push_str(&render_agent(agent, style)),
    }
    text
}

fn render_finding(finding: &Finding, width: usize, style: Style) -> String {
    let (word, tone) = match finding.level {
        Level::Ok => ("ok", Tone::Good),
        Level::Note => ("note", Tone::Neutral),
        Level::Unknown => ("unknown", Tone::Faint),
        Level::Fallback => ("fallback", Tone::Warning),
        Level::Missing => ("missing", Tone::Bad),
    };
    let word = style.paint(tone, &format!("{word:<8}"));
    let mut text = format!("{word}  {:<width$}  {}\n", finding.facility, finding.found);
    if finding.level == Level::Ok {
        return text;
    }
    let details =
        [("used for", Some(finding.used_for)), ("instead", finding.fallback), ("fix", finding.fix.as_deref())];
    for (name, detail) in details {
        if let Some(detail) = detail {
            writeln!(text, "          {:<width$}  {}", "", style.paint(Tone::Faint, &format!("{name}: {detail}")))
                .expect(INTO_STRING);
        }
    }
    text
}

fn render_agent(agent: &Agent, style: Style) -> String {
    let mut text = format!("\n{}\n", style.paint(Tone::Heading, "The running agent uses"));
    let painted = [(Tone::Neutral, &agent.uses), (Tone::Warning, &agent.fallbacks), (Tone::Bad, &agent.problems)];
    for (tone, lines) in painted {
        for line in lines {
            writeln!(text, "  {}", style.paint(tone, line)).expect(INTO_STRING);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(level: Level) -> Finding {
        Finding {
            facility: "tcx",
            level,
            found: "needs Linux 6.6".to_owned(),
            used_for: "counting",
            fallback: Some("clsact"),
            fix: Some("boot Linux 6.6 or newer".to_owned()),
        }
    }

    fn report(level: Level, agent: Option<Agent>) -> Report {
        Report { schema: 1, findings: vec![finding(level)], agent }
    }

    #[test]
    fn a_fallback_shows_use_replacement_and_fix() {
        let expected = "\
fallback  tcx  needs Linux 6.6
               used for: counting
               instead: clsact
               fix: boot Linux 6.6 or newer

No agent was asked; this is what one would find.
";
        assert_eq!(render(&report(Level::Fallback, None), Style::Plain), expected);
    }

    #[test]
    fn the_exit_code_tells_whether_to_act() {
        assert_eq!(exit(&report(Level::Note, None)), Exit::Ok);
        assert_eq!(exit(&report(Level::Missing, None)), Exit::Degraded);
        let degraded = Agent { problems: vec!["dns: …".to_owned()], ..Default::default() };
        assert_eq!(exit(&report(Level::Ok, Some(degraded))), Exit::Degraded);
    }

    #[test]
    fn what_the_agent_uses_is_shown() {
        let status = proto::Status {
            wireguard: Some(proto::WireguardStatus { backend: Some("kernel".to_owned()), ..Default::default() }),
            ..Default::default()
        };
        let text = render(&report(Level::Ok, Some(agent(&status))), Style::Plain);
        assert!(text.contains("WireGuard: kernel") && text.contains("accounting: nothing is counted"), "{text}");
    }
}
