//! The device as it is wanted: a pure view of settings and model, and the rule when a peer's endpoint is written.
//!
//! In: [`Settings`], [`Model`], what names resolved to. Out: [`DeviceSpec`], read by `plan`.
//! Invariant: an endpoint the peer moved to by itself is not written over (see [`Endpoints::to_set`]).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;

use super::device::PeerState;
use super::settings::Settings;
use crate::model::Model;
use crate::model::key::{PrivateKey, PublicKey};
use crate::model::peer::{Endpoint, Peer};

/// A handshake younger than this proves that the endpoint works (`REJECT_AFTER_TIME` of the protocol).
pub const HANDSHAKE_FRESH: Duration = Duration::from_secs(180);
/// A handshake older than this should have been renewed (`REKEY_AFTER_TIME` and one `KEEPALIVE_TIMEOUT` with
/// `REKEY_TIMEOUT`): where the peer is named, the name is resolved again.
pub const HANDSHAKE_OVERDUE: Duration = Duration::from_secs(135);

/// The device as it is wanted.
#[derive(Debug, Clone)]
pub struct DeviceSpec<'a> {
    pub private_key: &'a PrivateKey,
    /// `None`: any will do.
    pub listen_port: Option<u16>,
    pub fwmark: u32,
    model: &'a Model,
    /// The peers whose packets each peer carries.
    carried: BTreeMap<&'a PublicKey, Vec<&'a Peer>>,
}

impl<'a> DeviceSpec<'a> {
    /// What `settings` and `model` want together.
    pub fn new(settings: &'a Settings, model: &'a Model) -> Self {
        let mut carried: BTreeMap<&PublicKey, Vec<&Peer>> = BTreeMap::new();
        for (key, relay) in &model.relays {
            // One that this node does not know carries nothing.
            if let (Some(peer), Some(_)) = (model.peer(key), model.peer(&relay.via)) {
                carried.entry(&relay.via).or_default().push(peer);
            }
        }
        Self {
            private_key: &settings.private_key,
            listen_port: Some(settings.listen_port).filter(|port| *port != 0),
            fwmark: settings.fwmark,
            model,
            carried,
        }
    }

    /// The wanted peers in the order of their keys.
    pub fn peers(&self) -> impl ExactSizeIterator<Item = &'a Peer> {
        self.model.peers()
    }

    /// The wanted peer with this key.
    pub fn peer(&self, key: &PublicKey) -> Option<&'a Peer> {
        self.model.peer(key)
    }

    /// The peer that is to have exactly this prefix.
    pub fn owner(&self, prefix: &IpNet) -> Option<&'a PublicKey> {
        let owner = self.model.owner(prefix)?;
        Some(self.carrier(owner).unwrap_or(owner))
    }

    /// What the device lets through from and to a peer: its own prefixes, none where another peer carries its packets, and
    /// those of the peers it carries.
    pub fn allowed_ips(&self, peer: &'a Peer) -> Cow<'a, [IpNet]> {
        if self.model.relays.is_empty() {
            return Cow::Borrowed(&peer.allowed_ips);
        }
        let own = self.carrier(&peer.public_key).map_or(peer.allowed_ips.as_slice(), |_carrier| &[]);
        let carried = self.carried.get(&peer.public_key).into_iter().flatten().flat_map(|peer| &peer.allowed_ips);
        Cow::Owned(own.iter().chain(carried).copied().collect())
    }

    /// Who carries the packets of the peer with this key.
    fn carrier(&self, key: &PublicKey) -> Option<&'a PublicKey> {
        let via = &self.model.relays.get(key)?.via;
        self.model.peer(via).map(|_carrier| via)
    }
}

/// What names resolved to.
pub type Resolved = BTreeMap<(String, u16), Vec<SocketAddr>>;

/// What decides whether a peer's endpoint is written.
#[derive(Debug, Clone, Copy)]
pub struct Endpoints<'a> {
    /// The configured endpoint that each peer was given by this process.
    pub applied: &'a BTreeMap<PublicKey, Endpoint>,
    pub resolved: &'a Resolved,
    pub now: SystemTime,
}

