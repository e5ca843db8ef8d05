use std::sync::Mutex;

use openraft::EntryPayload;

use super::*;
use crate::store::changes::Changed;
use crate::store::entry::{Encoding, encode};
use crate::store::error::Refusal;
use crate::store::raft::{Entry, Payload, log_id};
use crate::store::statement::{Executed, Outcome, Rows, Statement};
use crate::store::value::Value;

/// An applier on a database of its own; what it tells watchers is kept.
struct Fixture {
    _directory: tempfile::TempDir,
    path: PathBuf,
    applier: apply::Applier,
    told: Arc<Mutex<Vec<BTreeSet<String>>>>,
    next: u64,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("database.sqlite");
        let told = Arc::<Mutex<Vec<BTreeSet<String>>>>::default();
        let applier = Self::applier(&path, &told);
        Self { _directory: directory, path, applier, told, next: 1 }
    }

    fn applier(path: &Path, told: &Arc<Mutex<Vec<BTreeSet<String>>>>) -> apply::Applier {
        let connection = writer(path).expect("opened");
        let position = read_position(&connection).expect("read");
        let told = Arc::clone(told);
        let notify: Notify = Arc::new(move |_index, changed: &Changed| {
            told.lock().expect("no panic").push(changed.keys().cloned().collect());
        });
        apply::Applier::new(Runner::new(connection).expect("guarded"), position, notify, Removed::default())
    }

    fn entry(&mut self, statements: Vec<Statement>) -> Entry {
        let bytes = encode(statements, Encoding::Protobuf).expect("encoded");
        let entry = Entry { log_id: log_id(1, 1, self.next), payload: EntryPayload::Normal(Payload(bytes)) };
        self.next += 1;
        entry
    }

    fn run(&mut self, statements: Vec<Statement>) -> Result<Vec<Outcome>, Refusal> {
        let entry = self.entry(statements);
        self.applier.carry_out(&[entry]).expect("the host works").pop().expect("one").0.expect("a statement")
    }

    fn exec(&mut self, sql: &str) -> Result<Executed, Refusal> {
        match self.run(vec![Statement::new(sql)])?.pop() {
            Some(Outcome::Executed(executed)) => Ok(executed),
            other => panic!("not executed: {other:?}"),
        }
    }

    fn rows(&mut self, sql: &str) -> Rows {
        match self.run(vec![Statement::new(sql).as_query()]).expect("rows").pop() {
            Some(Outcome::Rows(rows)) => rows,
            other => panic!("no rows: {other:?}"),
        }
    }

    #[track_caller]
    fn refused(&mut self, sql: &str, expected: &str) {
        let error = self.exec(sql).expect_err("refused").to_string();
        assert!(error.contains(expected), "{sql}: {error}");
    }

    fn count(&mut self, table: &str) -> i64 {
        self.rows(&format!("SELECT count(*) FROM {table}")).rows[0][0].as_integer().expect("a number")
    }
}

#[test]
fn values_of_every_type_come_back_as_they_went_in() {
    let mut store = Fixture::new();
    store.exec("CREATE TABLE t (i INTEGER, r REAL, b BOOLEAN, s TEXT, x BLOB, t TIMESTAMP, n)").expect("made");
    let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_700_000_000, 5);
    let values = [
        Value::Integer(-1),
        Value::Real(0.5),
        Value::Bool(true),
        Value::from("ä"),
        Value::Blob(vec![0]),
        time.into(),
        Value::Null,
    ];
    let mut insert = Statement::new("INSERT INTO t VALUES (?, ?, ?, :s, ?, ?, ?)").bind_named(":s", values[3].clone());
    for value in values.iter().enumerate().filter(|(place, _)| *place != 3).map(|(_, value)| value) {
        insert = insert.bind(value.clone());
    }
    let outcome = store.run(vec![insert]).expect("done");
    assert_eq!(outcome, [Outcome::Executed(Executed { last_insert_id: 1, rows_affected: 1, index: 2 })]);
    let rows = store.rows("SELECT *, 1 + 1 AS two FROM t");
    assert_eq!(rows.columns, ["i", "r", "b", "s", "x", "t", "n", "two"]);
    assert_eq!(rows.types, ["INTEGER", "REAL", "BOOLEAN", "TEXT", "BLOB", "TIMESTAMP", "NULL", "INTEGER"]);
    assert_eq!(rows.rows, [[&values[..], &[Value::Integer(2)]].concat()]);
}

#[test]
fn values_must_fit_the_parameters() {
    let mut store = Fixture::new();
    let mut refused = |statement: Statement, expected: &str| {
        let error = store.run(vec![statement]).expect_err("refused").to_string();
        assert!(error.contains(expected), "{error}");
    };
    refused(Statement::new("SELECT ?, ?").bind(1_i64), "has 2 parameters; 1 values are given");
    refused(Statement::new("SELECT :a").bind_named(":b", 1_i64), "has no parameter :b; it has :a");
    refused(Statement::new("SELECT :a, :b").bind_named(":a", 1_i64).bind_named(":a", 2_i64), ":a is given twice");
}

