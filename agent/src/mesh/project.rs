//! From the mesh to the model this node acts on: its own addresses, and a peer for every other member.
//!
//! What `weft.toml` says stands first: its addresses instead of the mesh's, its peers beside the members. A change of some
//! members costs O(change).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};

use tokio::sync::watch;

use super::allocate;
use super::shared::Shared;
use crate::foundation::id::NodeId;
use crate::foundation::task::{self, Task};
use crate::model::key::PublicKey;
use crate::model::mesh::{Member, Mesh};
use crate::model::peer::{Endpoint, Peer};
use crate::model::{Edit, Model, ModelError, Node, Relay, Roles};

/// Seconds between keepalives where a NAT may forget who talked (R10 of the contract's notes).
const KEEPALIVE: u16 = 25;

/// The model with nothing but this node, as the mesh and the configuration have it.
///
/// # Errors
/// The configured peers contradict the addresses the mesh gave.
pub(super) fn base(configured: &Model, mesh: &Mesh) -> Result<Model, ModelError> {
    let node = Node { addresses: addresses(configured, mesh), ..configured.node.clone() };
    Model::new(node, configured.domain.clone(), configured.peers().cloned().collect())
}

/// The addresses of this node: the configured ones, else those of the mesh.
fn addresses(configured: &Model, mesh: &Mesh) -> Vec<IpNet> {
    if !configured.node.addresses.is_empty() {
        return configured.node.addresses.clone();
    }
    mesh_addresses(mesh)
}

/// The addresses the mesh gave this node, as they stand on its link.
pub(super) fn mesh_addresses(mesh: &Mesh) -> Vec<IpNet> {
    let Some(own) = mesh.member(&mesh.own) else { return Vec::new() };
    let length = mesh.ipv4.map_or(32, |range| range.prefix_len());
    let ipv4 = own.ipv4.and_then(|address| Ipv4Net::new(address, length).ok()).map(IpNet::V4);
    let ipv6 = own.ipv6.and_then(|subnet| IpNet::new(IpAddr::V6(allocate::host_of(subnet)), 64).ok());
    ipv4.into_iter().chain(ipv6).collect()
}

fn roles(mesh: &Mesh) -> Roles {
    let voters = mesh.members.values().filter(|member| member.is_voter).map(|member| member.id.clone());
    Roles { leader: mesh.leader.clone(), voters: voters.collect() }
}

/// Peers whose packets another one carries.
fn relays(mesh: &Mesh) -> BTreeMap<PublicKey, Relay> {
    let pairs = mesh.blocked_pairs().into_iter();
    let own = pairs.filter_map(|pair| match (pair.first == mesh.own, pair.second == mesh.own) {
        (true, _) => Some((pair.second, pair.via?, pair.reason)),
        (_, true) => Some((pair.first, pair.via?, pair.reason)),
        (false, false) => None,
    });
    let keyed = own.filter_map(|(peer, name, reason)| {
        let via = mesh.member(&name)?.public_key;
        Some((mesh.member(&peer)?.public_key, Relay { via, name, reason }))
    });
    keyed.collect()
}

/// Where to send to, where that is not the address that comes first.
pub(super) type Chosen = BTreeMap<NodeId, IpAddr>;

/// The members that this node reaches otherwise than by the address that comes first, and how.
fn detours<'a>(mesh: &'a Mesh, chosen: &'a Chosen) -> BTreeSet<(&'a NodeId, Option<IpAddr>)> {
    let blocked = mesh.blocked.keys().filter_map(|(one, other)| match (*one == mesh.own, *other == mesh.own) {
        (true, _) => Some((other, None)),
        (_, true) => Some((one, None)),
        (false, false) => None,
    });
    blocked.chain(chosen.iter().map(|(id, address)| (id, Some(*address)))).collect()
}

/// What differs between two meshes, as edits of the model.
pub(super) fn edits((older, older_chosen): (&Mesh, &Chosen), (newer, chosen): (&Mesh, &Chosen)) -> Vec<Edit> {
    let own_is_hidden = |mesh: &Mesh| mesh.member(&mesh.own).is_none_or(|own| own.primary_endpoint.is_none());
    // Who must keep its way through a NAT open depends on this node too.
    let older_members =
        if own_is_hidden(older) == own_is_hidden(newer) { older.members.clone() } else { Default::default() };
    let hidden = own_is_hidden(newer);
    let mut edits = Vec::new();
    for (id, before, after) in newer.members.differences(&older_members) {
        if id == newer.own {
            continue;
        }
        match (before, after) {
            (Some(before), None) => edits.push(Edit::Remove(before.public_key)),
            (before, Some(after)) => {
                if let Some(before) = before.filter(|before| before.public_key != after.public_key) {
                    edits.push(Edit::Remove(before.public_key));
                }
                edits.push(Edit::Set(peer(&after, hidden, newer, chosen)));
            }
            (None, None) => {}
        }
    }
    let (before, after) = (detours(older, older_chosen), detours(newer, chosen));
    for (id, _address) in before.symmetric_difference(&after) {
        if let Some(member) = newer.member(id).filter(|member| member.id != newer.own) {
            edits.push(Edit::Set(peer(member, hidden, newer, chosen)));
        }
    }
    edits
}

