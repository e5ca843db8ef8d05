//! Which addresses a node gets. Pure.
//!
//! IPv6 is a function of the tunnel's key, with the next free subnet on a collision; IPv4 is the first free address of the
//! range. A member that asks again keeps what it has: that is the caller's to look up first.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use aws_lc_rs::digest;
use ipnet::{Ipv4Net, Ipv6Net};

use crate::model::key::PublicKey;

/// Why there is no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AllocationError {
    #[error("every address of {0} is taken; let nodes leave, or found a mesh with a larger mesh.ipv4_range")]
    Ipv4Exhausted(Ipv4Net),
    #[error("every /64 of {0} is taken")]
    Ipv6Exhausted(Ipv6Net),
    #[error("wireguard.addresses {address} is not in the range {range} of the mesh; remove it, and the mesh gives one")]
    OutOfRange { address: Ipv4Addr, range: Ipv4Net },
    #[error("wireguard.addresses {0} is the network's own or its broadcast address; remove it, and the mesh gives one")]
    Reserved(Ipv4Addr),
    #[error("wireguard.addresses {0} belongs to another node; remove it, and the mesh gives one")]
    Taken(Ipv4Addr),
    #[error("wireguard.addresses {subnet} is not in {prefix} of the mesh; remove it, and the mesh gives one")]
    SubnetOutOfRange { subnet: Ipv6Net, prefix: Ipv6Net },
    #[error("wireguard.addresses {0} belongs to another node; remove it, and the mesh gives one")]
    SubnetTaken(Ipv6Net),
}

/// The /48 of a mesh (RFC 4193 section 3.2): `fd` and 40 bits of the authority's fingerprint.
pub(super) fn prefix(authority: &[u8; 32]) -> Ipv6Net {
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    octets[1..6].copy_from_slice(&authority[..5]);
    Ipv6Net::new(Ipv6Addr::from(octets), 48).expect("48 bits are a prefix length").trunc()
}

/// The /64 of the node with this key: 16 bits of the key's hash, or the next that is free. Subnet 0 is nobody's.
///
/// # Errors
/// All 65 535 are taken.
pub(super) fn subnet(prefix: Ipv6Net, key: &PublicKey, taken: &BTreeSet<Ipv6Net>) -> Result<Ipv6Net, AllocationError> {
    let hash = digest::digest(&digest::SHA256, key.as_bytes());
    let wanted = u16::from_be_bytes([hash.as_ref()[0], hash.as_ref()[1]]);
    for step in 0..=u16::MAX {
        let number = wanted.wrapping_add(step);
        let subnet = numbered(prefix, number);
        if number != 0 && !taken.contains(&subnet) {
            return Ok(subnet);
        }
    }
    Err(AllocationError::Ipv6Exhausted(prefix))
}

fn numbered(prefix: Ipv6Net, number: u16) -> Ipv6Net {
    let mut octets = prefix.network().octets();
    octets[6..8].copy_from_slice(&number.to_be_bytes());
    Ipv6Net::new(Ipv6Addr::from(octets), 64).expect("64 bits are a prefix length")
}

/// `wanted`, if it is in `prefix` and free.
///
/// # Errors
/// It is not, and why.
pub(super) fn static_subnet(
    prefix: Ipv6Net,
    wanted: Ipv6Net,
    taken: &BTreeSet<Ipv6Net>,
) -> Result<Ipv6Net, AllocationError> {
    if !prefix.contains(&wanted) {
        return Err(AllocationError::SubnetOutOfRange { subnet: wanted, prefix });
    }
    if taken.contains(&wanted) { Err(AllocationError::SubnetTaken(wanted)) } else { Ok(wanted) }
}

/// The address a node puts on its link: the first of its /64 that is not the routers' anycast address.
pub(super) fn host_of(subnet: Ipv6Net) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(subnet.network()) | 1)
}

/// The first free address of `range`.
///
/// # Errors
/// None is free.
pub(super) fn ipv4(range: Ipv4Net, taken: &BTreeSet<Ipv4Addr>) -> Result<Ipv4Addr, AllocationError> {
    range.hosts().find(|address| !taken.contains(address)).ok_or(AllocationError::Ipv4Exhausted(range))
}

/// `wanted`, if it is in `range` and free.
///
/// # Errors
/// It is not, and why.
pub(super) fn static_ipv4(
    range: Ipv4Net,
    wanted: Ipv4Addr,
    taken: &BTreeSet<Ipv4Addr>,
) -> Result<Ipv4Addr, AllocationError> {
    if !range.contains(&wanted) {
        return Err(AllocationError::OutOfRange { address: wanted, range });
    }
    if wanted == range.network() || wanted == range.broadcast() {
        return Err(AllocationError::Reserved(wanted));
    }
    if taken.contains(&wanted) { Err(AllocationError::Taken(wanted)) } else { Ok(wanted) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Ipv4Net {
        text.parse().expect("a network")
    }

    #[test]
    fn the_first_free_address_is_given_until_none_is() {
        let mut taken = BTreeSet::new();
        for last in 1..=2 {
            let address = ipv4(range("10.80.0.0/30"), &taken).expect("free");
            assert_eq!(address, Ipv4Addr::new(10, 80, 0, last));
            taken.insert(address);
        }
        let error = ipv4(range("10.80.0.0/30"), &taken).expect_err("exhausted").to_string();
        assert!(error.contains("10.80.0.0/30") && error.contains("mesh.ipv4_range"), "{error}");
    }

    #[test]
    fn an_address_of_choice_must_be_free_and_in_range() {
        let taken = BTreeSet::from([Ipv4Addr::new(10, 80, 0, 1)]);
        let ask = |text: &str| static_ipv4(range("10.80.0.0/16"), text.parse().expect("an address"), &taken);
        assert_eq!(ask("10.80.9.9"), Ok(Ipv4Addr::new(10, 80, 9, 9)));
        assert!(matches!(ask("10.80.0.1"), Err(AllocationError::Taken(_))));
        assert!(matches!(ask("10.81.0.1"), Err(AllocationError::OutOfRange { .. })));
        assert!(matches!(ask("10.80.255.255"), Err(AllocationError::Reserved(_))));
    }

    #[test]
    fn a_key_gives_the_same_subnet_and_a_collision_the_next() {
        let prefix = prefix(&[0xab; 32]);
        assert_eq!(prefix.to_string(), "fdab:abab:abab::/48");
        let key = PublicKey::from_bytes([7; 32]);
        let first = subnet(prefix, &key, &BTreeSet::new()).expect("free");
        assert_eq!(subnet(prefix, &key, &BTreeSet::new()), Ok(first));
        let second = subnet(prefix, &key, &BTreeSet::from([first])).expect("free");
        assert!(prefix.contains(&second) && second != first);
        assert_eq!(u128::from(host_of(first)) - u128::from(first.network()), 1);
    }

    #[test]
    fn thousands_of_nodes_never_share_a_subnet() {
        let prefix = prefix(&[1; 32]);
        let mut taken = BTreeSet::new();
        for number in 0_u32..3000 {
            let mut bytes = [0; 32];
            bytes[..4].copy_from_slice(&number.to_be_bytes());
            let given = subnet(prefix, &PublicKey::from_bytes(bytes), &taken).expect("free");
            assert!(taken.insert(given), "{given}");
        }
    }
}
