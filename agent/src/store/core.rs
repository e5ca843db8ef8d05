//! The task that owns the store: opens it, watches over it, opens it again after a failure.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::{Raft, ServerState, SnapshotPolicy};

use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::barrier::Barrier;
use super::database::{Database, Notify, Readers, Removed, position_of};
use super::disk::{Disk, Syncs};
use super::error::{OpenError, StoreError};
use super::handle::{Figures, Handle, Shared, outcomes};
use super::log::Log;
use super::metrics::Metrics;
use super::network::transport::Network;
use super::network::{self, Change, Links, Serving};
use super::raft::{Config as Types, Payload, Peer, StoredMembership};
use super::snapshot::Snapshots;
use super::state::State;
use super::statement::Outcome;
use super::status::{Member, Role, Status};
use super::{Formation, Inputs, config, schema};
use crate::foundation::error::chain;
use crate::foundation::lifecycle::{Blocker, Stop};
use crate::foundation::metrics::Metrics as Registry;
use crate::foundation::task;
use crate::sys::file;

/// What a node that was removed says.
const LEFT_OUT: &str = "this node is not a member of the store any more: let it join again";
/// Before a store that failed is opened again.
const PAUSE: Duration = Duration::from_secs(3);

/// How soon a leader without room on its disk gives the lead away again.
const HAND_OVER_PAUSE: Duration = Duration::from_secs(30);

/// Orders come from people.
const ORDERS: usize = 4;

/// What the task is asked to do.
#[derive(Debug)]
pub(super) enum Order {
    /// Lay the store aside and open an empty one that begins so.
    StartOver(Formation, oneshot::Sender<Result<(), String>>),
}

/// Why this member did not propose something itself. Nothing was proposed.
#[derive(Debug)]
pub(super) enum Rejected {
    /// This member leads.
    Elsewhere(u64, Peer),
    /// Nobody is known to lead.
    Nowhere,
    /// It was, or it can nowhere be.
    Failed(StoreError),
}

