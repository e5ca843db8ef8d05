//! `weft.toml`: composed of what each domain owns, read once, checked whole.
//!
//! Order: defaults, the file, `WEFT_…` variables, `--set KEY=VALUE` flags. A wrong or unknown key stops the start and
//! names where it stands. [`load`] reads; nothing is changed.

mod diagnose;
mod overrides;
mod reload;
mod settings;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::api::{contract, gateway, web};
use crate::foundation::id::{InstanceName, NodeId};
use crate::foundation::telemetry;
use crate::process::definition::Definition;
use crate::sys::file::{self, FileError};
use crate::{bus, dns, ebpf, mesh, net, process, store, wireguard};

pub use overrides::{Override, OverrideError};
pub use reload::restart_keys;
pub use settings::{ResolveError, Settings, check, resolve};

/// Where the file is looked for when no `--config` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/weft/weft.toml";

/// The file as it was written, with defaults where it says nothing.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Names pins, the nft table and cgroups; several instances share a host.
    pub instance: InstanceName,
    /// Keys and everything that outlives a boot; mode 0700.
    pub state_dir: PathBuf,
    /// The control socket.
    pub run_dir: PathBuf,
    pub node: NodeConfig,
    pub wireguard: wireguard::config::Config,
    pub peer: Vec<wireguard::config::PeerConfig>,
    pub network: net::config::Config,
    pub firewall: net::config::FirewallConfig,
    pub accounting: ebpf::config::Config,
    pub dns: dns::config::Config,
    pub gateway: gateway::config::Config,
    pub web: web::config::Config,
    pub grpc: contract::Config,
    pub mesh: mesh::config::Config,
    pub store: store::config::Config,
    pub supervisor: process::config::Config,
    /// `[process.NAME]`.
    pub process: BTreeMap<String, Definition>,
    pub raft: store::config::RaftConfig,
    pub bus: bus::config::Config,
    pub log: telemetry::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            instance: InstanceName::try_from("default".to_owned()).expect("a valid label"),
            state_dir: PathBuf::from("/var/lib/weft"),
            run_dir: PathBuf::from("/run/weft"),
            node: NodeConfig::default(),
            wireguard: wireguard::config::Config::default(),
            peer: Vec::new(),
            network: net::config::Config::default(),
            firewall: net::config::FirewallConfig::default(),
            accounting: ebpf::config::Config::default(),
            dns: dns::config::Config::default(),
            gateway: gateway::config::Config::default(),
            web: web::config::Config::default(),
            grpc: contract::Config::default(),
            mesh: mesh::config::Config::default(),
            store: store::config::Config::default(),
            supervisor: process::config::Config::default(),
            process: BTreeMap::new(),
            raft: store::config::RaftConfig::default(),
            bus: bus::config::Config::default(),
            log: telemetry::Config::default(),
        }
    }
}

/// `[node]`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeConfig {
    /// Absent: the host name.
    pub id: Option<NodeId>,
}

/// Why no configuration could be read.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("failed to read the configuration")]
    Read(#[source] FileError),
    #[error("there is no configuration file {}; name another with --config", .0.display())]
    Missing(PathBuf),
    /// The text says where in the file, what is wrong and, for an unknown key, which one is nearest.
    #[error("{0}")]
    Parse(String),
    #[error(transparent)]
    Override(#[from] OverrideError),
}

/// Which file to read.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// This one; it must exist.
    File(&'a Path),
    /// [`DEFAULT_PATH`] if it exists, else the defaults alone.
    Default,
}

/// Reads the file and lays the overrides over it.
///
/// # Errors
/// [`LoadError`]; nothing else is read or changed.
pub fn load(source: Source<'_>, overrides: &[Override]) -> Result<Config, LoadError> {
    let path = match source {
        Source::File(path) => path,
        Source::Default => Path::new(DEFAULT_PATH),
    };
    let text = match (file::read_if_present(path).map_err(LoadError::Read)?, source) {
        (Some(text), _) => text,
        (None, Source::Default) => String::new(),
        (None, Source::File(path)) => return Err(LoadError::Missing(path.to_owned())),
    };
    parse(&path.display().to_string(), &text, overrides)
}

/// Parses `text`, which came from `origin`, and lays the overrides over it.
///
/// # Errors
/// [`LoadError::Parse`] or [`LoadError::Override`].
pub fn parse(origin: &str, text: &str, overrides: &[Override]) -> Result<Config, LoadError> {
    let config: Config =
        toml::from_str(text).map_err(|error| LoadError::Parse(diagnose::explain(origin, text, &error)))?;
    if overrides.is_empty() {
        return Ok(config);
    }
    let table: toml::Table =
        toml::from_str(text).map_err(|error| LoadError::Parse(diagnose::explain(origin, text, &error)))?;
    Ok(overrides::apply(table, config, overrides)?)
}

#[cfg(test)]
mod tests;
