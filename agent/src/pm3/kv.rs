//! `/kv`: values by key, replicated with the store. A value is any JSON; each write gives its key the next revision.
//!
//! Reads are linearizable: what somebody was told is there is seen by everybody after them. A read makes nothing: a key
//! that is not there is a 404.
//!
//! Invariants: a conditional write and the revision it gives happen in one transaction; keys and values are bounded.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use std::sync::Arc;

use super::call::{Call, Outcome, Reply};
use super::failure::{Failure, Kind};
use super::params::{self, Field, FieldKind};
use super::{Pm3, json as to_json};
use crate::store::{self, Consistency, Handle, Refusal, Statement, StoreError};

/// The tables behind it.
pub const SCHEMA: store::Schema = store::Schema {
    name: "kv",
    versions: &[&[
        "CREATE TABLE weft_kv (key TEXT PRIMARY KEY, value TEXT NOT NULL, revision INTEGER NOT NULL) STRICT",
        "CREATE TABLE weft_kv_revision (revision INTEGER NOT NULL) STRICT",
        "INSERT INTO weft_kv_revision (revision) VALUES (0)",
    ]],
};

const LONGEST_KEY: usize = 256;
/// Keys of one list; `after` gives the next ones.
const MOST_KEYS: u32 = 1000;
/// Races a compare-and-swap tries to win.
const ATTEMPTS: usize = 16;
const LONGEST_WATCH: Duration = Duration::from_secs(60);

pub(super) const LIST: &[Field] = &[
    Field { name: "prefix", kind: FieldKind::Text },
    Field { name: "after", kind: FieldKind::Text },
    Field { name: "limit", kind: FieldKind::Number },
];
pub(super) const PUT: &[Field] =
    &[Field { name: "revision", kind: FieldKind::Number }, Field { name: "value", kind: FieldKind::Json }];
pub(super) const CAS: &[Field] =
    &[Field { name: "expected", kind: FieldKind::Json }, Field { name: "desired", kind: FieldKind::Json }];
pub(super) const WATCH: &[Field] =
    &[Field { name: "revision", kind: FieldKind::Number }, Field { name: "seconds", kind: FieldKind::Number }];

/// What a key holds.
#[derive(Debug, Clone, PartialEq)]
struct Entry {
    /// JSON text.
    value: String,
    revision: i64,
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let kind = match &error {
            StoreError::TooLarge { .. } | StoreError::ResultTooLarge { .. } => Kind::TooLarge,
            StoreError::NoLeader(_) | StoreError::NotRunning(_) | StoreError::DiskFull(_) => Kind::Unavailable,
            StoreError::Timeout { .. } | StoreError::Unknown => Kind::Timeout,
            StoreError::Busy => Kind::Busy,
            StoreError::Refused(Refusal::Expectation { .. } | Refusal::Constraint(_)) => Kind::Conflict,
            StoreError::Refused(Refusal::Statement(_) | Refusal::OwnTable(_))
            | StoreError::Invalid(_)
            | StoreError::Membership(_)
            | StoreError::Failed(_) => Kind::Failed,
        };
        Self::new(kind, format!("the store did not do it: {error}"))
    }
}

/// The key in the path of a call.
fn key(call: &Call) -> Result<String, Failure> {
    let key = call.part(0);
    if key.len() > LONGEST_KEY || key.chars().any(char::is_control) {
        return Err(Failure::invalid(format!("a key has at most {LONGEST_KEY} bytes and no control characters")));
    }
    Ok(key.to_owned())
}

async fn read(store: &Handle, key: &str) -> Result<Option<Entry>, Failure> {
    let statement = Statement::new("SELECT value, revision FROM weft_kv WHERE key = ?1").bind(key);
    let rows = store.query(statement, Consistency::Linearizable).await?;
    let Some([value, revision]) = rows.rows.first().map(Vec::as_slice) else { return Ok(None) };
    let (Some(value), Some(revision)) = (value.as_text(), revision.as_integer()) else {
        return Err(Failure::failed("the table of keys holds something else"));
    };
    Ok(Some(Entry { value: value.to_owned(), revision }))
}

/// When a write is carried out.
#[derive(Debug, Clone, Copy)]
enum When {
    Always,
    /// Only where there is no such key.
    Absent,
    /// Only over this revision.
    At(i64),
}

