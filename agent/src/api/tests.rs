//! The handlers over real sockets and made-up sources; no agent, no kernel object.

mod over_control;
mod over_gateway;
mod over_grpc;
mod over_hop;
mod over_hosts;
mod over_processes;
mod over_socket;
mod over_tls;
mod over_web;

use std::path::Path;

use ipnet::IpNet;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::*;
use crate::ebpf::status::{Counters, PeerCounters};
use crate::foundation::lifecycle::{Shutdown, Stop};
use crate::model::key::PublicKey;
use crate::model::peer::Peer;
use crate::model::{Backend, Link, Node};

/// Sources of which a test changes what it is about, and the other ends of their channels.
pub(crate) struct Fixture {
    pub(crate) sources: Arc<Sources>,
    pub(crate) wireguard: watch::Sender<Arc<wireguard::status::Status>>,
    pub(crate) commands: mpsc::Receiver<Command>,
    shutdown: Shutdown,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::supervising(Processes::disabled("this is a test"))
    }

    /// The same over a supervisor.
    pub(crate) fn supervising(process: Processes) -> Self {
        Self::with(process, model())
    }

    /// The same of another node.
    pub(crate) fn of(model: Model) -> Self {
        Self::with(Processes::disabled("this is a test"), model)
    }

    fn with(process: Processes, model: Model) -> Self {
        let model = watch::Sender::new(Arc::new(model)).subscribe();
        let wireguard = watch::Sender::new(Arc::new(wireguard::status::Status {
            link: Some(Link { name: "weft0".parse().expect("a link name"), index: 7, backend: Backend::Kernel }),
            listen_port: Some(51820),
            peers: 2,
            ..Default::default()
        }));
        // One place, so that a test can fill it.
        let (commands_tx, commands) = mpsc::channel(1);
        let state = tempfile::tempdir().expect("a temporary directory");
        let reader = FiguresReader::new(|| Box::pin(async { figures() }));
        let pm3 = Pm3::start(pm3::Inputs {
            model: model.clone(),
            agent: Arc::new(ForMethods { commands: commands_tx.clone(), figures: reader }),
            state_dir: state.path().to_owned(),
            history: crate::foundation::telemetry::History::default(),
            process: Processes::disabled("this is a test"),
            ip_table: None,
            bus: crate::bus::Handle::off(),
            store: store::Handle::absent(),
        });
        let pm3 = pm3.expect("the methods start");
        let sources = Sources {
            instance: "default".parse().expect("a label"),
            started: Instant::now(),
            model,
            wireguard: wireguard.subscribe(),
            net: watch::Sender::default().subscribe(),
            firewall: watch::Sender::default().subscribe(),
            accounting: watch::Sender::default().subscribe(),
            dns: watch::Sender::default().subscribe(),
            figures: FiguresReader::new(|| Box::pin(async { figures() })),
            store: store::Handle::absent(),
            state_dir: state.path().to_owned(),
            process,
            readiness: Readiness::default(),
            metrics: Metrics::default(),
            pm3,
            identity: identity(),
            mesh: watch::Sender::new(Arc::new(mesh())).subscribe(),
            mesh_handle: mesh_handle(state.path()),
            has_web: true,
            gateway: watch::Sender::default().subscribe(),
            bus: watch::Sender::default().subscribe(),
            commands: commands_tx,
        };
        Self { sources: Arc::new(sources), wireguard, commands, shutdown: Shutdown::default() }
    }

    pub(crate) fn stop(&self) -> Stop {
        self.shutdown.stop()
    }

    /// A control socket in a directory of its own.
    pub(crate) fn control(&self) -> (TempDir, control::Control) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let control = control::bind(directory.path()).expect("bound").serve(Arc::clone(&self.sources), self.stop());
        (directory, control)
    }
}

/// Node alpha with peers beta (connected, counted) and gamma (never seen).
pub(crate) fn model() -> Model {
    let node = Node {
        id: "alpha".parse().expect("a label"),
        addresses: vec!["10.80.0.1/24".parse().expect("a prefix")],
        public_key: PublicKey::from_bytes([0xaa; 32]),
    };
    let peers = vec![peer("gamma", 3, "10.80.0.3/32"), peer("beta", 2, "10.80.0.2/32")];
    Model::new(node, "weft.internal".to_owned(), peers).expect("a right model")
}

