//! The typed file as TOML, key files and notes.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use serde::Serialize;
use zeroize::Zeroizing;

use super::read::{File, Interface, Table};
use super::{Import, KeyFile, Options, names};
use crate::foundation::id::{LinkName, NodeId};
use crate::model::key::PublicKey;
use crate::model::peer::Endpoint;

/// The tables as `weft.toml` has them; what is left out is the default.
#[derive(Serialize)]
struct Document {
    wireguard: WireguardTable,
    #[serde(skip_serializing_if = "NetworkTable::is_default")]
    network: NetworkTable,
    #[serde(skip_serializing_if = "Option::is_none")]
    dns: Option<DnsTable>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    peer: Vec<PeerTable>,
}

#[derive(Serialize)]
struct WireguardTable {
    link: LinkName,
    listen_port: u16,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    addresses: Vec<IpNet>,
    private_key_file: PathBuf,
    #[serde(skip_serializing_if = "is_zero")]
    fwmark: u32,
}

#[derive(Serialize, Default, PartialEq)]
struct NetworkTable {
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    routes: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    table: Option<u32>,
}

#[derive(Serialize)]
struct DnsTable {
    upstream: Vec<String>,
}

#[derive(Serialize)]
struct PeerTable {
    name: NodeId,
    public_key: PublicKey,
    #[serde(skip_serializing_if = "Option::is_none")]
    preshared_key_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<Endpoint>,
    allowed_ips: Vec<IpNet>,
    #[serde(skip_serializing_if = "Option::is_none")]
    persistent_keepalive: Option<u16>,
}

impl NetworkTable {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

fn is_zero(mark: &u32) -> bool {
    *mark == 0
}

pub(super) fn write(file: File, options: Options<'_>) -> Import {
    let File { interface, peers, mut notes } = file;
    notes.extend(default_route_note(&peers, &interface));
    let names = names::name_all(&peers);
    let mut keys = Vec::new();
    let mut tables = Vec::new();
    for (peer, name) in peers.into_iter().zip(names) {
        let preshared_key_file = peer.preshared_key.as_ref().map(|key| {
            let content = Zeroizing::new(STANDARD.encode(key.expose()) + "\n");
            add_key(&mut keys, options.key_directory.join(format!("{name}.psk")), content)
        });
        tables.push(PeerTable {
            name,
            public_key: peer.public_key,
            preshared_key_file,
            endpoint: peer.endpoint,
            allowed_ips: peer.allowed_ips,
            persistent_keepalive: peer.persistent_keepalive,
        });
    }
    let document = Document {
        wireguard: wireguard_table(&interface, options, &mut keys),
        network: network_table(&interface),
        dns: dns_table(&interface),
        peer: tables,
    };
    let toml = toml::to_string(&document).expect("tables of strings, numbers and lists of them are TOML");
    Import { toml, keys, hooks: interface.hooks, notes }
}

fn add_key(keys: &mut Vec<KeyFile>, path: PathBuf, content: Zeroizing<String>) -> PathBuf {
    keys.push(KeyFile { path: path.clone(), content });
    path
}

fn wireguard_table(interface: &Interface, options: Options<'_>, keys: &mut Vec<KeyFile>) -> WireguardTable {
    let in_directory = options.key_directory.join(format!("{}.key", options.link));
    let private_key_file = match &interface.private_key {
        Some(key) => {
            let content = Zeroizing::new(key.to_base64().as_str().to_owned() + "\n");
            add_key(keys, in_directory, content)
        }
        None => interface.private_key_file.clone().unwrap_or(in_directory),
    };
    WireguardTable {
        link: options.link.clone(),
        listen_port: interface.listen_port,
        addresses: interface.addresses.clone(),
        private_key_file,
        fwmark: interface.fwmark,
    }
}

fn network_table(interface: &Interface) -> NetworkTable {
    let (routes, table) = match interface.table {
        Table::Auto => (None, None),
        Table::Off => (Some(false), None),
        Table::Number(number) => (None, Some(number)),
    };
    NetworkTable { mtu: interface.mtu, routes, table }
}

fn dns_table(interface: &Interface) -> Option<DnsTable> {
    let upstream: Vec<String> = interface.dns_servers.iter().map(ToString::to_string).collect();
    (!upstream.is_empty()).then_some(DnsTable { upstream })
}

fn default_route_note(peers: &[super::read::Peer], interface: &Interface) -> Option<String> {
    let peer = peers.iter().find(|peer| peer.allowed_ips.iter().any(|prefix| prefix.prefix_len() == 0))?;
    (interface.table == Table::Auto).then(|| {
        format!(
            "line {}: this peer is a default route. wg-quick adds policy rules for it, which Weft does not: set \
             network.table and wireguard.fwmark to a number such as 51820 and add the rule yourself, with \
             `ip rule add not fwmark 51820 table 51820`",
            peer.line
        )
    })
}
