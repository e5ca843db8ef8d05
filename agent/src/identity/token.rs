//! Tokens that let one node join: made by an operator, used once, ended by time.
//!
//! A token is `weft1.` and 72 bytes in base64url: 8 that name it, 32 of secret, 32 of the authority's fingerprint. The
//! mesh keeps a [`Record`]: the SHA-256 of the secret, never the secret. Pure but for the randomness of [`Token::new`].
//!
//! Invariants: the secret is compared in constant time; a wrong secret costs an attempt, and with the last one the token
//! is void; the caller is told the same for a token that is unknown and one that is wrong.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use aws_lc_rs::{constant_time, digest, rand};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use super::certificate::Fingerprint;
use crate::foundation::id::NodeId;
use crate::foundation::secret::Secret;

/// Wrong secrets a token survives, less one.
pub const ATTEMPTS: u32 = 5;
const PREFIX: &str = "weft1.";
const ID_BYTES: usize = 8;
const SECRET_BYTES: usize = 32;
const BYTES: usize = ID_BYTES + SECRET_BYTES + 32;

/// Names a token; no secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId([u8; ID_BYTES]);

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A token as its bearer holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub id: TokenId,
    secret: Secret<[u8; SECRET_BYTES]>,
    /// The authority of the mesh it opens.
    pub authority: Fingerprint,
}

/// Why text is no token. Never carries the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is not a join token; `weft token create` on a member makes one, and it begins with {PREFIX}")]
pub struct NotAToken;

/// No random bytes can be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system gives no random bytes")]
pub struct NoRandomness;

impl Token {
    /// A new token for the mesh of this authority.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn new(authority: Fingerprint) -> Result<Self, NoRandomness> {
        let (mut id, mut secret) = ([0; ID_BYTES], Zeroizing::new([0; SECRET_BYTES]));
        rand::fill(&mut id).map_err(|_source| NoRandomness)?;
        rand::fill(&mut *secret).map_err(|_source| NoRandomness)?;
        Ok(Self { id: TokenId(id), secret: Secret::new(*secret), authority })
    }

    /// The same secret under another name, as one who guesses would have it.
    #[cfg(test)]
    pub(crate) fn called(self, id: TokenId) -> Self {
        Self { id, ..self }
    }

    /// The token as it is handed to whoever is to join.
    pub fn text(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(BYTES));
        bytes.extend_from_slice(&self.id.0);
        bytes.extend_from_slice(self.secret.expose());
        bytes.extend_from_slice(self.authority.as_bytes());
        Zeroizing::new(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(&*bytes)))
    }

    /// What the mesh keeps instead of the secret.
    pub fn hash(&self) -> [u8; 32] {
        let digest = digest::digest(&digest::SHA256, self.secret.expose());
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        bytes
    }
}

impl FromStr for Token {
    type Err = NotAToken;
    fn from_str(text: &str) -> Result<Self, NotAToken> {
        let encoded = text.trim().strip_prefix(PREFIX).ok_or(NotAToken)?;
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(encoded).map_err(|_source| NotAToken)?);
        let (id, rest) = bytes.split_at_checked(ID_BYTES).ok_or(NotAToken)?;
        let (secret, authority) = rest.split_at_checked(SECRET_BYTES).ok_or(NotAToken)?;
        Ok(Self {
            id: TokenId(id.try_into().map_err(|_source| NotAToken)?),
            secret: Secret::new(secret.try_into().map_err(|_source| NotAToken)?),
            authority: Fingerprint::from_bytes(authority.try_into().map_err(|_source| NotAToken)?),
        })
    }
}

/// What the mesh keeps about a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub id: TokenId,
    pub hash: [u8; 32],
    pub expires_at: SystemTime,
    pub attempts_left: u32,
    /// The node it let in, and the key of that node's certificate.
    pub used_by: Option<(NodeId, Fingerprint)>,
}

