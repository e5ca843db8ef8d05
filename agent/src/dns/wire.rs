//! Names and the few record shapes of the mesh zones in wire form (RFC 1035 section 3).
//!
//! Pure. A [`WireName`] is always lower case, uncompressed, at most 255 bytes, its labels at most 63.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The longest name in wire form, the root label included (RFC 1035 section 2.3.4).
pub const NAME_MAX: usize = 255;

pub mod rtype {
    //! Record types by their assigned numbers.
    pub const A: u16 = 1;
    pub const NS: u16 = 2;
    pub const SOA: u16 = 6;
    pub const PTR: u16 = 12;
    pub const HINFO: u16 = 13;
    pub const TXT: u16 = 16;
    pub const AAAA: u16 = 28;
    pub const OPT: u16 = 41;
    pub const ANY: u16 = 255;

    /// Types that name an operation or carry transport data; no zone holds them (IANA reserves 128 to 255).
    pub const fn is_meta(number: u16) -> bool {
        number == OPT || (number >= 128 && number < ANY)
    }
}

/// Class `IN`.
pub const CLASS_IN: u16 = 1;

/// Why text is not a domain name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a domain name: labels of 1 to 63 letters, digits, - and _, together at most 253 characters")]
pub struct NotAName {
    text: String,
}

/// A name in wire form: length-prefixed labels and the root label.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WireName(Box<[u8]>);

impl WireName {
    /// The root.
    pub fn root() -> Self {
        Self(Box::new([0]))
    }

    /// The name that `text` writes; a trailing dot makes no difference.
    ///
    /// # Errors
    /// Empty or overlong labels, an overlong name, or characters that no host name has.
    pub fn parse(text: &str) -> Result<Self, NotAName> {
        let refuse = || NotAName { text: text.to_owned() };
        let mut wire = Vec::with_capacity(text.len() + 2);
        for label in text.strip_suffix('.').unwrap_or(text).split('.') {
            let length =
                u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length)).ok_or_else(refuse)?;
            if !label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_') {
                return Err(refuse());
            }
            wire.push(length);
            wire.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
        }
        wire.push(0);
        if wire.len() > NAME_MAX { Err(refuse()) } else { Ok(Self(wire.into())) }
    }

    /// `label` below this name.
    ///
    /// # Errors
    /// As [`WireName::parse`].
    pub fn child(&self, label: &str) -> Result<Self, NotAName> {
        let below = Self::parse(label)?;
        let mut wire = below.0[..below.0.len() - 1].to_vec();
        wire.extend_from_slice(&self.0);
        if wire.len() > NAME_MAX { Err(NotAName { text: label.to_owned() }) } else { Ok(Self(wire.into())) }
    }

    /// The name that an address is looked up by (RFC 1035 section 3.5, RFC 3596 section 2.5).
    pub fn reverse(address: IpAddr) -> Self {
        let mut wire = Vec::with_capacity(74);
        match address {
            IpAddr::V4(v4) => {
                for octet in v4.octets().iter().rev() {
                    let digits = octet.to_string();
                    wire.push(u8::try_from(digits.len()).unwrap_or(3));
                    wire.extend_from_slice(digits.as_bytes());
                }
                wire.extend_from_slice(IN_ADDR_ARPA);
            }
            IpAddr::V6(v6) => {
                for octet in v6.octets().iter().rev() {
                    for nibble in [octet & 15, octet >> 4] {
                        wire.extend_from_slice(&[1, b"0123456789abcdef"[usize::from(nibble)]]);
                    }
                }
                wire.extend_from_slice(IP6_ARPA);
            }
        }
        Self(wire.into())
    }

    /// The bytes, the root label last.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for WireName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.len() == 1 {
            return f.write_str(".");
        }
        for label in labels(&self.0) {
            write!(f, "{}.", label.escape_ascii())?;
        }
        Ok(())
    }
}

impl fmt::Debug for WireName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WireName({self})")
    }
}

/// `in-addr.arpa.`
pub const IN_ADDR_ARPA: &[u8] = b"\x07in-addr\x04arpa\x00";
/// `ip6.arpa.`
pub const IP6_ARPA: &[u8] = b"\x03ip6\x04arpa\x00";

