//! `/metrics`, as curl, promtool and a real Prometheus see it.

use std::io::Write as _;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use integration_tests::agent::TestAgent;
use integration_tests::gate;
use integration_tests::process::Process;
use integration_tests::scenario::Scenario;
use integration_tests::wait::eventually;
use serde_json::Value;
use tempfile::TempDir;

use super::{DEADLINE, Mesh, ping};

const METRICS: &str = "http://127.0.0.1:9615/metrics";

#[test]
fn metrics_have_the_counters_of_each_peer() {
    if !gate::root_and(&["curl", "wg", "ip", "nsenter", "ping"]) {
        return;
    }
    let scenario = Scenario::new(2).expect("hosts");
    let mesh = Mesh::start(&scenario).expect("a mesh");
    ping(mesh.agents[0].host(), "10.80.0.2").expect("node-1 answers");
    let text = scrape(&mesh.agents[0]).expect("curl reads it");
    let counted = text.lines().find(|line| {
        line.starts_with("weft_") && line.contains("node-1") && line.contains("_bytes_total") && !line.ends_with(" 0")
    });
    assert!(counted.is_some(), "{text}");
}

#[test]
fn promtool_finds_nothing_to_complain_about() {
    if !gate::root_and(&["promtool", "curl", "wg", "ip", "nsenter", "ping"]) {
        return;
    }
    let scenario = Scenario::new(2).expect("hosts");
    let mesh = Mesh::start(&scenario).expect("a mesh");
    let text = scrape(&mesh.agents[0]).expect("curl reads it");
    let mut command = std::process::Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = command.spawn().expect("it is installed");
    promtool.stdin.take().expect("piped").write_all(text.as_bytes()).expect("it reads");
    let output = promtool.wait_with_output().expect("it ends");
    assert!(output.status.success() && output.stderr.is_empty(), "{}\n{text}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_real_prometheus_scrapes_the_agent() {
    if !gate::root_and(&["prometheus", "curl", "wg", "ip", "nsenter", "ping"]) {
        return;
    }
    let scenario = Scenario::new(2).expect("hosts");
    let mesh = Mesh::start(&scenario).expect("a mesh");
    ping(mesh.agents[0].host(), "10.80.0.2").expect("node-1 answers");
    let directory = TempDir::new().expect("a directory");
    let mut prometheus = prometheus(&mesh.agents[0], &directory).expect("it starts");
    let query = "up{job=\"weft\"}";
    prometheus
        .wait_for("Prometheus has scraped the agent", Duration::from_secs(60), || {
            sample(&mesh.agents[0], query).is_some_and(|value| value == "1")
        })
        .expect("it scrapes");
    eventually(DEADLINE, "a counter of node-1 has a value", || {
        sample(&mesh.agents[0], "sum({__name__=~\"weft_.*_bytes_total\",name=\"node-1\"})")
            .or_else(|| sample(&mesh.agents[0], "sum({__name__=~\"weft_.*_bytes_total\",peer=\"node-1\"})"))
            .is_some_and(|value| value != "0")
    })
    .expect("it is stored");
}

fn scrape(agent: &TestAgent<'_>) -> Result<String> {
    agent.host().run(&["curl", "--silent", "--show-error", "--fail", "--max-time", "5", METRICS])
}

fn prometheus(agent: &TestAgent<'_>, directory: &TempDir) -> Result<Process> {
    let config = directory.path().join("prometheus.yml");
    std::fs::write(
        &config,
        "global: {scrape_interval: 1s}\nscrape_configs: [{job_name: weft, static_configs: [{targets: ['127.0.0.1:9615']}]}]\n",
    )?;
    let mut command = agent.host().command("prometheus");
    command.arg(format!("--config.file={}", config.display()));
    command.arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()));
    command.arg("--web.listen-address=127.0.0.1:9090");
    Process::spawn("prometheus", command)
}

/// The value of the first result of a query; `None` while there is none.
fn sample(agent: &TestAgent<'_>, query: &str) -> Option<String> {
    ask(agent, query).ok().and_then(|answer| Some(answer["data"]["result"][0]["value"][1].as_str()?.to_owned()))
}

fn ask(agent: &TestAgent<'_>, query: &str) -> Result<Value> {
    let query = format!("query={query}");
    let words =
        ["curl", "-s", "--max-time", "5", "-G", "--data-urlencode", &query, "http://127.0.0.1:9090/api/v1/query"];
    let answer: Value = serde_json::from_str(&agent.host().run(&words)?).context("Prometheus answers in JSON")?;
    ensure!(answer["status"] == "success", "{answer}");
    Ok(answer)
}