/// A member as a peer of this node; `hidden`: this node lies behind a NAT.
fn peer(member: &Member, hidden: bool, mesh: &Mesh, chosen: &Chosen) -> Peer {
    let chosen = chosen.get(&member.id).copied();
    let reached = chosen.or(member.primary_endpoint).or_else(|| member.endpoints.first().copied());
    let endpoint = reached.map(|address| Endpoint::Address(SocketAddr::new(address, member.ports.wireguard)));
    let ipv4 = member.ipv4.map(|address| IpNet::from(IpAddr::V4(address)));
    // The node's own address in its /64 by itself too: it is what its name stands for, and what is counted first.
    let ipv6_host = member.ipv6.map(|subnet| IpNet::from(IpAddr::V6(allocate::host_of(subnet))));
    let behind_nat = hidden || member.primary_endpoint.is_none();
    // Where there is no way, handshakes go on being tried: it may be there again.
    let is_called = behind_nat || mesh.blocked(&mesh.own, &member.id).is_some();
    Peer {
        name: member.id.clone(),
        public_key: member.public_key,
        preshared_key: None,
        endpoint: endpoint.filter(|_| member.ports.wireguard != 0),
        allowed_ips: ipv4.into_iter().chain(ipv6_host).chain(member.ipv6.map(IpNet::V6)).collect(),
        persistent_keepalive: is_called.then_some(KEEPALIVE),
    }
}

/// The model now, and the task that keeps it.
pub(super) fn start(shared: &Arc<Shared>) -> (watch::Receiver<Arc<Model>>, Task) {
    let (configured, state) = (shared.configured.clone(), shared.state.subscribe());
    let chosen = shared.chosen.subscribe();
    let mut projection = Projection::new(&configured.borrow(), &state.borrow().mesh);
    let (tx, rx) = watch::channel(Arc::clone(&projection.model));
    let shared = Arc::downgrade(shared);
    let task = task::spawn("mesh-model", async move {
        let (mut configured, mut state, mut chosen) = (configured, state, chosen);
        loop {
            tokio::select! {
                changed = configured.changed() => if changed.is_err() { return },
                changed = state.changed() => if changed.is_err() { return },
                changed = chosen.changed() => if changed.is_err() { return },
            }
            let (wanted, mesh) = (Arc::clone(&configured.borrow_and_update()), state.borrow_and_update().mesh.clone());
            let chosen = Chosen::clone(&chosen.borrow_and_update());
            projection.advance(&wanted, mesh, chosen);
            let Some(shared) = shared.upgrade() else { return };
            shared.contradictions.send_replace(projection.error.clone());
            tx.send_if_modified(|model| {
                let differs = *model != projection.model;
                model.clone_from(&projection.model);
                differs
            });
        }
    });
    (rx, task)
}

/// The model and what it was made from.
struct Projection {
    configured: Arc<Model>,
    mesh: Mesh,
    chosen: Chosen,
    model: Arc<Model>,
    /// Why the newest mesh is not in the model.
    error: Option<String>,
}

impl Projection {
    fn new(configured: &Arc<Model>, mesh: &Mesh) -> Self {
        let nothing = Mesh::empty(mesh.own.clone());
        let (configured, model) = (Arc::clone(configured), Arc::clone(configured));
        let mut projection = Self { configured, mesh: nothing, chosen: Chosen::new(), model, error: None };
        let wanted = Arc::clone(&projection.configured);
        projection.advance(&wanted, mesh.clone(), Chosen::new());
        projection
    }

