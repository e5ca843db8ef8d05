//! What the head of a request says about whom it is for, through whom it came and what it presents, in one pass. Pure.
//!
//! Everything but a key can only take trust away.

use axum::http::request::Parts;
use axum::http::{HeaderValue, header};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::host;

/// How a page names its key when it opens a WebSocket, where it cannot set headers: as an offered subprotocol that begins
/// so and goes on with the key in base64url. An address would be logged on the way; this header is not.
const KEY_PROTOCOL: &str = "key.";

/// What a head says.
#[derive(Debug, Default)]
pub(super) struct Facts<'a> {
    /// The one `Host`; `None` if there is none or more than one.
    pub(super) host: Option<&'a str>,
    pub(super) origin: Option<&'a HeaderValue>,
    /// It was made by a page of another origin; the header that says so.
    pub(super) foreign: Option<&'static str>,
    /// It came through a proxy, or claims so.
    pub(super) is_forwarded: bool,
    /// Every key that it presents.
    pub(super) keys: Vec<Presented<'a>>,
}

/// A key as it was presented.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Presented<'a> {
    Header(&'a [u8]),
    Protocol(Vec<u8>),
    /// `Authorization` with something else in it.
    Malformed,
}

impl<'a> Facts<'a> {
    pub(super) fn of(head: &'a Parts) -> Self {
        let mut facts = Self::default();
        let (mut hosts, mut referer, mut site) = (0, None, None);
        for (name, value) in &head.headers {
            match *name {
                header::HOST => {
                    hosts += 1;
                    facts.host = value.to_str().ok().filter(|_| hosts == 1);
                }
                header::ORIGIN => facts.origin = Some(value),
                header::REFERER => referer = Some(value),
                header::AUTHORIZATION => facts.keys.push(authorization(value.as_bytes())),
                header::SEC_WEBSOCKET_PROTOCOL => facts.keys.extend(protocol_key(value)),
                header::FORWARDED | header::VIA => facts.is_forwarded = true,
                ref other => match other.as_str() {
                    "x-api-key" => facts.keys.push(Presented::Header(value.as_bytes())),
                    "sec-fetch-site" => site = Some(value),
                    name => facts.is_forwarded |= is_forwarding(name),
                },
            }
        }
        facts.foreign = facts.foreign_page(referer, site);
        facts
    }

    /// The header that says that a page of another origin asks.
    fn foreign_page(&self, referer: Option<&HeaderValue>, site: Option<&HeaderValue>) -> Option<&'static str> {
        let is_foreign_url = |value: &HeaderValue| {
            let text = value.to_str().unwrap_or_default();
            let named = text.split_once("://").map(|(_, rest)| rest.split(['/', '?', '#']).next().unwrap_or_default());
            named.is_none() || named != self.host
        };
        let is_foreign_site = |value: &HeaderValue| !matches!(value.as_bytes(), b"none" | b"same-origin");
        if self.origin.is_some_and(is_foreign_url) {
            return Some("Origin");
        }
        if site.is_some_and(is_foreign_site) {
            return Some("Sec-Fetch-Site");
        }
        referer.is_some_and(is_foreign_url).then_some("Referer")
    }

    /// Whether it names exactly one host, and one that a listener on `address` answers for.
    pub(super) fn is_for(&self, address: std::net::IpAddr) -> bool {
        self.host.is_some_and(|name| host::is_ours(name, address))
    }
}

impl Presented<'_> {
    /// The key; `None` where there is none to be read.
    pub(super) fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Header(bytes) => Some(bytes),
            Self::Protocol(bytes) => Some(bytes),
            Self::Malformed => None,
        }
    }
}

/// `Bearer KEY` or `ApiKey KEY`; the scheme in any case (RFC 9110, section 11.1).
fn authorization(value: &[u8]) -> Presented<'_> {
    let Some(space) = value.iter().position(|byte| *byte == b' ') else { return Presented::Malformed };
    let (scheme, key) = (&value[..space], value[space..].trim_ascii());
    let is_known = scheme.eq_ignore_ascii_case(b"Bearer") || scheme.eq_ignore_ascii_case(b"ApiKey");
    if is_known { Presented::Header(key) } else { Presented::Malformed }
}