#[test]
fn what_differs_between_members_is_refused() {
    let mut store = Fixture::new();
    store.exec("CREATE TABLE t (a, b DEFAULT CURRENT_TIMESTAMP, c DEFAULT (random()))").expect("made");
    store.refused("INSERT INTO t (a) VALUES (1)", "is not the same on every member");
    store.refused("INSERT INTO t VALUES (random(), 1, 1)", "random() is not the same on every member");
    store.refused("INSERT INTO t VALUES (hex(randomblob(4)), 1, 1)", "randomblob()");
    store.refused("INSERT INTO t VALUES (datetime('now'), 1, 1)", "datetime('now') differs between members");
    store.refused("INSERT INTO t VALUES (strftime('%s', 'NOW'), 1, 1)", "differs between members");
    store.refused("INSERT INTO t VALUES (date(), 1, 1)", "without a time means now");
    store.refused("INSERT INTO t VALUES (datetime(0, 'unixepoch', 'localtime'), 1, 1)", "localtime");
    store.refused("INSERT INTO t VALUES (last_insert_rowid(), 1, 1)", "last_insert_rowid()");
    store
        .exec("INSERT INTO t VALUES (datetime(0, 'unixepoch', '+1 day'), strftime('%Y', '2026-01-01'), 1)")
        .expect("fine");
    assert_eq!(store.rows("SELECT a, b FROM t").rows, [[Value::from("1970-01-02 00:00:00"), Value::from("2026")]]);
}

#[test]
fn what_would_break_the_store_is_refused() {
    let mut store = Fixture::new();
    for sql in ["BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT a", "RELEASE entry", "COMMIT "] {
        store.refused(sql, "every statement is a transaction already");
    }
    store.refused("PRAGMA journal_mode = DELETE", "PRAGMA journal_mode cannot be replicated");
    store.refused("ATTACH '/etc/passwd' AS p", "cannot be replicated");
    store.refused("CREATE TEMP TABLE t (a)", "a temporary object belongs to one connection");
    store.refused("CREATE VIRTUAL TABLE t USING fts5(a)", "a virtual table (fts5)");
    store.refused("SELECT load_extension('x')", "load_extension() cannot be replicated");
    store.refused("VACUUM", "");
    store.refused("-- nothing", "holds no statement");
    store.refused("SELECT 1; SELECT 2", "one statement at a time");
    store.refused("SELEKT 1", "syntax error");
    let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
    store.refused(endless, "too much work");
}

#[test]
fn own_tables_are_written_by_name_only() {
    let mut store = Fixture::new();
    store.refused("CREATE TABLE weft_nodes (id)", "must name it (weft store exec --own-table weft_nodes)");
    store.run(vec![Statement::new("CREATE TABLE weft_nodes (id)").touching("weft_nodes")]).expect("named");
    store.refused("INSERT INTO Weft_Nodes VALUES (1)", "must name it");
    store.refused("DELETE FROM weft_raft", "belongs to the consensus");
    let raft = Statement::new("UPDATE weft_raft SET position = 9").touching("weft_raft");
    assert!(matches!(store.run(vec![raft]), Err(Refusal::OwnTable(_))));
    store.exec("CREATE TABLE t (a)").expect("made");
    store.refused("ALTER TABLE t RENAME TO weft_t", "names that begin with weft_ are Weft's own");
    store.exec("CREATE TRIGGER steal AFTER INSERT ON t BEGIN DELETE FROM weft_nodes; END").expect("made");
    store.run(vec![Statement::new("INSERT INTO weft_nodes VALUES (1)").touching("weft_nodes")]).expect("named");
    store.refused("INSERT INTO t VALUES (1)", "weft_nodes is one of Weft's own tables");
    assert_eq!((store.count("t"), store.count("weft_nodes")), (0, 1));
}

#[test]
fn a_transaction_is_all_or_nothing() {
    let mut store = Fixture::new();
    store.exec("CREATE TABLE t (a UNIQUE)").expect("made");
    let insert = |value: i64| Statement::new("INSERT INTO t VALUES (?)").bind(value);
    store.run(vec![insert(1), insert(2)]).expect("done");
    let constraint = store.run(vec![insert(3), insert(1)]).expect_err("refused");
    assert!(matches!(&constraint, Refusal::Constraint(text) if text.contains("UNIQUE")), "{constraint}");
    let expectation = store.run(vec![insert(4), Statement::new("DELETE FROM t WHERE a = 9").expecting(1)]);
    assert_eq!(expectation, Err(Refusal::Expectation { number: 2, expected: 1, found: 0 }));
    assert_eq!(store.count("t"), 2);
    // A table made and undone is not there for the next statement either.
    store.run(vec![Statement::new("CREATE TABLE u (a)"), insert(1)]).expect_err("refused");
    store.refused("INSERT INTO u VALUES (1)", "no such table: u");
}

