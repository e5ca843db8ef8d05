//! The way to each member as this node finds it: who answers, which address is tried next, and who cannot be reached. Pure.
//!
//! In: what the tunnel device says about each peer, looked at every few seconds. Out: events, the address to send to, and the
//! peers without a way. A peer that is sent nothing says nothing about itself: who is idle is neither up nor down.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant, SystemTime};

use super::update::Event;
use crate::foundation::id::NodeId;
use crate::model::key::PublicKey;
use crate::model::mesh::{Member, Mesh};

/// How long an address may leave a first handshake without an answer: two attempts (`REKEY_TIMEOUT` is 5 s).
const TRY: Duration = Duration::from_secs(6);
/// How long the next one is tried once all were tried: as often as keepalives go out.
const TRY_AGAIN: Duration = Duration::from_secs(25);
/// A peer with a session that answers nothing for so long is down: a keepalive answers data after 10 s, and a new handshake
/// begins after 15 s.
const SILENT: Duration = Duration::from_secs(20);
/// A handshake younger than this carries a session (`REJECT_AFTER_TIME`).
const SESSION: Duration = Duration::from_secs(180);
/// How often the device is looked at: while somebody is waited for, and else.
const SOON: Duration = Duration::from_secs(1);
const LATER: Duration = Duration::from_secs(3);

/// One peer as the device has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    pub key: PublicKey,
    pub endpoint: Option<SocketAddr>,
    pub last_handshake: Option<SystemTime>,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
}

/// What a look showed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) events: Vec<Event>,
    /// Where to send to, where that is not the address that comes first.
    pub(super) chosen: BTreeMap<NodeId, IpAddr>,
    /// Who cannot be reached, and why.
    pub(super) blocked: BTreeMap<NodeId, String>,
    pub(super) look_again: Duration,
}

/// The ways to all members.
#[derive(Debug, Default)]
pub(super) struct Paths(BTreeMap<NodeId, Path>);

#[derive(Debug)]
struct Path {
    key: PublicKey,
    candidates: Vec<SocketAddr>,
    up: bool,
    endpoint: Option<SocketAddr>,
    last_handshake: Option<SystemTime>,
    rx_bytes: u64,
    tx_bytes: u64,
    /// Since when what is sent is not answered.
    unanswered: Option<Instant>,
    /// Which address is sent to; it counts on from round to round.
    attempt: usize,
    /// When it was last another one.
    attempt_since: Instant,
    blocked: Option<String>,
}

impl Paths {
    /// Takes in what the device says. `now` and `clock` are the same moment.
    pub(super) fn look(&mut self, mesh: &Mesh, sightings: &[Sighting], now: Instant, clock: SystemTime) -> Seen {
        let by_key: BTreeMap<&PublicKey, &Sighting> = sightings.iter().map(|seen| (&seen.key, seen)).collect();
        let others = mesh.members.values().filter(|member| member.id != mesh.own);
        self.0.retain(|id, path| mesh.member(id).is_some_and(|member| member.public_key == path.key));
        let mut seen = Seen { look_again: LATER, ..Seen::default() };
        for member in others {
            let Some(sighting) = by_key.get(&member.public_key) else { continue };
            let path = self.0.entry(member.id.clone()).or_insert_with(|| Path::new(member, now));
            path.follow(member, now);
            seen.events.extend(path.look(&member.id, sighting, now, clock));
            if let Some(chosen) = path.chosen() {
                seen.chosen.insert(member.id.clone(), chosen.ip());
            }
            if let Some(reason) = &path.blocked {
                seen.blocked.insert(member.id.clone(), reason.clone());
            }
            if path.unanswered.is_some() {
                seen.look_again = SOON;
            }
        }
        seen
    }
}

/// Where a member may be reached, best first.
fn candidates(member: &Member) -> Vec<SocketAddr> {
    let mut all = Vec::new();
    for address in member.primary_endpoint.into_iter().chain(member.endpoints.iter().copied()) {
        let candidate = SocketAddr::new(address, member.ports.wireguard);
        if member.ports.wireguard != 0 && !all.contains(&candidate) {
            all.push(candidate);
        }
    }
    all
}

impl Path {
    fn new(member: &Member, now: Instant) -> Self {
        Self {
            key: member.public_key,
            candidates: candidates(member),
            up: false,
            endpoint: None,
            last_handshake: None,
            rx_bytes: 0,
            tx_bytes: 0,
            unanswered: None,
            attempt: 0,
            attempt_since: now,
            blocked: None,
        }
    }

