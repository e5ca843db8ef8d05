//! `weft tail --mesh`: the logs of all nodes as one.
//!
//! Every node is asked by a hop through the gateway of this host. Live lines are asked for before the history, so that none is
//! missing between the two; those that come both ways are shown once. History is merged by time; live lines are shown as they
//! come. A reader that is too slow keeps nobody waiting: each node says how many of its lines are missing. A node that does not
//! answer, or ends, is named on standard error, and the others go on.

use std::collections::HashMap;
use std::net::SocketAddr;

use futures_util::stream::{self, StreamExt as _};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::mpsc;
use weft_proto::weft::v1 as proto;

use crate::cli::client::{Client, ClientError, Lines};
use crate::cli::mesh::hop::{HopError, gateway};
use crate::cli::{Exit, Failure, output};
use crate::foundation::error::chain;
use crate::foundation::task;

/// Nodes that are asked at once; one that is not there takes its time to say so.
const AT_ONCE: usize = 64;
/// Lines on their way to the terminal. When it is full the nodes wait with theirs and count what they leave out.
const WAITING: usize = 1024;

#[derive(Deserialize)]
struct Peer {
    host: String,
}

/// What one node has answered.
struct Node {
    name: String,
    history: Vec<String>,
    live: Option<Lines>,
}

/// Prints the lines of every node, each as `show` makes it of the node's name and the line.
pub(super) async fn run(
    client: &Client,
    options: &Value,
    most: usize,
    show: impl Fn(&str, &str) -> String,
) -> Result<Exit, Failure> {
    let status: proto::Status = client.get("/status").await?;
    let address = gateway(&status.gateway.unwrap_or_default()).ok_or(HopError::NoGateway)?;
    let names = names(address).await?;
    let asked = names.into_iter().map(|name| async move {
        let answer = ask(address, &name, options).await;
        (name, answer)
    });
    let mut asked = stream::iter(asked).buffer_unordered(AT_ONCE);
    let (mut nodes, mut exit) = (Vec::new(), Exit::Ok);
    while let Some((name, answer)) = asked.next().await {
        match answer {
            Ok(node) => nodes.push(node),
            Err(error) => {
                output::complain(&format!("weft: {name} does not answer: {}\n", chain(&error)));
                exit = Exit::Failed;
            }
        }
    }
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    for (node, line) in merged(&nodes, most) {
        output::print(&show(node, line))?;
    }
    follow(nodes, show).await?;
    Ok(exit)
}

/// This node and its peers, by name.
async fn names(address: SocketAddr) -> Result<Vec<String>, ClientError> {
    let mut lines = Lines::from_gateway(address, "/peers", "").await?;
    let mut text = String::new();
    while let Some(line) = lines.next().await? {
        text.push_str(&line);
    }
    let peers: Vec<Peer> =
        serde_json::from_str(&text).map_err(|source| ClientError::Answer { what: "the nodes".to_owned(), source })?;
    Ok(peers.into_iter().map(|peer| peer.host).collect())
}

async fn ask(address: SocketAddr, name: &str, options: &Value) -> Result<Node, ClientError> {
    let path = format!("/hop/{name}/pm3/tail");
    let mut options = options.clone();
    let is_followed = options["follow"] == true;
    let live = match is_followed {
        true => {
            let mut live = options.clone();
            live["io_limit"] = Value::from(0);
            Some(Lines::from_gateway(address, &path, &live.to_string()).await?)
        }
        false => None,
    };
    options["follow"] = Value::from(false);
    let mut lines = Lines::from_gateway(address, &path, &options.to_string()).await?;
    let mut history = Vec::new();
    while let Some(line) = lines.next().await? {
        history.push(line);
    }
    Ok(Node { name: name.to_owned(), history, live })
}

/// The newest `most` lines of all, by time; those of one node keep their order.
fn merged(nodes: &[Node], most: usize) -> Vec<(&str, &str)> {
    let mut all: Vec<(u64, &str, &str)> = Vec::new();
    for node in nodes {
        all.extend(node.history.iter().map(|line| (time(line), node.name.as_str(), line.as_str())));
    }
    all.sort_by_key(|(time, _, _)| *time);
    let skipped = all.len().saturating_sub(most);
    all.into_iter().skip(skipped).map(|(_, node, line)| (node, line)).collect()
}

