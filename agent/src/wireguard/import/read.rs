//! The file as typed values. Keys and sections are case-insensitive and `#` begins a comment, as in wg(8).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::IpNet;

use super::{Hook, ImportError, Problem, hooks, names};
use crate::model::key::{PresharedKey, PrivateKey, PublicKey};
use crate::model::peer::Endpoint;

/// The file.
#[derive(Debug, Default)]
pub(super) struct File {
    pub(super) interface: Interface,
    pub(super) peers: Vec<Peer>,
    pub(super) notes: Vec<String>,
}

#[derive(Debug, Default)]
pub(super) struct Interface {
    pub(super) private_key: Option<PrivateKey>,
    /// From the command that wg-quick(8) shows for keys in a file.
    pub(super) private_key_file: Option<PathBuf>,
    pub(super) listen_port: u16,
    pub(super) fwmark: u32,
    pub(super) addresses: Vec<IpNet>,
    pub(super) dns_servers: Vec<IpAddr>,
    pub(super) mtu: Option<u16>,
    pub(super) table: Table,
    pub(super) hooks: Vec<Hook>,
}

/// Where wg-quick puts routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Table {
    #[default]
    Auto,
    Off,
    Number(u32),
}

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) line: usize,
    pub(super) comment_name: Option<String>,
    pub(super) public_key: PublicKey,
    pub(super) preshared_key: Option<PresharedKey>,
    pub(super) endpoint: Option<Endpoint>,
    pub(super) allowed_ips: Vec<IpNet>,
    pub(super) persistent_keepalive: Option<u16>,
}

/// A `[Peer]` while it is read.
#[derive(Debug, Default)]
struct OpenPeer {
    line: usize,
    comment_name: Option<String>,
    public_key: Option<PublicKey>,
    preshared_key: Option<PresharedKey>,
    endpoint: Option<Endpoint>,
    allowed_ips: Vec<IpNet>,
    persistent_keepalive: Option<u16>,
}

const INTERFACE_KEYS: &[&str] = &[
    "PrivateKey",
    "ListenPort",
    "FwMark",
    "Address",
    "DNS",
    "MTU",
    "Table",
    "PreUp",
    "PostUp",
    "PreDown",
    "PostDown",
    "SaveConfig",
];
const PEER_KEYS: &[&str] = &["PublicKey", "PresharedKey", "AllowedIPs", "Endpoint", "PersistentKeepalive"];

/// Where the next line belongs.
enum Section {
    None,
    Interface,
    Peer(OpenPeer),
}

pub(super) fn read(text: &str) -> Result<File, ImportError> {
    let mut file = File::default();
    let mut section = Section::None;
    let mut has_interface = false;
    // The comment right above, which may name the peer whose section follows.
    let mut above: Option<String> = None;
    for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let line_number = number + 1;
        let at = |problem| ImportError { line: line_number, problem };
        let (content, comment) = split_comment(line);
        if content.is_empty() {
            if let (Section::Peer(peer), Some(comment)) = (&mut section, comment) {
                let named = if peer.is_new() { names::from_comment(comment) } else { names::from_marked(comment) };
                peer.comment_name = peer.comment_name.take().or(named);
            }
            above = comment.map(ToOwned::to_owned);
            continue;
        }
        if let Some(header) = content.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            close(&mut file, std::mem::replace(&mut section, Section::None))?;
            section = open(header.trim(), line_number, above.take()).map_err(at)?;
            has_interface |= matches!(section, Section::Interface);
            continue;
        }
        above = None;
        let (key, value) = content.split_once('=').ok_or(Problem::NotAPair).map_err(at)?;
        let (key, value) = (key.trim(), value.trim());
        match &mut section {
            Section::None => return Err(at(Problem::NoSection)),
            Section::Interface => interface_key(&mut file, line_number, key, value).map_err(at)?,
            Section::Peer(peer) => peer_key(peer, key, value).map_err(at)?,
        }
    }
    close(&mut file, section)?;
    finish(file, has_interface)
}

fn finish(mut file: File, has_interface: bool) -> Result<File, ImportError> {
    let whole = |problem| ImportError { line: 0, problem };
    if !has_interface {
        return Err(whole(Problem::NoInterface));
    }
    take_key_command(&mut file.interface);
    if file.interface.private_key.is_none() && file.interface.private_key_file.is_none() {
        return Err(whole(Problem::NoPrivateKey));
    }
    check_unique(&file.peers)?;
    Ok(file)
}

