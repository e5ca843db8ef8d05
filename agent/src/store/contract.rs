//! The contract's messages: a `RaftLogEntry` is carried out, a `RaftApplyResponse` says what came of it.

use std::time::{Duration, Instant};

use weft_proto::v1::{RaftApplyResponse, RaftLogEntry, SqlExecResult, SqlQueryResult, SqlValues};

use super::entry;
use super::error::StoreError;
use super::handle::Handle;
use super::statement::{Consistency, Executed, Outcome, Rows, Statement};
use super::value::Value;

/// Carries `entry` out. What the statement itself did wrong is in the response; everything else is an error.
pub(super) async fn apply(handle: &Handle, entry: RaftLogEntry) -> Result<RaftApplyResponse, StoreError> {
    let began = Instant::now();
    let statement = match entry::statement_of(entry) {
        Ok(statement) => statement,
        Err(text) => return Ok(failed(&text, began.elapsed())),
    };
    let is_query = statement.is_query;
    let result = if is_query {
        handle.query(statement, Consistency::Linearizable).await.map(Outcome::Rows)
    } else {
        handle.exec(statement).await.map(Outcome::Executed)
    };
    match result {
        Ok(outcome) => Ok(response(outcome, began.elapsed())),
        Err(StoreError::Refused(refusal)) => Ok(refused(is_query, &refusal.to_string(), began.elapsed())),
        Err(error) => Err(error),
    }
}

/// The statement that an entry of the contract asks for.
///
/// # Errors
/// [`StoreError::Invalid`]: the entry is none.
pub fn statement(entry: RaftLogEntry) -> Result<Statement, StoreError> {
    entry::statement_of(entry).map_err(StoreError::Invalid)
}

/// What a statement gave, in the contract's form.
pub fn response(outcome: Outcome, took: Duration) -> RaftApplyResponse {
    let time = spell(took);
    let response = RaftApplyResponse { time: time.clone(), ..RaftApplyResponse::default() };
    match outcome {
        Outcome::Executed(executed) => RaftApplyResponse { exec_result: Some(exec_result(executed, time)), ..response },
        Outcome::Rows(rows) => RaftApplyResponse { query_result: Some(query_result(rows, time)), ..response },
    }
}

fn exec_result(executed: Executed, time: String) -> SqlExecResult {
    SqlExecResult {
        last_insert_id: executed.last_insert_id,
        rows_affected: i64::try_from(executed.rows_affected).unwrap_or(i64::MAX),
        error: String::new(),
        time,
    }
}

/// Rows in the contract's form; each value is named after its column.
pub fn query_result(rows: Rows, time: String) -> SqlQueryResult {
    let Rows { columns, types, rows, index: _ } = rows;
    let named = |values: Vec<Value>| SqlValues {
        values: columns.iter().zip(values).map(|(column, value)| value.into_parameter(column.clone())).collect(),
    };
    let values = rows.into_iter().map(named).collect();
    SqlQueryResult { columns: columns.clone(), types, values, error: String::new(), time }
}

fn failed(error: &str, took: Duration) -> RaftApplyResponse {
    RaftApplyResponse { time: spell(took), error: error.to_owned(), ..RaftApplyResponse::default() }
}

fn refused(is_query: bool, error: &str, took: Duration) -> RaftApplyResponse {
    let (time, error) = (spell(took), error.to_owned());
    let response = RaftApplyResponse { time: time.clone(), error: error.clone(), ..RaftApplyResponse::default() };
    if is_query {
        RaftApplyResponse {
            query_result: Some(SqlQueryResult { error, time, ..SqlQueryResult::default() }),
            ..response
        }
    } else {
        RaftApplyResponse { exec_result: Some(SqlExecResult { error, time, ..SqlExecResult::default() }), ..response }
    }
}

/// A time span as the contract writes it: `1.5ms`.
pub fn spell(took: Duration) -> String {
    format!("{took:?}")
}
