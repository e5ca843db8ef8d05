//! A cluster in one process: real files, real sockets on loopback, and connections that a test can cut.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;

use crate::foundation::id::NodeId;
use crate::foundation::lifecycle::{Readiness, Shutdown};
use crate::foundation::metrics::Metrics;
use crate::store::transport::{Network, Secure, Stream};
use crate::store::{Formation, Handle, Inputs, Member, Role, Schema, Statement, StoreError, config, start};

pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// Which calls do not get through: from whom to whom.
#[derive(Debug, Default)]
pub(super) struct Faults(Mutex<BTreeSet<(usize, usize)>>);

impl Faults {
    pub(super) fn cut(&self, from: usize, to: usize) {
        self.0.lock().expect("no panic").insert((from, to));
    }

    pub(super) fn heal(&self) {
        self.0.lock().expect("no panic").clear();
    }

    fn blocks(&self, from: usize, to: usize) -> bool {
        self.0.lock().expect("no panic").contains(&(from, to))
    }
}

/// Loopback without certificates: a peer is who it says it is. For tests alone.
#[derive(Debug, Clone)]
struct Loopback {
    myself: usize,
    faults: Arc<Faults>,
}

pub(super) fn name(place: usize) -> NodeId {
    format!("node-{place}").parse().expect("a name")
}

fn place(node: &NodeId) -> usize {
    node.as_str().trim_start_matches("node-").parse().expect("a node of the test")
}

fn refused() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "cut by the test")
}

impl Secure for Loopback {
    fn connect(&self, node: &NodeId, mut stream: TcpStream) -> BoxFuture<'static, io::Result<Box<dyn Stream>>> {
        let (myself, to, faults) = (self.myself, place(node), Arc::clone(&self.faults));
        Box::pin(async move {
            if faults.blocks(myself, to) {
                return Err(refused());
            }
            stream.write_u8(u8::try_from(myself).expect("few nodes")).await?;
            Ok(Box::new(Cut { stream, from: myself, to, faults }) as Box<dyn Stream>)
        })
    }

    fn accept(&self, mut stream: TcpStream) -> BoxFuture<'static, io::Result<(NodeId, Box<dyn Stream>)>> {
        Box::pin(async move {
            let from = usize::from(stream.read_u8().await?);
            Ok((name(from), Box::new(stream) as Box<dyn Stream>))
        })
    }
}

/// The calling end of a connection; it breaks when the test cuts it.
struct Cut {
    stream: TcpStream,
    from: usize,
    to: usize,
    faults: Arc<Faults>,
}

impl Cut {
    fn check(&self) -> io::Result<()> {
        if self.faults.blocks(self.from, self.to) { Err(refused()) } else { Ok(()) }
    }
}

impl AsyncRead for Cut {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Cut {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// One member with its files; it may be stopped and started again.
pub(super) struct Node {
    place: usize,
    listen: SocketAddr,
    directory: PathBuf,
    formation: Formation,
    faults: Arc<Faults>,
    running: Option<(Handle, Shutdown)>,
}

impl Node {
    pub(super) fn handle(&self) -> &Handle {
        &self.running.as_ref().expect("it runs").0
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    pub(super) fn start(&mut self) {
        let shutdown = Shutdown::default();
        let secure = Arc::new(Loopback { myself: self.place, faults: Arc::clone(&self.faults) });
        let inputs = Inputs {
            config: config::Config { snapshot_entries: 200, heartbeat_ms: 50, ..config::Config::default() },
            node: name(self.place),
            directory: self.directory.clone(),
            schemas: vec![SCHEMA],
            formation: self.formation,
            network: Some(Network { listen: self.listen, advertise: self.listen.to_string(), is_fixed: true, secure }),
        };
        let blocker = Readiness::default().block("store");
        let handle = start(inputs, &Metrics::default(), blocker, shutdown.stop());
        self.running = Some((handle, shutdown));
    }

    pub(super) async fn stop(&mut self) {
        let (handle, shutdown) = self.running.take().expect("it runs");
        assert!(shutdown.drain(PATIENCE).await, "it stops");
        drop(handle);
    }

    pub(super) async fn number(&self) -> u64 {
        let opened = async {
            loop {
                match self.handle().raft_id() {
                    Some(number) => return number,
                    None => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        tokio::time::timeout(PATIENCE, opened).await.expect("it opens")
    }
}

pub(super) const SCHEMA: Schema =
    Schema { name: "cluster", versions: &[&["CREATE TABLE weft_things (id INTEGER PRIMARY KEY, name TEXT) STRICT"]] };

/// Some members.
pub(super) struct Cluster {
    pub(super) nodes: Vec<Node>,
    pub(super) faults: Arc<Faults>,
    _directory: tempfile::TempDir,
}

impl Cluster {
    /// `voters` members, the first of which made the cluster.
    pub(super) async fn start(voters: usize) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut cluster = Self { nodes: Vec::new(), faults: Arc::default(), _directory: directory };
        for place in 0..voters {
            cluster.add_node(if place == 0 { Formation::Alone } else { Formation::Join });
        }
        tokio::time::timeout(PATIENCE, cluster.nodes[0].handle().ready()).await.expect("it leads itself");
        for place in 1..voters {
            cluster.join(place).await;
            cluster.nodes[0].handle().promote(&name(place)).await.expect("it gets a vote");
        }
        cluster
    }

    /// Starts one more node, which is no member yet if it waits to join.
    pub(super) fn add_node(&mut self, formation: Formation) -> usize {
        let place = self.nodes.len();
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let listen = socket.local_addr().expect("an address");
        drop(socket);
        let directory = self._directory.path().join(format!("{place}"));
        let faults = Arc::clone(&self.faults);
        let mut node = Node { place, listen, directory, formation, faults, running: None };
        node.start();
        self.nodes.push(node);
        place
    }

    /// Has the node added without a vote.
    pub(super) async fn join(&self, place: usize) {
        let raft_id = self.nodes[place].number().await;
        let member = Member { raft_id, node: name(place), address: self.nodes[place].listen.to_string(), voter: false };
        self.nodes[0].handle().add_learner(member).await.expect("it is added");
    }

    /// The place of the node that leads, once one does.
    pub(super) async fn leader(&self) -> usize {
        let found = async {
            loop {
                let running = self.nodes.iter().filter(|node| node.is_running());
                let mut leaders = running.filter(|node| node.handle().status().borrow().role == Role::Leader);
                match leaders.next() {
                    Some(node) => return node.place,
                    None => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        tokio::time::timeout(PATIENCE, found).await.expect("one leads")
    }

    /// A node that does not lead.
    pub(super) async fn follower(&self) -> usize {
        let leader = self.leader().await;
        (0..self.nodes.len()).find(|place| *place != leader && self.nodes[*place].is_running()).expect("there is one")
    }

    pub(super) async fn exec(&self, place: usize, statement: Statement) -> Result<u64, StoreError> {
        self.nodes[place].handle().exec(statement).await.map(|executed| executed.rows_affected)
    }

    pub(super) async fn stop(mut self) {
        for node in self.nodes.iter_mut().filter(|node| node.is_running()) {
            node.stop().await;
        }
    }
}
