//! From the mesh to the model this node acts on: its own addresses, and a peer for every other member.
//!
//! What `weft.toml` says stands first: its addresses instead of the mesh's, its peers beside the members. A change of some
//! members costs O(change).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};

use tokio::sync::watch;

use super::allocate;
use super::shared::Shared;
use crate::foundation::task::{self, Task};
use crate::model::mesh::{Member, Mesh};
use crate::model::peer::{Endpoint, Peer};
use crate::model::{Edit, Model, ModelError, Node, Roles};

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

/// What differs between two meshes, as edits of the model.
pub(super) fn edits(older: &Mesh, newer: &Mesh) -> Vec<Edit> {
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
                edits.push(Edit::Set(peer(&after, hidden)));
            }
            (None, None) => {}
        }
    }
    edits
}

/// A member as a peer of this node; `hidden`: this node lies behind a NAT.
fn peer(member: &Member, hidden: bool) -> Peer {
    let reached = member.primary_endpoint.or_else(|| member.endpoints.first().copied());
    let endpoint = reached.map(|address| Endpoint::Address(SocketAddr::new(address, member.ports.wireguard)));
    let ipv4 = member.ipv4.map(|address| IpNet::from(IpAddr::V4(address)));
    // The node's own address in its /64 by itself too: it is what its name stands for, and what is counted first.
    let ipv6_host = member.ipv6.map(|subnet| IpNet::from(IpAddr::V6(allocate::host_of(subnet))));
    let behind_nat = hidden || member.primary_endpoint.is_none();
    Peer {
        name: member.id.clone(),
        public_key: member.public_key,
        preshared_key: None,
        endpoint: endpoint.filter(|_| member.ports.wireguard != 0),
        allowed_ips: ipv4.into_iter().chain(ipv6_host).chain(member.ipv6.map(IpNet::V6)).collect(),
        persistent_keepalive: behind_nat.then_some(KEEPALIVE),
    }
}

/// The model now, and the task that keeps it.
pub(super) fn start(shared: &Arc<Shared>) -> (watch::Receiver<Arc<Model>>, Task) {
    let (configured, state) = (shared.configured.clone(), shared.state.subscribe());
    let mut projection = Projection::new(&configured.borrow(), &state.borrow().mesh);
    let (tx, rx) = watch::channel(Arc::clone(&projection.model));
    let shared = Arc::downgrade(shared);
    let task = task::spawn("mesh-model", async move {
        let (mut configured, mut state) = (configured, state);
        loop {
            tokio::select! {
                changed = configured.changed() => if changed.is_err() { return },
                changed = state.changed() => if changed.is_err() { return },
            }
            let (wanted, mesh) = (Arc::clone(&configured.borrow_and_update()), state.borrow_and_update().mesh.clone());
            projection.advance(&wanted, mesh);
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
    model: Arc<Model>,
    /// Why the newest mesh is not in the model.
    error: Option<String>,
}

impl Projection {
    fn new(configured: &Arc<Model>, mesh: &Mesh) -> Self {
        let nothing = Mesh::empty(mesh.own.clone());
        let (configured, model) = (Arc::clone(configured), Arc::clone(configured));
        let mut projection = Self { configured, mesh: nothing, model, error: None };
        let wanted = Arc::clone(&projection.configured);
        projection.advance(&wanted, mesh.clone());
        projection
    }

    /// Takes in what changed; a mesh that contradicts the configuration leaves the model as it is.
    fn advance(&mut self, configured: &Arc<Model>, mesh: Mesh) {
        let is_same_node = configured == &self.configured && addresses(configured, &mesh) == self.model.node.addresses;
        let next = match (is_same_node, &self.error) {
            (true, None) => self.model.with(edits(&self.mesh, &mesh)),
            (_, _) => base(configured, &mesh)
                .and_then(|model| model.with(edits(&Mesh::empty(mesh.own.clone()), &mesh)))
                .map(|model| model.sharing(&self.model)),
        };
        match next {
            Ok(mut model) => {
                model.roles = roles(&mesh);
                self.model = Arc::new(model);
                self.error = None;
            }
            Err(error) => self.error = Some(format!("the mesh contradicts weft.toml: {error}")),
        }
        self.configured = Arc::clone(configured);
        self.mesh = mesh;
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
        let mut last = mesh(&[]);
        let mut model = configured(&["10.80.0.1/16"]);
        for members in &steps {
            let next = mesh(members);
            model = model.with(edits(&last, &next)).expect("no contradiction");
            let whole = configured(&["10.80.0.1/16"]).with(edits(&mesh(&[]), &next)).expect("no contradiction");
            assert_eq!(model, whole);
            last = next;
        }
        let beta = model.peers().next().expect("one peer");
        assert_eq!((beta.name.as_str(), beta.persistent_keepalive), ("beta", Some(25)), "alpha is behind a NAT");
    }

    #[test]
    fn nothing_differs_between_equal_meshes() {
        let one = mesh(&[member("alpha", 1, None), member("beta", 2, None)]);
        assert_eq!(edits(&one, &one.clone()), Vec::new());
    }
}
