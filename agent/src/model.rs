//! Pure data: who this node is and whom it talks to, whatever the source (today `weft.toml`, with the mesh the
//! replicated state).
//!
//! Invariants, held by every way to make a [`Model`]: peer names are unique, no peer is the node itself, and no prefix
//! belongs to two peers (cryptokey routing gives a prefix to one peer only; the kernel would silently take it from the
//! first). A model made from another shares what did not change with it: one changed peer costs the same among ten and
//! ten thousand, for who makes it and for who asks [`Model::changes_since`]. No tokio, sockets, files or clock in here.

pub mod key;
pub mod mesh;
pub mod ordered;
pub mod peer;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;

use crate::foundation::id::{LinkName, NodeId};
use key::PublicKey;
use ordered::Ordered;
use peer::Peer;

/// The typed state everything else is derived from. Spread as `watch<Arc<Model>>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// This node.
    pub node: Node,
    /// The mesh domain without a trailing dot, in lower case: `weft.internal`.
    pub domain: String,
    /// Who leads the mesh and who has a vote in it; these have names of their own.
    pub roles: Roles,
    /// Peers whose packets another peer carries.
    pub relays: BTreeMap<PublicKey, Relay>,
    /// Whether this node carries packets between others.
    pub is_relay: bool,
    peers: Ordered<PublicKey, Arc<Peer>>,
    /// Whose each name is.
    names: Ordered<NodeId, PublicKey>,
    /// Whose each prefix is.
    owners: Ordered<IpNet, PublicKey>,
}

/// The nodes with a part in the consensus.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Roles {
    pub leader: Option<NodeId>,
    /// In the order of their ids.
    pub voters: Vec<NodeId>,
}

/// Who carries the packets of a peer that cannot be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relay {
    pub via: PublicKey,
    /// Its name.
    pub name: NodeId,
    /// Why the peer itself cannot be reached.
    pub reason: String,
}

/// One peer of a model as it is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    /// In place of the peer with this key, if there is one.
    Set(Peer),
    Remove(PublicKey),
}

/// A peer that differs between two models; at least one side is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerChange {
    pub key: PublicKey,
    pub before: Option<Arc<Peer>>,
    pub after: Option<Arc<Peer>>,
}

/// This node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub id: NodeId,
    /// The addresses of the link with the length of their network, in configured order.
    pub addresses: Vec<IpNet>,
    /// The public half of the link's key.
    pub public_key: PublicKey,
}

/// Why a set of peers cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    #[error("peers {first} and {second} have the same public_key {key}; each peer needs its own")]
    DuplicateKey { first: NodeId, second: NodeId, key: PublicKey },
    #[error("two peers are called {name}; give one of them another name")]
    DuplicateName { name: NodeId },
    #[error("peer {name} has the public_key of this node; remove it or correct its key")]
    OwnKey { name: NodeId },
    #[error("peer {name} has this node's own name; give it another name")]
    OwnName { name: NodeId },
    #[error(
        "allowed_ips {prefix} is given to both peer {first} and peer {second}; a prefix can belong to one peer only"
    )]
    DuplicatePrefix { prefix: IpNet, first: NodeId, second: NodeId },
    #[error(
        "allowed_ips {prefix} of peer {name} holds this node's own address {address}; make the prefix more specific"
    )]
    OwnAddress { prefix: IpNet, name: NodeId, address: IpNet },
    #[error("addresses {first} and {second} lie in overlapping networks; use one network, or two that are apart")]
    OverlappingAddresses { first: IpNet, second: IpNet },
}

impl Model {
    /// Builds a model from parts that are right each by itself.
    ///
    /// # Errors
    /// The first contradiction between two of them, named.
    pub fn new(node: Node, domain: String, peers: Vec<Peer>) -> Result<Self, ModelError> {
        check_addresses(&node.addresses)?;
        let roles = Roles::default();
        let mut model = Self {
            node,
            domain,
            roles,
            relays: BTreeMap::new(),
            is_relay: false,
            peers: Ordered::new(),
            names: Ordered::new(),
            owners: Ordered::new(),
        };
        for peer in peers {
            if let Some(first) = model.peer(&peer.public_key) {
                let (first, key) = (first.name.clone(), peer.public_key);
                return Err(ModelError::DuplicateKey { first, second: peer.name, key });
            }
            model.put(Arc::new(peer))?;
        }
        Ok(model)
    }

    /// This model with some peers changed, all at once: a name or a prefix may move from one of them to another.
    ///
    /// # Errors
    /// The first contradiction, named; this model stays as it is.
    pub fn with(&self, edits: impl IntoIterator<Item = Edit>) -> Result<Self, ModelError> {
        let mut model = self.clone();
        let mut set: BTreeMap<PublicKey, Arc<Peer>> = BTreeMap::new();
        for edit in edits {
            let key = match edit {
                Edit::Set(peer) => {
                    let key = peer.public_key;
                    set.insert(key, Arc::new(peer));
                    key
                }
                Edit::Remove(key) => {
                    set.remove(&key);
                    key
                }
            };
            model.take(&key);
        }
        for peer in set.into_values() {
            model.put(peer)?;
        }
        Ok(model)
    }