fn time(line: &str) -> u64 {
    #[derive(Deserialize)]
    struct Head {
        t: u64,
    }
    serde_json::from_str(line).map_or(0, |head: Head| head.t)
}

async fn follow(nodes: Vec<Node>, show: impl Fn(&str, &str) -> String) -> Result<(), Failure> {
    let (lines_tx, mut lines) = mpsc::channel::<(String, String)>(WAITING);
    let mut readers = Vec::new();
    for Node { name, history, live } in nodes {
        let Some(live) = live else { continue };
        let lines_tx = lines_tx.clone();
        readers.push(task::spawn("tail", async move {
            let why = read(&name, live, Shown::new(history), &lines_tx).await;
            output::complain(&format!("weft: {name} tells nothing more: {why}\n"));
        }));
    }
    drop(lines_tx);
    while let Some((node, line)) = lines.recv().await {
        output::print(&show(&node, &line))?;
    }
    drop(readers);
    Ok(())
}

async fn read(name: &str, mut live: Lines, mut shown: Shown, lines: &mpsc::Sender<(String, String)>) -> String {
    loop {
        match live.next().await {
            Ok(Some(line)) if shown.has(&line) => {}
            Ok(Some(line)) => {
                if lines.send((name.to_owned(), line)).await.is_err() {
                    return "nobody reads it".to_owned();
                }
            }
            Ok(None) => return "it has ended".to_owned(),
            Err(error) => return chain(&error),
        }
    }
}

/// Lines of the history that may come again, and how often.
struct Shown {
    lines: HashMap<String, usize>,
    last: u64,
}

impl Shown {
    fn new(history: Vec<String>) -> Self {
        let last = history.last().map_or(0, |line| time(line));
        let mut lines = HashMap::new();
        for line in history {
            *lines.entry(line).or_default() += 1;
        }
        Self { lines, last }
    }

    /// Whether `line` was part of the history. Once one is newer than all of that, none will be.
    fn has(&mut self, line: &str) -> bool {
        if let Some(count) = self.lines.get_mut(line).filter(|count| **count > 0) {
            *count -= 1;
            return true;
        }
        if time(line) > self.last {
            self.lines = HashMap::new();
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(time: u64, text: &str) -> String {
        format!("{{\"t\":{time},\"l\":\"info\",\"dom\":\"dns\",\"msg\":\"{text}\"}}")
    }

    fn node(name: &str, lines: &[(u64, &str)]) -> Node {
        let history = lines.iter().map(|(time, text)| line(*time, text)).collect();
        Node { name: name.to_owned(), history, live: None }
    }

    #[test]
    fn history_is_the_newest_of_all_nodes_by_time() {
        let nodes = [node("alpha", &[(1, "a"), (4, "b"), (4, "c")]), node("beta", &[(2, "d"), (5, "e")])];
        let told = |most| -> Vec<(String, String)> {
            merged(&nodes, most).into_iter().map(|(node, line)| (node.to_owned(), line.to_owned())).collect()
        };
        let expect = |node: &str, time, text| (node.to_owned(), line(time, text));
        let all = [
            expect("alpha", 1, "a"),
            expect("beta", 2, "d"),
            expect("alpha", 4, "b"),
            expect("alpha", 4, "c"),
            expect("beta", 5, "e"),
        ];
        assert_eq!(told(100), all);
        assert_eq!(told(2), all[3..]);
        assert!(told(0).is_empty());
    }

    #[test]
    fn a_line_that_was_history_is_not_shown_again() {
        let mut shown = Shown::new(vec![line(1, "a"), line(2, "b"), line(2, "b")]);
        assert!(shown.has(&line(2, "b")));
        assert!(!shown.has(&line(2, "c")), "another of the same time");
        assert!(shown.has(&line(2, "b")));
        assert!(!shown.has(&line(2, "b")), "as often as it was there");
        assert!(!shown.has(&line(3, "d")));
        assert!(shown.lines.is_empty(), "nothing is kept for ever");
    }
}
