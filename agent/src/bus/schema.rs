//! The tables of the bus in the replicated store.
//!
//! Invariants: a node writes the row of its own credentials and no other; of the results the last [`KEPT`] are kept.

use crate::foundation::id::NodeId;
use crate::foundation::secret::Secret;
use crate::store::{self, Consistency, Handle, Outcome, Statement, StoreError};

/// The tables.
pub const SCHEMA: store::Schema = store::Schema {
    name: "bus",
    versions: &[&[
        "CREATE TABLE weft_bus_node (node TEXT PRIMARY KEY, password TEXT NOT NULL) STRICT",
        "CREATE TABLE weft_bus_event (last INTEGER NOT NULL) STRICT",
        "INSERT INTO weft_bus_event (last) VALUES (0)",
        "CREATE TABLE weft_bus_result (stream TEXT NOT NULL, seq INTEGER NOT NULL, value TEXT NOT NULL, \
         PRIMARY KEY (stream, seq)) STRICT",
    ]],
};

/// Whose changes the bus must hear of.
pub(super) const WATCHED: &[&str] = &["weft_bus_node"];
/// The stream of everything that is published.
pub const STREAM: &str = "ev";
/// Events whose results are kept.
const KEPT: i64 = 10_000;

/// Another node and the password of the routes to it.
pub(super) type Credentials = (String, Secret<String>);

/// Tells the others this node's password, if they do not know it yet; theirs, in the order of their names.
pub(super) async fn exchange(
    store: &Handle,
    own: &NodeId,
    password: &Secret<String>,
) -> Result<Vec<Credentials>, StoreError> {
    let all = "SELECT node, password FROM weft_bus_node ORDER BY node";
    let rows = store.query(Statement::new(all), Consistency::Local).await?;
    let known = rows.rows.iter().filter_map(|row| {
        let [node, password] = row.as_slice() else { return None };
        Some((node.as_text()?.to_owned(), Secret::new(password.as_text()?.to_owned())))
    });
    let (own_row, others): (Vec<Credentials>, Vec<Credentials>) = known.partition(|(node, _)| node == own.as_str());
    if !own_row.iter().any(|(_, told)| told.expose() == password.expose()) {
        let sql = "INSERT INTO weft_bus_node (node, password) VALUES (?1, ?2) \
                   ON CONFLICT (node) DO UPDATE SET password = excluded.password";
        let statement = Statement::new(sql).bind(own.as_str()).bind(password.expose().as_str());
        store.exec(statement.touching("weft_bus_node")).await?;
    }
    Ok(others)
}

/// The number of the next event.
pub(super) async fn next_event(store: &Handle) -> Result<i64, StoreError> {
    let next = Statement::new("UPDATE weft_bus_event SET last = last + 1").touching("weft_bus_event");
    let told = Statement::new("SELECT last FROM weft_bus_event").as_query();
    let outcomes = store.transaction(vec![next, told]).await?;
    let Some(Outcome::Rows(rows)) = outcomes.last() else { return Err(StoreError::Unknown) };
    rows.rows.first().and_then(|row| row.first()).and_then(store::Value::as_integer).ok_or(StoreError::Unknown)
}

/// Keeps the first result of an event; older ones than the last [`KEPT`] go.
pub(super) async fn keep_result(store: &Handle, seq: i64, value: &str) -> Result<(), StoreError> {
    let sql = "INSERT INTO weft_bus_result (stream, seq, value) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING";
    let keep = Statement::new(sql).bind(STREAM).bind(seq).bind(value).touching("weft_bus_result");
    let forget = Statement::new("DELETE FROM weft_bus_result WHERE stream = ?1 AND seq <= ?2")
        .bind(STREAM)
        .bind(seq - KEPT)
        .touching("weft_bus_result");
    store.transaction(vec![keep, forget]).await.map(drop)
}

/// The result of an event, as JSON.
///
/// # Errors
/// The store does not answer.
pub async fn result(store: &Handle, stream: &str, seq: i64) -> Result<Option<String>, StoreError> {
    let sql = "SELECT value FROM weft_bus_result WHERE stream = ?1 AND seq = ?2";
    let rows = store.query(Statement::new(sql).bind(stream).bind(seq), Consistency::Linearizable).await?;
    Ok(rows.rows.first().and_then(|row| row.first()).and_then(store::Value::as_text).map(str::to_owned))
}
