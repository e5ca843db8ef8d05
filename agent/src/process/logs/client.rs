//! The agent's end of the log keeper: finds the one that runs, starts one where none does, tells it what to read.
//!
//! In: FIFOs to read and to leave, requests to write what is there. Out: a keeper that knows. The set of FIFOs is kept here and
//! told again to every new keeper, so the death of either side loses nothing: what is written waits in the FIFOs.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::{info, warn};

use super::keeper;
use super::protocol::{Command, Reply, Target, VERSION};
use crate::foundation::task::{self, Task};

/// A keeper starts in a few milliseconds; this is for a machine in trouble.
const START_DEADLINE: Duration = Duration::from_secs(10);
/// The first pause between two looks for it; each is twice the one before, up to [`LONGEST_POLL`].
const START_POLL: Duration = Duration::from_millis(5);
const LONGEST_POLL: Duration = Duration::from_millis(200);
/// How long after a failure another keeper is tried.
const RETRY: Duration = Duration::from_secs(1);
/// How long a reader waits for what is in the FIFOs to be written.
const SYNC_DEADLINE: Duration = Duration::from_secs(2);
/// A burst of starts fills this; the sender then waits.
const REQUESTS: usize = 256;

/// Starts the keeper's program unless the one it started last still runs; returns when it was started.
pub type Launcher = Arc<dyn Fn() -> io::Result<()> + Send + Sync>;

/// Tells the keeper; cheap to clone.
#[derive(Debug, Clone)]
pub struct LogKeeper {
    requests: mpsc::Sender<Request>,
}

#[derive(Debug)]
enum Request {
    Open(Target),
    Close(PathBuf),
    Sync(oneshot::Sender<()>),
    Quit(oneshot::Sender<()>),
}

impl LogKeeper {
    /// A client for the keeper of `run_dir`, which `launcher` starts when it is first needed.
    pub fn start(run_dir: &Path, launcher: Launcher) -> (Self, Task) {
        let (requests, received) = mpsc::channel(REQUESTS);
        let socket = keeper::socket_path(run_dir);
        let client =
            Client { socket, launcher, targets: BTreeMap::new(), connection: None, retry_at: None, next_sync: 0 };
        (Self { requests }, task::spawn("log-keeper", client.run(received)))
    }

    /// Has a FIFO read from now on.
    pub async fn open(&self, target: Target) {
        // The task ends with the agent only.
        self.requests.send(Request::Open(target)).await.ok();
    }

    /// Has what is left in a FIFO read, then leaves it.
    pub async fn close(&self, fifo: PathBuf) {
        self.requests.send(Request::Close(fifo)).await.ok();
    }

    /// Waits until everything that was written by now is in the files, at most two seconds.
    pub async fn sync(&self) {
        self.wait(Request::Sync).await;
    }

    /// Ends the keeper after it has written everything.
    pub async fn quit(&self) {
        self.wait(Request::Quit).await;
    }

    async fn wait(&self, request: fn(oneshot::Sender<()>) -> Request) {
        let (reply, done) = oneshot::channel();
        if self.requests.send(request(reply)).await.is_ok() {
            // A keeper that is in trouble holds no reader up; the files are as they are.
            tokio::time::timeout(SYNC_DEADLINE, done).await.ok();
        }
    }
}

struct Client {
    socket: PathBuf,
    launcher: Launcher,
    targets: BTreeMap<PathBuf, Target>,
    connection: Option<Connection>,
    /// There is no keeper although there is something to read.
    retry_at: Option<Instant>,
    next_sync: u64,
}

struct Connection {
    commands: OwnedWriteHalf,
    replies: Lines<BufReader<OwnedReadHalf>>,
}

