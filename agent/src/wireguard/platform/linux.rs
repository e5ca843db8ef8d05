//! The real host: rtnetlink for the link, `wireguard-control` for the device, kernel or embedded alike.
//!
//! Invariants: `wireguard-control` blocks, so it only runs on blocking threads. Its userspace side starts whatever
//! `wireguard-go` it finds if no socket answers, and its kernel side makes a missing link: so it is called only
//! after the socket has answered, or the link with our index was seen.

mod convert;
mod embedded;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use futures_util::TryStreamExt as _;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::LinkWireguard;
use tokio::sync::watch;
use wireguard_control::{Device, InterfaceName};

use super::{FoundLink, LinkKind, NewLink, Platform, PlatformError};
use crate::foundation::id::LinkName;
use crate::model::{Backend, Link};
use crate::sys::rtnetlink::{Connection, LinkError, LinkInfo, os_error};
use crate::wireguard::device::{DeviceState, Step};
use embedded::Embedded;

/// No link can have this MTU: a kernel that knows the kind refuses the value, one that does not refuses the kind.
const IMPOSSIBLE_MTU: u32 = u32::MAX;

/// The host, in the network namespace of the thread that first used it.
#[derive(Debug, Default)]
pub struct Linux {
    connection: Mutex<Option<Connection>>,
    embedded: Mutex<Option<Embedded>>,
    failures: watch::Sender<u64>,
}

impl Linux {
    fn connection(&self) -> Result<Connection, PlatformError> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = connection.as_ref() {
            return Ok(open.clone());
        }
        let opened = Connection::open().map_err(PlatformError::Netlink)?;
        Ok(connection.insert(opened).clone())
    }

    /// Whether the embedded device of this process carries `name`.
    fn embeds(&self, name: &LinkName) -> bool {
        let embedded = self.embedded.lock().unwrap_or_else(PoisonError::into_inner);
        embedded.as_ref().is_some_and(|device| device.name() == name)
    }

    /// Whether `link` is the embedded device of this process, and works.
    fn is_alive(&self, link: &Link) -> bool {
        let embedded = self.embedded.lock().unwrap_or_else(PoisonError::into_inner);
        embedded.as_ref().is_some_and(|device| device.name() == &link.name && device.failure().is_none())
    }

    /// Takes the embedded device away, if `which` says so, and with it its TUN.
    async fn take_embedded(&self, which: impl FnOnce(&Embedded) -> bool) {
        let taken = self.embedded.lock().unwrap_or_else(PoisonError::into_inner).take_if(|device| which(device));
        if let Some(device) = taken {
            // It waits for its threads. It cannot fail: the device is gone when it returns.
            drop(tokio::task::spawn_blocking(move || drop(device)).await);
        }
    }

    async fn create_kernel(&self, new: &NewLink) -> Result<u32, PlatformError> {
        check_port_is_free(new.listen_port)?;
        let connection = self.connection()?;
        connection.create_wireguard(&new.name, &new.alias).await.map_err(refused("make", &new.name))?;
        let named = self.name_owner(&connection, new).await;
        if named.is_err() {
            // Not left half-made; the error that is returned says what was wrong.
            if let Ok(Some(link)) = connection.link_by_name(&new.name).await {
                connection.delete_link(link.index).await.ok();
            }
        }
        named
    }

    async fn create_embedded(&self, new: &NewLink) -> Result<u32, PlatformError> {
        // The old device first: it may hold the port or the name.
        self.take_embedded(|_| true).await;
        let device = Embedded::start(new, self.failures.clone()).await?;
        let named = self.name_owner(&self.connection()?, new).await;
        if named.is_ok() {
            *self.embedded.lock().unwrap_or_else(PoisonError::into_inner) = Some(device);
        }
        named
    }

    async fn name_owner(&self, connection: &Connection, new: &NewLink) -> Result<u32, PlatformError> {
        let found = connection.link_by_name(&new.name).await.map_err(refused("look up", &new.name))?;
        let link = found.ok_or_else(|| PlatformError::Vanished { link: new.name.clone() })?;
        connection.set_alias(link.index, &new.alias).await.map_err(refused("set the alias of", &new.name))?;
        Ok(link.index)
    }

    fn kind(&self, link: &LinkInfo, name: &LinkName) -> LinkKind {
        match link.kind.as_deref() {
            Some("wireguard") => LinkKind::Kernel,
            Some("tun") if self.embeds(name) => LinkKind::Embedded,
            Some("tun") if socket_answers(name) => LinkKind::OtherProcess,
            Some(other) => LinkKind::Other(other.to_owned()),
            None => LinkKind::Other("network device".to_owned()),
        }
    }
}

