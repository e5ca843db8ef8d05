//! Rows of the store to typed values and back. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use ipnet::Ipv6Net;

use super::acl::Acl;
use super::registry::TokenInfo;
use super::schema::NODES;
use crate::foundation::id::NodeId;
use crate::identity::certificate::Fingerprint;
use crate::identity::token::{Record, TokenId};
use crate::model::mesh::{Blocked, Member, Ports, Seat};
use crate::store::{Rows, Statement, Value};

/// A row that no version of Weft has written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{table} holds {column} = {value}, which is not {wanted}; was it written by `weft store exec`?")]
pub struct RowError {
    pub table: &'static str,
    pub column: &'static str,
    pub value: String,
    pub wanted: &'static str,
}

/// A member with what only the store keeps about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NodeRow {
    /// Without its vote, which the store's membership says.
    pub(super) member: Member,
    pub(super) certificate_key: Fingerprint,
    /// Whether it made this mesh.
    pub(super) is_founder: bool,
    /// What it asks for.
    pub(super) seat: Seat,
    /// Where its Raft listener answers, if it said so.
    pub(super) raft_address: Option<String>,
}

impl NodeRow {
    /// Where other members of the store reach it; `None`: nowhere that is known.
    pub(super) fn reached_at(&self) -> Option<String> {
        let Member { primary_endpoint, ports, .. } = &self.member;
        let derived = || primary_endpoint.map(|address| SocketAddr::from((address, ports.raft)).to_string());
        self.raft_address.clone().or_else(derived).filter(|_| ports.raft != 0)
    }
}

const COLUMNS: &str = "id, public_key, certificate_key, raft_port, grpc_port, wireguard_port, primary_endpoint, endpoints, \
                       ipv4, ipv6, is_founder, created_at, updated_at, seat, raft_address";

/// All nodes, in the order of their ids.
pub(super) fn select_nodes() -> Statement {
    Statement::new(format!("SELECT {COLUMNS} FROM weft_members ORDER BY id"))
}

/// Those of the nodes with these ids that are there.
pub(super) fn select_named<'a>(ids: impl Iterator<Item = &'a NodeId>) -> Statement {
    let ids: Vec<String> = ids.map(ToString::to_string).collect();
    let places: Vec<String> = (1..=ids.len()).map(|number| format!("?{number}")).collect();
    let statement = Statement::new(format!("SELECT {COLUMNS} FROM weft_members WHERE id IN ({})", places.join(", ")));
    ids.into_iter().fold(statement, Statement::bind)
}

/// All nodes, each with its rowid behind its columns.
pub(super) fn select_numbered() -> Statement {
    Statement::new(format!("SELECT {COLUMNS}, rowid FROM weft_members"))
}

/// Those of the nodes with these rowids that are there.
pub(super) fn select_some(rows: &BTreeSet<i64>) -> Statement {
    let rows: Vec<String> = rows.iter().map(i64::to_string).collect();
    Statement::new(format!("SELECT {COLUMNS}, rowid FROM weft_members WHERE rowid IN ({})", rows.join(", ")))
}

/// The nodes of [`select_numbered`] or [`select_some`] by their rowids.
pub(super) fn numbered(rows: &Rows) -> Result<BTreeMap<i64, NodeRow>, RowError> {
    let one = |row: &Vec<Value>| {
        let number = row.last().and_then(Value::as_integer);
        let number = number.ok_or_else(|| wrong(NODES, "rowid", row.last(), "a number"))?;
        Ok((number, node(row)?))
    };
    rows.rows.iter().map(one).collect()
}

