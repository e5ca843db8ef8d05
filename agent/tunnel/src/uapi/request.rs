//! Requests of the userspace protocol as values. Pure.
//!
//! The text is lines of `key=value` behind `get=1` or `set=1` (<https://www.wireguard.com/xplatform/>).

use std::net::SocketAddr;

use ipnet::IpNet;
use zeroize::Zeroizing;

use crate::peer::SecretKey;

/// What a client asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Get,
    Set(Change),
}

/// Changes to the device; `None` leaves as it is.
#[derive(Default, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) private_key: Option<Assigned>,
    pub(crate) listen_port: Option<u16>,
    pub(crate) fwmark: Option<u32>,
    pub(crate) replace_peers: bool,
    pub(crate) peers: Vec<PeerChange>,
}

/// A key that is set, or taken away by a key of zeroes.
#[derive(PartialEq, Eq)]
pub(crate) enum Assigned {
    Key(SecretKey),
    Nothing,
}

/// Changes to one peer, which is made if there is none.
#[derive(PartialEq, Eq)]
pub(crate) struct PeerChange {
    pub(crate) key: [u8; 32],
    pub(crate) existing: Existing,
    pub(crate) preshared_key: Option<Assigned>,
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) keepalive: Option<u16>,
    pub(crate) replace_allowed_ips: bool,
    pub(crate) allowed_ips: Vec<AllowedIp>,
}

/// What is to happen to a peer that may or may not be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    UpdateOrAdd,
    UpdateOnly,
    Remove,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AllowedIp {
    Add(IpNet),
    Remove(IpNet),
}

/// The request is not one of this protocol.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Invalid;

impl std::fmt::Debug for Assigned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Key(_) => "Key(…)",
            Self::Nothing => "Nothing",
        })
    }
}

impl std::fmt::Debug for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Change")
            .field("private_key", &self.private_key)
            .field("peers", &self.peers)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for PeerChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerChange")
            .field("existing", &self.existing)
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

impl Request {
    /// Parses a request without the empty line that ends it.
    pub(crate) fn parse(text: &str) -> Result<Self, Invalid> {
        let mut lines = text.lines();
        match lines.next() {
            Some("get=1") if lines.next().is_none() => Ok(Self::Get),
            Some("set=1") => Ok(Self::Set(Change::parse(lines)?)),
            _ => Err(Invalid),
        }
    }
}

impl Change {
    fn parse<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Self, Invalid> {
        let mut change = Self::default();
        for line in lines {
            let (name, value) = line.split_once('=').ok_or(Invalid)?;
            if name == "public_key" {
                change.peers.push(PeerChange::new(*key(value)?));
            } else if let Some(peer) = change.peers.last_mut() {
                peer.set(name, value)?;
            } else {
                change.set(name, value)?;
            }
        }
        Ok(change)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), Invalid> {
        match name {
            "private_key" => self.private_key = Some(Assigned::parse(value)?),
            "listen_port" => self.listen_port = Some(number(value)?),
            "fwmark" => self.fwmark = Some(if value.is_empty() { 0 } else { number(value)? }),
            "replace_peers" => self.replace_peers = is_true(value)?,
            _ => return Err(Invalid),
        }
        Ok(())
    }
}

impl PeerChange {
    fn new(key: [u8; 32]) -> Self {
        Self {
            key,
            existing: Existing::UpdateOrAdd,
            preshared_key: None,
            endpoint: None,
            keepalive: None,
            replace_allowed_ips: false,
            allowed_ips: Vec::new(),
        }
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), Invalid> {
        match name {
            "remove" if is_true(value)? => self.existing = Existing::Remove,
            "update_only" if is_true(value)? => self.existing = Existing::UpdateOnly,
            "preshared_key" => self.preshared_key = Some(Assigned::parse(value)?),
            "endpoint" => self.endpoint = Some(endpoint(value)?),
            "persistent_keepalive_interval" => self.keepalive = Some(number(value)?),
            "replace_allowed_ips" => self.replace_allowed_ips = is_true(value)?,
            "allowed_ip" => self.allowed_ips.push(AllowedIp::parse(value)?),
            "protocol_version" if value == "1" => {}
            _ => return Err(Invalid),
        }
        Ok(())
    }
}

impl Assigned {
    fn parse(text: &str) -> Result<Self, Invalid> {
        let key = key(text)?;
        Ok(if *key == [0; 32] { Self::Nothing } else { Self::Key(key) })
    }
}

