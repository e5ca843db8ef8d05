//! What a hop costs: a request of one host for a virtual host of another one, by `/hop/`, and the same straight to the other
//! one's address. Both go through the same tunnel and are answered by the same route.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use integration_tests::agent::{Settings, TestAgent};
use integration_tests::netns::NetNs;
use integration_tests::scenario::Scenario;
use integration_tests::wait::eventually;

use super::super::mesh::join;
use super::super::{Context, Row, Target, median};

const BUDGET_MICROS: f64 = 150.0;
/// Requests in a row on one connection.
const BATCH: usize = 200;
/// Batches a round: the two ways take turns often, so that a busy moment of the machine is a moment of both.
const BATCHES: usize = 5;
const DEADLINE: Duration = Duration::from_secs(30);
const PM3: &str = "127.0.3.3:80";
/// Answered without a file and without another server: what is left is the way.
const ROUTE: &str = "[[gateway.host.bench.route]]\nredirect = \"https://example.org/\"\n";

pub(super) fn run(context: &Context) -> Result<Row> {
    let scenario = Scenario::new(2)?;
    let alpha = TestAgent::start(scenario.host(0), Settings::new("alpha")?.binary(&context.weft))?;
    let beta = TestAgent::start(scenario.host(1), Settings::new("beta")?.binary(&context.weft).table(ROUTE))?;
    let address: SocketAddr = format!("{}:80", join(&alpha, &beta)?).parse().context("beta's address")?;
    let (host, pm3) = (scenario.host(0), PM3.parse()?);
    let direct = "GET / HTTP/1.1\r\nHost: bench\r\n\r\n";
    let hop = "GET /hop/beta/bench/ HTTP/1.1\r\nHost: pm3\r\n\r\n";
    eventually(DEADLINE, "beta answers by both ways", || {
        latencies(host, address, direct, 1).is_ok() && latencies(host, pm3, hop, 1).is_ok()
    })?;
    let (mut carried, mut straight) = (Vec::new(), Vec::new());
    for _ in 0..context.rounds * BATCHES {
        straight.extend(latencies(host, address, direct, BATCH)?);
        carried.extend(latencies(host, pm3, hop, BATCH)?);
    }
    let straight = median(straight);
    Ok(Row {
        what: format!("hop adds to a direct request of {straight:.0} us through the same tunnel, p50"),
        unit: "us",
        ours: median(carried) - straight,
        alternative_name: "budget".to_owned(),
        alternative: BUDGET_MICROS,
        target: Target::AtMost(1.0),
    })
}

/// Microseconds from each request to the last byte of its answer, one after another on one connection.
fn latencies(host: &NetNs, address: SocketAddr, request: &str, count: usize) -> Result<Vec<f64>> {
    let mut stream = host.enter(|| TcpStream::connect_timeout(&address, DEADLINE))?.context("no connection")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut took = Vec::with_capacity(count);
    let mut buffer = vec![0; 16 * 1024];
    for _ in 0..count {
        let begun = Instant::now();
        stream.write_all(request.as_bytes())?;
        let mut length = 0;
        while !is_whole(&buffer[..length])? {
            let more = stream.read(&mut buffer[length..])?;
            ensure!(more > 0, "closed within an answer: {}", String::from_utf8_lossy(&buffer[..length]));
            length += more;
        }
        took.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    Ok(took)
}

/// Whether an answer is there to its end; one that is no redirect is an error.
fn is_whole(answer: &[u8]) -> Result<bool> {
    let text = std::str::from_utf8(answer).context("an answer is text")?;
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return Ok(false) };
    ensure!(head.starts_with("HTTP/1.1 302"), "another answer than expected: {text}");
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    Ok(body.len() >= length.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::is_whole;

    #[test]
    fn an_answer_is_whole_with_its_body() {
        let check = |text: &str, expected| assert_eq!(is_whole(text.as_bytes()).ok(), expected, "{text}");
        check("HTTP/1.1 302 Found\r\nContent-", Some(false));
        check("HTTP/1.1 302 Found\r\nContent-Length: 2\r\n\r\na", Some(false));
        check("HTTP/1.1 302 Found\r\nContent-Length: 2\r\n\r\nab", Some(true));
        check("HTTP/1.1 302 Found\r\nx: y\r\n\r\n", Some(true));
        check("HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n", None);
    }
}
