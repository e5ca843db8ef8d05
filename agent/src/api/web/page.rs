//! The page at `/`: three files in this program, so that it works without a network.
//!
//! They hold no figure and no secret; what they show they ask the API for. Their policy lets nothing else load or run.

use axum::http::request::Parts;
use axum::http::{HeaderValue, Response, StatusCode, header};
use bytes::Bytes;

use super::{answer, routes};
use crate::api::body::Body;

const HTML: &str = include_str!("page/index.html");
const CSS: &str = include_str!("page/page.css");
const JS: &str = include_str!("page/page.js");
/// Only the two files beside the page, and only this listener to talk to.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'none'; require-trusted-types-for 'script'",
);

/// The page for browsers; for programs that accept only JSON what this listener offers.
pub(super) fn index(head: &Parts) -> Response<Body> {
    let accept = head.headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if accept.contains("application/json") && !accept.contains("text/html") {
        return answer::json(StatusCode::OK, routes::index());
    }
    file("text/html; charset=utf-8", HTML)
}

pub(super) fn style() -> Response<Body> {
    file("text/css; charset=utf-8", CSS)
}

pub(super) fn script() -> Response<Body> {
    file("text/javascript; charset=utf-8", JS)
}

fn file(content_type: &'static str, content: &'static str) -> Response<Body> {
    let mut response = answer::bytes(HeaderValue::from_static(content_type), Bytes::from_static(content.as_bytes()));
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, POLICY);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_nothing_outside_this_listener() {
        for (name, content) in [("index.html", HTML), ("page.css", CSS), ("page.js", JS)] {
            for elsewhere in ["http://", "https://", "//cdn", "@import", "url("] {
                assert!(!content.contains(elsewhere), "{name} has {elsewhere}");
            }
        }
        assert!(!HTML.contains("style=") && !HTML.contains("onclick"), "the policy lets nothing inline run");
        for writing in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(!JS.contains(writing), "text that a process chose must never be read as HTML: {writing}");
        }
    }
}
