//! The API key: kept as a digest, compared in constant time.

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use subtle::ConstantTimeEq as _;

/// A key that can be guessed protects nothing.
const SHORTEST: usize = 16;
/// Longer ones do not fit a header comfortably and protect no better.
const LONGEST: usize = 512;

/// Why a text is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("it has {0} characters, and a key has {SHORTEST} to {LONGEST}; `openssl rand -hex 32` makes a good one")]
    Length(usize),
    #[error("it has a character that is no visible ASCII, which a header cannot carry")]
    Character,
}

/// A key that callers can be held against.
#[derive(Clone)]
pub(super) struct ApiKey {
    sha256: [u8; 32],
}

impl ApiKey {
    pub(super) fn new(text: &str) -> Result<Self, KeyError> {
        if !(SHORTEST..=LONGEST).contains(&text.len()) {
            return Err(KeyError::Length(text.len()));
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(KeyError::Character);
        }
        Ok(Self { sha256: sha256(text.as_bytes()) })
    }

    /// Whether `presented` is this key. The time it takes tells only how long `presented` is.
    pub(super) fn is(&self, presented: &[u8]) -> bool {
        self.sha256.ct_eq(&sha256(presented)).into()
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

fn sha256(text: &[u8]) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest(&SHA256, text).as_ref());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_key_itself_is_the_key() {
        let key = ApiKey::new("your-secret-api-key").expect("a key");
        assert!(key.is(b"your-secret-api-key"));
        for other in ["", "your-secret-api-ke", "your-secret-api-key ", "YOUR-SECRET-API-KEY", "your-secret-api-keyy"] {
            assert!(!key.is(other.as_bytes()), "{other:?}");
        }
        assert_eq!(format!("{key:?}"), "ApiKey(…)");
    }

    #[test]
    fn what_protects_nothing_is_refused() {
        assert_eq!(ApiKey::new("0123456789abcde").map(drop), Err(KeyError::Length(15)));
        assert_eq!(ApiKey::new(&"k".repeat(513)).map(drop), Err(KeyError::Length(513)));
        assert_eq!(ApiKey::new("0123456789 abcdef").map(drop), Err(KeyError::Character));
        assert_eq!(ApiKey::new("0123456789abcdéfg").map(drop), Err(KeyError::Character));
    }
}
