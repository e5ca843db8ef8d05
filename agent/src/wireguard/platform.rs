//! The host as this domain uses it: one link, the device behind it, name resolution and the wall clock.
//!
//! [`linux`] is real; [`fake`] keeps real state, so that tests look at what came of a pass.

pub mod fake;
pub mod linux;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::watch;

use super::device::{DeviceState, Step};
use crate::foundation::id::LinkName;
use crate::model::{Backend, Link};

/// What this domain does to a host.
pub trait Platform: Send + Sync + 'static {
    /// The link of this name.
    fn find(&self, name: &LinkName) -> impl Future<Output = Result<Option<FoundLink>, PlatformError>> + Send;
    /// The name of a link with this alias, other than `name`.
    fn find_alias(
        &self,
        alias: &str,
        other_than: &LinkName,
    ) -> impl Future<Output = Result<Option<LinkName>, PlatformError>> + Send;
    /// Whether the kernel has WireGuard. Changes nothing, but may make the kernel load its module.
    fn kernel_support(&self) -> impl Future<Output = Result<bool, PlatformError>> + Send;
    /// Makes the link and returns its index. Nothing is left behind on failure.
    fn create(&self, link: &NewLink) -> impl Future<Output = Result<u32, PlatformError>> + Send;
    /// Names the owner of a link.
    fn set_alias(&self, link: &Link, alias: &str) -> impl Future<Output = Result<(), PlatformError>> + Send;
    /// Takes the link away, with the device behind it.
    fn delete(&self, link: &Link) -> impl Future<Output = Result<(), PlatformError>> + Send;
    /// What the device holds now.
    fn observe(&self, link: &Link) -> impl Future<Output = Result<DeviceState, PlatformError>> + Send;
    /// Does one step. Fails with [`PlatformError::Vanished`] if the link is no longer the one with this index.
    fn apply(&self, link: &Link, step: &Arc<Step>) -> impl Future<Output = Result<(), PlatformError>> + Send;
    /// How often the device was configured, by anybody, where it counts that; `None`: only [`Platform::observe`] tells.
    fn times_configured(&self, link: &Link) -> Option<u64>;
    /// The addresses of a host name, best first.
    fn resolve(&self, host: &str, port: u16) -> impl Future<Output = io::Result<Vec<SocketAddr>>> + Send;
    /// Counts up when the device fails by itself.
    fn failures(&self) -> watch::Receiver<u64>;
    /// The wall clock, which handshakes are dated by.
    fn now(&self) -> SystemTime;
}

/// A link that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundLink {
    pub index: u32,
    pub kind: LinkKind,
    pub alias: Option<String>,
}

/// What a link is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkKind {
    /// The kernel's WireGuard.
    Kernel,
    /// The TUN of the embedded device in this process.
    Embedded,
    /// A TUN whose WireGuard socket answers from another process.
    OtherProcess,
    /// Anything else, as `ip -details link` calls it.
    Other(String),
}

/// A link to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewLink {
    pub name: LinkName,
    pub backend: Backend,
    pub alias: String,
    pub listen_port: u16,
    pub fwmark: u32,
}

/// What the host refused.
#[derive(Debug, thiserror::Error)]
pub enum PlatformError {
    #[error("failed to {action} link {link}")]
    Link {
        action: &'static str,
        link: LinkName,
        #[source]
        source: io::Error,
    },
    #[error("failed to open a connection to rtnetlink")]
    Netlink(#[source] io::Error),
    #[error("not allowed to {action} link {link}; run the agent as root or with CAP_NET_ADMIN")]
    Permission { action: &'static str, link: LinkName },
    #[error("link {link} went away while it was being changed; it is made anew")]
    Vanished { link: LinkName },
    #[error("failed to set {what} on {link}")]
    Apply {
        what: &'static str,
        link: LinkName,
        #[source]
        source: io::Error,
    },
    #[error("UDP port {port} is in use by another program; stop that program or set wireguard.listen_port")]
    PortInUse { port: u16 },
    #[error(
        "/dev/net/tun is missing, which the embedded device needs; run `modprobe tun`, or pass the device into the container"
    )]
    NoTun,
    #[error(
        "a second instance: another process answers on {}, which is the WireGuard socket for link {link}; stop that process or set wireguard.link",
        path.display()
    )]
    SocketInUse { link: LinkName, path: std::path::PathBuf },
    #[error("failed to start the embedded WireGuard device on {link}")]
    Embedded {
        link: LinkName,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
