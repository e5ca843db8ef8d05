//! The task that owns the store: opens it, watches over it, opens it again after a failure.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::{Raft, ServerState, SnapshotPolicy};

use super::barrier::Barrier;
use super::database::{Database, Notify, Readers, position_of};
use super::error::OpenError;
use super::handle::{Figures, Handle, Shared};
use super::log::Log;
use super::metrics::Metrics;
use super::network::Network;
use super::raft::{Config as Types, Peer};
use super::snapshot::Snapshots;
use super::state::State;
use super::status::{Member, Role, Status};
use super::{Formation, Inputs, config, schema};
use crate::foundation::error::chain;
use crate::foundation::lifecycle::{Blocker, Stop};
use crate::foundation::metrics::Metrics as Registry;
use crate::foundation::task;
use crate::sys::file;

/// Before a store that failed is opened again.
const PAUSE: Duration = Duration::from_secs(3);

/// An open store.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) raft_id: u64,
    pub(super) raft: Raft<Types, State>,
    pub(super) readers: Readers,
    pub(super) state: State,
    pub(super) log: Log,
    database: PathBuf,
    /// The threads hold it; when all are gone the files are closed.
    lock: Weak<File>,
    barrier: OnceLock<Barrier>,
}

impl Running {
    /// Where linearizable reads wait.
    pub(super) fn barrier(self: &Arc<Self>) -> &Barrier {
        self.barrier.get_or_init(|| Barrier::start(Arc::downgrade(self)))
    }

    pub(super) fn figures(&self) -> Figures {
        let data = self.raft.metrics().borrow_watched().clone();
        let index = |id: Option<super::raft::Id>| id.map_or(0, |id| id.index);
        Figures {
            term: data.current_term,
            last_log: data.last_log_index.unwrap_or_default(),
            applied: index(data.last_applied),
            snapshot: index(data.snapshot),
            purged: index(data.purged),
            log_bytes: u64::try_from(self.log.bytes()).unwrap_or(u64::MAX),
            database_bytes: fs::metadata(&self.database).map_or(0, |found| found.len()),
        }
    }
}

pub(super) fn start(inputs: Inputs, registry: &Registry, blocker: Blocker, stop: Stop) -> Handle {
    let shared = Arc::new(Shared::new(inputs.config.log_format, Metrics::default()));
    shared.metrics.register(registry, &shared);
    let task = task::spawn("store", keep_open(inputs, Arc::clone(&shared), Some(blocker), stop));
    Handle { shared, _task: Arc::new(task) }
}

async fn keep_open(inputs: Inputs, shared: Arc<Shared>, mut blocker: Option<Blocker>, mut stop: Stop) {
    loop {
        let error = match open(&inputs, &shared).await {
            Err(error) => chain(&error),
            Ok(running) => {
                let running = Arc::new(running);
                shared.running.store(Some(Arc::clone(&running)));
                let schemas = task::spawn("store-schema", schema::keep(shared.clone(), inputs.schemas.clone()));
                blocker = None;
                let failed = tokio::select! {
                    failed = watch_over(&running, &shared) => Some(failed),
                    () = stop.requested() => None,
                };
                drop(schemas);
                shared.running.store(None);
                close(running).await;
                match failed {
                    Some(failed) => failed,
                    None => return,
                }
            }
        };
        drop(blocker.take());
        tracing::error!(%error, "the store does not run; it is tried again");
        shared.status.send_replace(Arc::new(Status { errors: vec![error], ..Status::default() }));
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = stop.requested() => return,
        }
    }
}

