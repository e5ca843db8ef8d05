//! The names of the mesh, ready to be answered: the model and this node's own names as a snapshot in wire form.
//!
//! Pure: `Model` in, [`Zone`] out. What is ours is [`Zone::resolve`]'s to say: the mesh domain, `pm3`, the reverse
//! of the mesh networks, and the names that must never leave a host (RFC 6761, 6762, 7686, 6303). A name below one
//! of these is never [`Resolution::Elsewhere`], whatever happens.

mod reverse;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use self::reverse::{Place, Reverse};
use super::wire::{Data, NotAName, Soa, WireName, rtype};
use crate::model::{Model, Roles};

/// Seconds that a record may be kept by others. Mesh addresses hardly ever change, peers do.
pub const TTL: u32 = 60;
/// Seconds that "there is no such name" may be kept: a peer that joins is seen soon.
pub const NEGATIVE_TTL: u32 = 30;

/// Top-level names that a resolver answers itself and never forwards.
const NEVER_FORWARDED: [&str; 5] = ["localhost", "invalid", "test", "local", "onion"];
/// Networks whose reverse names mean something on one host or link only.
const HOST_NETWORKS: [&str; 7] =
    ["127.0.0.0/8", "0.0.0.0/8", "169.254.0.0/16", "255.255.255.255/32", "::1/128", "::/128", "fe80::/10"];

/// A snapshot of everything that is ours.
#[derive(Debug, Clone)]
pub struct Zone {
    names: HashMap<Box<[u8]>, Entry>,
    /// The forward zones, those with most bytes first.
    apexes: Vec<WireName>,
    localhost: WireName,
    reverse: Reverse,
    soa: RrSet,
    ns: RrSet,
    any: RrSet,
    mesh_networks: Vec<IpNet>,
    mesh_hosts: std::collections::HashSet<IpAddr>,
    mesh_names: usize,
}

/// What stands at one name.
#[derive(Debug, Clone)]
struct Entry {
    /// Bytes of the zone's apex at the end of the name.
    apex_len: usize,
    sets: Vec<RrSet>,
}

/// All records of one type at one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RrSet {
    pub rtype: u16,
    pub records: Vec<Data>,
    /// The records as they stand in an answer whose question begins at byte 12: the owner is a pointer to it.
    pub wire: Box<[u8]>,
}

impl RrSet {
    fn new(records: Vec<Data>) -> Self {
        let rtype = records.first().map_or(0, Data::rtype);
        let mut wire = Vec::new();
        for data in &records {
            wire.extend_from_slice(&[0xc0, 12]);
            data.write_after_owner(TTL, &mut wire);
        }
        Self { rtype, records, wire: wire.into() }
    }
}

/// What the zone says to a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution<'z> {
    Answer(&'z RrSet),
    /// The name exists without this type; the SOA stands at the last `apex_len` bytes of the name.
    NoData {
        apex_len: usize,
    },
    /// There is no such name in our zone, which begins at the last `apex_len` bytes of the name.
    NoName {
        apex_len: usize,
    },
    /// Not ours to say.
    Elsewhere,
}

impl Zone {
    /// The zone of `model` with `pm3` at `pm3_address`. `serial` is the caller's counter of changes.
    ///
    /// # Errors
    /// A mesh domain that is no domain name, or is too long for a node's name to stand below it.
    pub fn build(model: &Model, pm3_address: Ipv4Addr, serial: u32) -> Result<Self, NotAName> {
        let domain = WireName::parse(&model.domain)?;
        let pm3 = WireName::parse("pm3")?;
        let own_name = domain.child(model.node.id.as_str())?;
        let mut builder = Builder::default();
        for member in members(model) {
            builder.add_member(&member, &domain, &pm3, pm3_address)?;
            builder.add_roles(&member, &domain, &model.roles)?;
        }
        let mesh_names = builder.records.len();
        builder.add_host_names(&pm3, pm3_address)?;
        let mesh_networks = mesh_networks(model);
        let mut apexes = vec![domain.clone(), pm3];
        for name in NEVER_FORWARDED {
            apexes.push(WireName::parse(name)?);
        }
        apexes.sort_by_key(|name| std::cmp::Reverse(name.as_bytes().len()));
        let networks = [&mesh_networks[..], &host_networks(), &builder.host_prefixes()].concat();
        let reverse = Reverse::new(&networks, &builder.pointed);
        Ok(Self {
            mesh_hosts: builder.mesh_hosts.iter().copied().collect(),
            names: builder.entries(&apexes, &reverse),
            reverse,
            localhost: WireName::parse("localhost")?,
            soa: RrSet::new(vec![Data::Soa(soa(&domain, &own_name, serial)?)]),
            ns: RrSet::new(vec![Data::Ns(own_name)]),
            any: RrSet::new(vec![Data::Rfc8482]),
            apexes,
            mesh_networks,
            mesh_names,
        })
    }

