//! What a route message says, for those who read dumps, answers and events alike.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType};

/// `RT_TABLE_MAIN` of `linux/rtnetlink.h`.
pub const TABLE_MAIN: u32 = 254;

/// `RTPROT_KERNEL` of `linux/rtnetlink.h`: the routes the kernel makes for the networks of addresses.
pub const PROTOCOL_KERNEL: u8 = 2;

/// The links the route leaves by: several for a multipath route, none for one that drops.
pub fn links(message: &RouteMessage) -> Vec<u32> {
    let mut links = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => links.push(*index),
            RouteAttribute::MultiPath(hops) => links.extend(hops.iter().map(|hop| hop.interface_index)),
            _ => {}
        }
    }
    links
}

/// The destination; `None` for a family that is neither IPv4 nor IPv6.
pub fn network(message: &RouteMessage) -> Option<IpNet> {
    let destination = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    });
    let unspecified = match message.header.address_family {
        AddressFamily::Inet => Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        AddressFamily::Inet6 => Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        _ => None,
    };
    IpNet::new(destination.or(unspecified)?, message.header.destination_prefix_length).ok()
}

/// The table; numbers above 255 stand in an attribute.
pub fn table(message: &RouteMessage) -> u32 {
    let attribute = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    attribute.unwrap_or(u32::from(message.header.table))
}

/// The metric; among equal destinations the route with the lowest wins.
pub fn metric(message: &RouteMessage) -> u32 {
    let attribute = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Priority(metric) => Some(*metric),
        _ => None,
    });
    attribute.unwrap_or(0)
}

/// The MTU set on the route itself (`ip route … mtu N`).
pub fn mtu(message: &RouteMessage) -> Option<u32> {
    let metrics = message.attributes.iter().filter_map(|attribute| match attribute {
        RouteAttribute::Metrics(metrics) => Some(metrics),
        _ => None,
    });
    metrics.flatten().find_map(|metric| match metric {
        RouteMetric::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}

/// Whether it is not a local, broadcast, anycast or multicast route.
pub fn is_unicast(message: &RouteMessage) -> bool {
    !matches!(message.header.kind, RouteType::Local | RouteType::Broadcast | RouteType::Anycast | RouteType::Multicast)
}

#[cfg(test)]
mod tests {
    use rtnetlink::RouteMessageBuilder;

    use super::*;

    #[test]
    fn a_default_route_is_a_network_of_length_zero() {
        let message = RouteMessageBuilder::<Ipv6Addr>::new().output_interface(3).build();
        assert_eq!(network(&message), Some("::/0".parse().expect("a network")));
        assert_eq!((links(&message), table(&message), metric(&message)), (vec![3], TABLE_MAIN, 0));
    }

    #[test]
    fn a_table_above_255_and_a_metric_are_read() {
        let builder = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix([10, 0, 0, 0].into(), 8);
        let message = builder.table_id(51_820).priority(7).build();
        assert_eq!((table(&message), metric(&message)), (51_820, 7));
    }

    #[test]
    fn the_mtu_of_a_route_is_among_its_metrics() {
        let mut message = RouteMessageBuilder::<Ipv4Addr>::new().build();
        assert_eq!(mtu(&message), None);
        message.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Hoplimit(9), RouteMetric::Mtu(1400)]));
        assert_eq!(mtu(&message), Some(1400));
    }
}
