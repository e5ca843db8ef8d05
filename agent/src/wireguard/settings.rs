//! What the reconciler needs to know besides the model, parsed and with its key read.

use crate::foundation::id::{InstanceName, LinkName};
use crate::model::key::PrivateKey;

use super::config::BackendChoice;

/// The settings of the tunnel device; spread as `watch<Arc<Settings>>`, so that a reload reaches the running device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Marks the link as this agent's own.
    pub instance: InstanceName,
    pub link: LinkName,
    /// 0 lets the kernel choose one.
    pub listen_port: u16,
    pub backend: BackendChoice,
    /// 0 is none.
    pub fwmark: u32,
    pub private_key: PrivateKey,
}
