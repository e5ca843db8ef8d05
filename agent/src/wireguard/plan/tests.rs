use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::SystemTime;

use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;

use super::*;
use crate::model::key::{PresharedKey, PrivateKey};
use crate::model::{Model, Node, Relay};
use crate::wireguard::config::BackendChoice;
use crate::wireguard::settings::Settings;
use crate::wireguard::spec::Resolved;

fn settings() -> Settings {
    Settings {
        instance: "test".parse().expect("a label"),
        link: "weft0".parse().expect("a link name"),
        listen_port: 51820,
        backend: BackendChoice::Auto,
        fwmark: 0,
        private_key: PrivateKey::from_bytes([0x77; 32]),
    }
}

fn key(number: u8) -> PublicKey {
    PublicKey::from_bytes([number; 32])
}

fn prefix(number: u8) -> IpNet {
    format!("10.0.0.{number}/32").parse().expect("a prefix")
}

fn peer(number: u8, prefixes: &[u8]) -> Peer {
    Peer {
        name: format!("peer-{number}").parse().expect("a label"),
        public_key: key(number),
        preshared_key: None,
        endpoint: None,
        allowed_ips: prefixes.iter().map(|number| prefix(*number)).collect(),
        persistent_keepalive: None,
    }
}

fn model(peers: Vec<Peer>) -> Model {
    let node = Node {
        id: "alpha".parse().expect("a label"),
        addresses: Vec::new(),
        public_key: settings().private_key.public(),
    };
    Model::new(node, "weft.internal".to_owned(), peers).expect("a model")
}

/// Without memory of endpoints that were written, as after a restart.
fn plan_for(settings: &Settings, model: &Model, observed: &DeviceState) -> Plan {
    let (applied, resolved) = (BTreeMap::new(), Resolved::new());
    let endpoints = Endpoints { applied: &applied, resolved: &resolved, now: SystemTime::UNIX_EPOCH };
    plan(&DeviceSpec::new(settings, model), observed, &endpoints)
}

fn device_of(model: &Model) -> DeviceState {
    let mut device = DeviceState::default();
    plan_for(&settings(), model, &device).steps.iter().for_each(|step| device.apply(step));
    device
}

/// The changes that lead from one model to another on a device that holds the first.
fn changes(from: Vec<Peer>, to: Vec<Peer>) -> Vec<PeerChange> {
    let steps = plan_for(&settings(), &model(to), &device_of(&model(from))).steps;
    let peers =
        steps.into_iter().map(|step| if let Step::Peers(changes) = step { changes } else { panic!("{step:?}") });
    peers.flatten().collect()
}

#[test]
fn an_empty_device_gets_its_key_first() {
    let steps = plan_for(&settings(), &model(vec![peer(1, &[1])]), &DeviceState::default()).steps;
    assert!(matches!(steps.as_slice(), [Step::PrivateKey(_), Step::ListenPort(51820), Step::Peers(_)]), "{steps:?}");
}

#[test]
fn a_device_as_wanted_needs_nothing() {
    let model = model(vec![peer(1, &[1, 2]), peer(2, &[])]);
    assert_eq!(plan_for(&settings(), &model, &device_of(&model)), Plan::default());
}

#[test]
fn any_port_will_do_when_none_is_asked_for() {
    let model = model(vec![]);
    let settings = Settings { listen_port: 0, ..settings() };
    assert_eq!(plan_for(&settings, &model, &device_of(&model)), Plan::default());
}

#[test]
fn a_prefix_moves_by_one_addition() {
    let changes = changes(vec![peer(1, &[1, 2]), peer(2, &[])], vec![peer(1, &[1]), peer(2, &[2])]);
    assert_eq!(changes, [PeerChange::Set(PeerUpdate { gained: vec![prefix(2)], ..PeerUpdate::new(key(2)) })]);
}

#[test]
fn a_relayed_peer_keeps_its_keys_and_its_prefixes_go_to_the_relay_and_back() {
    let direct = model(vec![peer(1, &[1]), peer(2, &[2]), peer(3, &[3])]);
    let mut relayed = direct.clone();
    let relay =
        |via, name: &str| Relay { via: key(via), name: name.parse().expect("a label"), reason: "a wall".into() };
    relayed.relays = BTreeMap::from([(key(2), relay(1, "peer-1"))]);
    let gains = |number, prefixes: &[u8]| {
        let gained = prefixes.iter().map(|number| prefix(*number)).collect();
        PeerChange::Set(PeerUpdate { gained, ..PeerUpdate::new(key(number)) })
    };
    let steps = |from: &Model, to: &Model| plan_for(&settings(), to, &device_of(from)).steps;
    assert_eq!(steps(&direct, &relayed), [Step::Peers(vec![gains(1, &[2])])]);
    assert_eq!(steps(&relayed, &direct), [Step::Peers(vec![gains(2, &[2])])]);
    assert_eq!(steps(&relayed, &relayed), []);
    let mut by_another = direct.clone();
    by_another.relays = BTreeMap::from([(key(2), relay(3, "peer-3"))]);
    assert_eq!(steps(&relayed, &by_another), [Step::Peers(vec![gains(3, &[2])])]);
    let rerouted: Vec<PublicKey> = by_another.rerouted_since(&relayed).into_iter().collect();
    assert_eq!(rerouted, [key(1), key(2), key(3)]);
    by_another.relays = BTreeMap::from([(key(2), relay(9, "gone"))]);
    assert_eq!(steps(&direct, &by_another), [], "a relay that is not known carries nothing");
}