/// Writes a value; the new revision.
async fn write(store: &Handle, key: &str, value: &str, when: When) -> Result<i64, Failure> {
    let next = Statement::new("UPDATE weft_kv_revision SET revision = revision + 1").touching("weft_kv_revision");
    let sql = match when {
        When::Always => {
            "INSERT INTO weft_kv (key, value, revision) SELECT ?1, ?2, revision FROM weft_kv_revision WHERE true \
             ON CONFLICT (key) DO UPDATE SET value = excluded.value, revision = excluded.revision"
        }
        When::Absent => "INSERT INTO weft_kv (key, value, revision) SELECT ?1, ?2, revision FROM weft_kv_revision",
        When::At(_) => {
            "UPDATE weft_kv SET value = ?2, revision = (SELECT revision FROM weft_kv_revision) \
             WHERE key = ?1 AND revision = ?3"
        }
    };
    let mut put = Statement::new(sql).bind(key).bind(value).touching("weft_kv").expecting(1);
    if let When::At(revision) = when {
        put = put.bind(revision);
    }
    let written = Statement::new("SELECT revision FROM weft_kv WHERE key = ?1").bind(key).as_query();
    let outcomes = store.transaction(vec![next, put, written]).await?;
    let Some(store::Outcome::Rows(rows)) = outcomes.last() else {
        return Err(Failure::failed("the store did not tell the new revision"));
    };
    let revision = rows.rows.first().and_then(|row| row.first()).and_then(store::Value::as_integer);
    revision.ok_or_else(|| Failure::failed("the store did not tell the new revision"))
}

#[derive(Debug, Deserialize)]
struct Listed {
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    after: String,
    limit: Option<u32>,
}

pub(super) fn list(pm3: Arc<Pm3>, call: Call) -> BoxFuture<'static, Outcome> {
    Box::pin(async move {
        let Listed { prefix, after, limit } = params::read("kv", LIST, &call)?;
        let limit = limit.unwrap_or(MOST_KEYS).min(MOST_KEYS);
        let sql = "SELECT key FROM weft_kv WHERE key > ?1 AND substr(key, 1, length(?2)) = ?2 ORDER BY key LIMIT ?3";
        let statement = Statement::new(sql).bind(after).bind(prefix).bind(i64::from(limit));
        let rows = pm3.store.query(statement, Consistency::Linearizable).await?;
        let keys: Vec<&str> = rows.rows.iter().filter_map(|row| row.first()?.as_text()).collect();
        to_json(&keys)
    })
}

/// `{"revision":…,"value":…}` with the value as it was written.
fn shown(entry: &Entry) -> Outcome {
    Ok(Reply::Json(Bytes::from(format!("{{\"revision\":{},\"value\":{}}}", entry.revision, entry.value))))
}

fn missing(key: &str) -> Failure {
    Failure::new(Kind::NotFound, format!("there is no key {key:?}"))
}

pub(super) fn get(pm3: Arc<Pm3>, call: Call) -> BoxFuture<'static, Outcome> {
    Box::pin(async move {
        let key = key(&call)?;
        shown(&read(&pm3.store, &key).await?.ok_or_else(|| missing(&key))?)
    })
}

#[derive(Debug, Deserialize)]
struct Put {
    revision: Option<i64>,
    #[serde(default)]
    value: Value,
}

/// Sets or updates; with a revision, only over that one.
pub(super) fn put(pm3: Arc<Pm3>, call: Call) -> BoxFuture<'static, Outcome> {
    Box::pin(async move {
        let key = key(&call)?;
        let Put { revision, value } = params::read("kv", PUT, &call)?;
        let when = match revision.filter(|revision| *revision != 0) {
            None => When::Always,
            Some(revision) => When::At(revision),
        };
        let written = write(&pm3.store, &key, &value.to_string(), when).await;
        match (written, revision) {
            (Err(failure), Some(revision)) if failure.kind == Kind::Conflict => {
                Err(Failure::new(Kind::Conflict, format!("{key:?} is not at revision {revision}; read it again")))
            }
            (written, _) => to_json(&written?),
        }
    })
}

/// The body as it is, whatever was there.
pub(super) fn post(pm3: Arc<Pm3>, call: Call) -> BoxFuture<'static, Outcome> {
    Box::pin(async move {
        let key = key(&call)?;
        let value: Value = serde_json::from_slice(&call.body)
            .map_err(|error| Failure::invalid(format!("the body is the value and no JSON: {error}")))?;
        to_json(&write(&pm3.store, &key, &value.to_string(), When::Always).await?)
    })
}

