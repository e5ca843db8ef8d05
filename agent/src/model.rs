//! Pure data: who this node is and whom it talks to, whatever the source (today `weft.toml`, with the mesh the
//! replicated state).
//!
//! Invariants, held by [`Model::new`]: peer names are unique, no peer is the node itself, and no prefix belongs to two
//! peers (cryptokey routing gives a prefix to one peer only; the kernel would silently take it from the first).
//! No tokio, sockets, files or clock in here.

pub mod key;
pub mod peer;

use std::collections::BTreeMap;

use ipnet::IpNet;

use crate::foundation::id::{LinkName, NodeId};
use key::PublicKey;
use peer::Peer;

/// The typed state everything else is derived from. Spread as `watch<Arc<Model>>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// This node.
    pub node: Node,
    /// The mesh domain without a trailing dot, in lower case: `weft.internal`.
    pub domain: String,
    peers: BTreeMap<PublicKey, Peer>,
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
        check_names(&node, &peers)?;
        check_prefixes(&node, &peers)?;
        let mut by_key: BTreeMap<PublicKey, Peer> = BTreeMap::new();
        for peer in peers {
            if let Some(first) = by_key.get(&peer.public_key) {
                let (first, key) = (first.name.clone(), peer.public_key);
                return Err(ModelError::DuplicateKey { first, second: peer.name, key });
            }
            by_key.insert(peer.public_key, peer);
        }
        Ok(Self { node, domain, peers: by_key })
    }

    /// The peers in the order of their keys.
    pub fn peers(&self) -> impl ExactSizeIterator<Item = &Peer> {
        self.peers.values()
    }

    /// The peer with this key.
    pub fn peer(&self, key: &PublicKey) -> Option<&Peer> {
        self.peers.get(key)
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

fn check_names(node: &Node, peers: &[Peer]) -> Result<(), ModelError> {
    let mut seen = std::collections::BTreeSet::new();
    for peer in peers {
        if peer.public_key == node.public_key {
            return Err(ModelError::OwnKey { name: peer.name.clone() });
        }
        if peer.name == node.id {
            return Err(ModelError::OwnName { name: peer.name.clone() });
        }
        if !seen.insert(&peer.name) {
            return Err(ModelError::DuplicateName { name: peer.name.clone() });
        }
    }
    Ok(())
}

fn check_prefixes(node: &Node, peers: &[Peer]) -> Result<(), ModelError> {
    let mut owners: BTreeMap<IpNet, &NodeId> = BTreeMap::new();
    for peer in peers {
        for prefix in &peer.allowed_ips {
            if let Some(first) = owners.insert(*prefix, &peer.name)
                && *first != peer.name
            {
                return Err(ModelError::DuplicatePrefix {
                    prefix: *prefix,
                    first: first.clone(),
                    second: peer.name.clone(),
                });
            }
            let own = node.addresses.iter().find(|own| IpNet::from(own.addr()) == *prefix);
            if let Some(address) = own {
                let name = peer.name.clone();
                return Err(ModelError::OwnAddress { prefix: *prefix, name, address: *address });
            }
        }
    }
    Ok(())
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
