//! Allowed IPs: which peer a destination goes to and a source must come from.
//!
//! One hash map for each prefix length in use, searched from the longest to the shortest. Setting a prefix is O(1) however many
//! there are; a lookup costs one hash for each length in use, usually one or two. A prefix has one owner.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

/// Prefixes of both families with an owner each.
#[derive(Debug)]
pub(crate) struct Routes<T> {
    v4: Family<T>,
    v6: Family<T>,
}

/// Addresses are left-aligned in 128 bits for both families.
#[derive(Debug)]
struct Family<T> {
    /// Longest first; never an empty table.
    tables: Vec<(u8, HashMap<u128, T>)>,
}

impl<T> Default for Routes<T> {
    fn default() -> Self {
        Self { v4: Family { tables: Vec::new() }, v6: Family { tables: Vec::new() } }
    }
}

impl<T> Routes<T> {
    /// Gives the prefix to `owner` and returns who had it.
    pub(crate) fn insert(&mut self, net: IpNet, owner: T) -> Option<T> {
        let (length, bits) = key(net);
        self.family_mut(net).table(length).insert(bits, owner)
    }

    pub(crate) fn remove(&mut self, net: IpNet) -> Option<T> {
        let (length, bits) = key(net);
        let family = self.family_mut(net);
        let position = family.position(length).ok()?;
        let table = &mut family.tables[position].1;
        let owner = table.remove(&bits);
        if table.is_empty() {
            family.tables.remove(position);
        }
        owner
    }

    /// The owner of the longest prefix that holds `address`.
    pub(crate) fn find(&self, address: IpAddr) -> Option<&T> {
        let (family, bits) = match address {
            IpAddr::V4(address) => (&self.v4, u128::from(address.to_bits()) << 96),
            IpAddr::V6(address) => (&self.v6, address.to_bits()),
        };
        family.tables.iter().find_map(|(length, table)| table.get(&masked(bits, *length)))
    }

    fn family_mut(&mut self, net: IpNet) -> &mut Family<T> {
        match net {
            IpNet::V4(_) => &mut self.v4,
            IpNet::V6(_) => &mut self.v6,
        }
    }
}

impl<T> Family<T> {
    fn position(&self, length: u8) -> Result<usize, usize> {
        self.tables.binary_search_by(|(known, _)| length.cmp(known))
    }

    fn table(&mut self, length: u8) -> &mut HashMap<u128, T> {
        let position = match self.position(length) {
            Ok(position) => position,
            Err(position) => {
                self.tables.insert(position, (length, HashMap::new()));
                position
            }
        };
        &mut self.tables[position].1
    }
}

fn key(net: IpNet) -> (u8, u128) {
    let bits = match net.network() {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    };
    (net.prefix_len(), bits)
}

fn masked(bits: u128, length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(length)).map_or(0, |mask| bits & mask)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn routes(entries: &[(&str, u8)]) -> Routes<u8> {
        let mut routes = Routes::default();
        for (text, owner) in entries {
            routes.insert(net(text), *owner);
        }
        routes
    }

    fn check(routes: &Routes<u8>, address: &str, expected: Option<u8>) {
        assert_eq!(routes.find(address.parse().unwrap()).copied(), expected, "{address}");
    }

    #[test]
    fn longest_prefix_wins() {
        let routes = routes(&[("0.0.0.0/0", 1), ("10.0.0.0/8", 2), ("10.1.0.0/16", 3), ("10.1.2.3/32", 4)]);
        check(&routes, "192.0.2.1", Some(1));
        check(&routes, "10.9.9.9", Some(2));
        check(&routes, "10.1.9.9", Some(3));
        check(&routes, "10.1.2.3", Some(4));
        check(&routes, "::1", None);
    }

    #[test]
    fn families_do_not_mix() {
        let routes = routes(&[("::/0", 1), ("fd00::/8", 2)]);
        check(&routes, "fd00::1", Some(2));
        check(&routes, "2001:db8::1", Some(1));
        check(&routes, "0.0.0.0", None);
    }

    #[test]
    fn prefix_moves_and_goes() {
        let mut routes = routes(&[("10.0.0.0/8", 1)]);
        assert_eq!(routes.insert(net("10.0.0.0/8"), 2), Some(1));
        check(&routes, "10.0.0.1", Some(2));
        assert_eq!(routes.remove(net("10.0.0.0/8")), Some(2));
        assert_eq!(routes.remove(net("10.0.0.0/8")), None);
        check(&routes, "10.0.0.1", None);
        assert!(routes.v4.tables.is_empty());
    }

    proptest! {
        #[test]
        fn equals_a_linear_search(
            entries in proptest::collection::vec((any::<u32>(), 0u8..=32), 0..40),
            address: u32,
        ) {
            let mut routes = Routes::default();
            let mut list: Vec<(IpNet, usize)> = Vec::new();
            for (owner, (bits, length)) in entries.into_iter().enumerate() {
                let address = IpAddr::V4(std::net::Ipv4Addr::from_bits(bits & 0x0303_0303));
                let net = IpNet::new(address, length).unwrap().trunc();
                list.retain(|(known, _)| *known != net);
                list.push((net, owner));
                routes.insert(net, owner);
            }
            let address = IpAddr::V4(std::net::Ipv4Addr::from_bits(address & 0x0303_0303));
            let expected = list.iter().filter(|(net, _)| net.contains(&address)).max_by_key(|(net, _)| net.prefix_len());
            prop_assert_eq!(routes.find(address), expected.map(|(_, owner)| owner));
        }
    }
}
