//! Values of SQL: what a parameter binds and a row holds, and how the contract's `SQLParameter` carries them. Pure.
//!
//! SQLite stores NULL, INTEGER, REAL, TEXT and BLOB. A boolean is stored as 0 or 1, a time as RFC 3339 text in UTC with nine
//! fraction digits, so that text order is time order. Reading gives them back as such where the column is declared so
//! (`BOOLEAN`, `TIMESTAMP`, `DATETIME`).

use std::time::{Duration, SystemTime};

use prost_types::Timestamp;
use rusqlite::types::{ToSqlOutput, ValueRef};
use serde::{Deserialize, Serialize};
use weft_proto::v1::{SqlParameter, SqlParameterType};

use crate::foundation::rfc3339;

/// One value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Value {
    Null,
    Integer(i64),
    Real(f64),
    Bool(bool),
    Text(String),
    Blob(Vec<u8>),
    /// Not before 1970.
    Time(SystemTime),
}

/// A parameter that cannot be bound.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    #[error(
        "parameter {0} has no type: set type to SQL_PARAM_INT64, …_DOUBLE, …_BOOL, …_BYTES, …_STRING, …_TIME or …_NULL"
    )]
    Untyped(String),
    #[error("parameter {0} is of type {1}, which SQLParameterType does not have")]
    UnknownType(String, i32),
    #[error("parameter {0} is of type SQL_PARAM_TIME and its time is missing, before 1970 or after 9999")]
    Time(String),
}

impl Value {
    /// What the contract's parameter means; `position` counts from 1 and names a parameter without a name.
    ///
    /// # Errors
    /// [`ValueError`].
    pub(super) fn of_parameter(parameter: SqlParameter, position: usize) -> Result<Self, ValueError> {
        let name = if parameter.name.is_empty() { format!("?{position}") } else { parameter.name };
        let kind = SqlParameterType::try_from(parameter.r#type)
            .map_err(|_unknown| ValueError::UnknownType(name.clone(), parameter.r#type))?;
        Ok(match kind {
            SqlParameterType::SqlParamUnknown => return Err(ValueError::Untyped(name)),
            SqlParameterType::SqlParamInt64 => Self::Integer(parameter.int64),
            SqlParameterType::SqlParamDouble => Self::Real(parameter.double),
            SqlParameterType::SqlParamBool => Self::Bool(parameter.bool),
            SqlParameterType::SqlParamBytes => Self::Blob(parameter.bytes),
            SqlParameterType::SqlParamString => Self::Text(parameter.str),
            SqlParameterType::SqlParamTime => {
                Self::Time(parameter.time.and_then(from_timestamp).ok_or(ValueError::Time(name))?)
            }
            SqlParameterType::SqlParamNull => Self::Null,
        })
    }

    /// The contract's form, with `name` as the parameter's name.
    pub(super) fn into_parameter(self, name: String) -> SqlParameter {
        let parameter = SqlParameter { name, ..SqlParameter::default() };
        let of = |kind: SqlParameterType| i32::from(kind);
        match self {
            Self::Null => SqlParameter { r#type: of(SqlParameterType::SqlParamNull), ..parameter },
            Self::Integer(int64) => SqlParameter { r#type: of(SqlParameterType::SqlParamInt64), int64, ..parameter },
            Self::Real(double) => SqlParameter { r#type: of(SqlParameterType::SqlParamDouble), double, ..parameter },
            Self::Bool(bool) => SqlParameter { r#type: of(SqlParameterType::SqlParamBool), bool, ..parameter },
            Self::Text(str) => SqlParameter { r#type: of(SqlParameterType::SqlParamString), str, ..parameter },
            Self::Blob(bytes) => SqlParameter { r#type: of(SqlParameterType::SqlParamBytes), bytes, ..parameter },
            Self::Time(time) => {
                let time = Some(to_timestamp(time));
                SqlParameter { r#type: of(SqlParameterType::SqlParamTime), time, ..parameter }
            }
        }
    }

    /// What SQLite gave for a column of this declared type.
    pub(super) fn of_column(value: ValueRef<'_>, declared: Option<&str>) -> Self {
        match value {
            ValueRef::Null => Self::Null,
            ValueRef::Integer(number) if is_bool(declared) && (0..=1).contains(&number) => Self::Bool(number == 1),
            ValueRef::Integer(number) => Self::Integer(number),
            ValueRef::Real(number) => Self::Real(number),
            ValueRef::Text(bytes) => {
                let text = String::from_utf8_lossy(bytes).into_owned();
                match is_time(declared).then(|| rfc3339::parse(&text)).flatten() {
                    Some(time) => Self::Time(time),
                    None => Self::Text(text),
                }
            }
            ValueRef::Blob(bytes) => Self::Blob(bytes.to_vec()),
        }
    }

    /// Bytes it takes, roughly.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Null | Self::Bool(_) => 1,
            Self::Integer(_) | Self::Real(_) => 8,
            Self::Time(_) => 30,
            Self::Text(text) => text.len(),
            Self::Blob(bytes) => bytes.len(),
        }
    }

    /// The text, if it is one.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Null | Self::Integer(_) | Self::Real(_) | Self::Bool(_) | Self::Blob(_) | Self::Time(_) => None,
        }
    }

    /// The number, if it is a whole one.
    pub fn as_integer(&self) -> Option<i64> {
        match self {
            Self::Integer(number) => Some(*number),
            Self::Bool(flag) => Some(i64::from(*flag)),
            Self::Null | Self::Real(_) | Self::Text(_) | Self::Blob(_) | Self::Time(_) => None,
        }
    }

    /// The bytes, if it is a blob.
    pub fn as_blob(&self) -> Option<&[u8]> {
        match self {
            Self::Blob(bytes) => Some(bytes),
            Self::Null | Self::Integer(_) | Self::Real(_) | Self::Bool(_) | Self::Text(_) | Self::Time(_) => None,
        }
    }

    /// The time, if it is one or text that reads as one.
    pub fn as_time(&self) -> Option<SystemTime> {
        match self {
            Self::Time(time) => Some(*time),
            Self::Text(text) => rfc3339::parse(text),
            Self::Null | Self::Integer(_) | Self::Real(_) | Self::Bool(_) | Self::Blob(_) => None,
        }
    }
}

fn is_bool(declared: Option<&str>) -> bool {
    declared.is_some_and(|name| name.eq_ignore_ascii_case("boolean") || name.eq_ignore_ascii_case("bool"))
}

fn is_time(declared: Option<&str>) -> bool {
    declared.is_some_and(|name| name.eq_ignore_ascii_case("timestamp") || name.eq_ignore_ascii_case("datetime"))
}

/// `time` as it is stored: `2026-01-02T03:04:05.000000006Z`.
pub fn time_text(time: SystemTime) -> String {
    let nanos = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    let mut text = rfc3339::format(time);
    text.pop();
    text + &format!(".{nanos:09}Z")
}

/// Seconds from 1970 to the year 10000, which RFC 3339 cannot write.
const YEAR_10000: i64 = 253_402_300_800;

pub(super) fn from_timestamp(timestamp: Timestamp) -> Option<SystemTime> {
    let seconds = u64::try_from(timestamp.seconds).ok().filter(|_| timestamp.seconds < YEAR_10000)?;
    let nanos = u32::try_from(timestamp.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos))
}

pub(super) fn to_timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or_default(),
    }
}

impl rusqlite::ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self {
            Self::Null => ToSqlOutput::Borrowed(ValueRef::Null),
            Self::Integer(number) => ToSqlOutput::Borrowed(ValueRef::Integer(*number)),
            Self::Real(number) => ToSqlOutput::Borrowed(ValueRef::Real(*number)),
            Self::Bool(flag) => ToSqlOutput::Borrowed(ValueRef::Integer(i64::from(*flag))),
            Self::Text(text) => ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes())),
            Self::Blob(bytes) => ToSqlOutput::Borrowed(ValueRef::Blob(bytes)),
            Self::Time(time) => ToSqlOutput::Owned(rusqlite::types::Value::Text(time_text(*time))),
        })
    }
}

