//! Whose link it is, and making ours where there is none.
//!
//! A kernel link is ours if its alias says so (`weft:<instance>`), if it has our private key, or if it has neither
//! alias nor key: such a link is what is left of an agent that was killed while it made one, and is of no use to
//! anybody else. The TUN of the embedded device is ours if this process runs the device. Anything else is foreign:
//! it is named in an error and left alone.

use std::sync::Arc;

use crate::foundation::id::LinkName;
use crate::model::{Backend, Link};
use crate::wireguard::config::BackendChoice;
use crate::wireguard::platform::{FoundLink, LinkKind, NewLink, Platform, PlatformError};
use crate::wireguard::settings::Settings;

/// Why there is no link of ours.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error(transparent)]
    Platform(#[from] PlatformError),
    #[error("link {link} exists and is a {kind}; rename it or set wireguard.link")]
    OtherKind { link: LinkName, kind: String },
    #[error("link {link} exists and is a WireGuard link with another private key; rename it or set wireguard.link")]
    OtherKey { link: LinkName },
    #[error("link {link} belongs to {owner:?}, this is {ours:?}; set wireguard.link to another name")]
    OtherOwner { link: LinkName, owner: String, ours: String },
    #[error(
        "a second instance: link {link} is the userspace WireGuard device of another running process; stop that process or set wireguard.link"
    )]
    OtherProcess { link: LinkName },
    #[error(
        "link {link} is a kernel WireGuard link of this agent, but wireguard.backend is \"userspace\"; run `weft down` first, or set it to \"auto\""
    )]
    KernelLink { link: LinkName },
    #[error(
        "wireguard.backend is \"kernel\", but this kernel has no WireGuard; run `modprobe wireguard`, or set it to \"userspace\""
    )]
    NoKernelSupport,
    #[error(
        "link {other} belongs to this instance, but wireguard.link is {link}; delete it with `ip link delete {other}`, or set wireguard.link to {other}"
    )]
    OtherName { link: LinkName, other: LinkName },
}

/// The text that marks a link as this instance's.
pub(in crate::wireguard) fn alias(settings: &Settings) -> String {
    format!("weft:{}", settings.instance)
}

/// Finds, adopts and makes the link.
#[derive(Debug)]
pub(in crate::wireguard) struct Ownership<P> {
    platform: Arc<P>,
    owned: Option<Link>,
    fallback_reason: Option<String>,
}

impl<P: Platform> Ownership<P> {
    pub(in crate::wireguard) fn new(platform: Arc<P>) -> Self {
        Self { platform, owned: None, fallback_reason: None }
    }

    /// Why the embedded device is used although the kernel's was preferred.
    pub(in crate::wireguard) fn fallback_reason(&self) -> Option<String> {
        self.fallback_reason.clone()
    }

    /// The link, which is ours and there when this returns.
    pub(in crate::wireguard) async fn ensure(&mut self, settings: &Settings) -> Result<Link, LinkError> {
        let link = match self.present(settings).await? {
            Some(link) => link,
            None => self.create(settings).await?,
        };
        if link.backend == Backend::Kernel || settings.backend == BackendChoice::Userspace {
            self.fallback_reason = None;
        }
        self.owned = Some(link.clone());
        Ok(link)
    }

    /// The link if it is there and ours; `None` if there is none.
    pub(in crate::wireguard) async fn present(&self, settings: &Settings) -> Result<Option<Link>, LinkError> {
        let name = settings.link.clone();
        let Some(found) = self.platform.find(&name).await? else { return Ok(None) };
        match &found.kind {
            LinkKind::Kernel => self.kernel_link(settings, &found).await.map(Some),
            LinkKind::Embedded if settings.backend == BackendChoice::Kernel => {
                // Only our own device is Embedded: switching to the kernel's is what the settings ask for.
                self.platform.delete(&Link { name, index: found.index, backend: Backend::Userspace }).await?;
                Ok(None)
            }
            LinkKind::Embedded => Ok(Some(Link { name, index: found.index, backend: Backend::Userspace })),
            LinkKind::OtherProcess => Err(LinkError::OtherProcess { link: name }),
            LinkKind::Other(kind) => Err(LinkError::OtherKind { link: name, kind: kind.clone() }),
        }
    }