pub(super) fn delete(pm3: Arc<Pm3>, call: Call) -> BoxFuture<'static, Outcome> {
    Box::pin(async move {
        let key = key(&call)?;
        let statement = Statement::new("DELETE FROM weft_kv WHERE key = ?1").bind(key.as_str()).touching("weft_kv");
        match pm3.store.exec(statement).await?.rows_affected {
            0 => Err(missing(&key)),
            _ => Ok(Reply::Nothing),
        }
    })
}

#[derive(Debug, Deserialize)]
struct Cas {
    #[serde(default)]
    expected: Value,
    #[serde(default)]
    desired: Value,
}

/// Sets `desired` where the value is `expected`; a key that is not there counts as null. `ok` says whether it was; where it was
/// not, `diff` says how they differ.
pub(super) fn cas(pm3: Arc<Pm3>, call: Call) -> BoxFuture<'static, Outcome> {
    Box::pin(async move {
        let key = key(&call)?;
        let Cas { expected, desired } = params::read("kv cas", CAS, &call)?;
        for _ in 0..ATTEMPTS {
            let entry = read(&pm3.store, &key).await?;
            let current = match &entry {
                Some(entry) => serde_json::from_str(&entry.value)
                    .map_err(|_damaged| Failure::failed("the table of keys holds something else"))?,
                None => Value::Null,
            };
            let revision = entry.as_ref().map_or(0, |entry| entry.revision);
            if let Some(diff) = difference(&current, &expected) {
                return to_json(&json!({ "ok": false, "diff": diff, "revision": revision, "value": current }));
            }
            let when = if entry.is_some() { When::At(revision) } else { When::Absent };
            match write(&pm3.store, &key, &desired.to_string(), when).await {
                Ok(revision) => {
                    return to_json(&json!({ "ok": true, "diff": "", "revision": revision, "value": desired }));
                }
                // Somebody else was faster.
                Err(failure) if failure.kind == Kind::Conflict => {}
                Err(failure) => return Err(failure),
            }
        }
        Err(Failure::new(Kind::Conflict, format!("{key:?} changes all the time; try again")))
    })
}

/// How `current` differs from `expected`: `changed` with both, or for two objects what of each member is `changed`,
/// `prop-added` or `prop-removed`. Numbers are compared as values.
fn difference(current: &Value, expected: &Value) -> Option<Value> {
    if current == expected || numbers(current).is_some_and(|number| Some(number) == numbers(expected)) {
        return None;
    }
    let (Value::Object(current), Value::Object(expected)) = (current, expected) else {
        return Some(json!({ "changed": [current, expected] }));
    };
    let mut members = Map::new();
    for (name, value) in current {
        match expected.get(name) {
            None => drop(members.insert(name.clone(), json!({ "prop-added": value }))),
            Some(other) => members.extend(difference(value, other).map(|diff| (name.clone(), diff))),
        }
    }
    for (name, value) in expected.iter().filter(|(name, _)| !current.contains_key(*name)) {
        members.insert(name.clone(), json!({ "prop-removed": value }));
    }
    (!members.is_empty()).then_some(Value::Object(members))
}

fn numbers(value: &Value) -> Option<f64> {
    value.as_f64().filter(|_| value.is_f64() || value.as_i64().is_some_and(|number| number.unsigned_abs() < 1 << 53))
}

#[derive(Debug, Deserialize)]
struct Watched {
    #[serde(default)]
    revision: i64,
    seconds: Option<u64>,
}

/// Waits until the key is at another revision than `revision` (0: it is not there) and gives it as `get` does, or
/// `{"revision":0,"value":null}` once it is gone; after `seconds` (30, at most 60), as it is.
pub(super) fn watch(pm3: Arc<Pm3>, call: Call) -> BoxFuture<'static, Outcome> {
    Box::pin(async move {
        let key = key(&call)?;
        let Watched { revision, seconds } = params::read("kv watch", WATCH, &call)?;
        let patience = Duration::from_secs(seconds.unwrap_or(30)).min(LONGEST_WATCH);
        let mut changes = pm3.store.watch(&["weft_kv"]);
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            let entry = read(&pm3.store, &key).await?;
            let entry = entry.unwrap_or(Entry { value: "null".to_owned(), revision: 0 });
            if entry.revision != revision {
                return shown(&entry);
            }
            match tokio::time::timeout_at(deadline, changes.changed()).await {
                Err(_elapsed) => return shown(&entry),
                Ok(None) => return Err(Failure::new(Kind::Unavailable, "the store ends")),
                Ok(Some(_index)) => {}
            }
        }
    })
}

#[cfg(test)]
mod tests;
