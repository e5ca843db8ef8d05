//! Signed URLs: whoever holds one may make that one request, as an internal caller, until it expires.
//!
//! A token is `version ‖ nonce ‖ sealed claims ‖ HMAC-SHA256` as base64url. The HMAC is over method, host, path, query and
//! everything before it; the claims (expiry, headers the request must have, headers it is given, where it is sent) are sealed
//! with AES-256-GCM, so that the holder of the URL cannot read the secrets in it. Both keys come from one secret of this node,
//! made once in the state directory; a token is of use on this node only.
//!
//! Invariants: nothing of the request is believed before the HMAC holds; comparison takes constant time; a claim that is
//! missing gives less, never more.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::{hmac, rand};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use super::call::{Call, Outcome, Verb};
use super::failure::{Failure, Kind};
use super::params::{self, Field, FieldKind};
use super::{Pm3, json};
use crate::foundation::rfc3339;
use crate::foundation::secret::Secret;
use crate::sys::file::{self, FileError};

const VERSION: u8 = 1;
const MAC_BYTES: usize = 32;
const KEY_BYTES: usize = 32;
/// A URL that says nothing about its end is good for an hour, and none for longer than 30 days.
const DEFAULT_LIFE: Duration = Duration::from_secs(3600);
const LONGEST_LIFE: Duration = Duration::from_secs(30 * 86_400);
/// The longest token that is looked at.
const LONGEST_TOKEN: usize = 8192;
/// The query key and the header a token comes in.
pub const QUERY_KEY: &str = "psn";
pub const HEADER: &str = "x-psn";

pub(super) const FIELDS: &[Field] = &[
    Field { name: "url", kind: FieldKind::Text },
    Field { name: "method", kind: FieldKind::Text },
    Field { name: "expires", kind: FieldKind::Text },
    Field { name: "headers", kind: FieldKind::Json },
    Field { name: "secrets", kind: FieldKind::Json },
    Field { name: "rewrite", kind: FieldKind::Text },
];

/// Why there is no signer.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    #[error("the signing key is of no use")]
    File(#[from] FileError),
    #[error("failed to read the signing key {path}")]
    Read {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("the signing key {0} is not 32 bytes long; remove it to have a new one made, which ends all signed URLs")]
    Length(String),
    #[error("the system gives no random bytes")]
    Random,
}

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Milliseconds since 1970.
    expires: u64,
    /// Headers the request must have, in lower case.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<String, String>,
    /// Headers it is given once it was believed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, String>,
    /// Where it is sent instead: `HOST/PATH`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewrite: Option<String>,
}

/// What of a request is bound.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub verb: Verb,
    /// In lower case, without a port.
    pub host: &'a str,
    pub path: &'a str,
    /// Without the token itself.
    pub query: &'a str,
}

/// The keys.
pub struct Signer {
    seal: LessSafeKey,
    mac: hmac::Key,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signer")
    }
}

impl Signer {
    /// Reads the key in `state_dir`, or makes it.
    ///
    /// # Errors
    /// [`SignerError`].
    pub fn open(state_dir: &Path) -> Result<Self, SignerError> {
        let path = state_dir.join("sign.key");
        let shown = || path.display().to_string();
        let secret = match fs::read(&path) {
            Ok(bytes) => Secret::new(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut bytes = vec![0; KEY_BYTES];
                rand::fill(&mut bytes).map_err(|_unspecified| SignerError::Random)?;
                let secret = Secret::new(bytes);
                file::write_atomic(&path, secret.expose(), 0o600)?;
                secret
            }
            Err(source) => return Err(SignerError::Read { path: shown(), source }),
        };
        if secret.expose().len() != KEY_BYTES {
            return Err(SignerError::Length(shown()));
        }
        Ok(Self::from_secret(secret.expose()))
    }

    fn from_secret(secret: &[u8]) -> Self {
        let root = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let derive = |label: &[u8]| hmac::sign(&root, label);
        let seal = UnboundKey::new(&AES_256_GCM, derive(b"weft signed url: seal").as_ref());
        Self {
            seal: LessSafeKey::new(seal.expect("an HMAC-SHA256 tag has the length of the key")),
            mac: hmac::Key::new(hmac::HMAC_SHA256, derive(b"weft signed url: mac").as_ref()),
        }
    }