    async fn kernel_link(&self, settings: &Settings, found: &FoundLink) -> Result<Link, LinkError> {
        let link = Link { name: settings.link.clone(), index: found.index, backend: Backend::Kernel };
        let known = self.owned.as_ref() == Some(&link);
        if !known {
            self.adopt(settings, found, &link).await?;
        }
        if settings.backend == BackendChoice::Userspace {
            return Err(LinkError::KernelLink { link: link.name });
        }
        Ok(link)
    }

    async fn adopt(&self, settings: &Settings, found: &FoundLink, link: &Link) -> Result<(), LinkError> {
        let ours = alias(settings);
        if found.alias.as_ref() == Some(&ours) {
            tracing::info!(link = %link.name, "link adopted");
            return Ok(());
        }
        if let Some(owner) = found.alias.as_ref().filter(|alias| alias.starts_with("weft:")) {
            return Err(LinkError::OtherOwner { link: link.name.clone(), owner: owner.clone(), ours });
        }
        let device = self.platform.observe(link).await?;
        let left_half_made = found.alias.is_none() && device.private_key.is_none();
        if device.private_key.as_ref() != Some(&settings.private_key) && !left_half_made {
            return Err(LinkError::OtherKey { link: link.name.clone() });
        }
        if found.alias.is_none() {
            self.platform.set_alias(link, &ours).await?;
        }
        tracing::info!(link = %link.name, "link adopted by its private key");
        Ok(())
    }

    async fn create(&mut self, settings: &Settings) -> Result<Link, LinkError> {
        let (name, alias) = (settings.link.clone(), alias(settings));
        self.let_go_of_old_name(settings).await?;
        if let Some(other) = self.platform.find_alias(&alias, &name).await? {
            return Err(LinkError::OtherName { link: name, other });
        }
        let backend = self.choose(settings.backend).await?;
        let Settings { listen_port, fwmark, .. } = *settings;
        let new = NewLink { name: name.clone(), backend, alias, listen_port, fwmark };
        let index = self.platform.create(&new).await?;
        tracing::info!(link = %name, %backend, index, "link made");
        Ok(Link { name, index, backend })
    }

    /// The embedded device cannot outlive us, so nothing is lost by starting it under its new name.
    async fn let_go_of_old_name(&mut self, settings: &Settings) -> Result<(), LinkError> {
        let Some(old) = self.owned.take() else { return Ok(()) };
        if old.name == settings.link || old.backend == Backend::Kernel {
            return Ok(());
        }
        if self.platform.find(&old.name).await?.is_some_and(|found| found.kind == LinkKind::Embedded) {
            self.platform.delete(&old).await?;
        }
        Ok(())
    }

    async fn choose(&mut self, choice: BackendChoice) -> Result<Backend, LinkError> {
        match choice {
            BackendChoice::Userspace => Ok(Backend::Userspace),
            BackendChoice::Kernel if self.platform.kernel_support().await? => Ok(Backend::Kernel),
            BackendChoice::Kernel => Err(LinkError::NoKernelSupport),
            BackendChoice::Auto if self.platform.kernel_support().await? => Ok(Backend::Kernel),
            BackendChoice::Auto => {
                if self.fallback_reason.is_none() {
                    let reason = "this kernel has no WireGuard (module wireguard is neither built in nor loadable)";
                    tracing::warn!(reason, "using the embedded WireGuard device; tunnels end when the agent stops");
                    self.fallback_reason = Some(reason.to_owned());
                }
                Ok(Backend::Userspace)
            }
        }
    }
}