    /// Begins anew with the address that comes first where there are others than before.
    fn follow(&mut self, member: &Member, now: Instant) {
        let candidates = candidates(member);
        if self.candidates != candidates {
            self.candidates = candidates;
            self.attempt = 0;
            self.attempt_since = now;
        }
    }

    fn chosen(&self) -> Option<SocketAddr> {
        let at = self.attempt.checked_rem(self.candidates.len())?;
        self.candidates.get(at).copied().filter(|_| at != 0)
    }

    fn look(&mut self, id: &NodeId, seen: &Sighting, now: Instant, clock: SystemTime) -> Vec<Event> {
        let mut events = Vec::new();
        // A handshake in the future is one from before the clock was set back.
        let has_session = seen.last_handshake.is_some_and(|at| clock.duration_since(at).unwrap_or_default() < SESSION);
        let shook_hands = seen.last_handshake.is_some() && seen.last_handshake != self.last_handshake && has_session;
        // Without a session what comes in may be half a handshake, which says that one direction is closed.
        let has_answered = shook_hands || (has_session && seen.rx_bytes > self.rx_bytes);
        let has_sent = seen.tx_bytes > self.tx_bytes;
        if has_answered {
            self.unanswered = None;
            self.blocked = None;
            if !self.up {
                self.up = true;
                events.push(Event::PeerUp { peer: id.clone(), endpoint: seen.endpoint });
            } else if let Some(to) = seen.endpoint.filter(|_| self.endpoint != seen.endpoint) {
                events.push(Event::PeerMoved { peer: id.clone(), from: self.endpoint, to });
            }
        } else if self.unanswered.is_none() && (has_sent || self.must_call()) {
            self.unanswered = Some(now);
            self.attempt_since = now;
        }
        self.endpoint = seen.endpoint;
        self.last_handshake = seen.last_handshake;
        (self.rx_bytes, self.tx_bytes) = (seen.rx_bytes, seen.tx_bytes);
        if let Some(since) = self.unanswered {
            events.extend(self.miss(id, now, since));
        }
        events
    }

    /// Whether it can only be waited for.
    fn must_call(&self) -> bool {
        !self.up && self.candidates.is_empty()
    }

    /// What follows from having no answer since `since`.
    fn miss(&mut self, id: &NodeId, now: Instant, since: Instant) -> Option<Event> {
        let silence = now.saturating_duration_since(since);
        if self.up {
            if silence < SILENT {
                return None;
            }
            self.up = false;
            self.unanswered = Some(now);
            self.attempt_since = now;
            let reason = format!("nothing came back for {} s", silence.as_secs());
            return Some(Event::PeerDown { peer: id.clone(), reason });
        }
        let patience = if self.blocked.is_some() { TRY_AGAIN } else { TRY };
        if now.saturating_duration_since(self.attempt_since) < patience {
            return None;
        }
        self.attempt_since = now;
        self.attempt += 1;
        let round = self.candidates.len().max(1);
        if self.blocked.is_some() || !self.attempt.is_multiple_of(round) {
            return None;
        }
        let reason = self.why();
        self.blocked = Some(reason.clone());
        Some(Event::PeerDown { peer: id.clone(), reason })
    }

