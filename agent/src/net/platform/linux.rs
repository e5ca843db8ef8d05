//! The platform over rtnetlink.
//!
//! Dumps are filtered by the kernel (link, protocol, table), so a host with a full routing table costs no more.
//! Kernels before 5.18 do not keep the protocol of an address; there the addresses set since the start count as ours.
#![expect(clippy::wildcard_enum_match_arm, reason = "the message enums of the netlink library are open")]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressProtocol};
use netlink_packet_route::route::{RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope, RouteType};

use super::{ObserveError, Platform, StepError, Ways};
use crate::foundation::id::LinkName;
use crate::model::Link;
use crate::net::PROTOCOL;
use crate::net::networks::NetworkSet;
use crate::net::plan::{Connected, Observed, Owner, Path, Step};
use crate::net::spec::{Route, Wanted};
use crate::sys::rtnetlink::route::{self, PROTOCOL_KERNEL, TABLE_MAIN};
use crate::sys::rtnetlink::{Connection, LinkError, LinkInfo, os_error};

/// Addresses that only a default route leads to: both lie in space that is reserved and given to nobody.
const ANYWHERE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(240, 0, 0, 1)), IpAddr::V6(Ipv6Addr::new(0x4000, 0, 0, 0, 0, 0, 0, 1))];

/// The MTU of a way that stays on this host, where the link is loopback and says 65536.
const LOCAL_WAY_MTU: u32 = 1500;

/// The real host.
#[derive(Debug)]
pub struct LinuxPlatform {
    pub(in crate::net) connection: Connection,
    /// Ways that were looked up and are still good; `None` for what cannot be reached.
    ways: BTreeMap<IpAddr, Option<Path>>,
    /// The mark with which they were looked up.
    fwmark: u32,
    /// Addresses set since the start, for kernels that do not keep their protocol.
    set: BTreeSet<IpNet>,
}

impl LinuxPlatform {
    /// A platform over `connection`.
    pub fn new(connection: Connection) -> Self {
        Self { connection, ways: BTreeMap::new(), fwmark: 0, set: BTreeSet::new() }
    }

    async fn look_up_ways(&mut self, wanted: &Wanted, ways: Ways) -> Result<(), ObserveError> {
        if ways == Ways::LookUpAgain || wanted.fwmark != self.fwmark {
            self.ways.clear();
            self.fwmark = wanted.fwmark;
        }
        let anywhere = ANYWHERE.iter().filter(|_| wanted.roaming());
        let needed: BTreeSet<IpAddr> = wanted.endpoint_addresses().chain(anywhere).copied().collect();
        self.ways.retain(|address, _| needed.contains(address));
        let mut links = BTreeMap::new();
        for address in needed {
            if !self.ways.contains_key(&address) {
                let path = self.path_to(address, &mut links).await?;
                self.ways.insert(address, path);
            }
        }
        Ok(())
    }

    async fn path_to(&self, address: IpAddr, links: &mut BTreeMap<u32, u32>) -> Result<Option<Path>, ObserveError> {
        let request = self.connection.handle().route().get(lookup(address, self.fwmark));
        let message = match request.execute().try_next().await.map_err(os_error) {
            Ok(Some(message)) => message,
            Ok(None) => return Ok(None),
            Err(error) if is_no_way(&error) => return Ok(None),
            Err(source) => return Err(ObserveError::Dump { what: "route to an endpoint", source }),
        };
        let Some(network) = route::network(&message) else { return Ok(None) };
        let path_links = route::links(&message);
        let mut mtu = route::mtu(&message).unwrap_or(u32::MAX);
        for index in &path_links {
            mtu = mtu.min(self.link_mtu(*index, links).await?);
        }
        if message.header.kind == RouteType::Local || mtu == u32::MAX {
            mtu = LOCAL_WAY_MTU;
        }
        Ok(Some(Path { network, table: route::table(&message), links: path_links, mtu }))
    }

    async fn link_mtu(&self, index: u32, known: &mut BTreeMap<u32, u32>) -> Result<u32, LinkError> {
        if let Some(mtu) = known.get(&index) {
            return Ok(*mtu);
        }
        // A link that went away meanwhile limits nothing; its event brings the next pass.
        let mtu = self.connection.link_by_index(index).await?.map_or(u32::MAX, |link| link.mtu);
        known.insert(index, mtu);
        Ok(mtu)
    }

    /// The addresses of the link.
    pub(in crate::net) async fn addresses(&self, index: u32) -> Result<BTreeMap<IpNet, Owner>, ObserveError> {
        let mut request = self.connection.handle().address().get().set_link_index_filter(index);
        request.message_mut().header.index = index;
        let messages: Vec<AddressMessage> =
            request.execute().try_collect().await.map_err(failed_to_list("addresses"))?;
        let mut addresses = BTreeMap::new();
        for message in &messages {
            let Some(address) = address_of(message) else { continue };
            let owner = match protocol_of(message) {
                Some(PROTOCOL) => Owner::Ours,
                None | Some(0) if self.set.contains(&address) => Owner::Ours,
                None | Some(_) => Owner::Foreign,
            };
            addresses.insert(address, owner);
        }
        Ok(addresses)
    }

