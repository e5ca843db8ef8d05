//! A packet filter in memory.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Forwarding, NftError, Platform};
use crate::foundation::id::LinkName;
use crate::net::firewall::plan::{Change, Standing};
use crate::net::firewall::render::DroppingChain;
use crate::net::firewall::spec::Ruleset;

/// What the packet filter holds.
#[derive(Debug)]
pub struct Filter {
    pub tables: Vec<Ruleset>,
    pub foreign: Vec<DroppingChain>,
    pub forwarding: Forwarding,
    /// Links that forward whatever the host does.
    pub forwarding_links: std::collections::BTreeSet<LinkName>,
    /// Whether `nft` is installed.
    pub installed: bool,
    /// How often something was asked, and changed, through the platform.
    pub reads: usize,
    pub writes: usize,
}

/// The platform over a [`Filter`]; clones share it.
#[derive(Debug, Clone)]
pub struct FakePlatform(Arc<Mutex<Filter>>);

impl Default for FakePlatform {
    fn default() -> Self {
        let forwarding = Forwarding { ipv4: true, ipv6: true };
        let (tables, foreign) = (Vec::new(), Vec::new());
        Self(Arc::new(Mutex::new(Filter {
            tables,
            foreign,
            forwarding,
            forwarding_links: Default::default(),
            installed: true,
            reads: 0,
            writes: 0,
        })))
    }
}

impl FakePlatform {
    /// The filter, for a test to look at and to interfere with.
    pub fn filter(&self) -> MutexGuard<'_, Filter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Filter {
    fn answers(&self) -> Result<(), NftError> {
        if self.installed { Ok(()) } else { Err(NftError::Missing(std::io::ErrorKind::NotFound.into())) }
    }
}

impl Platform for FakePlatform {
    async fn standing(&mut self, table: &str, wanted: Option<&Ruleset>) -> Result<Standing, NftError> {
        let mut filter = self.filter();
        filter.answers()?;
        filter.reads += 1;
        Ok(match filter.tables.iter().find(|candidate| candidate.table == table) {
            None => Standing::Absent,
            Some(found) if wanted == Some(found) => Standing::AsWanted,
            Some(_) => Standing::Different,
        })
    }

    async fn apply(&mut self, table: &str, change: &Change) -> Result<(), NftError> {
        let mut filter = self.filter();
        filter.answers()?;
        filter.writes += 1;
        filter.tables.retain(|candidate| candidate.table != table);
        match change {
            Change::Replace(ruleset) => filter.tables.push(ruleset.clone()),
            Change::Remove => {}
        }
        Ok(())
    }

    async fn dropping_chains(&mut self, _table: &str) -> Vec<DroppingChain> {
        self.filter().foreign.clone()
    }

    fn forwarding(&mut self) -> Forwarding {
        self.filter().forwarding
    }

    fn forward_on(&mut self, link: &LinkName) -> Forwarding {
        self.filter().forwarding_links.insert(link.clone());
        Forwarding { ipv4: true, ipv6: true }
    }

    fn forward_as_host(&mut self, link: &LinkName) {
        self.filter().forwarding_links.remove(link);
    }
}
