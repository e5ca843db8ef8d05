//! The mesh between its own types and the messages of the wire.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use ipnet::{IpNet, Ipv6Net};
use tonic::Status;
use weft_proto::v1;
use weft_proto::weft::v1 as proto;

use super::text;
use crate::foundation::id::NodeId;
use crate::mesh::remote::Facts;
use crate::mesh::update::{State, Update};
use crate::model::mesh::{Member, Mesh, NotASeat, Ports, Seat};

/// An update as it is sent. `state` says what its members are in the consensus.
pub(super) fn update(state: &State, update: &Update) -> proto::MeshUpdate {
    let network = |text: Option<String>| text.unwrap_or_default();
    proto::MeshUpdate {
        is_complete: update.is_complete,
        nodes: update.members.iter().map(|member| text::mesh_node(&heads(state, update), member)).collect(),
        removed: update.removed.iter().map(ToString::to_string).collect(),
        leader: update.leader.as_ref().map(ToString::to_string).unwrap_or_default(),
        ipv4_range: network(update.ipv4.map(|range| range.to_string())),
        ipv6_prefix: network(update.ipv6.map(|prefix| prefix.to_string())),
        revoked: update.revoked.iter().map(ToString::to_string).collect(),
        blocked: update.blocked.iter().map(|((node, peer), reason)| shown_blocked(Some(node), peer, reason)).collect(),
    }
}

/// The heads of the mesh that members are shown against; it shares the members.
fn heads(state: &State, update: &Update) -> Mesh {
    Mesh { leader: update.leader.clone(), ipv4: update.ipv4, ipv6: update.ipv6, ..Mesh::empty(state.mesh.own.clone()) }
}

/// An update that came in; what it must not be is said.
pub(super) fn read_update(sent: &proto::MeshUpdate) -> Result<Update, String> {
    let nodes = sent.nodes.iter().map(|node| member(node).map(Arc::new));
    Ok(Update {
        is_complete: sent.is_complete,
        members: nodes.collect::<Result<_, _>>()?,
        removed: sent.removed.iter().map(|id| parsed(id, "a node id")).collect::<Result<_, _>>()?,
        leader: optional(&sent.leader, "a node id")?,
        ipv4: optional(&sent.ipv4_range, "an IPv4 network")?,
        ipv6: optional(&sent.ipv6_prefix, "an IPv6 network")?,
        revoked: sent.revoked.iter().map(|key| parsed(key, "a fingerprint")).collect::<Result<_, _>>()?,
        blocked: sent
            .blocked
            .iter()
            .map(|pair| {
                let pair_of = (parsed(&pair.node, "a node id")?, parsed(&pair.peer, "a node id")?);
                Ok::<_, String>((pair_of, pair.reason.clone()))
            })
            .collect::<Result<_, _>>()?,
    })
}

fn shown_blocked(node: Option<&NodeId>, peer: &NodeId, reason: &str) -> proto::Blocked {
    proto::Blocked {
        node: node.map(ToString::to_string).unwrap_or_default(),
        peer: peer.to_string(),
        reason: reason.to_owned(),
    }
}

/// Whom this node cannot reach.
pub(super) fn blocked_peers(blocked: &BTreeMap<NodeId, String>) -> proto::BlockedPeers {
    proto::BlockedPeers { blocked: blocked.iter().map(|(peer, reason)| shown_blocked(None, peer, reason)).collect() }
}

/// The longest reason that is kept.
const LONGEST_REASON: usize = 1024;

/// Whom the caller cannot reach.
pub(super) fn read_blocked(sent: &proto::BlockedPeers) -> Result<BTreeMap<NodeId, String>, Status> {
    let one = |blocked: &proto::Blocked| {
        if blocked.reason.len() > LONGEST_REASON {
            return Err(format!("a reason of {} bytes is longer than {LONGEST_REASON}", blocked.reason.len()));
        }
        Ok((parsed(&blocked.peer, "a node id")?, blocked.reason.clone()))
    };
    sent.blocked.iter().map(one).collect::<Result<_, _>>().map_err(Status::invalid_argument)
}

fn member(node: &v1::MeshNode) -> Result<Member, String> {
    let endpoints = node.endpoints.iter().map(|text| parsed::<IpAddr>(text, "an address"));
    let status = v1::ClusterStatus::try_from(node.cluster_status).unwrap_or(v1::ClusterStatus::Unknown);
    let ipv4: Option<ipnet::Ipv4Net> = optional(&node.private_ipv4, "an IPv4 address with a length")?;
    let time = |time: Option<prost_types::Timestamp>| {
        time.and_then(|time| SystemTime::try_from(time).ok()).unwrap_or(SystemTime::UNIX_EPOCH)
    };
    Ok(Member {
        id: parsed(&node.id, "a node id")?,
        public_key: parsed(&node.public_key, "a WireGuard key")?,
        primary_endpoint: optional(&node.primary_endpoint, "an address")?,
        endpoints: endpoints.collect::<Result<_, _>>()?,
        ports: ports(node.raft_port, node.grpc_port, node.wireguard_port)?,
        ipv4: ipv4.map(|network| network.addr()),
        ipv6: optional::<Ipv6Net>(&node.private_ipv6, "an IPv6 network")?,
        is_voter: matches!(status, v1::ClusterStatus::ClusterLeader | v1::ClusterStatus::ClusterVoter),
        created_at: time(node.created_at),
        updated_at: time(node.updated_at),
    })
}

