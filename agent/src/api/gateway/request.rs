//! What the head of a request says about whom it is for and through whom it came, in one pass over its headers. Pure.
//!
//! Everything here can only take trust away: a name that is not exactly ours, a page of another site, a proxy on the way.

use std::net::IpAddr;

use axum::http::request::Parts;
use axum::http::{HeaderMap, Uri, header};

use super::config::Config;
use crate::pm3::MachineId;

/// The names the API answers to, in lower case.
#[derive(Debug)]
pub(super) struct Names {
    names: [String; 3],
}

impl Names {
    pub(super) fn new(node: &str, machine: MachineId) -> Self {
        Self { names: ["pm3".to_owned(), format!("{node}.pm3"), format!("{machine}.pm3")] }
    }

    fn has(&self, host: &str) -> bool {
        self.names.iter().any(|name| name == host)
    }

    /// Whether `host`, with or without the port of the listener, is exactly one of them.
    pub(super) fn answer_to(&self, host: &str, port: u16) -> bool {
        if self.has(host) {
            return true;
        }
        let Some((name, given)) = host.split_once(':') else { return false };
        let is_port = !given.is_empty() && !given.starts_with(['0', '+']) && given.parse() == Ok(port);
        is_port && self.has(name)
    }
}

/// What a head says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Facts<'a> {
    /// The one `Host` or `:authority`; `None` if there is none or more than one, or they differ.
    pub(super) host: Option<&'a str>,
    /// It came through a proxy, or claims so.
    pub(super) is_forwarded: bool,
    /// It was made by a page of another site; the header that says so.
    pub(super) foreign: Option<&'static str>,
    pub(super) token: Option<&'a str>,
}

impl<'a> Facts<'a> {
    pub(super) fn of(head: &'a Parts, names: &Names, port: u16) -> Self {
        let mut facts = Facts { host: authority(&head.uri), ..Facts::default() };
        let is_foreign_url = |value: &str| {
            let host = value.split_once("://").map(|(_, rest)| rest.split(['/', '?', '#']).next().unwrap_or_default());
            !host.is_some_and(|host| names.answer_to(host, port))
        };
        let mut hosts = 0;
        for (name, value) in &head.headers {
            let text = value.to_str().ok();
            match *name {
                header::HOST => {
                    hosts += 1;
                    let is_other = facts.host.is_some_and(|host| Some(host) != text);
                    facts.host = text.filter(|_| hosts == 1 && !is_other);
                }
                header::ORIGIN if text.is_none_or(is_foreign_url) => facts.foreign = Some("Origin"),
                header::REFERER if text.is_none_or(is_foreign_url) => facts.foreign = Some("Referer"),
                header::FORWARDED | header::VIA => facts.is_forwarded = true,
                ref other => match other.as_str() {
                    "sec-fetch-site" if !matches!(text, Some("none" | "same-origin")) => {
                        facts.foreign = Some("Sec-Fetch-Site");
                    }
                    "x-psn" => facts.token = text,
                    name if is_forwarding(name) => facts.is_forwarded = true,
                    _ => {}
                },
            }
        }
        if hosts > 1 {
            facts.host = None;
        }
        facts
    }
}

/// Headers by which proxies say for whom they ask.
pub(super) fn is_forwarding(name: &str) -> bool {
    name.starts_with("x-forwarded-")
        || matches!(
            name,
            "x-real-ip" | "x-client-ip" | "x-original-forwarded-for" | "cf-connecting-ip" | "true-client-ip"
        )
}

fn authority(uri: &Uri) -> Option<&str> {
    uri.authority().map(axum::http::uri::Authority::as_str)
}

