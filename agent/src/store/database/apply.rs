//! Carries out runs of committed entries.
//!
//! A run is one transaction. Should a statement end that transaction (`ON CONFLICT ROLLBACK`, `RAISE(ROLLBACK)`), the whole run
//! is done again with a transaction for each entry, so that only the entry that did it is undone.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;

use openraft::storage::EntryResponder;
use openraft::{EntryPayload, Membership};
use rusqlite::Connection;
use rusqlite::backup::Backup;

use super::run::{Failure, Runner};
use super::{Notify, Position, Removed, read_position, read_removed, reader, whole};
use crate::store::changes::Touched;
use crate::store::entry;
use crate::store::error::Refusal;
use crate::store::raft::{Applied, Config, Entry, Peer, StoredMembership};
use crate::store::statement::{Outcome, Statement};

/// The owner of the connection that writes.
pub(super) struct Applier {
    runner: Runner,
    position: Position,
    notify: Notify,
    removed: Removed,
}

/// The run's transaction was ended by one of its statements.
struct Ended;

impl Applier {
    pub(super) fn new(runner: Runner, position: Position, notify: Notify, removed: Removed) -> Self {
        Self { runner, position, notify, removed }
    }

    pub(super) fn position(&self) -> Position {
        self.position.clone()
    }

    /// Carries out `entries`, then answers those who wait for them.
    pub(super) fn apply(&mut self, entries: Vec<EntryResponder<Config>>) -> io::Result<()> {
        let (entries, waiting): (Vec<_>, Vec<_>) = entries.into_iter().unzip();
        let applied = self.carry_out(&entries)?;
        for (waiting, applied) in waiting.into_iter().zip(applied) {
            if let Some(waiting) = waiting {
                waiting.send(applied);
            }
        }
        Ok(())
    }

    /// Carries out `entries` and tells the watchers.
    pub(super) fn carry_out(&mut self, entries: &[Entry]) -> io::Result<Vec<Applied>> {
        let before = self.position.clone();
        let applied = match self.together(entries).map_err(broken)? {
            Ok(applied) => applied,
            Err(Ended) => {
                self.position = before;
                self.one_by_one(entries).map_err(broken)?
            }
        };
        let changed = self.runner.take_changed();
        (self.notify)(self.position.applied.map_or(0, |id| id.index), &changed);
        Ok(applied)
    }

    /// All entries in one transaction.
    fn together(&mut self, entries: &[Entry]) -> Result<Result<Vec<Applied>, Ended>, Failure> {
        self.begin()?;
        let mut applied = Vec::with_capacity(entries.len());
        for entry in entries {
            let result = self.entry(entry);
            if self.runner.connection.is_autocommit() {
                self.runner.forget();
                return Ok(Err(Ended));
            }
            match result {
                Ok(result) => applied.push(result),
                Err(failure) => return self.give_up(failure),
            }
        }
        self.commit()?;
        Ok(Ok(applied))
    }

    /// A transaction for each entry; one that ends it has changed nothing.
    fn one_by_one(&mut self, entries: &[Entry]) -> Result<Vec<Applied>, Failure> {
        let mut applied = Vec::with_capacity(entries.len());
        for entry in entries {
            self.begin()?;
            match self.entry(entry) {
                Ok(result) => applied.push(result),
                Err(failure) => return self.give_up(failure),
            }
            if self.runner.connection.is_autocommit() {
                self.runner.forget();
                self.begin()?;
            }
            self.commit()?;
        }
        Ok(applied)
    }

    fn give_up<T>(&mut self, failure: Failure) -> Result<T, Failure> {
        // The failure is what counts; the next start reads what is durable.
        self.inside("ROLLBACK").unwrap_or_default();
        self.runner.forget();
        Err(failure)
    }

    fn begin(&self) -> Result<(), Failure> {
        self.inside("BEGIN IMMEDIATE").map_err(Failure::Broken)
    }

    fn inside(&self, sql: &str) -> rusqlite::Result<()> {
        self.own(|connection| connection.prepare_cached(sql)?.execute([]).map(drop))
    }