/// What to do about a token that was shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Let the node in and write down that it was.
    Admit,
    /// The same node asks again, because it did not get the answer: give it once more.
    Again,
    Refuse(Refusal),
}

/// Why a token lets nobody in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Unknown, or another secret: the same to the caller. The mesh counts an attempt for the second.
    #[error("the token is not valid here; make another with `weft token create`")]
    Wrong,
    #[error("the token has expired; make another with `weft token create`")]
    Expired,
    #[error("the token has been used; a token lets one node in")]
    Spent,
    #[error("the token was tried too often with a wrong secret and is void; make another with `weft token create`")]
    Exhausted,
}

impl Record {
    /// Judges `token` shown at `now` by the node `id` whose request is for the key `key`.
    pub fn judge(&self, token: &Token, id: &NodeId, key: Fingerprint, now: SystemTime) -> Verdict {
        if self.attempts_left == 0 {
            return Verdict::Refuse(Refusal::Exhausted);
        }
        let is_right = constant_time::verify_slices_are_equal(&self.hash, &token.hash()).is_ok();
        if !is_right || self.id != token.id {
            return Verdict::Refuse(Refusal::Wrong);
        }
        if self.expires_at <= now {
            return Verdict::Refuse(Refusal::Expired);
        }
        match &self.used_by {
            None => Verdict::Admit,
            Some((node, known)) if node == id && *known == key => Verdict::Again,
            Some(_) => Verdict::Refuse(Refusal::Spent),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn token() -> Token {
        Token::new(Fingerprint::from_bytes([7; 32])).expect("random bytes")
    }

    fn record(token: &Token) -> Record {
        let expires_at = NOW + Duration::from_secs(60);
        Record { id: token.id, hash: token.hash(), expires_at, attempts_left: ATTEMPTS, used_by: None }
    }

    fn judge(record: &Record, token: &Token) -> Verdict {
        record.judge(token, &"beta".parse().expect("an id"), Fingerprint::from_bytes([1; 32]), NOW)
    }

    #[test]
    fn a_token_round_trips_and_shows_no_secret() {
        let token = token();
        assert_eq!(token.text().parse(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains(&format!("{:?}", token.secret.expose())));
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let text = token().text();
        for bad in ["", "weft1.", "weft1.AAAA", &text[1..], &text[..text.len() - 1], &format!("{}AA", *text)] {
            assert_eq!(bad.parse::<Token>(), Err(NotAToken), "{bad}");
        }
    }

    #[test]
    fn a_right_token_admits_once_and_answers_the_same_node_again() {
        let token = token();
        let mut record = record(&token);
        assert_eq!(judge(&record, &token), Verdict::Admit);
        record.used_by = Some(("beta".parse().expect("an id"), Fingerprint::from_bytes([1; 32])));
        assert_eq!(judge(&record, &token), Verdict::Again);
        record.used_by = Some(("beta".parse().expect("an id"), Fingerprint::from_bytes([2; 32])));
        assert_eq!(judge(&record, &token), Verdict::Refuse(Refusal::Spent));
        record.used_by = Some(("gamma".parse().expect("an id"), Fingerprint::from_bytes([1; 32])));
        assert_eq!(judge(&record, &token), Verdict::Refuse(Refusal::Spent));
    }

    #[test]
    fn a_wrong_secret_is_wrong_even_when_expired() {
        let (right, other) = (token(), token());
        let forged = Token { id: right.id, ..other };
        let late = Record { expires_at: NOW, ..record(&right) };
        assert_eq!(judge(&late, &forged), Verdict::Refuse(Refusal::Wrong));
        assert_eq!(judge(&late, &right), Verdict::Refuse(Refusal::Expired));
    }

    #[test]
    fn without_attempts_the_right_secret_is_void_too() {
        let token = token();
        let record = Record { attempts_left: 0, ..record(&token) };
        assert_eq!(judge(&record, &token), Verdict::Refuse(Refusal::Exhausted));
    }
}
