//! The message bus: Debian's `nats-server` as a child of the agent, clustered over the mesh, or somebody's NATS elsewhere.
//!
//! In: [`Inputs`], the model for the addresses of the mesh, the store for the credentials of the other nodes. Out: a
//! [`Handle`] to publish with, the [`Status`], results in the store.
//!
//! | module | what it owns |
//! |---|---|
//! | [`config`] | the `[bus]` table |
//! | [`schema`] | the tables in the store: a node's credentials, the number of the last event, results |
//! | `spec` | the configuration of the server, as text |
//! | `server` | the child |
//! | `client` | the agent's own connection: events, requests, results |
//!
//! | task | in | out |
//! |---|---|---|
//! | `bus` | `watch` of the model, changes of [`schema`], the end of the child | the child, its configuration, `watch` of the status |
//! | `bus-results` | answers to events | rows of results |
//!
//! Invariants: a password is in files of mode 0600 below the runtime directory and in the store, never in an argument; the server
//! takes clients on loopback only and routes on this node's mesh address only; a child that ends is started again, with pauses
//! that grow, and is never left behind.
//!
//! JetStream is off: a server alone and one in a cluster keep streams in two ways that cannot be turned into each other without
//! loss, and nodes join at any time. So an event is delivered at most once, and one that is published while servers are finding
//! each other may reach nobody. What must last (the number of an event, its result, `/kv`) is in the replicated store.

pub mod config;
pub mod schema;
mod spec;
mod server;
mod client;
mod metrics;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use crate::foundation::error::chain;
use crate::foundation::lifecycle::Stop;
use crate::foundation::metrics::Metrics as Registry;
use crate::foundation::secret::Secret;
use crate::foundation::task::{self, Task};
use crate::model::Model;
use crate::store;
use client::Client;
use config::Config;
use metrics::Metrics;
use server::Server;
use spec::{Own, Spec};

/// Between two looks at what cannot be watched.
const LOOK: Duration = Duration::from_secs(5);
/// After the first and before every further start of a child that does not stay.
const PAUSES: std::ops::RangeInclusive<u32> = 1..=30;
/// A child that lived so long had started well.
const STEADY: Duration = Duration::from_secs(60);

/// What the bus stands on.
#[derive(Debug, Clone)]
pub struct Inputs {
    pub config: Config,
    pub model: watch::Receiver<Arc<Model>>,
    pub store: store::Handle,
    pub run_dir: PathBuf,
}

/// What the bus does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// The process id of the server that was started here.
    pub server: Option<u32>,
    /// Where the agent is connected, without credentials; `None`: it is not.
    pub connected: Option<String>,
    /// The nodes whose servers this one has routes to.
    pub routes: Vec<String>,
    pub errors: Vec<String>,
}

/// Why nothing was published.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    #[error("there is no message bus on this node; set bus.enabled = true, or bus.url to a NATS server, and restart")]
    Off,
    #[error("bus.url names a server that is not ours; its monitoring is where its operator has it")]
    NotOurs,
    #[error("the message bus is not connected{}", .0.as_ref().map(|why| format!(": {why}")).unwrap_or_default())]
    NotConnected(Option<String>),
    #[error("a topic is words of letters, digits, - and _ with dots between them, at most 200 bytes; {0:?} is none")]
    Topic(String),
    #[error("nobody answers on {0}")]
    NoResponders(String),
    #[error("nobody answered on {topic} within {seconds} s")]
    TimedOut { topic: String, seconds: u64 },
    #[error("the message bus did not take it: {0}")]
    Refused(String),
    #[error(transparent)]
    Store(#[from] store::StoreError),
}

/// The way in to the bus.
#[derive(Debug, Clone)]
pub struct Handle {
    client: Option<Arc<Client>>,
    monitor: Option<SocketAddr>,
    status: watch::Receiver<Status>,
    _task: Option<Arc<Task>>,
}

impl Handle {
    /// Of a node without a bus.
    pub fn off() -> Self {
        Self { client: None, monitor: None, status: watch::Sender::default().subscribe(), _task: None }
    }

    /// What it does now.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Whether there is one.
    pub fn is_on(&self) -> bool {
        self.client.is_some()
    }

    /// Where the server that was started here tells about itself.
    ///
    /// # Errors
    /// There is none, or it is another's.
    pub fn monitor(&self) -> Result<SocketAddr, BusError> {
        match (&self.client, self.monitor) {
            (None, _) => Err(BusError::Off),
            (Some(_), None) => Err(BusError::NotOurs),
            (Some(_), Some(address)) => Ok(address),
        }
    }

    /// Publishes an event and gives it its number; whoever answers it gives it a result.
    ///
    /// # Errors
    /// [`BusError`].
    pub async fn publish(&self, topic: &str, message: Message) -> Result<i64, BusError> {
        self.client()?.publish(topic, message).await
    }

    /// Asks whoever listens on `topic` and waits for one answer.
    ///
    /// # Errors
    /// [`BusError`].
    pub async fn request(&self, topic: &str, message: Message) -> Result<Bytes, BusError> {
        self.client()?.request(topic, message).await
    }

    fn client(&self) -> Result<&Client, BusError> {
        let client = self.client.as_deref().ok_or(BusError::Off)?;
        if !client.is_connected() {
            return Err(BusError::NotConnected(self.status.borrow().errors.first().cloned()));
        }
        Ok(client)
    }
}

