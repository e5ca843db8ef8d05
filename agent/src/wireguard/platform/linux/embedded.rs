//! The embedded WireGuard device of this process: a TUN and the engine behind it.
//!
//! It is configured through its socket, as any other; this module only starts it, watches it and lets it go.

use super::{NewLink, PlatformError};
use crate::foundation::id::LinkName;

/// A running device; dropping it takes the TUN away.
#[derive(Debug)]
pub(super) struct Embedded {
    name: LinkName,
}

impl Embedded {
    /// Starts a device on a TUN called as `new` says.
    pub(super) async fn start(new: &NewLink) -> Result<Self, PlatformError> {
        let source = "this build has no embedded device; load the kernel's with `modprobe wireguard`".into();
        Err(PlatformError::Embedded { link: new.name.clone(), source })
    }

    pub(super) fn name(&self) -> &LinkName {
        &self.name
    }

    pub(super) fn is_running(&self) -> bool {
        true
    }
}
