//! The answer to `get=1`. Holds secrets, so it is wiped when dropped.

use std::fmt::{self, Write};
use std::time::{Duration, SystemTime};

use zeroize::Zeroizing;

use crate::shared::{Entry, Registry, Shared};

/// Room for a peer with two prefixes, so that the text is rarely moved, which would leave copies of secrets.
const BYTES_PER_PEER: usize = 512;

/// The device and its peers, without the line that ends the answer.
pub(crate) fn listing(shared: &Shared) -> Zeroizing<String> {
    let port = shared.socket().port();
    let registry = shared.registry();
    let mut text = Zeroizing::new(String::with_capacity(256 + registry.peers.len() * BYTES_PER_PEER));
    write_all(&mut text, &registry, port).expect("writing to a string does not fail");
    text
}

fn write_all(text: &mut String, registry: &Registry, port: u16) -> fmt::Result {
    if let Some(identity) = &registry.identity {
        let key = Zeroizing::new(identity.private.to_bytes());
        writeln!(text, "private_key={}", Hex(&key))?;
    }
    writeln!(text, "listen_port={port}")?;
    if registry.fwmark != 0 {
        writeln!(text, "fwmark={}", registry.fwmark)?;
    }
    for entry in registry.listed() {
        write_peer(text, entry)?;
    }
    Ok(())
}

fn write_peer(text: &mut String, entry: &Entry) -> fmt::Result {
    let state = entry.peer.lock();
    writeln!(text, "public_key={}", Hex(&entry.peer.key))?;
    let none = Zeroizing::new([0; 32]);
    writeln!(text, "preshared_key={}", Hex(state.preshared_key.as_ref().unwrap_or(&none)))?;
    writeln!(text, "protocol_version=1")?;
    if let Some(endpoint) = state.endpoint {
        writeln!(text, "endpoint={endpoint}")?;
    }
    let since_epoch = state.last_handshake.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    let last_handshake = since_epoch.unwrap_or(Duration::ZERO);
    writeln!(text, "last_handshake_time_sec={}", last_handshake.as_secs())?;
    writeln!(text, "last_handshake_time_nsec={}", last_handshake.subsec_nanos())?;
    writeln!(text, "tx_bytes={}", state.tx_bytes)?;
    writeln!(text, "rx_bytes={}", state.rx_bytes)?;
    writeln!(text, "persistent_keepalive_interval={}", state.keepalive)?;
    for net in &entry.allowed_ips {
        writeln!(text, "allowed_ip={net}")?;
    }
    Ok(())
}

/// Lower-case hexadecimal.
struct Hex<'a>(&'a [u8; 32]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}