/// An open store.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) raft_id: u64,
    pub(super) raft: Raft<Types, State>,
    pub(super) readers: Readers,
    pub(super) state: State,
    pub(super) log: Log,
    pub(super) links: Links,
    pub(super) removed: Removed,
    /// One change of the membership at a time.
    pub(super) changes: Semaphore,
    syncs: Syncs,
    serving: OnceLock<Serving>,
    /// What the others are told to connect to.
    advertised: String,
    is_fixed: bool,
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

    /// Whether the others should be told our address instead of `known`.
    fn is_better(&self, known: &str) -> bool {
        known != self.advertised && (self.is_fixed || known.is_empty()) && !self.advertised.is_empty()
    }

    /// Whether this member leads, as far as it knows.
    pub(super) fn leads(&self) -> bool {
        self.raft.server_metrics().borrow_watched().state == ServerState::Leader
    }

    /// Who leads, as far as this member knows.
    pub(super) fn leader(&self) -> Option<(u64, Peer)> {
        let leader = self.raft.server_metrics().borrow_watched().current_leader?;
        Some((leader, self.peer(leader)?))
    }

    /// The membership as this member knows it.
    pub(super) fn members(&self) -> Arc<StoredMembership> {
        Arc::clone(&self.raft.server_metrics().borrow_watched().membership_config)
    }

    /// Who `member` is.
    pub(super) fn peer(&self, member: u64) -> Option<Peer> {
        self.members().membership().get_node(&member).cloned()
    }

    /// Proposes `payload` if this member leads, and waits until it is carried out.
    pub(super) async fn propose(&self, payload: Payload) -> Result<Vec<Outcome>, Rejected> {
        if let Some(problem) = self.state.disk.problem().filter(|_| self.leads()) {
            // Rare, and large: apart from the way that every write takes.
            return Err(Box::pin(self.without_room(problem)).await);
        }
        match self.raft.client_write(payload).await {
            Ok(response) => outcomes(response.data.0).map_err(Rejected::Failed),
            // Nothing was proposed.
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                match (forward.leader_id, forward.leader_node) {
                    (Some(member), Some(leader)) if member != self.raft_id => Err(Rejected::Elsewhere(member, leader)),
                    _ => Err(Rejected::Nowhere),
                }
            }
            Err(RaftError::APIError(ClientWriteError::LogEntryDiscarded(_))) => {
                Err(Rejected::Failed(StoreError::Unknown))
            }
            Err(RaftError::APIError(error)) => Err(Rejected::Failed(StoreError::Failed(error.to_string()))),
            Err(RaftError::Fatal(fatal)) => Err(Rejected::Failed(StoreError::NotRunning(fatal.to_string()))),
        }
    }

    /// A leader that may not write: another one leads if it can, or the caller is told.
    async fn without_room(&self, problem: String) -> Rejected {
        let has_others = self.members().membership().voter_ids().any(|voter| voter != self.raft_id);
        if has_others && self.state.disk.may_hand_over(HAND_OVER_PAUSE) {
            tracing::warn!(%problem, "another member is asked to lead");
            match self.change_here(Change::Transfer(None)).await {
                Ok(()) => return Rejected::Nowhere,
                Err(error) => tracing::warn!(%error, "no other member leads"),
            }
        }
        Rejected::Failed(StoreError::DiskFull(problem))
    }

    /// The same for another member, which looks for the leader itself.
    pub(super) async fn propose_here(&self, payload: Payload) -> Result<Vec<Outcome>, StoreError> {
        self.propose(payload).await.map_err(|rejected| match rejected {
            Rejected::Elsewhere(..) | Rejected::Nowhere => StoreError::NoLeader("this member does not lead".to_owned()),
            Rejected::Failed(error) => error,
        })
    }

    pub(super) fn figures(&self) -> Figures {
        let data = self.raft.metrics().borrow_watched().clone();
        let index = |id: Option<super::raft::Id>| id.map_or(0, |id| id.index);
        let last_log = data.last_log_index.unwrap_or_default();
        // Whoever leads knows how far the others are, the others how far they are themselves.
        let least = match &data.replication {
            Some(members) => members.values().map(|matched| index(*matched)).min().unwrap_or(last_log),
            None => index(data.last_applied),
        };
        let (sync_median, sync_worst) = self.syncs.median_and_worst();
        let room = self.state.disk.room();
        Figures {
            term: data.current_term,
            last_log,
            behind: last_log.saturating_sub(least),
            sync_median,
            sync_worst,
            disk_free_bytes: room.free_bytes,
            disk_needed_bytes: room.needed_bytes,
            applied: index(data.last_applied),
            snapshot: index(data.snapshot),
            purged: index(data.purged),
            log_bytes: u64::try_from(self.log.bytes()).unwrap_or(u64::MAX),
            database_bytes: fs::metadata(&self.database).map_or(0, |found| found.len()),
        }
    }
}

pub(super) fn start(inputs: Inputs, registry: &Registry, blocker: Blocker, stop: Stop) -> Handle {
    let (orders, received) = mpsc::channel(ORDERS);
    let shared = Arc::new(Shared::new(inputs.config.log_format, Metrics::default(), orders));
    shared.metrics.register(registry, &shared);
    let task = task::spawn("store", keep_open(inputs, Arc::clone(&shared), received, Some(blocker), stop));
    Handle { shared, _task: Arc::new(task) }
}