fn identity() -> Identity {
    let authority = crate::identity::authority::Authority::create(std::time::SystemTime::now()).expect("an authority");
    Identity::in_memory(&authority, &"alpha".parse().expect("a label"), "weft.internal").expect("an identity")
}

/// A mesh that nothing can be asked of: its store is absent.
fn mesh_handle(directory: &Path) -> crate::mesh::Handle {
    let identity = identity();
    crate::mesh::start(crate::mesh::Inputs {
        remote: Arc::new(contract::remote::Grpc::new(identity.clone())),
        identity,
        store: store::Handle::absent(),
        directory: directory.join("mesh"),
        config: crate::mesh::config::Config::default(),
        configured: watch::Sender::new(Arc::new(model())).subscribe(),
        ports: crate::model::mesh::Ports { raft: 0, grpc: 8443, wireguard: 51820 },
        raft_address: None,
        link: "weft0".to_owned(),
    })
}

/// Alpha leads, beta votes and lies behind a NAT.
fn mesh() -> Mesh {
    let mut mesh = Mesh::empty("alpha".parse().expect("a label"));
    mesh.leader = Some(mesh.own.clone());
    mesh.ipv4 = Some("10.80.0.0/16".parse().expect("a network"));
    for (name, key, endpoint) in [("alpha", 0xaa, Some("192.0.2.1")), ("beta", 2, None)] {
        let id: crate::foundation::id::NodeId = name.parse().expect("a label");
        let member = crate::model::mesh::Member {
            id: id.clone(),
            public_key: PublicKey::from_bytes([key; 32]),
            primary_endpoint: endpoint.map(|text| text.parse().expect("an address")),
            endpoints: Vec::new(),
            ports: crate::model::mesh::Ports { raft: 9443, grpc: 8443, wireguard: 51820 },
            ipv4: Some(std::net::Ipv4Addr::new(10, 80, 0, key)),
            ipv6: Some("fdaa:bbcc:ddee:1::/64".parse().expect("a network")),
            is_voter: true,
            created_at: std::time::SystemTime::UNIX_EPOCH,
            updated_at: std::time::SystemTime::UNIX_EPOCH,
        };
        mesh.members.insert(id, Arc::new(member));
    }
    mesh
}

fn peer(name: &str, key: u8, allowed: &str) -> Peer {
    Peer {
        name: name.parse().expect("a label"),
        public_key: PublicKey::from_bytes([key; 32]),
        preshared_key: None,
        endpoint: None,
        allowed_ips: vec![allowed.parse::<IpNet>().expect("a prefix")],
        persistent_keepalive: None,
    }
}

pub(crate) fn figures() -> Figures {
    let public_key = PublicKey::from_bytes([2; 32]);
    let name: crate::foundation::id::NodeId = "beta".parse().expect("a label");
    let on_device = PeerFigures {
        name: name.clone(),
        public_key,
        endpoint: Some("192.0.2.7:51820".parse().expect("an address")),
        last_handshake: Some(std::time::SystemTime::now()),
        rx_bytes: 148,
        tx_bytes: 92,
    };
    let rx = Counters { bytes: u64::MAX, packets: 3, tcp_bytes: 5, udp_bytes: 6, icmp_bytes: 7, other_bytes: 8 };
    let counters = ebpf::status::Figures {
        peers: vec![PeerCounters { name, public_key, rx, tx: Counters { bytes: 1000, ..Default::default() } }],
        ..Default::default()
    };
    Figures { wireguard: vec![on_device], counters: Some(counters), errors: Vec::new() }
}

/// Sends raw bytes to a control socket and reads until it closes.
async fn raw(directory: &Path, request: impl AsRef<[u8]>) -> String {
    let stream = UnixStream::connect(control::path(directory)).await.expect("connected");
    exchange(stream, request.as_ref()).await
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &[u8]) -> String {
    // A server that refuses early may close before everything is written.
    stream.write_all(request).await.ok();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok();
    String::from_utf8_lossy(&answer).into_owned()
}

/// A request that has the connection closed after its answer.
fn request(method: &str, path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// Status code and body.
fn parts(answer: &str) -> (u16, &str) {
    let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_default();
    (code, answer.split_once("\r\n\r\n").map_or("", |(_, body)| body))
}

fn json(body: &str) -> serde_json::Value {
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body:?}"))
}
