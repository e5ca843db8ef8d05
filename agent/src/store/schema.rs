//! The tables that other rooms keep in the store, declared by them, made by the leader once.
//!
//! A [`Schema`] is a list of versions; each version is a transaction. `weft_schema` holds how far each schema is. A version that
//! was released is never changed, only followed by another.

use std::sync::Arc;
use std::time::Duration;

use super::core::Running;
use super::entry;
use super::error::{Refusal, StoreError};
use super::handle::Shared;
use super::raft::Payload;
use super::statement::Statement;
use super::status::{Role, Status};

/// What one room declares. Its tables are called `weft_…`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schema {
    pub name: &'static str,
    /// The statements of each version, the first one first.
    pub versions: &'static [&'static [&'static str]],
}

/// The table of the store's own that counts the versions.
pub(super) const CREATE: &str =
    "CREATE TABLE IF NOT EXISTS weft_schema (name TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT";

/// Between two looks while something is in the way.
const PAUSE: Duration = Duration::from_secs(1);

/// Brings `schemas` up to date while this member leads, and says in the status when they are there.
pub(super) async fn keep(shared: Arc<Shared>, schemas: Vec<Schema>) {
    let mut status = shared.status.subscribe();
    let mut applied = shared.watchers.watch(&["weft_schema"]);
    loop {
        let leads = status.borrow_and_update().role == Role::Leader;
        match look(&shared, &schemas, leads).await {
            Ok(true) => {
                say_ready(&shared);
                return;
            }
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "the tables of this version are not there yet"),
        }
        tokio::select! {
            _ = status.changed() => {}
            _ = applied.changed() => {}
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

fn say_ready(shared: &Shared) {
    shared.status.send_modify(|status| {
        *status = Arc::new(Status { ready: true, ..Status::clone(status) });
    });
}

/// One look: whether everything is there; if not and this member leads, makes what is missing.
async fn look(shared: &Shared, schemas: &[Schema], leads: bool) -> Result<bool, StoreError> {
    let running = shared.running()?;
    for schema in schemas {
        let mut version = version(&running, schema).await?;
        while version < schema.versions.len() {
            if !leads {
                return Ok(false);
            }
            make(&running, shared, schema, version).await?;
            version = self::version(&running, schema).await?;
        }
    }
    Ok(true)
}

/// How far `schema` is here.
async fn version(running: &Running, schema: &Schema) -> Result<usize, StoreError> {
    let exists = Statement::new("SELECT 1 FROM sqlite_schema WHERE name = 'weft_schema'").as_query();
    if running.readers.query(exists, 0).await?.rows.is_empty() {
        return Ok(0);
    }
    let read = Statement::new("SELECT version FROM weft_schema WHERE name = ?").bind(schema.name).as_query();
    let rows = running.readers.query(read, 0).await?.rows;
    let number = rows.first().and_then(|row| row.first()).and_then(super::Value::as_integer).unwrap_or_default();
    Ok(usize::try_from(number).unwrap_or_default())
}

async fn make(running: &Running, shared: &Shared, schema: &Schema, version: usize) -> Result<(), StoreError> {
    let mut statements = vec![Statement::new(CREATE).touching("weft_schema")];
    statements.extend(step(schema, version)?);
    let payload = Payload(entry::encode(statements, shared.encoding)?);
    match running.propose_here(payload).await {
        Ok(_) => {
            tracing::info!(schema = schema.name, version = version + 1, "tables made");
            Ok(())
        }
        // Another leader was faster.
        Err(StoreError::Refused(Refusal::Expectation { number: 2, .. } | Refusal::Constraint(_))) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The transaction that brings `schema` from `version` to the next one. It fails as a whole where another member did it first.
pub(super) fn step(schema: &Schema, version: usize) -> Result<Vec<Statement>, StoreError> {
    let statements = schema
        .versions
        .get(version)
        .ok_or_else(|| StoreError::Failed(format!("the schema {} has no version {}", schema.name, version + 1)))?;
    let number = |version: usize| i64::try_from(version).unwrap_or(i64::MAX);
    let count = if version == 0 {
        Statement::new("INSERT INTO weft_schema (name, version) VALUES (?1, 1)").bind(schema.name)
    } else {
        Statement::new("UPDATE weft_schema SET version = ?2 WHERE name = ?1 AND version = ?3")
            .bind(schema.name)
            .bind(number(version + 1))
            .bind(number(version))
    };
    let mut steps = vec![count.touching("weft_schema").expecting(1)];
    steps.extend(
        statements.iter().map(|sql| names(sql).into_iter().fold(Statement::new(*sql), |sql, name| sql.touching(&name))),
    );
    Ok(steps)
}

/// The words of `sql` that are names of ours: the statements that a room declares may touch what they name.
fn names(sql: &str) -> Vec<String> {
    let words = sql.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.map(str::to_ascii_lowercase).filter(|word| word.starts_with("weft_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMA: Schema = Schema {
        name: "mesh",
        versions: &[&["CREATE TABLE weft_nodes (id TEXT)"], &["CREATE INDEX weft_by_id ON weft_nodes (id)"]],
    };

    #[test]
    fn a_version_counts_itself_first_and_only_once() {
        let steps = step(&SCHEMA, 1).expect("there is a second version");
        assert_eq!(steps[0].expecting, Some(1));
        assert_eq!(steps[1].touching, ["weft_by_id", "weft_nodes"]);
        assert!(step(&SCHEMA, 2).is_err());
    }
}
