use std::time::{Duration, SystemTime};

use crate::foundation::id::LinkName;
use crate::foundation::lifecycle::{Readiness, Shutdown};
use crate::foundation::metrics::Metrics;
use crate::model::key::{PrivateKey, PublicKey};
use crate::model::{Backend, Node, Relay};
use crate::wireguard::config::BackendChoice;
use crate::wireguard::device::{PeerChange, PeerState};
use crate::wireguard::platform::LinkKind;
use crate::wireguard::platform::fake::Fake;
use crate::wireguard::{DownError, Handle, Removed, down_on, start_on};

use super::*;

const DEADLINE: Duration = Duration::from_secs(3600);

struct World {
    host: Arc<Fake>,
    settings: watch::Sender<Arc<Settings>>,
    model: watch::Sender<Arc<Model>>,
}

impl World {
    fn new(peers: Vec<Peer>) -> Self {
        let settings = Settings {
            instance: "test".parse().expect("a label"),
            link: weft0(),
            listen_port: 51820,
            backend: BackendChoice::Auto,
            fwmark: 0,
            private_key: PrivateKey::from_bytes([0x77; 32]),
        };
        Self {
            host: Arc::default(),
            settings: watch::Sender::new(Arc::new(settings)),
            model: watch::Sender::new(Arc::new(model(peers))),
        }
    }

    fn start(&self) -> Agent {
        let shutdown = Shutdown::default();
        let (readiness, metrics) = (Readiness::default(), Metrics::default());
        let blocker = readiness.block("wireguard");
        let platform = Arc::clone(&self.host);
        let inputs = (self.settings.subscribe(), self.model.subscribe());
        let handle = start_on(platform, inputs.0, inputs.1, &metrics, blocker, shutdown.stop());
        Agent { handle, readiness, metrics, _shutdown: shutdown }
    }

    fn change_settings(&self, change: impl FnOnce(&mut Settings)) {
        let mut settings = Settings::clone(&self.settings.borrow());
        change(&mut settings);
        self.settings.send_replace(Arc::new(settings));
    }

    fn change_peers(&self, peers: Vec<Peer>) {
        self.model.send_replace(Arc::new(model(peers)));
    }

    fn device(&self) -> DeviceState {
        self.host.host().links[&weft0()].device.clone()
    }

    fn peer(&self, number: u8) -> PeerState {
        self.device().peers()[&key(number)].clone()
    }

    /// Puts what happened to a peer by itself: it moved and shook hands.
    fn roam(&self, number: u8, endpoint: &str, handshake_age: u64) {
        let mut host = self.host.host();
        let now = host.now;
        let link = host.links.get_mut(&weft0()).expect("the link is there");
        let peer = link.device.peer_mut(&key(number)).expect("the peer is there");
        peer.endpoint = Some(endpoint.parse().expect("an address"));
        peer.last_handshake = Some(now - Duration::from_secs(handshake_age));
        (peer.rx_bytes, peer.tx_bytes) = (1_000, 2_000);
    }

    fn writes(&self) -> usize {
        self.host.host().writes
    }
}

struct Agent {
    handle: Handle,
    readiness: Readiness,
    metrics: Metrics,
    _shutdown: Shutdown,
}

impl Agent {
    async fn until(&self, what: &str, condition: impl FnMut(&Arc<Status>) -> bool) -> Arc<Status> {
        let mut status = self.handle.status();
        let waited = tokio::time::timeout(DEADLINE, status.wait_for(condition)).await;
        Arc::clone(&waited.unwrap_or_else(|_| panic!("never: {what}")).expect("the reconciler runs"))
    }

    async fn up(&self) -> Arc<Status> {
        self.until("up", |status| status.link.is_some() && status.errors.is_empty()).await
    }

    async fn error(&self, part: &str) -> String {
        let status = self.until(part, |status| status.errors.iter().any(|error| error.contains(part))).await;
        status.errors.join("\n")
    }