/// `PostUp = wg set %i private-key FILE` is not a command to us but the place of the key.
fn take_key_command(interface: &mut Interface) {
    let place = interface.hooks.iter().position(|hook| hooks::private_key_file(&hook.command).is_some());
    if let Some(index) = place.filter(|_| interface.private_key.is_none()) {
        let hook = interface.hooks.remove(index);
        interface.private_key_file = hooks::private_key_file(&hook.command);
    }
}

fn check_unique(peers: &[Peer]) -> Result<(), ImportError> {
    let (mut keys, mut owners) = (BTreeMap::new(), BTreeMap::new());
    for peer in peers {
        let at = |problem| ImportError { line: peer.line, problem };
        if let Some(first) = keys.insert(peer.public_key, peer.line) {
            return Err(at(Problem::DuplicatePeer(first)));
        }
        for prefix in &peer.allowed_ips {
            if let Some(first) = owners.insert(*prefix, peer.line).filter(|first| *first != peer.line) {
                return Err(at(Problem::DuplicatePrefix { prefix: prefix.to_string(), first }));
            }
        }
    }
    Ok(())
}

fn split_comment(line: &str) -> (&str, Option<&str>) {
    match line.split_once('#') {
        Some((content, comment)) => (content.trim(), Some(comment)),
        None => (line.trim(), None),
    }
}

fn open(header: &str, line: usize, above: Option<String>) -> Result<Section, Problem> {
    match header.to_ascii_lowercase().as_str() {
        "interface" => Ok(Section::Interface),
        "peer" => {
            let comment_name = above.as_deref().and_then(names::from_comment);
            Ok(Section::Peer(OpenPeer { line, comment_name, ..OpenPeer::default() }))
        }
        _ => Err(Problem::UnknownSection(header.to_owned())),
    }
}

fn close(file: &mut File, section: Section) -> Result<(), ImportError> {
    let Section::Peer(peer) = section else { return Ok(()) };
    let line = peer.line;
    let public_key = peer.public_key.ok_or(ImportError { line, problem: Problem::NoPublicKey })?;
    file.peers.push(Peer {
        line,
        comment_name: peer.comment_name,
        public_key,
        preshared_key: peer.preshared_key,
        endpoint: peer.endpoint,
        allowed_ips: peer.allowed_ips,
        persistent_keepalive: peer.persistent_keepalive,
    });
    Ok(())
}

fn interface_key(file: &mut File, line: usize, key: &str, value: &str) -> Result<(), Problem> {
    let File { interface, notes, .. } = file;
    match canonical(key, INTERFACE_KEYS) {
        Some("PrivateKey") => interface.private_key = Some(key_value("PrivateKey", value)?),
        Some("ListenPort") => interface.listen_port = number("ListenPort", value, "a port from 0 to 65535")?,
        Some("FwMark") => interface.fwmark = mark(value)?,
        Some("Address") => extend_unique(&mut interface.addresses, list("Address", value, address)?),
        Some("DNS") => dns(interface, notes, line, value),
        Some("MTU") => mtu(interface, notes, line, value)?,
        Some("Table") => interface.table = table(value)?,
        Some("SaveConfig") => save_config(notes, line, value)?,
        Some(hook @ ("PreUp" | "PostUp" | "PreDown" | "PostDown")) => {
            interface.hooks.push(hooks::hook(line, hook, value));
        }
        Some(_) | None => return Err(unknown(key, "Interface", INTERFACE_KEYS)),
    }
    Ok(())
}

fn peer_key(peer: &mut OpenPeer, key: &str, value: &str) -> Result<(), Problem> {
    match canonical(key, PEER_KEYS) {
        Some("PublicKey") => peer.public_key = Some(key_value("PublicKey", value)?),
        Some("PresharedKey") => {
            let key: PresharedKey = key_value("PresharedKey", value)?;
            // All zeroes is how the protocol spells "none".
            peer.preshared_key = Some(key).filter(|key| key.expose() != &[0; 32]);
        }
        Some("AllowedIPs") => {
            let prefixes = list("AllowedIPs", value, address)?.iter().map(IpNet::trunc).collect();
            extend_unique(&mut peer.allowed_ips, prefixes);
        }
        Some("Endpoint") => peer.endpoint = Some(value.parse().map_err(Problem::Endpoint)?),
        Some("PersistentKeepalive") => peer.persistent_keepalive = keepalive(value)?,
        Some(_) | None => return Err(unknown(key, "Peer", PEER_KEYS)),
    }
    Ok(())
}

