//! What callers hand in and get back: statements, results, rows. Pure.

use serde::{Deserialize, Serialize};

use super::value::Value;

/// One SQL statement with its parameters.
///
/// Positional parameters bind `?1`, `?2`, … in the order they are given; named ones bind `:name`, `@name` or `$name`, the sign
/// included. A parameter that the SQL does not have, and one of the SQL that is not given, are refused.
#[derive(Debug, Clone, PartialEq)]
pub struct Statement {
    pub(super) sql: String,
    pub(super) parameters: Vec<Parameter>,
    /// Own tables of Weft that it may write, in lower case.
    pub(super) touching: Vec<String>,
    /// Rows it must affect, or everything with it is undone.
    pub(super) expecting: Option<u64>,
    /// A query gives rows and may not write.
    pub(super) is_query: bool,
}

/// A value and, unless it binds by position, its name.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Parameter {
    /// Empty: by position.
    pub(super) name: String,
    pub(super) value: Value,
}

impl Statement {
    /// A statement without parameters yet.
    pub fn new(sql: impl Into<String>) -> Self {
        Self { sql: sql.into(), parameters: Vec::new(), touching: Vec::new(), expecting: None, is_query: false }
    }

    /// Binds the next position.
    #[must_use]
    pub fn bind(mut self, value: impl Into<Value>) -> Self {
        self.parameters.push(Parameter { name: String::new(), value: value.into() });
        self
    }

    /// Binds a named parameter; `name` has its sign, like `:id`.
    #[must_use]
    pub fn bind_named(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.parameters.push(Parameter { name: name.into(), value: value.into() });
        self
    }

    /// Lets it write this table of Weft's own, whose names begin with `weft_`.
    #[must_use]
    pub fn touching(mut self, table: &str) -> Self {
        self.touching.push(table.to_ascii_lowercase());
        self
    }

    /// It must affect exactly `rows`; else the transaction it stands in is undone and fails.
    #[must_use]
    pub const fn expecting(mut self, rows: u64) -> Self {
        self.expecting = Some(rows);
        self
    }

    /// A read inside a transaction.
    #[must_use]
    pub const fn as_query(mut self) -> Self {
        self.is_query = true;
        self
    }
}

/// What a statement that returns no rows did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Executed {
    pub last_insert_id: i64,
    pub rows_affected: u64,
    /// Index of the log entry that did it.
    pub index: u64,
}

/// The rows of a query.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Rows {
    pub columns: Vec<String>,
    /// The declared types of the columns; for an expression the type of the first row's value.
    pub types: Vec<String>,
    pub rows: Vec<Vec<Value>>,
    /// Log index of the state it was read from.
    pub index: u64,
}

/// What one statement of a transaction gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    Executed(Executed),
    Rows(Rows),
}

/// How fresh a read must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consistency {
    /// What this node has applied; needs nobody.
    Local,
    /// Everything that was acknowledged anywhere before the read began; needs a quorum.
    Linearizable,
}
