//! The composition root: reads the settings, gives up root, starts everything in reading order, carries out commands,
//! stops.
//!
//! | task | in | out |
//! |---|---|---|
//! | `wireguard` | `watch` of its settings and of the model, netlink changes | `watch` of its status and of the link |
//! | `net` | `watch` of its settings, the model and the link; netlink changes | `watch` of its status |
//! | `firewall`, `relaying` | `watch` of its settings, whether this node is a relay, nftables | `watch` of its status |
//! | `accounting` | `watch` of the model and the link | `watch` of its status; figures on demand |
//! | `dns` | `watch` of the model and the link, queries | `watch` of its status |
//! | `process` | requests, ends of processes, a timer | `watch` of its snapshot, events, the saved list |
//! | `bus`, `bus-results` | `watch` of the model, credentials in the store, the end of the server | the server, `watch` of its status, results in the store |
//! | `log-keeper` | FIFOs to read | the program that keeps logs, which outlives the agent |
//! | `monitor` | rtnetlink multicast | triggers of the reconcilers |
//! | `gateway` | `watch` of the model, connections | `watch` of its status, [`Command`]s |
//! | `store` and those of [`crate::store`] | statements, the other members | `watch` of its status, changed tables |
//! | `callers` | a timer | `watch` of its status: a connection of its own proves that callers are recorded |
//! | `system` | a timer | the figures of the host for `/system` |
//! | `memory` | a timer | what a burst left goes back to the kernel |
//! | `log-history`, a thread | log lines, bounded | files in `logs/` |
//! | `mesh`, `mesh-model`, `mesh-state`, `mesh-save` | changed tables of the store, or another member's word; `weft.toml` | `watch`es of the mesh and of the model; the last good state on disk |
//! | `mesh-seat`, `mesh-votes` | `watch`es of the store and of the mesh; on the leader the tables of nodes and ACLs | who holds the log and votes; the authority's key where this node votes |
//! | `paths`, `mesh-report` | the figures of the tunnel device, a timer | which address each member is sent to, events, who cannot be reached |
//! | `grpc` | connections with TLS, `watch`es of everything published | |
//! | `renewal` | a timer | a new certificate of this node, on disk and in every listener |
//! | `live` | `watch` of the processes, their events, a timer | what WebSocket subscribers of `web` are told |
//! | `control`, `web` | connections | [`Command`]s over a bounded `mpsc` to the loop here |
//! | this loop | commands, signals, the watchdog | new settings into the `watch`es |
//!
//! Invariants: the control socket is taken first, so that a second instance changes nothing. A stop, wanted or not, leaves
//! kernel link, addresses, routes, table, pins and processes in place; [`remove`] is the explicit verb.

mod callers;
mod domains;
mod limits;
mod loops;
mod memory;
pub mod raft;
mod mesh;
mod paths;
pub mod privileges;
mod removal;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use crate::api::contract::listener::{self as grpc, GrpcError};
use crate::api::control::SocketError;
use crate::api::gateway::Gateway;
use crate::api::web::WebError;
use crate::api::{Command, ForMethods, Sources, control, gateway, web};
use crate::config::{Config, Override, ResolveError, Settings, resolve};
use crate::ebpf::callers::Callers;
use crate::foundation::error::chain;
use crate::foundation::lifecycle::{Readiness, Shutdown};
use crate::foundation::metrics::Metrics;
use crate::foundation::telemetry::{self, History, LevelHandle, TelemetryError};
use crate::identity::{Identity, IdentityError};
use crate::pm3::{self, Pm3, Pm3Error};
use crate::{bus, store};
use domains::{Domains, DomainsError};
use loops::End;
use privileges::{PrivilegeError, Roles};

pub use removal::remove;

/// How long a stop waits for what is under way.
const DRAIN: Duration = Duration::from_secs(5);
/// Commands come from people; a few may wait while one is carried out.
const COMMANDS: usize = 8;
/// Threads beyond the processors only pass work to and fro; more than these have no work here.
const MOST_WORKERS: usize = 8;