    fn why(&self) -> String {
        if self.candidates.is_empty() {
            return "none of its addresses is known, and it has not called".to_owned();
        }
        let tried: Vec<String> = self.candidates.iter().map(SocketAddr::to_string).collect();
        format!("no handshake over UDP with {}", tried.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::tests::{id, member, mesh};

    const BETA: &str = "192.0.2.2";

    struct World {
        mesh: Mesh,
        paths: Paths,
        began: Instant,
        sighting: Sighting,
    }

    impl World {
        fn new(endpoints: &[&str]) -> Self {
            let mut beta = Member::clone(&member("beta", 2, endpoints.first().copied()));
            beta.endpoints = endpoints.iter().map(|text| text.parse().expect("an address")).collect();
            let sighting =
                Sighting { key: beta.public_key, endpoint: None, last_handshake: None, rx_bytes: 0, tx_bytes: 0 };
            let mesh = mesh(&[member("alpha", 1, None), std::sync::Arc::new(beta)]);
            Self { mesh, paths: Paths::default(), began: Instant::now(), sighting }
        }

        fn clock(second: u64) -> SystemTime {
            SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + second)
        }

        /// Looks once a second up to this one; each second `each` happens.
        fn run(&mut self, seconds: std::ops::RangeInclusive<u64>, each: impl Fn(&mut Sighting, u64)) -> Vec<Seen> {
            seconds
                .map(|second| {
                    each(&mut self.sighting, second);
                    let now = self.began + Duration::from_secs(second);
                    let sightings = std::slice::from_ref(&self.sighting);
                    self.paths.look(&self.mesh, sightings, now, Self::clock(second))
                })
                .collect()
        }
    }

    fn sends(sighting: &mut Sighting, _second: u64) {
        sighting.tx_bytes += 148;
    }

    fn answers(sighting: &mut Sighting, second: u64) {
        sends(sighting, second);
        sighting.rx_bytes += 100;
        sighting.endpoint = "192.0.2.2:51820".parse().ok();
        sighting.last_handshake = sighting.last_handshake.or(Some(World::clock(second)));
    }

    fn events(seen: Vec<Seen>) -> Vec<Event> {
        seen.into_iter().flat_map(|seen| seen.events).collect()
    }

    #[test]
    fn a_peer_that_is_sent_nothing_is_neither_up_nor_down() {
        let mut world = World::new(&[BETA]);
        let seen = world.run(0..=600, |_, _| {});
        assert!(seen.iter().all(|seen| seen.events.is_empty() && seen.blocked.is_empty()));
    }

    #[test]
    fn every_address_is_tried_before_a_peer_is_out_of_reach_and_again_after() {
        let mut world = World::new(&[BETA, "198.51.100.2", "203.0.113.2"]);
        let seen = world.run(0..=120, sends);
        let first = seen.iter().position(|seen| !seen.blocked.is_empty()).expect("it is out of reach");
        let tried: std::collections::BTreeSet<String> =
            seen[..first].iter().filter_map(|seen| seen.chosen.get(&id("beta"))).map(ToString::to_string).collect();
        assert_eq!(tried.into_iter().collect::<Vec<_>>(), ["198.51.100.2", "203.0.113.2"]);
        let reason = &seen[first].blocked[&id("beta")];
        assert!(reason.contains("192.0.2.2:51820, 198.51.100.2:51820, 203.0.113.2:51820"), "{reason}");
        assert!(seen[first + 1..].iter().any(|seen| !seen.chosen.is_empty()), "the others are tried again");
        let down = Event::PeerDown { peer: id("beta"), reason: reason.clone() };
        assert_eq!(events(seen), [down], "it is said once");
    }

    #[test]
    fn a_peer_that_answers_is_up_stays_where_it_answered_and_is_reached_again_later() {
        let mut world = World::new(&[BETA, "198.51.100.2"]);
        world.run(0..=8, sends);
        let seen = world.run(9..=60, answers);
        assert!(seen.iter().all(|seen| seen.chosen[&id("beta")].to_string() == "198.51.100.2"), "no way back");
        assert!(matches!(events(seen).as_slice(), [Event::PeerUp { peer, .. }] if *peer == id("beta")));
        let seen = world.run(61..=110, sends);
        assert!(!seen.last().expect("a look").blocked.is_empty());
        let all = events(seen);
        assert!(matches!(all.as_slice(), [Event::PeerDown { .. }, Event::PeerDown { .. }]), "{all:?}");
        world.sighting.last_handshake = None;
        let seen = world.run(111..=112, answers);
        assert!(seen.last().expect("a look").blocked.is_empty());
        assert!(matches!(events(seen).as_slice(), [Event::PeerUp { .. }]));
    }

    #[test]
    fn half_a_handshake_is_no_answer() {
        let mut world = World::new(&[BETA]);
        let seen = world.run(0..=10, |sighting, second| {
            sends(sighting, second);
            sighting.rx_bytes += 148;
        });
        assert!(!seen.last().expect("a look").blocked.is_empty());
    }

    #[test]
    fn a_peer_that_moves_is_told() {
        let mut world = World::new(&[BETA]);
        world.run(0..=3, answers);
        let seen = world.run(4..=5, |sighting, second| {
            answers(sighting, second);
            sighting.endpoint = "203.0.113.9:7".parse().ok();
        });
        let (from, to) = ("192.0.2.2:51820".parse().ok(), "203.0.113.9:7".parse().expect("an address"));
        assert_eq!(events(seen), [Event::PeerMoved { peer: id("beta"), from, to }]);
    }

    #[test]
    fn who_has_no_known_address_and_does_not_call_is_out_of_reach() {
        let mut world = World::new(&[]);
        let seen = world.run(0..=10, |_, _| {});
        assert!(seen.last().expect("a look").blocked[&id("beta")].contains("has not called"));
    }
}
