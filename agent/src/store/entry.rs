//! Log entries as bytes: the contract's `RaftLogEntry`, in any of its three encodings. Pure.
//!
//! The first byte of an entry names its encoding, so that members with different settings, and a setting that changes, read each
//! other's entries. A transaction, and a statement with conditions of ours (own tables, expected rows), is an [`Envelope`] around
//! contract entries.

mod json;

use bytes::Bytes;
use serde::Deserialize;
use weft_proto::v1::{RaftCommandType, RaftLogEntry, SqlExec, SqlParameter, SqlQuery, SqlStatement};

use super::error::StoreError;
use super::statement::{Parameter, Statement};
use super::value::Value;

/// The largest entry. What is larger belongs into files.
pub(super) const MAX_ENTRY_BYTES: usize = 1024 * 1024;
/// Statements of one transaction.
pub(super) const MAX_STATEMENTS: usize = 1000;
/// Set in the first byte of an envelope.
const ENVELOPE: u8 = 0x10;

/// How new entries are written; every member reads all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub enum Encoding {
    #[serde(rename = "json")]
    Json,
    #[default]
    #[serde(rename = "protobuf")]
    Protobuf,
    #[serde(rename = "protobuf+snappy")]
    ProtobufSnappy,
}

impl Encoding {
    const fn tag(self) -> u8 {
        match self {
            Self::Protobuf => 1,
            Self::ProtobufSnappy => 2,
            Self::Json => 3,
        }
    }

    fn of_tag(tag: u8) -> Option<Self> {
        [Self::Protobuf, Self::ProtobufSnappy, Self::Json].into_iter().find(|encoding| encoding.tag() == tag)
    }
}

/// Several contract entries that are carried out all or none, and what they may and must do.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Envelope {
    #[prost(message, repeated, tag = "1")]
    pub(super) entries: Vec<RaftLogEntry>,
    /// Own tables of Weft that may be written.
    #[prost(string, repeated, tag = "2")]
    pub(super) touching: Vec<String>,
    /// For each entry the rows it must affect, plus one; 0: any number. Shorter than `entries`: the rest is any.
    #[prost(uint64, repeated, tag = "3")]
    pub(super) expecting: Vec<u64>,
}

/// Writes `statements`, which are carried out all or none.
///
/// # Errors
/// [`StoreError::Invalid`] and [`StoreError::TooLarge`].
pub(super) fn encode(statements: Vec<Statement>, encoding: Encoding) -> Result<Bytes, StoreError> {
    if statements.is_empty() || statements.len() > MAX_STATEMENTS {
        let text = format!("a transaction has 1 to {MAX_STATEMENTS} statements; this one has {}", statements.len());
        return Err(StoreError::Invalid(text));
    }
    let plain = statements.len() == 1 && statements[0].touching.is_empty() && statements[0].expecting.is_none();
    let mut envelope = Envelope::default();
    for statement in statements {
        for table in &statement.touching {
            if !envelope.touching.contains(table) {
                envelope.touching.push(table.clone());
            }
        }
        envelope.expecting.push(statement.expecting.map_or(0, |rows| rows.saturating_add(1)));
        envelope.entries.push(contract_entry(statement));
    }
    let bytes = match (plain, envelope.entries.pop()) {
        (true, Some(entry)) => write(encoding, 0, &entry, json::write_entry),
        (_, last) => {
            envelope.entries.extend(last);
            write(encoding, ENVELOPE, &envelope, json::write_envelope)
        }
    };
    match bytes.len() {
        length if length > MAX_ENTRY_BYTES => Err(StoreError::TooLarge { bytes: length, limit: MAX_ENTRY_BYTES }),
        _ => Ok(bytes.into()),
    }
}