impl AllowedIp {
    fn parse(text: &str) -> Result<Self, Invalid> {
        let net = |text: &str| text.parse::<IpNet>().map(|net| net.trunc()).map_err(|_not_a_prefix| Invalid);
        match text.strip_prefix('-') {
            Some(rest) => net(rest).map(Self::Remove),
            None => net(text.strip_prefix('+').unwrap_or(text)).map(Self::Add),
        }
    }
}

/// 64 hexadecimal digits.
fn key(text: &str) -> Result<SecretKey, Invalid> {
    let digits: &[u8; 64] = text.as_bytes().try_into().map_err(|_wrong_length| Invalid)?;
    let mut key = Zeroizing::new([0; 32]);
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Ok(key)
}

fn digit(byte: u8) -> Result<u8, Invalid> {
    match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        b'A'..=b'F' => Ok(byte - b'A' + 10),
        _ => Err(Invalid),
    }
}

fn number<N: std::str::FromStr>(text: &str) -> Result<N, Invalid> {
    text.parse().map_err(|_not_in_range| Invalid)
}

fn is_true(text: &str) -> Result<bool, Invalid> {
    if text == "true" { Ok(true) } else { Err(Invalid) }
}

/// `address:port`; a port of 0 cannot be sent to. A zone (`fe80::1%3`) is the index of a link.
fn endpoint(text: &str) -> Result<SocketAddr, Invalid> {
    let address: SocketAddr = text.parse().map_err(|_not_an_address| Invalid)?;
    if address.port() == 0 { Err(Invalid) } else { Ok(address) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: &str = "0a0b0c0d0e0f000102030405060708090a0b0c0d0e0f00010203040506070809";

    fn set(lines: &str) -> Result<Change, Invalid> {
        match Request::parse(&format!("set=1\n{lines}"))? {
            Request::Set(change) => Ok(change),
            Request::Get => Err(Invalid),
        }
    }

    #[test]
    fn get_is_understood_alone() {
        assert_eq!(Request::parse("get=1\n"), Ok(Request::Get));
        assert_eq!(Request::parse("get=1\nfwmark=1"), Err(Invalid));
        assert_eq!(Request::parse("get=2"), Err(Invalid));
        assert_eq!(Request::parse(""), Err(Invalid));
    }

    #[test]
    fn device_and_peers_are_told_apart() {
        let text = format!(
            "private_key={A}\nlisten_port=51820\nfwmark=0\nreplace_peers=true\npublic_key={A}\nupdate_only=true\n\
             preshared_key={}\nendpoint=[fd00::1]:7\npersistent_keepalive_interval=25\nreplace_allowed_ips=true\n\
             allowed_ip=10.0.0.9/24\nallowed_ip=-fd00::/64\nprotocol_version=1\npublic_key={A}\nremove=true\n",
            "0".repeat(64),
        );
        let change = set(&text).unwrap();
        assert!(matches!(change.private_key, Some(Assigned::Key(_))) && change.replace_peers);
        assert_eq!((change.listen_port, change.fwmark), (Some(51820), Some(0)));
        let [first, second] = &change.peers[..] else { panic!("two peers") };
        assert_eq!((first.existing, second.existing), (Existing::UpdateOnly, Existing::Remove));
        assert_eq!(first.preshared_key, Some(Assigned::Nothing));
        assert_eq!((first.endpoint, first.keepalive), (Some("[fd00::1]:7".parse().unwrap()), Some(25)));
        let expected =
            [AllowedIp::Add("10.0.0.0/24".parse().unwrap()), AllowedIp::Remove("fd00::/64".parse().unwrap())];
        assert_eq!(first.allowed_ips, expected);
    }

    #[test]
    fn malformed_lines_are_refused() {
        for line in [
            "private_key=00",
            "private_key",
            "listen_port=65536",
            "listen_port=-1",
            "fwmark=x",
            "replace_peers=yes",
            "endpoint=1.2.3.4:5",
            "unknown=1",
            "",
        ] {
            assert_eq!(set(line).is_err(), !line.is_empty(), "{line:?}");
        }
        for line in ["endpoint=host:5", "endpoint=1.2.3.4:0", "allowed_ip=1.2.3.4/33", "remove=false", "listen_port=1"]
        {
            assert_eq!(set(&format!("public_key={A}\n{line}")), Err(Invalid), "{line}");
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let change = set(&format!("private_key={A}\npublic_key={A}\npreshared_key={A}")).unwrap();
        let printed = format!("{change:?}");
        assert!(!printed.contains("10, 11") && !printed.contains("0a0b"), "{printed}");
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "(set=1\n)?([a-z_]{1,30}=?[-0-9a-f:.\\[\\]/%]{0,70}\n){0,20}|.*") {
            drop(Request::parse(&text));
        }
    }
}
