//! A host in memory: links of any kind, devices that behave as `device` says, names, a clock.
//!
//! It counts what was written, because "wrote nothing" is a result of its own.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::{FoundLink, LinkKind, NewLink, Platform, PlatformError};
use crate::foundation::id::LinkName;
use crate::model::{Backend, Link};
use crate::wireguard::device::{DeviceState, Step};

/// The host. Tests keep an `Arc` of it and change what they like.
#[derive(Debug)]
pub struct Fake {
    host: Mutex<Host>,
    failures: watch::Sender<u64>,
}

/// Everything the fake host has.
#[derive(Debug)]
pub struct Host {
    /// Whether the kernel has WireGuard.
    pub kernel_support: bool,
    pub links: BTreeMap<LinkName, FakeLink>,
    /// Ports that other programs hold.
    pub ports_in_use: Vec<u16>,
    /// What names resolve to.
    pub names: BTreeMap<String, Vec<SocketAddr>>,
    pub now: SystemTime,
    /// How many calls changed something.
    pub writes: usize,
    /// How often a device was read.
    pub observations: usize,
    next_index: u32,
}

/// A link of the fake host.
#[derive(Debug, Clone)]
pub struct FakeLink {
    pub found: FoundLink,
    pub device: DeviceState,
}

impl Default for Fake {
    fn default() -> Self {
        let host = Host {
            kernel_support: true,
            links: BTreeMap::new(),
            ports_in_use: Vec::new(),
            names: BTreeMap::new(),
            now: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000),
            writes: 0,
            observations: 0,
            next_index: 1,
        };
        Self { host: Mutex::new(host), failures: watch::Sender::new(0) }
    }
}

impl Fake {
    /// The host, to look at and to change.
    pub fn host(&self) -> MutexGuard<'_, Host> {
        self.host.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the embedded device on `name` fail, and its TUN with it.
    pub fn fail_device(&self, name: &LinkName) {
        self.host().links.remove(name);
        self.failures.send_modify(|count| *count += 1);
    }
}

impl Host {
    /// Puts a link in, as another tool would.
    pub fn add_link(&mut self, name: &LinkName, kind: LinkKind, alias: Option<&str>) -> &mut FakeLink {
        self.next_index += 1;
        let found = FoundLink { index: self.next_index, kind, alias: alias.map(ToOwned::to_owned) };
        self.links.entry(name.clone()).or_insert(FakeLink { found, device: DeviceState::default() })
    }

    fn link(&mut self, link: &Link) -> Result<&mut FakeLink, PlatformError> {
        let vanished = || PlatformError::Vanished { link: link.name.clone() };
        self.links.get_mut(&link.name).filter(|found| found.found.index == link.index).ok_or_else(vanished)
    }
}

impl Platform for Fake {
    async fn find(&self, name: &LinkName) -> Result<Option<FoundLink>, PlatformError> {
        Ok(self.host().links.get(name).map(|link| link.found.clone()))
    }

    async fn find_alias(&self, alias: &str, other_than: &LinkName) -> Result<Option<LinkName>, PlatformError> {
        let host = self.host();
        let mut links = host.links.iter();
        let found = links.find(|(name, link)| *name != other_than && link.found.alias.as_deref() == Some(alias));
        Ok(found.map(|(name, _)| name.clone()))
    }

    async fn kernel_support(&self) -> Result<bool, PlatformError> {
        Ok(self.host().kernel_support)
    }

    async fn create(&self, new: &NewLink) -> Result<u32, PlatformError> {
        let mut host = self.host();
        if host.ports_in_use.contains(&new.listen_port) {
            return Err(PlatformError::PortInUse { port: new.listen_port });
        }
        host.writes += 1;
        let kind = match new.backend {
            Backend::Kernel => LinkKind::Kernel,
            Backend::Userspace => LinkKind::Embedded,
        };
        Ok(host.add_link(&new.name, kind, Some(&new.alias)).found.index)
    }

    async fn set_alias(&self, link: &Link, alias: &str) -> Result<(), PlatformError> {
        let mut host = self.host();
        host.link(link)?.found.alias = Some(alias.to_owned());
        host.writes += 1;
        Ok(())
    }

    async fn delete(&self, link: &Link) -> Result<(), PlatformError> {
        let mut host = self.host();
        host.link(link)?;
        host.links.remove(&link.name);
        host.writes += 1;
        Ok(())
    }

    async fn observe(&self, link: &Link) -> Result<DeviceState, PlatformError> {
        let mut host = self.host();
        host.observations += 1;
        Ok(host.link(link)?.device.clone())
    }

    async fn apply(&self, link: &Link, step: &Arc<Step>) -> Result<(), PlatformError> {
        let mut host = self.host();
        if let Step::ListenPort(port) = &**step
            && host.ports_in_use.contains(port)
        {
            return Err(PlatformError::PortInUse { port: *port });
        }
        host.link(link)?.device.apply(step);
        host.writes += 1;
        Ok(())
    }

    fn times_configured(&self, _link: &Link) -> Option<u64> {
        None
    }

    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let host_state = self.host();
        let addresses = host_state.names.get(host).ok_or_else(|| io::Error::other("no such name"))?;
        Ok(addresses.iter().map(|address| SocketAddr::new(address.ip(), port)).collect())
    }

    fn failures(&self) -> watch::Receiver<u64> {
        self.failures.subscribe()
    }

    fn now(&self) -> SystemTime {
        self.host().now
    }
}
