//! The methods of the pm3 API: one table, whatever carries the call.
//!
//! In: [`Inputs`], the readers of what the domains publish and the agent's own commands; calls from the transports in `api`
//! (control socket, HTTP, WebSocket). Out: [`call::Reply`] or [`failure::Failure`], both without a word of HTTP.
//!
//! | module | what it owns |
//! |---|---|
//! | [`caller`] | who calls, and the seam that decides it |
//! | [`call`] | a call and its reply |
//! | [`failure`] | why a call failed |
//! | [`params`] | query and body as typed parameters |
//! | [`table`] | every method: path, verbs, what it takes, what carries it out |
//! | [`sessions`] | who called how often |
//! | [`system`] | figures of this host, sampled in the background |
//! | [`signer`] | signed URLs |
//! | [`lambda`] | functions that a connected client answers |
//! | [`tail`] | what a reader of the log asks for |
//! | `service` | the supervised processes |
//! | [`ipinfo`] | what a local table knows about an address |
//! | [`kv`] | values by key, on the replicated store |
//! | `bus` | events and their results, requests over the message bus |
//!
//! Invariants: a method that changes something is never reached by GET; nothing here waits on the network but a lambda
//! and the message bus, and those with a deadline; JSON is the data model of this API, so it is named here, as values and never as a transport.

pub mod caller;
pub mod call;
pub mod failure;
pub mod params;
pub mod table;
pub mod sessions;
pub mod system;
pub mod signer;
pub mod lambda;
pub mod tail;
pub mod ipinfo;
pub mod kv;
mod service;
mod bus;
mod node;
mod peers;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

use crate::bus::Handle as Bus;
use crate::foundation::id::NodeId;
use crate::foundation::telemetry::History;
use crate::model::Model;
use crate::process::handle::Handle as Processes;
use crate::store;
use crate::wireguard::status::PeerFigures;
use call::{Call, Outcome, Reply};
use failure::Failure;
use ipinfo::{IpTable, IpTableError};
use lambda::Lambdas;
use sessions::Sessions;
use signer::{Signer, SignerError};
use table::{Handler, Method, Table};

/// What the agent does for the methods. The composition root and `api` stand behind it.
pub trait Agent: Send + Sync + 'static {
    /// Reads the configuration again; the lines say what changed.
    fn reload(&self) -> BoxFuture<'static, Result<Vec<String>, Failure>>;
    /// Stops the agent; the lines say what stays.
    fn shutdown(&self) -> BoxFuture<'static, Result<Vec<String>, Failure>>;
    /// What the tunnel device says about every peer.
    fn peers(&self) -> BoxFuture<'static, Vec<PeerFigures>>;
}

/// Carries calls to other nodes. `api` stands behind it.
pub trait Carrier: Send + Sync + 'static {
    /// Carries a call to the machine that it is for; the path names the method there.
    fn carry(&self, machine: MachineId, path: String, call: Call) -> BoxFuture<'static, Outcome>;
}

/// What the methods read.
pub struct Inputs {
    pub model: watch::Receiver<Arc<Model>>,
    pub agent: Arc<dyn Agent>,
    /// Where the signing key lives.
    pub state_dir: PathBuf,
    /// The supervised processes.
    pub process: Processes,
    /// The log of this agent.
    pub history: History,
    /// A table of address ranges in the iptoasn format.
    pub ip_table: Option<PathBuf>,
    /// The replicated database, with the tables of [`kv::SCHEMA`].
    pub store: store::Handle,
    pub bus: Bus,
}

/// Why the methods cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum Pm3Error {
    #[error(transparent)]
    Signer(#[from] SignerError),
    #[error("gateway.ip_table is of no use")]
    IpTable(#[from] IpTableError),
}

/// The methods and what they stand on. Shared by every transport.
pub struct Pm3 {
    model: watch::Receiver<Arc<Model>>,
    agent: Arc<dyn Agent>,
    process: Processes,
    table: Table,
    ping: Bytes,
    version: Bytes,
    system: system::Sampler,
    pub sessions: Sessions,
    pub signer: Signer,
    pub lambdas: Arc<Lambdas>,
    pub history: History,
    ip_table: IpTable,
    store: store::Handle,
    pub bus: Bus,
    carrier: OnceLock<Arc<dyn Carrier>>,
}

impl fmt::Debug for Pm3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pm3")
    }
}

