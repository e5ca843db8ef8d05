//! Which reverse names are ours: the networks of the mesh, cut at the label boundaries of the reverse trees.
//!
//! Pure. A network whose length is no multiple of a label (8 bits in `in-addr.arpa`, 4 in `ip6.arpa`) is held as
//! the several zones one label deeper that make it up, so no name outside the network is ever claimed.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::dns::wire::{IN_ADDR_ARPA, IP6_ARPA, labels};

/// Where a reverse name without records lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// A known address, or an apex, lies at or below it. The apex is the last `apex_len` bytes of the name.
    Above { apex_len: usize },
    /// Within our networks, and nothing is there.
    Nothing { apex_len: usize },
    /// Not ours.
    Elsewhere,
}

/// The same, the apex counted in labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LabelPlace {
    Above { apex_labels: usize },
    Nothing { apex_labels: usize },
    Elsewhere,
}

impl LabelPlace {
    fn in_bytes_of(self, name: &[u8]) -> Place {
        match self {
            Self::Above { apex_labels } => Place::Above { apex_len: length_of_last(name, apex_labels) },
            Self::Nothing { apex_labels } => Place::Nothing { apex_len: length_of_last(name, apex_labels) },
            Self::Elsewhere => Place::Elsewhere,
        }
    }
}

/// The bytes that the last `count` labels of `name` take, with the root label.
fn length_of_last(name: &[u8], count: usize) -> usize {
    let skipped = labels(name).count().saturating_sub(count);
    name.len() - labels(name).take(skipped).map(|label| label.len() + 1).sum::<usize>()
}

/// One of the two reverse trees.
#[derive(Debug, Clone, Copy)]
struct Tree {
    suffix: &'static [u8],
    suffix_labels: usize,
    bits_per_label: u32,
    bits: u32,
}

const V4: Tree = Tree { suffix: IN_ADDR_ARPA, suffix_labels: 2, bits_per_label: 8, bits: 32 };
const V6: Tree = Tree { suffix: IP6_ARPA, suffix_labels: 2, bits_per_label: 4, bits: 128 };

/// The networks and known addresses of one tree. Addresses and prefixes are left-aligned in 128 bits.
#[derive(Debug, Clone)]
struct Half {
    tree: Tree,
    /// First bits and number of labels of every zone.
    apexes: HashSet<(u128, usize)>,
    known: BTreeSet<u128>,
}

/// Both trees.
#[derive(Debug, Clone)]
pub(super) struct Reverse {
    v4: Half,
    v6: Half,
}

impl Reverse {
    pub(super) fn new(networks: &[IpNet], known: &[IpAddr]) -> Self {
        let half = |tree| Half { tree, apexes: HashSet::new(), known: BTreeSet::new() };
        let mut reverse = Self { v4: half(V4), v6: half(V6) };
        for address in known {
            reverse.half_mut(address).known.insert(aligned(address));
        }
        let mut widest_first = networks.to_vec();
        widest_first.sort_by_key(IpNet::prefix_len);
        for network in widest_first {
            reverse.half_mut(&network.addr()).add_network(&network);
        }
        reverse
    }

    /// Where `name` (wire form, lower case) lies, if it is in a reverse tree at all.
    pub(super) fn place(&self, name: &[u8]) -> Place {
        let place = [&self.v4, &self.v6].into_iter().find_map(|half| half.place(name));
        place.map_or(Place::Elsewhere, |place| place.in_bytes_of(name))
    }

    /// The bytes of the zone that `name` lies in.
    pub(super) fn apex_len(&self, name: &[u8]) -> Option<usize> {
        match self.place(name) {
            Place::Above { apex_len } | Place::Nothing { apex_len } => Some(apex_len),
            Place::Elsewhere => None,
        }
    }

    fn half_mut(&mut self, address: &IpAddr) -> &mut Half {
        match address {
            IpAddr::V4(_) => &mut self.v4,
            IpAddr::V6(_) => &mut self.v6,
        }
    }
}

