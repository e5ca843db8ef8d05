//! Why the supervisor did not do what it was asked.

use std::sync::Arc;

use super::platform::StartError;
use super::spec::SpecError;

/// A refusal or failure, as the caller may read it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("process '{target}' not found")]
    NotFound { target: String, available: Vec<Arc<str>> },
    #[error("process '{name}' exists already; delete it first, or take another name")]
    Exists { name: String },
    #[error("process '{name}' runs already")]
    AlreadyRunning { name: String },
    #[error("the definition is wrong")]
    Invalid(#[from] SpecError),
    #[error("port {port} of process '{name}' is in use")]
    PortInUse { name: String, port: u16 },
    #[error("process '{name}' cannot be started")]
    Start {
        name: String,
        #[source]
        source: StartError,
    },
    #[error("process '{name}' is defined in weft.toml; change it there and run `weft reload`")]
    Configured { name: String },
    #[error("{most} instances are the limit")]
    TooMany { most: usize },
    #[error("process '{name}' is being reloaded")]
    Busy { name: String },
    #[error("process '{name}' takes no input: {why}")]
    NoInput { name: String, why: String },
    #[error("failed to save the list of processes: {why}")]
    Save { why: String },
    #[error("this agent supervises nothing: {why}")]
    Disabled { why: Arc<str> },
    #[error("the agent is stopping")]
    Stopping,
}

/// The kinds that an interface tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    NotFound,
    Exists,
    AlreadyRunning,
    Invalid,
    PortInUse,
    StartFailed,
    Conflict,
    Resources,
    Unavailable,
    Failed,
}

impl Error {
    /// The kind of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Exists { .. } => ErrorKind::Exists,
            Self::AlreadyRunning { .. } => ErrorKind::AlreadyRunning,
            Self::Invalid(_) => ErrorKind::Invalid,
            Self::PortInUse { .. } => ErrorKind::PortInUse,
            Self::Start { .. } => ErrorKind::StartFailed,
            Self::Configured { .. } | Self::Busy { .. } | Self::NoInput { .. } => ErrorKind::Conflict,
            Self::TooMany { .. } => ErrorKind::Resources,
            Self::Save { .. } => ErrorKind::Failed,
            Self::Disabled { .. } | Self::Stopping => ErrorKind::Unavailable,
        }
    }
}
