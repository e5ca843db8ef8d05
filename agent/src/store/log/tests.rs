use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use openraft::EntryPayload;
use openraft::type_config::TypeConfigExt as _;

use super::*;
use crate::store::raft::{Payload, log_id};

fn entry(index: u64, bytes: usize) -> Entry {
    let content = vec![u8::try_from(index % 251).expect("small"); bytes];
    Entry { log_id: log_id(1, 7, index), payload: EntryPayload::Normal(Payload(content.into())) }
}

fn lock(directory: &Path) -> Arc<File> {
    Arc::new(File::open(directory).expect("a directory"))
}

fn open(directory: &Path) -> Log {
    Log::open(directory, lock(directory), crate::store::disk::Syncs::default()).expect("opened")
}

async fn append(log: &mut Log, entries: Vec<Entry>) {
    let (done, flushed) = Config::oneshot();
    log.append(entries, IOFlushed::signal(done)).await.expect("queued");
    flushed.await.expect("told").expect("durable");
}

async fn indexes(log: &mut Log) -> Vec<u64> {
    let entries = log.try_get_log_entries(..).await.expect("read");
    entries.iter().map(|entry| entry.log_id.index).collect()
}

/// Closes the log and waits until its thread has written all and is gone.
async fn close(log: Log) {
    let writer = log.writer.clone();
    let lock = writer.downgrade();
    drop((log, writer));
    while lock.upgrade().is_some() {
        tokio::task::yield_now().await;
    }
}

fn last_segment(directory: &Path) -> PathBuf {
    let number = *segments::list(directory).expect("listed").last().expect("a segment");
    segments::path(directory, number)
}

/// The end of what was written: the first byte of the zeros behind it.
fn written(path: &Path) -> u64 {
    let bytes = fs::read(path).expect("readable");
    let zeros = bytes.iter().rev().take_while(|byte| **byte == 0).count();
    u64::try_from(bytes.len() - zeros).expect("small")
}

#[tokio::test]
async fn what_was_appended_is_there_after_opening_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut log = open(directory.path());
    append(&mut log, (0..10).map(|index| entry(index, 100)).collect()).await;
    let vote = Vote { leader_id: *log_id(3, 7, 0).committed_leader_id(), committed: false };
    log.save_vote(&vote).await.expect("durable");
    log.truncate_after(Some(log_id(1, 7, 5))).await.expect("durable");
    append(&mut log, vec![entry(6, 1)]).await;
    close(log).await;
    let mut log = open(directory.path());
    assert_eq!(indexes(&mut log).await, [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(log.try_get_log_entries(6..).await.expect("read"), [entry(6, 1)]);
    assert_eq!(log.read_vote().await.expect("read"), Some(vote));
}

#[tokio::test]
async fn purged_segments_are_deleted_and_what_they_said_is_kept() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut log = open(directory.path());
    let vote = Vote { leader_id: *log_id(3, 7, 0).committed_leader_id(), committed: true };
    log.save_vote(&vote).await.expect("durable");
    for index in 0..40 {
        append(&mut log, vec![entry(index, 1024 * 1024)]).await;
    }
    assert!(segments::list(directory.path()).expect("listed").len() >= 5);
    log.purge(log_id(1, 7, 38)).await.expect("queued");
    append(&mut log, vec![entry(40, 1)]).await;
    assert!(segments::list(directory.path()).expect("listed").len() <= 2);
    close(log).await;
    let mut log = open(directory.path());
    assert_eq!(indexes(&mut log).await, [39, 40]);
    assert_eq!(log.read_vote().await.expect("read"), Some(vote));
    assert_eq!(log.get_log_state().await.expect("read").last_purged_log_id, Some(log_id(1, 7, 38)));
}

#[tokio::test]
async fn a_batch_torn_anywhere_is_cut_off_and_written_over() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut log = open(directory.path());
    append(&mut log, vec![entry(0, 50)]).await;
    let path = last_segment(directory.path());
    let before = written(&path);
    append(&mut log, vec![entry(1, 60)]).await;
    let after = written(&path);
    close(log).await;
    let whole = fs::read(&path).expect("readable");
    for torn in (before..after).rev().step_by(7) {
        let mut bytes = whole.clone();
        bytes[usize::try_from(torn).expect("small")..usize::try_from(after).expect("small")].fill(0);
        fs::write(&path, bytes).expect("written");
        let mut log = open(directory.path());
        assert_eq!(indexes(&mut log).await, [0], "torn at {torn}");
        append(&mut log, vec![entry(1, 3)]).await;
        assert_eq!(indexes(&mut log).await, [0, 1]);
        close(log).await;
        let mut log = open(directory.path());
        assert_eq!(indexes(&mut log).await, [0, 1]);
        close(log).await;
    }
}

#[tokio::test]
async fn damage_before_acknowledged_entries_is_an_error_and_not_skipped() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut log = open(directory.path());
    append(&mut log, vec![entry(0, 50)]).await;
    let path = last_segment(directory.path());
    let middle = written(&path) - 10;
    append(&mut log, vec![entry(1, 60)]).await;
    close(log).await;
    let file = OpenOptions::new().write(true).open(&path).expect("opened");
    file.write_all_at(b"\xff", middle).expect("written");
    let error = Log::open(directory.path(), lock(directory.path()), crate::store::disk::Syncs::default())
        .expect_err("refused")
        .to_string();
    assert!(error.contains("a batch is broken and whole ones follow it"), "{error}");
}

#[tokio::test]
async fn a_missing_segment_is_an_error() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut log = open(directory.path());
    for index in 0..30 {
        append(&mut log, vec![entry(index, 1024 * 1024)]).await;
    }
    close(log).await;
    let numbers = segments::list(directory.path()).expect("listed");
    fs::remove_file(segments::path(directory.path(), numbers[1])).expect("removed");
    let error = Log::open(directory.path(), lock(directory.path()), crate::store::disk::Syncs::default())
        .expect_err("refused")
        .to_string();
    assert!(error.contains("batches are missing before it"), "{error}");
}
