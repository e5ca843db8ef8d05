//! A mesh of many: how soon a change is in a hundred tunnels, and what a thousand members cost a node.
//!
//! The hundred nodes are the program `mesh_followers`, which says what of them is real. The thousand members stand in the store
//! of a whole agent and do not run; a second whole agent follows it. Cost of a change: processor time of a whole agent.

use std::io::Write as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use integration_tests::agent::{Settings, TestAgent};
use integration_tests::scenario::Scenario;
use integration_tests::wait::eventually;

use super::super::agent::{cpu_seconds, resident_mb};
use super::{Context, Row, Target};
use crate::repo;

const FOLLOWERS: usize = 100;
const CHANGES: usize = 100;
const SPREAD_BUDGET_MS: f64 = 50.0;

const FEW: usize = 10;
const MANY: usize = 1000;
const RSS_BUDGET_MB: f64 = 80.0;
const CPU_BUDGET_PERCENT: f64 = 0.5;
/// What a change may cost among many, of what it costs among few.
const CHANGE_TARGET: f64 = 1.5;
/// An idle agent's wake-ups are seconds apart: the sample is that many measurements long.
const IDLE_SAMPLE: u64 = 8;
/// Enough that a tick of the processor's clock does not matter.
const MEASURED_CHANGES: usize = 200;
/// `REKEY_ATTEMPT_TIME`, with what the last of them were spread over and a little more.
const GIVEN_UP: Duration = Duration::from_secs(100);
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn run(context: &Context) -> Result<Vec<Row>> {
    let mut rows = spread(context)?;
    let few = cost(FEW, context)?;
    let many = cost(MANY, context)?;
    let budget = |what: String, unit, ours, alternative| Row {
        what,
        unit,
        ours,
        alternative_name: "budget".to_owned(),
        alternative,
        target: Target::AtMost(1.0),
    };
    for (part, few, many) in [("keeps the state", few.keeper, many.keeper), ("follows", few.follower, many.follower)] {
        rows.push(budget(
            format!("memory of a node that {part}, {MANY} members"),
            "MB",
            many.resident_mb,
            RSS_BUDGET_MB,
        ));
        rows.push(budget(
            format!("idle CPU of a node that {part}, {MANY} members"),
            "%",
            many.idle_percent,
            CPU_BUDGET_PERCENT,
        ));
        rows.push(Row {
            what: format!("CPU of a node that {part} for one changed member of {MANY}"),
            unit: "us",
            ours: many.change_us,
            alternative_name: format!("of {FEW}"),
            alternative: few.change_us,
            target: Target::AtMost(CHANGE_TARGET),
        });
    }
    Ok(rows)
}

/// From asking for a change to the last of the tunnels.
fn spread(context: &Context) -> Result<Vec<Row>> {
    repo::execute(&mut repo::cargo(&["build", "--release", "--package", "weft-agent", "--example", "mesh_followers"]))?;
    let scenario = Scenario::new(2)?;
    let alpha = TestAgent::start(scenario.host(0), Settings::new("alpha")?.binary(&context.weft))?;
    let mut tokens = String::new();
    for _ in 0..FOLLOWERS + CHANGES.div_ceil(2) {
        let made = alpha.cli_json(&["token", "create"])?;
        tokens.push_str(made["token"].as_str().context("no token was made")?);
        tokens.push('\n');
    }
    let mut command = scenario.host(1).command(repo::built("release", "examples/mesh_followers"));
    command.args([Scenario::address(0), FOLLOWERS.to_string(), CHANGES.to_string()]);
    // A hundred nodes do not share a disk.
    command.env("TMPDIR", "/dev/shm").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().context("mesh_followers starts")?;
    child.stdin.take().context("it has an input")?.write_all(tokens.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "mesh_followers ended with {}", output.status);
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).context("it prints JSON")?;
    let times: Vec<f64> = serde_json::from_value(told["times_ms"].clone()).context("it tells its times")?;
    let at = |share: usize| times.get(times.len() * share / 100).copied().context("a time");
    let row = |what: &str, ours| Row {
        what: format!("member joins or leaves, until {FOLLOWERS} devices hold it, {what}"),
        unit: "ms",
        ours,
        alternative_name: "budget".to_owned(),
        alternative: SPREAD_BUDGET_MS,
        target: Target::AtMost(1.0),
    };
    Ok(vec![row("median", at(50)?), row("p99", at(99)?)])
}