/// What an agent is started with; read again at a reload.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The file of `--config`; `None`: the default one, which may be absent.
    pub file: Option<PathBuf>,
    /// The environment, then `--set`.
    pub overrides: Vec<Override>,
    /// Both, read and laid over each other.
    pub config: Config,
}

/// Why the agent did not start or had to end.
#[derive(Debug, thiserror::Error)]
enum AppError {
    #[error(transparent)]
    Log(#[from] TelemetryError),
    #[error("the configuration cannot be used")]
    Settings(#[from] ResolveError),
    #[error(transparent)]
    Privileges(#[from] PrivilegeError),
    #[error("the message bus cannot be had")]
    Bus(#[from] bus::StartError),
    #[error("failed to start the runtime")]
    Runtime(#[source] std::io::Error),
    #[error(transparent)]
    Control(#[from] SocketError),
    #[error(transparent)]
    Web(#[from] WebError),
    #[error(transparent)]
    Grpc(#[from] GrpcError),
    #[error("the identity of this node cannot be used")]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Domains(#[from] DomainsError),
    #[error(transparent)]
    Methods(#[from] Pm3Error),
    #[error("failed to make the TLS configuration of the store")]
    Tls(#[from] crate::identity::TlsError),
    #[error("failed to listen for signals")]
    Signals(#[source] std::io::Error),
}

/// Runs the agent until it is asked to stop. Call it from the main thread, before any other starts.
pub fn run(launch: Launch) -> ExitCode {
    let (level, history) = match telemetry::init(&launch.config.log) {
        Ok(log) => log,
        Err(error) => return failed(&AppError::Log(error)),
    };
    match prepare(&launch.config).and_then(|settings| serve(launch, settings, level, history)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn failed(error: &AppError) -> ExitCode {
    error!("{}", chain(error));
    ExitCode::FAILURE
}

/// Everything that must happen while this is the only thread.
fn prepare(config: &Config) -> Result<Settings, AppError> {
    let roles = roles(config);
    privileges::require(roles)?;
    let settings = resolve(config)?;
    limits::raise_open_files();
    let kept = privileges::restrict(roles)?;
    info!(capabilities = ?kept, "kept what the enabled roles need, gave up the rest");
    Ok(settings)
}

fn roles(config: &Config) -> Roles {
    let low = |port: u16| port != 0 && port < 1024;
    let dns_low = config.dns.enabled
        && (config.dns.listen_on_mesh || config.dns.listen.iter().any(|address| low(address.port())));
    let gateway = &config.gateway;
    let mut gateway_ports = gateway.listen.iter().chain(&gateway.tls_listen).map(std::net::SocketAddr::port);
    let gateway_low = gateway.enabled && (gateway.listen_on_mesh || gateway_ports.any(low));
    Roles {
        accounting: config.accounting.enabled,
        callers: (gateway.enabled || config.web.enabled) && gateway.caller.enabled,
        low_port: dns_low
            || gateway_low
            || (config.grpc.enabled && low(config.grpc.listen.port()))
            || (config.web.enabled && low(config.web.listen.port())),
        group_socket: true,
        processes: config.supervisor.enabled,
    }
}

fn serve(launch: Launch, settings: Settings, level: LevelHandle, history: History) -> Result<(), AppError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers())
        .enable_all()
        .build()
        .map_err(AppError::Runtime)?;
    runtime.block_on(serve_until_stopped(launch, settings, level, history))
}

/// One for each processor that this process may use.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(MOST_WORKERS)
}

/// Who this node is to the others; made at the first start.
fn open_identity(settings: &Settings) -> Result<Identity, IdentityError> {
    let directory = settings.state_dir.join("identity");
    Identity::open(&directory, &settings.model.node.id, &settings.model.domain)
}

async fn serve_until_stopped(
    launch: Launch,
    settings: Settings,
    level: LevelHandle,
    history: History,
) -> Result<(), AppError> {
    let socket = control::bind(&settings.run_dir)?;
    let web = settings.web.enabled.then(|| web::bind(settings.web.listen)).transpose()?;
    let identity = open_identity(&settings)?;
    let grpc = match settings.grpc.enabled {
        true => Some(grpc::bind(settings.grpc.listen, identity.clone())?),
        false => None,
    };
    let mut signals = loops::Signals::new().map_err(AppError::Signals)?;
    announce(&launch.config, &settings);

    let readiness = Readiness::default();
    let metrics = Metrics::default();
    let domain_shutdown = Shutdown::default();
    let listener_shutdown = Shutdown::default();
    let store =
        store::start(store_inputs(&settings, &identity)?, &metrics, readiness.block("store"), domain_shutdown.stop());
    let (configured, configured_rx) = watch::channel(Arc::clone(&settings.model));
    let grpc_port = grpc.as_ref().map_or(0, |grpc| grpc.address().port());
    let (mesh, _renewal) = mesh::start(&settings, &identity, store.clone(), configured_rx, grpc_port);
    let models = (configured, mesh.model());
    let domains = Domains::start(settings.clone(), models, &metrics, &readiness, &domain_shutdown).await?;

    let (commands_tx, commands) = mpsc::channel::<Command>(COMMANDS);
    keep_log(&history, &settings);
    let figures = domains.figures_reader();
    let _paths = paths::start(domains.wireguard.figures_reader(), mesh.clone());
    let bus = start_bus(&settings, &domains, &store, &metrics, &domain_shutdown).await?;
    let pm3 = Pm3::start(pm3::Inputs {
        model: domains.model(),
        agent: Arc::new(ForMethods { commands: commands_tx.clone(), figures: figures.clone() }),
        state_dir: settings.state_dir.clone(),
        history,
        process: domains.process.handle.clone(),
        ip_table: settings.gateway.ip_table.clone(),
        store: store.clone(),
        bus: bus.clone(),
    })?;
    let recorded = start_callers(&settings, &metrics).await;
    let classifier = recorded.clone().map(|recorded| recorded as Arc<dyn pm3::caller::Classifier>);
    let gateway = recorded.filter(|_| settings.gateway.enabled).map(|recorded| {
        let inputs = gateway_inputs(&settings, recorded, &pm3, &domains, &metrics, &identity);
        gateway::start(inputs, listener_shutdown.stop())
    });
    let gateway_status = gateway.as_ref().map_or_else(|| watch::Sender::default().subscribe(), Gateway::status);
    let sources = Arc::new(Sources {
        instance: launch.config.instance.clone(),
        started: Instant::now(),
        model: domains.model(),
        wireguard: domains.wireguard.status(),
        net: domains.net.status(),
        firewall: domains.firewall.status(),
        accounting: domains.accounting.status(),
        dns: domains.dns.status(),
        figures,
        store,
        state_dir: settings.state_dir.clone(),
        pm3,
        mesh: mesh.mesh(),
        mesh_handle: mesh,
        identity: identity.clone(),
        has_web: web.is_some(),
        gateway: gateway_status,
        bus: bus.status(),
        process: domains.process.handle.clone(),
        readiness: readiness.clone(),
        metrics,
        commands: commands_tx,
    });
    let _control = socket.serve(Arc::clone(&sources), listener_shutdown.stop());
    let _grpc = grpc.map(|grpc| grpc.serve(&sources, listener_shutdown.stop()));
    let web_inputs = web::Inputs { settings: settings.web.clone(), sources, classifier };
    let _web = web.map(|web| web.serve(web_inputs, listener_shutdown.stop()));

    let ready = loops::announce_ready(readiness.clone());
    let _memory = memory::start(readiness);
    let _watchdog = loops::watchdog();
    let end = loops::run(launch, &domains, &level, &mut signals, commands).await;
    drop(ready);
    stop(domains, settings, end, domain_shutdown, listener_shutdown).await;
    Ok(())
}

/// Who calls is asked only where somebody may call.
async fn start_callers(settings: &Settings, metrics: &Metrics) -> Option<Arc<callers::Recorded>> {
    match settings.gateway.enabled || settings.web.enabled {
        true => Some(Arc::new(callers::Recorded(Callers::start(settings.callers.clone(), metrics).await))),
        false => None,
    }
}

/// The message bus, where the configuration asks for one.
async fn start_bus(
    settings: &Settings,
    domains: &Domains,
    store: &store::Handle,
    metrics: &Metrics,
    shutdown: &Shutdown,
) -> Result<bus::Handle, AppError> {
    let inputs = bus::Inputs {
        config: settings.bus.clone(),
        model: domains.model(),
        store: store.clone(),
        run_dir: settings.run_dir.clone(),
    };
    Ok(bus::start(inputs, metrics, shutdown.stop()).await?)
}

fn keep_log(history: &History, settings: &Settings) {
    if let Err(error) = history.start(&settings.state_dir.join("logs")) {
        warn!(%error, "the log is not kept; `weft tail` shows only what comes");
    }
}

fn gateway_inputs(
    settings: &Settings,
    recorded: Arc<callers::Recorded>,
    pm3: &Arc<Pm3>,
    domains: &Domains,
    metrics: &Metrics,
    identity: &Identity,
) -> gateway::Inputs {
    gateway::Inputs {
        config: settings.gateway.clone(),
        pm3: Arc::clone(pm3),
        model: domains.model(),
        classifier: Arc::<callers::Recorded>::clone(&recorded),
        steering: Some(recorded),
        metrics: metrics.clone(),
        identity: Some(identity.clone()),
        peer_port: gateway::MESH_TLS_PORT,
    }
}

/// A node that was one of several and has no store any more begins none of its own: they would be two meshes of one name.
fn formation(settings: &Settings, identity: &Identity) -> store::Formation {
    let is_lost = !store::exists(&settings.state_dir.join("store"));
    match is_lost && crate::mesh::remembers_others(&settings.state_dir.join("mesh"), identity) {
        true => store::Formation::Join,
        false => store::Formation::Alone,
    }
}

/// The replicated database of this node; alone it is a cluster of one.
fn store_inputs(settings: &Settings, identity: &Identity) -> Result<store::Inputs, AppError> {
    Ok(store::Inputs {
        config: settings.store.clone(),
        node: settings.model.node.id.clone(),
        directory: settings.state_dir.join("store"),
        schemas: vec![pm3::kv::SCHEMA, crate::mesh::schema::SCHEMA, bus::schema::SCHEMA],
        formation: formation(settings, identity),
        network: raft::network(&settings.raft, identity)?,
    })
}

/// The effective configuration, once; it holds no secret, key files are named by path only.
fn announce(config: &Config, settings: &Settings) {
    info!(
        version = env!("CARGO_PKG_VERSION"),
        instance = %config.instance,
        node = %settings.model.node.id,
        public_key = %settings.model.node.public_key,
        link = %config.wireguard.link,
        peers = settings.model.peers().len(),
        "starting"
    );
    // Ten thousand peers are no log line; `weft peers` lists them.
    let shown = Config { peer: Vec::new(), ..config.clone() };
    info!(config = ?shown, "effective configuration");
}

async fn stop(domains: Domains, settings: Settings, end: End, domain_shutdown: Shutdown, listeners: Shutdown) {
    sd_notify::notify(&[sd_notify::NotifyState::Stopping]).unwrap_or_else(|error| {
        warn!(%error, "failed to tell the service manager about the stop");
    });
    let model = domains.current();
    let embedded = domains.embedded_link();
    if matches!(end, End::Remove(_)) {
        // They are ended as their definitions say; what is left of them is removed below.
        domains.process.handle.stop_all().await.map(drop).unwrap_or_else(|error| info!(%error, "no processes to end"));
    }
    // The handles go last: with them the tasks would be cut off in what they do at a stop, such as taking the resolver hook away.
    if !domain_shutdown.drain(DRAIN).await {
        warn!("some tasks did not stop in time; their work stays as it is");
    }
    drop(domains);
    if let End::Remove(reply) = end {
        let settings = Settings { model, ..settings };
        let mut result = removal::remove_all(&settings).await;
        if let (Ok(lines), Some(link)) = (&mut result, embedded) {
            // It went away with the domains.
            lines.push(format!("link {link} with the embedded device"));
        }
        // A caller that went away needs no answer; the log has it.
        reply.send(result).unwrap_or_else(|_result| info!("nobody waits for what was removed"));
    }
    if !listeners.drain(DRAIN).await {
        warn!("some connections did not end in time");
    }
    info!("stopped");
}
