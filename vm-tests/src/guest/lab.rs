//! Two hosts side by side: network namespaces joined by a veth pair, `alpha` and `beta`.

use std::time::Duration;

use anyhow::Result;
use integration_tests::netns::{NetNs, veth};

/// The underlay addresses (RFC 5737, RFC 3849).
pub(crate) const UNDERLAY: [&str; 2] = ["192.0.2.1", "192.0.2.2"];
const UNDERLAY6: [&str; 2] = ["2001:db8::1", "2001:db8::2"];

/// First packets take up to a hundred milliseconds under emulation, handshakes several times that.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The two hosts.
#[derive(Debug)]
pub(crate) struct Lab {
    pub(crate) alpha: NetNs,
    pub(crate) beta: NetNs,
}

impl Lab {
    pub(crate) fn new() -> Result<Self> {
        let lab = Self { alpha: NetNs::new()?, beta: NetNs::new()? };
        let addresses = |at: usize| [format!("{}/24", UNDERLAY[at]), format!("{}/64", UNDERLAY6[at])];
        let [alpha, beta] = [addresses(0), addresses(1)];
        veth((&lab.alpha, "eth0", &[&alpha[0], &alpha[1]]), (&lab.beta, "eth0", &[&beta[0], &beta[1]]))?;
        Ok(lab)
    }
}
