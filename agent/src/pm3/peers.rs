//! `/peers` and `/peers/alive`: this node and its peers, the live ones first.
//!
//! A peer is alive while its tunnel session can carry a packet. What nobody knows of a peer (its place, its provider) is
//! left out.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use serde::Serialize;

use super::call::{Call, Outcome};
use super::{MachineId, Pm3, json};
use crate::model::Model;
use crate::wireguard::status::PeerFigures;

/// A session is renewed after 120 s of traffic and refused after 180 s (WireGuard, section 6.1).
const SESSION: Duration = Duration::from_secs(180);

#[derive(Debug, PartialEq, Serialize)]
struct Peer {
    machine_id: String,
    host: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip: Option<IpAddr>,
    country: &'static str,
    /// Milliseconds since 1970 of the last proof of life; 0: never.
    heartbeat: u64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    me: bool,
    ud: serde_json::Map<String, serde_json::Value>,
}

pub(super) fn all(pm3: Arc<Pm3>, _call: Call) -> BoxFuture<'static, Outcome> {
    Box::pin(async move { json(&listed(&pm3, |_alive| true).await) })
}

pub(super) fn alive(pm3: Arc<Pm3>, _call: Call) -> BoxFuture<'static, Outcome> {
    Box::pin(async move { json(&listed(&pm3, |alive| alive).await) })
}

async fn listed(pm3: &Pm3, wanted: impl Fn(bool) -> bool) -> Vec<Peer> {
    let figures = pm3.agent.peers().await;
    let model = Arc::clone(&pm3.model.borrow());
    let mut peers = rows(&model, &figures, SystemTime::now());
    peers.retain(|(alive, _)| wanted(*alive));
    peers.into_iter().map(|(_, peer)| peer).collect()
}

/// This node, then the peers, the live ones first; each with whether it is alive.
fn rows(model: &Model, figures: &[PeerFigures], now: SystemTime) -> Vec<(bool, Peer)> {
    let own = Peer {
        machine_id: MachineId::of(&model.node.public_key).to_string(),
        host: model.node.id.to_string(),
        ip: model.node.addresses.first().map(ipnet::IpNet::addr),
        country: "XX",
        heartbeat: millis(now),
        me: true,
        ud: serde_json::Map::new(),
    };
    let mut rows = vec![(true, own)];
    rows.extend(model.peers().map(|peer| {
        let seen = figures.iter().find(|row| row.public_key == peer.public_key).and_then(|row| row.last_handshake);
        let alive = seen.is_some_and(|seen| now.duration_since(seen).unwrap_or_default() < SESSION);
        let row = Peer {
            machine_id: MachineId::of(&peer.public_key).to_string(),
            host: peer.name.to_string(),
            ip: peer.allowed_ips.iter().find(|prefix| prefix.prefix_len() == prefix.max_prefix_len()).map(|p| p.addr()),
            country: "XX",
            heartbeat: seen.map_or(0, millis),
            me: false,
            ud: serde_json::Map::new(),
        };
        (alive, row)
    }));
    rows.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| b.1.me.cmp(&a.1.me)).then_with(|| a.1.host.cmp(&b.1.host)));
    rows
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
