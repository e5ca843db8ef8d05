//! How a request fails on this listener: one table of codes, and the shape that clients of PMDaemon know.
//!
//! `{"success":false,"error":{"code":"…","message":"…","details":{…}}}` (spec, "Error Response Format").

use axum::http::StatusCode;
use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value};

/// The kinds of failure a client can tell apart. Their names are stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum Code {
    /// The request is wrong; the same request never succeeds.
    InvalidRequest,
    /// The body is not JSON.
    ConfigParseError,
    /// What the body says cannot be, or has a field that is not known.
    InvalidConfig,
    ProcessNotFound,
    ProcessAlreadyExists,
    ProcessAlreadyRunning,
    /// What is to be started cannot be, as it is written down.
    ProcessStartFailed,
    PortInUse,
    /// The state it asks for does not go with the state there is.
    Conflict,
    Unauthorized,
    PermissionDenied,
    /// There is no such path.
    NotFound,
    MethodNotAllowed,
    RequestTimeout,
    PayloadTooLarge,
    UnsupportedMediaType,
    /// The agent tried and failed.
    OperationFailed,
    /// Too much at once; try again.
    InsufficientResources,
    /// The agent is starting or stopping.
    NotReady,
}

impl Code {
    /// Every code, for the document.
    pub(super) const ALL: [Self; 19] = [
        Self::InvalidRequest,
        Self::ConfigParseError,
        Self::InvalidConfig,
        Self::ProcessNotFound,
        Self::ProcessAlreadyExists,
        Self::ProcessAlreadyRunning,
        Self::ProcessStartFailed,
        Self::PortInUse,
        Self::Conflict,
        Self::Unauthorized,
        Self::PermissionDenied,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::RequestTimeout,
        Self::PayloadTooLarge,
        Self::UnsupportedMediaType,
        Self::OperationFailed,
        Self::InsufficientResources,
        Self::NotReady,
    ];

    pub(super) const fn status(self) -> StatusCode {
        match self {
            Self::InvalidRequest | Self::ConfigParseError | Self::InvalidConfig | Self::ProcessStartFailed => {
                StatusCode::BAD_REQUEST
            }
            Self::ProcessAlreadyExists | Self::ProcessAlreadyRunning | Self::PortInUse | Self::Conflict => {
                StatusCode::CONFLICT
            }
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::PermissionDenied => StatusCode::FORBIDDEN,
            Self::NotFound | Self::ProcessNotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::OperationFailed => StatusCode::INTERNAL_SERVER_ERROR,
            Self::InsufficientResources | Self::NotReady => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// A failure as the client sees it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Problem {
    pub(super) code: Code,
    /// One sentence: what is wrong and what to do.
    pub(super) message: String,
    pub(super) details: Map<String, Value>,
}

impl Problem {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: Map::new() }
    }

    /// The same with one more detail.
    #[must_use]
    pub(super) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.details.insert(name.to_owned(), value.into());
        self
    }

    /// The body of the answer.
    pub(super) fn body(&self) -> Bytes {
        #[derive(Serialize)]
        struct Refusal<'a> {
            success: bool,
            error: &'a Problem,
        }
        // Text and JSON values can always be written.
        let mut text = serde_json::to_vec(&Refusal { success: false, error: self }).unwrap_or_default();
        text.push(b'\n');
        text.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_has_the_documented_shape() {
        let problem = Problem::new(Code::NotFound, "there is no /x").with("available", vec!["/metrics"]);
        let body: Value = serde_json::from_slice(&problem.body()).expect("JSON");
        let expected = serde_json::json!({
            "success": false,
            "error": { "code": "NOT_FOUND", "message": "there is no /x", "details": { "available": ["/metrics"] } }
        });
        assert_eq!(body, expected);
    }

    #[test]
    fn every_code_is_a_failure() {
        for code in Code::ALL {
            assert!(code.status().is_client_error() || code.status().is_server_error(), "{code:?}");
        }
    }
}
