mod cluster;
mod faults;
mod linearizable;
mod members;

use std::path::Path;
use std::time::Duration;

use super::*;
use crate::foundation::lifecycle::{Readiness, Shutdown};

const SCHEMA: Schema = Schema {
    name: "test",
    versions: &[
        &["CREATE TABLE weft_things (id INTEGER PRIMARY KEY, name TEXT) STRICT"],
        &["CREATE INDEX weft_things_name ON weft_things (name)"],
    ],
};

struct Node {
    handle: Handle,
    shutdown: Shutdown,
}

async fn alone(directory: &Path) -> Node {
    let shutdown = Shutdown::default();
    let inputs = Inputs {
        config: config::Config { snapshot_entries: 100, ..config::Config::default() },
        node: "alpha".parse().expect("a name"),
        directory: directory.join("store"),
        schemas: vec![SCHEMA],
        formation: Formation::Alone,
        network: None,
    };
    let blocker = Readiness::default().block("store");
    let handle = start(inputs, &Metrics::default(), blocker, shutdown.stop());
    tokio::time::timeout(Duration::from_secs(20), handle.ready()).await.expect("it leads itself");
    Node { handle, shutdown }
}

impl Node {
    async fn stop(self) {
        assert!(self.shutdown.drain(Duration::from_secs(10)).await, "it stops");
    }

    async fn count(&self) -> i64 {
        let query = Statement::new("SELECT count(*) FROM t");
        let rows = self.handle.query(query, Consistency::Linearizable).await.expect("read");
        rows.rows[0][0].as_integer().expect("a number")
    }
}

fn insert(value: i64) -> Statement {
    Statement::new("INSERT INTO t VALUES (?)").bind(value)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_node_keeps_what_it_acknowledged_over_restarts_and_compaction() {
    let directory = tempfile::tempdir().expect("a directory");
    let node = alone(directory.path()).await;
    node.handle.exec(Statement::new("CREATE TABLE t (a INTEGER PRIMARY KEY)")).await.expect("made");
    for value in 0..250 {
        node.handle.exec(insert(value)).await.expect("inserted");
    }
    assert_eq!(node.count().await, 250);
    let purged = async {
        while node.handle.figures().purged == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), purged).await.expect("the log is folded into a snapshot");
    let id = node.handle.raft_id();
    node.stop().await;
    let node = alone(directory.path()).await;
    assert_eq!(node.handle.raft_id(), id);
    assert_eq!(node.count().await, 250);
    node.handle.exec(insert(250)).await.expect("inserted");
    assert!(matches!(node.handle.exec(insert(250)).await, Err(StoreError::Refused(Refusal::Constraint(_)))));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_lost_is_filled_from_snapshot_and_log() {
    let directory = tempfile::tempdir().expect("a directory");
    let node = alone(directory.path()).await;
    node.handle.exec(Statement::new("CREATE TABLE t (a INTEGER PRIMARY KEY)")).await.expect("made");
    for value in 0..300 {
        node.handle.exec(insert(value)).await.expect("inserted");
    }
    node.stop().await;
    for name in ["database.sqlite", "database.sqlite-wal", "database.sqlite-shm"] {
        std::fs::remove_file(directory.path().join("store").join(name)).unwrap_or_default();
    }
    let node = alone(directory.path()).await;
    assert_eq!(node.count().await, 300);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_writes_are_all_carried_out_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let node = alone(directory.path()).await;
    node.handle.exec(Statement::new("CREATE TABLE t (a INTEGER PRIMARY KEY)")).await.expect("made");
    let writes = (0..500).map(|value| {
        let handle = node.handle.clone();
        async move { handle.exec(insert(value)).await }
    });
    for result in futures_util::future::join_all(writes).await {
        assert_eq!(result.expect("inserted").rows_affected, 1);
    }
    assert_eq!(node.count().await, 500);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn declared_tables_are_there_and_watched() {
    let directory = tempfile::tempdir().expect("a directory");
    let node = alone(directory.path()).await;
    let mut changes = node.handle.watch(&["weft_things"]);
    let insert = Statement::new("INSERT INTO weft_things (name) VALUES (:name)")
        .bind_named(":name", "a")
        .touching("weft_things");
    let executed = node.handle.exec(insert).await.expect("inserted");
    let changed = tokio::time::timeout(Duration::from_secs(10), changes.changed()).await;
    assert_eq!(changed.expect("told"), Some(executed.index));
    let status = node.handle.status().borrow().clone();
    assert_eq!(
        (status.role, status.leader.as_ref().map(ToString::to_string)),
        (Role::Leader, Some("alpha".to_owned()))
    );
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_store_in_the_same_directory_says_that_it_is_in_use() {
    let directory = tempfile::tempdir().expect("a directory");
    let node = alone(directory.path()).await;
    let error = core::Files::of(&directory.path().join("store")).take().expect_err("refused").to_string();
    assert!(error.ends_with("is in use by another agent"), "{error}");
    let backup = directory.path().join("backup.db");
    let restore = offline::restore(&directory.path().join("store"), &backup);
    assert!(matches!(restore, Err(offline::RestoreError::NotABackup { .. })), "{restore:?}");
    node.handle.backup(backup.clone()).await.expect("copied");
    let restore = offline::restore(&directory.path().join("store"), &backup);
    assert!(matches!(restore, Err(offline::RestoreError::InUse(_))), "{restore:?}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_backup_is_a_new_cluster_of_one() {
    let directory = tempfile::tempdir().expect("a directory");
    let node = alone(directory.path()).await;
    node.handle.exec(Statement::new("CREATE TABLE t (a INTEGER PRIMARY KEY)")).await.expect("made");
    node.handle.exec(insert(1)).await.expect("inserted");
    let backup = directory.path().join("backup.db");
    node.handle.backup(backup.clone()).await.expect("copied");
    node.handle.exec(insert(2)).await.expect("inserted");
    let before = node.handle.raft_id();
    node.stop().await;
    let restored = offline::restore(&directory.path().join("store"), &backup).expect("restored");
    assert!(restored.kept.expect("kept").join("database.sqlite").exists());
    let node = alone(directory.path()).await;
    assert_ne!(node.handle.raft_id(), before);
    assert_eq!(node.count().await, 1);
    node.stop().await;
}
