//! Who is sent a first message, and when. Pure.
//!
//! A node that joins and the members it finds learn of each other at different times. A handshake begun by the one that knew
//! first is refused by the other, and tried again only 5 s later (`REKEY_TIMEOUT`), with what was to be sent waiting. So each
//! end sends an empty message to a peer that is new or was given another endpoint: the later of the two finds the other one
//! ready, and what waits there leaves at once.
//!
//! Invariants: nothing is sent for what was there at a start; in a large mesh messages are spread over time, so that a
//! joiner is not met by all at once, and at most [`MOST`] are sent for one change and about as many reach one joiner. The
//! other pairs shake hands with their first packet.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::device::{PeerChange, PeerUpdate, Step};
use crate::model::key::PublicKey;
use crate::model::peer::Peer;

/// Up to so many peers nobody has to wait.
const FEW: usize = 64;
/// Above, all the messages take this long for each peer there is.
const SPREAD_PER_PEER: Duration = Duration::from_millis(1);
/// In a larger mesh only so many of the pairs are made to shake hands.
const MOST: usize = 1024;

/// The messages that are due now or later.
#[derive(Debug, Default)]
pub(super) struct Nudges(BTreeMap<(Instant, PublicKey), ()>);

impl Nudges {
    /// Takes in the peers that `steps` gave an endpoint; `peers` of them and others are there. Those with a keepalive that is
    /// new have been sent one by the device.
    pub(super) fn add(&mut self, own: &PublicKey, steps: &[impl AsRef<Step>], peers: usize, now: Instant) {
        for key in steps.iter().flat_map(|step| placed(step.as_ref())) {
            let lot = lot(own, key);
            if let Some(wait) = wait(lot, peers)
                && self.0.len() < MOST
            {
                self.0.insert((now + wait, *key), ());
            }
        }
    }

    /// Those that are due, once.
    pub(super) fn take(&mut self, now: Instant) -> Vec<PublicKey> {
        let mut due = Vec::new();
        while let Some(entry) = self.0.first_entry().filter(|entry| entry.key().0 <= now) {
            due.push(entry.remove_entry().0.1);
        }
        due
    }

    /// When the next one is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.keys().next().map(|(due, _key)| *due)
    }
}

/// The peers that a step gives an endpoint.
fn placed(step: &Step) -> impl Iterator<Item = &PublicKey> {
    let changes = match step {
        Step::Peers(changes) => changes.as_slice(),
        Step::PrivateKey(_) | Step::Fwmark(_) | Step::ListenPort(_) => &[],
    };
    changes.iter().filter_map(|change| match change {
        PeerChange::Set(update) => update.endpoint.is_some().then_some(&update.public_key),
        PeerChange::Remove(_) => None,
    })
}

/// A number that is another one on the other end.
fn lot(own: &PublicKey, peer: &PublicKey) -> u64 {
    let head = |key: &PublicKey| key.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    (head(own).wrapping_mul(3) ^ head(peer)).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 16
}

/// How long to wait; `None`: this pair is not among those that are chosen.
fn wait(lot: u64, peers: usize) -> Option<Duration> {
    if peers <= FEW {
        return Some(Duration::ZERO);
    }
    let count = u64::try_from(peers).unwrap_or(u64::MAX);
    let place = lot % count;
    let is_chosen = place < u64::try_from(MOST).unwrap_or(u64::MAX);
    let spread = SPREAD_PER_PEER * u32::try_from(peers.min(MOST)).unwrap_or(u32::MAX);
    let share = u32::try_from((lot >> 16) % 1000).unwrap_or(0);
    is_chosen.then(|| spread * share / 1000)
}

