//! Why a call failed, as its caller may read it.

use std::fmt;

/// The kinds a caller can tell apart. `api` gives each its code and status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The parameters are wrong; the same call never succeeds.
    Invalid,
    /// The caller may not do this.
    Forbidden,
    NotFound,
    /// The method exists, but not for this verb.
    WrongVerb,
    /// The state it asks for is not the state there is.
    Conflict,
    TooLarge,
    Timeout,
    Busy,
    /// What it needs is not there (yet): another service, another node, a part of the agent.
    Unavailable,
    Failed,
}

/// A failed call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub kind: Kind,
    /// One sentence: what is wrong and what to do.
    pub text: String,
}

impl Failure {
    /// A failure of this kind.
    pub fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }

    /// The parameters are wrong.
    pub fn invalid(text: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, text)
    }

    /// The agent tried and failed.
    pub fn failed(text: impl Into<String>) -> Self {
        Self::new(Kind::Failed, text)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}
