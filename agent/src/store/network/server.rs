//! Serves the connections of other members.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use openraft::storage::Snapshot;
use openraft::type_config::alias::SnapshotMetaOf;
use tokio::io::{AsyncWriteExt as _, BufReader, BufWriter};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use super::frame::{self, Frame, Kind};
use super::transport::{Secure, Stream};
use super::wire::{self, Change, Changed, Hello, Offer, Proposed};
use crate::foundation::id::NodeId;
use crate::foundation::task::{self, Group, Task};
use crate::store::core::Running;
use crate::store::database::position_of;
use crate::store::error::StoreError;
use crate::store::raft::{Config, Payload};
use crate::store::snapshot::SnapshotFile;

/// Connections at a time: two from each of seven voters, and learners.
const CONNECTIONS: usize = 256;
/// Calls of one connection under way at a time.
const CALLS: usize = 1024;
/// How long the handshake and the first frame may take.
const HELLO_PATIENCE: Duration = Duration::from_secs(5);
/// After a failed accept, so that it does not spin.
const PAUSE: Duration = Duration::from_millis(100);

/// The running server; dropping it closes every connection.
#[derive(Debug)]
pub(in crate::store) struct Serving {
    _task: Task,
}

/// Binds the listener.
pub(in crate::store) async fn bind(listen: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(listen).await
}

