//! The one table of how a failure leaves the agent: HTTP status, gRPC status and exit code of the command line.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

/// The kinds of failure a client can tell apart. Their names in JSON are stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request is wrong; the same request never succeeds.
    InvalidArgument,
    /// The caller may not do this.
    Forbidden,
    /// There is no such thing.
    NotFound,
    /// The thing exists, but not for this method.
    MethodNotAllowed,
    /// The state it asks for is not the state there is.
    Conflict,
    /// The request is larger than is read.
    TooLarge,
    /// The request came in too slowly, or the answer took too long.
    Timeout,
    /// Too much at once; try again.
    Busy,
    /// The agent is starting or stopping.
    NotReady,
    /// A server behind the agent did not do its part.
    BadGateway,
    /// The agent tried and failed.
    Failed,
}

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    pub http: StatusCode,
    pub grpc: tonic::Code,
    /// Exit code of the command line: 1 failed, 2 usage, 3 not running, 4 degraded.
    pub exit: u8,
}

impl ErrorCode {
    /// How this kind looks on each interface.
    pub const fn mapping(self) -> Mapping {
        let (http, grpc, exit) = match self {
            Self::InvalidArgument => (StatusCode::BAD_REQUEST, tonic::Code::InvalidArgument, 2),
            Self::Forbidden => (StatusCode::FORBIDDEN, tonic::Code::PermissionDenied, 1),
            Self::NotFound => (StatusCode::NOT_FOUND, tonic::Code::NotFound, 1),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, tonic::Code::Unimplemented, 1),
            Self::Conflict => (StatusCode::CONFLICT, tonic::Code::Aborted, 1),
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, tonic::Code::OutOfRange, 1),
            Self::Timeout => (StatusCode::GATEWAY_TIMEOUT, tonic::Code::DeadlineExceeded, 1),
            Self::Busy => (StatusCode::TOO_MANY_REQUESTS, tonic::Code::ResourceExhausted, 1),
            Self::NotReady => (StatusCode::SERVICE_UNAVAILABLE, tonic::Code::Unavailable, 4),
            Self::BadGateway => (StatusCode::BAD_GATEWAY, tonic::Code::Unavailable, 1),
            Self::Failed => (StatusCode::INTERNAL_SERVER_ERROR, tonic::Code::Internal, 1),
        };
        Mapping { http, grpc, exit }
    }
}

/// A failure as the client sees it: `{"error":"…","code":"…"}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{error}")]
pub struct ApiError {
    /// One sentence: what is wrong and what to do.
    pub error: String,
    pub code: ErrorCode,
}

impl ApiError {
    /// A failure of this kind.
    pub fn new(code: ErrorCode, error: impl Into<String>) -> Self {
        Self { error: error.into(), code }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.code.mapping().http, axum::Json(self)).into_response()
    }
}

impl From<ApiError> for tonic::Status {
    fn from(error: ApiError) -> Self {
        Self::new(error.code.mapping().grpc, error.error)
    }
}