#[test]
fn a_statement_that_ends_the_transaction_undoes_only_itself() {
    let mut store = Fixture::new();
    store.exec("CREATE TABLE t (a UNIQUE)").expect("made");
    let sql = ["INSERT INTO t VALUES (1)", "INSERT OR ROLLBACK INTO t VALUES (1)", "INSERT INTO t VALUES (2)"];
    let entries: Vec<Entry> = sql.iter().map(|sql| store.entry(vec![Statement::new(*sql)])).collect();
    let results = store.applier.carry_out(&entries).expect("the host works");
    let done: Vec<bool> = results.iter().map(|applied| matches!(applied.0, Some(Ok(_)))).collect();
    assert_eq!(done, [true, false, true]);
    assert_eq!(store.count("t"), 2);
}

#[test]
fn the_position_is_as_durable_as_the_data() {
    let mut store = Fixture::new();
    store.exec("CREATE TABLE t (a)").expect("made");
    store.refused("INSERT INTO nowhere VALUES (1)", "no such table");
    assert_eq!(position_of(&store.path).expect("read").applied, Some(log_id(1, 1, 2)));
    store.applier = Fixture::applier(&store.path, &store.told);
    assert_eq!(store.applier.position().applied, Some(log_id(1, 1, 2)));
}

#[test]
fn watchers_hear_of_every_table_that_changed_and_of_no_other() {
    let mut store = Fixture::new();
    store.exec("CREATE TABLE a (x INTEGER PRIMARY KEY)").expect("made");
    store.exec("CREATE TABLE b (x REFERENCES a ON DELETE CASCADE)").expect("made");
    store.exec("INSERT INTO a VALUES (1)").expect("done");
    store.exec("INSERT INTO b VALUES (1)").expect("done");
    store.told.lock().expect("no panic").clear();
    store.exec("DELETE FROM a WHERE x = 9").expect("done");
    store.exec("DELETE FROM a WHERE x = 1").expect("done");
    let told = store.told.lock().expect("no panic").clone();
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(told, [names(&[]), names(&["a", "b"])]);
}

#[test]
fn a_copy_installed_elsewhere_has_everything() {
    let mut store = Fixture::new();
    store.exec("CREATE TABLE t (a)").expect("made");
    store.exec("INSERT INTO t VALUES (7)").expect("done");
    let to = store.path.with_file_name("copy.db");
    let position = copy(&store.path, &to).expect("copied");
    assert_eq!(position.applied, Some(log_id(1, 1, 2)));
    let mut other = Fixture::new();
    other.exec("CREATE TABLE gone (a)").expect("made");
    assert_eq!(other.applier.install(&to).expect("installed"), position);
    assert_eq!(other.count("t"), 1);
    other.refused("INSERT INTO gone VALUES (1)", "no such table");
}

#[test]
fn a_table_of_the_store_is_changed_after_a_rename_of_another() {
    let mut store = Fixture::new();
    store.exec("CREATE TABLE t (a)").expect("made");
    store.exec("ALTER TABLE t RENAME TO u").expect("renamed");
    store.exec("ALTER TABLE u ADD COLUMN b DEFAULT 1").expect("added");
    store.exec("INSERT INTO u VALUES (1, 2)").expect("done");
    store.exec("ALTER TABLE u DROP COLUMN b").expect("dropped");
    assert_eq!(store.rows("SELECT * FROM u").columns, ["a"]);
}

#[test]
fn whoever_gets_the_lock_finds_the_database_closed() {
    let mut crashed = Fixture::new();
    crashed.exec("CREATE TABLE t (a)").expect("made");
    crashed.exec("INSERT INTO t VALUES (zeroblob(6000000))").expect("done");
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("database.sqlite");
    // SQLite's own log is long, so that closing takes its time.
    for end in ["", "-wal"] {
        let file = |path: &Path| PathBuf::from(format!("{}{end}", path.display()));
        std::fs::copy(file(&crashed.path), file(&path)).expect("copied");
    }
    let lock = Arc::new(File::create(directory.path().join("lock")).expect("a lock"));
    let held = Arc::downgrade(&lock);
    let (database, _position) =
        Database::open(&path, Arc::new(|_, _| ()), Removed::default(), Arc::clone(&lock)).expect("opened");
    let readers = Readers::start(&path, &lock).expect("started");
    drop((database, readers, lock));
    while held.strong_count() > 0 {
        thread::yield_now();
    }
    let open = std::fs::read_dir("/proc/self/fd").expect("read");
    let open = open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    let ours: Vec<PathBuf> = open.filter(|file| file.starts_with(directory.path())).collect();
    assert_eq!(ours, Vec::<PathBuf>::new());
}