    fn sign(&self, request: Request<'_>, claims: &Claims) -> Result<String, Failure> {
        let unusable = || Failure::failed("the token could not be made");
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).map_err(|_unspecified| unusable())?;
        let mut sealed = serde_json::to_vec(claims).map_err(|_never| unusable())?;
        let sealing =
            self.seal.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut sealed);
        sealing.map_err(|_unspecified| unusable())?;
        let mut token = vec![VERSION];
        token.extend_from_slice(&nonce);
        token.extend_from_slice(&sealed);
        let mac = hmac::sign(&self.mac, &bound(request, &token));
        token.extend_from_slice(mac.as_ref());
        Ok(URL_SAFE_NO_PAD.encode(token))
    }

    /// What `token` allows for `request`, whose headers `header` looks up.
    ///
    /// # Errors
    /// [`Kind::Forbidden`] with the reason; a forged token and one for another request look alike.
    pub fn verify(
        &self,
        request: Request<'_>,
        token: &str,
        header: impl Fn(&str) -> Option<String>,
        now: SystemTime,
    ) -> Result<Claims, Failure> {
        let refuse = |text: &str| Failure::new(Kind::Forbidden, text);
        let forged = || refuse("the signature is not good for this request");
        if token.len() > LONGEST_TOKEN {
            return Err(forged());
        }
        let token = URL_SAFE_NO_PAD.decode(token).map_err(|_not_base64| forged())?;
        if token.len() < 1 + NONCE_LEN + MAC_BYTES || token[0] != VERSION {
            return Err(forged());
        }
        let (signed, mac) = token.split_at(token.len() - MAC_BYTES);
        hmac::verify(&self.mac, &bound(request, signed), mac).map_err(|_unspecified| forged())?;
        let claims = self.open_claims(&signed[1..]).ok_or_else(forged)?;
        if millis(now) >= claims.expires {
            return Err(refuse("the signature has expired"));
        }
        for (name, wanted) in &claims.headers {
            if header(name).as_ref() != Some(wanted) {
                return Err(refuse(&format!("the signature wants another value of the header {name}")));
            }
        }
        Ok(claims)
    }

    fn open_claims(&self, sealed: &[u8]) -> Option<Claims> {
        let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN)?;
        let mut sealed = sealed.to_vec();
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let plain = self.seal.open_in_place(nonce, Aad::empty(), &mut sealed).ok()?;
        serde_json::from_slice(plain).ok()
    }
}

/// Everything the HMAC is over; lengths keep the parts apart.
fn bound(request: Request<'_>, token: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(token.len() + 256);
    for part in [request.verb.as_str(), request.host, request.path, request.query] {
        bytes.extend_from_slice(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        bytes.extend_from_slice(part.as_bytes());
    }
    bytes.extend_from_slice(token);
    bytes
}

/// A query without the token, and the token.
pub fn split_query(query: &str) -> (String, Option<&str>) {
    let mut token = None;
    let mut rest = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some((QUERY_KEY, value)) => token = Some(value),
            _ => rest.push(pair),
        }
    }
    (rest.join("&"), token)
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[derive(Debug, Deserialize)]
struct Arguments {
    url: String,
    method: Option<String>,
    expires: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    secrets: BTreeMap<String, String>,
    rewrite: Option<String>,
}

pub(super) fn sign(pm3: &Pm3, call: &Call) -> Outcome {
    let arguments: Arguments = params::read("sign", FIELDS, call)?;
    json(&signature(&pm3.signer, arguments, SystemTime::now())?)
}

fn signature(signer: &Signer, arguments: Arguments, now: SystemTime) -> Result<String, Failure> {
    let name = arguments.method.as_deref().unwrap_or("GET").to_ascii_uppercase();
    let verb = Verb::parse(&name)
        .ok_or_else(|| Failure::invalid(format!("method {name:?} is not one of GET, PUT, POST, PATCH, DELETE")))?;
    let (host, path, query) = split_url(&arguments.url)
        .ok_or_else(|| Failure::invalid(format!("url {:?} is not http://HOST/PATH or HOST/PATH", arguments.url)))?;
    let expires = match &arguments.expires {
        None => now + DEFAULT_LIFE,
        Some(text) => rfc3339::parse(text)
            .ok_or_else(|| Failure::invalid(format!("expires {text:?} is not a time like 2026-01-02T03:04:05Z")))?,
    };
    if expires <= now || expires > now + LONGEST_LIFE {
        return Err(Failure::invalid("expires must lie in the future and within 30 days"));
    }
    if let Some(target) = &arguments.rewrite
        && split_url(target).is_none()
    {
        return Err(Failure::invalid(format!("rewrite {target:?} is not HOST/PATH")));
    }
    let lower = |map: BTreeMap<String, String>| map.into_iter().map(|(k, v)| (k.to_ascii_lowercase(), v)).collect();
    let claims = Claims {
        expires: millis(expires),
        headers: lower(arguments.headers),
        secrets: lower(arguments.secrets),
        rewrite: arguments.rewrite,
    };
    let (query, _token) = split_query(query);
    signer.sign(Request { verb, host: &host, path: &path, query: &query }, &claims)
}

