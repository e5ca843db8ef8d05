//! What was read becomes what each domain starts with.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Config;
use crate::api::{contract, gateway, web};
use crate::bus;
use crate::dns::wire::{NotAName, WireName};
use crate::foundation::id::{InvalidName, NodeId};
use crate::foundation::telemetry::{self, TelemetryError};
use crate::model::key::PrivateKey;
use crate::model::{Model, ModelError, Node};
use crate::sys::file::{self, FileError};
use crate::wireguard::config::{ConfigError as WireguardError, PeerConfig, PeerKeyError};
use crate::wireguard::key_file::KeyFileError;
use crate::{dns, ebpf, mesh, net, process, store, wireguard};

/// A configuration that is right as a whole, cut into what each domain takes.
#[derive(Debug, Clone)]
pub struct Settings {
    pub wireguard: Arc<wireguard::settings::Settings>,
    pub model: Arc<Model>,
    pub network: Arc<net::config::Settings>,
    pub firewall: Arc<net::config::FirewallSettings>,
    pub accounting: ebpf::Settings,
    pub dns: dns::Settings,
    pub gateway: gateway::config::Config,
    pub bus: bus::config::Config,
    pub callers: ebpf::callers::Settings,
    pub web: web::config::Settings,
    pub grpc: contract::Config,
    pub mesh: mesh::config::Config,
    pub store: store::config::Config,
    pub process: process::Settings,
    pub raft: store::config::RaftConfig,
    pub state_dir: PathBuf,
    pub run_dir: PathBuf,
}

/// Why a configuration that parses cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    #[error("the host name gives no node id; set node.id")]
    NodeId(#[source] InvalidName),
    #[error("failed to read the host name; set node.id")]
    HostName(#[source] std::io::Error),
    #[error("state_dir is of no use")]
    StateDirectory(#[source] FileError),
    #[error(transparent)]
    Log(#[from] TelemetryError),
    #[error(transparent)]
    Wireguard(#[from] WireguardError),
    #[error("wireguard.private_key_file is of no use")]
    PrivateKey(#[source] KeyFileError),
    #[error(transparent)]
    Peer(#[from] PeerKeyError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Network(#[from] net::config::ConfigError),
    #[error("dns.domain is not a domain name like weft.internal")]
    Domain(#[source] NotAName),
    #[error(transparent)]
    Mesh(#[from] mesh::config::ConfigError),
    #[error(transparent)]
    Gateway(#[from] gateway::config::ConfigError),
    #[error(transparent)]
    Bus(#[from] bus::config::ConfigError),
    #[error(transparent)]
    Web(#[from] web::config::ConfigError),
    #[error(transparent)]
    Store(#[from] store::config::ConfigError),
    #[error(transparent)]
    Accounting(#[from] ebpf::config::ConfigError),
    #[error(transparent)]
    Process(#[from] process::config::ConfigError),
}

/// Checks `config` whole and reads the files it names. Makes the state directory and the private key if they are missing.
///
/// # Errors
/// The first thing that is wrong, by its key.
pub fn resolve(config: &Config) -> Result<Settings, ResolveError> {
    file::create_directory(&config.state_dir, 0o700).map_err(ResolveError::StateDirectory)?;
    let peers = checked_peers(config)?;
    let wireguard = config.wireguard.clone().validate()?;
    let wireguard = wireguard.settings(&config.instance, &config.state_dir).map_err(ResolveError::PrivateKey)?;
    assemble(config, wireguard, peers)
}

/// Checks `config` like [`resolve`] and makes nothing: a private key that does not exist yet is taken as made.
///
/// # Errors
/// The first thing that is wrong, by its key.
pub fn check(config: &Config) -> Result<Settings, ResolveError> {
    let peers = checked_peers(config)?;
    let wireguard = config.wireguard.clone().validate()?;
    let made = wireguard.private_key_file.is_some() || config.state_dir.join("private.key").exists();
    let wireguard = if made {
        wireguard.settings(&config.instance, &config.state_dir).map_err(ResolveError::PrivateKey)?
    } else {
        with_passing_key(config, &wireguard)
    };
    assemble(config, wireguard, peers)
}

/// The settings with a key that lives as long as they do: what is checked or removed needs none.
fn with_passing_key(config: &Config, wireguard: &wireguard::config::Config) -> wireguard::settings::Settings {
    wireguard::settings::Settings {
        instance: config.instance.clone(),
        link: wireguard.link.clone(),
        listen_port: wireguard.listen_port,
        backend: wireguard.backend,
        fwmark: wireguard.fwmark,
        private_key: PrivateKey::from_bytes(x25519_dalek::StaticSecret::random().to_bytes()),
    }
}

fn checked_peers(config: &Config) -> Result<Vec<PeerConfig>, ResolveError> {
    telemetry::parse_level(&config.log.level)?;
    config.accounting.validate()?;
    config.gateway.validate()?;
    config.bus.validate()?;
    config.mesh.validate()?;
    config.store.validate()?;
    config.supervisor.validate()?;
    config.raft.validate()?;
    WireName::parse(&config.dns.domain).map_err(ResolveError::Domain)?;
    Ok(config.peer.iter().map(|peer| peer.clone().validate()).collect::<Result<_, _>>()?)
}

fn assemble(
    config: &Config,
    wireguard: wireguard::settings::Settings,
    peers: Vec<PeerConfig>,
) -> Result<Settings, ResolveError> {
    let node = Node {
        id: node_id(config)?,
        addresses: config.wireguard.addresses.clone(),
        public_key: wireguard.private_key.public(),
    };
    let peers = peers.into_iter().map(PeerConfig::peer).collect::<Result<_, _>>()?;
    let model = Model::new(node, config.dns.domain.to_ascii_lowercase(), peers)?;
    let network = config.network.clone().validate(config.wireguard.fwmark)?;
    let firewall =
        config.firewall.clone().validate(config.instance.clone(), wireguard.link.clone(), wireguard.listen_port)?;
    Ok(Settings {
        model: Arc::new(model),
        network: Arc::new(network),
        firewall: Arc::new(firewall),
        accounting: ebpf::Settings::new(config.instance.clone(), config.accounting.clone()),
        dns: dns::Settings::new(config.dns.clone(), config.state_dir.clone()),
        callers: ebpf::callers::Settings::new(config.instance.clone(), config.gateway.caller.clone())
            .map_err(gateway::config::ConfigError::from)?,
        gateway: config.gateway.clone(),
        bus: config.bus.clone(),
        web: config.web.settings()?,
        grpc: config.grpc.clone(),
        mesh: config.mesh.clone(),
        store: config.store.clone(),
        process: process::Settings {
            config: config.supervisor.clone(),
            instance: config.instance.clone(),
            state_dir: config.state_dir.clone(),
            run_dir: config.run_dir.clone(),
            processes: process::config::check_processes(&config.process)?,
        },
        raft: config.raft.clone(),
        state_dir: config.state_dir.clone(),
        run_dir: config.run_dir.clone(),
        wireguard: Arc::new(wireguard),
    })
}

fn node_id(config: &Config) -> Result<NodeId, ResolveError> {
    if let Some(id) = &config.node.id {
        return Ok(id.clone());
    }
    let name = std::fs::read_to_string(Path::new("/proc/sys/kernel/hostname")).map_err(ResolveError::HostName)?;
    NodeId::from_host_name(name.trim()).map_err(ResolveError::NodeId)
}