#[test]
fn two_peers_swap_prefixes_by_two_additions() {
    let changes = changes(vec![peer(1, &[1]), peer(2, &[2])], vec![peer(1, &[2]), peer(2, &[1])]);
    assert_eq!(changes.len(), 2, "{changes:?}");
}

#[test]
fn a_prefix_nobody_gets_goes_with_a_peer_made_for_that_and_no_other_prefix_is_written() {
    let changes = changes(vec![peer(1, &[1, 2]), peer(2, &[3])], vec![peer(1, &[1]), peer(2, &[3])]);
    let [PeerChange::Set(taker), PeerChange::Remove(gone)] = changes.as_slice() else { panic!("{changes:?}") };
    assert_eq!((&taker.gained, taker.public_key), (&vec![prefix(2)], *gone));
    assert!(![key(1), key(2), settings().private_key.public()].contains(gone));
}

#[test]
fn a_removed_peer_goes_after_its_prefix_has_moved() {
    let changes = changes(vec![peer(1, &[1])], vec![peer(2, &[1])]);
    assert!(matches!(changes.as_slice(), [PeerChange::Set(_), PeerChange::Remove(gone)] if *gone == key(1)));
}

#[test]
fn every_update_carries_the_preshared_key() {
    let preshared = |keepalive| Peer {
        preshared_key: Some(PresharedKey::from_bytes([5; 32])),
        persistent_keepalive: keepalive,
        ..peer(1, &[1])
    };
    let changes = changes(vec![preshared(None)], vec![preshared(Some(25))]);
    let [PeerChange::Set(update)] = changes.as_slice() else { panic!("{changes:?}") };
    assert_eq!(update.preshared_key, PresharedKeyChange::Set(PresharedKey::from_bytes([5; 32])));
    assert_eq!(update.gained, Vec::<IpNet>::new());
}

#[test]
fn more_prefixes_than_a_message_holds_are_split() {
    let all: Vec<IpNet> = (0..300_u16).map(|n| format!("fd00::{n:x}/128").parse().expect("a prefix")).collect();
    let full = Peer { allowed_ips: all.clone(), ..peer(1, &[]) };
    let added = changes(vec![], vec![full.clone()]);
    assert_eq!(added.len(), 3);
    let taken = changes(vec![full], vec![Peer { allowed_ips: all[200..].to_vec(), ..peer(1, &[]) }]);
    assert_eq!(taken.len(), 3, "two that take, one that goes");
}

#[test]
fn one_changed_peer_costs_the_same_among_many() {
    let many = |keepalive| -> Vec<Peer> {
        let mut peers: Vec<Peer> = (1..=200).map(|n| peer(n, &[n])).collect();
        peers[99].persistent_keepalive = keepalive;
        peers
    };
    let few = |keepalive| vec![Peer { persistent_keepalive: keepalive, ..peer(100, &[100]) }];
    assert_eq!(changes(many(None), many(Some(25))), changes(few(None), few(Some(25))));
}

#[test]
fn thousands_of_peers_come_in_bounded_steps() {
    let peers = (0..6000_u16).map(|n| {
        let mut bytes = [1; 32];
        bytes[..2].copy_from_slice(&n.to_be_bytes());
        Peer {
            name: format!("p{n}").parse().expect("a label"),
            public_key: PublicKey::from_bytes(bytes),
            ..peer(1, &[])
        }
    });
    let steps = plan_for(&settings(), &model(peers.collect()), &device_of(&model(vec![]))).steps;
    assert_eq!(steps.len(), 3);
}

/// A set of peers, as a table from peer to prefixes and other attributes; prefixes are unique by construction.
#[derive(Debug, Clone)]
struct Table {
    owners: BTreeMap<u8, u8>,
    peers: BTreeMap<u8, Attributes>,
}

/// Preshared key, keepalive and port of the endpoint.
type Attributes = (Option<u8>, Option<u16>, Option<u16>);

impl Table {
    fn peers(&self) -> Vec<Peer> {
        let one = |(number, (preshared, keepalive, port)): (&u8, &Attributes)| {
            let owned = self.owners.iter().filter(|(_, owner)| *owner == number);
            let prefixes: Vec<u8> = owned.map(|(prefix, _)| *prefix).collect();
            Peer {
                preshared_key: preshared.map(|byte| PresharedKey::from_bytes([byte; 32])),
                persistent_keepalive: *keepalive,
                endpoint: port.map(|port| format!("192.0.2.1:{port}").parse().expect("an endpoint")),
                ..peer(*number, &prefixes)
            }
        };
        self.peers.iter().map(one).collect()
    }