/// Host in lower case without its port, path, query.
pub fn split_url(url: &str) -> Option<(String, String, &str)> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let rest = rest.split('#').next()?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    };
    let is_host =
        !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_[]:".contains(&byte));
    is_host.then(|| (host.to_ascii_lowercase(), format!("/{path}"), query))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Duration = Duration::from_secs(1_000_000);

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + NOW
    }

    fn signer() -> Signer {
        Signer::from_secret(&[7; 32])
    }

    fn arguments(url: &str) -> Arguments {
        Arguments {
            url: url.to_owned(),
            method: None,
            expires: None,
            headers: BTreeMap::new(),
            secrets: BTreeMap::new(),
            rewrite: None,
        }
    }

    const REQUEST: Request<'_> = Request { verb: Verb::Get, host: "example.org", path: "/a/b", query: "x=1" };

    fn check(request: Request<'_>, token: &str, at: SystemTime) -> Result<Claims, Failure> {
        signer().verify(request, token, |_| None, at)
    }

    #[test]
    fn a_signed_url_is_good_for_its_request_until_it_expires() {
        let token = signature(&signer(), arguments("https://Example.org:443/a/b?x=1"), now()).expect("signed");
        assert!(check(REQUEST, &token, now()).is_ok());
        assert!(check(REQUEST, &token, now() + DEFAULT_LIFE - Duration::from_secs(1)).is_ok());
        let late = check(REQUEST, &token, now() + DEFAULT_LIFE).expect_err("expired");
        assert!(late.text.contains("expired"), "{late}");
    }

    #[test]
    fn replayed_on_another_request_it_is_refused() {
        let token = signature(&signer(), arguments("example.org/a/b?x=1"), now()).expect("signed");
        for other in [
            Request { verb: Verb::Delete, ..REQUEST },
            Request { host: "example.com", ..REQUEST },
            Request { path: "/a/b/", ..REQUEST },
            Request { path: "/a", query: "/b?x=1", ..REQUEST },
            Request { query: "x=1&y=2", ..REQUEST },
            Request { query: "", ..REQUEST },
        ] {
            assert_eq!(check(other, &token, now()).expect_err("bound").kind, Kind::Forbidden, "{other:?}");
        }
        let elsewhere = Signer::from_secret(&[8; 32]).verify(REQUEST, &token, |_| None, now());
        assert!(elsewhere.is_err(), "another node has another key");
    }

    #[test]
    fn wanted_headers_are_wanted_and_secrets_cannot_be_read() {
        let mut wanted = arguments("example.org/a/b?x=1");
        wanted.headers.insert("X-User".to_owned(), "7".to_owned());
        wanted.secrets.insert("Authorization".to_owned(), "Bearer abc".to_owned());
        let token = signature(&signer(), wanted, now()).expect("signed");
        assert!(check(REQUEST, &token, now()).is_err());
        let claims = signer().verify(REQUEST, &token, |name| (name == "x-user").then(|| "7".to_owned()), now());
        assert_eq!(claims.expect("good").secrets["authorization"], "Bearer abc");
        let bytes = URL_SAFE_NO_PAD.decode(token).expect("base64");
        assert!(!bytes.windows(6).any(|window| window == b"Bearer"));
    }

    #[test]
    fn wrong_arguments_are_named() {
        for (url, expires, named) in [
            ("", None, "url"),
            ("http:///x", None, "url"),
            ("a b/x", None, "url"),
            ("a/x", Some("tomorrow"), "tomorrow"),
            ("a/x", Some("1970-01-01T00:00:00Z"), "future"),
            ("a/x", Some("2999-01-01T00:00:00Z"), "30 days"),
        ] {
            let wrong = Arguments { expires: expires.map(str::to_owned), ..arguments(url) };
            let error = signature(&signer(), wrong, now()).expect_err(url).text;
            assert!(error.contains(named), "{url} {expires:?}: {error}");
        }
    }

    #[test]
    fn the_key_is_made_once_and_only_for_us() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().expect("a directory");
        let first = Signer::open(directory.path()).expect("made");
        let token = signature(&first, arguments("a/x"), now()).expect("signed");
        let again = Signer::open(directory.path()).expect("read");
        let request = Request { verb: Verb::Get, host: "a", path: "/x", query: "" };
        assert!(again.verify(request, &token, |_| None, now()).is_ok());
        let path = directory.path().join("sign.key");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        fs::write(&path, "short").expect("written");
        assert!(Signer::open(directory.path()).expect_err("5 bytes").to_string().contains("sign.key"));
    }

    proptest! {
        #[test]
        fn an_edited_token_is_refused(at in 0_usize..200, flip in 1_u8..255) {
            let token = signature(&signer(), arguments("example.org/a/b?x=1"), now()).expect("signed");
            let mut bytes = URL_SAFE_NO_PAD.decode(&token).expect("base64");
            let at = at % bytes.len();
            bytes[at] ^= flip;
            let edited = URL_SAFE_NO_PAD.encode(bytes);
            prop_assert!(check(REQUEST, &edited, now()).is_err());
        }

        #[test]
        fn any_text_is_refused_without_a_panic(token in ".{0,120}") {
            prop_assert!(check(REQUEST, &token, now()).is_err());
        }

        #[test]
        fn any_url_is_split_without_a_panic(url in ".{0,80}") {
            split_url(&url);
            split_query(&url);
        }
    }
}