/// The address a request comes from: the peer, or behind trusted proxies the right-most address that is none of them.
pub(super) fn client(config: &Config, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
    let mut client = peer;
    if !config.trusts(client) {
        return client;
    }
    let values: Vec<&str> =
        headers.get_all("x-forwarded-for").iter().map(|value| value.to_str().unwrap_or("?")).collect();
    for entry in values.iter().rev().flat_map(|value| value.rsplit(',')) {
        // What cannot be read ends the chain: what stands left of it is anybody's claim.
        let Some(address) = address(entry.trim()) else { return client };
        client = address;
        if !config.trusts(client) {
            return client;
        }
    }
    client
}

/// An address as proxies write it: alone, in brackets, with a port.
fn address(text: &str) -> Option<IpAddr> {
    let alone = text.parse().ok();
    let with_port = || text.parse::<std::net::SocketAddr>().ok().map(|address| address.ip());
    let in_brackets = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    alone.or_else(with_port).or_else(in_brackets)
}

#[cfg(test)]
mod tests {
    use axum::http::Request;
    use proptest::prelude::*;

    use super::*;
    use crate::foundation::mutate::edited;

    fn names() -> Names {
        Names::new("alpha", MachineId(42))
    }

    fn head(headers: &[(&str, &str)]) -> Parts {
        let builder =
            headers.iter().fold(Request::get("/ping"), |builder, (name, value)| builder.header(*name, *value));
        builder.body(()).expect("a request").into_parts().0
    }

    #[track_caller]
    fn check_host(host: &str, expected: bool) {
        assert_eq!(names().answer_to(host, 80), expected, "{host:?}");
    }

    #[test]
    fn only_exact_names_are_ours() {
        for host in ["pm3", "pm3:80", "alpha.pm3", "0000002a.pm3", "alpha.pm3:80"] {
            check_host(host, true);
        }
        for host in [
            "",
            "PM3",
            "Pm3",
            "pm3.",
            "pm3:",
            "pm3:080",
            "pm3:+80",
            "pm3:81",
            "pm3:80:80",
            "pm3@evil",
            "evil@pm3",
            " pm3",
            "pm3 ",
            "pm3\u{200b}",
            "рm3",
            "ｐｍ３",
            "xn--pm3",
            "beta.pm3",
            "a.alpha.pm3",
            ".pm3",
            "pm3.evil.example",
            "pm3/",
            "[pm3]",
            "127.0.3.3",
            "localhost",
            "pm3%00",
            "pm3\\evil",
            "pm3,pm3",
        ] {
            check_host(host, false);
        }
    }