    /// Our routes on the link, in every table.
    pub(in crate::net) async fn routes(&self, index: u32) -> Result<BTreeSet<Route>, ObserveError> {
        let mut routes = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut filter = filter(family, PROTOCOL);
            filter.attributes.push(RouteAttribute::Oif(index));
            for message in self.dump_routes(filter).await? {
                // An old kernel does not filter.
                if u8::from(message.header.protocol) == PROTOCOL && route::links(&message) == [index] {
                    routes.extend(route_of(&message));
                }
            }
        }
        Ok(routes)
    }

    /// The networks of other links, and in full those that overlap with ours.
    async fn connected(&self, own: u32, wanted: &Wanted) -> Result<(Vec<Connected>, NetworkSet), ObserveError> {
        let (mut connected, mut others) = (Vec::new(), NetworkSet::default());
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut filter = filter(family, PROTOCOL_KERNEL);
            filter.header.kind = RouteType::Unicast;
            filter.attributes.push(RouteAttribute::Table(TABLE_MAIN));
            for message in self.dump_routes(filter).await? {
                let is_kernels = u8::from(message.header.protocol) == PROTOCOL_KERNEL && route::is_unicast(&message);
                let Some(network) = route::network(&message).filter(|_| is_kernels) else { continue };
                let indexes = route::links(&message).into_iter().filter(|index| *index != own);
                for index in indexes.filter(|_| route::table(&message) == TABLE_MAIN) {
                    others.insert(network);
                    if !wanted.networks.overlaps(&network) {
                        continue;
                    }
                    let link = self.connection.link_by_index(index).await?;
                    connected.extend(link.map(|link| Connected { network, link: link.name, index }));
                }
            }
        }
        Ok((connected, others))
    }

    async fn dump_routes(&self, filter: RouteMessage) -> Result<Vec<RouteMessage>, ObserveError> {
        let request = self.connection.handle().route().get(filter);
        request.execute().try_collect().await.map_err(failed_to_list("routes"))
    }

    async fn add_address(&mut self, index: u32, address: &IpNet) -> io::Result<()> {
        let mut request = self.connection.handle().address().add(index, address.addr(), address.prefix_len());
        let attributes = &mut request.message_mut().attributes;
        // The tunnel has no broadcast, and nobody to ask whether an address is taken.
        attributes.retain(|attribute| !matches!(attribute, AddressAttribute::Broadcast(_)));
        if address.addr().is_ipv6() {
            attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        attributes.push(AddressAttribute::Protocol(AddressProtocol::Other(PROTOCOL)));
        request.execute().await.map_err(os_error)?;
        self.set.insert(*address);
        Ok(())
    }

    async fn remove_address(&mut self, index: u32, address: &IpNet) -> io::Result<()> {
        let removed = self.connection.handle().address().del(address_message(index, address)).execute().await;
        gone_is_fine(removed)?;
        self.set.remove(address);
        Ok(())
    }
}

impl Platform for LinuxPlatform {
    async fn observe(&mut self, link: &Link, wanted: &Wanted, ways: Ways) -> Result<Option<Observed>, ObserveError> {
        let Some(LinkInfo { index, name, up, mtu, .. }) = self.connection.link_by_index(link.index).await? else {
            return Ok(None);
        };
        if name != link.name.as_str() {
            return Err(ObserveError::Renamed { index, expected: link.name.clone(), now: name });
        }
        self.look_up_ways(wanted, ways).await?;
        let (connected, others) = self.connected(index, wanted).await?;
        let found = |address: &IpAddr| self.ways.get(address).cloned().flatten();
        Ok(Some(Observed {
            index,
            up,
            mtu,
            addresses: self.addresses(index).await?,
            routes: self.routes(index).await?,
            connected,
            others,
            paths: wanted
                .endpoint_addresses()
                .filter_map(|address| found(address).map(|path| (*address, path)))
                .collect(),
            default_paths: ANYWHERE.iter().filter_map(found).collect(),
        }))
    }

    async fn way(&mut self, address: IpAddr) -> Result<Option<Path>, ObserveError> {
        if let Some(known) = self.ways.get(&address) {
            return Ok(known.clone());
        }
        let path = self.path_to(address, &mut BTreeMap::new()).await?;
        self.ways.insert(address, path.clone());
        Ok(path)
    }

