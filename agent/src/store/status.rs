//! What the store tells the outside.

use std::fmt;

use crate::foundation::id::NodeId;

/// The part this member plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Role {
    Leader,
    Follower,
    /// Asks to be elected.
    Candidate,
    /// Holds the log and has no vote.
    Learner,
    /// The store does not run.
    #[default]
    None,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::Candidate => "candidate",
            Self::Learner => "learner",
            Self::None => "none",
        })
    }
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Random, made with its store directory.
    pub raft_id: u64,
    pub node: NodeId,
    /// Where its Raft listener answers, `host:port`; empty: it has none.
    pub address: String,
    pub voter: bool,
}

/// The state now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    pub role: Role,
    pub leader: Option<NodeId>,
    pub members: Vec<Member>,
    /// Every declared schema is in the database here.
    pub ready: bool,
    /// Why the store does not run or not as it should, a sentence each.
    pub errors: Vec<String>,
}
