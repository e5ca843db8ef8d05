//! What the domains publish, as the versioned messages of `weft.v1`: the one place that converts.
//!
//! Pure but for reading the newest value of each `watch`. The messages serve gRPC and JSON alike.

use std::collections::BTreeMap;
use std::time::SystemTime;

use weft_proto::weft::v1 as proto;

use super::{Figures, Sources, gateway};
use crate::ebpf::status::{Counters, Hook, PeerCounters};
use crate::model::key::PublicKey;
use crate::model::peer::Peer;
use crate::model::{Model, Relay};
use crate::wireguard::status::PeerFigures;
use crate::{bus, dns, ebpf, net, wireguard};

/// The number of the schema; it changes when a field loses its meaning, not when one is added.
pub const SCHEMA: u32 = 1;

/// A session is renewed after 120 s of traffic and refused after 180 s (WireGuard, section 6.1): an older handshake
/// cannot carry a packet.
const SESSION_SECONDS: u64 = 180;

/// The state of the agent now.
pub fn status(sources: &Sources) -> proto::Status {
    let model = sources.model.borrow().clone();
    let wireguard = wireguard_status(&model, &sources.wireguard.borrow());
    let network = network_status(&sources.net.borrow());
    let firewall = firewall_status(&sources.firewall.borrow());
    let accounting = accounting_status(&sources.accounting.borrow());
    let dns = dns_status(&model, &sources.dns.borrow());
    let waiting_for: Vec<String> = sources.readiness.pending().into_iter().map(str::to_owned).collect();
    let mesh = mesh_status(sources);
    let store = store_status(&sources.store.status().borrow(), sources.store.disk_problem());
    let problems = problems([
        ("wireguard", &wireguard.errors),
        ("network", &network.errors),
        ("firewall", &firewall.errors),
        ("accounting", &accounting.errors),
        ("dns", &dns.errors),
        ("gateway", &sources.gateway.borrow().errors),
        ("message bus", &sources.bus.borrow().errors),
        ("mesh", &mesh.errors),
        ("store", &store.errors),
    ]);
    let gateway = gateway_status(&sources.gateway.borrow());
    let mut fallbacks = fallbacks(&wireguard, &accounting);
    fallbacks.extend(gateway.callers_fallback_reason.iter().map(|reason| format!("callers of the gateway: {reason}")));
    let notices = notices(&sources.net.borrow(), &sources.firewall.borrow());
    proto::Status {
        schema: SCHEMA,
        node: model.node.id.to_string(),
        instance: sources.instance.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        uptime_seconds: sources.started.elapsed().as_secs(),
        state: state(&waiting_for, &problems).to_owned(),
        waiting_for,
        problems,
        fallbacks,
        notices,
        wireguard: Some(wireguard),
        network: Some(network),
        firewall: Some(firewall),
        accounting: Some(accounting),
        dns: Some(dns),
        gateway: Some(gateway),
        store: Some(store),
        mesh: Some(mesh),
        bus: bus_status(&sources.bus.borrow()),
    }
}

/// What keeps an agent from being ready: parts that have not come up, or no tunnel link. Empty: it is ready.
pub fn not_ready(status: &proto::Status) -> Vec<String> {
    let no_link = status.wireguard.as_ref().is_none_or(|wireguard| wireguard.link.is_none());
    let link = no_link.then(|| "the tunnel link does not exist".to_owned());
    status.waiting_for.iter().map(|part| format!("{part} has not come up yet")).chain(link).collect()
}

fn state(waiting_for: &[String], problems: &[String]) -> &'static str {
    match (waiting_for, problems) {
        ([], []) => "ready",
        ([], _) => "degraded",
        _ => "starting",
    }
}

fn problems<const N: usize>(parts: [(&str, &Vec<String>); N]) -> Vec<String> {
    parts.iter().flat_map(|(part, errors)| errors.iter().map(move |error| format!("{part}: {error}"))).collect()
}

fn fallbacks(wireguard: &proto::WireguardStatus, accounting: &proto::AccountingStatus) -> Vec<String> {
    let wireguard = wireguard.fallback_reason.iter().map(|reason| format!("wireguard: embedded device, {reason}"));
    let hook = accounting.hook.as_deref().unwrap_or("nothing is counted");
    let accounting = accounting.fallback_reason.iter().map(|reason| format!("accounting: {hook}, {reason}"));
    wireguard.chain(accounting).collect()
}

fn notices(net: &net::status::Status, firewall: &net::status::FirewallStatus) -> Vec<String> {
    let network = net.notices.iter().map(|notice| format!("network: {notice}"));
    network.chain(firewall.notices.iter().map(|notice| format!("firewall: {notice}"))).collect()
}

