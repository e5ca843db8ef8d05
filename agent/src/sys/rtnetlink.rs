//! Connections to rtnetlink, the few link requests that more than one domain makes, and the change [`monitor`].
//!
//! In: requests by name or index. Out: links as they are now, and failures as the kernel's own error numbers.
//! A connection belongs to the network namespace of the thread that opened it and may then be used from any thread.
//! It asks for strict checking, so the kernel filters dumps by link, table and protocol, and it carries no events:
//! a socket that makes requests does not see the events it causes, hence the monitor has a socket of its own.
#![expect(clippy::wildcard_enum_match_arm, reason = "the message enums of the netlink library are open")]

pub mod monitor;
pub mod route;

use std::io;
use std::sync::Arc;

use futures_util::TryStreamExt as _;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo as LinkInfoAttribute, LinkMessage};
use rtnetlink::{Handle, LinkUnspec, LinkWireguard};

use crate::foundation::id::LinkName;
use crate::foundation::task::{self, Task};

/// An open connection. Clones share it; it closes with the last one.
#[derive(Debug, Clone)]
pub struct Connection {
    handle: Handle,
    _task: Arc<Task>,
}

/// A request about a link that failed.
#[derive(Debug, thiserror::Error)]
#[error("failed to {action} link {link}")]
pub struct LinkError {
    pub action: &'static str,
    /// Its name, or its index where only that is known.
    pub link: String,
    #[source]
    pub source: io::Error,
}

/// A link as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkInfo {
    pub index: u32,
    pub name: String,
    /// `wireguard`, `tun`, `veth`, …; `None` for hardware.
    pub kind: Option<String>,
    /// The free text of `ip link set NAME alias TEXT`.
    pub alias: Option<String>,
    /// Whether it is administratively up.
    pub up: bool,
    pub mtu: u32,
}

impl Connection {
    /// Opens a connection in the calling thread's network namespace. Needs a tokio runtime.
    ///
    /// # Errors
    /// The kernel refuses the socket.
    pub fn open() -> io::Result<Self> {
        let (connection, handle, _no_events) = rtnetlink::new_connection_with_strict_check()?;
        let task = task::spawn("rtnetlink", connection);
        Ok(Self { handle, _task: Arc::new(task) })
    }

    /// What requests are made with.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// The link called `name`, if there is one.
    ///
    /// # Errors
    /// Any failure but that there is none.
    pub async fn link_by_name(&self, name: &LinkName) -> Result<Option<LinkInfo>, LinkError> {
        let request = self.handle.link().get().match_name(name.as_str());
        only(request.execute().try_next().await).map_err(link_error("look up", name.as_str()))
    }

    /// The link with this index, if there is one.
    ///
    /// # Errors
    /// Any failure but that there is none.
    pub async fn link_by_index(&self, index: u32) -> Result<Option<LinkInfo>, LinkError> {
        let request = self.handle.link().get().match_index(index);
        only(request.execute().try_next().await).map_err(link_error("look up", &index.to_string()))
    }

    /// Makes a WireGuard link, down, with an alias.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where the kernel has no WireGuard, `EEXIST` where the name is taken.
    pub async fn create_wireguard(&self, name: &LinkName, alias: &str) -> Result<(), LinkError> {
        let message = LinkWireguard::new(name.as_str()).alias(alias).build();
        let created = self.handle.link().add(message).execute().await;
        created.map_err(|error| link_error("create WireGuard", name.as_str())(os_error(error)))
    }

    /// Sets the alias of a link.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn set_alias(&self, index: u32, alias: &str) -> Result<(), LinkError> {
        self.change(LinkUnspec::new_with_index(index).alias(alias).build(), "set the alias of").await
    }

    /// Sets the MTU of a link.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), LinkError> {
        self.change(LinkUnspec::new_with_index(index).mtu(mtu).build(), "set the MTU of").await
    }

    /// Sets a link up.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub async fn set_up(&self, index: u32) -> Result<(), LinkError> {
        self.change(LinkUnspec::new_with_index(index).up().build(), "set up").await
    }

    /// Deletes a link; returns whether it was there.
    ///
    /// # Errors
    /// Any failure but that there is none.
    pub async fn delete_link(&self, index: u32) -> Result<bool, LinkError> {
        match self.handle.link().del(index).execute().await.map_err(os_error) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(false),
            Err(error) => Err(link_error("delete", &index.to_string())(error)),
        }
    }

    async fn change(&self, message: LinkMessage, action: &'static str) -> Result<(), LinkError> {
        let link = message.header.index.to_string();
        let changed = self.handle.link().change(message).execute().await;
        changed.map_err(|error| link_error(action, &link)(os_error(error)))
    }
}

/// What the kernel answered, as an error number where it gave one.
pub fn os_error(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}

fn link_error(action: &'static str, link: &str) -> impl FnOnce(io::Error) -> LinkError {
    let link = link.to_owned();
    move |source| LinkError { action, link, source }
}

fn only(answer: Result<Option<LinkMessage>, rtnetlink::Error>) -> io::Result<Option<LinkInfo>> {
    match answer.map_err(os_error) {
        Ok(message) => Ok(message.map(|message| link_info(&message))),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

fn link_info(message: &LinkMessage) -> LinkInfo {
    let mut info = LinkInfo {
        index: message.header.index,
        name: String::new(),
        kind: None,
        alias: None,
        up: message.header.flags.contains(LinkFlags::Up),
        mtu: 0,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => info.name.clone_from(name),
            LinkAttribute::IfAlias(alias) => info.alias = Some(alias.clone()),
            LinkAttribute::Mtu(mtu) => info.mtu = *mtu,
            LinkAttribute::LinkInfo(details) => info.kind = details.iter().find_map(kind),
            _ => {}
        }
    }
    info
}

fn kind(detail: &LinkInfoAttribute) -> Option<String> {
    match detail {
        LinkInfoAttribute::Kind(InfoKind::Other(name)) => Some(name.clone()),
        LinkInfoAttribute::Kind(kind) => Some(kind.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn loopback_is_found_by_index_and_an_unknown_name_is_none() {
        let connection = Connection::open().expect("a netlink socket");
        let loopback = connection.link_by_index(1).await.expect("an answer").expect("every namespace has one");
        assert_eq!((loopback.name.as_str(), loopback.kind), ("lo", None));
        let unknown = "no-such-link".parse().expect("a valid name");
        assert_eq!(connection.link_by_name(&unknown).await.expect("an answer"), None);
        assert_eq!(connection.link_by_index(0x7fff_0000).await.expect("an answer"), None);
    }
}