/// Writes a node in the place of the one with its id.
pub(super) fn put_node(row: &NodeRow) -> Statement {
    let NodeRow { member, certificate_key, is_founder, seat, raft_address } = row;
    let endpoints: Vec<String> = member.endpoints.iter().map(IpAddr::to_string).collect();
    Statement::new(format!(
        "INSERT INTO weft_members ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15) \
         ON CONFLICT (id) DO UPDATE SET public_key = ?2, certificate_key = ?3, raft_port = ?4, grpc_port = ?5, \
         wireguard_port = ?6, primary_endpoint = ?7, endpoints = ?8, ipv4 = ?9, ipv6 = ?10, is_founder = ?11, updated_at = ?13, \
         seat = ?14, raft_address = ?15"
    ))
    .bind(member.id.to_string())
    .bind(member.public_key.to_string())
    .bind(certificate_key.to_string())
    .bind(i64::from(member.ports.raft))
    .bind(i64::from(member.ports.grpc))
    .bind(i64::from(member.ports.wireguard))
    .bind(member.primary_endpoint.map(|address| address.to_string()))
    .bind(endpoints.join(","))
    .bind(member.ipv4.map(|address| address.to_string()))
    .bind(member.ipv6.map(|network| network.to_string()).unwrap_or_default())
    .bind(i64::from(*is_founder))
    .bind(seconds(member.created_at))
    .bind(seconds(member.updated_at))
    .bind(seat.as_str())
    .bind(raft_address.clone())
    .touching(NODES)
    .expecting(1)
}

pub(super) fn nodes(rows: &Rows) -> Result<Vec<NodeRow>, RowError> {
    rows.rows.iter().map(|row| node(row)).collect()
}

fn node(row: &[Value]) -> Result<NodeRow, RowError> {
    let text = |at: usize, column| parsed::<String>(NODES, column, row.get(at), "text");
    let port = |at: usize, column: &'static str| {
        let number = row.get(at).and_then(Value::as_integer).and_then(|number| u16::try_from(number).ok());
        number.ok_or_else(|| wrong(NODES, column, row.get(at), "a port"))
    };
    let endpoints = text(7, "endpoints")?;
    let endpoints = endpoints.split(',').filter(|text| !text.is_empty()).map(str::parse::<IpAddr>);
    let endpoints = endpoints.collect::<Result<Vec<_>, _>>();
    let member = Member {
        id: parsed(NODES, "id", row.first(), "a node id")?,
        public_key: parsed(NODES, "public_key", row.get(1), "a WireGuard key")?,
        ports: Ports {
            raft: port(3, "raft_port")?,
            grpc: port(4, "grpc_port")?,
            wireguard: port(5, "wireguard_port")?,
        },
        primary_endpoint: optional::<IpAddr>(NODES, "primary_endpoint", row.get(6), "an address")?,
        endpoints: endpoints.map_err(|_source| wrong(NODES, "endpoints", row.get(7), "addresses"))?,
        ipv4: optional::<Ipv4Addr>(NODES, "ipv4", row.get(8), "an IPv4 address")?,
        ipv6: Some(parsed::<Ipv6Net>(NODES, "ipv6", row.get(9), "an IPv6 network")?),
        is_voter: false,
        created_at: time(NODES, "created_at", row.get(11))?,
        updated_at: time(NODES, "updated_at", row.get(12))?,
    };
    Ok(NodeRow {
        member,
        certificate_key: parsed(NODES, "certificate_key", row.get(2), "a fingerprint")?,
        is_founder: row.get(10).and_then(Value::as_integer) == Some(1),
        seat: parsed(NODES, "seat", row.get(13), "auto, voter or edge")?,
        raft_address: optional(NODES, "raft_address", row.get(14), "HOST:PORT")?,
    })
}

pub(super) fn select_token(id: TokenId) -> Statement {
    let sql = "SELECT hash, expires_at, attempts_left, used_by, used_key FROM weft_tokens WHERE id = ?1";
    Statement::new(sql).bind(id.to_string())
}

