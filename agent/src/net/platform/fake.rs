//! A host in memory that behaves as the kernel does where it matters: a link that is down takes no route and loses
//! its own, an IPv6 address exists once whatever its length, and secondary IPv4 addresses go with their primary.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;

use super::{ObserveError, Platform, StepError, Ways};
use crate::foundation::id::LinkName;
use crate::model::Link;
use crate::net::plan::{Connected, Observed, Owner, Path, Step};
use crate::net::spec::{Route, Wanted};

/// What the host holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Host {
    /// The index of the one link, or none.
    pub link: Option<u32>,
    pub up: bool,
    pub mtu: u32,
    /// In the order in which they were set.
    pub addresses: Vec<(IpNet, Owner)>,
    /// Ours; those of others are not visible to the reconciler and so not in here.
    pub routes: BTreeSet<Route>,
    /// Networks of other links, whether or not they overlap.
    pub connected: Vec<Connected>,
    pub paths: BTreeMap<IpAddr, Path>,
    pub default_paths: Vec<Path>,
    /// How often everything was looked at.
    pub observations: usize,
    /// How often something was changed through the platform.
    pub writes: usize,
    /// The next change fails with this error number.
    pub next_failure: Option<i32>,
}

impl Host {
    /// Sets the link down as `ip link set … down` does.
    pub fn set_down(&mut self) {
        self.up = false;
        self.routes.clear();
        self.addresses.retain(|(address, _)| address.addr().is_ipv4());
    }

    /// Makes one change.
    ///
    /// # Errors
    /// The error number the kernel would give.
    pub fn change(&mut self, step: &Step) -> Result<(), i32> {
        match step {
            Step::SetMtu(mtu) => self.mtu = *mtu,
            Step::SetUp => self.up = true,
            Step::AddAddress(address) => return self.add_address(*address),
            Step::AddRoute(_) if !self.up => return Err(libc::ENETDOWN),
            Step::AddRoute(route) => {
                if !self.routes.insert(*route) {
                    return Err(libc::EEXIST);
                }
            }
            Step::RemoveRoute(route) => {
                self.routes.remove(route);
            }
            Step::RemoveAddress(address) => self.remove_address(*address),
        }
        Ok(())
    }

    fn add_address(&mut self, address: IpNet) -> Result<(), i32> {
        let taken = |other: &IpNet| *other == address || (address.addr().is_ipv6() && other.addr() == address.addr());
        if self.addresses.iter().any(|(other, _)| taken(other)) {
            return Err(libc::EEXIST);
        }
        self.addresses.push((address, Owner::Ours));
        Ok(())
    }

    fn remove_address(&mut self, address: IpNet) {
        let same_network = |other: &IpNet| address.addr().is_ipv4() && other.trunc() == address.trunc();
        let primary = self.addresses.iter().find(|(other, _)| same_network(other)).map(|(other, _)| *other);
        let cascade = primary == Some(address);
        self.addresses.retain(|(other, _)| *other != address && !(cascade && same_network(other)));
    }
}

/// The platform over a [`Host`]; clones share it.
#[derive(Debug, Clone, Default)]
pub struct FakePlatform(Arc<Mutex<Host>>);

impl FakePlatform {
    /// A host with one link, down, as it is just after it was made.
    pub fn with_link(index: u32) -> Self {
        Self(Arc::new(Mutex::new(Host { link: Some(index), mtu: 1420, ..Host::default() })))
    }

    /// The host, for a test to look at and to interfere with.
    pub fn host(&self) -> MutexGuard<'_, Host> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Platform for FakePlatform {
    async fn observe(&mut self, link: &Link, wanted: &Wanted, _ways: Ways) -> Result<Option<Observed>, ObserveError> {
        let mut host = self.host();
        host.observations += 1;
        let overlapping = host.connected.iter().filter(|connected| wanted.networks.overlaps(&connected.network));
        Ok(host.link.filter(|index| *index == link.index).map(|index| Observed {
            index,
            up: host.up,
            mtu: host.mtu,
            addresses: host.addresses.iter().copied().collect(),
            routes: host.routes.clone(),
            connected: overlapping.cloned().collect(),
            others: host.connected.iter().map(|connected| connected.network).collect(),
            paths: host.paths.clone(),
            default_paths: host.default_paths.clone(),
        }))
    }

    async fn way(&mut self, address: IpAddr) -> Result<Option<Path>, ObserveError> {
        Ok(self.host().paths.get(&address).cloned())
    }

    async fn apply(&mut self, name: &LinkName, _index: u32, step: &Step) -> Result<(), StepError> {
        let mut host = self.host();
        host.writes += 1;
        let result = host.next_failure.take().map_or_else(|| host.change(step), Err);
        result.map_err(|number| StepError {
            step: *step,
            link: name.clone(),
            hint: "",
            source: io::Error::from_raw_os_error(number),
        })
    }
}
