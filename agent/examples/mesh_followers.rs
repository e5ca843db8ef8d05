//! How soon a change of the mesh is in the tunnel of every node, for benches: `mesh_followers ADDRESS NODES CHANGES`, in a
//! network namespace of its own, with `NODES + CHANGES / 2` join tokens on standard input, one a line.
//!
//! Each node is what an agent with `mesh.role = "edge"` runs for this: an identity of its own, enrolled by token at the member
//! at `ADDRESS`; a stream of changes over gRPC and mutual TLS of its own; its model; its tunnel with an embedded device on a TUN
//! link of its own. Routes, names and counters are left out, and all of it shares one process. Then one more node joins and
//! leaves, `CHANGES` times in all; a change is timed from when that node asks for it until the last device holds it. Prints one
//! JSON object with the times in milliseconds, sorted.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tokio::sync::watch;
use weft_agent::api::contract::remote::Grpc;
use weft_agent::foundation::lifecycle::{Readiness, Shutdown};
use weft_agent::foundation::metrics::Metrics;
use weft_agent::identity::Identity;
use weft_agent::model::key::PrivateKey;
use weft_agent::model::mesh::{Ports, Seat};
use weft_agent::model::{Model, Node};
use weft_agent::wireguard::config::BackendChoice;
use weft_agent::{mesh, store, wireguard};

const PATIENCE: Duration = Duration::from_secs(60);
/// Each node writes its last good state a while after a change; many on one disk are no part of what is measured.
const SETTLE: Duration = Duration::from_millis(300);
const FIRST_PORT: u16 = 20_000;

/// A node and its tunnel.
struct Follower {
    mesh: mesh::Handle,
    tunnel: wireguard::Handle,
    _configured: watch::Sender<Arc<Model>>,
    _settings: watch::Sender<Arc<wireguard::settings::Settings>>,
}

impl Follower {
    fn start(number: u16, directory: &Path, shutdown: &Shutdown) -> anyhow::Result<Self> {
        let name = format!("n{number:03}");
        let mut key = [0x55; 32];
        key[..2].copy_from_slice(&number.to_be_bytes());
        let private_key = PrivateKey::from_bytes(key);
        let node = Node { id: name.parse()?, addresses: Vec::new(), public_key: private_key.public() };
        let directory = directory.join(&name);
        let identity = Identity::open(&directory.join("identity"), &node.id, "weft.internal")?;
        let (configured_tx, configured) =
            watch::channel(Arc::new(Model::new(node, "weft.internal".to_owned(), Vec::new())?));
        let mesh = mesh::start(mesh::Inputs {
            remote: Arc::new(Grpc::new(identity.clone())),
            identity,
            store: store::Handle::absent(),
            directory: directory.join("mesh"),
            config: mesh::config::Config { role: Seat::Edge, ..mesh::config::Config::default() },
            configured,
            ports: Ports { raft: 0, grpc: 8443, wireguard: FIRST_PORT + number },
            raft_address: None,
            link: name.clone(),
        });
        let settings = wireguard::settings::Settings {
            instance: name.parse()?,
            link: name.parse()?,
            listen_port: FIRST_PORT + number,
            backend: BackendChoice::Userspace,
            fwmark: 0,
            private_key,
        };
        let (settings_tx, settings) = watch::channel(Arc::new(settings));
        let blocker = Readiness::default().block("wireguard");
        let tunnel = wireguard::start(settings, mesh.model(), &Metrics::default(), blocker, shutdown.stop());
        Ok(Self { mesh, tunnel, _configured: configured_tx, _settings: settings_tx })
    }

    /// Waits until the device holds this many peers and says when.
    async fn hold(&self, peers: usize) -> anyhow::Result<Instant> {
        let mut status = self.tunnel.status();
        let held = tokio::time::timeout(PATIENCE, status.wait_for(|status| status.peers == peers)).await;
        held.with_context(|| format!("{peers} peers are not held: {:?}", self.tunnel.status().borrow()))??;
        Ok(Instant::now())
    }
}

/// When the last of them holds this many peers.
async fn all_hold(followers: &[Arc<Follower>], peers: usize) -> anyhow::Result<Instant> {
    let holding = followers.iter().map(|follower| follower.hold(peers));
    let held = futures_util::future::try_join_all(holding).await?;
    held.into_iter().max().context("there is a node")
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let usage = "usage: mesh_followers ADDRESS NODES CHANGES";
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().context(usage)?;
    let nodes: u16 = arguments.next().context(usage)?.parse().context(usage)?;
    let changes: usize = arguments.next().context(usage)?.parse().context(usage)?;
    let mut tokens = std::io::stdin().lines().collect::<Result<Vec<String>, _>>()?;
    ensure!(tokens.len() >= usize::from(nodes) + changes.div_ceil(2), "too few tokens");
    let directory = std::env::temp_dir().join(format!("weft-followers-{}", std::process::id()));
    std::fs::create_dir(&directory)?;
    let times = measure(&address, nodes, changes, &mut tokens, &directory).await;
    std::fs::remove_dir_all(&directory)?;
    let mut times = times?;
    times.sort_by(f64::total_cmp);
    writeln!(std::io::stdout(), "{}", serde_json::json!({ "times_ms": times }))?;
    Ok(())
}

async fn measure(
    address: &str,
    nodes: u16,
    changes: usize,
    tokens: &mut Vec<String>,
    directory: &Path,
) -> anyhow::Result<Vec<f64>> {
    let shutdown = Shutdown::default();
    let mut token = || tokens.pop().context("no token is left");
    let mut followers = Vec::new();
    for number in 0..nodes {
        let follower = Follower::start(number, directory, &shutdown)?;
        follower.mesh.join(address, &token()?).await?;
        followers.push(Arc::new(follower));
    }
    // Every other one, and the member that was asked.
    let peers = usize::from(nodes);
    all_hold(&followers, peers).await?;
    let guest = Follower::start(nodes, directory, &shutdown)?;
    let mut times = Vec::new();
    for change in 0..changes {
        tokio::time::sleep(SETTLE).await;
        let joins = change % 2 == 0;
        let token = if joins { token()? } else { String::new() };
        let began = Instant::now();
        let asked = async {
            match joins {
                true => guest.mesh.join(address, &token).await.map(drop).map_err(anyhow::Error::from),
                false => guest.mesh.leave().await.map(drop).map_err(anyhow::Error::from),
            }
        };
        let (asked, last) = tokio::join!(asked, all_hold(&followers, peers + usize::from(joins)));
        asked?;
        times.push((last? - began).as_secs_f64() * 1000.0);
    }
    Ok(times)
}