fn aligned(address: &IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The first `length` of 128 bits.
fn mask(length: u32) -> u128 {
    u128::MAX.checked_shl(128 - length).unwrap_or(0)
}

impl Half {
    /// A network of length 0 is left out: it would claim the whole tree.
    fn add_network(&mut self, network: &IpNet) {
        let length = u32::from(network.prefix_len());
        let count = length.div_ceil(self.tree.bits_per_label);
        let first = aligned(&network.network());
        if length == 0 || self.covered(first, count) {
            return;
        }
        let apex_length = count * self.tree.bits_per_label;
        let zones = 1_u128 << (apex_length - length);
        for zone in 0..zones {
            self.apexes.insert((first + (zone << (128 - apex_length)), count as usize));
        }
    }

    fn covered(&self, bits: u128, count: u32) -> bool {
        (1..=count)
            .any(|labels| self.apexes.contains(&(bits & mask(labels * self.tree.bits_per_label), labels as usize)))
    }

    fn place(&self, name: &[u8]) -> Option<LabelPlace> {
        // The deepest reverse name has 32 labels and its suffix; more labels than that are below an address.
        const DEEPEST: usize = 34;
        let mut found: [&[u8]; DEEPEST] = [&[]; DEEPEST];
        let count = labels(name).count();
        if !name.ends_with(self.tree.suffix) || count < self.tree.suffix_labels {
            return None;
        }
        let skipped = count.saturating_sub(DEEPEST);
        let kept = count - skipped;
        for (slot, label) in found.iter_mut().zip(labels(name).skip(skipped)) {
            *slot = label;
        }
        let suffix_matches = found[kept - self.tree.suffix_labels..kept].iter().copied().eq(labels(self.tree.suffix));
        suffix_matches.then(|| self.place_of_labels(&found[..kept - self.tree.suffix_labels], skipped > 0))
    }

    /// `above_suffix` are the labels before the tree's suffix, the deepest first; `deeper`: there were more of them.
    fn place_of_labels(&self, above_suffix: &[&[u8]], deeper: bool) -> LabelPlace {
        let mut bits = 0_u128;
        let mut length = 0;
        let mut apex_labels = None;
        for label in above_suffix.iter().rev() {
            let digit = self.tree.digit(label).filter(|_| length < self.tree.bits);
            let Some(digit) = digit else {
                return apex_labels.map_or(LabelPlace::Elsewhere, |apex_labels| LabelPlace::Nothing { apex_labels });
            };
            length += self.tree.bits_per_label;
            bits |= u128::from(digit) << (128 - length);
            let count = (length / self.tree.bits_per_label) as usize;
            if apex_labels.is_none() && self.apexes.contains(&(bits, count)) {
                apex_labels = Some(count + self.tree.suffix_labels);
            }
        }
        let Some(apex_labels) = apex_labels else { return LabelPlace::Elsewhere };
        let at_apex = above_suffix.len() + self.tree.suffix_labels == apex_labels;
        let last = bits | !mask(length);
        let something = !deeper && (at_apex || self.known.range(bits..=last).next().is_some());
        if something { LabelPlace::Above { apex_labels } } else { LabelPlace::Nothing { apex_labels } }
    }
}

impl Tree {
    /// The bits that a label stands for; `None` for a label that no address has.
    fn digit(&self, label: &[u8]) -> Option<u8> {
        let text = std::str::from_utf8(label).ok()?;
        if self.bits_per_label == 4 {
            return if text.len() == 1 { u8::from_str_radix(text, 16).ok() } else { None };
        }
        let canonical = text == "0" || !text.starts_with(['0', '+']);
        text.parse().ok().filter(|_| canonical)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::wire::WireName;

    fn place(networks: &[&str], known: &[&str], name: &str) -> LabelPlace {
        let networks: Vec<IpNet> = networks.iter().map(|text| text.parse().expect("a network")).collect();
        let known: Vec<IpAddr> = known.iter().map(|text| text.parse().expect("an address")).collect();
        let reverse = Reverse::new(&networks, &known);
        let name = WireName::parse(name).expect("a name");
        let place = [&reverse.v4, &reverse.v6].into_iter().find_map(|half| half.place(name.as_bytes()));
        place.unwrap_or(LabelPlace::Elsewhere)
    }

    #[test]
    fn an_unknown_address_of_our_network_is_nothing() {
        let found = place(&["10.80.0.0/24"], &["10.80.0.2"], "9.0.80.10.in-addr.arpa");
        assert_eq!(found, LabelPlace::Nothing { apex_labels: 5 });
    }

    #[test]
    fn the_apex_and_what_leads_to_an_address_exist() {
        let networks = ["10.80.0.0/16"];
        assert_eq!(place(&networks, &[], "80.10.in-addr.arpa"), LabelPlace::Above { apex_labels: 4 });
        assert_eq!(place(&networks, &["10.80.7.2"], "7.80.10.in-addr.arpa"), LabelPlace::Above { apex_labels: 4 });
        assert_eq!(place(&networks, &["10.80.7.2"], "8.80.10.in-addr.arpa"), LabelPlace::Nothing { apex_labels: 4 });
    }

    #[test]
    fn outside_and_above_our_networks_is_elsewhere() {
        for name in ["1.1.80.10.in-addr.arpa", "80.10.in-addr.arpa", "in-addr.arpa", "ip6.arpa", "beta.example"] {
            assert_eq!(place(&["10.80.0.0/24"], &[], name), LabelPlace::Elsewhere, "{name}");
        }
    }

    #[test]
    fn a_network_between_label_boundaries_claims_no_neighbour() {
        let ours = |name| place(&["10.80.4.0/22", "10.9.9.64/26"], &[], name) != LabelPlace::Elsewhere;
        assert!(ours("4.80.10.in-addr.arpa") && ours("1.7.80.10.in-addr.arpa"));
        assert!(!ours("1.8.80.10.in-addr.arpa") && !ours("1.3.80.10.in-addr.arpa"));
        assert!(ours("64.9.9.10.in-addr.arpa") && ours("127.9.9.10.in-addr.arpa"));
        assert!(!ours("63.9.9.10.in-addr.arpa") && !ours("9.9.10.in-addr.arpa"));
    }

    #[test]
    fn labels_that_no_address_has_are_nothing_within_and_elsewhere_without() {
        let nothing = LabelPlace::Nothing { apex_labels: 5 };
        for name in ["x.0.80.10.in-addr.arpa", "256.0.80.10.in-addr.arpa", "02.0.80.10.in-addr.arpa"] {
            assert_eq!(place(&["10.80.0.0/24"], &["10.80.0.2"], name), nothing, "{name}");
        }
        assert_eq!(place(&["10.80.0.0/24"], &["10.80.0.2"], "a.2.0.80.10.in-addr.arpa"), nothing);
        assert_eq!(place(&["10.80.0.0/24"], &[], "x.10.in-addr.arpa"), LabelPlace::Elsewhere);
    }

    #[test]
    fn ipv6_networks_are_cut_at_nibbles() {
        let name = WireName::reverse("fd80::12".parse().expect("an address")).to_string();
        assert_eq!(place(&["fd80::/64"], &["fd80::12"], &name), LabelPlace::Above { apex_labels: 18 });
        assert_eq!(place(&["fd80::/62"], &[], &name), LabelPlace::Nothing { apex_labels: 18 });
        assert_eq!(place(&["fd80::/64"], &[], &format!("x.y.{name}")), LabelPlace::Nothing { apex_labels: 18 });
        assert_eq!(place(&["fd81::/64"], &[], &name), LabelPlace::Elsewhere);
    }

    #[test]
    fn a_network_within_another_makes_no_zone_of_its_own() {
        let found = place(&["10.80.0.2/32", "10.80.0.0/24"], &["10.80.0.2"], "3.0.80.10.in-addr.arpa");
        assert_eq!(found, LabelPlace::Nothing { apex_labels: 5 });
    }
}
