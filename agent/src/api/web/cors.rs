//! Which pages of other origins may read answers. Pure.
//!
//! Invariant: an answer that rests on who the caller is on this host, and not on a key, never carries a grant: a page could
//! otherwise read it with the authority of the user that looks at the page.

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

/// How long a browser may remember a grant.
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");
const ALLOW_HEADERS: HeaderValue = HeaderValue::from_static("Content-Type, Authorization, X-API-Key");
const ANY: HeaderValue = HeaderValue::from_static("*");
const METHODS: HeaderName = header::ACCESS_CONTROL_ALLOW_METHODS;

/// The origins of `web.cors_origins`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origins {
    Any,
    These(Vec<HeaderValue>),
}

/// Why `web.cors_origins` is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OriginsError {
    #[error(
        "web.cors_origins has {0:?}, which is no origin; write scheme, host and port if it has one, like \"https://app.example\", or \"*\""
    )]
    NoOrigin(String),
    #[error("web.cors_origins has \"*\" beside others; with \"*\" the others say nothing")]
    AnyAndOthers,
}

impl Origins {
    pub(super) fn parse(texts: &[String]) -> Result<Self, OriginsError> {
        if texts.iter().any(|text| text == "*") {
            return if texts.len() == 1 { Ok(Self::Any) } else { Err(OriginsError::AnyAndOthers) };
        }
        texts.iter().map(|text| parse(text)).collect::<Result<_, _>>().map(Self::These)
    }

    /// The grant for a page of `origin`; without an origin, for whoever reads headers.
    fn grant(&self, origin: Option<&HeaderValue>) -> Option<HeaderValue> {
        match self {
            Self::Any => Some(ANY),
            Self::These(these) => origin.filter(|origin| these.contains(origin)).cloned(),
        }
    }

    /// Puts the grant for `origin` into the headers of an answer.
    pub(super) fn write(&self, headers: &mut HeaderMap, origin: Option<&HeaderValue>) {
        if matches!(self, Self::These(_)) {
            headers.insert(header::VARY, HeaderValue::from_static("Origin"));
        }
        if let Some(grant) = self.grant(origin) {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, grant);
        }
    }

    /// The same for the question that a browser asks before a request.
    pub(super) fn write_preflight(&self, headers: &mut HeaderMap, origin: Option<&HeaderValue>, methods: &HeaderValue) {
        self.write(headers, origin);
        if headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN) {
            headers.insert(METHODS, methods.clone());
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, ALLOW_HEADERS);
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
        }
    }
}

/// An origin as browsers send it (RFC 6454, section 6.2).
fn parse(text: &str) -> Result<HeaderValue, OriginsError> {
    let refuse = || OriginsError::NoOrigin(text.to_owned());
    let authority = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).ok_or_else(refuse)?;
    let is_host = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b':' | b'[' | b']');
    if authority.is_empty() || !authority.bytes().all(is_host) {
        return Err(refuse());
    }
    HeaderValue::from_str(text).map_err(|_never| refuse())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origins(texts: &[&str]) -> Result<Origins, OriginsError> {
        Origins::parse(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
    }

    #[track_caller]
    fn check(texts: &[&str], origin: Option<&'static str>, expected: Option<&str>) {
        let mut headers = HeaderMap::new();
        let origin = origin.map(HeaderValue::from_static);
        origins(texts).expect("origins").write(&mut headers, origin.as_ref());
        let granted = headers.get(header::ACCESS_CONTROL_ALLOW_ORIGIN).map(|value| value.to_str().expect("text"));
        assert_eq!(granted, expected);
    }

    #[test]
    fn a_grant_is_for_the_origins_that_are_named() {
        check(&["*"], None, Some("*"));
        check(&["*"], Some("https://app.example"), Some("*"));
        check(&["https://app.example"], Some("https://app.example"), Some("https://app.example"));
        check(&["https://app.example"], Some("https://evil.example"), None);
        check(&["https://app.example"], Some("null"), None);
        check(&["https://app.example"], None, None);
        check(&[], Some("https://app.example"), None);
    }

    #[test]
    fn what_is_no_origin_is_refused() {
        for wrong in ["", "app.example", "https://", "https://app.example/", "https://APP.example", "null", "ftp://a"] {
            assert_eq!(origins(&[wrong]), Err(OriginsError::NoOrigin(wrong.to_owned())));
        }
        assert_eq!(origins(&["*", "https://a"]), Err(OriginsError::AnyAndOthers));
        assert!(origins(&["http://localhost:3000", "https://[2001:db8::1]:8443"]).is_ok());
    }

    #[test]
    fn a_refused_preflight_grants_nothing_at_all() {
        let mut headers = HeaderMap::new();
        let origin = HeaderValue::from_static("https://evil.example");
        let methods = HeaderValue::from_static("GET");
        origins(&["https://app.example"]).expect("origins").write_preflight(&mut headers, Some(&origin), &methods);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["vary"]);
    }
}