impl Platform for Linux {
    async fn find(&self, name: &LinkName) -> Result<Option<FoundLink>, PlatformError> {
        self.take_embedded(has_failed).await;
        let found = self.connection()?.link_by_name(name).await.map_err(refused("look up", name))?;
        Ok(found.map(|link| FoundLink { index: link.index, kind: self.kind(&link, name), alias: link.alias }))
    }

    async fn find_alias(&self, alias: &str, other_than: &LinkName) -> Result<Option<LinkName>, PlatformError> {
        let connection = self.connection()?;
        let failed = |error| PlatformError::Link { action: "list", link: other_than.clone(), source: os_error(error) };
        let mut links = Box::pin(connection.handle().link().get().execute());
        let mut found = None;
        while let Some(link) = links.try_next().await.map_err(failed)? {
            found = found.or_else(|| name_of_alias(&link, alias).filter(|name| name != other_than));
        }
        Ok(found)
    }

    async fn kernel_support(&self) -> Result<bool, PlatformError> {
        let probe: LinkName = "weft-probe".parse().expect("a valid name");
        let message = LinkWireguard::new(probe.as_str()).mtu(IMPOSSIBLE_MTU).build();
        let connection = self.connection()?;
        let Err(error) = connection.handle().link().add(message).execute().await else {
            // A kernel that takes any MTU has made the link; it knows the kind, and the probe goes again.
            if let Ok(Some(link)) = connection.link_by_name(&probe).await {
                connection.delete_link(link.index).await.map_err(refused("delete", &probe))?;
            }
            return Ok(true);
        };
        let source = os_error(error);
        match source.raw_os_error() {
            Some(libc::EINVAL | libc::ERANGE | libc::EEXIST) => Ok(true),
            Some(libc::EOPNOTSUPP) => Ok(false),
            Some(libc::EPERM | libc::EACCES) => Err(PlatformError::Permission { action: "make", link: probe }),
            _ => Err(PlatformError::Link { action: "probe for WireGuard with", link: probe, source }),
        }
    }

    async fn create(&self, new: &NewLink) -> Result<u32, PlatformError> {
        match new.backend {
            Backend::Kernel => self.create_kernel(new).await,
            Backend::Userspace => self.create_embedded(new).await,
        }
    }

    async fn set_alias(&self, link: &Link, alias: &str) -> Result<(), PlatformError> {
        let set = self.connection()?.set_alias(link.index, alias).await;
        set.map_err(refused("set the alias of", &link.name))
    }

    async fn delete(&self, link: &Link) -> Result<(), PlatformError> {
        self.take_embedded(|device| device.name() == &link.name).await;
        let deleted = self.connection()?.delete_link(link.index).await;
        deleted.map(drop).map_err(refused("delete", &link.name))
    }

    async fn observe(&self, link: &Link) -> Result<DeviceState, PlatformError> {
        let (asked, embedded) = (link.clone(), self.is_alive(link));
        blocking(move || read_device(&asked, embedded)).await.map_err(|source| device_error("read", link, source))
    }

    async fn apply(&self, link: &Link, step: &Arc<Step>) -> Result<(), PlatformError> {
        let (what, port) = match &**step {
            Step::PrivateKey(_) => ("the private key", None),
            Step::Fwmark(_) => ("the mark (wireguard.fwmark)", None),
            Step::ListenPort(port) => ("the listen port (wireguard.listen_port)", Some(*port)),
            Step::Peers(_) => ("peers", None),
        };
        let (asked, step, embedded) = (link.clone(), Arc::clone(step), self.is_alive(link));
        let result = blocking(move || write_device(&asked, &step, embedded)).await;
        result.map_err(|source| match port {
            // The embedded device's own error number is lost on the way: ask the host about the port.
            Some(port) if check_port_is_free(port).is_err() => PlatformError::PortInUse { port },
            _ => device_error(what, link, source),
        })
    }

