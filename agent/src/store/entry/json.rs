//! `RaftLogEntry` in the JSON mapping of protobuf: camel case or original names, enumerations by name or number, 64-bit numbers
//! as text or numbers, bytes in base64, times by RFC 3339. Unknown fields are refused.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use weft_proto::v1::{RaftCommandType, RaftLogEntry, SqlExec, SqlParameter, SqlParameterType, SqlQuery, SqlStatement};

use super::Envelope;
use crate::foundation::rfc3339;
use crate::store::value::{from_timestamp, time_text, to_timestamp};

pub(super) fn write_entry(entry: &RaftLogEntry) -> Vec<u8> {
    // Maps with text keys and finite depth: writing them as JSON cannot fail.
    serde_json::to_vec(&Entry::of(entry.clone())).unwrap_or_default()
}

pub(super) fn write_envelope(envelope: &Envelope) -> Vec<u8> {
    let entries = envelope.entries.iter().cloned().map(Entry::of).collect();
    let json = Enveloped { entries, touching: envelope.touching.clone(), expecting: envelope.expecting.clone() };
    serde_json::to_vec(&json).unwrap_or_default()
}

pub(super) fn read_entry(bytes: &[u8]) -> Result<RaftLogEntry, String> {
    serde_json::from_slice::<Entry>(bytes)
        .map(Entry::into)
        .map_err(|error| format!("the entry is not JSON of RaftLogEntry: {error}"))
}

pub(super) fn read_envelope(bytes: &[u8]) -> Result<Envelope, String> {
    let json: Enveloped =
        serde_json::from_slice(bytes).map_err(|error| format!("the entry is not JSON of a transaction: {error}"))?;
    let entries = json.entries.into_iter().map(Entry::into).collect();
    Ok(Envelope { entries, touching: json.touching, expecting: json.expecting })
}

#[derive(Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct Enveloped {
    entries: Vec<Entry>,
    touching: Vec<String>,
    expecting: Vec<u64>,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct Entry {
    r#type: Command,
    #[serde(alias = "sql_query", skip_serializing_if = "Option::is_none")]
    sql_query: Option<Call>,
    #[serde(alias = "sql_exec", skip_serializing_if = "Option::is_none")]
    sql_exec: Option<Call>,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct Call {
    transaction: bool,
    statement: Option<Sql>,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct Sql {
    sql: String,
    parameters: Vec<Parameter>,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct Parameter {
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    r#type: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    int64: Option<Int64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    double: Option<Double>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bool: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<Base64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    str: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<Time>,
}

impl Entry {
    fn of(entry: RaftLogEntry) -> Self {
        Self {
            r#type: Command(entry.r#type),
            sql_query: entry.sql_query.map(|query| Call::of(query.transaction, query.statement)),
            sql_exec: entry.sql_exec.map(|exec| Call::of(exec.transaction, exec.statement)),
        }
    }

    fn into(self) -> RaftLogEntry {
        let statement = |call: &mut Call| call.statement.take().map(Sql::into);
        RaftLogEntry {
            r#type: self.r#type.0,
            sql_query: self
                .sql_query
                .map(|mut call| SqlQuery { transaction: call.transaction, statement: statement(&mut call) }),
            sql_exec: self
                .sql_exec
                .map(|mut call| SqlExec { transaction: call.transaction, statement: statement(&mut call) }),
        }
    }
}

impl Call {
    fn of(transaction: bool, statement: Option<SqlStatement>) -> Self {
        let sql = |statement: SqlStatement| Sql {
            sql: statement.sql,
            parameters: statement.parameters.into_iter().map(Parameter::of).collect(),
        };
        Self { transaction, statement: statement.map(sql) }
    }
}

impl Sql {
    fn into(self) -> SqlStatement {
        SqlStatement { sql: self.sql, parameters: self.parameters.into_iter().map(Parameter::into).collect() }
    }
}

impl Parameter {
    fn of(parameter: SqlParameter) -> Self {
        let kind = parameter.r#type();
        let is = |wanted| kind == wanted;
        Self {
            name: parameter.name,
            r#type: Kind(parameter.r#type),
            int64: is(SqlParameterType::SqlParamInt64).then_some(Int64(parameter.int64)),
            double: is(SqlParameterType::SqlParamDouble).then_some(Double(parameter.double)),
            bool: is(SqlParameterType::SqlParamBool).then_some(parameter.bool),
            bytes: is(SqlParameterType::SqlParamBytes).then_some(Base64(parameter.bytes)),
            str: is(SqlParameterType::SqlParamString).then_some(parameter.str),
            time: parameter.time.map(Time),
        }
    }

    fn into(self) -> SqlParameter {
        SqlParameter {
            name: self.name,
            r#type: self.r#type.0,
            int64: self.int64.map_or(0, |number| number.0),
            double: self.double.map_or(0.0, |number| number.0),
            bool: self.bool.unwrap_or_default(),
            bytes: self.bytes.map(|bytes| bytes.0).unwrap_or_default(),
            str: self.str.unwrap_or_default(),
            time: self.time.map(|time| time.0),
        }
    }
}

/// A name or a number where the mapping allows both.
#[derive(Deserialize)]
#[serde(untagged)]
enum NameOrNumber {
    Number(i32),
    Name(String),
}

macro_rules! enumeration {
    ($name:ident, $of:ty) => {
        #[derive(Default)]
        struct $name(i32);

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                match <$of>::try_from(self.0) {
                    Ok(known) => serializer.serialize_str(known.as_str_name()),
                    Err(_) => serializer.serialize_i32(self.0),
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                match NameOrNumber::deserialize(deserializer)? {
                    NameOrNumber::Number(number) => Ok(Self(number)),
                    NameOrNumber::Name(name) => match <$of>::from_str_name(&name) {
                        Some(known) => Ok(Self(known.into())),
                        None => Err(D::Error::custom(format!("{name:?} is no {}", stringify!($of)))),
                    },
                }
            }
        }
    };
}

enumeration!(Command, RaftCommandType);
enumeration!(Kind, SqlParameterType);

struct Int64(i64);

impl Serialize for Int64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Int64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(i64),
            Text(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Number(number) => Ok(Self(number)),
            Either::Text(text) => text.parse().map(Self).map_err(D::Error::custom),
        }
    }
}

struct Double(f64);

impl Serialize for Double {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            number if number.is_nan() => serializer.serialize_str("NaN"),
            f64::INFINITY => serializer.serialize_str("Infinity"),
            f64::NEG_INFINITY => serializer.serialize_str("-Infinity"),
            // As text: reading a JSON number back is not exact.
            number => serializer.serialize_str(&format!("{number:?}")),
        }
    }
}

impl<'de> Deserialize<'de> for Double {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(f64),
            Text(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Number(number) => Ok(Self(number)),
            Either::Text(text) => text.parse().map(Self).map_err(D::Error::custom),
        }
    }
}

struct Base64(Vec<u8>);

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Self).map_err(D::Error::custom)
    }
}

struct Time(prost_types::Timestamp);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let time = from_timestamp(self.0).ok_or_else(|| serde::ser::Error::custom("a time that cannot be written"))?;
        serializer.serialize_str(&time_text(time))
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time = rfc3339::parse(&text).ok_or_else(|| D::Error::custom(format!("{text:?} is no RFC 3339 time")))?;
        Ok(Self(to_timestamp(time)))
    }
}