/// What one agent costs.
#[derive(Debug, Clone, Copy)]
struct Cost {
    resident_mb: f64,
    idle_percent: f64,
    change_us: f64,
}

struct Costs {
    keeper: Cost,
    follower: Cost,
}

fn cost(members: usize, context: &Context) -> Result<Costs> {
    let scenario = Scenario::new(2)?;
    let settings = |name: &str, number: usize, role: &str| -> Result<Settings> {
        let mesh = format!("[mesh]\nendpoint = \"{}\"\nrole = \"{role}\"", Scenario::address(number));
        Ok(Settings::new(name)?.binary(&context.weft).table(&mesh))
    };
    let mut alpha = TestAgent::start(scenario.host(0), settings("alpha", 0, "auto")?)?;
    let mut beta = TestAgent::start(scenario.host(1), settings("beta", 1, "edge")?)?;
    super::join(&alpha, &beta)?;
    alpha.cli_text(&["store", "exec", "--own-table", "weft_members", &fill(members)])?;
    eventually(PATIENCE, "beta has them all", || peers(&beta).is_some_and(|peers| peers == members + 1))?;
    let pids = [alpha.process().context("alpha runs")?.pid(), beta.process().context("beta runs")?.pid()];
    // The members do not answer: until they are given up, what is measured is handshakes.
    std::thread::sleep(GIVEN_UP);
    let before = pids.map(cpu_seconds);
    let started = Instant::now();
    std::thread::sleep(Duration::from_secs(IDLE_SAMPLE * context.seconds));
    let elapsed = started.elapsed().as_secs_f64();
    let idle = used(pids, before)?.map(|seconds| seconds / elapsed * 100.0);
    let memory = [resident_mb(pids[0])?, resident_mb(pids[1])?];
    let before = pids.map(cpu_seconds);
    for change in 0..MEASURED_CHANGES {
        let sql = format!("UPDATE weft_members SET wireguard_port = {} WHERE id = 'x00001'", 10_000 + change);
        alpha.cli_text(&["store", "exec", "--own-table", "weft_members", &sql])?;
    }
    let changed = used(pids, before)?.map(|seconds| seconds * 1e6 / MEASURED_CHANGES as f64);
    let cost = |at: usize| Cost { resident_mb: memory[at], idle_percent: idle[at], change_us: changed[at] };
    Ok(Costs { keeper: cost(0), follower: cost(1) })
}

/// Processor time since `before`.
fn used(pids: [u32; 2], before: [Result<f64>; 2]) -> Result<[f64; 2]> {
    let [first, second] = before;
    Ok([cpu_seconds(pids[0])? - first?, cpu_seconds(pids[1])? - second?])
}

fn peers(agent: &TestAgent<'_>) -> Option<usize> {
    let status = agent.cli_json(&["status"]).ok()?;
    usize::try_from(status["wireguard"]["peers"].as_u64()?).ok()
}

/// Members that do not run, at addresses where nobody answers.
fn fill(members: usize) -> String {
    format!(
        "WITH RECURSIVE number(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < {members}) \
         INSERT INTO weft_members (id, public_key, certificate_key, raft_port, grpc_port, wireguard_port, primary_endpoint, \
         endpoints, ipv4, ipv6, is_founder, created_at, updated_at, seat, raft_address) \
         SELECT printf('x%05d', n), printf('%042dA=', n), printf('%064x', n), 0, 8443, 51820, '192.0.2.200', '192.0.2.200', \
         printf('10.80.%d.%d', 100 + n / 250, n % 250 + 1), printf('fd99:0:0:%x::/64', n), 0, 0, 0, 'edge', NULL FROM number"
    )
}