    fn times_configured(&self, link: &Link) -> Option<u64> {
        let embedded = self.embedded.lock().unwrap_or_else(PoisonError::into_inner);
        let device =
            embedded.as_ref().filter(|device| link.backend == Backend::Userspace && device.name() == &link.name);
        device.map(Embedded::times_configured)
    }

    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host((host, port)).await?.collect())
    }

    fn failures(&self) -> watch::Receiver<u64> {
        self.failures.subscribe()
    }

    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

fn has_failed(device: &Embedded) -> bool {
    let failure = device.failure();
    if let Some(reason) = failure {
        tracing::error!(link = %device.name(), reason, "the embedded WireGuard device failed; it is started anew");
    }
    failure.is_some()
}

fn refused(action: &'static str, link: &LinkName) -> impl FnOnce(LinkError) -> PlatformError {
    let link = link.clone();
    move |error| match error.source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => PlatformError::Permission { action, link },
        _ => PlatformError::Link { action, link, source: error.source },
    }
}

fn device_error(what: &'static str, link: &Link, source: io::Error) -> PlatformError {
    let name = link.name.clone();
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => PlatformError::Permission { action: "configure", link: name },
        Some(libc::ENODEV) => PlatformError::Vanished { link: name },
        _ if what == "read" => PlatformError::Link { action: "read the WireGuard device of", link: name, source },
        _ => PlatformError::Apply { what, link: name, source },
    }
}

fn name_of_alias(message: &LinkMessage, alias: &str) -> Option<LinkName> {
    let is_ours =
        |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::IfAlias(text) if text.as_str() == alias);
    message.attributes.iter().find(|attribute| is_ours(attribute))?;
    message
        .attributes
        .iter()
        .find_map(|attribute| if let LinkAttribute::IfName(name) = attribute { name.parse().ok() } else { None })
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

fn read_device(link: &Link, embedded: bool) -> io::Result<DeviceState> {
    let name = check_present(link, embedded)?;
    Device::get(&name, convert::backend(link.backend)).map(convert::state)
}

fn write_device(link: &Link, step: &Step, embedded: bool) -> io::Result<()> {
    let name = check_present(link, embedded)?;
    convert::update(step).apply(&name, convert::backend(link.backend))
}

/// Fails with `ENODEV` unless the link is the one we mean and, where a userspace device is behind it, its socket answers.
/// That of a device of ours that lives (`embedded`) does; to ask costs it a thread.
fn check_present(link: &Link, embedded: bool) -> io::Result<InterfaceName> {
    let gone = || io::Error::from_raw_os_error(libc::ENODEV);
    if nix::net::if_::if_nametoindex(link.name.as_str()).ok() != Some(link.index) {
        return Err(gone());
    }
    if link.backend == Backend::Userspace && !embedded && !socket_answers(&link.name) {
        return Err(gone());
    }
    link.name.as_str().parse().map_err(io::Error::from)
}

/// Where `wireguard-control` and wg(8) look for a userspace device.
fn socket_path(name: &LinkName) -> PathBuf {
    PathBuf::from(format!("/var/run/wireguard/{name}.sock"))
}

fn socket_answers(name: &LinkName) -> bool {
    UnixStream::connect(socket_path(name)).is_ok()
}

/// The kernel binds a link's port when the link goes up, too late to say clearly whose fault it is.
fn check_port_is_free(port: u16) -> Result<(), PlatformError> {
    let in_use =
        |result: io::Result<UdpSocket>| matches!(result, Err(error) if error.kind() == io::ErrorKind::AddrInUse);
    let v4 = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port));
    // The sockets would be in each other's way.
    let v4_in_use = in_use(v4);
    if port != 0 && (v4_in_use || in_use(UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)))) {
        return Err(PlatformError::PortInUse { port });
    }
    Ok(())
}