impl Endpoints<'_> {
    /// The addresses of `endpoint`, best first; none while its name is not resolved.
    pub fn addresses<'s>(&'s self, endpoint: &'s Endpoint) -> &'s [SocketAddr] {
        match endpoint {
            Endpoint::Address(address) => std::slice::from_ref(address),
            Endpoint::Name { host, port } => {
                self.resolved.get(&(host.clone(), *port)).map(Vec::as_slice).unwrap_or_default()
            }
        }
    }

    /// The endpoint to write on `peer`, which the device holds as `observed`.
    ///
    /// The device follows a peer that moves, so the configured address is written only if the device has none, if the
    /// configuration changed since it was written, or if a name resolves elsewhere while handshakes fail. After a
    /// restart nothing is known about the past: the device's endpoint stays if a handshake proves it.
    pub fn to_set(&self, peer: &Peer, observed: &PeerState) -> Option<SocketAddr> {
        let configured = peer.endpoint.as_ref()?;
        let current = observed.endpoint;
        let applied = self.applied.get(&peer.public_key);
        // The common case first, before names are looked at: ten thousand peers come through here.
        if let (Endpoint::Address(wanted), Some(current)) = (configured, current)
            && (*wanted == current || applied == Some(configured))
        {
            return None;
        }
        let addresses = self.addresses(configured);
        let wanted = *addresses.first()?;
        let Some(current) = current else { return Some(wanted) };
        if addresses.contains(&current) {
            return None;
        }
        let write = match applied {
            None => !self.handshake_within(observed, HANDSHAKE_FRESH),
            Some(applied) if applied != configured => true,
            Some(_) => !self.handshake_within(observed, HANDSHAKE_OVERDUE),
        };
        write.then_some(wanted)
    }

    /// Whether the newest handshake is younger than `age`. One in the future counts: clocks are set back.
    pub fn handshake_within(&self, observed: &PeerState, age: Duration) -> bool {
        let Some(at) = observed.last_handshake else { return false };
        self.now.duration_since(at).unwrap_or_default() < age
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIGURED: &str = "192.0.2.7:51820";
    const ROAMED: &str = "198.51.100.9:7";

    struct Case {
        configured: &'static str,
        device: Option<&'static str>,
        applied: Option<&'static str>,
        handshake_age: Option<u64>,
    }

    fn check(case: Case, expected: Option<&str>) {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let key = PublicKey::from_bytes([1; 32]);
        let peer = Peer {
            name: "beta".parse().expect("a label"),
            public_key: key,
            preshared_key: None,
            endpoint: Some(case.configured.parse().expect("an endpoint")),
            allowed_ips: Vec::new(),
            persistent_keepalive: None,
        };
        let observed = PeerState {
            endpoint: case.device.map(|text| text.parse().expect("an address")),
            last_handshake: case.handshake_age.map(|age| now - Duration::from_secs(age)),
            ..PeerState::default()
        };
        let applied = case.applied.map(|text| (key, text.parse().expect("an endpoint"))).into_iter().collect();
        let named = ["192.0.2.7:51820", "192.0.2.8:51820"].map(|text| text.parse().expect("an address"));
        let resolved = BTreeMap::from([(("vpn.example.org".to_owned(), 51820), named.to_vec())]);
        let endpoints = Endpoints { applied: &applied, resolved: &resolved, now };
        assert_eq!(endpoints.to_set(&peer, &observed), expected.map(|text| text.parse().expect("an address")));
    }

    const NAMED: &str = "vpn.example.org:51820";

    #[test]
    fn a_device_without_an_endpoint_gets_the_configured_one() {
        check(Case { configured: CONFIGURED, device: None, applied: None, handshake_age: None }, Some(CONFIGURED));
        let applied = Some(CONFIGURED);
        check(Case { configured: CONFIGURED, device: None, applied, handshake_age: None }, Some(CONFIGURED));
    }

    #[test]
    fn a_roamed_endpoint_is_kept_while_the_configuration_stays() {
        for handshake_age in [None, Some(10), Some(86_400)] {
            let applied = Some(CONFIGURED);
            check(Case { configured: CONFIGURED, device: Some(ROAMED), applied, handshake_age }, None);
        }
    }

    #[test]
    fn a_changed_configuration_is_written() {
        let applied = Some("203.0.113.1:1");
        let case = Case { configured: CONFIGURED, device: Some(ROAMED), applied, handshake_age: Some(1) };
        check(case, Some(CONFIGURED));
    }

    #[test]
    fn after_a_restart_a_fresh_handshake_proves_the_roamed_endpoint() {
        let case = |age| Case { configured: CONFIGURED, device: Some(ROAMED), applied: None, handshake_age: age };
        check(case(Some(179)), None);
        check(case(Some(181)), Some(CONFIGURED));
        check(case(None), Some(CONFIGURED));
    }

    #[test]
    fn a_name_is_followed_when_handshakes_fail() {
        let case = |age| Case { configured: NAMED, device: Some(ROAMED), applied: Some(NAMED), handshake_age: age };
        check(case(Some(100)), None);
        check(case(Some(136)), Some(CONFIGURED));
    }

    #[test]
    fn any_address_of_a_name_will_do() {
        let device = Some("192.0.2.8:51820");
        check(Case { configured: NAMED, device, applied: None, handshake_age: None }, None);
    }

    #[test]
    fn a_name_that_is_not_resolved_writes_nothing() {
        let case = Case { configured: "gone.example.org:1", device: None, applied: None, handshake_age: None };
        check(case, None);
    }
}