fn mesh_status(sources: &Sources) -> proto::MeshStatus {
    let mesh = sources.mesh.borrow().clone();
    proto::MeshStatus {
        id: sources.identity.mesh().to_string(),
        part: if sources.mesh_handle.keeps() { "keeps" } else { "follows" }.to_owned(),
        leader: mesh.leader.as_ref().map(ToString::to_string),
        members: as_u64(mesh.members.len()),
        voters: as_u64(mesh.members.values().filter(|member| member.is_voter).count()),
        errors: sources.mesh_handle.errors(),
        relayed: mesh
            .blocked_pairs()
            .into_iter()
            .map(|pair| proto::RelayedPair {
                first: pair.first.to_string(),
                second: pair.second.to_string(),
                via: pair.via.map(|via| via.to_string()),
                reason: pair.reason,
            })
            .collect(),
    }
}

fn store_status(status: &crate::store::Status, disk_problem: Option<String>) -> proto::StoreStatus {
    proto::StoreStatus {
        role: status.role.to_string(),
        leader: status.leader.as_ref().map(ToString::to_string),
        members: as_u64(status.members.len()),
        voters: as_u64(status.members.iter().filter(|member| member.voter).count()),
        errors: status.errors.iter().cloned().chain(disk_problem).collect(),
    }
}

fn wireguard_status(model: &Model, status: &wireguard::status::Status) -> proto::WireguardStatus {
    let link = status.link.as_ref();
    proto::WireguardStatus {
        link: link.map(|link| link.name.to_string()),
        link_index: link.map(|link| link.index),
        backend: link.map(|link| link.backend.to_string()),
        fallback_reason: status.fallback_reason.clone(),
        listen_port: status.listen_port.map(u32::from),
        public_key: model.node.public_key.to_string(),
        addresses: model.node.addresses.iter().map(ToString::to_string).collect(),
        peers: as_u64(status.peers),
        applied_steps: as_u64(status.applied_steps),
        errors: status.errors.clone(),
    }
}

fn network_status(status: &net::status::Status) -> proto::NetworkStatus {
    proto::NetworkStatus {
        mtu: status.mtu,
        addresses: as_u64(status.addresses),
        routes: as_u64(status.routes),
        applied_steps: as_u64(status.applied_steps),
        errors: status.errors.clone(),
    }
}

fn firewall_status(status: &net::status::FirewallStatus) -> proto::FirewallStatus {
    proto::FirewallStatus { table: status.table.clone(), errors: status.errors.clone() }
}

fn gateway_status(status: &gateway::Status) -> proto::GatewayStatus {
    let text = |addresses: &[std::net::SocketAddr]| addresses.iter().map(ToString::to_string).collect();
    proto::GatewayStatus {
        listening: text(&status.listening),
        steered: text(&status.steered),
        plain: text(&status.plain),
        callers: Some(status.classification.clone()).filter(|text| !text.is_empty()),
        callers_fallback_reason: status.classification_fallback.clone(),
    }
}

/// Nothing of a node that never had one.
fn bus_status(status: &bus::Status) -> Option<proto::BusStatus> {
    (*status != bus::Status::default()).then(|| proto::BusStatus {
        server_pid: status.server,
        connected: status.connected.clone(),
        routes: status.routes.clone(),
        errors: status.errors.clone(),
    })
}

fn accounting_status(status: &ebpf::status::Status) -> proto::AccountingStatus {
    let hook = status.hook.map(|hook| match hook {
        Hook::Tcx => "tcx".to_owned(),
        Hook::Clsact => "clsact".to_owned(),
    });
    proto::AccountingStatus {
        hook,
        fallback_reason: status.fallback_reason.clone(),
        peers: as_u64(status.peers),
        prefixes: as_u64(status.prefixes),
        errors: status.errors.clone(),
    }
}

fn dns_status(model: &Model, status: &dns::status::Status) -> proto::DnsStatus {
    proto::DnsStatus {
        listening: status.listening.iter().map(ToString::to_string).collect(),
        names: as_u64(status.names),
        upstreams: status.upstreams.iter().map(ToString::to_string).collect(),
        hook: status.hook.clone(),
        errors: status.errors.clone(),
        domain: model.domain.clone(),
    }
}

