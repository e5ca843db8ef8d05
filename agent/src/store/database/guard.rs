//! What a statement would touch, found out by SQLite's own compiler, and what may never be done.
//!
//! The authorizer hears of every table, function and kind of statement while SQL is compiled, triggers included. It refuses
//! what would make members differ or break the store, and notes which tables are written; whether these may be is decided when
//! the statement runs.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::hooks::{AuthAction, AuthContext, Authorization};

/// What one statement touches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Footprint {
    /// Tables it writes, in lower case; SQLite's own left out.
    pub(super) writes: BTreeSet<String>,
    /// It changes the schema, so that what was compiled before may mean something else now.
    pub(super) changes_schema: bool,
    /// Why it may not be carried out at all.
    pub(super) refused: Option<String>,
    /// It inserts rows itself.
    pub(super) inserts: bool,
    /// Something was compiled; a statement that was kept from before shows nothing.
    pub(super) seen: bool,
    /// The store's own statements: nothing is refused.
    open: bool,
}

/// Which connection it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    /// Applies the log.
    Log,
    /// Only reads, only here.
    Read,
}

/// Collects the footprint of what is being compiled.
#[derive(Debug, Clone, Default)]
pub(super) struct Recorder(Arc<Mutex<Footprint>>);

impl Recorder {
    /// Begins anew and gives what was noted.
    pub(super) fn take(&self) -> Footprint {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Lets everything pass until the next [`Recorder::take`].
    pub(super) fn open(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Footprint { open: true, ..Footprint::default() };
    }

    /// The callback for the connection.
    pub(super) fn authorizer(&self, door: Door) -> impl FnMut(AuthContext<'_>) -> Authorization + Send + 'static {
        let footprint = Arc::clone(&self.0);
        move |context| {
            let mut footprint = footprint.lock().unwrap_or_else(PoisonError::into_inner);
            if footprint.open {
                return Authorization::Allow;
            }
            footprint.seen = true;
            footprint.inserts |= context.accessor.is_none() && inserts(&context.action);
            match note(&mut footprint, &context.action, door) {
                Ok(()) => Authorization::Allow,
                Err(why) => {
                    footprint.refused.get_or_insert(why);
                    Authorization::Deny
                }
            }
        }
    }
}

fn inserts(action: &AuthAction<'_>) -> bool {
    matches!(action, AuthAction::Insert { table_name } if !table_name.starts_with("sqlite_"))
}

/// Pragmas that only tell about the schema.
const TELLING: [&str; 8] = [
    "table_info",
    "table_xinfo",
    "table_list",
    "index_list",
    "index_info",
    "index_xinfo",
    "foreign_key_list",
    "user_version",
];

fn note(footprint: &mut Footprint, action: &AuthAction<'_>, door: Door) -> Result<(), String> {
    let refuse = |what: &str| Err(format!("{what} cannot be replicated"));
    match action {
        AuthAction::Insert { table_name }
        | AuthAction::Delete { table_name }
        | AuthAction::Update { table_name, .. } => {
            write(footprint, table_name);
        }
        AuthAction::CreateTable { table_name }
        | AuthAction::DropTable { table_name }
        | AuthAction::CreateIndex { table_name, .. }
        | AuthAction::DropIndex { table_name, .. }
        | AuthAction::CreateTrigger { table_name, .. }
        | AuthAction::DropTrigger { table_name, .. }
        | AuthAction::AlterTable { table_name, .. } => schema(footprint, table_name),
        AuthAction::CreateView { view_name } | AuthAction::DropView { view_name } => schema(footprint, view_name),
        AuthAction::Reindex { .. } | AuthAction::Analyze { .. } => footprint.changes_schema = true,
        AuthAction::CreateTempIndex { .. }
        | AuthAction::CreateTempTable { .. }
        | AuthAction::CreateTempTrigger { .. }
        | AuthAction::CreateTempView { .. }
        | AuthAction::DropTempIndex { .. }
        | AuthAction::DropTempTable { .. }
        | AuthAction::DropTempTrigger { .. }
        | AuthAction::DropTempView { .. } => return refuse("a temporary object belongs to one connection and"),
        AuthAction::CreateVtable { module_name, .. } | AuthAction::DropVtable { module_name, .. } => {
            return refuse(&format!("a virtual table ({module_name})"));
        }
        AuthAction::Attach { .. } | AuthAction::Detach { .. } => return refuse("ATTACH, DETACH or VACUUM"),
        AuthAction::Transaction { .. } | AuthAction::Savepoint { .. } => {
            return Err(
                "every statement is a transaction already: BEGIN, COMMIT, ROLLBACK and SAVEPOINT are refused; \
                        give statements that belong together as one transaction"
                    .to_owned(),
            );
        }
        AuthAction::Pragma { pragma_name, pragma_value } => pragma(pragma_name, *pragma_value, door)?,
        AuthAction::Function { function_name } if function_name.eq_ignore_ascii_case("load_extension") => {
            return refuse("load_extension()");
        }
        AuthAction::Unknown { code, .. } => return refuse(&format!("what SQLite calls action {code}")),
        AuthAction::Read { .. } | AuthAction::Select | AuthAction::Function { .. } | AuthAction::Recursive => {}
        _ => return refuse("what this version of SQLite offers beyond what is known"),
    }
    Ok(())
}

fn write(footprint: &mut Footprint, table: &str) {
    let table = table.to_ascii_lowercase();
    if !table.starts_with("sqlite_") {
        footprint.writes.insert(table);
    }
}

fn schema(footprint: &mut Footprint, table: &str) {
    write(footprint, table);
    footprint.changes_schema = true;
}

fn pragma(name: &str, value: Option<&str>, door: Door) -> Result<(), String> {
    let name = name.to_ascii_lowercase();
    let tells = TELLING.contains(&name.as_str()) && !(name == "user_version" && value.is_some());
    match (tells, door) {
        (true, Door::Read) => Ok(()),
        (_, Door::Log) => Err(format!("PRAGMA {name} cannot be replicated")),
        (false, Door::Read) => Err(format!("PRAGMA {name} is not for queries; there is {}", TELLING.join(", "))),
    }
}

/// Tables that only the consensus writes.
const INVIOLABLE: [&str; 2] = ["weft_raft", "weft_removed"];

/// Why `statement` may not write what it would, if so.
pub(super) fn own_tables(footprint: &Footprint, touching: &[String]) -> Option<String> {
    let own = footprint.writes.iter().filter(|table| table.starts_with("weft_"));
    let mut forbidden = own.filter(|table| INVIOLABLE.contains(&table.as_str()) || !touching.contains(*table));
    let table = forbidden.next()?;
    Some(match table.as_str() {
        table if INVIOLABLE.contains(&table) => {
            format!("{table} belongs to the consensus and is never written by a statement")
        }
        table => format!(
            "{table} is one of Weft's own tables: a statement that writes it must name it (weft store exec --own-table {table})"
        ),
    })
}
