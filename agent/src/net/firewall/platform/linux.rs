//! The platform over `nft`, run in the network namespace of the calling thread.
//!
//! Only our own table is listed, so that what others put into theirs can neither break nor slow this. A listing is
//! compared with what our rules look like when `nft` prints them; where a version of `nft` prints them otherwise, the
//! listing taken just after our own change stands for them, so that an unchanged table is written once at most.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use nftables::schema::Nftables;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::{Forwarding, NftError, Platform};
use crate::foundation::error::chain;
use crate::foundation::id::LinkName;
use crate::net::firewall::plan::{Change, Standing};
use crate::net::firewall::render::{self, DroppingChain, Normal};
use crate::net::firewall::spec::Ruleset;

/// It takes some 15 ms; on a host with very large sets of others it takes seconds.
const DEADLINE: Duration = Duration::from_secs(10);

/// The real packet filter.
#[derive(Debug, Default)]
pub struct LinuxPlatform {
    /// What we made last, and how `nft` lists it.
    made: Option<(Ruleset, Normal)>,
}

impl LinuxPlatform {
    /// Removes a table; returns whether it was there.
    pub(in crate::net::firewall) async fn remove_if_present(&mut self, table: &str) -> Result<bool, NftError> {
        if self.standing(table, None).await? == Standing::Absent {
            return Ok(false);
        }
        self.apply(table, &Change::Remove).await?;
        Ok(true)
    }
}

impl Platform for LinuxPlatform {
    async fn standing(&mut self, table: &str, wanted: Option<&Ruleset>) -> Result<Standing, NftError> {
        let tables = list("list the tables", &["tables", "inet"]).await?;
        if !render::inet_tables(&tables).any(|name| name == table) {
            return Ok(Standing::Absent);
        }
        let Some(wanted) = wanted else { return Ok(Standing::Different) };
        // A statement the library does not know was put there by somebody else.
        let Ok(now) = list_table(table).await else { return Ok(Standing::Different) };
        let as_made = self.made.as_ref().is_some_and(|(ruleset, normal)| ruleset == wanted && *normal == now);
        Ok(if as_made || now == render::normal(wanted) { Standing::AsWanted } else { Standing::Different })
    }

    async fn apply(&mut self, table: &str, change: &Change) -> Result<(), NftError> {
        self.made = None;
        match change {
            Change::Remove => transact("remove our table", &render::removal(table)).await,
            Change::Replace(ruleset) => {
                transact("replace our table", &render::replacement(ruleset)).await?;
                let normal = list_table(table).await?;
                self.made = Some((ruleset.clone(), normal));
                Ok(())
            }
        }
    }

    async fn dropping_chains(&mut self, table: &str) -> Vec<DroppingChain> {
        match list("list the chains", &["chains"]).await {
            Ok(listing) => render::dropping_chains(&listing, table),
            Err(error) => {
                tracing::debug!(error = chain(&error), "the chains of other tables cannot be read");
                Vec::new()
            }
        }
    }

    fn forwarding(&mut self) -> Forwarding {
        Forwarding {
            ipv4: sysctl("/proc/sys/net/ipv4/ip_forward"),
            ipv6: sysctl("/proc/sys/net/ipv6/conf/all/forwarding"),
        }
    }

    fn forward_on(&mut self, link: &LinkName) -> Forwarding {
        let forwarding = self.forwarding();
        Forwarding {
            ipv4: switch(&of_link("ipv4", link, "forwarding"), "1"),
            ipv6: forwarding.ipv6 || switch(&of_link("ipv6", link, "force_forwarding"), "1"),
        }
    }

    fn forward_as_host(&mut self, link: &LinkName) {
        let forwarding = self.forwarding();
        switch(&of_link("ipv4", link, "forwarding"), if forwarding.ipv4 { "1" } else { "0" });
        switch(&of_link("ipv6", link, "force_forwarding"), "0");
    }
}

fn of_link(family: &str, link: &LinkName, name: &str) -> String {
    format!("/proc/sys/net/{family}/conf/{link}/{name}")
}

/// Writes a sysctl where it differs; says whether it is so now. Links and sysctls come and go: the next look tries again.
fn switch(path: &str, value: &str) -> bool {
    let is_so = || std::fs::read_to_string(path).is_ok_and(|text| text.trim() == value);
    is_so() || (std::fs::write(path, value).is_ok() && is_so())
}

/// Answers for the namespace of the calling thread; reading it is one short system call, hence not on another thread.
fn sysctl(path: &str) -> bool {
    std::fs::read_to_string(path).is_ok_and(|text| text.trim() == "1")
}

async fn list_table(table: &str) -> Result<Normal, NftError> {
    list("list our table", &["table", "inet", table]).await.map(|listing| render::listed(&listing))
}

async fn list(action: &'static str, what: &[&str]) -> Result<Nftables<'static>, NftError> {
    let text = nft(action, &[&["-j", "list"], what].concat(), &[]).await?;
    serde_json::from_slice(&text).map_err(|error| NftError::Output { action, source: error.into() })
}

async fn transact(action: &'static str, batch: &Nftables<'static>) -> Result<(), NftError> {
    let input = serde_json::to_vec(batch).map_err(|error| NftError::Output { action, source: error.into() })?;
    nft(action, &["-j", "-f", "-"], &input).await.map(drop)
}

async fn nft(action: &'static str, args: &[&str], input: &[u8]) -> Result<Vec<u8>, NftError> {
    let mut command = Command::new("nft");
    let path = std::env::var("PATH").unwrap_or_default();
    // A service may run without the system directories in its path.
    command.args(args).env("PATH", format!("{path}:/usr/sbin:/sbin")).env("LC_ALL", "C");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let run = async {
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input).await?;
        }
        child.wait_with_output().await
    };
    let output = match tokio::time::timeout(DEADLINE, run).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => return Err(NftError::Missing(error)),
        Ok(Err(source)) => return Err(NftError::Run { action, source }),
        Err(_elapsed) => return Err(NftError::Slow { action }),
    };
    if output.status.success() {
        return Ok(output.stdout);
    }
    let text = String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or("no message").trim().to_owned();
    Err(NftError::Failed { action, status: output.status, text })
}