fn write<M: prost::Message>(encoding: Encoding, flag: u8, message: &M, json: fn(&M) -> Vec<u8>) -> Vec<u8> {
    let mut bytes = vec![encoding.tag() | flag];
    match encoding {
        Encoding::Protobuf => {
            bytes.reserve(message.encoded_len());
            // A Vec grows: there is always room.
            message.encode(&mut bytes).unwrap_or_default();
        }
        Encoding::ProtobufSnappy => {
            // It fails for more than 4 GiB only; an entry that large is refused by its size.
            bytes.extend(snap::raw::Encoder::new().compress_vec(&message.encode_to_vec()).unwrap_or_default());
        }
        Encoding::Json => bytes.extend(json(message)),
    }
    bytes
}

/// Reads what [`encode`] wrote, here or on a member with another setting.
///
/// # Errors
/// What is wrong with it, as a sentence; the same on every member.
pub(super) fn decode(bytes: &[u8]) -> Result<Vec<Statement>, String> {
    let (tag, content) = bytes.split_first().ok_or("the entry is empty")?;
    let encoding =
        Encoding::of_tag(tag & !ENVELOPE).ok_or_else(|| format!("the entry has the unknown encoding {tag}"))?;
    let envelope = if tag & ENVELOPE == 0 {
        let entry = read(encoding, content, json::read_entry)?;
        Envelope { entries: vec![entry], ..Envelope::default() }
    } else {
        read(encoding, content, json::read_envelope)?
    };
    let Envelope { entries, touching, expecting } = envelope;
    let mut statements = Vec::with_capacity(entries.len());
    for (place, entry) in entries.into_iter().enumerate() {
        let mut statement = statement_of(entry)?;
        statement.touching.clone_from(&touching);
        statement.expecting = expecting.get(place).and_then(|rows| rows.checked_sub(1));
        statements.push(statement);
    }
    Ok(statements)
}

fn read<M: prost::Message + Default>(
    encoding: Encoding,
    content: &[u8],
    json: fn(&[u8]) -> Result<M, String>,
) -> Result<M, String> {
    let protobuf = |bytes: &[u8]| M::decode(bytes).map_err(|error| format!("the entry is not protobuf: {error}"));
    match encoding {
        Encoding::Protobuf => protobuf(content),
        Encoding::ProtobufSnappy => {
            let length =
                snap::raw::decompress_len(content).map_err(|error| format!("the entry is not snappy: {error}"))?;
            // Snappy compresses at most about 20 to 1; whatever claims more is not ours.
            if length > MAX_ENTRY_BYTES * 32 {
                return Err(format!("the entry unpacks to {length} bytes"));
            }
            let unpacked = snap::raw::Decoder::new().decompress_vec(content);
            protobuf(&unpacked.map_err(|error| format!("the entry is not snappy: {error}"))?)
        }
        Encoding::Json => json(content),
    }
}

