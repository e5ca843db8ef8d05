//! The embedded WireGuard device of this process: a TUN and the engine behind it.
//!
//! It is configured through its socket, as any other; this module only starts it, watches it and lets it go.

use std::io;

use tokio::sync::watch;
use weft_tunnel::{CreateError, Device, Options};

use super::{NewLink, PlatformError};
use crate::foundation::id::LinkName;
use crate::foundation::task::{self, Task};
use crate::sys::bpf::watch_readable;

/// A device; dropping it takes the TUN away.
#[derive(Debug)]
pub(super) struct Embedded {
    name: LinkName,
    device: Device,
    _watch: Task,
}

impl Embedded {
    /// Starts a device on a TUN called as `new` says. `failures` counts up when it fails later.
    pub(super) async fn start(new: &NewLink, failures: watch::Sender<u64>) -> Result<Self, PlatformError> {
        let options = Options { listen_port: new.listen_port, fwmark: new.fwmark, ..Options::new(new.name.as_str()) };
        let failed = |source: io::Error| PlatformError::Embedded { link: new.name.clone(), source: source.into() };
        let created = tokio::task::spawn_blocking(move || Device::create(options)).await;
        let device = created.map_err(|error| failed(io::Error::other(error)))?.map_err(|error| refused(new, error))?;
        let event = device.failed_event().try_clone_to_owned().and_then(watch_readable).map_err(failed)?;
        let watch = task::spawn("wireguard-device", async move {
            // Readable, or not watchable any more: either way a pass looks at the device.
            drop(event.readable().await);
            failures.send_modify(|count| *count = count.wrapping_add(1));
        });
        let features = device.features();
        tracing::info!(link = %new.name, ?features, "embedded WireGuard device started");
        Ok(Self { name: new.name.clone(), device, _watch: watch })
    }

    pub(super) fn name(&self) -> &LinkName {
        &self.name
    }

    /// How often it was configured, by us or through `wg`.
    pub(super) fn times_configured(&self) -> u64 {
        self.device.times_configured()
    }

    /// Why the device no longer works.
    pub(super) fn failure(&self) -> Option<&str> {
        self.device.failure()
    }
}

/// The refusals that an operator can do something about have a text of their own, with our keys in it.
fn refused(new: &NewLink, error: CreateError) -> PlatformError {
    let link = new.name.clone();
    match error {
        CreateError::PortInUse { port, .. } => PlatformError::PortInUse { port },
        CreateError::NoTunDevice { .. } => PlatformError::NoTun,
        CreateError::Permission { .. } => PlatformError::Permission { action: "make", link },
        CreateError::ControlSocketInUse { path } => PlatformError::SocketInUse { link, path },
        error @ (CreateError::InvalidName { .. }
        | CreateError::NameTaken { .. }
        | CreateError::Tun { .. }
        | CreateError::Socket { .. }
        | CreateError::ControlSocket { .. }
        | CreateError::Threads { .. }) => PlatformError::Embedded { link, source: Box::new(error) },
    }
}