    /// What is known about `rtype` at `name`, which is in wire form and lower case.
    pub fn resolve(&self, name: &[u8], rtype: u16) -> Resolution<'_> {
        if let Some(entry) = self.names.get(name) {
            return self.at_existing(name, rtype, entry.apex_len, &entry.sets);
        }
        if let Some(apex_len) = forward_apex(&self.apexes, name) {
            let apex = &name[name.len() - apex_len..];
            // Everything below `localhost` is `localhost` (RFC 6761 section 6.3).
            let below_localhost = self.names.get(apex).filter(|_| apex == self.localhost.as_bytes());
            return match below_localhost {
                Some(entry) => self.at_existing(name, rtype, apex_len, &entry.sets),
                None if apex_len == name.len() => self.at_existing(name, rtype, apex_len, &[]),
                None => Resolution::NoName { apex_len },
            };
        }
        match self.reverse.place(name) {
            Place::Above { apex_len } => self.at_existing(name, rtype, apex_len, &[]),
            Place::Nothing { apex_len } => Resolution::NoName { apex_len },
            Place::Elsewhere => Resolution::Elsewhere,
        }
    }

    fn at_existing<'z>(&'z self, name: &[u8], rtype: u16, apex_len: usize, sets: &'z [RrSet]) -> Resolution<'z> {
        let at_apex = apex_len == name.len();
        let set = match rtype {
            rtype::ANY => Some(&self.any),
            rtype::SOA if at_apex => Some(&self.soa),
            rtype::NS if at_apex => Some(&self.ns),
            _ => sets.iter().find(|set| set.rtype == rtype),
        };
        set.map_or(Resolution::NoData { apex_len }, Resolution::Answer)
    }

    /// The start of authority of all our zones; its owner is the zone that was asked.
    pub fn soa(&self) -> &RrSet {
        &self.soa
    }

    /// Names of the mesh: forward and reverse, without those every host has.
    pub fn mesh_names(&self) -> usize {
        self.mesh_names
    }

    /// Whether a client at this address may have its questions forwarded: this host, and the mesh.
    pub fn may_forward(&self, client: IpAddr) -> bool {
        let client = client.to_canonical();
        client.is_loopback()
            || self.mesh_networks.iter().any(|network| network.contains(&client))
            || self.mesh_hosts.contains(&client)
    }
}

/// The bytes of the deepest forward zone that `name` lies in.
fn forward_apex(apexes: &[WireName], name: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let Some(length) = name.get(at).filter(|length| **length != 0) {
        let rest = &name[at..];
        if apexes.iter().any(|apex| apex.as_bytes() == rest) {
            return Some(rest.len());
        }
        at += 1 + usize::from(*length);
    }
    None
}

/// A node as the zone sees it.
struct Member<'m> {
    id: &'m str,
    key: String,
    addresses: Vec<IpAddr>,
}

fn members(model: &Model) -> Vec<Member<'_>> {
    let own = Member {
        id: model.node.id.as_str(),
        key: model.node.public_key.to_string(),
        addresses: model.node.addresses.iter().map(IpNet::addr).collect(),
    };
    let peers = model.peers().map(|peer| Member {
        id: peer.name.as_str(),
        key: peer.public_key.to_string(),
        addresses: peer.allowed_ips.iter().filter(|prefix| is_host(prefix)).map(IpNet::addr).collect(),
    });
    std::iter::once(own).chain(peers).collect()
}

fn is_host(prefix: &IpNet) -> bool {
    prefix.prefix_len() == prefix.max_prefix_len()
}

/// The networks of the node's own addresses. A default route is no network.
fn mesh_networks(model: &Model) -> Vec<IpNet> {
    let mut networks: Vec<IpNet> = model.node.addresses.iter().map(IpNet::trunc).collect();
    networks.retain(|network| network.prefix_len() > 0);
    networks.sort_unstable();
    networks.dedup();
    networks
}

fn host_networks() -> Vec<IpNet> {
    HOST_NETWORKS.iter().filter_map(|text| text.parse().ok()).collect()
}

fn soa(domain: &WireName, own_name: &WireName, serial: u32) -> Result<Soa, NotAName> {
    Ok(Soa {
        primary: own_name.clone(),
        mailbox: domain.child("hostmaster")?,
        serial,
        refresh: 3600,
        retry: 600,
        expire: 86400,
        minimum: NEGATIVE_TTL,
    })
}

