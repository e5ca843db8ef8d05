//! One peer as it is wanted.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::key::{PresharedKey, PublicKey};
use crate::foundation::id::NodeId;

/// A peer as it is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub name: NodeId,
    pub public_key: PublicKey,
    pub preshared_key: Option<PresharedKey>,
    /// Where to send the first handshake; a peer that roams is followed, never moved back.
    pub endpoint: Option<Endpoint>,
    /// Truncated to their network, without duplicates.
    pub allowed_ips: Vec<IpNet>,
    /// Seconds between keepalives, 1 to 65535.
    pub persistent_keepalive: Option<u16>,
}

/// Where a peer is reached: an address, or a name that is resolved again when handshakes fail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Endpoint {
    Address(SocketAddr),
    Name { host: String, port: u16 },
}

/// Why text is not an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("endpoint {0:?} is not ADDRESS:PORT, [IPV6]:PORT or NAME:PORT with a port from 1 to 65535")]
pub struct EndpointError(String);

impl FromStr for Endpoint {
    type Err = EndpointError;
    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let refuse = || EndpointError(text.to_owned());
        if let Ok(address) = text.parse::<SocketAddr>() {
            return if address.port() == 0 { Err(refuse()) } else { Ok(Self::Address(address)) };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(refuse)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(refuse)?;
        let numeric_tail = host.rsplit('.').next().is_some_and(|label| label.bytes().all(|b| b.is_ascii_digit()));
        if host.len() > 253 || numeric_tail || !host.split('.').all(is_host_label) {
            return Err(refuse());
        }
        Ok(Self::Name { host: host.to_ascii_lowercase(), port })
    }
}

fn is_host_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

impl TryFrom<String> for Endpoint {
    type Error = EndpointError;
    fn try_from(text: String) -> Result<Self, EndpointError> {
        text.parse()
    }
}

impl From<Endpoint> for String {
    fn from(endpoint: Endpoint) -> String {
        endpoint.to_string()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_parse_and_print_alike() {
        for text in ["192.0.2.7:51820", "[2001:db8::7]:51820", "vpn.example.org:51820"] {
            assert_eq!(text.parse::<Endpoint>().map(|endpoint| endpoint.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn wrong_endpoints_are_refused() {
        for text in ["192.0.2.7", "192.0.2.7:0", "192.0.2.999:1", "2001:db8::7", "a b:1", ":1", "host:65536"] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }
}