/// What is published.
#[derive(Debug, Clone, Default)]
pub struct Message {
    pub headers: Vec<(String, String)>,
    pub payload: Bytes,
}

/// Why the bus cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the system gives no random bytes")]
    Random,
    #[error("failed to read bus.credentials_file")]
    Credentials(#[source] std::io::Error),
    #[error("bus.url cannot be used")]
    Url(#[source] async_nats::ConnectError),
}

/// Starts what the configuration asks for; nothing of it stops the agent.
///
/// # Errors
/// [`StartError`].
pub async fn start(inputs: Inputs, registry: &Registry, stop: Stop) -> Result<Handle, StartError> {
    let Inputs { config, .. } = &inputs;
    if !config.enabled && config.url.is_none() {
        return Ok(Handle::off());
    }
    let (status_tx, status) = watch::channel(Status::default());
    let metrics = Metrics::new(registry, status.clone());
    let password = secret()?;
    let client = Arc::new(Client::connect(config, &password, inputs.store.clone(), &metrics).await?);
    let monitor = config.enabled.then_some(config.monitor);
    let own = Own { password, route_password: secret()? };
    let bus = Bus { inputs, own, status: status_tx, metrics, client: Arc::clone(&client), failures: 0 };
    let task = Arc::new(task::spawn("bus", bus.run(stop)));
    Ok(Handle { client: Some(client), monitor, status, _task: Some(task) })
}

/// Ends the server that an agent left behind which was killed, and takes its files away; whether there was any of it.
pub async fn down(run_dir: &Path) -> bool {
    server::remove(run_dir).await
}

/// 24 random bytes as hexadecimal digits, which mean nothing in a URL or in the server's configuration.
fn secret() -> Result<Secret<String>, StartError> {
    let mut bytes = [0_u8; 24];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_unspecified| StartError::Random)?;
    Ok(Secret::new(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
}

struct Bus {
    inputs: Inputs,
    own: Own,
    status: watch::Sender<Status>,
    metrics: Metrics,
    client: Arc<Client>,
    /// Children in a row that did not stay.
    failures: u32,
}

impl Bus {
    async fn run(mut self, mut stop: Stop) {
        let mut model = self.inputs.model.clone();
        let mut changes = self.inputs.store.watch(schema::WATCHED);
        let mut connection = self.client.state();
        let mut server: Option<Server> = None;
        loop {
            let problem = match self.inputs.config.enabled {
                true => self.pass(&mut server).await.err(),
                false => None,
            };
            self.tell(server.as_ref(), problem.clone());
            let pause = if problem.is_some() && server.is_none() { self.pause() } else { LOOK };
            tokio::select! {
                () = stop.requested() => break,
                Ok(()) = model.changed() => {}
                Some(_index) = changes.changed(), if server.is_some() => {}
                Ok(()) = connection.changed() => {}
                () = Server::ended(&mut server), if server.is_some() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
        if let Some(server) = server {
            server.stop().await;
        }
    }

    fn pause(&self) -> Duration {
        Duration::from_secs(u64::from(PAUSES.start().saturating_mul(1 << self.failures.min(6)).min(*PAUSES.end())))
    }

    /// Has the server run as it should now.
    async fn pass(&mut self, server: &mut Option<Server>) -> Result<(), String> {
        let mut ended = None;
        if let Some(why) = server.as_mut().and_then(Server::why_ended) {
            let lived = server.take().map_or(Duration::ZERO, |server| server.age());
            self.failures = if lived >= STEADY { 1 } else { self.failures.saturating_add(1) };
            self.metrics.restarts.inc();
            tracing::warn!(why, "the message bus ended");
            ended = Some(why);
        }
        if let Some(why) = ended {
            return Err(why);
        }
        let spec = self.spec().await?;
        match server {
            Some(running) => running.change_to(spec).await.map_err(|error| chain(&error)),
            None => {
                let started = Server::start(&self.inputs.config.server, &self.inputs.run_dir, spec).await;
                *server = Some(started.map_err(|error| {
                    self.failures = self.failures.saturating_add(1);
                    chain(&error)
                })?);
                Ok(())
            }
        }
    }

    /// What the server should be told now.
    async fn spec(&self) -> Result<Spec, String> {
        let model = Arc::clone(&self.inputs.model.borrow());
        let told = schema::exchange(&self.inputs.store, &model.node.id, &self.own.route_password).await;
        let others = match told {
            Ok(others) => others,
            // Alone it goes on: the clients of this host are served without the others.
            Err(error) => {
                tracing::debug!(error = chain(&error), "the credentials of the other nodes are not to be had yet");
                Vec::new()
            }
        };
        Ok(Spec::of(&self.inputs.config, &model, &self.own, &others))
    }

    fn tell(&self, server: Option<&Server>, problem: Option<String>) {
        let mut errors: Vec<String> = problem.into_iter().collect();
        let connected = self.client.is_connected().then(|| self.client.place().to_owned());
        if let (None, true) = (&connected, errors.is_empty()) {
            errors.extend(self.client.problem());
        }
        let status = Status {
            server: server.map(Server::pid),
            connected,
            routes: server.map(|server| server.routes().to_vec()).unwrap_or_default(),
            errors,
        };
        self.status.send_if_modified(|current| {
            let differs = *current != status;
            if differs {
                tracing::info!(server = status.server, connected = ?status.connected, routes = ?status.routes, "message bus");
                *current = status;
            }
            differs
        });
    }
}