fn as_u64(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// Every peer of `model` with its figures, in the order of the names.
pub fn peers(model: &Model, figures: &Figures, now: SystemTime) -> proto::PeerList {
    let on_device: BTreeMap<PublicKey, &PeerFigures> =
        figures.wireguard.iter().map(|peer| (peer.public_key, peer)).collect();
    let counted: BTreeMap<PublicKey, &PeerCounters> =
        figures.counters.iter().flat_map(|counters| &counters.peers).map(|peer| (peer.public_key, peer)).collect();
    let peers = by_name(model)
        .into_iter()
        .map(|wanted| {
            let key = &wanted.public_key;
            peer(wanted, on_device.get(key).copied(), counted.get(key).copied(), model.relays.get(key), now)
        })
        .collect();
    let unattributed = figures.counters.as_ref().map(|all| traffic(&all.unattributed_rx, &all.unattributed_tx));
    proto::PeerList { schema: SCHEMA, peers, unattributed, errors: figures.errors.clone() }
}

fn by_name(model: &Model) -> Vec<&Peer> {
    let mut peers: Vec<&Peer> = model.peers().collect();
    peers.sort_by(|left, right| left.name.cmp(&right.name));
    peers
}

fn peer(
    wanted: &Peer,
    on_device: Option<&PeerFigures>,
    counted: Option<&PeerCounters>,
    relay: Option<&Relay>,
    now: SystemTime,
) -> proto::Peer {
    // A handshake "in the future" is one from before the clock was set back: it is as good as new.
    let age = on_device
        .and_then(|figures| figures.last_handshake)
        .map(|at| now.duration_since(at).map_or(0, |age| age.as_secs()));
    let (state, reason) = match relay {
        Some(relay) => ("relayed", format!("through {}: {}", relay.name, relay.reason)),
        None => connection(wanted, on_device, age),
    };
    proto::Peer {
        name: wanted.name.to_string(),
        id: wanted.public_key.to_string(),
        endpoint: on_device.and_then(|figures| figures.endpoint).map(|endpoint| endpoint.to_string()),
        allowed_ips: wanted.allowed_ips.iter().map(ToString::to_string).collect(),
        state: state.to_owned(),
        reason,
        handshake_age_seconds: age,
        wireguard_rx_bytes: on_device.map(|figures| figures.rx_bytes),
        wireguard_tx_bytes: on_device.map(|figures| figures.tx_bytes),
        traffic: counted.map(|counted| traffic(&counted.rx, &counted.tx)),
        relay: relay.map(|relay| relay.name.to_string()),
    }
}

fn connection(wanted: &Peer, on_device: Option<&PeerFigures>, age: Option<u64>) -> (&'static str, String) {
    let Some(figures) = on_device else {
        return ("never", "the device does not hold this peer yet".to_owned());
    };
    match (age, figures.endpoint, &wanted.endpoint) {
        (Some(age), _, _) if age < SESSION_SECONDS => ("connected", format!("handshake {age} s ago")),
        (Some(age), _, _) => ("idle", format!("last handshake {age} s ago: no traffic since, or no answer")),
        (None, Some(endpoint), _) => (
            "never",
            format!("no handshake yet: if there was traffic, check UDP to {endpoint} and the keys on both sides"),
        ),
        (None, None, Some(configured)) => ("never", format!("endpoint {configured} has no address yet")),
        (None, None, None) => ("never", "no endpoint is configured: the peer has to call first".to_owned()),
    }
}

/// The counters of every peer of `model`, taken `at_ms` milliseconds after the start of the agent.
pub fn sample(model: &Model, figures: &Figures, at_ms: u64) -> proto::CounterSample {
    let list = peers(model, figures, SystemTime::UNIX_EPOCH);
    let mut errors = list.errors;
    if figures.counters.is_none() && errors.is_empty() {
        errors.push("nothing is counted: see `weft status` and `weft doctor`".to_owned());
    }
    let peers = list
        .peers
        .into_iter()
        .filter_map(|peer| {
            let traffic = Some(peer.traffic?);
            Some(proto::PeerTraffic { name: peer.name, id: peer.id, traffic })
        })
        .collect();
    proto::CounterSample { schema: SCHEMA, at_ms, peers, unattributed: list.unattributed, errors }
}

fn traffic(rx: &Counters, tx: &Counters) -> proto::Traffic {
    proto::Traffic { rx: Some(counters(rx)), tx: Some(counters(tx)) }
}

fn counters(counters: &Counters) -> proto::Counters {
    let Counters { bytes, packets, tcp_bytes, udp_bytes, icmp_bytes, other_bytes } = *counters;
    proto::Counters { bytes, packets, tcp_bytes, udp_bytes, icmp_bytes, other_bytes }
}

#[cfg(test)]
mod tests;