async fn close(running: Arc<Running>) {
    if let Err(error) = running.raft.shutdown().await {
        tracing::warn!(%error, "the consensus did not stop in order");
    }
    let lock = running.lock.clone();
    drop(running);
    let closed = async {
        while lock.strong_count() > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    if tokio::time::timeout(PAUSE, closed).await.is_err() {
        tracing::warn!("the files of the store are not closed yet");
    }
}

/// Publishes the status until the consensus stops, and says why it did.
async fn watch_over(running: &Arc<Running>, shared: &Shared) -> String {
    let mut servers = running.raft.server_metrics();
    let all = running.raft.metrics();
    loop {
        publish(running, shared);
        tokio::select! {
            changed = servers.changed() => if changed.is_err() {
                return stopped(&all.borrow_watched().running_state);
            },
        }
    }
}

fn stopped(state: &Result<(), openraft::errors::Fatal<Types>>) -> String {
    match state {
        Ok(()) => "the consensus stopped".to_owned(),
        Err(fatal) => fatal.to_string(),
    }
}

fn publish(running: &Running, shared: &Shared) {
    let metrics = running.raft.server_metrics().borrow_watched().clone();
    let membership = metrics.membership_config.membership();
    let voters: std::collections::BTreeSet<u64> = membership.voter_ids().collect();
    let member = |(raft_id, peer): (&u64, &Peer)| Member {
        raft_id: *raft_id,
        node: peer.node.clone(),
        address: peer.address.clone(),
        voter: voters.contains(raft_id),
    };
    let leader = metrics.current_leader.and_then(|leader| membership.get_node(&leader)).map(|peer| peer.node.clone());
    let role = match metrics.state {
        ServerState::Leader => Role::Leader,
        ServerState::Candidate => Role::Candidate,
        ServerState::Follower => Role::Follower,
        ServerState::Learner | ServerState::Shutdown => Role::Learner,
    };
    let status = Status {
        role,
        leader,
        members: membership.nodes().map(member).collect(),
        ready: shared.status.borrow().ready,
        errors: Vec::new(),
    };
    shared.status.send_if_modified(|before| {
        let differs = **before != status;
        if differs {
            *before = Arc::new(status);
        }
        differs
    });
}

/// The files of a store.
pub(super) struct Files {
    pub(super) directory: PathBuf,
    pub(super) log: PathBuf,
    pub(super) snapshots: PathBuf,
    pub(super) database: PathBuf,
    pub(super) member: PathBuf,
}

impl Files {
    pub(super) fn of(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            log: directory.join("log"),
            snapshots: directory.join("snapshots"),
            database: directory.join("database.sqlite"),
            member: directory.join("member"),
        }
    }

    /// Makes the directories, and takes the store for this process until the lock is dropped.
    pub(super) fn take(&self) -> Result<Arc<File>, OpenError> {
        for directory in [&self.directory, &self.log, &self.snapshots] {
            file::create_directory(directory, 0o700).map_err(|error| OpenError::File {
                action: "make",
                path: error.path,
                source: error.source,
            })?;
        }
        let path = self.directory.join("lock");
        let failed = |source| OpenError::File { action: "lock", path: path.clone(), source };
        let lock =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Arc::new(lock)),
            Err(fs::TryLockError::WouldBlock) => Err(OpenError::InUse(self.directory.clone())),
            Err(fs::TryLockError::Error(source)) => Err(failed(source)),
        }
    }

    /// The number of this member; made with the store.
    pub(super) fn member(&self) -> Result<u64, OpenError> {
        let failed = |source| OpenError::File { action: "read or make", path: self.member.clone(), source };
        let of_file = |error: file::FileError| failed(error.source);
        if let Some(text) = file::read_if_present(&self.member).map_err(of_file)? {
            let invalid =
                |_error| failed(io::Error::new(io::ErrorKind::InvalidData, "it does not hold a member's number"));
            return u64::from_str_radix(text.trim(), 16).map_err(invalid);
        }
        if self.database.exists() {
            return Err(failed(io::Error::new(io::ErrorKind::NotFound, "there is a database and no member's number")));
        }
        let mut bytes = [0; 8];
        aws_lc_rs::rand::fill(&mut bytes).map_err(|_unspecified| failed(io::Error::other("there is no randomness")))?;
        // SQLite's numbers have a sign.
        let member = (u64::from_le_bytes(bytes) >> 1).max(1);
        file::write_atomic(&self.member, format!("{member:016x}\n").as_bytes(), 0o600).map_err(of_file)?;
        Ok(member)
    }
}