fn protocol_key(value: &HeaderValue) -> Option<Presented<'static>> {
    let mut offered = value.to_str().ok()?.split(',').map(str::trim);
    let encoded = offered.find_map(|name| name.strip_prefix(KEY_PROTOCOL))?;
    Some(URL_SAFE_NO_PAD.decode(encoded).map_or(Presented::Malformed, Presented::Protocol))
}

/// Headers by which proxies say for whom they ask.
fn is_forwarding(name: &str) -> bool {
    name.starts_with("x-forwarded-")
        || matches!(
            name,
            "x-real-ip" | "x-client-ip" | "x-original-forwarded-for" | "cf-connecting-ip" | "true-client-ip"
        )
}

#[cfg(test)]
mod tests {
    use axum::http::Request;
    use proptest::prelude::*;

    use super::*;

    fn head(headers: &[(&str, &str)]) -> Parts {
        let builder = headers.iter().fold(Request::get("/"), |builder, (name, value)| builder.header(*name, *value));
        builder.body(()).expect("a request").into_parts().0
    }

    #[track_caller]
    fn check_foreign(name: &str, value: &str, expected: bool) {
        let head = head(&[("host", "localhost:9615"), (name, value)]);
        assert_eq!(Facts::of(&head).foreign.is_some(), expected, "{name}: {value}");
    }

    #[test]
    fn pages_of_other_origins_are_recognised() {
        check_foreign("origin", "http://localhost:9615", false);
        check_foreign("referer", "http://localhost:9615/x?y", false);
        check_foreign("sec-fetch-site", "same-origin", false);
        check_foreign("sec-fetch-site", "none", false);
        for value in ["http://evil.example", "null", "", "http://localhost", "http://localhost:9615.evil.example"] {
            check_foreign("origin", value, true);
        }
        check_foreign("referer", "http://evil.example/http://localhost:9615/", true);
        check_foreign("sec-fetch-site", "cross-site", true);
        check_foreign("sec-fetch-site", "same-site", true);
    }

    #[test]
    fn a_request_names_one_host() {
        let ip = "127.0.0.1".parse().expect("an address");
        assert!(Facts::of(&head(&[("host", "localhost")])).is_for(ip));
        for headers in [&[][..], &[("host", "localhost"), ("host", "localhost")], &[("host", "evil.example")]] {
            assert!(!Facts::of(&head(headers)).is_for(ip), "{headers:?}");
        }
    }

    #[test]
    fn keys_come_in_three_ways() {
        let check = |name, value, expected: &[Presented<'_>]| {
            assert_eq!(Facts::of(&head(&[(name, value)])).keys, expected, "{name}: {value:?}");
        };
        for value in ["Bearer k", "bearer  k ", "ApiKey k", "APIKEY k"] {
            check("authorization", value, &[Presented::Header(b"k")]);
        }
        check("x-api-key", "k", &[Presented::Header(b"k")]);
        check("sec-websocket-protocol", "weft, key.a2V5", &[Presented::Protocol(b"key".to_vec())]);
        for value in ["Basic k", "k", ""] {
            check("authorization", value, &[Presented::Malformed]);
        }
        check("sec-websocket-protocol", "weft", &[]);
    }

    #[test]
    fn proxies_are_recognised() {
        for name in ["x-forwarded-for", "forwarded", "via", "x-real-ip"] {
            assert!(Facts::of(&head(&[(name, "192.0.2.1")])).is_forwarded, "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_header_is_read_without_a_panic(value in prop::collection::vec(any::<u8>(), 0..60)) {
            let Ok(value) = HeaderValue::from_bytes(&value) else { return Ok(()) };
            let mut parts = head(&[]);
            for name in ["host", "origin", "referer", "authorization", "x-api-key", "sec-websocket-protocol"] {
                parts.headers.append(name, value.clone());
            }
            Facts::of(&parts);
        }
    }
}
