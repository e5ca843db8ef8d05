//! Which `Host` a request may name.

use std::net::IpAddr;

/// Whether a request that names `host` (with or without a port) is meant for a listener on `address`.
///
/// An attacker's page can make a browser send its own name here, but never an address or `localhost`; so any address
/// is fine for a listener on every address, and names other than `localhost` never are.
pub(super) fn is_ours(host: &str, address: IpAddr) -> bool {
    let name = without_port(host);
    if name.eq_ignore_ascii_case("localhost") {
        return true;
    }
    let literal = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
    let Ok(named) = literal.parse::<IpAddr>() else { return false };
    named.is_loopback() || named == address || address.is_unspecified()
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port))
            if port.bytes().all(|b| b.is_ascii_digit()) && (!name.contains(':') || name.ends_with(']')) =>
        {
            name
        }
        Some(_) | None => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(host: &str, listen: &str, expected: bool) {
        assert_eq!(is_ours(host, listen.parse().expect("an address")), expected, "{host} on {listen}");
    }

    #[test]
    fn loopback_names_and_addresses_are_ours() {
        for host in ["localhost", "LOCALHOST:9615", "127.0.0.1:9615", "127.0.0.9", "[::1]:9615", "[::1]"] {
            check(host, "127.0.0.1", true);
        }
    }

    #[test]
    fn the_configured_address_is_ours() {
        check("192.0.2.7:9615", "192.0.2.7", true);
        check("192.0.2.8:9615", "192.0.2.7", false);
        check("192.0.2.8:9615", "0.0.0.0", true);
    }

    #[test]
    fn names_of_others_are_refused() {
        for host in
            ["evil.example", "evil.example:9615", "127.0.0.1.evil.example", "", ":9615", "localhost.evil.example"]
        {
            check(host, "127.0.0.1", false);
            check(host, "0.0.0.0", false);
        }
    }
}