impl OpenPeer {
    /// Whether nothing but its header was read: a comment here speaks of the peer, later ones of its keys.
    fn is_new(&self) -> bool {
        self.public_key.is_none() && self.endpoint.is_none() && self.allowed_ips.is_empty()
    }
}

fn canonical(key: &str, accepted: &[&'static str]) -> Option<&'static str> {
    accepted.iter().find(|known| known.eq_ignore_ascii_case(key)).copied()
}

fn unknown(key: &str, section: &'static str, accepted: &[&str]) -> Problem {
    Problem::UnknownKey { key: key.to_owned(), section, accepted: accepted.join(", ") }
}

fn key_value<K: FromStr<Err = crate::model::key::KeyError>>(key: &'static str, value: &str) -> Result<K, Problem> {
    value.parse().map_err(|source| Problem::Key { key, source })
}

fn wrong(key: &'static str, value: &str, accepted: &'static str) -> Problem {
    Problem::Value { key, value: value.to_owned(), accepted }
}

fn number<N: FromStr>(key: &'static str, value: &str, accepted: &'static str) -> Result<N, Problem> {
    value.parse().map_err(|_source| wrong(key, value, accepted))
}

fn mark(value: &str) -> Result<u32, Problem> {
    let parsed = match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
        _ if value.eq_ignore_ascii_case("off") => Some(0),
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => value.parse().ok(),
    };
    parsed.ok_or_else(|| wrong("FwMark", value, "a 32-bit number, decimal or 0x…, or off"))
}

fn keepalive(value: &str) -> Result<Option<u16>, Problem> {
    if value.eq_ignore_ascii_case("off") {
        return Ok(None);
    }
    let seconds: u16 = number("PersistentKeepalive", value, "seconds from 0 to 65535, or off")?;
    Ok(Some(seconds).filter(|seconds| *seconds != 0))
}

fn table(value: &str) -> Result<Table, Problem> {
    match value.to_ascii_lowercase().as_str() {
        "auto" | "main" | "254" => Ok(Table::Auto),
        "off" => Ok(Table::Off),
        text => {
            // 253 and 255 are the kernel's own, 0 is "any".
            let number = text.parse().ok().filter(|number| !matches!(number, 0 | 253 | 255));
            number.map(Table::Number).ok_or_else(|| wrong("Table", value, "off, auto, or the number of a table"))
        }
    }
}

fn list<T>(key: &'static str, value: &str, one: fn(&str) -> Option<T>) -> Result<Vec<T>, Problem> {
    let parts = value.split(',').map(str::trim).filter(|part| !part.is_empty());
    let accepted = "a list of ADDRESS or ADDRESS/LENGTH";
    parts.map(|part| one(part).ok_or_else(|| wrong(key, part, accepted))).collect()
}

/// Without a length it is the one address, as `ip address add` takes it.
fn address(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

fn extend_unique(all: &mut Vec<IpNet>, more: Vec<IpNet>) {
    for one in more {
        if !all.contains(&one) {
            all.push(one);
        }
    }
}

fn dns(interface: &mut Interface, notes: &mut Vec<String>, line: usize, value: &str) {
    for part in value.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        match part.parse() {
            Ok(server) => interface.dns_servers.push(server),
            Err(_not_an_address) => notes.push(format!(
                "line {line}: DNS search domain {part} is left out: Weft sets no search domains; add it where the \
                 host resolver is configured (`resolvectl domain`, or `search` in /etc/resolv.conf)"
            )),
        }
    }
}

fn mtu(interface: &mut Interface, notes: &mut Vec<String>, line: usize, value: &str) -> Result<(), Problem> {
    let mtu: u16 = number("MTU", value, "a number from 576 to 65535")?;
    if mtu < 1280 {
        notes.push(format!(
            "line {line}: MTU {mtu} is left out: IPv6 needs 1280, which is the least that network.mtu takes; without \
             it the MTU follows the way to the peers"
        ));
    } else {
        interface.mtu = Some(mtu);
    }
    Ok(())
}

fn save_config(notes: &mut Vec<String>, line: usize, value: &str) -> Result<(), Problem> {
    match value.to_ascii_lowercase().as_str() {
        "false" => Ok(()),
        "true" => {
            notes.push(format!(
                "line {line}: SaveConfig is left out: Weft never writes its configuration; peers added with `wg set` \
                 are taken away again, so put them into weft.toml"
            ));
            Ok(())
        }
        _ => Err(wrong("SaveConfig", value, "true or false")),
    }
}
