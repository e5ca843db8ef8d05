//! `weft down`: taking away exactly what is ours.

use std::io;

use ipnet::IpNet;

use super::plan::{Owner, Step};
use super::platform::linux::LinuxPlatform;
use super::platform::{ObserveError, Platform as _, StepError};
use crate::foundation::id::LinkName;
use crate::sys::rtnetlink::{Connection, LinkError};

/// What [`down`] has taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Removed {
    pub addresses: usize,
    pub routes: usize,
}

/// Our routes or addresses could not be taken away.
#[derive(Debug, thiserror::Error)]
pub enum DownError {
    #[error("failed to open a netlink socket")]
    Open(#[source] io::Error),
    #[error(transparent)]
    Observe(#[from] ObserveError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Step(#[from] StepError),
}

/// Takes our routes and addresses off the link called `name`; everything else stays, the link too. Doing it again
/// removes nothing. The agent must not run, or it puts them back.
///
/// # Errors
/// What could not be read or removed; what was removed before stays removed.
pub async fn down(name: &LinkName) -> Result<Removed, DownError> {
    let mut platform = LinuxPlatform::new(Connection::open().map_err(DownError::Open)?);
    let Some(info) = platform.connection.link_by_name(name).await? else {
        return Ok(Removed::default());
    };
    let routes = platform.routes(info.index).await?;
    let addresses = platform.addresses(info.index).await?;
    let ours: Vec<IpNet> =
        addresses.iter().filter(|(_, owner)| **owner == Owner::Ours).map(|(address, _)| *address).collect();
    for route in &routes {
        platform.apply(name, info.index, &Step::RemoveRoute(*route)).await?;
    }
    for address in &ours {
        platform.apply(name, info.index, &Step::RemoveAddress(*address)).await?;
    }
    Ok(Removed { addresses: ours.len(), routes: routes.len() })
}
