//! Carries out one statement on a connection: compiles it, looks at its footprint, binds, steps, collects.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, ErrorCode, Row};

use super::functions;
use super::guard::{Door, Footprint, Recorder, own_tables};
use crate::store::changes::{Changed, Touched};
use crate::store::error::Refusal;
use crate::store::statement::{Executed, Outcome, Parameter, Rows, Statement};
use crate::store::value::Value;

/// For what SQLite compiles without asking anybody, and for texts that the store itself had compiled.
const NOTHING: &str = "the SQL holds no statement that can be replicated; every statement is a transaction already: BEGIN, \
                       COMMIT, ROLLBACK, SAVEPOINT and VACUUM are refused";
/// Compiled statements that are kept.
const COMPILED: usize = 256;
/// Bytes of the values of a result.
pub(super) const MAX_RESULT_BYTES: usize = 16 * 1024 * 1024;
/// Instructions between two looks at the bound.
const STRIDE: i32 = 1000;
/// Steps of [`STRIDE`] instructions that a statement of the log may take: some seconds.
const MAX_STRIDES: u64 = 500_000;

/// Why a statement was not carried out.
#[derive(Debug)]
pub(super) enum Failure {
    /// Its own fault.
    Refused(Refusal),
    /// The disk, the memory, the database.
    Broken(rusqlite::Error),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        let code = error.sqlite_error_code();
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "another crate's errors, most of which speak for themselves"
        )]
        let text = || match &error {
            rusqlite::Error::SqliteFailure(_, Some(text)) => text.clone(),
            rusqlite::Error::SqlInputError { msg, offset, .. } => match usize::try_from(*offset) {
                Ok(offset) => format!("{msg} (at character {})", offset + 1),
                Err(_) => msg.clone(),
            },
            rusqlite::Error::MultipleStatement => "one statement at a time; give several as a transaction".to_owned(),
            _ => error.to_string(),
        };
        match code {
            Some(
                ErrorCode::DiskFull
                | ErrorCode::SystemIoFailure
                | ErrorCode::DatabaseCorrupt
                | ErrorCode::NotADatabase
                | ErrorCode::OutOfMemory
                | ErrorCode::CannotOpen
                | ErrorCode::ReadOnly
                | ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::PermissionDenied
                | ErrorCode::FileLockingProtocolFailed,
            ) => Self::Broken(error),
            Some(ErrorCode::ConstraintViolation) => Self::Refused(Refusal::Constraint(text())),
            Some(ErrorCode::OperationInterrupted) => Self::Refused(Refusal::Statement(
                "the statement takes too much work: it was stopped and changed nothing".to_owned(),
            )),
            _ => Self::Refused(Refusal::Statement(text())),
        }
    }
}

fn refused<T>(text: String) -> Result<T, Failure> {
    Err(Failure::Refused(Refusal::Statement(text)))
}

/// A connection with its guards.
#[derive(Debug)]
pub(super) struct Runner {
    pub(super) connection: Connection,
    recorder: Recorder,
    footprints: HashMap<String, Arc<Footprint>>,
    strides: Arc<AtomicU64>,
    changed: Arc<Mutex<Changed>>,
}

impl Runner {
    /// For applying the log.
    pub(super) fn new(mut connection: Connection) -> rusqlite::Result<Self> {
        functions::replace(&connection)?;
        let changed = Arc::<Mutex<Changed>>::default();
        let noted = Arc::clone(&changed);
        connection.update_hook(Some(move |_action, _database: &str, table: &str, row| {
            if table == "weft_raft" {
                return;
            }
            let mut noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
            match noted.get_mut(table) {
                Some(touched) => touched.add(row),
                None => noted.entry(table.to_ascii_lowercase()).or_default().add(row),
            }
        }))?;
        Self::with(connection, Door::Log, changed)
    }

    /// For reading.
    pub(super) fn reading(connection: Connection) -> rusqlite::Result<Self> {
        Self::with(connection, Door::Read, Arc::default())
    }