fn ports(raft: i32, grpc: i32, wireguard: i32) -> Result<Ports, String> {
    let port = |number: i32| u16::try_from(number).map_err(|_source| format!("{number} is no port"));
    Ok(Ports { raft: port(raft)?, grpc: port(grpc)?, wireguard: port(wireguard)? })
}

fn parsed<T: std::str::FromStr>(text: &str, wanted: &str) -> Result<T, String> {
    text.parse().map_err(|_source| format!("{text:?} is not {wanted}"))
}

fn optional<T: std::str::FromStr>(text: &str, wanted: &str) -> Result<Option<T>, String> {
    if text.is_empty() { Ok(None) } else { parsed(text, wanted).map(Some) }
}

/// What a joiner says about itself.
pub(super) fn enrolling_facts(request: &proto::EnrolRequest) -> Result<Facts, Status> {
    let port = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
    let read = || -> Result<Facts, String> {
        Ok(Facts {
            id: parsed(&request.id, "a node id: 1 to 63 of a-z, 0-9 and -")?,
            public_key: parsed(&request.public_key, "a WireGuard key")?,
            ports: ports(port(request.raft_port), port(request.grpc_port), port(request.wireguard_port))?,
            endpoint: optional(&request.primary_endpoint, "an address")?,
            interfaces: addresses(&request.endpoints)?,
            addresses: request
                .addresses
                .iter()
                .map(|text| parsed::<IpNet>(text, "an address with a length"))
                .collect::<Result<_, _>>()?,
            seat: None,
            raft_address: None,
        })
    };
    read().map_err(Status::invalid_argument)
}

/// What a member says about itself by the contract.
pub(super) fn joining_facts(request: &v1::JoinRequest) -> Result<Facts, Status> {
    let read = || -> Result<Facts, String> {
        Ok(Facts {
            id: parsed(&request.id, "a node id: 1 to 63 of a-z, 0-9 and -")?,
            public_key: parsed(&request.public_key, "a WireGuard key")?,
            ports: ports(request.raft_port, request.grpc_port, request.wireguard_port)?,
            endpoint: optional(&request.primary_endpoint, "an address without a port")?,
            interfaces: addresses(&request.endpoints)?,
            addresses: Vec::new(),
            seat: request.as_voter.then_some(Seat::Voter),
            raft_address: None,
        })
    };
    read().map_err(Status::invalid_argument)
}

/// The part in the consensus that a node asks for, and where its Raft listener answers.
pub(super) fn seat(request: &proto::TakeSeatRequest) -> Result<(Seat, Option<String>), Status> {
    let read = || {
        let seat = request.seat.parse().map_err(|error: NotASeat| format!("seat {:?}: {error}", request.seat))?;
        let is_address = |text: &str| {
            text.len() <= LONGEST_ADDRESS
                && text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        };
        match request.raft_address.as_str() {
            "" => Ok((seat, None)),
            text if is_address(text) => Ok((seat, Some(text.to_owned()))),
            text => Err(format!("raft_address {text:?} is not HOST:PORT")),
        }
    };
    read().map_err(Status::invalid_argument)
}

/// A host name of the longest kind and a port (RFC 1035 section 2.3.4).
const LONGEST_ADDRESS: usize = 261;

/// The most endpoints one node may name.
const MOST_ENDPOINTS: usize = 64;

fn addresses(texts: &[String]) -> Result<Vec<IpAddr>, String> {
    if texts.len() > MOST_ENDPOINTS {
        return Err(format!("{} endpoints are more than {MOST_ENDPOINTS}", texts.len()));
    }
    texts.iter().map(|text| parsed(text, "an address without a port")).collect()
}

/// What this node says about itself when it follows another.
pub(super) fn join_request(facts: &Facts) -> v1::JoinRequest {
    v1::JoinRequest {
        id: facts.id.to_string(),
        public_key: facts.public_key.to_string(),
        raft_port: facts.ports.raft.into(),
        grpc_port: facts.ports.grpc.into(),
        wireguard_port: facts.ports.wireguard.into(),
        primary_endpoint: facts.endpoint.map(|address| address.to_string()).unwrap_or_default(),
        endpoints: facts.interfaces.iter().map(IpAddr::to_string).collect(),
        assign_ipv4: true,
        prefer_raft_ipv6: false,
        // A vote is asked for by itself: one that is refused is no reason to hear nothing.
        as_voter: false,
    }
}

/// What this node says about itself when it joins.
pub(super) fn enrol_request(enrolment: &crate::mesh::remote::Enrolment) -> proto::EnrolRequest {
    let facts = &enrolment.facts;
    proto::EnrolRequest {
        token: enrolment.token.text().to_string(),
        id: facts.id.to_string(),
        request_pem: enrolment.request.pem().to_owned(),
        public_key: facts.public_key.to_string(),
        raft_port: facts.ports.raft.into(),
        grpc_port: facts.ports.grpc.into(),
        wireguard_port: facts.ports.wireguard.into(),
        primary_endpoint: facts.endpoint.map(|address| address.to_string()).unwrap_or_default(),
        endpoints: facts.interfaces.iter().map(IpAddr::to_string).collect(),
        addresses: facts.addresses.iter().map(IpNet::to_string).collect(),
    }
}
