//! Names of the mesh: an authoritative server for the nodes, a forwarder for everything else, and the optional
//! hook that points the host's own resolver here.
//!
//! | module | what it owns |
//! |---|---|
//! | [`wire`] | names and records in wire form |
//! | [`zone`] | the model as names (pure) |
//! | [`answer`] | query bytes to answer bytes, without upstreams or allocation (pure) |
//! | [`metrics`] | what is counted |
//! | [`upstream`] | forwarding, its cache, the host's own resolvers |
//! | [`handler`] | the same answers over hickory-server's types, and the forwarded ones |
//! | [`hook`] | whether the host's own resolver asks us |
//! | [`server`] | sockets, threads and connections |
//!
//! In: [`Settings`], the model, the link. Out: [`status::Status`] and answers. Invariants: a name of ours is never
//! forwarded, strangers are never forwarded for, our own address is never our upstream, and a socket that cannot be
//! had costs that socket only.
//!
//! `weft dns query` is an ordinary client: what it shows is what every program on the host gets.

pub mod config;
pub mod status;

pub mod wire;
pub mod zone;

pub mod answer;

pub mod metrics;

pub mod upstream;

pub mod handler;

pub mod hook;
pub mod server;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use self::config::{Config, HookChoice};
use self::hook::Hook;
use self::hook::resolv_conf::{ResolvConfError, Restored};
use self::hook::resolved::Resolved;
use self::metrics::Metrics;
use self::server::{Server, ServerError};
use self::status::Status;
use self::upstream::host::HostFiles;
use crate::foundation::lifecycle::{Blocker, Stop};
use crate::foundation::metrics::Metrics as Registry;
use crate::foundation::reconcile::{self, Trigger};
use crate::foundation::task::Task;
use crate::model::{Link, Model};

/// What the domain needs to know before it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub config: Config,
    /// Where the backup of a replaced `/etc/resolv.conf` is kept.
    pub state_dir: PathBuf,
    /// `/` but in tests.
    pub root: PathBuf,
}

impl Settings {
    /// The settings of a host.
    pub fn new(config: Config, state_dir: PathBuf) -> Self {
        Self { config, state_dir, root: PathBuf::from("/") }
    }

    fn host_files(&self) -> HostFiles {
        HostFiles {
            resolv_conf: self.root.join("etc/resolv.conf"),
            resolved: self.root.join("run/systemd/resolve/resolv.conf"),
            backup: self.state_dir.join("resolv.conf.before"),
            told: self.state_dir.join("resolved.link"),
        }
    }
}

/// A running server; dropping it closes its sockets.
#[derive(Debug)]
pub struct Handle {
    server: reconcile::Handle<Arc<Status>>,
    _follow: [Task; 2],
    _hook: Task,
}

impl Handle {
    /// The state after the newest pass, and its changes.
    pub fn status(&self) -> watch::Receiver<Arc<Status>> {
        self.server.status()
    }
}

/// Starts to answer. Sockets that cannot be bound show in the status and are tried again.
///
/// # Errors
/// [`ServerError`]: a mesh domain that is no domain name.
pub fn start(
    settings: Settings,
    model: watch::Receiver<Arc<Model>>,
    link: watch::Receiver<Option<Link>>,
    metrics: &Registry,
    readiness: Blocker,
    stop: Stop,
) -> Result<Handle, ServerError> {
    let files = settings.host_files();
    let choice = if settings.config.enabled { settings.config.hook } else { HookChoice::Off };
    let (hook_state, hook) = watch::channel(hook::State::default());
    let trigger = Trigger::default();
    let follow = [trigger.follow(model.clone()), trigger.follow(hook.clone())];
    let metrics = Metrics::new(metrics);
    let server = Server::new(settings.config, files.clone(), model.clone(), hook, metrics, readiness)?;
    let server = reconcile::start(server.behind(link.clone()), trigger, Arc::default(), stop.clone());
    let inputs = hook::Inputs { model, link, server: server.status() };
    let hook = hook::start(Hook::new(choice, files, Resolved::default()), inputs, hook_state, stop);
    Ok(Handle { server, _follow: follow, _hook: hook })
}

/// Takes away what outlives the agent: the resolver hook. For `weft down`.
///
/// # Errors
/// `/etc/resolv.conf` could not be put back.
pub fn down(settings: &Settings) -> Result<Restored, ResolvConfError> {
    hook::down(settings.host_files())
}
