//! WireGuard keys: 32 bytes, written as 44 characters of base64 (wg(8)).

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::foundation::secret::Secret;

/// Why text is not a key. Never carries the text: it may be a private key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("a key is 32 bytes in base64 (44 characters); this is not base64")]
    Encoding,
    #[error("a key is 32 bytes in base64 (44 characters); this has {bytes} bytes")]
    Length { bytes: usize },
}

fn decode(text: &str) -> Result<[u8; 32], KeyError> {
    let bytes = Zeroizing::new(STANDARD.decode(text.trim()).map_err(|_source| KeyError::Encoding)?);
    bytes.as_slice().try_into().map_err(|_source| KeyError::Length { bytes: bytes.len() })
}

/// The public half of a node's key; its identity on the wire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// The key with these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).map(Self)
    }
}

impl TryFrom<String> for PublicKey {
    type Error = KeyError;
    fn try_from(text: String) -> Result<Self, KeyError> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> String {
        key.to_string()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

/// The private half.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrivateKey(Secret<[u8; 32]>);

impl PrivateKey {
    /// The key with these bytes, clamped as Curve25519 wants it (RFC 7748 section 5).
    pub fn from_bytes(mut bytes: [u8; 32]) -> Self {
        bytes[0] &= 248;
        bytes[31] = (bytes[31] & 127) | 64;
        Self(Secret::new(bytes))
    }

    /// Its 32 bytes; the caller must not log or store them.
    pub fn expose(&self) -> &[u8; 32] {
        self.0.expose()
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        let secret = x25519_dalek::StaticSecret::from(*self.0.expose());
        PublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes())
    }

    /// The key as it stands in a key file.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.0.expose()))
    }
}

impl FromStr for PrivateKey {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).map(Self::from_bytes)
    }
}

/// A symmetric key mixed into every handshake with one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PresharedKey(Secret<[u8; 32]>);

impl PresharedKey {
    /// The key with these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Secret::new(bytes))
    }

    /// Its 32 bytes; the caller must not log or store them.
    pub fn expose(&self) -> &[u8; 32] {
        self.0.expose()
    }
}

impl FromStr for PresharedKey {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).map(Self::from_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_key_agrees_with_the_rfc_7748_vector() {
        let private = [
            0x77, 0x07, 0x6d, 0x0a, 0x73, 0x18, 0xa5, 0x7d, 0x3c, 0x16, 0xc1, 0x72, 0x51, 0xb2, 0x66, 0x45, 0xdf, 0x4c,
            0x2f, 0x87, 0xeb, 0xc0, 0x99, 0x2a, 0xb1, 0x77, 0xfb, 0xa5, 0x1d, 0xb9, 0x2c, 0x2a,
        ];
        let public = PrivateKey::from_bytes(private).public();
        assert_eq!(&public.as_bytes()[..4], [0x85, 0x20, 0xf0, 0x09]);
    }

    #[test]
    fn wrong_keys_say_what_a_key_is_and_never_show_it() {
        let short = "AAAA".parse::<PublicKey>().expect_err("three bytes").to_string();
        assert!(short.contains("44 characters") && short.contains("3 bytes"), "{short}");
        let text = "not base64!";
        let error = text.parse::<PrivateKey>().expect_err("not base64").to_string();
        assert!(!error.contains(text), "{error}");
    }

    #[test]
    fn base64_round_trips() {
        let key = PublicKey::from_bytes([9; 32]);
        assert_eq!(key.to_string().parse(), Ok(key));
        let private = PrivateKey::from_bytes([9; 32]);
        assert_eq!(private.to_base64().parse(), Ok(private));
    }
}