fn contract_entry(statement: Statement) -> RaftLogEntry {
    let parameters =
        statement.parameters.into_iter().map(|Parameter { name, value }| value.into_parameter(name)).collect();
    let sql = Some(SqlStatement { sql: statement.sql, parameters });
    if statement.is_query {
        let sql_query = Some(SqlQuery { transaction: true, statement: sql });
        RaftLogEntry { r#type: RaftCommandType::Query.into(), sql_query, sql_exec: None }
    } else {
        let sql_exec = Some(SqlExec { transaction: true, statement: sql });
        RaftLogEntry { r#type: RaftCommandType::Execute.into(), sql_query: None, sql_exec }
    }
}

/// The statement that a contract entry asks for. Every statement is a transaction of its own whatever its flag says.
///
/// # Errors
/// What the entry lacks, as a sentence.
pub(super) fn statement_of(entry: RaftLogEntry) -> Result<Statement, String> {
    let kind = RaftCommandType::try_from(entry.r#type)
        .map_err(|_unknown| format!("the entry is of type {}, which RaftCommandType does not have", entry.r#type))?;
    let (statement, is_query) = match (kind, entry.sql_query, entry.sql_exec) {
        (RaftCommandType::Unknown, _, _) => return Err("the entry has no type: set QUERY or EXECUTE".to_owned()),
        (RaftCommandType::Query, Some(query), None) => (query.statement, true),
        (RaftCommandType::Execute, None, Some(exec)) => (exec.statement, false),
        (RaftCommandType::Query, _, _) => {
            return Err("an entry of type QUERY has sql_query and nothing else".to_owned());
        }
        (RaftCommandType::Execute, _, _) => {
            return Err("an entry of type EXECUTE has sql_exec and nothing else".to_owned());
        }
    };
    let statement = statement.filter(|statement| !statement.sql.trim().is_empty());
    let SqlStatement { sql, parameters } = statement.ok_or("the entry has no SQL")?;
    let parameters = parameters.into_iter().enumerate().map(|(place, parameter)| bound(parameter, place + 1));
    let parameters = parameters.collect::<Result<_, _>>()?;
    Ok(Statement { sql, parameters, touching: Vec::new(), expecting: None, is_query })
}

fn bound(mut parameter: SqlParameter, position: usize) -> Result<Parameter, String> {
    let mut name = std::mem::take(&mut parameter.name);
    // The contract's clients give names without a sign.
    if !name.is_empty() && !name.starts_with([':', '@', '$', '?']) {
        name.insert(0, ':');
    }
    let value = Value::of_parameter(SqlParameter { name: name.clone(), ..parameter }, position);
    Ok(Parameter { name, value: value.map_err(|error| error.to_string())? })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use prost::Message as _;

    use super::*;

    fn every_type() -> Statement {
        Statement::new("INSERT INTO t VALUES (?, ?, ?, ?, ?, ?, :n)")
            .bind(i64::MIN)
            .bind(0.1)
            .bind(true)
            .bind("ä\"\\\u{1}")
            .bind(vec![0_u8, 255, 7])
            .bind(SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789))
            .bind_named(":n", Option::<i64>::None)
    }

    #[track_caller]
    fn there_and_back(statements: Vec<Statement>) {
        for encoding in [Encoding::Json, Encoding::Protobuf, Encoding::ProtobufSnappy] {
            let bytes = encode(statements.clone(), encoding).expect("encoded");
            assert_eq!(decode(&bytes), Ok(statements.clone()), "{encoding:?}");
        }
    }

    #[test]
    fn a_statement_survives_every_encoding() {
        there_and_back(vec![every_type()]);
        there_and_back(vec![every_type().as_query()]);
    }

    #[test]
    fn a_transaction_survives_every_encoding_with_its_conditions() {
        let guarded = Statement::new("DELETE FROM weft_nodes").touching("Weft_Nodes").expecting(0);
        // What one statement may touch, the whole transaction may.
        let other = Statement { touching: guarded.touching.clone(), ..every_type().expecting(3) };
        there_and_back(vec![guarded, other]);
    }

    #[test]
    fn a_plain_protobuf_entry_is_the_contracts_message() {
        let bytes = encode(vec![every_type()], Encoding::Protobuf).expect("encoded");
        let entry = RaftLogEntry::decode(&bytes[1..]).expect("the contract's message");
        assert_eq!(entry.sql_exec.and_then(|exec| exec.statement).expect("a statement").parameters.len(), 7);
    }

    #[track_caller]
    fn refused(bytes: &[u8], expected: &str) {
        let error = decode(bytes).expect_err("refused");
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn what_is_no_entry_is_refused() {
        refused(b"", "empty");
        refused(b"\x07", "unknown encoding 7");
        refused(b"\x01\xff", "not protobuf");
        refused(b"\x02\xff\xff\xff\xff\xff", "snappy");
        refused(b"\x03{\"type\":\"EXECUTE\"}", "sql_exec");
        refused(b"\x03{\"tpye\":1}", "tpye");
        refused(b"\x01", "no type");
    }

    #[test]
    fn a_bomb_is_not_unpacked() {
        // A snappy block whose length says 1 GiB.
        refused(b"\x02\x80\x80\x80\x80\x04\x00", "unpacks to");
    }

    #[test]
    fn a_statement_over_the_limit_is_refused_with_its_size() {
        let error = encode(vec![Statement::new("SELECT ?").bind("x".repeat(MAX_ENTRY_BYTES))], Encoding::Protobuf);
        assert!(matches!(error, Err(StoreError::TooLarge { .. })), "{error:?}");
    }
}