    async fn apply(&mut self, name: &LinkName, index: u32, step: &Step) -> Result<(), StepError> {
        let result = match step {
            Step::SetMtu(mtu) => self.connection.set_mtu(index, *mtu).await.map_err(|error| error.source),
            Step::SetUp => self.connection.set_up(index).await.map_err(|error| error.source),
            Step::AddAddress(address) => self.add_address(index, address).await,
            Step::AddRoute(route) => {
                let request = self.connection.handle().route().add(route_message(index, route));
                request.execute().await.map_err(os_error)
            }
            Step::RemoveRoute(route) => remove_route(&self.connection, index, route).await,
            Step::RemoveAddress(address) => self.remove_address(index, address).await,
        };
        result.map_err(|source| {
            let hint = hint(step, &source);
            StepError { step: *step, link: name.clone(), hint, source }
        })
    }
}

fn failed_to_list(what: &'static str) -> impl FnOnce(rtnetlink::Error) -> ObserveError {
    move |error| ObserveError::Dump { what, source: os_error(error) }
}

/// A question for the way to `address`: the route that is chosen, not the result of using it.
fn lookup(address: IpAddr, fwmark: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    let network = IpNet::from(address);
    message.header.destination_prefix_length = network.prefix_len();
    (message.header.address_family, message.header.flags) = match address {
        // Without the second flag the answer always says `main`; IPv6 says the table anyway and refuses the flag.
        IpAddr::V4(_) => (AddressFamily::Inet, RouteFlags::FibMatch | RouteFlags::LookupTable),
        IpAddr::V6(_) => (AddressFamily::Inet6, RouteFlags::FibMatch),
    };
    message.attributes.push(RouteAttribute::Destination(address.into()));
    if fwmark != 0 {
        message.attributes.push(RouteAttribute::Mark(fwmark));
    }
    message
}

/// The answers for a destination that nothing leads to now: no route, an `unreachable` or `prohibit` route, a family
/// without addresses.
fn is_no_way(error: &io::Error) -> bool {
    let number = error.raw_os_error();
    number.is_some_and(|number| {
        matches!(number, libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL | libc::EAFNOSUPPORT)
    })
}

fn filter(family: AddressFamily, protocol: u8) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.protocol = RouteProtocol::from(protocol);
    message
}

fn route_of(message: &RouteMessage) -> Option<Route> {
    let network = route::network(message)?;
    Some(Route { network, table: route::table(message), metric: route::metric(message) })
}

fn route_message(index: u32, route: &Route) -> RouteMessage {
    let mut message = filter(AddressFamily::Inet, PROTOCOL);
    message.header.kind = RouteType::Unicast;
    if route.network.addr().is_ipv6() {
        message.header.address_family = AddressFamily::Inet6;
    } else {
        // Directly on the link, without a gateway.
        message.header.scope = RouteScope::Link;
    }
    message.header.destination_prefix_length = route.network.prefix_len();
    message.attributes = vec![
        RouteAttribute::Destination(route.network.network().into()),
        RouteAttribute::Oif(index),
        RouteAttribute::Table(route.table),
        RouteAttribute::Priority(route.metric),
    ];
    message
}

async fn remove_route(connection: &Connection, index: u32, route: &Route) -> io::Result<()> {
    gone_is_fine(connection.handle().route().del(route_message(index, route)).execute().await)
}

fn address_message(index: u32, address: &IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = if address.addr().is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    message.header.index = index;
    message.header.prefix_len = address.prefix_len();
    message.attributes = vec![AddressAttribute::Local(address.addr()), AddressAttribute::Address(address.addr())];
    message
}

fn address_of(message: &AddressMessage) -> Option<IpNet> {
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point link the other attribute is the far end.
            AddressAttribute::Local(local) => return IpNet::new(*local, message.header.prefix_len).ok(),
            AddressAttribute::Address(any) => address = Some(*any),
            _ => {}
        }
    }
    IpNet::new(address?, message.header.prefix_len).ok()
}

fn protocol_of(message: &AddressMessage) -> Option<u8> {
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Protocol(protocol) => Some(u8::from(*protocol)),
        _ => None,
    })
}

fn gone_is_fine(result: Result<(), rtnetlink::Error>) -> io::Result<()> {
    match result.map_err(os_error) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOENT | libc::EADDRNOTAVAIL)) => Ok(()),
        other => other,
    }
}

fn hint(step: &Step, error: &io::Error) -> &'static str {
    match (step, error.raw_os_error()) {
        (Step::AddRoute(_), Some(libc::EEXIST)) => " (another program has made the same route; remove one of the two)",
        (Step::AddAddress(_), Some(libc::EEXIST)) => {
            " (the link has it with another length, set by another program; remove that one)"
        }
        (Step::AddAddress(address), Some(libc::EACCES | libc::EOPNOTSUPP)) if address.addr().is_ipv6() => {
            " (IPv6 is off: set net.ipv6.conf.all.disable_ipv6 to 0 or take the IPv6 addresses out)"
        }
        (_, Some(libc::EPERM)) => " (the agent needs CAP_NET_ADMIN)",
        (
            Step::SetMtu(_)
            | Step::SetUp
            | Step::AddAddress(_)
            | Step::AddRoute(_)
            | Step::RemoveRoute(_)
            | Step::RemoveAddress(_),
            _,
        ) => "",
    }
}
