//! Which of several servers gets a request. Pure.

use std::net::IpAddr;

use serde::Deserialize;

/// How a server is chosen among those that work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Balance {
    /// The one with the fewest requests under way; of several, the next in turn.
    #[default]
    Least,
    Random,
    RoundRobin,
    /// By the address of the client; a server that goes or comes moves only the clients that have to move.
    Hash,
}

/// What a server is to a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) is_usable: bool,
    pub(super) under_way: usize,
    /// Of its address.
    pub(super) hash: u64,
}

/// The place of the chosen server; `turn` counts the choices.
pub(super) fn choose(
    balance: Balance,
    turn: u64,
    client: IpAddr,
    candidates: impl ExactSizeIterator<Item = Candidate> + Clone,
) -> Option<usize> {
    let count = candidates.len() as u64;
    let usable = candidates.enumerate().filter(|(_, candidate)| candidate.is_usable);
    // How far behind the one whose turn it is.
    let distance = |place: usize, first: u64| (place as u64 + count - first % count) % count;
    let chosen = match balance {
        Balance::RoundRobin => usable.min_by_key(|(place, _)| distance(*place, turn)),
        Balance::Least => usable.min_by_key(|(place, one)| (one.under_way, distance(*place, turn))),
        Balance::Random => usable.max_by_key(|(_, one)| mix(one.hash ^ mix(turn))),
        Balance::Hash => usable.max_by_key(|(_, one)| mix(one.hash ^ of_address(client))),
    };
    chosen.map(|(place, _)| place)
}

/// A number that stands for an address.
pub(super) fn of_address(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(address) => mix(u64::from(u32::from(address))),
        IpAddr::V6(address) => {
            let bits = u128::from(address);
            mix((bits >> 64) as u64 ^ mix(bits as u64))
        }
    }
}

/// A number that stands for a text.
pub(super) fn of_text(text: &str) -> u64 {
    text.bytes().fold(0x9e37_79b9_7f4a_7c15, |hash, byte| mix(hash ^ u64::from(byte)))
}

/// Spreads every bit over all (the finaliser of splitmix64).
pub(super) fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(number: u32) -> IpAddr {
        IpAddr::from(number.to_be_bytes())
    }

    fn four(usable: [bool; 4], under_way: [usize; 4]) -> impl ExactSizeIterator<Item = Candidate> + Clone {
        (0..4).map(move |at| Candidate {
            is_usable: usable[at],
            under_way: under_way[at],
            hash: of_text(&at.to_string()),
        })
    }

    fn spread(balance: Balance, usable: [bool; 4]) -> [usize; 4] {
        let mut counts = [0; 4];
        for turn in 0..4000 {
            let chosen = choose(balance, turn, client(u32::try_from(turn).expect("small")), four(usable, [0; 4]));
            counts[chosen.expect("one works")] += 1;
        }
        counts
    }

    #[test]
    fn every_way_uses_all_that_work_and_none_that_does_not() {
        for balance in [Balance::Least, Balance::Random, Balance::RoundRobin, Balance::Hash] {
            let counts = spread(balance, [true, false, true, true]);
            assert_eq!(counts[1], 0, "{balance:?}");
            assert!([0, 2, 3].iter().all(|at| counts[*at] > 800), "{balance:?}: {counts:?}");
            assert_eq!(choose(balance, 0, client(1), four([false; 4], [0; 4])), None);
        }
        assert_eq!(spread(Balance::RoundRobin, [true; 4]), [1000; 4]);
    }

    #[test]
    fn the_least_busy_is_chosen() {
        assert_eq!(choose(Balance::Least, 7, client(1), four([true; 4], [3, 2, 1, 2])), Some(2));
        assert_eq!(choose(Balance::Least, 7, client(1), four([true, true, false, true], [3, 2, 1, 2])), Some(3));
    }

    #[test]
    fn a_server_that_goes_moves_only_its_own_clients() {
        for number in 0..1000 {
            let all = choose(Balance::Hash, 0, client(number), four([true; 4], [0; 4])).expect("one");
            let less = choose(Balance::Hash, 9, client(number), four([true, true, false, true], [0; 4])).expect("one");
            assert!(all == 2 || all == less, "{number}: {all} {less}");
        }
    }
}
