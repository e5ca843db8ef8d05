//! Says that links, addresses, routes or rules have changed.
//!
//! In: the kernel's multicast groups, on a socket of its own. Out: [`Trigger`]s, fired for the [`Change`]s a
//! subscriber wants. Events wake, they are never state: what cannot be read, and an overrun of the socket, wake
//! everybody, who then look for themselves. Memory is bounded by one receive buffer.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use ipnet::IpNet;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};
use rtnetlink::MulticastGroup;

use super::route;
use crate::foundation::error::chain;
use crate::foundation::reconcile::Trigger;
use crate::foundation::task::{self, Task};

/// Larger than any event; the kernel builds them in a page, or two with many attributes.
const DATAGRAM_BYTES: usize = 64 * 1024;
/// Holds some thousand events while the agent is busy; past it the kernel reports an overrun.
const RECEIVE_BUFFER_BYTES: u32 = 1024 * 1024;
/// The wait before the socket is opened again after a failure that is not an overrun.
const REOPEN_AFTER: Duration = Duration::from_secs(1);

const GROUPS: [MulticastGroup; 7] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];

/// What has changed: made, altered or removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Link {
        index: u32,
        name: String,
        up: bool,
        mtu: u32,
        removed: bool,
    },
    Address {
        index: u32,
        address: Option<IpNet>,
    },
    Route(RouteChange),
    Rule,
    /// Events were lost, or one could not be read: anything may have changed.
    Unknown,
}

/// A changed route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteChange {
    /// The links it leaves by; several for a multipath route, none for one that drops.
    pub links: Vec<u32>,
    /// `None` for a family that is neither IPv4 nor IPv6.
    pub network: Option<IpNet>,
    pub table: u32,
    pub protocol: u8,
    /// Not a local, broadcast, anycast or multicast route.
    pub unicast: bool,
    pub removed: bool,
}

type Wanted = Box<dyn Fn(&Change) -> bool + Send + Sync>;

#[derive(Default)]
struct Subscribers(Mutex<Vec<(Wanted, Trigger)>>);

impl Subscribers {
    fn tell(&self, change: &Change) {
        for (wanted, trigger) in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            if *change == Change::Unknown || wanted(change) {
                trigger.fire();
            }
        }
    }
}

/// The running monitor; dropping it ends it.
pub struct Monitor {
    subscribers: Arc<Subscribers>,
    _task: Task,
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Monitor")
    }
}

impl Monitor {
    /// Starts to listen in the calling thread's network namespace. Needs a tokio runtime.
    ///
    /// # Errors
    /// The kernel refuses the socket.
    pub fn start() -> io::Result<Self> {
        let socket = open()?;
        let subscribers = Arc::new(Subscribers::default());
        let task = task::spawn("netlink-monitor", run(socket, Arc::clone(&subscribers)));
        Ok(Self { subscribers, _task: task })
    }

    /// Fires `trigger` at every change.
    pub fn subscribe(&self, trigger: Trigger) {
        self.subscribe_to(|_change| true, trigger);
    }

    /// Fires `trigger` at the changes that `wanted` accepts, and when anything may have changed.
    ///
    /// `wanted` runs for every event on the host, in the task that reads them: it must be quick and must not block.
    pub fn subscribe_to(&self, wanted: impl Fn(&Change) -> bool + Send + Sync + 'static, trigger: Trigger) {
        let mut subscribers = self.subscribers.0.lock().unwrap_or_else(PoisonError::into_inner);
        subscribers.push((Box::new(wanted), trigger));
    }
}

fn open() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    let groups = GROUPS.iter().fold(0, |bits, group| bits | 1 << (*group as u32 - 1));
    socket.socket_mut().set_rx_buf_sz(RECEIVE_BUFFER_BYTES)?;
    socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
    Ok(socket)
}

async fn run(mut socket: TokioSocket, subscribers: Arc<Subscribers>) {
    let mut buffer = BytesMut::with_capacity(DATAGRAM_BYTES);
    loop {
        buffer.clear();
        match socket.recv_from(&mut buffer).await {
            // Only the kernel may tell us anything; a process may not.
            Ok(sender) if sender.port_number() != 0 => {}
            Ok(_kernel) => read_datagram(&buffer, |change| subscribers.tell(&change)),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                tracing::debug!("netlink events were lost: everything is looked at again");
                subscribers.tell(&Change::Unknown);
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "the netlink event socket failed and is opened again");
                socket = reopen().await;
                subscribers.tell(&Change::Unknown);
            }
        }
    }
}