/// The labels of a well-formed wire name, the deepest first, without the root.
pub fn labels(name: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = name;
    std::iter::from_fn(move || {
        let (length, tail) = rest.split_first()?;
        let label = tail.get(..usize::from(*length)).filter(|label| !label.is_empty())?;
        rest = &tail[label.len()..];
        Some(label)
    })
}

/// What one record of the zone says; its name, class and TTL are those of its set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    A(Ipv4Addr),
    Aaaa(Ipv6Addr),
    Ptr(WireName),
    Ns(WireName),
    /// Character strings, each at most 255 bytes.
    Txt(Vec<String>),
    Soa(Soa),
    /// The answer to ANY (RFC 8482 section 4.2).
    Rfc8482,
}

/// The start of authority (RFC 1035 section 3.3.13).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Soa {
    pub primary: WireName,
    pub mailbox: WireName,
    pub serial: u32,
    pub refresh: u32,
    pub retry: u32,
    pub expire: u32,
    pub minimum: u32,
}

impl Data {
    /// The record's type.
    pub const fn rtype(&self) -> u16 {
        match self {
            Self::A(_) => rtype::A,
            Self::Aaaa(_) => rtype::AAAA,
            Self::Ptr(_) => rtype::PTR,
            Self::Ns(_) => rtype::NS,
            Self::Txt(_) => rtype::TXT,
            Self::Soa(_) => rtype::SOA,
            Self::Rfc8482 => rtype::HINFO,
        }
    }

    /// Appends type, class, TTL, length and data: all of a record but its owner.
    pub fn write_after_owner(&self, ttl: u32, wire: &mut Vec<u8>) {
        wire.extend_from_slice(&self.rtype().to_be_bytes());
        wire.extend_from_slice(&CLASS_IN.to_be_bytes());
        wire.extend_from_slice(&ttl.to_be_bytes());
        let length_at = wire.len();
        wire.extend_from_slice(&[0, 0]);
        match self {
            Self::A(address) => wire.extend_from_slice(&address.octets()),
            Self::Aaaa(address) => wire.extend_from_slice(&address.octets()),
            Self::Ptr(name) | Self::Ns(name) => wire.extend_from_slice(name.as_bytes()),
            Self::Txt(strings) => strings.iter().for_each(|text| write_string(text, wire)),
            Self::Soa(soa) => soa.write(wire),
            Self::Rfc8482 => {
                write_string("RFC8482", wire);
                write_string("", wire);
            }
        }
        // Every shape above is far below 64 KiB: names and strings are at most 255 bytes, and a set has few strings.
        let length = u16::try_from(wire.len() - length_at - 2).unwrap_or(u16::MAX);
        wire[length_at..length_at + 2].copy_from_slice(&length.to_be_bytes());
    }
}

fn write_string(text: &str, wire: &mut Vec<u8>) {
    let bytes = &text.as_bytes()[..text.len().min(255)];
    wire.push(u8::try_from(bytes.len()).unwrap_or(u8::MAX));
    wire.extend_from_slice(bytes);
}

impl Soa {
    fn write(&self, wire: &mut Vec<u8>) {
        wire.extend_from_slice(self.primary.as_bytes());
        wire.extend_from_slice(self.mailbox.as_bytes());
        for number in [self.serial, self.refresh, self.retry, self.expire, self.minimum] {
            wire.extend_from_slice(&number.to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_print_as_they_were_written_in_lower_case() {
        let name = WireName::parse("Beta.Weft.Internal").expect("a name");
        assert_eq!(name.to_string(), "beta.weft.internal.");
        assert_eq!(name.as_bytes(), b"\x04beta\x04weft\x08internal\x00");
        assert_eq!(WireName::root().to_string(), ".");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for bad in ["", ".", "a..b", "a b", &"x".repeat(64), &"abc.".repeat(64)] {
            assert!(WireName::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn reverse_names_follow_the_standard() {
        let reverse = |text: &str| WireName::reverse(text.parse().expect("an address")).to_string();
        assert_eq!(reverse("10.80.0.2"), "2.0.80.10.in-addr.arpa.");
        let v6 = reverse("fd80::12");
        assert!(v6.starts_with("2.1.0.0.") && v6.ends_with(".0.8.d.f.ip6.arpa."), "{v6}");
        assert_eq!(v6.split('.').count(), 32 + 3);
    }
}