impl Pm3 {
    /// Reads the keys and tables and starts the background sampling.
    ///
    /// # Errors
    /// A key or table that cannot be read.
    pub fn start(inputs: Inputs) -> Result<Arc<Self>, Pm3Error> {
        let ip_table = match &inputs.ip_table {
            Some(path) => IpTable::load(path)?,
            None => IpTable::default(),
        };
        let model = inputs.model.borrow().clone();
        let machine = MachineId::of(&model.node.public_key);
        Ok(Arc::new(Self {
            ping: Bytes::from(format!("{:?}", model.node.id.as_str())),
            version: Bytes::from_static(concat!("\"v", env!("CARGO_PKG_VERSION"), "\"").as_bytes()),
            system: system::Sampler::start(machine),
            signer: Signer::open(&inputs.state_dir)?,
            lambdas: Arc::new(Lambdas::new(machine)),
            model: inputs.model,
            agent: inputs.agent,
            process: inputs.process,
            table: Table::new(),
            sessions: Sessions::default(),
            history: inputs.history,
            ip_table,
            store: inputs.store,
            bus: inputs.bus,
            carrier: OnceLock::new(),
        }))
    }

    /// The method at `path`, and the parts of the path that it takes.
    ///
    /// # Errors
    /// There is none, or it is not for `verb`.
    pub fn find(&self, verb: call::Verb, path: &str) -> Result<(&'static Method, Vec<String>), Failure> {
        self.table.find(verb, path)
    }

    /// Carries a call out. Dropping the future cancels the call.
    pub async fn call(self: &Arc<Self>, method: &'static Method, call: Call) -> Outcome {
        match self.call_now(method, call) {
            Ok(outcome) => outcome,
            Err(later) => later.await,
        }
    }

    /// Carries a call out at once where that needs no waiting; else returns the work.
    ///
    /// # Errors
    /// Not a failure: the work that takes longer.
    pub fn call_now(
        self: &Arc<Self>,
        method: &'static Method,
        call: Call,
    ) -> Result<Outcome, BoxFuture<'static, Outcome>> {
        audit(method, &call);
        match method.handler {
            Handler::Now(handler) => Ok(handler(self, &call)),
            Handler::Later(handler) => Err(handler(Arc::clone(self), call)),
        }
    }

    /// Has calls for functions of other nodes carried there. The first carrier stays.
    pub fn carry_by(&self, carrier: Arc<dyn Carrier>) {
        self.carrier.set(carrier).ok();
    }

    /// The newest figures of this host; none is older than a few seconds.
    pub fn host_figures(&self) -> Arc<system::HostFigures> {
        self.system.figures()
    }

    /// The name of this node.
    pub fn node(&self) -> NodeId {
        self.model.borrow().node.id.clone()
    }

    /// The identifier of this machine.
    pub fn machine(&self) -> MachineId {
        MachineId::of(&self.model.borrow().node.public_key)
    }
}

/// Every call that changes something leaves a line; others do at DEBUG.
fn audit(method: &Method, call: &Call) {
    let caller = &call.caller;
    let (pid, uid, basis) = (caller.pid, caller.uid, caller.basis.as_str());
    let (unit, exe) = (caller.unit.as_deref(), caller.executable.as_deref());
    if method.changes {
        tracing::info!(method = method.path, pid, uid, unit, exe, basis, "called");
    } else {
        tracing::debug!(method = method.path, pid, uid, unit, exe, basis, "called");
    }
}

/// Names a machine: four bytes that every node derives from the public key alone, shown as eight hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MachineId(pub u32);

impl MachineId {
    /// The machine that has this key.
    pub fn of(key: &crate::model::key::PublicKey) -> Self {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key.as_bytes());
        let mut first = [0; 4];
        first.copy_from_slice(&digest.as_ref()[..4]);
        Self(u32::from_le_bytes(first))
    }
}

impl fmt::Display for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// `value` as the JSON of a reply.
fn json<T: serde::Serialize>(value: &T) -> Outcome {
    match serde_json::to_vec(value) {
        Ok(text) => Ok(Reply::Json(text.into())),
        Err(error) => {
            tracing::error!(%error, "failed to write an answer as JSON");
            Err(Failure::failed("the answer cannot be written as JSON"))
        }
    }
}

#[cfg(test)]
mod tests;
