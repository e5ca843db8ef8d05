//! Members over real sockets: forwarding, failover, minorities, snapshots, removal.

use std::time::Duration;

use super::cluster::{Cluster, PATIENCE, name};
use crate::store::{Consistency, Formation, Refusal, Role, Statement, StoreError};

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waited = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, waited).await.is_ok(), "{what}");
}

async fn count(cluster: &Cluster, place: usize, consistency: Consistency) -> Result<i64, StoreError> {
    let rows = cluster.nodes[place].handle().query(Statement::new("SELECT count(*) FROM t"), consistency).await?;
    Ok(rows.rows[0][0].as_integer().expect("a number"))
}

fn insert(value: i64) -> Statement {
    Statement::new("INSERT INTO t VALUES (?)").bind(value)
}

async fn with_table(cluster: &Cluster) {
    cluster.exec(0, Statement::new("CREATE TABLE t (a INTEGER PRIMARY KEY)")).await.expect("made");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_writes_through_its_leader_and_reads_what_was_acknowledged() {
    let cluster = Cluster::start(3).await;
    with_table(&cluster).await;
    let follower = cluster.follower().await;
    for value in 0..20 {
        assert_eq!(cluster.exec(follower, insert(value)).await, Ok(1));
        let other = usize::try_from(value % 3).expect("small");
        assert_eq!(count(&cluster, other, Consistency::Linearizable).await, Ok(value + 1));
    }
    let refused = cluster.exec(follower, insert(1)).await;
    assert!(matches!(refused, Err(StoreError::Refused(Refusal::Constraint(_)))), "{refused:?}");
    let mut changes = cluster.nodes[follower].handle().watch(&["t"]);
    cluster.exec(cluster.leader().await, insert(99)).await.expect("written");
    assert!(tokio::time::timeout(PATIENCE, changes.changed()).await.expect("told").is_some());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_resume_after_the_leader_is_gone_and_it_catches_up() {
    let mut cluster = Cluster::start(3).await;
    with_table(&cluster).await;
    cluster.exec(0, insert(0)).await.expect("written");
    let leader = cluster.leader().await;
    cluster.nodes[leader].stop().await;
    let other = (leader + 1) % 3;
    assert_eq!(cluster.exec(other, insert(1)).await, Ok(1), "the others elect one of them");
    cluster.nodes[leader].start();
    eventually("it has what it missed", async || count(&cluster, leader, Consistency::Local).await == Ok(2)).await;
    assert_eq!(count(&cluster, leader, Consistency::Linearizable).await, Ok(2));
    cluster.stop().await;
}

/// A term has one leader with one log: one that was killed may have sent entries that it had not written itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_comes_back_does_not_go_on_with_its_term() {
    let mut cluster = Cluster::start(3).await;
    with_table(&cluster).await;
    for value in 0..5 {
        let leader = cluster.leader().await;
        let term = cluster.nodes[leader].handle().figures().term;
        cluster.nodes[leader].stop().await;
        cluster.nodes[leader].start();
        // What was under way to a leader that ends may have been carried out, or not.
        let is_written = async || {
            let written = cluster.exec((leader + 1) % 3, insert(value)).await;
            matches!(written, Ok(1) | Err(StoreError::Refused(Refusal::Constraint(_))))
        };
        eventually("it is written", is_written).await;
        let now = cluster.nodes[cluster.leader().await].handle().figures().term;
        assert!(now > term, "whoever leads after the stop was elected: {now} after {term}");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_minority_neither_writes_nor_reads_as_if_it_knew() {
    let cluster = Cluster::start(3).await;
    with_table(&cluster).await;
    let leader = cluster.leader().await;
    for other in (0..3).filter(|other| *other != leader) {
        cluster.faults.cut(leader, other);
        cluster.faults.cut(other, leader);
    }
    let (write, read) =
        tokio::join!(cluster.exec(leader, insert(7)), count(&cluster, leader, Consistency::Linearizable));
    assert!(write.is_err(), "{write:?}");
    assert!(matches!(read, Err(StoreError::NoLeader(_) | StoreError::Timeout { .. })), "{read:?}");
    let majority = (leader + 1) % 3;
    assert_eq!(cluster.exec(majority, insert(8)).await, Ok(1), "the majority goes on");
    cluster.faults.heal();
    eventually("the old leader follows", async || count(&cluster, leader, Consistency::Linearizable).await.is_ok())
        .await;
    let rows = Statement::new("SELECT a FROM t WHERE a = 8");
    let found = cluster.nodes[leader].handle().query(rows, Consistency::Linearizable).await.expect("read");
    assert_eq!(found.rows.len(), 1);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_far_behind_learner_gets_a_snapshot_and_a_vote() {
    let mut cluster = Cluster::start(1).await;
    with_table(&cluster).await;
    let filler = "x".repeat(10_000);
    cluster.exec(0, Statement::new("CREATE TABLE filler (a INTEGER PRIMARY KEY, b TEXT)")).await.expect("made");
    for value in 0..700 {
        cluster.exec(0, insert(value)).await.expect("written");
        if value % 4 == 0 {
            let fill = Statement::new("INSERT INTO filler VALUES (?, ?)").bind(value).bind(&filler);
            cluster.exec(0, fill).await.expect("written");
        }
    }
    eventually("the log is purged", async || cluster.nodes[0].handle().figures().purged > 100).await;
    let place = cluster.add_node(Formation::Join);
    cluster.join(place).await;
    assert_eq!(count(&cluster, place, Consistency::Local).await, Ok(700));
    assert_eq!(cluster.nodes[place].handle().status().borrow().role, Role::Learner);
    assert!(cluster.nodes[place].handle().figures().snapshot > 0, "it came as a snapshot");
    cluster.nodes[0].handle().promote(&name(place)).await.expect("it gets a vote");
    cluster.nodes[place].handle().transfer_leader(Some(&name(place))).await.expect("it leads");
    assert_eq!(cluster.leader().await, place);
    assert_eq!(cluster.exec(0, insert(700)).await, Ok(1));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_member_is_fenced_and_may_come_back_as_another() {
    let cluster = Cluster::start(3).await;
    with_table(&cluster).await;
    let gone = (cluster.leader().await + 1) % 3;
    let number = cluster.nodes[gone].number().await;
    let leader = cluster.leader().await;
    cluster.nodes[leader].handle().remove(&name(gone)).await.expect("removed");
    let write = cluster.exec(gone, insert(1)).await;
    assert!(write.is_err(), "{write:?}");
    let again = crate::store::Member { raft_id: number, node: name(gone), address: String::new(), voter: false };
    let refused = cluster.nodes[leader].handle().add_learner(again).await.expect_err("for ever").to_string();
    assert!(refused.contains("was removed"), "{refused}");
    let new = cluster.nodes[gone].handle().start_over().await.expect("a new store");
    assert_ne!(new, number);
    if leader == 0 {
        cluster.join(gone).await;
        eventually("it is served again", async || cluster.exec(gone, insert(2)).await == Ok(1)).await;
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_cannot_be_are_refused_with_the_reason() {
    let cluster = Cluster::start(1).await;
    let handle = cluster.nodes[0].handle();
    let text = |result: Result<(), StoreError>| result.expect_err("refused").to_string();
    assert!(text(handle.promote(&name(9)).await).contains("node-9 is not a member of the store; members are node-0"));
    assert!(text(handle.remove(&name(0)).await).contains("node-0 is the only member with a vote"));
    assert!(text(handle.transfer_leader(None).await).contains("no other member with a vote"));
    cluster.stop().await;
}
