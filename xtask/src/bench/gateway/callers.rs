//! What it costs to know who calls: the kernel's record read by descriptor, against asking `sock_diag` afterwards, against
//! looking through `/proc`. The agent times its own classification and tells in `/metrics`.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use integration_tests::netns::NetNs;
use nix::sys::socket::{setsockopt, sockopt};

use super::{Context, PM3, Row, Target, median, owner, servers};

/// Connections that come and go, by how many threads.
const CHURN: usize = 100_000;
const THREADS: usize = 8;
/// As many are enough for a mean where each costs far more.
const FEW: usize = 2000;
const SCANS: usize = 20;
const BUDGET_MICROS: f64 = 5.0;
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn run(host: &NetNs, context: &Context) -> Result<Vec<Row>> {
    let storage = {
        let _agent = servers::agent(host, context, "")?;
        churn(host, CHURN)?
    };
    let sock_diag = {
        let _agent = servers::agent(host, context, "[gateway.caller]\nenabled = false\n")?;
        churn(host, FEW)?
    };
    let scan = host.enter(scan)??;
    let row = |against: &str, alternative| Row {
        what: "who calls, time for each accepted connection".to_owned(),
        unit: "us",
        ours: storage.micros,
        alternative_name: against.to_owned(),
        alternative,
        target: Target::AtMost(1.0),
    };
    Ok(vec![
        row("budget", BUDGET_MICROS),
        row("sock_diag", sock_diag.micros),
        row("looking through /proc", scan),
        Row {
            what: format!("callers known among {CHURN} connections that come and go"),
            unit: "",
            ours: storage.internal as f64,
            alternative_name: "all".to_owned(),
            alternative: CHURN as f64,
            target: Target::AtLeast(1.0),
        },
    ])
}

struct Churned {
    /// Answered as an internal caller.
    internal: usize,
    micros: f64,
}

fn churn(host: &NetNs, count: usize) -> Result<Churned> {
    let before = figures(host)?;
    let internal = host.enter(|| {
        std::thread::scope(|scope| -> Result<usize> {
            let threads: Vec<_> = (0..THREADS)
                .map(|_| scope.spawn(|| (0..count / THREADS).map(|_| once()).sum::<Result<usize>>()))
                .collect();
            threads.into_iter().map(|thread| thread.join().ok().context("a caller panicked")?).sum()
        })
    })??;
    let after = figures(host)?;
    let accepted = after.0 - before.0;
    ensure!(accepted >= count as f64, "only {accepted} of {count} connections were accepted");
    Ok(Churned { internal, micros: (after.1 - before.1) * 1e6 / accepted })
}

/// One connection with one call; 1 if it was answered as internal.
fn once() -> Result<usize> {
    let address: SocketAddr = PM3.parse()?;
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // Closed by a reset: a hundred thousand waiting ends would use up the ports.
    setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    stream.write_all(b"GET /ping HTTP/1.1\r\nHost: pm3\r\n\r\n")?;
    let mut answer = [0; 1024];
    let count = stream.read(&mut answer)?;
    Ok(usize::from(answer[..count].starts_with(b"HTTP/1.1 200 ")))
}

/// Connections accepted so far, and the seconds spent on their callers.
fn figures(host: &NetNs) -> Result<(f64, f64)> {
    let text = host.run(&["curl", "-sS", "--max-time", "10", "http://127.0.0.1:9615/metrics"])?;
    let figure = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).with_context(|| format!("no {name} in /metrics"))
    };
    Ok((figure("weft_gateway_connections_accepted_total")?, figure("weft_gateway_classification_seconds_total")?))
}

/// Microseconds of one look through `/proc`.
fn scan() -> Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let local = listener.local_addr()?;
    let _client = TcpStream::connect(local)?;
    let (_accepted, peer) = listener.accept()?;
    let mut took = Vec::new();
    for _ in 0..SCANS {
        let started = Instant::now();
        ensure!(owner::by_scanning(peer, local)? == std::process::id(), "another owner");
        took.push(started.elapsed().as_secs_f64() * 1e6);
    }
    Ok(median(took))
}