/// What is read from disk before the consensus starts.
struct Opened {
    lock: Weak<File>,
    member: u64,
    applied: u64,
    log: Log,
    state: State,
    readers: Readers,
}

async fn open(inputs: &Inputs, shared: &Arc<Shared>) -> Result<Running, OpenError> {
    let files = Files::of(&inputs.directory);
    let database_path = files.database.clone();
    let watched = Arc::clone(shared);
    let notify: Notify = Arc::new(move |index, tables| {
        watched.applied.send_replace(index);
        watched.watchers.tell(index, tables);
    });
    let opened = tokio::task::spawn_blocking(move || open_files(&files, notify)).await;
    let opened = opened.map_err(|error| OpenError::Raft(error.to_string()))??;
    // A leader that comes back leads on without a new entry.
    shared.applied.send_replace(opened.applied);
    let raft_failed = |error: &dyn std::fmt::Display| OpenError::Raft(error.to_string());
    let config = raft_config(&inputs.config).map_err(|error| raft_failed(&error))?;
    let raft = Raft::new(opened.member, Arc::new(config), Network, opened.log.clone(), opened.state.clone()).await;
    let raft = raft.map_err(|error| raft_failed(&error))?;
    if inputs.formation == Formation::Alone && !raft.is_initialized().await.map_err(|error| raft_failed(&error))? {
        let myself = Peer { node: inputs.node.clone(), address: String::new() };
        let members = std::collections::BTreeMap::from([(opened.member, myself)]);
        raft.initialize(members).await.map_err(|error| raft_failed(&error))?;
    }
    Ok(Running {
        raft_id: opened.member,
        raft,
        readers: opened.readers,
        state: opened.state,
        log: opened.log,
        database: database_path,
        lock: opened.lock,
        barrier: OnceLock::new(),
    })
}

/// Opens everything on disk and makes sure that it fits together. Blocks.
fn open_files(files: &Files, notify: Notify) -> Result<Opened, OpenError> {
    let lock = files.take()?;
    let held = Arc::downgrade(&lock);
    let member = files.member()?;
    let log = Log::open(&files.log, Arc::clone(&lock))?;
    let snapshots = Snapshots::open(&files.snapshots).map_err(|source| OpenError::File {
        action: "read the snapshots in",
        path: files.snapshots.clone(),
        source,
    })?;
    let (database, position) = Database::open(&files.database, notify, lock)?;
    let purged = log.purged().map_or(0, |id| id.index);
    let applied = position.applied.map_or(0, |id| id.index);
    if purged > applied {
        let newest = snapshots.newest().filter(|snapshot| snapshot.meta.last_log_id.map_or(0, |id| id.index) >= purged);
        let gap = OpenError::Gap { path: files.database.clone(), purged, applied };
        let snapshot = newest.ok_or(gap)?;
        database.install_blocking(snapshot.snapshot.0).map_err(|source| OpenError::File {
            action: "fill from a snapshot",
            path: files.database.clone(),
            source,
        })?;
    }
    let readers = Readers::start(&files.database)?;
    let position = position_of(&files.database);
    let failed = |source| OpenError::Database { path: files.database.clone(), source };
    let applied = position.map_err(failed)?.applied.map_or(0, |id| id.index);
    Ok(Opened { lock: held, applied, member, log, state: State { database, snapshots }, readers })
}

fn raft_config(config: &config::Config) -> Result<openraft::Config, openraft::ConfigError> {
    let heartbeat = config.heartbeat_ms;
    openraft::Config {
        cluster_name: "weft".to_owned(),
        heartbeat_interval: heartbeat,
        election_timeout_min: heartbeat * 5,
        election_timeout_max: heartbeat * 10,
        enable_pre_vote: Some(true),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(config.snapshot_entries),
        max_in_snapshot_log_to_keep: config.snapshot_entries / 10,
        replication_lag_threshold: config.snapshot_entries * 2,
        install_snapshot_timeout: 60_000,
        ..openraft::Config::default()
    }
    .validate()
}