/// Serves `listener` for the store that `running` gives; a store that is gone ends it.
pub(in crate::store) fn serve(listener: TcpListener, secure: Arc<dyn Secure>, running: Weak<Running>) -> Serving {
    let task = task::spawn("raft-listener", async move {
        let mut connections = Group::new("raft-connection");
        loop {
            let has_room = connections.len() < CONNECTIONS;
            let accepted = tokio::select! {
                () = connections.one_ended() => continue,
                accepted = listener.accept(), if has_room => accepted,
            };
            match accepted {
                Ok((stream, _address)) => {
                    let (secure, running) = (Arc::clone(&secure), running.clone());
                    connections.spawn(async move {
                        if let Err(error) = connection(stream, &*secure, running).await {
                            tracing::debug!(%error, "the connection of a member ended");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "failed to accept the connection of a member");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    });
    Serving { _task: task }
}

async fn connection(stream: TcpStream, secure: &dyn Secure, running: Weak<Running>) -> io::Result<()> {
    let late = |_elapsed| io::Error::new(io::ErrorKind::TimedOut, "no hello in time");
    stream.set_nodelay(true)?;
    let (node, hello, stream) = timeout(HELLO_PATIENCE, greet(stream, secure)).await.map_err(late)??;
    let caller = Arc::new(Caller { node, number: hello.from, meant: hello.to, running });
    let (read, write) = tokio::io::split(stream);
    let (answers, queue) = mpsc::channel(CALLS);
    let _writer = task::spawn("raft-answers", write_answers(write, queue));
    let mut read = BufReader::with_capacity(64 * 1024, read);
    let slots = Arc::new(Semaphore::new(CALLS));
    let mut calls = Group::new("raft-call");
    while let Some(frame) = frame::read(&mut read).await? {
        // The semaphore is never closed.
        let slot = Arc::clone(&slots).acquire_owned().await.map_err(io::Error::other)?;
        let (caller, answers) = (Arc::clone(&caller), answers.clone());
        calls.spawn_bare(async move {
            let Frame { call, kind, body } = frame;
            let (kind, body) = match caller.answer(kind, body).await {
                Ok(body) => (Kind::Answer, body),
                Err(text) => (Kind::Refusal, text.into_bytes()),
            };
            // Without a writer the connection is over.
            answers.send((call, kind, body)).await.unwrap_or_default();
            drop(slot);
        });
        while calls.len() > CALLS / 2 {
            calls.one_ended().await;
        }
    }
    Ok(())
}

async fn greet(stream: TcpStream, secure: &dyn Secure) -> io::Result<(NodeId, Hello, Box<dyn Stream>)> {
    let (node, mut stream) = secure.accept(stream).await?;
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "a member does not begin with a hello");
    let frame = frame::read(&mut stream).await?.filter(|frame| frame.kind == Kind::Hello).ok_or_else(malformed)?;
    let hello = serde_json::from_slice(&frame.body).map_err(|_error| malformed())?;
    Ok((node, hello, stream))
}

type Answer = (u64, Kind, Vec<u8>);

async fn write_answers(write: impl tokio::io::AsyncWrite + Unpin, mut queue: mpsc::Receiver<Answer>) {
    let mut write = BufWriter::with_capacity(64 * 1024, write);
    let mut next = None;
    loop {
        let Some((call, kind, body)) = (match next.take() {
            Some(answer) => Some(answer),
            None => queue.recv().await,
        }) else {
            return;
        };
        let written = async {
            write.write_all(&frame::header(call, kind, body.len())).await?;
            write.write_all(&body).await
        };
        if written.await.is_err() {
            return;
        }
        next = queue.try_recv().ok();
        if next.is_none() && write.flush().await.is_err() {
            return;
        }
    }
}

/// The member at the other end.
struct Caller {
    /// By its certificate.
    node: NodeId,
    /// By its word, checked against the membership.
    number: u64,
    /// Whom it means to call.
    meant: u64,
    running: Weak<Running>,
}

impl Caller {
    /// Whether it may call here at all.
    fn admitted(&self, running: &Running) -> Result<(), String> {
        if self.meant != running.raft_id {
            return Err(format!(
                "this is member {:016x}, not {:016x}: its store was made anew",
                running.raft_id, self.meant
            ));
        }
        if running.removed.load().contains(&self.number) {
            return Err(format!("member {:016x} was removed from the store", self.number));
        }
        match running.peer(self.number) {
            Some(peer) if peer.node != self.node => {
                Err(format!("member {:016x} is {}, and the certificate is for {}", self.number, peer.node, self.node))
            }
            // One that this member has not heard of yet may be its leader.
            Some(_) | None => Ok(()),
        }
    }

    /// Whether it is a member now, as far as this one knows.
    fn is_member(&self, running: &Running) -> Result<(), String> {
        let known = running.peer(self.number).is_some();
        known.then_some(()).ok_or_else(|| format!("member {:016x} is not in the store's membership", self.number))
    }

    async fn answer(&self, kind: Kind, body: bytes::Bytes) -> Result<Vec<u8>, String> {
        let running = self.running.upgrade().ok_or("the store is being closed")?;
        self.admitted(&running)?;
        let malformed = |error: serde_json::Error| format!("malformed message: {error}");
        match kind {
            Kind::Append => {
                let request = wire::append_request(body).map_err(|error| error.to_string())?;
                let response = running.raft.append_entries(request).await.map_err(|error| error.to_string())?;
                Ok(wire::append_response(&response))
            }
            Kind::Vote => {
                let request = serde_json::from_slice(&body).map_err(malformed)?;
                json(&running.raft.vote(request).await.map_err(|error| error.to_string())?)
            }
            Kind::PreVote => {
                let request = serde_json::from_slice(&body).map_err(malformed)?;
                json(&running.raft.pre_vote(request).await.map_err(|error| error.to_string())?)
            }
            Kind::Transfer => {
                let request = serde_json::from_slice(&body).map_err(malformed)?;
                json(&running.raft.handle_transfer_leader(request).await.map_err(|error| error.to_string())?)
            }
            Kind::SnapshotOffer => {
                let offer = serde_json::from_slice(&body).map_err(malformed)?;
                on_disk(move || offered(&running, &offer)).await
            }
            Kind::SnapshotPiece => on_disk(move || piece(&running, &body).map(|()| Vec::new())).await,
            Kind::SnapshotInstall => install(&running, serde_json::from_slice(&body).map_err(malformed)?).await,
            Kind::Propose => {
                self.is_member(&running)?;
                let proposed = Proposed::of(running.propose_here(Payload(body)).await);
                json(&proposed)
            }
            Kind::ReadIndex => {
                self.is_member(&running)?;
                running.leads().then_some(()).ok_or("this member does not lead")?;
                let index = running.barrier().index();
                drop(running);
                let index = index.await.map_err(|error: StoreError| error.to_string())?;
                Ok(index.to_le_bytes().to_vec())
            }
            Kind::Change => {
                self.is_member(&running)?;
                let change: Change = serde_json::from_slice(&body).map_err(malformed)?;
                let changed: Changed = running.change_here(change).await.map_err(|error| error.to_string());
                json(&changed)
            }
            Kind::Hello | Kind::Answer | Kind::Refusal => Err("this is no call".to_owned()),
        }
    }
}

async fn on_disk(work: impl FnOnce() -> Result<Vec<u8>, String> + Send + 'static) -> Result<Vec<u8>, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())?
}

fn json<T: serde::Serialize>(value: &T) -> Result<Vec<u8>, String> {
    serde_json::to_vec(value).map_err(|error| error.to_string())
}

/// Where the collected part of a snapshot lies, and what it is part of.
fn parts(running: &Running) -> (std::path::PathBuf, std::path::PathBuf) {
    (running.state.snapshots.unfinished("received"), running.state.snapshots.unfinished("offer"))
}

/// How much of the offered snapshot is here already.
fn offered(running: &Running, offer: &Offer) -> Result<Vec<u8>, String> {
    let (part, name) = parts(running);
    let wanted = json(&(offer.meta.last_log_id, offer.length))?;
    let failed = |error: io::Error| format!("failed to keep the snapshot: {error}");
    let same = std::fs::read(&name).is_ok_and(|found| found == wanted);
    let have = match std::fs::metadata(&part) {
        Ok(found) if same => found.len().min(offer.length),
        _ => {
            std::fs::write(&name, &wanted).map_err(failed)?;
            std::fs::File::create(&part).map_err(failed)?;
            0
        }
    };
    Ok(have.to_le_bytes().to_vec())
}

/// Appends a piece where the part ends; one that does not fit there is refused.
fn piece(running: &Running, body: &bytes::Bytes) -> Result<(), String> {
    use std::os::unix::fs::FileExt as _;
    let (part, _) = parts(running);
    let failed = |error: io::Error| format!("failed to keep the snapshot: {error}");
    let header = body.get(..wire::PIECE_HEADER_BYTES).ok_or("malformed piece")?;
    let at = header.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    let file = std::fs::OpenOptions::new().write(true).open(part).map_err(failed)?;
    if file.metadata().map_err(failed)?.len() != at {
        return Err("a piece of a snapshot does not follow the one before it".to_owned());
    }
    file.write_all_at(&body[wire::PIECE_HEADER_BYTES..], at).map_err(failed)
}

/// Makes the whole part durable and has it installed.
async fn install(running: &Arc<Running>, offer: Offer) -> Result<Vec<u8>, String> {
    let (part, name) = parts(running);
    let failed = |error: io::Error| format!("failed to keep the snapshot: {error}");
    let file = std::fs::File::open(&part).map_err(failed)?;
    if file.metadata().map_err(failed)?.len() != offer.length {
        return Err("the snapshot has not arrived whole".to_owned());
    }
    let whole = running.state.snapshots.unfinished("whole");
    let checked = tokio::task::spawn_blocking(move || {
        file.sync_all()?;
        std::fs::remove_file(&name)?;
        std::fs::rename(&part, &whole)?;
        check(&whole, &offer.meta)?;
        Ok((whole, offer))
    });
    let (whole, offer) = checked.await.map_err(|error| error.to_string())?.map_err(failed)?;
    let snapshot = Snapshot { meta: offer.meta, snapshot: SnapshotFile(whole) };
    json(&running.raft.install_full_snapshot(offer.vote, snapshot).await.map_err(|error| error.to_string())?)
}

/// What arrived is a database that says what it was announced as.
fn check(path: &std::path::Path, meta: &SnapshotMetaOf<Config>) -> io::Result<()> {
    let position = position_of(path).map_err(io::Error::other)?;
    if position.applied == meta.last_log_id && position.membership == meta.last_membership {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "a snapshot does not hold what it was announced as"))
}
