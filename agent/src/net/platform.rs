//! The host as the link's reconciler uses it.

pub mod fake;
pub mod linux;

use std::future::Future;
use std::io;
use std::net::IpAddr;

use super::plan::{Observed, Path, Step};
use super::spec::Wanted;
use crate::foundation::id::LinkName;
use crate::model::Link;
use crate::sys::rtnetlink::LinkError;

/// The host could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("the link with index {index} is called {now} and no longer {expected}: it is left alone; rename it back")]
    Renamed { index: u32, expected: LinkName, now: String },
    #[error("failed to list the {what}")]
    Dump {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

/// A step that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("failed to {step} on link {link}{hint}")]
pub struct StepError {
    pub step: Step,
    pub link: LinkName,
    /// What usually helps against this failure; empty or `: …`-free text that begins with a space.
    pub hint: &'static str,
    #[source]
    pub source: io::Error,
}

/// Whether ways that were looked up before may be used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ways {
    Keep,
    LookUpAgain,
}

/// The few things done to a link.
pub trait Platform: Send + 'static {
    /// The link and what is around it; `None` if it is gone.
    fn observe(
        &mut self,
        link: &Link,
        wanted: &Wanted,
        ways: Ways,
    ) -> impl Future<Output = Result<Option<Observed>, ObserveError>> + Send;

    /// The way to one address; `None` if nothing leads there. Kept like those that were looked up before.
    fn way(&mut self, address: IpAddr) -> impl Future<Output = Result<Option<Path>, ObserveError>> + Send;

    /// Makes one change; one that is already made is no error.
    fn apply(&mut self, name: &LinkName, index: u32, step: &Step)
    -> impl Future<Output = Result<(), StepError>> + Send;
}
