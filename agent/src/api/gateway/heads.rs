//! Headers that end here when a request is passed on: those of one connection, and what a client claims about itself.

use axum::http::{HeaderMap, HeaderName, header};

/// Who asks, as a member of the mesh vouches for it.
pub(super) const P_CALLER: HeaderName = HeaderName::from_static("p-caller");
pub(super) const X_RAY: HeaderName = HeaderName::from_static("x-ray");
pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Other ways to say where a request comes from.
const CLAIMS: [HeaderName; 5] = [
    header::FORWARDED,
    HeaderName::from_static("x-real-ip"),
    HeaderName::from_static("x-client-ip"),
    HeaderName::from_static("cf-connecting-ip"),
    HeaderName::from_static("true-client-ip"),
];
const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Whether a request asks for another protocol on its connection.
pub(super) fn wants_upgrade(headers: &HeaderMap) -> bool {
    let connection = headers.get(header::CONNECTION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    headers.contains_key(header::UPGRADE)
        && connection.split(',').any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
}

/// Removes what belongs to one connection (RFC 9110 section 7.6.1).
pub(super) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if let Some(named) = headers.get(header::CONNECTION) {
        let named: Vec<HeaderName> =
            named.to_str().unwrap_or_default().split(',').filter_map(|name| name.trim().parse().ok()).collect();
        for name in named {
            headers.remove(name);
        }
        for name in &HOP_BY_HOP {
            headers.remove(name);
        }
    } else {
        for name in &HOP_BY_HOP[1..] {
            headers.remove(name);
        }
    }
}

/// Removes what a client says about where it comes from.
pub(super) fn remove_claims(headers: &mut HeaderMap) {
    for name in &CLAIMS {
        headers.remove(name);
    }
}
