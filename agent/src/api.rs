//! The only place that knows HTTP, gRPC and JSON: the control socket, the web listener, the gateway, the contract.
//!
//! In: [`Sources`], the readers of what the domains publish. Out: [`Command`]s to the composition root, which alone
//! may change the agent. Handlers parse, authorise, read and answer; they hold no state and change nothing themselves.
//!
//! Invariants: nothing but `/metrics`, `/health` and the description of the web API is reachable without the kernel vouching
//! for the caller, a key, or a certificate of the mesh; no answer carries a secret; every size, time and number a client can
//! choose is bounded (`http`).

mod body;
pub mod contract;
mod methods;
pub mod control;
pub mod gateway;
pub mod error;
pub mod grpc;
mod http;
mod patience;
pub mod process;
pub mod view;
pub mod web;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot, watch};

use crate::foundation::id::InstanceName;
use crate::foundation::lifecycle::Readiness;
use crate::foundation::metrics::Metrics;
use crate::identity::Identity;
use crate::model::Model;
use crate::model::mesh::Mesh;
use crate::pm3::failure::{Failure, Kind};
use crate::pm3::{self, Pm3};
use crate::process::handle::Handle as Processes;
use crate::store;
use crate::wireguard::status::PeerFigures;
use crate::{bus, dns, ebpf, mesh, net, wireguard};

/// Everything the handlers read.
#[derive(Debug, Clone)]
pub struct Sources {
    pub instance: InstanceName,
    /// When the agent started; its age and the clock of the samples count from here.
    pub started: Instant,
    pub model: watch::Receiver<Arc<Model>>,
    pub wireguard: watch::Receiver<Arc<wireguard::status::Status>>,
    pub net: watch::Receiver<Arc<net::status::Status>>,
    pub firewall: watch::Receiver<Arc<net::status::FirewallStatus>>,
    pub accounting: watch::Receiver<ebpf::status::Status>,
    pub dns: watch::Receiver<Arc<dns::status::Status>>,
    pub figures: FiguresReader,
    pub store: store::Handle,
    /// Where backups lie while they are sent.
    pub state_dir: std::path::PathBuf,
    pub process: Processes,
    pub readiness: Readiness,
    pub metrics: Metrics,
    pub pm3: Arc<Pm3>,
    pub identity: Identity,
    pub mesh: watch::Receiver<Arc<Mesh>>,
    pub mesh_handle: mesh::Handle,
    /// Whether `/metrics` is served over TCP.
    pub has_web: bool,
    /// What the gateway does; its default where there is none.
    pub gateway: watch::Receiver<gateway::Status>,
    /// What the message bus does; its default where there is none.
    pub bus: watch::Receiver<bus::Status>,
    /// The bound is the composition root's choice; a full queue answers "busy".
    pub commands: mpsc::Sender<Command>,
}

/// What changes too fast for a `watch` and is read on demand.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Figures {
    pub wireguard: Vec<PeerFigures>,
    /// `None` when nothing is counted.
    pub counters: Option<ebpf::status::Figures>,
    /// Why a part is missing, each a sentence.
    pub errors: Vec<String>,
}

/// Reads the figures of every peer from the device and the BPF maps.
#[derive(Clone)]
pub struct FiguresReader(Arc<dyn Fn() -> BoxFuture<'static, Figures> + Send + Sync>);

impl FiguresReader {
    /// A reader that calls `read` each time.
    pub fn new(read: impl Fn() -> BoxFuture<'static, Figures> + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }

    /// The figures now.
    pub async fn read(&self) -> Figures {
        (self.0)().await
    }
}

impl fmt::Debug for FiguresReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FiguresReader")
    }
}

/// What a caller asks the composition root to do.
///
/// The reply is awaited by the caller, so it must be sent before the listeners are asked to stop: stop them last.
#[derive(Debug)]
pub enum Command {
    /// Read the configuration again and apply what differs. The lines say what changed.
    Reload(oneshot::Sender<CommandResult>),
    /// Stop the agent; link, routes, pins and tables stay.
    Shutdown(oneshot::Sender<CommandResult>),
    /// Remove everything that is ours from the kernel, then stop. The lines say what was removed.
    Down(oneshot::Sender<CommandResult>),
}

/// What was done, a sentence a line.
pub type CommandResult = Result<Vec<String>, CommandError>;

/// Why a command was not carried out, as the caller may read it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CommandError(pub String);

/// Puts a command into the queue and waits until it is carried out.
async fn carry_out(
    commands: &mpsc::Sender<Command>,
    command: fn(oneshot::Sender<CommandResult>) -> Command,
) -> Result<Vec<String>, Failure> {
    let (reply, answer) = oneshot::channel();
    commands.try_send(command(reply)).map_err(|error| match error {
        mpsc::error::TrySendError::Full(_) => Failure::new(Kind::Busy, "other commands are waiting; try again"),
        mpsc::error::TrySendError::Closed(_) => Failure::new(Kind::Unavailable, "the agent is stopping"),
    })?;
    match answer.await {
        Ok(done) => done.map_err(|error| Failure::failed(error.to_string())),
        Err(_gone) => Err(Failure::new(Kind::Unavailable, "the agent stopped before it was done")),
    }
}

/// The agent as the pm3 methods see it: the command queue and the device's figures.
#[derive(Debug)]
pub struct ForMethods {
    pub commands: mpsc::Sender<Command>,
    pub figures: FiguresReader,
}

impl pm3::Agent for ForMethods {
    fn reload(&self) -> BoxFuture<'static, Result<Vec<String>, Failure>> {
        let commands = self.commands.clone();
        Box::pin(async move { carry_out(&commands, Command::Reload).await })
    }

    fn shutdown(&self) -> BoxFuture<'static, Result<Vec<String>, Failure>> {
        let commands = self.commands.clone();
        Box::pin(async move { carry_out(&commands, Command::Shutdown).await })
    }

    fn peers(&self) -> BoxFuture<'static, Vec<PeerFigures>> {
        let figures = self.figures.clone();
        Box::pin(async move { figures.read().await.wireguard })
    }
}

#[cfg(test)]
pub(crate) mod tests;
