//! The host's packet filter as the firewall's reconciler uses it.

pub mod fake;
pub mod linux;

use std::future::Future;
use std::io;
use std::process::ExitStatus;

use super::plan::{Change, Standing};
use super::render::DroppingChain;
use super::spec::Ruleset;
use crate::foundation::id::LinkName;

/// `nft` did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    #[error("the firewall needs the program nft: install the package nftables, or take [firewall] out of the settings")]
    Missing(#[source] io::Error),
    #[error("failed to run nft to {action}")]
    Run {
        action: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("nft did not end within 10 s when asked to {action}")]
    Slow { action: &'static str },
    #[error("nft failed to {action} ({status}): {text}")]
    Failed { action: &'static str, status: ExitStatus, text: String },
    #[error("nft printed what is not libnftables JSON when asked to {action}")]
    Output {
        action: &'static str,
        #[source]
        source: io::Error,
    },
}

/// Whether the host forwards packets between its links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forwarding {
    pub ipv4: bool,
    pub ipv6: bool,
}

/// The few things done to the packet filter.
pub trait Platform: Send + 'static {
    /// How the table called `table` stands against `wanted`.
    fn standing(
        &mut self,
        table: &str,
        wanted: Option<&Ruleset>,
    ) -> impl Future<Output = Result<Standing, NftError>> + Send;

    /// Makes the change in one transaction.
    fn apply(&mut self, table: &str, change: &Change) -> impl Future<Output = Result<(), NftError>> + Send;

    /// Chains of other tables that drop what they do not accept. Only a hint: what cannot be read is left out.
    fn dropping_chains(&mut self, table: &str) -> impl Future<Output = Vec<DroppingChain>> + Send;

    /// Whether packets are forwarded at all.
    fn forwarding(&mut self) -> Forwarding;

    /// Has one link forward whatever the host does; says what it forwards then.
    fn forward_on(&mut self, link: &LinkName) -> Forwarding;

    /// Has one link forward as the host does.
    fn forward_as_host(&mut self, link: &LinkName);
}