    #[test]
    fn a_page_of_another_site_is_recognised() {
        let foreign = |headers: &[(&str, &str)]| Facts::of(&head(headers), &names(), 80).foreign;
        for (name, value) in [
            ("origin", "http://evil.example"),
            ("origin", "null"),
            ("origin", "http://pm3.evil.example"),
            ("origin", "pm3"),
            ("origin", "http://pm3:8080"),
            ("referer", "http://evil.example/pm3"),
            ("referer", "http://evil@pm3.x/"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
            ("sec-fetch-site", ""),
        ] {
            assert!(foreign(&[(name, value)]).is_some(), "{name}: {value}");
        }
        for (name, value) in [
            ("origin", "http://pm3"),
            ("origin", "https://alpha.pm3"),
            ("referer", "http://pm3/x?y"),
            ("sec-fetch-site", "none"),
            ("sec-fetch-site", "same-origin"),
            ("accept", "*/*"),
        ] {
            assert!(foreign(&[(name, value)]).is_none(), "{name}: {value}");
        }
    }

    #[test]
    fn every_form_of_a_forwarded_request_is_recognised() {
        for (name, value) in [
            ("x-forwarded-for", "127.0.0.1"),
            ("x-forwarded-for", "10.0.0.1, 127.0.0.1"),
            ("X-FORWARDED-FOR", ""),
            ("forwarded", "for=127.0.0.1"),
            ("forwarded", "for=\"[::1]\""),
            ("via", "1.1 x"),
            ("x-real-ip", "127.0.0.1"),
            ("x-forwarded-host", "pm3"),
            ("x-forwarded-proto", "https"),
            ("cf-connecting-ip", "127.0.0.1"),
            ("true-client-ip", "::1"),
            ("x-client-ip", "::1"),
        ] {
            assert!(Facts::of(&head(&[("host", "pm3"), (name, value)]), &names(), 80).is_forwarded, "{name}: {value}");
        }
        assert!(!Facts::of(&head(&[("host", "pm3"), ("x-other", "1")]), &names(), 80).is_forwarded);
    }

    #[test]
    fn two_hosts_are_none() {
        let two = head(&[("host", "pm3"), ("host", "pm3")]);
        assert_eq!(Facts::of(&two, &names(), 80).host, None);
        let (mut differing, ()) =
            Request::get("http://evil.example/ping").header("host", "pm3").body(()).expect("one").into_parts();
        assert_eq!(Facts::of(&differing, &names(), 80).host, None);
        differing.uri = "http://pm3/ping".parse().expect("a URI");
        assert_eq!(Facts::of(&differing, &names(), 80).host, Some("pm3"));
    }

    #[test]
    fn the_client_is_the_right_most_address_that_is_not_trusted() {
        let config = Config { trusted_proxies: vec!["10.0.0.0/8".parse().expect("a network")], ..Config::default() };
        let client = |peer: &str, values: &[&str]| {
            let headers: Vec<(&str, &str)> = values.iter().map(|value| ("x-forwarded-for", *value)).collect();
            client(&config, peer.parse().expect("an address"), &head(&headers).headers).to_string()
        };
        assert_eq!(client("192.0.2.1", &["127.0.0.1"]), "192.0.2.1", "the peer is no proxy of ours");
        assert_eq!(client("10.0.0.1", &["127.0.0.1, 192.0.2.7"]), "192.0.2.7");
        assert_eq!(client("10.0.0.1", &["192.0.2.7", "198.51.100.2, 10.0.0.2"]), "198.51.100.2");
        assert_eq!(client("10.0.0.1", &["192.0.2.7, nonsense"]), "10.0.0.1");
        assert_eq!(client("10.0.0.1", &["[2001:db8::1]:80"]), "2001:db8::1");
        assert_eq!(client("10.0.0.1", &[]), "10.0.0.1");
    }

    /// Reads a value as each of the headers that say something.
    fn read_everywhere(value: &[u8]) {
        let Ok(value) = axum::http::HeaderValue::from_bytes(value) else { return };
        let mut parts = head(&[]);
        for name in ["host", "origin", "referer", "x-forwarded-for", "x-psn", "sec-fetch-site"] {
            parts.headers.append(name, value.clone());
        }
        Facts::of(&parts, &names(), 80);
        let config = Config { trusted_proxies: vec!["10.0.0.0/8".parse().expect("a network")], ..Config::default() };
        client(&config, IpAddr::from([10, 0, 0, 1]), &parts.headers);
    }

    /// What the headers hold when nobody means ill.
    const VALUES: &[&[u8]] = &[
        b"alpha.pm3:80",
        b"https://alpha.pm3:443/a?b#c",
        b"192.0.2.7, 198.51.100.2, [2001:db8::1]:80",
        b"for=192.0.2.43;by=\"[2001:db8::1]:4711\";proto=https, for=unknown",
        b"same-origin",
        b"pm3;q=0.5, *",
    ];

    proptest! {
        #[test]
        fn no_text_but_the_names_is_a_name(host in "\\PC{0,20}") {
            prop_assume!(!["pm3", "alpha.pm3", "0000002a.pm3"].contains(&host.strip_suffix(":80").unwrap_or(&host)));
            prop_assert!(!names().answer_to(&host, 80));
        }

        #[test]
        fn edited_headers_are_read_without_a_panic(value in edited(VALUES)) {
            read_everywhere(&value);
        }

        #[test]
        fn any_header_is_read_without_a_panic(value in prop::collection::vec(any::<u8>(), 0..60)) {
            read_everywhere(&value);
        }
    }
}
