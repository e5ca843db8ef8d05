//! How an answer is written: content, status, and the headers that every answer of this listener carries.

use std::sync::LazyLock;

use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use bytes::Bytes;
use serde::Serialize;

use super::problem::{Code, Problem};
use crate::api::body::Body;

pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// An answer is data: nothing in it may load, run or be framed, and no cache may keep it.
static HEADERS: LazyLock<HeaderMap> = LazyLock::new(|| {
    let fixed = [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::X_XSS_PROTECTION, "1; mode=block"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    fixed.into_iter().map(|(name, value)| (name, HeaderValue::from_static(value))).collect()
});

/// [`HEADERS`] of what is JSON, made once: most answers are.
static JSON_HEADERS: LazyLock<HeaderMap> = LazyLock::new(|| {
    let mut headers = HEADERS.clone();
    headers.insert(header::CONTENT_TYPE, JSON);
    headers
});

/// An answer with these bytes.
pub(super) fn bytes(content_type: HeaderValue, content: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(content.into());
    if content_type == JSON {
        *response.headers_mut() = JSON_HEADERS.clone();
        return response;
    }
    *response.headers_mut() = HEADERS.clone();
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}

/// An answer without content.
pub(super) fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    *response.headers_mut() = HEADERS.clone();
    response
}

/// `value` as JSON, with a line end.
pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    let mut text = match serde_json::to_vec(value) {
        Ok(text) => text,
        Err(error) => {
            tracing::error!(%error, "failed to write an answer as JSON");
            return problem(&Problem::new(Code::OperationFailed, "the answer cannot be written as JSON"));
        }
    };
    text.push(b'\n');
    let mut response = bytes(JSON, Bytes::from(text));
    *response.status_mut() = status;
    response
}

/// A failure.
pub(super) fn problem(problem: &Problem) -> Response<Body> {
    let mut response = bytes(JSON, problem.body());
    *response.status_mut() = problem.code.status();
    if problem.code == Code::Unauthorized {
        // RFC 9110, section 11.6.1: a 401 names a scheme.
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}