    fn own<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        self.runner.inside(work)
    }

    /// Ends the transaction with how far it came.
    fn commit(&mut self) -> Result<(), Failure> {
        let Some(applied) = self.position.applied else { return self.inside("COMMIT").map_err(Failure::Broken) };
        let sql = "UPDATE weft_raft SET term = ?1, member = ?2, position = ?3";
        let numbers = [
            applied.leader_id.term.cast_signed(),
            applied.leader_id.node_id.cast_signed(),
            applied.index.cast_signed(),
        ];
        self.own(|connection| connection.prepare_cached(sql)?.execute(numbers)).map_err(Failure::Broken)?;
        self.inside("COMMIT").map_err(Failure::Broken)
    }

    /// Carries out one entry. Refusals are a result; a failure is of the host.
    fn entry(&mut self, entry: &Entry) -> Result<Applied, Failure> {
        self.position.applied = Some(entry.log_id);
        match &entry.payload {
            EntryPayload::Blank => Ok(Applied(None)),
            EntryPayload::Membership(membership) => {
                self.remove_those_not_in(membership).map_err(Failure::Broken)?;
                self.position.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                let json = serde_json::to_string(&self.position.membership).unwrap_or_default();
                let sql = "UPDATE weft_raft SET membership = ?1";
                self.own(|connection| connection.prepare_cached(sql)?.execute([json])).map_err(Failure::Broken)?;
                Ok(Applied(None))
            }
            EntryPayload::Normal(payload) => {
                let result = match entry::decode(&payload.0) {
                    Ok(statements) => self.statements(&statements, entry.log_id.index),
                    Err(text) => Err(Failure::Refused(Refusal::Statement(text))),
                };
                match result {
                    Ok(outcomes) => Ok(Applied(Some(Ok(outcomes)))),
                    Err(Failure::Refused(refusal)) => Ok(Applied(Some(Err(refusal)))),
                    Err(failure @ Failure::Broken(_)) => Err(failure),
                }
            }
        }
    }

    /// Notes the members that were and are not in `membership`.
    fn remove_those_not_in(&self, membership: &Membership<u64, Peer>) -> rusqlite::Result<()> {
        let before = self.position.membership.membership();
        let gone: Vec<u64> =
            before.nodes().map(|(member, _)| *member).filter(|member| membership.get_node(member).is_none()).collect();
        if gone.is_empty() {
            return Ok(());
        }
        for member in &gone {
            let sql = "INSERT OR IGNORE INTO weft_removed VALUES (?1)";
            self.own(|connection| connection.prepare_cached(sql)?.execute([member.cast_signed()]))?;
        }
        self.removed.rcu(|removed| removed.iter().chain(&gone).copied().collect::<BTreeSet<u64>>());
        Ok(())
    }

    /// All of `statements` or none.
    fn statements(&mut self, statements: &[Statement], index: u64) -> Result<Vec<Outcome>, Failure> {
        if let [statement] = statements
            && statement.expecting.is_none()
            && !renames(statement)
        {
            // SQLite undoes a single statement that fails by itself.
            return Ok(vec![at(self.runner.run(statement, 1)?, index)]);
        }
        self.inside("SAVEPOINT entry").map_err(Failure::Broken)?;
        let mut outcomes = Vec::with_capacity(statements.len());
        for (place, statement) in statements.iter().enumerate() {
            match self.checked(statement, place + 1) {
                Ok(outcome) => outcomes.push(at(outcome, index)),
                Err(failure) => {
                    if !self.runner.connection.is_autocommit() {
                        self.inside("ROLLBACK TO entry").map_err(Failure::Broken)?;
                        self.inside("RELEASE entry").map_err(Failure::Broken)?;
                    }
                    self.runner.forget();
                    return Err(failure);
                }
            }
        }
        self.inside("RELEASE entry").map_err(Failure::Broken)?;
        Ok(outcomes)
    }

    /// Carries out one statement; a name of ours is neither given nor taken by a rename, which the compiler does not tell.
    fn checked(&mut self, statement: &Statement, number: usize) -> Result<Outcome, Failure> {
        if !renames(statement) {
            return self.runner.run(statement, number);
        }
        let before = self.own_names().map_err(Failure::Broken)?;
        let outcome = self.runner.run(statement, number)?;
        let after = self.own_names().map_err(Failure::Broken)?;
        match before.symmetric_difference(&after).find(|name| !statement.touching.contains(*name)) {
            None => Ok(outcome),
            Some(name) => {
                let text = format!("{name}: names that begin with weft_ are Weft's own; choose another");
                Err(Failure::Refused(Refusal::OwnTable(text)))
            }
        }
    }

    fn own_names(&self) -> rusqlite::Result<BTreeSet<String>> {
        Ok(self.tables()?.into_iter().filter(|name| name.starts_with("weft_")).collect())
    }

    /// Replaces everything by the database at `from`.
    pub(super) fn install(&mut self, from: &Path) -> io::Result<Position> {
        self.runner.forget();
        let source = reader(from).map_err(io::Error::other)?;
        let recorded = self.runner.inside_alone(|connection| {
            whole(&Backup::new(&source, connection)?)?;
            read_position(connection)
        });
        self.position = recorded.map_err(io::Error::other)?;
        self.removed.store(Arc::new(self.own(read_removed).map_err(io::Error::other)?));
        let tables = self.tables().map_err(io::Error::other)?;
        let every = tables.into_iter().map(|table| (table, Touched::Every)).collect();
        (self.notify)(self.position.applied.map_or(0, |id| id.index), &every);
        Ok(self.position.clone())
    }

    fn tables(&self) -> rusqlite::Result<BTreeSet<String>> {
        self.own(|connection| {
            let mut names =
                connection.prepare("SELECT lower(name) FROM sqlite_schema WHERE type IN ('table', 'view')")?;
            let names = names.query_map([], |row| row.get(0))?;
            names.collect()
        })
    }
}

fn renames(statement: &Statement) -> bool {
    statement.sql.to_ascii_lowercase().contains("alter")
}

fn at(outcome: Outcome, index: u64) -> Outcome {
    match outcome {
        Outcome::Executed(executed) => Outcome::Executed(crate::store::statement::Executed { index, ..executed }),
        Outcome::Rows(rows) => Outcome::Rows(crate::store::statement::Rows { index, ..rows }),
    }
}

fn broken(failure: Failure) -> io::Error {
    match failure {
        Failure::Refused(refusal) => io::Error::other(refusal),
        Failure::Broken(error) => {
            let kind = match error.sqlite_error_code() {
                Some(rusqlite::ErrorCode::DiskFull) => io::ErrorKind::StorageFull,
                _ => io::ErrorKind::Other,
            };
            io::Error::new(kind, error)
        }
    }
}