    /// Takes in what changed; a mesh that contradicts the configuration leaves the model as it is.
    fn advance(&mut self, configured: &Arc<Model>, mesh: Mesh, chosen: Chosen) {
        let is_same_node = configured == &self.configured && addresses(configured, &mesh) == self.model.node.addresses;
        let next = match (is_same_node, &self.error) {
            (true, None) => self.model.with(edits((&self.mesh, &self.chosen), (&mesh, &chosen))),
            (_, _) => base(configured, &mesh)
                .and_then(|model| model.with(edits((&Mesh::empty(mesh.own.clone()), &Chosen::new()), (&mesh, &chosen))))
                .map(|model| model.sharing(&self.model)),
        };
        match next {
            Ok(mut model) => {
                model.roles = roles(&mesh);
                model.relays = relays(&mesh);
                model.is_relay = mesh.blocked_pairs().iter().any(|pair| pair.via.as_ref() == Some(&mesh.own));
                self.model = Arc::new(model);
                self.error = None;
            }
            Err(error) => self.error = Some(format!("the mesh contradicts weft.toml: {error}")),
        }
        self.configured = Arc::clone(configured);
        self.mesh = mesh;
        self.chosen = chosen;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::tests::{id, member, mesh};
    use crate::model::key::PublicKey;

    fn configured(addresses: &[&str]) -> Model {
        let node = Node {
            id: id("alpha"),
            addresses: addresses.iter().map(|text| text.parse().expect("an address")).collect(),
            public_key: PublicKey::from_bytes([1; 32]),
        };
        Model::new(node, "weft.internal".to_owned(), Vec::new()).expect("right")
    }

    #[test]
    fn the_mesh_gives_the_addresses_unless_the_configuration_does() {
        let mesh = mesh(&[member("alpha", 1, None)]);
        let given = base(&configured(&[]), &mesh).expect("right").node.addresses;
        let text: Vec<String> = given.iter().map(ToString::to_string).collect();
        assert_eq!(text, ["10.80.0.1/16", "fd00:0:0:1::1/64"]);
        let own = base(&configured(&["10.9.0.1/24"]), &mesh).expect("right").node.addresses;
        assert_eq!(own, ["10.9.0.1/24".parse::<IpNet>().expect("an address")]);
    }

    #[test]
    fn applying_the_edits_gives_what_the_whole_mesh_gives() {
        let own = member("alpha", 1, Some("192.0.2.1"));
        let steps = [
            vec![own.clone()],
            vec![own.clone(), member("beta", 2, Some("192.0.2.2"))],
            vec![own.clone(), member("beta", 2, None), member("gamma", 3, None)],
            vec![own, member("beta", 4, Some("192.0.2.2"))],
            vec![member("alpha", 1, None), member("beta", 4, Some("192.0.2.2"))],
        ];
        let (mut last, none) = (mesh(&[]), Chosen::new());
        let mut model = configured(&["10.80.0.1/16"]);
        for members in &steps {
            let next = mesh(members);
            model = model.with(edits((&last, &none), (&next, &none))).expect("no contradiction");
            let whole = configured(&["10.80.0.1/16"])
                .with(edits((&mesh(&[]), &none), (&next, &none)))
                .expect("no contradiction");
            assert_eq!(model, whole);
            last = next;
        }
        let beta = model.peers().next().expect("one peer");
        assert_eq!((beta.name.as_str(), beta.persistent_keepalive), ("beta", Some(25)), "alpha is behind a NAT");
    }

    #[test]
    fn nothing_differs_between_equal_meshes() {
        let one = mesh(&[member("alpha", 1, None), member("beta", 2, None)]);
        let none = Chosen::new();
        assert_eq!(edits((&one, &none), (&one.clone(), &none)), Vec::new());
    }

    #[test]
    fn a_peer_out_of_reach_is_carried_by_one_that_both_reach_and_by_no_other() {
        let members = ["alpha", "beta", "gamma", "delta"].into_iter().zip(1..);
        let members: Vec<_> = members.map(|(name, number)| member(name, number, Some("192.0.2.1"))).collect();
        let blocked = |pairs: &[(&str, &str)]| Mesh {
            blocked: Arc::new(pairs.iter().map(|(one, other)| ((id(one), id(other)), "a wall".to_owned())).collect()),
            ..mesh(&members)
        };
        let via = |mesh: &Mesh| relays(mesh).values().map(|relay| relay.name.to_string()).collect::<Vec<_>>();
        assert_eq!(via(&blocked(&[])), Vec::<String>::new());
        assert_eq!(via(&blocked(&[("gamma", "alpha")])), ["beta"], "whoever says so");
        assert_eq!(via(&blocked(&[("alpha", "gamma"), ("beta", "gamma")])), ["delta"]);
        let nobody = blocked(&[("alpha", "gamma"), ("beta", "gamma"), ("gamma", "delta")]);
        assert_eq!(via(&nobody), Vec::<String>::new());
        let seen_by_gamma = Mesh { own: id("gamma"), ..blocked(&[("alpha", "gamma")]) };
        assert_eq!(via(&seen_by_gamma), ["beta"], "both ends choose alike");
        let (none, chosen) = (Chosen::new(), Chosen::from([(id("beta"), "198.51.100.1".parse().expect("an address"))]));
        let (open, shut) = (blocked(&[]), blocked(&[("alpha", "gamma")]));
        let changed = edits((&open, &none), (&shut, &chosen));
        let keepalives: Vec<_> = changed
            .iter()
            .map(|edit| match edit {
                Edit::Set(peer) => (peer.name.to_string(), peer.persistent_keepalive, peer.endpoint.clone()),
                Edit::Remove(key) => panic!("{key} goes"),
            })
            .collect();
        let at = |text: &str| Some(text.parse().expect("an endpoint"));
        let beta = ("beta".to_owned(), None, at("198.51.100.1:51820"));
        assert_eq!(keepalives, [beta, ("gamma".to_owned(), Some(25), at("192.0.2.1:51820"))]);
    }
}