/// The step that has the device send an empty message to `peer`, and leaves the peer as it was: a device sends one when a
/// keepalive is switched on.
pub(super) fn step(peers: &[&Peer]) -> Step {
    let keepalive = |peer: &Peer, seconds| {
        PeerChange::Set(PeerUpdate { persistent_keepalive: Some(seconds), ..PeerUpdate::new(peer.public_key) })
    };
    let changes = peers.iter().flat_map(|peer| {
        let wanted = peer.persistent_keepalive.unwrap_or(0);
        let off_and_on = [keepalive(peer, 0), keepalive(peer, wanted.max(1))];
        off_and_on.into_iter().chain((wanted == 0).then(|| keepalive(peer, 0)))
    });
    Step::Peers(changes.collect())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn key(number: u16) -> PublicKey {
        let mut bytes = [7; 32];
        // Keys are spread evenly; so are these.
        let spread = u64::from(number).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
        bytes[..8].copy_from_slice(&spread.to_le_bytes());
        PublicKey::from_bytes(bytes)
    }

    fn placing(numbers: std::ops::Range<u16>) -> Vec<Arc<Step>> {
        let endpoint = Some("192.0.2.1:51820".parse().expect("an address"));
        let changes = numbers.map(|number| PeerChange::Set(PeerUpdate { endpoint, ..PeerUpdate::new(key(number)) }));
        vec![Arc::new(Step::Peers(changes.collect()))]
    }

    #[test]
    fn in_a_small_mesh_all_are_due_at_once_and_once() {
        let (mut nudges, now) = (Nudges::default(), Instant::now());
        nudges.add(&key(0), &placing(1..11), 10, now);
        assert_eq!(nudges.next(), Some(now));
        assert_eq!(nudges.take(now).len(), 10);
        assert_eq!((nudges.take(now).len(), nudges.next()), (0, None));
    }

    #[test]
    fn what_got_no_endpoint_is_not_due() {
        let (mut nudges, now) = (Nudges::default(), Instant::now());
        let unplaced = PeerUpdate { persistent_keepalive: Some(25), ..PeerUpdate::new(key(1)) };
        let steps = Step::Peers(vec![PeerChange::Set(unplaced), PeerChange::Remove(key(2))]);
        nudges.add(&key(0), &[Arc::new(steps)], 2, now);
        assert_eq!(nudges.next(), None);
    }

    #[test]
    fn a_joiner_of_a_large_mesh_sends_a_bounded_number_over_time() {
        let (mut nudges, now) = (Nudges::default(), Instant::now());
        nudges.add(&key(0), &placing(1..10_001), 10_000, now);
        let all = nudges.0.len();
        assert!((512..=MOST).contains(&all), "{all} of 10,000");
        let first = nudges.take(now + Duration::from_millis(100)).len();
        assert!(first < all / 4, "{first} of {all} in the first tenth");
        assert_eq!(first + nudges.take(now + Duration::from_secs(2)).len(), all);
    }

    #[test]
    fn a_joiner_of_a_large_mesh_is_met_by_a_bounded_number_over_time() {
        let now = Instant::now();
        let mut dues: Vec<Duration> = (1..10_001u16)
            .filter_map(|number| {
                let mut nudges = Nudges::default();
                nudges.add(&key(number), &placing(0..1), 10_000, now);
                nudges.next().map(|due| due - now)
            })
            .collect();
        dues.sort_unstable();
        assert!((512..2 * MOST).contains(&dues.len()), "{} of 10,000", dues.len());
        assert!(dues[dues.len() / 2] > Duration::from_millis(200), "the median comes after {:?}", dues[dues.len() / 2]);
    }

    #[test]
    fn the_step_leaves_the_keepalive_as_it_was() {
        for wanted in [None, Some(25)] {
            let peer = Peer {
                name: "beta".parse().expect("a label"),
                public_key: key(1),
                preshared_key: None,
                endpoint: None,
                allowed_ips: Vec::new(),
                persistent_keepalive: wanted,
            };
            let mut device = super::super::device::DeviceState::default();
            device.apply(&step(&[&peer]));
            assert_eq!(device.peers()[&key(1)].persistent_keepalive, wanted.unwrap_or(0));
        }
    }
}