async fn keep_open(
    inputs: Inputs,
    shared: Arc<Shared>,
    mut orders: mpsc::Receiver<Order>,
    mut blocker: Option<Blocker>,
    mut stop: Stop,
) {
    loop {
        let error = match open(&inputs, &shared).await {
            Err(error) => chain(&error),
            Ok(running) => {
                blocker = None;
                match keep_running(&inputs, running, &shared, &mut orders, &mut stop).await {
                    End::Stopped => return,
                    End::StartOver(formation, done) => {
                        let aside = lay_aside(&inputs.directory, formation).map_err(|error| chain(&error));
                        // Whoever asked may have gone.
                        done.send(aside).unwrap_or_default();
                        continue;
                    }
                    End::Failed(error) => error,
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

/// How an open store ended.
enum End {
    Stopped,
    Failed(String),
    StartOver(Formation, oneshot::Sender<Result<(), String>>),
}

async fn keep_running(
    inputs: &Inputs,
    (running, listener): (Running, Option<TcpListener>),
    shared: &Arc<Shared>,
    orders: &mut mpsc::Receiver<Order>,
    stop: &mut Stop,
) -> End {
    let running = Arc::new(running);
    if let (Some(network), Some(listener)) = (&inputs.network, listener) {
        let serving = network::serve(listener, Arc::clone(&network.secure), Arc::downgrade(&running));
        running.serving.set(serving).unwrap_or_default();
    }
    shared.running.store(Some(Arc::clone(&running)));
    let schemas = task::spawn("store-schema", schema::keep(Arc::clone(shared), inputs.schemas.clone()));
    let address = task::spawn("store-address", keep_address(Arc::clone(shared)));
    let end = tokio::select! {
        failed = watch_over(&running, shared) => End::Failed(failed),
        () = stop.requested() => End::Stopped,
        Some(Order::StartOver(formation, done)) = orders.recv() => End::StartOver(formation, done),
    };
    shared.running.store(None);
    // They hold the store while they work.
    drop((schemas, address));
    close(running).await;
    end
}

/// Moves the store of a node away, and notes in the next one whether it waits to be added.
fn lay_aside(directory: &Path, formation: Formation) -> Result<(), OpenError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::File { action, path, source }
    };
    let moment = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    let kept = directory.with_file_name(format!("{name}.left-{moment}"));
    fs::rename(directory, &kept).map_err(failed("move away", directory))?;
    if formation == Formation::Alone {
        return Ok(());
    }
    let files = Files::of(directory);
    let lock = files.take()?;
    file::write_atomic(&files.joining, b"", 0o600).map_err(|error| failed("write", &files.joining)(error.source))?;
    drop(lock);
    Ok(())
}

/// Tells the others where this member is, whenever the membership says otherwise.
async fn keep_address(shared: Arc<Shared>) {
    let mut status = shared.status.subscribe();
    loop {
        let Ok(running) = shared.running() else { return };
        let stale = running.peer(running.raft_id).is_some_and(|peer| running.is_better(&peer.address));
        if stale && status.borrow_and_update().leader.is_some() {
            let change = Change::Address { member: running.raft_id, address: running.advertised.clone() };
            if let Err(error) = shared.change(change).await {
                tracing::warn!(%error, "the other members do not know this node's address yet");
            }
        }
        drop(running);
        tokio::select! {
            _ = status.changed() => {}
            () = tokio::time::sleep(PAUSE), if stale => {}
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
    running.links.keep(|member| membership.get_node(&member).is_some());
    // Who leads nobody has neither heartbeats to send nor an election to watch for: an idle node sleeps.
    let leads_nobody =
        metrics.state == ServerState::Leader && membership.nodes().map(|(member, _)| *member).eq([running.raft_id]);
    running.raft.runtime_config().tick(!leads_nobody);
    let left_out = membership.nodes().next().is_some() && membership.get_node(&running.raft_id).is_none();
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
        errors: left_out.then(|| LEFT_OUT.to_owned()).into_iter().collect(),
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
    /// Is there: the store waits to be added and never makes a cluster of its own.
    pub(super) joining: PathBuf,
}

impl Files {
    pub(super) fn of(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            log: directory.join("log"),
            snapshots: directory.join("snapshots"),
            database: directory.join("database.sqlite"),
            member: directory.join("member"),
            joining: directory.join("joining"),
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

async fn open(inputs: &Inputs, shared: &Arc<Shared>) -> Result<(Running, Option<TcpListener>), OpenError> {
    let files = Files::of(&inputs.directory);
    let (database_path, joining) = (files.database.clone(), files.joining.clone());
    let watched = Arc::clone(shared);
    let notify: Notify = Arc::new(move |index, tables| {
        watched.applied.send_replace(index);
        watched.watchers.tell(index, tables);
    });
    let removed = Removed::default();
    let shared_removed = Arc::clone(&removed);
    let syncs = shared.metrics.syncs.clone();
    let of_log = syncs.clone();
    let opened = tokio::task::spawn_blocking(move || open_files(&files, notify, shared_removed, of_log)).await;
    let opened = opened.map_err(|error| OpenError::Raft(error.to_string()))??;
    shared.applied.send_replace(opened.applied);
    let (listener, advertised) = listen(inputs.network.as_ref()).await?;
    let raft_failed = |error: &dyn std::fmt::Display| OpenError::Raft(error.to_string());
    let config = raft_config(&inputs.config).map_err(|error| raft_failed(&error))?;
    let secure = inputs.network.as_ref().map(|network| Arc::clone(&network.secure));
    let links = Links::new(opened.member, secure);
    let raft =
        Raft::new(opened.member, Arc::new(config), links.clone(), opened.log.clone(), opened.state.clone()).await;
    let raft = raft.map_err(|error| raft_failed(&error))?;
    if inputs.formation == Formation::Join {
        // A later start is told that it may begin alone, and this store is not to.
        let failed =
            |error: file::FileError| OpenError::File { action: "write", path: error.path, source: error.source };
        file::write_atomic(&joining, b"", 0o600).map_err(failed)?;
    }
    let alone = inputs.formation == Formation::Alone && !joining.exists();
    if alone && !raft.is_initialized().await.map_err(|error| raft_failed(&error))? {
        let myself = Peer { node: inputs.node.clone(), address: advertised.clone() };
        let members = std::collections::BTreeMap::from([(opened.member, myself)]);
        raft.initialize(members).await.map_err(|error| raft_failed(&error))?;
    } else if votes_alone(&raft, opened.member) {
        // Nobody else can win, so there is nothing to wait for.
        raft.trigger().elect(false).await.map_err(|error| raft_failed(&error))?;
    }
    let running = Running {
        raft_id: opened.member,
        raft,
        readers: opened.readers,
        state: opened.state,
        log: opened.log,
        links,
        removed,
        changes: Semaphore::new(1),
        syncs,
        serving: OnceLock::new(),
        advertised,
        is_fixed: inputs.network.as_ref().is_some_and(|network| network.is_fixed),
        database: database_path,
        lock: opened.lock,
        barrier: OnceLock::new(),
    };
    Ok((running, listener))
}

fn votes_alone(raft: &Raft<Types, State>, member: u64) -> bool {
    raft.server_metrics().borrow_watched().membership_config.voter_ids().eq([member])
}

/// The listener for other members, and the address they are told.
async fn listen(network: Option<&Network>) -> Result<(Option<TcpListener>, String), OpenError> {
    let Some(network) = network else { return Ok((None, String::new())) };
    let failed = |source| OpenError::Listen { address: network.listen, source };
    let listener = network::bind(network.listen).await.map_err(failed)?;
    let port = listener.local_addr().map_err(failed)?.port();
    let advertised = match network.advertise.strip_suffix(":0") {
        Some(host) => format!("{host}:{port}"),
        None => network.advertise.clone(),
    };
    Ok((Some(listener), advertised))
}

/// Opens everything on disk and makes sure that it fits together. Blocks.
fn open_files(files: &Files, notify: Notify, removed: Removed, syncs: Syncs) -> Result<Opened, OpenError> {
    let lock = files.take()?;
    let held = Arc::downgrade(&lock);
    let member = files.member()?;
    let log = Log::open(&files.log, Arc::clone(&lock), syncs)?;
    let snapshots = Snapshots::open(&files.snapshots).map_err(|source| OpenError::File {
        action: "read the snapshots in",
        path: files.snapshots.clone(),
        source,
    })?;
    let (database, position) = Database::open(&files.database, notify, removed, Arc::clone(&lock))?;
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
    let readers = Readers::start(&files.database, &lock)?;
    let position = position_of(&files.database);
    let failed = |source| OpenError::Database { path: files.database.clone(), source };
    let applied = position.map_err(failed)?.applied.map_or(0, |id| id.index);
    let disk = Disk::of(files.directory.clone(), files.database.clone());
    Ok(Opened { lock: held, applied, member, log, state: State { database, snapshots, disk }, readers })
}

fn raft_config(config: &config::Config) -> Result<openraft::Config, openraft::ConfigError> {
    let heartbeat = config.heartbeat_ms;
    openraft::Config {
        cluster_name: "weft".to_owned(),
        heartbeat_interval: heartbeat,
        election_timeout_min: heartbeat * 5,
        election_timeout_max: heartbeat * 10,
        enable_pre_vote: Some(true),
        // Entries go to the others while they are written here: who led and was killed may lack what they have, and would
        // give the numbers of those entries to others in the same term.
        enable_leader_restore: Some(false),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(config.snapshot_entries),
        max_in_snapshot_log_to_keep: config.snapshot_entries / 10,
        replication_lag_threshold: config.snapshot_entries * 2,
        install_snapshot_timeout: 60_000,
        ..openraft::Config::default()
    }
    .validate()
}
