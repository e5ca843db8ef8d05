//! Questions about many networks at once, answered without a scan.

use ipnet::IpNet;

use crate::model::ordered::Ordered;

/// Networks in order, without duplicates, host bits cleared.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetworkSet(Ordered<IpNet, ()>);

impl FromIterator<IpNet> for NetworkSet {
    fn from_iter<I: IntoIterator<Item = IpNet>>(networks: I) -> Self {
        Self(networks.into_iter().map(|network| (network.trunc(), ())).collect())
    }
}

impl NetworkSet {
    /// Adds a network.
    pub fn insert(&mut self, network: IpNet) {
        self.0.insert(network.trunc(), ());
    }

    /// Takes a network out.
    pub fn remove(&mut self, network: &IpNet) {
        self.0.remove(&network.trunc());
    }

    /// Whether a network of the set and `network` share an address.
    pub fn overlaps(&self, network: &IpNet) -> bool {
        self.holding(network).next().is_some() || self.within(network)
    }

    /// The networks of the set that hold all of `network`, from the widest.
    pub fn holding(&self, network: &IpNet) -> impl Iterator<Item = IpNet> {
        let address = network.network();
        let lengths = 0..=network.prefix_len();
        let wider = lengths.map(move |length| IpNet::new_assert(address, length).trunc());
        wider.filter(|network| self.0.contains_key(network))
    }

    fn within(&self, network: &IpNet) -> bool {
        let first = IpNet::new_assert(network.network(), 0);
        let last = IpNet::new_assert(network.broadcast(), network.max_prefix_len());
        // Ordered by address, then length: a wider network with the same first address comes before.
        let mut candidates = self.0.starting_at(&first).map(|(candidate, ())| candidate);
        candidates.by_ref().take_while(|candidate| **candidate <= last).any(|candidate| network.contains(candidate))
    }
}

/// Whether two networks share an address.
pub fn overlap(first: &IpNet, second: &IpNet) -> bool {
    first.contains(second) || second.contains(first)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    fn network() -> impl Strategy<Value = IpNet> {
        // Few addresses, so that overlaps are common.
        let v4 = (0_u8..4, 0_u8..4, 6_u8..=32)
            .prop_map(|(a, b, length)| IpNet::new_assert(IpAddr::from([10, a, b, 1]), length).trunc());
        let v6 = (0_u16..4, 10_u8..=128)
            .prop_map(|(a, length)| IpNet::new_assert(IpAddr::from([0xfd00, a, 0, 0, 0, 0, 0, 1]), length).trunc());
        prop_oneof![v4, v6]
    }

    proptest! {
        #[test]
        fn the_set_answers_as_a_scan_does(networks in proptest::collection::vec(network(), 0..12), asked in network()) {
            let set: NetworkSet = networks.iter().copied().collect();
            prop_assert_eq!(set.overlaps(&asked), networks.iter().any(|network| overlap(network, &asked)));
            let holding: BTreeSet<IpNet> = set.holding(&asked).collect();
            let scanned: BTreeSet<IpNet> =
                networks.iter().filter(|network| network.contains(&asked)).copied().collect();
            prop_assert_eq!(holding, scanned);
        }
    }
}