    fn with(mut connection: Connection, door: Door, changed: Arc<Mutex<Changed>>) -> rusqlite::Result<Self> {
        let recorder = Recorder::default();
        let strides = Arc::new(AtomicU64::new(0));
        let used = Arc::clone(&strides);
        connection.progress_handler(STRIDE, Some(move || used.fetch_add(1, Ordering::Relaxed) > MAX_STRIDES))?;
        connection.set_prepared_statement_cache_capacity(COMPILED);
        connection.authorizer(Some(recorder.authorizer(door)))?;
        Ok(Self { connection, recorder, footprints: HashMap::new(), strides, changed })
    }

    /// Tables with the rows that changed since the last call.
    pub(super) fn take_changed(&self) -> Changed {
        std::mem::take(&mut self.changed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Forgets what was compiled: the schema is another one.
    pub(super) fn forget(&mut self) {
        self.connection.flush_prepared_statement_cache();
        self.footprints.clear();
    }

    /// Runs what the store itself wants done, past the guards.
    pub(super) fn inside<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        self.strides.store(0, Ordering::Relaxed);
        self.recorder.open();
        let result = work(&self.connection);
        drop(self.recorder.take());
        result
    }

    /// The same for what needs the connection alone.
    pub(super) fn inside_alone<T>(
        &mut self,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        self.strides.store(0, Ordering::Relaxed);
        self.recorder.open();
        let result = work(&mut self.connection);
        drop(self.recorder.take());
        result
    }

    /// Carries out `statement`. After a failure the caller undoes the savepoint it stands in; a single statement that SQLite
    /// itself fails is undone already.
    pub(super) fn run(&mut self, statement: &Statement, number: usize) -> Result<Outcome, Failure> {
        if self.footprints.len() >= COMPILED * 4 {
            self.forget();
        }
        self.strides.store(0, Ordering::Relaxed);
        drop(self.recorder.take());
        let sql = statement.sql.trim();
        let compiled = self.connection.prepare_cached(sql);
        let fresh = self.recorder.take();
        let mut compiled = compiled.map_err(|error| match &fresh.refused {
            Some(why) => Failure::Refused(Refusal::Statement(why.clone())),
            None => Failure::from(error),
        })?;
        let footprint = match self.footprints.get(sql) {
            Some(known) if !fresh.seen => Arc::clone(known),
            // VACUUM, nothing but a comment, or a statement of the store itself.
            None if !fresh.seen => return refused(NOTHING.to_owned()),
            Some(_) | None => {
                let fresh = Arc::new(fresh);
                self.footprints.insert(sql.to_owned(), Arc::clone(&fresh));
                fresh
            }
        };
        if let Some(why) = own_tables(&footprint, &statement.touching) {
            return Err(Failure::Refused(Refusal::OwnTable(why)));
        }
        if statement.is_query && !compiled.readonly() {
            return refused("a query may not write: use exec".to_owned());
        }
        bind(&mut compiled, &statement.parameters)?;
        let outcome = if statement.is_query {
            Outcome::Rows(collect(&mut compiled)?)
        } else {
            Outcome::Executed(execute(&self.connection, &mut compiled, footprint.inserts)?)
        };
        drop(compiled);
        if footprint.changes_schema {
            let every = footprint.writes.iter().map(|table| (table.clone(), Touched::Every));
            self.changed.lock().unwrap_or_else(PoisonError::into_inner).extend(every);
            self.forget();
        }
        expected(statement, &outcome, number)?;
        Ok(outcome)
    }
}

fn execute(
    connection: &Connection,
    compiled: &mut rusqlite::Statement<'_>,
    inserts: bool,
) -> Result<Executed, Failure> {
    let before = connection.total_changes();
    let mut rows = compiled.raw_query();
    while rows.next()?.is_some() {}
    drop(rows);
    // Both are the connection's memory of an earlier statement unless this one changed something.
    let changed = connection.total_changes() > before;
    let rows_affected = if changed { connection.changes() } else { 0 };
    let last_insert_id = if changed && inserts { connection.last_insert_rowid() } else { 0 };
    Ok(Executed { last_insert_id, rows_affected, index: 0 })
}

fn expected(statement: &Statement, outcome: &Outcome, number: usize) -> Result<(), Failure> {
    let found = match outcome {
        Outcome::Executed(executed) => executed.rows_affected,
        Outcome::Rows(rows) => u64::try_from(rows.rows.len()).unwrap_or(u64::MAX),
    };
    match statement.expecting {
        Some(expected) if expected != found => Err(Failure::Refused(Refusal::Expectation { number, expected, found })),
        _ => Ok(()),
    }
}

/// Named values go to their names, the others in order to what is left.
fn bind(compiled: &mut rusqlite::Statement<'_>, parameters: &[Parameter]) -> Result<(), Failure> {
    let count = compiled.parameter_count();
    if count != parameters.len() {
        return refused(format!("the SQL has {count} parameters; {} values are given", parameters.len()));
    }
    let mut bound = vec![false; count];
    for parameter in parameters.iter().filter(|parameter| !parameter.name.is_empty()) {
        let place = compiled.parameter_index(&parameter.name)?;
        let Some(place) = place else { return unknown(compiled, &parameter.name) };
        if std::mem::replace(&mut bound[place - 1], true) {
            return refused(format!("parameter {} is given twice", parameter.name));
        }
        compiled.raw_bind_parameter(place, &parameter.value)?;
    }
    let free: Vec<usize> = (0..count).filter(|place| !bound[*place]).collect();
    for (place, parameter) in free.into_iter().zip(parameters.iter().filter(|parameter| parameter.name.is_empty())) {
        compiled.raw_bind_parameter(place + 1, &parameter.value)?;
    }
    Ok(())
}

fn unknown(compiled: &rusqlite::Statement<'_>, name: &str) -> Result<(), Failure> {
    let names = (1..=compiled.parameter_count()).map(|place| compiled.parameter_name(place).unwrap_or("?").to_owned());
    let names: Vec<String> = names.collect();
    refused(format!("the SQL has no parameter {name}; it has {}", names.join(", ")))
}

pub(super) fn collect(compiled: &mut rusqlite::Statement<'_>) -> Result<Rows, Failure> {
    let columns: Vec<String> = compiled.column_names().map(str::to_owned).collect();
    let declared: Vec<Option<String>> =
        compiled.columns().map(|column| column.decl_type().map(str::to_owned)).collect();
    let mut collected = Rows { columns, types: Vec::new(), rows: Vec::new(), index: 0 };
    let mut bytes = 0;
    let mut rows = compiled.raw_query();
    while let Some(row) = rows.next()? {
        let values = values(row, &declared)?;
        bytes += values.iter().map(|value| value.bytes() + 16).sum::<usize>();
        if bytes > MAX_RESULT_BYTES {
            return refused(format!(
                "the result is larger than {MAX_RESULT_BYTES} bytes; ask for less, for instance with LIMIT"
            ));
        }
        collected.rows.push(values);
    }
    let first = collected.rows.first();
    let kind = |(place, declared): (usize, &Option<String>)| {
        declared.clone().unwrap_or_else(|| kind_of(first.and_then(|row| row.get(place))).to_owned())
    };
    collected.types = declared.iter().enumerate().map(kind).collect();
    Ok(collected)
}

fn values(row: &Row<'_>, declared: &[Option<String>]) -> rusqlite::Result<Vec<Value>> {
    let value =
        |(place, declared): (usize, &Option<String>)| Ok(Value::of_column(row.get_ref(place)?, declared.as_deref()));
    declared.iter().enumerate().map(value).collect()
}

fn kind_of(value: Option<&Value>) -> &'static str {
    match value {
        None | Some(Value::Null) => "NULL",
        Some(Value::Integer(_) | Value::Bool(_)) => "INTEGER",
        Some(Value::Real(_)) => "REAL",
        Some(Value::Text(_) | Value::Time(_)) => "TEXT",
        Some(Value::Blob(_)) => "BLOB",
    }
}