/// Gathers the records of every name before they are encoded once.
#[derive(Default)]
struct Builder {
    records: HashMap<WireName, Vec<Data>>,
    /// Addresses of the mesh.
    mesh_hosts: Vec<IpAddr>,
    /// Addresses that have a name.
    pointed: Vec<IpAddr>,
}

impl Builder {
    fn add(&mut self, name: WireName, data: Data) {
        let records = self.records.entry(name).or_default();
        if !records.contains(&data) {
            records.push(data);
        }
    }

    fn add_addresses(&mut self, name: &WireName, addresses: &[IpAddr]) {
        for address in addresses {
            let data = match address {
                IpAddr::V4(v4) => Data::A(*v4),
                IpAddr::V6(v6) => Data::Aaaa(*v6),
            };
            self.add(name.clone(), data);
        }
    }

    fn add_pointer(&mut self, address: IpAddr, name: &WireName) {
        self.add(WireName::reverse(address), Data::Ptr(name.clone()));
        self.pointed.push(address);
    }

    fn add_member(
        &mut self,
        member: &Member<'_>,
        domain: &WireName,
        pm3: &WireName,
        pm3_address: Ipv4Addr,
    ) -> Result<(), NotAName> {
        let name = domain.child(member.id)?;
        self.add_addresses(&name, &member.addresses);
        self.add(name.clone(), Data::Txt(vec![format!("id={}", member.id), format!("key={}", member.key)]));
        for address in &member.addresses {
            self.add_pointer(*address, &name);
            self.mesh_hosts.push(*address);
        }
        // A node without any address is still itself on its own host.
        let pm3_addresses =
            if member.addresses.is_empty() { &[IpAddr::V4(pm3_address)][..] } else { &member.addresses };
        self.add_addresses(&pm3.child(member.id)?, pm3_addresses);
        Ok(())
    }

    /// `leader` and `voters` below the mesh domain, for the members that are.
    fn add_roles(&mut self, member: &Member<'_>, domain: &WireName, roles: &Roles) -> Result<(), NotAName> {
        if roles.leader.as_ref().is_some_and(|leader| leader.as_str() == member.id) {
            self.add_addresses(&domain.child("leader")?, &member.addresses);
        }
        if roles.voters.iter().any(|voter| voter.as_str() == member.id) {
            self.add_addresses(&domain.child("voters")?, &member.addresses);
        }
        Ok(())
    }

    /// What every host says about itself: `pm3`, and `localhost` in both directions.
    fn add_host_names(&mut self, pm3: &WireName, pm3_address: Ipv4Addr) -> Result<(), NotAName> {
        let localhost = WireName::parse("localhost")?;
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        self.add_addresses(&localhost, &loopback);
        for address in loopback {
            self.add_pointer(address, &localhost);
        }
        self.add_addresses(pm3, &[IpAddr::V4(pm3_address)]);
        self.add_pointer(IpAddr::V4(pm3_address), pm3);
        Ok(())
    }

    fn host_prefixes(&self) -> Vec<IpNet> {
        self.pointed.iter().copied().map(IpNet::from).collect()
    }

    /// Encodes every set, and adds the names between a name and its apex, which exist without records (RFC 8020).
    fn entries(self, apexes: &[WireName], reverse: &Reverse) -> HashMap<Box<[u8]>, Entry> {
        let mut entries: HashMap<Box<[u8]>, Entry> = HashMap::with_capacity(self.records.len());
        for (name, records) in self.records {
            let name = name.as_bytes();
            let apex_len = forward_apex(apexes, name).or_else(|| reverse.apex_len(name)).unwrap_or(name.len());
            // Reverse names need no such parents: Reverse knows them from the addresses.
            for parent in parents_below(name, apex_len).filter(|_| forward_apex(apexes, name).is_some()) {
                entries.entry(parent.into()).or_insert_with(|| Entry { apex_len, sets: Vec::new() });
            }
            let sets = group_by_type(records);
            entries.insert(name.into(), Entry { apex_len, sets });
        }
        entries
    }
}

fn group_by_type(records: Vec<Data>) -> Vec<RrSet> {
    let mut groups: Vec<Vec<Data>> = Vec::new();
    for data in records {
        match groups.iter_mut().find(|group| group[0].rtype() == data.rtype()) {
            Some(group) => group.push(data),
            None => groups.push(vec![data]),
        }
    }
    groups.into_iter().map(RrSet::new).collect()
}

/// The names between `name` and the apex that its last `apex_len` bytes are.
fn parents_below(name: &[u8], apex_len: usize) -> impl Iterator<Item = &[u8]> {
    let above_apex = move |rest: &&[u8]| rest.len() > apex_len;
    std::iter::successors(Some(name), |rest| rest.get(1 + usize::from(*rest.first()?)..)).skip(1).take_while(above_apex)
}

#[cfg(test)]
pub(super) mod tests;