pub(super) fn token(id: TokenId, rows: &Rows) -> Result<Option<Record>, RowError> {
    const TABLE: &str = super::schema::TOKENS;
    let Some(row) = rows.rows.first() else { return Ok(None) };
    let hash = row.first().and_then(Value::as_blob).and_then(|bytes| bytes.try_into().ok());
    let attempts = row.get(2).and_then(Value::as_integer).and_then(|number| u32::try_from(number).ok());
    let used_by = optional(TABLE, "used_by", row.get(3), "a node id")?;
    let used_key = optional(TABLE, "used_key", row.get(4), "a fingerprint")?;
    Ok(Some(Record {
        id,
        hash: hash.ok_or_else(|| wrong(TABLE, "hash", row.first(), "32 bytes"))?,
        expires_at: time(TABLE, "expires_at", row.get(1))?,
        attempts_left: attempts.ok_or_else(|| wrong(TABLE, "attempts_left", row.get(2), "a number"))?,
        used_by: used_by.zip(used_key),
    }))
}

pub(super) fn token_infos(rows: &Rows) -> Result<Vec<TokenInfo>, RowError> {
    const TABLE: &str = super::schema::TOKENS;
    let one = |row: &Vec<Value>| {
        let attempts = row.get(3).and_then(Value::as_integer).and_then(|number| u32::try_from(number).ok());
        Ok(TokenInfo {
            id: parsed(TABLE, "id", row.first(), "text")?,
            created_at: time(TABLE, "created_at", row.get(1))?,
            expires_at: time(TABLE, "expires_at", row.get(2))?,
            attempts_left: attempts.ok_or_else(|| wrong(TABLE, "attempts_left", row.get(3), "a number"))?,
        })
    };
    rows.rows.iter().map(one).collect()
}

pub(super) fn acls(rows: &Rows) -> Result<Vec<Acl>, RowError> {
    const TABLE: &str = super::schema::ACLS;
    let one = |row: &Vec<Value>| {
        let name = parsed::<String>(TABLE, "name", row.first(), "text")?;
        let patterns = parsed::<String>(TABLE, "patterns", row.get(1), "text")?;
        let action = row.get(2).and_then(Value::as_integer).and_then(|number| i32::try_from(number).ok());
        let action = action.ok_or_else(|| wrong(TABLE, "action", row.get(2), "0 or 1"))?;
        let patterns = patterns.split(',').map(str::to_owned).collect();
        Acl::parse(name, patterns, action).map_err(|_source| wrong(TABLE, "patterns", row.get(1), "patterns"))
    };
    rows.rows.iter().map(one).collect()
}

/// Who cannot reach whom.
pub(super) fn blocked(rows: &Rows) -> Result<Blocked, RowError> {
    const TABLE: &str = super::schema::BLOCKED;
    let one = |row: &Vec<Value>| {
        let pair = (parsed(TABLE, "node", row.first(), "a node id")?, parsed(TABLE, "peer", row.get(1), "a node id")?);
        Ok((pair, parsed(TABLE, "reason", row.get(2), "text")?))
    };
    rows.rows.iter().map(one).collect()
}

/// The values of a column that must parse.
pub(super) fn column<T: FromStr>(
    table: &'static str,
    column: &'static str,
    rows: &Rows,
    wanted: &'static str,
) -> Result<Vec<T>, RowError> {
    rows.rows.iter().map(|row| parsed(table, column, row.first(), wanted)).collect()
}

pub(super) fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn time(table: &'static str, column: &'static str, value: Option<&Value>) -> Result<SystemTime, RowError> {
    let seconds = value.and_then(Value::as_integer).and_then(|number| u64::try_from(number).ok());
    let time = seconds.and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
    time.ok_or_else(|| wrong(table, column, value, "seconds since 1970"))
}

fn parsed<T: FromStr>(
    table: &'static str,
    column: &'static str,
    value: Option<&Value>,
    wanted: &'static str,
) -> Result<T, RowError> {
    let parsed = value.and_then(Value::as_text).and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| wrong(table, column, value, wanted))
}

fn optional<T: FromStr>(
    table: &'static str,
    column: &'static str,
    value: Option<&Value>,
    wanted: &'static str,
) -> Result<Option<T>, RowError> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(_) => parsed(table, column, value, wanted).map(Some),
    }
}

fn wrong(table: &'static str, column: &'static str, value: Option<&Value>, wanted: &'static str) -> RowError {
    RowError { table, column, value: format!("{value:?}"), wanted }
}