    fn device(&self) -> DeviceState {
        let mut device = device_of(&model(self.peers()));
        for key in self.peers.keys().map(|number| key(*number)) {
            device.peer_mut(&key).expect("just put in").rx_bytes = 1_000;
        }
        device
    }
}

fn table() -> impl Strategy<Value = Table> {
    let attributes = (proptest::option::of(1_u8..4), proptest::option::of(1_u16..4), proptest::option::of(1_u16..4));
    let owners = btree_map(1_u8..20, 1_u8..8, 0..16);
    (owners, btree_map(1_u8..8, attributes, 0..7)).prop_map(|(owners, peers)| Table { owners, peers })
}

fn owners(device: &DeviceState) -> HashMap<IpNet, PublicKey> {
    let mut owners = HashMap::new();
    for (key, peer) in device.peers() {
        for prefix in &peer.allowed_ips {
            assert_eq!(owners.insert(*prefix, *key), None, "{prefix} has two owners");
        }
    }
    owners
}

/// Every change as a step of its own: the finest order in which the device may be seen.
fn single_steps(plan: Plan) -> Vec<Step> {
    let singles = plan.steps.into_iter().flat_map(|step| match step {
        Step::Peers(changes) => changes.into_iter().map(|change| Step::Peers(vec![change])).collect(),
        step @ (Step::PrivateKey(_) | Step::Fwmark(_) | Step::ListenPort(_)) => vec![step],
    });
    singles.collect()
}

proptest! {
    #[test]
    fn apply_then_observe_gives_an_empty_plan(from in table(), to in table()) {
        let mut device = from.device();
        let wanted = model(to.peers());
        for step in plan_for(&settings(), &wanted, &device).steps {
            device.apply(&step);
        }
        prop_assert_eq!(plan_for(&settings(), &wanted, &device), Plan::default());
        let names: BTreeSet<PublicKey> = wanted.peers().map(|peer| peer.public_key).collect();
        prop_assert_eq!(device.peers().keys().copied().collect::<BTreeSet<_>>(), names);
    }

    #[test]
    fn a_wanted_prefix_is_never_without_owner_and_never_with_a_third(from in table(), to in table()) {
        let mut device = from.device();
        let wanted = model(to.peers());
        let before = owners(&device);
        let after = owners(&device_of(&wanted));
        for step in single_steps(plan_for(&settings(), &wanted, &device)) {
            device.apply(&step);
            let now = owners(&device);
            for (prefix, old) in before.iter().filter(|(prefix, _)| after.contains_key(prefix)) {
                let owner = now.get(prefix);
                prop_assert!(owner == Some(old) || owner == after.get(prefix), "{} is lost at {:?}", prefix, step);
            }
        }
    }

    #[test]
    fn planning_only_what_changed_is_planning_everything(from in table(), to in table()) {
        let (older, wanted, device) = (model(from.peers()), model(to.peers()), from.device());
        let (settings, applied, resolved) = (settings(), BTreeMap::new(), BTreeMap::new());
        let endpoints = Endpoints { applied: &applied, resolved: &resolved, now: SystemTime::UNIX_EPOCH };
        let spec = DeviceSpec::new(&settings, &wanted);
        let changed = wanted.changes_since(&older);
        let keys = changed.iter().map(|change| &change.key);
        prop_assert_eq!(plan_peers(&spec, &device, &endpoints, keys), plan(&spec, &device, &endpoints));
    }

    #[test]
    fn a_peer_that_stays_keeps_its_counters(from in table(), to in table()) {
        let mut device = from.device();
        let wanted = model(to.peers());
        for step in plan_for(&settings(), &wanted, &device).steps {
            device.apply(&step);
        }
        for number in from.peers.keys().filter(|number| to.peers.contains_key(number)) {
            prop_assert_eq!(device.peers()[&key(*number)].rx_bytes, 1_000);
        }
    }

    #[test]
    fn a_step_names_only_peers_that_differ(from in table(), changed in vec(1_u8..8, 0..2)) {
        let mut to = from.clone();
        for number in &changed {
            if let Some(attributes) = to.peers.get_mut(number) {
                attributes.1 = Some(attributes.1.unwrap_or(0) + 1);
            }
        }
        let touched = changes(from.peers(), to.peers());
        let differing: BTreeSet<u8> = changed.into_iter().filter(|number| from.peers.contains_key(number)).collect();
        prop_assert_eq!(touched.len(), differing.len());
    }

    #[test]
    fn prefixes_may_be_any_set(prefixes in btree_set(1_u8..255, 0..200)) {
        let wanted = model(vec![peer(255, &prefixes.iter().copied().collect::<Vec<_>>())]);
        let device = device_of(&wanted);
        prop_assert_eq!(device.peers()[&key(255)].allowed_ips.len(), prefixes.len());
    }
}
