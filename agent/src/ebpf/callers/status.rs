//! What the classification of callers rests on, for status, doctor and metrics.

use std::fmt;

/// The ways to tell who calls, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// The kernel records callers as they connect, and the record is on the accepted socket.
    Storage,
    /// The owner of the caller's socket is asked for after the fact.
    SockDiag,
    /// Nobody can be told; everybody is external, and only the control socket knows its callers.
    Nothing,
}

impl fmt::Display for Basis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Storage => "socket storage (eBPF): callers are recorded by the kernel as they connect",
            Self::SockDiag => {
                "sock_diag: the owner of the caller's socket is looked up after the connection was accepted"
            }
            Self::Nothing => "nothing: every caller is external; only the control socket knows who calls",
        })
    }
}

/// The state after the newest check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    pub basis: Basis,
    /// Why `basis` is not the best there is.
    pub fallback_reason: Option<String>,
    /// It is not the best because the configuration says so.
    pub is_chosen: bool,
    /// Whether addresses that somebody else holds can be served.
    pub can_steer: bool,
    /// Why not.
    pub steering_error: Option<String>,
    /// Worth knowing, and nothing is broken.
    pub notes: Vec<String>,
}

impl Status {
    /// One sentence.
    pub fn summary(&self) -> String {
        let mut text = self.basis.to_string();
        if let Some(reason) = &self.fallback_reason {
            text.push_str("; ");
            text.push_str(reason);
        }
        text
    }
}
