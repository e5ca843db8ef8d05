//! A call and its reply, as every transport hands them over.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;

use super::caller::Caller;
use super::failure::Failure;

/// What is asked of a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Get,
    Put,
    Post,
    Patch,
    Delete,
}

impl Verb {
    /// The verb by its name in HTTP; HEAD is a GET whose body is not sent.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "GET" | "HEAD" => Self::Get,
            "PUT" => Self::Put,
            "POST" => Self::Post,
            "PATCH" => Self::Patch,
            "DELETE" => Self::Delete,
            _ => return None,
        })
    }

    /// Its name in HTTP.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Post => "POST",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }
}

/// One call.
#[derive(Debug, Clone)]
pub struct Call {
    pub verb: Verb,
    /// The parts of the path that the method takes, in their order, percent-decoded.
    pub parts: Vec<String>,
    /// What follows `?`, as it came.
    pub query: Option<String>,
    /// The body as it came; empty where the method takes none.
    pub body: Bytes,
    /// What a message of this call carries beside its body; empty where the method sends none.
    pub headers: Vec<(String, String)>,
    pub caller: Arc<Caller>,
    /// Where the connection came from; `None` on the control socket.
    pub from: Option<IpAddr>,
}

impl Call {
    /// A part of the path; empty where the path has none.
    pub fn part(&self, index: usize) -> &str {
        self.parts.get(index).map_or("", String::as_str)
    }
}

/// What a method answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Compact JSON without a line end.
    Json(Bytes),
    /// Bytes of another's making, passed on as they are; they are JSON too.
    Raw(Bytes),
    /// Text for people or bytes for a tool; over JSON-RPC it cannot be sent.
    Other { content_type: &'static str, bytes: Bytes },
    /// Nothing to say: `{}`.
    Nothing,
}

/// How a call ends.
pub type Outcome = Result<Reply, Failure>;
