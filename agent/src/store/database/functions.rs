//! SQL functions that would give members different results, replaced where the log is applied.
//!
//! Replacing them reaches what the authorizer does not see, such as a column's `DEFAULT CURRENT_TIMESTAMP`. The functions of
//! dates stay, but for the words that mean now or the time zone of the host.

use std::sync::{Mutex, PoisonError};

use rusqlite::functions::{Context, FunctionFlags};
use rusqlite::types::Value;
use rusqlite::{Connection, Error, Result, params_from_iter};

/// Functions that depend on chance, the clock, the connection or the build, with their numbers of arguments.
const DIFFERENT: [(&str, i32); 13] = [
    ("random", 0),
    ("randomblob", 1),
    ("current_time", 0),
    ("current_date", 0),
    ("current_timestamp", 0),
    ("changes", 0),
    ("total_changes", 0),
    ("last_insert_rowid", 0),
    ("sqlite_version", 0),
    ("sqlite_source_id", 0),
    ("sqlite_compileoption_used", 1),
    ("sqlite_compileoption_get", 1),
    ("sqlite_log", 2),
];
const DATES: [&str; 7] = ["date", "time", "datetime", "julianday", "unixepoch", "strftime", "timediff"];
/// Words that make them depend on the clock or the zone of the host.
const WORDS: [&str; 3] = ["now", "localtime", "utc"];

/// Replaces them on `connection`.
pub(super) fn replace(connection: &Connection) -> Result<()> {
    // Innocuous: they may stand in the schema, where they do what they do elsewhere.
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_INNOCUOUS;
    for (name, arguments) in DIFFERENT {
        let text = format!("{name}() is not the same on every member: bind its value as a parameter");
        connection.create_scalar_function(name, arguments, flags, move |_| refuse(text.clone()))?;
    }
    for name in DATES {
        // The original lives on in a connection without tables.
        let original = Mutex::new(Connection::open_in_memory()?);
        let flags = flags | FunctionFlags::SQLITE_DETERMINISTIC;
        connection.create_scalar_function(name, -1, flags, move |context| {
            date(name, &original.lock().unwrap_or_else(PoisonError::into_inner), context)
        })?;
    }
    Ok(())
}

fn refuse(text: String) -> Result<Value> {
    Err(Error::UserFunctionError(text.into()))
}

fn date(name: &str, original: &Connection, context: &Context<'_>) -> Result<Value> {
    let arguments: Vec<Value> = (0..context.len()).map(|place| context.get(place)).collect::<Result<_>>()?;
    // strftime has a format before the time.
    let times = arguments.get(usize::from(name == "strftime")..).unwrap_or_default();
    if times.is_empty() {
        return refuse(format!(
            "{name}() without a time means now, which differs between members: bind the time as a parameter"
        ));
    }
    let is_word =
        |value: &&Value| matches!(value, Value::Text(text) if WORDS.iter().any(|word| text.eq_ignore_ascii_case(word)));
    if let Some(Value::Text(word)) = times.iter().find(is_word) {
        return refuse(format!("{name}('{word}') differs between members: bind the time as a parameter"));
    }
    let places = vec!["?"; arguments.len()].join(", ");
    let mut statement = original.prepare_cached(&format!("SELECT {name}({places})"))?;
    statement.query_row(params_from_iter(arguments), |row| row.get(0))
}