    /// Waits for one more read of the device, and then for the end of that pass.
    async fn resync(&self, world: &World) {
        let before = world.host.host().observations;
        self.handle.trigger().fire();
        let deadline = tokio::time::Instant::now() + DEADLINE;
        while world.host.host().observations == before {
            assert!(tokio::time::Instant::now() < deadline, "no pass came");
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        tokio::task::yield_now().await;
    }
}

fn weft0() -> LinkName {
    "weft0".parse().expect("a link name")
}

fn key(number: u8) -> PublicKey {
    PublicKey::from_bytes([number; 32])
}

fn peer(number: u8) -> Peer {
    Peer {
        name: format!("peer-{number}").parse().expect("a label"),
        public_key: key(number),
        preshared_key: None,
        endpoint: Some(format!("192.0.2.{number}:51820").parse().expect("an endpoint")),
        allowed_ips: vec![format!("10.0.0.{number}/32").parse().expect("a prefix")],
        persistent_keepalive: None,
    }
}

fn model(peers: Vec<Peer>) -> Model {
    let public_key = PrivateKey::from_bytes([0x77; 32]).public();
    let node = Node { id: "alpha".parse().expect("a label"), addresses: Vec::new(), public_key };
    Model::new(node, "weft.internal".to_owned(), peers).expect("a model")
}

#[tokio::test(start_paused = true)]
async fn the_link_is_published_when_it_holds_its_peers_and_readiness_follows() {
    let world = World::new(vec![peer(1), peer(2)]);
    let agent = world.start();
    let mut link = agent.handle.link();
    let published = link.wait_for(Option::is_some).await.expect("the reconciler runs").clone().expect("a link");
    assert_eq!((published.name, published.backend), (weft0(), Backend::Kernel));
    assert_eq!(world.device().peers().len(), 2);
    agent.readiness.ready().await;
    let status = agent.up().await;
    assert_eq!((status.peers, status.listen_port, &status.fallback_reason), (2, Some(51820), &None));
    assert_eq!(world.host.host().links[&weft0()].found.alias.as_deref(), Some("weft:test"));
}

#[tokio::test(start_paused = true)]
async fn a_restart_adopts_the_link_without_a_write() {
    let world = World::new(vec![peer(1), peer(2)]);
    drop({
        let agent = world.start();
        agent.up().await;
        agent
    });
    world.roam(1, "198.51.100.9:7", 60);
    let (before, writes) = (world.device(), world.writes());
    let agent = world.start();
    let status = agent.up().await;
    assert_eq!((world.writes(), status.applied_steps), (writes, 0));
    assert_eq!(world.device(), before);
}

#[tokio::test(start_paused = true)]
async fn a_resync_without_change_writes_nothing() {
    let world = World::new(vec![peer(1)]);
    let agent = world.start();
    agent.up().await;
    let writes = world.writes();
    agent.resync(&world).await;
    assert_eq!(world.writes(), writes);
}

#[tokio::test(start_paused = true)]
async fn a_deleted_link_comes_back() {
    let world = World::new(vec![peer(1)]);
    let agent = world.start();
    agent.up().await;
    let old = agent.handle.link().borrow().clone().expect("published");
    world.host.host().links.remove(&weft0());
    agent.handle.trigger().fire();
    let mut link = agent.handle.link();
    link.wait_for(|link| link.as_ref().is_some_and(|link| link.index != old.index)).await.expect("it runs");
    assert_eq!(world.device().peers().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_peer_removed_by_another_tool_comes_back_whole() {
    let world = World::new(vec![peer(1), peer(2)]);
    let agent = world.start();
    agent.up().await;
    let wanted = world.peer(1);
    let removal = Step::Peers(vec![PeerChange::Remove(key(1))]);
    world.host.host().links.get_mut(&weft0()).expect("there").device.apply(&removal);
    agent.resync(&world).await;
    assert_eq!(world.peer(1), wanted);
}

#[tokio::test(start_paused = true)]
async fn a_changed_peer_is_one_write_without_reading_the_device() {
    let world = World::new(vec![peer(1), peer(2)]);
    let agent = world.start();
    agent.up().await;
    let (writes, observations) = (world.writes(), world.host.host().observations);
    world.change_peers(vec![peer(1), Peer { persistent_keepalive: Some(25), ..peer(2) }]);
    agent.until("applied", |status| status.applied_steps == 1).await;
    assert_eq!(world.peer(2).persistent_keepalive, 25);
    assert_eq!((world.writes(), world.host.host().observations), (writes + 1, observations));
}

#[tokio::test(start_paused = true)]
async fn a_new_peer_is_sent_a_first_message_and_one_that_was_there_is_not() {
    let world = World::new(vec![peer(1), peer(2)]);
    let agent = world.start();
    agent.up().await;
    assert_eq!(first_messages(&agent).await, "0", "a start sends none");
    let writes = world.writes();
    let kept = Peer { persistent_keepalive: Some(25), ..peer(2) };
    world.change_peers(vec![peer(1), kept, peer(3)]);
    agent.until("applied", |status| status.applied_steps == 1 && status.peers == 3).await;
    assert_eq!(first_messages(&agent).await, "1");
    assert_eq!(world.writes(), writes + 2, "the peers, then the message");
    assert_eq!(world.peer(3).persistent_keepalive, 0, "it is left as it is wanted");
    let again = Peer { endpoint: Some("203.0.113.5:1".parse().expect("an endpoint")), ..peer(1) };
    world.change_peers(vec![again, peer(2), peer(3)]);
    agent.until("moved", |_| world.peer(1).endpoint == "203.0.113.5:1".parse().ok()).await;
    agent.resync(&world).await;
    assert_eq!(first_messages(&agent).await, "2");
}

async fn first_messages(agent: &Agent) -> String {
    let text = agent.metrics.scrape().await.expect("it formats");
    let line = text.lines().find_map(|line| line.strip_prefix("weft_wireguard_first_messages_total "));
    line.expect("it is counted").to_owned()
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_is_chosen_is_written_at_once() {
    let world = World::new(vec![peer(1), peer(2)]);
    let agent = world.start();
    agent.up().await;
    let mut relayed = model(vec![peer(1), peer(2)]).sharing(&world.model.borrow());
    let relay = Relay { via: key(1), name: "peer-1".parse().expect("a label"), reason: "a wall".to_owned() };
    relayed.relays = BTreeMap::from([(key(2), relay)]);
    let observations = world.host.host().observations;
    world.model.send_replace(Arc::new(relayed));
    agent.until("applied", |status| status.applied_steps == 1).await;
    assert_eq!((world.peer(1).allowed_ips.len(), world.peer(2).allowed_ips.len()), (2, 0));
    assert_eq!(world.host.host().observations, observations, "known without a look");
}

#[tokio::test(start_paused = true)]
async fn a_roamed_endpoint_stays_until_the_configuration_changes() {
    let world = World::new(vec![peer(1)]);
    let agent = world.start();
    agent.up().await;
    world.roam(1, "198.51.100.9:7", 100_000);
    agent.resync(&world).await;
    assert_eq!(world.peer(1).endpoint, Some("198.51.100.9:7".parse().expect("an address")));
    world.change_peers(vec![Peer { endpoint: Some("203.0.113.5:1".parse().expect("an endpoint")), ..peer(1) }]);
    agent.until("written", |status| status.applied_steps == 1).await;
    assert_eq!(world.peer(1).endpoint, Some("203.0.113.5:1".parse().expect("an address")));
    assert_eq!(world.peer(1).rx_bytes, 1_000, "the session and its counters stay");
}

#[tokio::test(start_paused = true)]
async fn key_port_and_mark_change_on_the_running_link() {
    let world = World::new(vec![peer(1)]);
    let agent = world.start();
    agent.up().await;
    let index = world.host.host().links[&weft0()].found.index;
    let new_key = PrivateKey::from_bytes([0x55; 32]);
    world.change_settings(|settings| {
        settings.private_key = new_key.clone();
        settings.listen_port = 51999;
        settings.fwmark = 7;
    });
    agent.until("applied", |status| status.listen_port == Some(51999)).await;
    let device = world.device();
    assert_eq!((device.private_key, device.listen_port, device.fwmark), (Some(new_key), 51999, 7));
    assert_eq!(world.host.host().links[&weft0()].found.index, index);
}

#[tokio::test(start_paused = true)]
async fn a_foreign_link_is_named_and_left_alone() {
    for (kind, alias, part) in [
        (LinkKind::Other("veth".to_owned()), None, "exists and is a veth"),
        (LinkKind::Kernel, None, "another private key"),
        (LinkKind::Kernel, Some("weft:other"), "weft:other"),
        (LinkKind::OtherProcess, None, "second instance"),
    ] {
        let world = World::new(vec![peer(1)]);
        let other_key = Some(PrivateKey::from_bytes([1; 32]));
        world.host.host().add_link(&weft0(), kind, alias).device.private_key = other_key;
        let before = world.device();
        let agent = world.start();
        let error = agent.error(part).await;
        assert!(error.contains("wireguard.link"), "{error}");
        assert_eq!((world.writes(), world.device()), (0, before));
        assert_eq!(agent.readiness.pending(), ["wireguard"]);
        assert!(agent.handle.link().borrow().is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_link_with_our_key_or_left_half_made_is_adopted() {
    for private_key in [None, Some(PrivateKey::from_bytes([0x77; 32]))] {
        let world = World::new(vec![peer(1)]);
        world.host.host().add_link(&weft0(), LinkKind::Kernel, None).device.private_key = private_key;
        let agent = world.start();
        agent.up().await;
        let host = world.host.host();
        assert_eq!(host.links[&weft0()].found.alias.as_deref(), Some("weft:test"));
    }
}

#[tokio::test(start_paused = true)]
async fn without_kernel_wireguard_the_embedded_device_is_announced() {
    let world = World::new(vec![peer(1)]);
    world.host.host().kernel_support = false;
    let agent = world.start();
    let status = agent.up().await;
    assert_eq!(status.link.as_ref().map(|link| link.backend), Some(Backend::Userspace));
    assert!(status.fallback_reason.as_ref().is_some_and(|reason| reason.contains("kernel has no WireGuard")));
}

#[tokio::test(start_paused = true)]
async fn a_failed_device_is_started_anew_with_its_peers() {
    let world = World::new(vec![peer(1)]);
    world.host.host().kernel_support = false;
    let agent = world.start();
    agent.up().await;
    let old = agent.handle.link().borrow().clone().expect("published");
    world.host.fail_device(&weft0());
    let mut link = agent.handle.link();
    let renewed = link.wait_for(|link| link.as_ref().is_some_and(|link| link.index != old.index));
    // Well before the next resync, which would see it too.
    tokio::time::timeout(Duration::from_secs(1), renewed).await.expect("at once").expect("it runs");
    assert_eq!(world.device().peers().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn kernel_asked_for_and_absent_is_an_error_with_the_fix() {
    let world = World::new(vec![]);
    world.host.host().kernel_support = false;
    world.change_settings(|settings| settings.backend = BackendChoice::Kernel);
    let error = world.start().error("this kernel has no WireGuard").await;
    assert!(error.contains("modprobe wireguard") && error.contains("\"userspace\""), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_kernel_link_is_not_replaced_by_the_embedded_device() {
    let world = World::new(vec![peer(1)]);
    let agent = world.start();
    agent.up().await;
    world.change_settings(|settings| settings.backend = BackendChoice::Userspace);
    assert!(agent.error("weft down").await.contains("weft0"));
    assert_eq!(world.device().peers().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_port_in_use_leaves_no_link_and_recovers() {
    let world = World::new(vec![peer(1)]);
    world.host.host().ports_in_use.push(51820);
    let agent = world.start();
    let error = agent.error("UDP port 51820 is in use").await;
    assert!(error.contains("wireguard.listen_port"), "{error}");
    assert!(world.host.host().links.is_empty());
    world.host.host().ports_in_use.clear();
    agent.up().await;
}

#[tokio::test(start_paused = true)]
async fn a_taken_port_does_not_keep_new_peers_out() {
    let world = World::new(vec![peer(1)]);
    let agent = world.start();
    agent.up().await;
    world.host.host().ports_in_use.push(51999);
    world.change_settings(|settings| settings.listen_port = 51999);
    agent.error("51999").await;
    world.change_peers(vec![peer(1), peer(2)]);
    agent.until("two peers", |status| status.peers == 2).await;
    assert_eq!(world.device().listen_port, 51820);
}

fn named(host: &str) -> Peer {
    Peer { endpoint: Some(format!("{host}:51820").parse().expect("an endpoint")), ..peer(1) }
}

#[tokio::test(start_paused = true)]
async fn a_name_is_resolved_beside_the_passes_and_its_failure_is_named() {
    let world = World::new(vec![named("vpn.example.org"), peer(2)]);
    let agent = world.start();
    let error = agent.error("vpn.example.org:51820").await;
    assert!(error.contains("peer peer-1") && error.contains("no such name"), "{error}");
    assert_eq!(world.device().peers().len(), 2, "the other peer did not wait");
    agent.readiness.ready().await;
    let address = "192.0.2.77:0".parse().expect("an address");
    world.host.host().names.insert("vpn.example.org".to_owned(), vec![address]);
    agent.up().await;
    assert_eq!(world.peer(1).endpoint, Some("192.0.2.77:51820".parse().expect("an address")));
}

#[tokio::test(start_paused = true)]
async fn a_name_is_resolved_again_when_handshakes_fail() {
    let world = World::new(vec![named("vpn.example.org")]);
    let resolves_to = |text: &str| {
        let address = text.parse().expect("an address");
        world.host.host().names.insert("vpn.example.org".to_owned(), vec![address]);
    };
    resolves_to("192.0.2.77:0");
    let agent = world.start();
    agent.until("resolved", |_| world.host.host().links.contains_key(&weft0())).await;
    agent.handle.trigger().fire();
    let deadline = tokio::time::Instant::now() + DEADLINE;
    resolves_to("192.0.2.78:0");
    let moved = Some("192.0.2.78:51820".parse().expect("an address"));
    let mut status = agent.handle.status();
    while world.peer(1).endpoint != moved {
        tokio::time::timeout_at(deadline, status.changed()).await.expect("in time").expect("it runs");
    }
}

#[tokio::test(start_paused = true)]
async fn figures_and_metrics_show_what_the_device_counts() {
    let world = World::new(vec![peer(1)]);
    let agent = world.start();
    agent.up().await;
    world.roam(1, "198.51.100.9:7", 10);
    let figures = agent.handle.figures().await.expect("there is a device");
    assert_eq!((figures[0].rx_bytes, figures[0].tx_bytes), (1_000, 2_000));
    assert!(figures[0].last_handshake.is_some_and(|at| at > SystemTime::UNIX_EPOCH));
    let text = agent.metrics.scrape().await.expect("it formats");
    let id = key(1);
    for line in [
        format!("weft_wireguard_peer_bytes_total{{peer=\"peer-1\",peer_id=\"{id}\",direction=\"rx\"}} 1000"),
        format!("weft_wireguard_peer_last_handshake_timestamp_seconds{{peer=\"peer-1\",peer_id=\"{id}\"}} 999999990"),
        "weft_wireguard_info{backend=\"kernel\",link=\"weft0\"} 1".to_owned(),
        "weft_wireguard_listen_port 51820".to_owned(),
        "weft_wireguard_reconcile_passes_total 1".to_owned(),
    ] {
        assert!(text.contains(&line), "{line} is not in\n{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn down_deletes_our_link_once_and_nothing_else() {
    let world = World::new(vec![peer(1)]);
    let agent = world.start();
    agent.up().await;
    drop(agent);
    let other: LinkName = "wg0".parse().expect("a link name");
    world.host.host().add_link(&other, LinkKind::Kernel, None);
    let settings = Settings::clone(&world.settings.borrow());
    let down = || down_on(Arc::clone(&world.host), &settings);
    assert_eq!(down().await.expect("deleted"), Removed { link: Some(weft0()) });
    assert_eq!(down().await.expect("nothing to do"), Removed { link: None });
    assert_eq!(world.host.host().links.keys().collect::<Vec<_>>(), [&other]);
    let foreign = Settings { link: other.clone(), ..settings.clone() };
    world.host.host().links.get_mut(&other).expect("there").device.private_key = Some(PrivateKey::from_bytes([1; 32]));
    let refused = down_on(Arc::clone(&world.host), &foreign).await;
    assert!(matches!(refused, Err(DownError::NotOurs(_))), "{refused:?}");
    assert!(world.host.host().links.contains_key(&other));
}

#[tokio::test(start_paused = true)]
async fn stopping_leaves_the_kernel_link() {
    let world = World::new(vec![peer(1)]);
    let agent = world.start();
    agent.up().await;
    let before = world.device();
    drop(agent);
    tokio::task::yield_now().await;
    assert_eq!(world.device(), before);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_another_tool_removes_is_back_within_a_second() {
    let world = World::new(vec![peer(1), peer(2)]);
    let agent = world.start();
    agent.up().await;
    let removal = Step::Peers(vec![PeerChange::Remove(key(1))]);
    world.host.host().links.get_mut(&weft0()).expect("the link is there").device.apply(&removal);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.peer(1).endpoint, Some("192.0.2.1:51820".parse().expect("an address")));
}

#[tokio::test(start_paused = true)]
async fn a_changed_peer_is_written_without_reading_the_device() {
    let world = World::new(vec![peer(1), peer(2)]);
    let agent = world.start();
    agent.up().await;
    let before = world.host.host().observations;
    let newer = world.model.borrow().with([crate::model::Edit::Set(Peer { persistent_keepalive: Some(7), ..peer(1) })]);
    world.model.send_replace(Arc::new(newer.expect("a model")));
    let changed = async {
        while world.peer(1).persistent_keepalive != 7 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_millis(500), changed).await.expect("it is written");
    assert_eq!(world.host.host().observations, before);
}