macro_rules! from {
    ($($from:ty => |$value:ident| $into:expr),* $(,)?) => {
        $(impl From<$from> for Value {
            fn from($value: $from) -> Self {
                $into
            }
        })*
    };
}

from! {
    i64 => |value| Self::Integer(value),
    i32 => |value| Self::Integer(value.into()),
    u32 => |value| Self::Integer(value.into()),
    u16 => |value| Self::Integer(value.into()),
    f64 => |value| Self::Real(value),
    bool => |value| Self::Bool(value),
    &str => |value| Self::Text(value.to_owned()),
    String => |value| Self::Text(value),
    &String => |value| Self::Text(value.clone()),
    Vec<u8> => |value| Self::Blob(value),
    &[u8] => |value| Self::Blob(value.to_vec()),
    SystemTime => |value| Self::Time(value),
}

impl<T: Into<Self>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back(value: Value) {
        let parameter = value.clone().into_parameter(":a".to_owned());
        assert_eq!(Value::of_parameter(parameter, 1), Ok(value));
    }

    #[test]
    fn every_type_survives_the_contracts_form() {
        there_and_back(Value::Null);
        there_and_back(Value::Integer(i64::MIN));
        there_and_back(Value::Real(-0.5));
        there_and_back(Value::Bool(true));
        there_and_back(Value::Text("ä".to_owned()));
        there_and_back(Value::Blob(vec![0, 255]));
        there_and_back(Value::Time(SystemTime::UNIX_EPOCH + Duration::new(5, 7)));
    }

    #[test]
    fn an_untyped_parameter_is_refused_by_its_place() {
        let error = Value::of_parameter(SqlParameter::default(), 3).expect_err("refused").to_string();
        assert!(error.starts_with("parameter ?3 has no type"), "{error}");
    }

    #[test]
    fn stored_times_sort_as_text_and_read_back() {
        let early = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 9);
        let late = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 10);
        assert!(time_text(early) < time_text(late));
        assert_eq!(rfc3339::parse(&time_text(early)), Some(early));
    }
}