    /// This model, sharing with `older` every peer that is equal: for who has whole lists, such as a file.
    #[must_use]
    pub fn sharing(self, older: &Self) -> Self {
        let changes = self.changes_since(older);
        let Self { node, domain, roles, relays, is_relay, .. } = self;
        let mut model = Self { node, domain, roles, relays, is_relay, ..older.clone() };
        for PeerChange { key, .. } in &changes {
            model.take(key);
        }
        for peer in changes.into_iter().filter_map(|change| change.after) {
            model.insert(peer);
        }
        model
    }

    /// The peers in the order of their keys.
    pub fn peers(&self) -> impl ExactSizeIterator<Item = &Peer> {
        self.peers.values().map(|peer| &**peer)
    }

    /// The peer with this key.
    pub fn peer(&self, key: &PublicKey) -> Option<&Peer> {
        self.peers.get(key).map(|peer| &**peer)
    }

    /// The peer that exactly this prefix belongs to.
    pub fn owner(&self, prefix: &IpNet) -> Option<&PublicKey> {
        self.owners.get(prefix)
    }

    /// The peers that differ from those of `older`, in the order of their keys.
    pub fn changes_since(&self, older: &Self) -> Vec<PeerChange> {
        let differences = self.peers.differences(&older.peers);
        differences.into_iter().map(|(key, before, after)| PeerChange { key, before, after }).collect()
    }

    /// The peers whose packets go another way than in `older`, and those that carry them.
    pub fn rerouted_since(&self, older: &Self) -> BTreeSet<PublicKey> {
        let mut keys = BTreeSet::new();
        if self.relays == older.relays {
            return keys;
        }
        for (one, other) in [(self, older), (older, self)] {
            for (key, relay) in &one.relays {
                if other.relays.get(key).map(|other| other.via) != Some(relay.via) {
                    keys.extend([*key, relay.via]);
                }
            }
        }
        keys
    }

    fn take(&mut self, key: &PublicKey) {
        let Some(peer) = self.peers.remove(key) else { return };
        self.names.remove(&peer.name);
        for prefix in &peer.allowed_ips {
            self.owners.remove(prefix);
        }
    }

    /// Adds a peer whose key is not there; on an error nothing is added.
    fn put(&mut self, peer: Arc<Peer>) -> Result<(), ModelError> {
        check_identity(&self.node, &peer)?;
        if self.names.contains_key(&peer.name) {
            return Err(ModelError::DuplicateName { name: peer.name.clone() });
        }
        for prefix in &peer.allowed_ips {
            check_prefix(&self.node, &peer, prefix)?;
            if let Some(first) = self.owner(prefix).and_then(|key| self.peer(key)) {
                let (first, second) = (first.name.clone(), peer.name.clone());
                return Err(ModelError::DuplicatePrefix { prefix: *prefix, first, second });
            }
        }
        self.insert(peer);
        Ok(())
    }

    fn insert(&mut self, peer: Arc<Peer>) {
        self.names.insert(peer.name.clone(), peer.public_key);
        for prefix in &peer.allowed_ips {
            self.owners.insert(*prefix, peer.public_key);
        }
        self.peers.insert(peer.public_key, peer);
    }
}

fn check_addresses(addresses: &[IpNet]) -> Result<(), ModelError> {
    for (index, first) in addresses.iter().enumerate() {
        for second in &addresses[index + 1..] {
            let same_network = first.trunc() == second.trunc();
            let overlap = first.contains(&second.network()) || second.contains(&first.network());
            if first == second || (overlap && !same_network) {
                return Err(ModelError::OverlappingAddresses { first: *first, second: *second });
            }
        }
    }
    Ok(())
}

fn check_identity(node: &Node, peer: &Peer) -> Result<(), ModelError> {
    if peer.public_key == node.public_key {
        return Err(ModelError::OwnKey { name: peer.name.clone() });
    }
    if peer.name == node.id {
        return Err(ModelError::OwnName { name: peer.name.clone() });
    }
    Ok(())
}

fn check_prefix(node: &Node, peer: &Peer, prefix: &IpNet) -> Result<(), ModelError> {
    let own = node.addresses.iter().find(|own| IpNet::from(own.addr()) == *prefix);
    match own {
        Some(address) => Err(ModelError::OwnAddress { prefix: *prefix, name: peer.name.clone(), address: *address }),
        None => Ok(()),
    }
}

/// The link that carries the tunnel, as it is in the kernel now. Published by `wireguard`, read by `net` and `ebpf`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub name: LinkName,
    /// The kernel's interface index; changes when the link is created anew.
    pub index: u32,
    pub backend: Backend,
}

/// Who encrypts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// The kernel's WireGuard.
    Kernel,
    /// The embedded device on a TUN, in this process.
    Userspace,
}

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
        })
    }
}

#[cfg(test)]
mod tests;