async fn reopen() -> TokioSocket {
    loop {
        tokio::time::sleep(REOPEN_AFTER).await;
        match open() {
            Ok(socket) => return socket,
            Err(error) => tracing::warn!(error = chain(&error), "failed to open the netlink event socket"),
        }
    }
}

/// Calls `tell` for every message in `datagram`.
fn read_datagram(mut datagram: &[u8], mut tell: impl FnMut(Change)) {
    while !datagram.is_empty() {
        let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(datagram) else {
            tell(Change::Unknown);
            return;
        };
        let length = usize::try_from(message.header.length).unwrap_or(usize::MAX).next_multiple_of(4);
        if let NetlinkPayload::InnerMessage(message) = message.payload {
            tell(change(message));
        }
        if length < 16 {
            return;
        }
        datagram = datagram.get(length..).unwrap_or_default();
    }
}

fn change(message: RouteNetlinkMessage) -> Change {
    match message {
        RouteNetlinkMessage::NewLink(link) => link_change(&link, false),
        RouteNetlinkMessage::DelLink(link) => link_change(&link, true),
        RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) => address_change(&address),
        RouteNetlinkMessage::NewRoute(route) => route_change(&route, false),
        RouteNetlinkMessage::DelRoute(route) => route_change(&route, true),
        RouteNetlinkMessage::NewRule(_) | RouteNetlinkMessage::DelRule(_) => Change::Rule,
        // The library's enum is open; the groups we join carry nothing else.
        _ => Change::Unknown,
    }
}

fn link_change(link: &LinkMessage, removed: bool) -> Change {
    let info = super::link_info(link);
    // A bridge announces that a port has left it as the removal of a link with its family; the link itself stays.
    let leaves_bridge = link.header.interface_family == AddressFamily::Bridge;
    Change::Link { index: info.index, name: info.name, up: info.up, mtu: info.mtu, removed: removed && !leaves_bridge }
}

fn address_change(message: &AddressMessage) -> Change {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let any = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    let address = local.or(any).and_then(|address| IpNet::new(address, message.header.prefix_len).ok());
    Change::Address { index: message.header.index, address }
}

fn route_change(message: &RouteMessage, removed: bool) -> Change {
    Change::Route(RouteChange {
        links: route::links(message),
        network: route::network(message),
        table: route::table(message),
        protocol: u8::from(message.header.protocol),
        unicast: route::is_unicast(message),
        removed,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn changes(datagram: &[u8]) -> Vec<Change> {
        let mut changes = Vec::new();
        read_datagram(datagram, |change| changes.push(change));
        changes
    }

    fn serialized(message: RouteNetlinkMessage) -> Vec<u8> {
        let mut message = NetlinkMessage::from(message);
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    fn route(table: u32) -> RouteNetlinkMessage {
        let message = rtnetlink::RouteMessageBuilder::<std::net::Ipv4Addr>::new()
            .destination_prefix([10, 0, 0, 0].into(), 8)
            .output_interface(7)
            .table_id(table)
            .build();
        RouteNetlinkMessage::NewRoute(message)
    }

    #[test]
    fn every_message_of_a_datagram_is_told() {
        let mut datagram = serialized(route(254));
        datagram.extend(serialized(route(1000)));
        let tables: Vec<u32> = changes(&datagram)
            .iter()
            .map(|change| match change {
                Change::Route(route) => {
                    assert_eq!((route.links.as_slice(), route.unicast), ([7].as_slice(), true));
                    route.table
                }
                other => panic!("not a route: {other:?}"),
            })
            .collect();
        assert_eq!(tables, [254, 1000]);
    }

    #[test]
    fn what_cannot_be_read_is_told_as_unknown() {
        let mut datagram = serialized(route(254));
        datagram.truncate(datagram.len() - 4);
        assert_eq!(changes(&datagram), [Change::Unknown]);
    }

    #[test]
    fn unwanted_changes_do_not_wake_but_unknown_ones_do() {
        let subscribers = Subscribers::default();
        let trigger = Trigger::default();
        let woken = trigger.count();
        let wanted: Wanted = Box::new(|change| *change == Change::Rule);
        subscribers.0.lock().expect("not poisoned").push((wanted, trigger.clone()));
        subscribers.tell(&Change::Address { index: 1, address: None });
        assert_eq!(trigger.count(), woken);
        subscribers.tell(&Change::Rule);
        subscribers.tell(&Change::Unknown);
        assert_eq!(trigger.count(), woken + 2);
    }

    proptest! {
        #[test]
        fn no_datagram_stops_the_reader(datagram in proptest::collection::vec(any::<u8>(), 0..512)) {
            changes(&datagram);
        }
    }
}
