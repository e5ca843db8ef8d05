//! Area `store`: members of our store against etcd, one and three of them, in alternation: 64 clients on 16 gRPC connections, 256
//! bytes a value, everything on this machine's disk and loopback.
//!
//! Both sides are driven by the same load generator (the example `store_bench`). Our members talk to each other by TLS with
//! certificates, as agents do; etcd's by plain TCP. A read is linearizable on both sides, and with three members two thirds of
//! the clients ask one that does not lead.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use integration_tests::process::Process;
use integration_tests::wait::eventually;
use serde_json::Value;

use super::agent::cpu_seconds;
use super::{Context, Row, Target, median};
use crate::repo;

const CLIENTS: &str = "64";
const CONNECTIONS: &str = "16";
const VALUE_BYTES: &str = "256";
/// Ports of loopback that nothing here uses otherwise: three a member and side.
const FIRST_PORT: u16 = 23_790;
const START_DEADLINE: Duration = Duration::from_secs(20);

/// A cluster of one side.
struct Cluster {
    kind: &'static str,
    members: Vec<Process>,
    addresses: Vec<String>,
    _directory: tempfile::TempDir,
}

/// One measurement.
#[derive(Debug, Clone, Copy)]
struct Sample {
    per_second: f64,
    p99_ms: f64,
    cpu_micros: f64,
}

pub(crate) fn run(context: &Context) -> Result<Vec<Row>> {
    repo::execute(&mut repo::cargo(&["build", "--release", "--package", "weft-agent", "--example", "store_bench"]))?;
    let program = repo::built("release", "examples/store_bench");
    let mut rows = Vec::new();
    for members in [1, 3] {
        let (ours, theirs) = (weft(&program, members)?, etcd(members)?);
        for (operation, name) in [("put", "durable writes"), ("get", "linearizable reads")] {
            let (mut our_samples, mut their_samples) = (Vec::new(), Vec::new());
            for _ in 0..context.rounds {
                their_samples.push(measure(&program, context, &theirs, operation)?);
                our_samples.push(measure(&program, context, &ours, operation)?);
            }
            rows.extend(compare(members, name, &our_samples, &their_samples));
        }
    }
    Ok(rows)
}

fn compare(members: usize, name: &str, ours: &[Sample], theirs: &[Sample]) -> [Row; 3] {
    let row = |what: &str, unit, figure: fn(&Sample) -> f64, target| Row {
        what: format!("{name}, {members} member(s), {CLIENTS} clients: {what}"),
        unit,
        ours: median(ours.iter().map(figure).collect()),
        alternative_name: "etcd".to_owned(),
        alternative: median(theirs.iter().map(figure).collect()),
        target,
    };
    [
        row("rate", "1/s", |sample| sample.per_second, Target::AtLeast(1.0)),
        row("p99", "ms", |sample| sample.p99_ms, Target::AtMost(1.0)),
        row("CPU each, all members", "us", |sample| sample.cpu_micros, Target::AtMost(1.0)),
    ]
}

fn measure(program: &Path, context: &Context, cluster: &Cluster, operation: &str) -> Result<Sample> {
    let cpu = || -> Result<f64> {
        cluster.members.iter().map(|member| cpu_seconds(member.pid())).try_fold(0.0, |sum, part| Ok(sum + part?))
    };
    let before = cpu()?;
    let mut command = Command::new(program);
    command.args(["load", cluster.kind, operation, CLIENTS, CONNECTIONS, &context.seconds.to_string(), VALUE_BYTES]);
    let text = repo::capture(command.args(&cluster.addresses))?;
    let used = cpu()? - before;
    let report: Value = serde_json::from_str(&text).with_context(|| format!("the load's report: {text}"))?;
    let number = |name: &str| report[name].as_f64().with_context(|| format!("{name} in {report}"));
    let (operations, failed) = (number("operations")?, number("failed")?);
    ensure!(failed == 0.0 && operations > 0.0, "{}: {report}", cluster.kind);
    Ok(Sample {
        per_second: operations / number("seconds")?,
        p99_ms: number("p99_ms")?,
        cpu_micros: used * 1e6 / operations,
    })
}

fn port(side: u16, member: usize, which: u16) -> String {
    let member = u16::try_from(member).unwrap_or_default();
    format!("127.0.0.1:{}", FIRST_PORT + side * 20 + member * 4 + which)
}

/// On the disk that the repository lies on: a directory in memory would sync nothing.
fn directory() -> Result<tempfile::TempDir> {
    let target = repo::root().join("target");
    fs::create_dir_all(&target)?;
    Ok(tempfile::Builder::new().prefix("bench-store-").tempdir_in(target)?)
}

fn weft(program: &Path, members: usize) -> Result<Cluster> {
    let directory = directory()?;
    let authority = directory.path().join("authority.pem");
    repo::execute(Command::new(program).arg("authority").arg(&authority))?;
    let side = u16::try_from(members).unwrap_or_default();
    let mut processes = Vec::new();
    let mut form = Command::new(program);
    form.arg("form");
    for member in 0..members {
        let (raft, grpc, node) = (port(side, member, 0), port(side, member, 1), format!("node-{member}"));
        let home = directory.path().join(&node);
        fs::create_dir(&home)?;
        let mut command = Command::new(program);
        command.arg("node").arg("--authority").arg(&authority).arg("--directory").arg(home);
        command.args(["--node", &node, "--raft", &raft, "--grpc", &grpc]);
        if member == 0 {
            form.arg(&grpc);
        } else {
            command.arg("--join");
            form.arg(format!("{grpc}={node}={raft}"));
        }
        processes.push(Process::spawn(&node, command)?);
    }
    repo::execute(&mut form)?;
    let addresses = (0..members).map(|member| port(side, member, 1)).collect();
    Ok(Cluster { kind: "weft", members: processes, addresses, _directory: directory })
}

fn etcd(members: usize) -> Result<Cluster> {
    let directory = directory()?;
    let side = u16::try_from(members).unwrap_or_default() + 4;
    let peers: Vec<String> =
        (0..members).map(|member| format!("etcd-{member}=http://{}", port(side, member, 0))).collect();
    let mut processes = Vec::new();
    for member in 0..members {
        let name = format!("etcd-{member}");
        let (peer, client) = (format!("http://{}", port(side, member, 0)), format!("http://{}", port(side, member, 1)));
        let home: PathBuf = directory.path().join(&name);
        let mut command = Command::new("etcd");
        command.args(["--name", &name, "--initial-cluster-state", "new", "--log-level", "error"]);
        command.arg("--data-dir").arg(home).args(["--initial-cluster", &peers.join(",")]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        processes.push(Process::spawn(&name, command)?);
    }
    for member in 0..members {
        let url = format!("http://{}/health", port(side, member, 1));
        let healthy = || {
            let output = Command::new("curl").args(["--silent", "--max-time", "1", &url]).output();
            output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("true"))
        };
        eventually(START_DEADLINE, "etcd is healthy", healthy)?;
    }
    let addresses = (0..members).map(|member| port(side, member, 1)).collect();
    Ok(Cluster { kind: "etcd", members: processes, addresses, _directory: directory })
}
