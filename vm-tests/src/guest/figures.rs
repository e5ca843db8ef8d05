//! What an agent and the kernel say about one peer, read through their own tools.

use anyhow::{Context as _, Result, ensure};
use integration_tests::agent::TestAgent;
use serde_json::Value;

use super::lab::{at, number};

/// One direction of a peer in `weft peers --json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counters {
    pub(crate) bytes: u64,
    pub(crate) packets: u64,
    pub(crate) tcp_bytes: u64,
    pub(crate) udp_bytes: u64,
}

/// A peer in `weft peers --json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) rx: Counters,
    pub(crate) tx: Counters,
    pub(crate) wireguard_rx_bytes: u64,
    pub(crate) wireguard_tx_bytes: u64,
}

/// The peer of this name.
pub(crate) fn peer(agent: &TestAgent<'_>, name: &str) -> Result<Peer> {
    let list = agent.cli_json(&["peers"])?;
    let peers = at(&list, "/peers")?.as_array().context("/peers is no list")?;
    let found = peers.iter().find(|peer| peer.get("name").and_then(Value::as_str) == Some(name));
    let peer = found.with_context(|| format!("weft peers does not list {name}: {list}"))?;
    Ok(Peer {
        rx: counters(peer, "rx")?,
        tx: counters(peer, "tx")?,
        wireguard_rx_bytes: number(peer, "/wireguard_rx_bytes")?,
        wireguard_tx_bytes: number(peer, "/wireguard_tx_bytes")?,
    })
}

fn counters(peer: &Value, direction: &str) -> Result<Counters> {
    let field = |name: &str| number(peer, &format!("/traffic/{direction}/{name}"));
    Ok(Counters {
        bytes: field("bytes")?,
        packets: field("packets")?,
        tcp_bytes: field("tcp_bytes")?,
        udp_bytes: field("udp_bytes")?,
    })
}

/// `wg show LINK WHAT` of a device with one peer: the words behind the peer's key.
pub(crate) fn wg(agent: &TestAgent<'_>, what: &str) -> Result<Vec<u64>> {
    let text = agent.host().run(&["wg", "show", agent.link(), what])?;
    let lines: Vec<_> = text.lines().collect();
    ensure!(lines.len() == 1, "wg shows {} peers on {}, wanted one", lines.len(), agent.link());
    let words = text.split_whitespace().skip(1).map(str::parse);
    words.collect::<Result<_, _>>().with_context(|| format!("wg show {what} printed {text:?}"))
}

/// The interface index of the agent's link; a link that is made anew has another.
pub(crate) fn ifindex(agent: &TestAgent<'_>) -> Result<u64> {
    let text = agent.host().run(&["ip", "-json", "link", "show", "dev", agent.link()])?;
    number(&serde_json::from_str(&text)?, "/0/ifindex")
}
