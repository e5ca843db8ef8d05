//! Area `mesh`: how soon a node that joins reaches another one, and how soon a mesh whose leader is killed takes writes again.
//!
//! Whole agents in namespaces, on the backend that the kernel has. The budgets are absolute: the alternative is the limit.
//! What a mesh of many costs: [`crowd`].

mod crowd;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use integration_tests::agent::{Settings, TestAgent};
use integration_tests::process::Process;
use integration_tests::scenario::Scenario;
use integration_tests::wait::eventually;

use super::{Context, Row, Target, median};

const JOIN_BUDGET_MS: f64 = 500.0;
const WRITES_BUDGET_MS: f64 = 2000.0;
/// Packets lost; the ratio to one is to stay below one.
const LOSS_BUDGET: f64 = 1.0;
/// One in ten milliseconds while another one is elected.
const PINGS: u32 = 500;
const DEADLINE: Duration = Duration::from_secs(30);

/// One round.
struct Round {
    join_ms: f64,
    writes_ms: f64,
    lost: f64,
}

pub(crate) fn run(context: &Context) -> Result<Vec<Row>> {
    let rounds = (0..context.rounds).map(|_round| round(context)).collect::<Result<Vec<_>>>()?;
    let row = |what: &str, unit, figure: fn(&Round) -> f64, alternative, target| Row {
        what: what.to_owned(),
        unit,
        ours: median(rounds.iter().map(figure).collect()),
        alternative_name: "budget".to_owned(),
        alternative,
        target,
    };
    let at_most = Target::AtMost(1.0);
    let mut rows = vec![
        row("weft join to the first answer to a ping", "ms", |round| round.join_ms, JOIN_BUDGET_MS, at_most),
        row("leader killed to the first write", "ms", |round| round.writes_ms, WRITES_BUDGET_MS, at_most),
        row("pings lost between the others meanwhile", "packets", |round| round.lost, LOSS_BUDGET, Target::AtMost(0.0)),
    ];
    rows.extend(crowd::run(context)?);
    Ok(rows)
}

fn round(context: &Context) -> Result<Round> {
    let scenario = Scenario::new(3)?;
    let start =
        |number: usize, name: &str| TestAgent::start(scenario.host(number), Settings::new(name)?.binary(&context.weft));
    let (mut alpha, beta, gamma) = (start(0, "alpha")?, start(1, "beta")?, start(2, "gamma")?);
    join(&alpha, &beta)?;
    let began = Instant::now();
    let address = join(&alpha, &gamma)?;
    eventually(DEADLINE, "gamma is reached", || {
        scenario.host(0).run(&["ping", "-c", "1", "-W", "1", &address]).is_ok()
    })?;
    let join_ms = milliseconds(began);
    eventually(DEADLINE, "three nodes vote", || {
        [&beta, &gamma].iter().all(|agent| {
            let mesh = agent.cli_json(&["status"]).map_or(serde_json::Value::Null, |status| status["mesh"].clone());
            mesh["voters"] == 3 && mesh["part"] == "keeps"
        })
    })?;
    beta.cli_text(&["store", "exec", "CREATE TABLE t (a INTEGER PRIMARY KEY)"])?;
    eventually(DEADLINE, "beta reaches gamma", || {
        scenario.host(1).run(&["ping", "-c", "1", "-W", "1", &address]).is_ok()
    })?;
    let mut command = scenario.host(1).command("ping");
    command.args(["-i", "0.01", "-c", &PINGS.to_string(), "-q", &address]);
    let pinging = Process::spawn("ping", command)?;
    alpha.kill9()?;
    let killed = Instant::now();
    beta.cli_text(&["store", "exec", "INSERT INTO t DEFAULT VALUES"])?;
    let writes_ms = milliseconds(killed);
    eventually(DEADLINE, "the pings are over", || pinging.log().contains("packets transmitted"))?;
    let lost = f64::from(PINGS) - received(&pinging.log()).context("ping says how many packets it received")?;
    Ok(Round { join_ms, writes_ms, lost })
}

/// Joins, and gives the joiner's IPv4 address.
pub(super) fn join(member: &TestAgent<'_>, joiner: &TestAgent<'_>) -> Result<String> {
    let made = member.cli_json(&["token", "create"])?;
    let token = made["token"].as_str().context("no token was made")?;
    let joined = joiner.cli_json(&["join", &Scenario::address(0), "--token", token])?;
    let address = joined["addresses"][0].as_str().and_then(|address| address.split('/').next());
    Ok(address.context("no address was given")?.to_owned())
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

/// From `500 packets transmitted, 500 received, 0% packet loss, time 5000ms`.
fn received(report: &str) -> Option<f64> {
    let line = report.lines().find(|line| line.contains("packets transmitted"))?;
    line.split(", ").find_map(|part| part.strip_suffix(" received"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn pings_that_came_back_are_counted() {
        let report =
            "\n--- 10.80.0.3 ping statistics ---\n500 packets transmitted, 498 received, 0.4% packet loss, time 5ms\n";
        assert_eq!(super::received(report), Some(498.0));
        assert_eq!(super::received("nothing"), None);
    }
}