impl Client {
    async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        loop {
            let request = tokio::select! {
                request = requests.recv() => match request {
                    Some(request) => Some(request),
                    None => return,
                },
                () = lost(&mut self.connection) => None,
                () = until(self.retry_at) => None,
            };
            match request {
                Some(request) => self.carry_out(request).await,
                None => self.replace().await,
            }
        }
    }

    async fn replace(&mut self) {
        let has_ended = self.connection.take().is_some();
        self.retry_at = None;
        if !self.targets.is_empty() {
            if has_ended {
                warn!("the log keeper ended; another is started");
            }
            self.connect().await;
        }
    }

    async fn carry_out(&mut self, request: Request) {
        match request {
            Request::Open(target) => {
                if self.targets.get(&target.fifo) == Some(&target) && self.connection.is_some() {
                    return;
                }
                self.targets.insert(target.fifo.clone(), target.clone());
                if self.connection.is_some() {
                    self.send(&Command::Open(target)).await;
                } else {
                    self.connect().await;
                }
            }
            Request::Close(fifo) => {
                self.targets.remove(&fifo);
                self.send(&Command::Close { fifo }).await;
            }
            Request::Sync(reply) => {
                self.sync().await;
                reply.send(()).ok();
            }
            Request::Quit(reply) => {
                self.targets.clear();
                self.quit().await;
                reply.send(()).ok();
            }
        }
    }

    async fn sync(&mut self) {
        self.next_sync += 1;
        let id = self.next_sync;
        self.send(&Command::Sync { id }).await;
        self.wait_for(|reply| *reply == Reply::Synced { id }).await;
    }

    async fn quit(&mut self) {
        if self.connection.is_none() {
            self.connection = open(&self.socket).await.ok();
        }
        self.send(&Command::Quit).await;
        // It says nothing more and closes.
        self.wait_for(|_reply| false).await;
        self.connection = None;
    }

    /// Sends; a connection that fails is found lost by the loop.
    async fn send(&mut self, command: &Command) {
        let Some(connection) = &mut self.connection else { return };
        if let Err(error) = write(connection, command).await {
            warn!(%error, "failed to tell the log keeper");
        }
    }

    async fn wait_for(&mut self, wanted: impl Fn(&Reply) -> bool) {
        let Some(connection) = &mut self.connection else { return };
        let answer = async {
            while let Ok(Some(line)) = connection.replies.next_line().await {
                match serde_json::from_str(&line) {
                    Ok(Reply::Failed { why }) => warn!(why, "the log keeper refused"),
                    Ok(reply) if wanted(&reply) => return,
                    Ok(_) | Err(_) => {}
                }
            }
        };
        tokio::time::timeout(SYNC_DEADLINE, answer).await.ok();
    }

    /// Connects to the keeper that runs, else to one it starts, and tells it every FIFO. What fails is tried again.
    async fn connect(&mut self) {
        self.connection = self.connected().await;
        self.retry_at = self.connection.is_none().then(|| Instant::now() + RETRY);
    }

    async fn connected(&self) -> Option<Connection> {
        let connected = tokio::time::timeout(START_DEADLINE, self.find_or_start()).await;
        let mut connection = match connected {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                warn!(%error, "no log keeper; what processes write waits until there is one");
                return None;
            }
            Err(_elapsed) => {
                warn!("the log keeper does not answer; what processes write waits");
                return None;
            }
        };
        for target in self.targets.values() {
            if let Err(error) = write(&mut connection, &Command::Open(target.clone())).await {
                warn!(%error, "failed to tell the log keeper");
                return None;
            }
        }
        Some(connection)
    }

    async fn find_or_start(&self) -> io::Result<Connection> {
        // One that dies right now may still accept and never answer: it is as good as gone.
        if let Ok(connection) = open(&self.socket).await
            && let Ok((mut found, version)) = hello(connection).await
        {
            if version == VERSION {
                return Ok(found);
            }
            info!(version, "replacing a log keeper of another version");
            write(&mut found, &Command::Quit).await?;
            while found.replies.next_line().await?.is_some() {}
        }
        let mut pause = START_POLL;
        loop {
            // Again and again: a new one ends at once while the old one, in dying, still holds the lock.
            let launcher = Arc::clone(&self.launcher);
            tokio::task::spawn_blocking(move || launcher()).await.map_err(io::Error::other)??;
            tokio::time::sleep(pause).await;
            if let Ok(connection) = open(&self.socket).await
                && let Ok((connection, _version)) = hello(connection).await
            {
                return Ok(connection);
            }
            pause = (2 * pause).min(LONGEST_POLL);
        }
    }
}

/// Waits until then; for ever if there is no such time.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Waits until the connection is closed; for ever while there is none. Replies nobody waits for are dropped.
async fn lost(connection: &mut Option<Connection>) {
    let Some(connection) = connection else { return std::future::pending().await };
    while let Ok(Some(line)) = connection.replies.next_line().await {
        if let Ok(Reply::Failed { why }) = serde_json::from_str(&line) {
            warn!(why, "the log keeper refused");
        }
    }
}

async fn open(socket: &Path) -> io::Result<Connection> {
    let (replies, commands) = UnixStream::connect(socket).await?.into_split();
    Ok(Connection { commands, replies: BufReader::new(replies).lines() })
}

async fn hello(mut connection: Connection) -> io::Result<(Connection, u32)> {
    write(&mut connection, &Command::Hello).await?;
    let line = connection.replies.next_line().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    match serde_json::from_str(&line)? {
        Reply::Hello { version, .. } => Ok((connection, version)),
        Reply::Synced { .. } | Reply::Failed { .. } => Err(io::Error::other(format!("it answered {line}"))),
    }
}

async fn write(connection: &mut Connection, command: &Command) -> io::Result<()> {
    let mut text = serde_json::to_vec(command)?;
    text.push(b'\n');
    connection.commands.write_all(&text).await
}
