//! The planner as a pure function, its properties over a faithful fake, and the pass over that fake.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use proptest::prelude::*;
use tokio::sync::watch;

use super::config::{Config, Settings};
use super::plan::{Connected, Observed, Owner, Path, Plan, Refusal, Step, plan};
use super::platform::fake::{FakePlatform, Host};
use super::spec::{METRIC, Route, TABLE_MAIN};
use super::*;
use crate::foundation::lifecycle::Shutdown;
use crate::model::key::PublicKey;
use crate::model::peer::Peer;
use crate::model::{Backend, Node};

pub(super) use super::spec::wanted;

pub(super) fn settings() -> Settings {
    Config::default().validate(0).expect("the defaults are valid")
}

pub(super) fn link() -> Link {
    Link { name: "weft0".parse().expect("a name"), index: 7, backend: Backend::Kernel }
}

pub(super) fn peer(name: &str, key: u8, endpoint: Option<&str>, allowed: &[&str]) -> Peer {
    Peer {
        name: name.parse().expect("a label"),
        public_key: PublicKey::from_bytes([key; 32]),
        preshared_key: None,
        endpoint: endpoint.map(|text| text.parse().expect("an endpoint")),
        allowed_ips: allowed.iter().map(|text| net(text)).collect(),
        persistent_keepalive: None,
    }
}

pub(super) fn model(addresses: &[&str], peers: Vec<Peer>) -> Model {
    let node = Node {
        id: "alpha".parse().expect("a label"),
        addresses: addresses.iter().map(|text| net(text)).collect(),
        public_key: PublicKey::from_bytes([0xaa; 32]),
    };
    Model::new(node, "weft.internal".to_owned(), peers).expect("a consistent model")
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a network")
}

fn route(network: &str) -> Route {
    Route { network: net(network), table: TABLE_MAIN, metric: METRIC }
}

fn path(network: &str, index: u32, mtu: u32) -> Path {
    Path { network: net(network), table: TABLE_MAIN, links: vec![index], mtu }
}

fn connected(network: &str) -> Connected {
    Connected { network: net(network), link: "eth0".to_owned(), index: 2 }
}

/// A link that is up, with the way to one peer over Ethernet.
fn up() -> Observed {
    let paths = BTreeMap::from([(IpAddr::from([192, 0, 2, 7]), path("0.0.0.0/0", 2, 1500))]);
    Observed { index: 7, up: true, mtu: 1440, paths, ..Observed::default() }
}

fn beta(allowed: &[&str]) -> Peer {
    peer("beta", 1, Some("192.0.2.7:51820"), allowed)
}

fn plan_for(addresses: &[&str], allowed: &[&str], observed: &Observed) -> Plan {
    plan(&wanted(&settings(), &model(addresses, vec![beta(allowed)])), observed)
}

fn only_refusal(plan: &Plan) -> &Refusal {
    let [refusal] = plan.refusals.as_slice() else { panic!("one refusal: {plan:?}") };
    refusal
}

#[test]
fn a_fresh_link_gets_mtu_then_up_then_addresses_then_routes() {
    let observed = Observed { up: false, mtu: 1420, ..up() };
    let steps = plan_for(&["10.80.0.1/24"], &["10.80.0.2/32", "10.99.0.0/16"], &observed).steps;
    let expected =
        [Step::SetMtu(1440), Step::SetUp, Step::AddAddress(net("10.80.0.1/24")), Step::AddRoute(route("10.99.0.0/16"))];
    assert_eq!(steps, expected);
}

#[test]
fn what_is_no_longer_wanted_goes_after_what_is_new() {
    let mut observed = up();
    observed.addresses.insert(net("10.70.0.1/24"), Owner::Ours);
    observed.routes.insert(route("10.98.0.0/16"));
    let steps = plan_for(&["10.80.0.1/24"], &["10.99.0.0/16"], &observed).steps;
    let expected = [
        Step::AddAddress(net("10.80.0.1/24")),
        Step::AddRoute(route("10.99.0.0/16")),
        Step::RemoveRoute(route("10.98.0.0/16")),
        Step::RemoveAddress(net("10.70.0.1/24")),
    ];
    assert_eq!(steps, expected);
}

#[test]
fn an_ipv6_address_with_another_length_makes_room_first() {
    let mut observed = up();
    observed.addresses.insert(net("fd80::1/64"), Owner::Ours);
    let steps = plan_for(&["fd80::1/48"], &[], &observed).steps;
    assert_eq!(steps, [Step::RemoveAddress(net("fd80::1/64")), Step::AddAddress(net("fd80::1/48"))]);
}

#[test]
fn an_ipv4_address_of_the_same_network_goes_before_the_new_one_that_it_would_take_with_it() {
    let mut observed = up();
    observed.addresses.insert(net("10.80.0.1/16"), Owner::Ours);
    let steps = plan_for(&["10.80.0.3/16"], &[], &observed).steps;
    assert_eq!(steps, [Step::RemoveAddress(net("10.80.0.1/16")), Step::AddAddress(net("10.80.0.3/16"))]);
}

#[test]
fn a_foreign_address_on_our_link_stays() {
    let mut observed = up();
    observed.addresses.insert(net("172.20.0.1/24"), Owner::Foreign);
    observed.addresses.insert(net("10.80.0.1/24"), Owner::Foreign);
    assert_eq!(plan_for(&["10.80.0.1/24"], &[], &observed), Plan::default());
}

#[test]
fn a_route_in_a_table_that_is_no_longer_configured_is_removed() {
    let mut observed = up();
    let old = Route { table: 51_820, ..route("10.99.0.0/16") };
    observed.routes.extend([route("10.99.0.0/16"), old]);
    assert_eq!(plan_for(&[], &["10.99.0.0/16"], &observed).steps, [Step::RemoveRoute(old)]);
}

#[test]
fn routes_off_leaves_none() {
    let settings = Settings { routes: false, ..settings() };
    let wanted = wanted(&settings, &model(&[], vec![beta(&["10.99.0.0/16"])]));
    assert!(wanted.routes.is_empty());
}

#[test]
fn a_default_route_needs_a_table_of_its_own() {
    let model = model(&["10.80.0.1/24"], vec![beta(&["0.0.0.0/0"])]);
    let plan_in_main = plan(&wanted(&settings(), &model), &up());
    assert!(plan_in_main.steps.iter().all(|step| !matches!(step, Step::AddRoute(_))));
    let text = only_refusal(&plan_in_main).to_string();
    assert!(text.contains("0.0.0.0/0") && text.contains("network.table"), "{text}");
    let own_table = Settings { table: 51_820, fwmark: 51_820, ..settings() };
    let plan_in_own = plan(&wanted(&own_table, &model), &up());
    let default = Route { table: 51_820, ..route("0.0.0.0/0") };
    assert_eq!(plan_in_own.steps, [Step::AddAddress(net("10.80.0.1/24")), Step::AddRoute(default)]);
    assert!(plan_in_own.refusals.is_empty());
}

#[test]
fn a_route_inside_the_network_of_another_link_is_refused_and_the_others_are_not() {
    for wanted_network in ["192.168.1.0/24", "192.168.1.128/25"] {
        let observed = Observed { connected: vec![connected("192.168.1.0/24")], ..up() };
        let plan = plan_for(&[], &[wanted_network, "10.99.0.0/16"], &observed);
        assert_eq!(plan.steps, [Step::AddRoute(route("10.99.0.0/16"))]);
        let text = only_refusal(&plan).to_string();
        for part in [wanted_network, "beta", "192.168.1.0/24", "eth0"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}

#[test]
fn a_wider_route_is_installed_and_the_inner_network_is_noticed() {
    let observed = Observed { connected: vec![connected("10.99.3.0/24")], ..up() };
    let model = model(&[], vec![beta(&["10.99.0.0/16"])]);
    let wanted = wanted(&settings(), &model);
    let plan = plan(&wanted, &observed);
    assert_eq!((plan.steps.as_slice(), plan.refusals.len()), ([Step::AddRoute(route("10.99.0.0/16"))].as_slice(), 0));
    let notices = plan::notices(&wanted, &observed);
    assert!(notices.len() == 1 && notices[0].contains("10.99.3.0/24"), "{notices:?}");
}

#[test]
fn an_address_in_the_network_of_another_link_is_refused_but_never_taken_away() {
    let mut observed = Observed { connected: vec![connected("10.80.0.0/16")], ..up() };
    let fresh = plan_for(&["10.80.0.1/24"], &[], &observed);
    assert!(fresh.steps.is_empty());
    let text = only_refusal(&fresh).to_string();
    assert!(text.contains("10.80.0.1/24") && text.contains("eth0"), "{text}");
    observed.addresses.insert(net("10.80.0.1/24"), Owner::Ours);
    let running = plan_for(&["10.80.0.1/24"], &[], &observed);
    assert!(running.steps.is_empty());
    assert!(matches!(only_refusal(&running), Refusal::AddressOverlap { .. }));
}

#[test]
fn a_route_that_holds_an_endpoint_is_refused_before_and_after_it_wins() {
    let refused = |observed: &Observed| {
        let plan = plan_for(&[], &["192.0.2.0/24"], observed);
        assert!(matches!(only_refusal(&plan), Refusal::RouteHoldsEndpoint { .. }), "{plan:?}");
        plan.steps
    };
    assert!(refused(&up()).is_empty());
    let mut looping = up();
    looping.routes.insert(route("192.0.2.0/24"));
    looping.paths.insert([192, 0, 2, 7].into(), path("192.0.2.0/24", 7, 1440));
    assert_eq!(refused(&looping), [Step::RemoveRoute(route("192.0.2.0/24"))]);
}

#[test]
fn a_route_that_a_more_specific_way_to_the_endpoint_beats_is_fine() {
    let mut observed = up();
    observed.paths.insert([192, 0, 2, 7].into(), path("192.0.2.0/28", 2, 1500));
    let plan = plan_for(&[], &["192.0.2.0/24"], &observed);
    assert_eq!((plan.steps, plan.refusals), (vec![Step::AddRoute(route("192.0.2.0/24"))], vec![]));
}

#[test]
fn an_endpoint_that_another_table_sends_into_the_tunnel_is_told() {
    let mut observed = up();
    let default = Path { table: 51_820, ..path("0.0.0.0/0", 7, 1440) };
    observed.paths.insert([192, 0, 2, 7].into(), default);
    let text = only_refusal(&plan_for(&[], &[], &observed)).to_string();
    assert!(text.contains("192.0.2.7") && text.contains("table 51820") && text.contains("fwmark"), "{text}");
}

#[test]
fn the_mtu_follows_the_way_and_stays_during_an_outage() {
    let mut observed = up();
    observed.paths.insert([192, 0, 2, 7].into(), path("0.0.0.0/0", 2, 1400));
    assert_eq!(plan_for(&[], &[], &observed).steps, [Step::SetMtu(1340)]);
    observed.paths.clear();
    assert!(plan_for(&[], &[], &observed).steps.is_empty());
    observed.up = false;
    assert_eq!(plan_for(&[], &[], &observed).steps, [Step::SetMtu(1420), Step::SetUp]);
}

#[test]
fn a_peer_that_may_be_anywhere_counts_the_default_routes() {
    let observed = Observed { default_paths: vec![path("::/0", 2, 1500)], ..up() };
    let roaming = model(&[], vec![beta(&[]), peer("gamma", 2, None, &[])]);
    assert_eq!(plan(&wanted(&settings(), &roaming), &observed).steps, [Step::SetMtu(1420)]);
    assert!(plan_for(&[], &[], &observed).steps.is_empty());
}

#[test]
fn a_configured_mtu_is_taken_as_it_is() {
    let settings = Settings { mtu: Some(1380), ..settings() };
    assert_eq!(plan(&wanted(&settings, &model(&[], vec![beta(&[])])), &up()).steps, [Step::SetMtu(1380)]);
}

fn any_address() -> impl Strategy<Value = IpNet> {
    prop_oneof![
        (0_u8..3, 1_u8..4, prop_oneof![Just(24_u8), Just(16)])
            .prop_map(|(a, b, length)| IpNet::new_assert(IpAddr::from([10, a, 0, b]), length)),
        (0_u16..3, 1_u16..3, prop_oneof![Just(64_u8), Just(48)])
            .prop_map(|(a, b, length)| IpNet::new_assert(IpAddr::from([0xfd00, 0, a, 0, 0, 0, 0, b]), length)),
    ]
}

fn any_route() -> impl Strategy<Value = Route> {
    (any_address(), prop_oneof![Just(TABLE_MAIN), Just(51_820)]).prop_map(|(network, table)| Route {
        network: network.trunc(),
        table,
        metric: METRIC,
    })
}

fn any_host() -> impl Strategy<Value = Host> {
    let owner = prop_oneof![Just(Owner::Ours), Just(Owner::Foreign)];
    let addresses = proptest::collection::btree_map(any_address(), owner, 0..4);
    let routes = proptest::collection::btree_set(any_route(), 0..4);
    let networks = proptest::collection::vec(any_address(), 0..3);
    (any::<bool>(), 1280_u32..1500, addresses, routes, networks).prop_map(|(up, mtu, addresses, routes, networks)| {
        let mut seen = std::collections::BTreeSet::new();
        let addresses = addresses.into_iter().filter(|(address, _)| seen.insert(address.addr())).collect();
        let routes = if up { routes } else { Default::default() };
        let connected = networks.iter().map(|network| connected(&network.trunc().to_string())).collect();
        let default_paths = vec![path("0.0.0.0/0", 2, 1500)];
        Host { link: Some(7), up, mtu, addresses, routes, connected, default_paths, ..Host::default() }
    })
}

fn any_model() -> impl Strategy<Value = Model> {
    let allowed = proptest::collection::btree_set(any_address().prop_map(|network| network.trunc()), 0..5);
    (proptest::collection::vec(any_address(), 0..3), allowed).prop_filter_map(
        "contradictory",
        |(addresses, allowed)| {
            let peer = Peer { allowed_ips: allowed.into_iter().collect(), ..beta(&[]) };
            let node = Node { id: "alpha".parse().ok()?, addresses, public_key: PublicKey::from_bytes([0xaa; 32]) };
            Model::new(node, "weft.internal".to_owned(), vec![peer]).ok()
        },
    )
}

async fn observe(platform: &mut FakePlatform, wanted: &spec::Wanted) -> Observed {
    let observed = platform.observe(&link(), wanted, platform::Ways::Keep).await;
    observed.expect("the fake can always be read").expect("its link is there")
}

async fn apply_until_settled(platform: &mut FakePlatform, wanted: &spec::Wanted) -> Result<usize, Step> {
    for round in 0..4 {
        let steps = plan(wanted, &observe(platform, wanted).await).steps;
        if steps.is_empty() {
            return Ok(round);
        }
        for step in steps {
            // A foreign IPv6 address of another length is in the way; that is told and not settled.
            platform.apply(&link().name, 7, &step).await.map_err(|error| error.step)?;
        }
    }
    panic!("the plan never becomes empty");
}

proptest! {
    #[test]
    fn applying_a_plan_leaves_nothing_to_do_and_nothing_foreign_changed(host in any_host(), model in any_model()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let mut platform = FakePlatform::with_link(7);
        *platform.host() = host.clone();
        let wanted = wanted(&settings(), &model);
        let foreign: Vec<IpNet> =
            host.addresses.iter().filter(|(_, owner)| *owner == Owner::Foreign).map(|(address, _)| *address).collect();
        let first = plan(&wanted, &runtime.block_on(observe(&mut platform, &wanted)));
        for address in &foreign {
            prop_assert!(!first.steps.contains(&Step::RemoveAddress(*address)));
        }
        match runtime.block_on(apply_until_settled(&mut platform, &wanted)) {
            Ok(_rounds) => prop_assert!(platform.host().up),
            Err(Step::AddAddress(address)) => prop_assert!(foreign.iter().any(|other| other.addr() == address.addr())),
            Err(step) => prop_assert!(false, "{step} failed"),
        }
    }
}

/// Peers by number, each with an endpoint of a few and some of a few networks.
fn any_peers() -> impl Strategy<Value = Vec<Peer>> {
    let endpoint = proptest::option::of(1_u8..4);
    let one = (endpoint, proptest::collection::btree_set(0_u8..4, 0..3));
    proptest::collection::btree_map(1_u8..5, one, 0..5).prop_map(|peers| {
        let mut taken = std::collections::BTreeSet::new();
        let peers = peers.into_iter().map(|(number, (endpoint, networks))| {
            let free = networks.into_iter().filter(|network| taken.insert(*network));
            let networks: Vec<String> = free.map(|network| format!("10.{}.0.0/16", 90 + network)).collect();
            let networks: Vec<&str> = networks.iter().map(String::as_str).collect();
            let endpoint = endpoint.map(|host| format!("192.0.{host}.7:51820"));
            peer(&format!("p{number}"), number, endpoint.as_deref(), &networks)
        });
        peers.collect()
    })
}

proptest! {
    #[test]
    fn following_changed_peers_gives_what_a_look_at_everything_gives(
        (from, to) in (any_peers(), any_peers()),
        mtus in proptest::collection::vec(prop_oneof![Just(1500_u32), Just(1400)], 4),
        other in proptest::option::of(90_u8..96),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let (older, newer) = (model(&["10.80.0.1/24"], from), model(&["10.80.0.1/24"], to));
        let (before, settings) = (wanted(&settings(), &older), settings());
        let all = |number: u8| (IpAddr::from([192, 0, number, 7]), path("0.0.0.0/0", 2, mtus[usize::from(number)]));
        // The host tells the ways that it is asked for.
        let ways_for = |wanted: &spec::Wanted| -> BTreeMap<IpAddr, Path> {
            (1_u8..4).map(all).filter(|(address, _)| wanted.peer_at(address).is_some()).collect()
        };
        let mut platform = FakePlatform::with_link(7);
        {
            let mut host = platform.host();
            host.paths = ways_for(&before);
            host.default_paths = vec![path("0.0.0.0/0", 2, 1500)];
            host.connected = other.map(|number| connected(&format!("10.{number}.3.0/24"))).into_iter().collect();
        }
        let settled = runtime.block_on(apply_until_settled(&mut platform, &before));
        settled.map_err(|step| TestCaseError::fail(step.to_string()))?;
        let mut observed = runtime.block_on(observe(&mut platform, &before));
        let changes = newer.changes_since(&older);
        let after = before.with(&changes);
        prop_assert_eq!(&after, &wanted(&settings, &newer));
        let ways = change::unknown_endpoints(&changes, &observed).into_iter();
        let ways: BTreeMap<IpAddr, Option<Path>> =
            ways.map(|address| (address, ways_for(&after).remove(&address))).collect();
        let followed = change::changed_peers(&changes, (&before, &after), &observed, &ways);
        if let Some(change) = followed.filter(|_| plan(&before, &observed).refusals.is_empty()) {
            for step in &change.steps {
                let applied = runtime.block_on(platform.apply(&link().name, 7, step));
                applied.map_err(|error| TestCaseError::fail(error.to_string()))?;
            }
            change.apply_to(&mut observed);
            platform.host().paths = ways_for(&after);
            let now = runtime.block_on(observe(&mut platform, &after));
            prop_assert_eq!(plan(&after, &now), Plan::default());
            prop_assert_eq!((observed.routes, observed.paths), (now.routes, now.paths));
        }
    }
}

struct Running {
    platform: FakePlatform,
    handle: Handle,
    link: watch::Sender<Option<Link>>,
    model: watch::Sender<Arc<Model>>,
    _settings: watch::Sender<Arc<Settings>>,
    _shutdown: Shutdown,
}

impl Running {
    fn start() -> Self {
        let platform = FakePlatform::with_link(7);
        platform.host().paths = up().paths;
        let shutdown = Shutdown::default();
        let (settings_tx, settings_rx) = watch::channel(Arc::new(settings()));
        let model = model(&["10.80.0.1/24"], vec![beta(&["10.99.0.0/16"])]);
        let (model_tx, model_rx) = watch::channel(Arc::new(model));
        let (link_tx, link_rx) = watch::channel(Some(link()));
        let inputs = Inputs { settings: settings_rx, model: model_rx, link: link_rx };
        let handle = start_on(platform.clone(), inputs, &Metrics::default(), shutdown.stop());
        Self { platform, handle, link: link_tx, model: model_tx, _settings: settings_tx, _shutdown: shutdown }
    }

    async fn until(&self, what: impl Fn(&Status) -> bool) -> Arc<Status> {
        let mut status = self.handle.status();
        status.wait_for(|status| what(status)).await.expect("the reconciler runs").clone()
    }

    async fn settled(&self) {
        self.until(|status| status.applied_steps == 0 && status.routes == 1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_another_program_removes_comes_back() {
    let running = Running::start();
    running.until(|status| status.routes == 1 && status.addresses == 1).await;
    running.platform.host().addresses.clear();
    running.platform.host().set_down();
    running.handle.trigger().fire();
    running.until(|status| status.applied_steps == 3).await;
    let host = running.platform.host().clone();
    assert_eq!((host.up, host.addresses.len(), host.routes.len()), (true, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_pass_that_finds_everything_as_wanted_writes_nothing() {
    let running = Running::start();
    running.until(|status| status.routes == 1).await;
    let writes = running.platform.host().writes;
    running.handle.trigger().fire();
    running.settled().await;
    assert_eq!(running.platform.host().writes, writes);
}

#[tokio::test(start_paused = true)]
async fn a_failed_step_is_told_and_tried_again() {
    let running = Running::start();
    running.until(|status| status.routes == 1).await;
    running.platform.host().routes.clear();
    running.platform.host().next_failure = Some(libc::EPERM);
    running.handle.trigger().fire();
    let status = running.until(|status| !status.errors.is_empty()).await;
    assert!(status.errors[0].contains("add route 10.99.0.0/16 in table 254 on link weft0"), "{:?}", status.errors);
    running.until(|status| status.errors.is_empty() && status.routes == 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_changed_peer_gets_its_route_without_a_look_at_the_others() {
    let running = Running::start();
    running.until(|status| status.routes == 1).await;
    let observations = running.platform.host().observations;
    let gamma = peer("gamma", 2, Some("192.0.2.7:7"), &["10.98.0.0/16"]);
    let newer = running.model.borrow().with([crate::model::Edit::Set(gamma)]).expect("a model");
    running.model.send_replace(Arc::new(newer));
    let status = running.until(|status| status.routes == 2).await;
    assert_eq!((status.applied_steps, running.platform.host().observations), (1, observations));
    let gone = running.model.borrow().with([crate::model::Edit::Remove(PublicKey::from_bytes([2; 32]))]);
    running.model.send_replace(Arc::new(gone.expect("a model")));
    running.until(|status| status.routes == 1).await;
    assert_eq!(running.platform.host().observations, observations);
}

#[tokio::test(start_paused = true)]
async fn without_a_link_nothing_is_done() {
    let running = Running::start();
    running.until(|status| status.routes == 1).await;
    running.link.send_replace(None);
    running.until(|status| status.mtu.is_none()).await;
    let writes = running.platform.host().writes;
    running.model.send_replace(Arc::new(model(&["10.81.0.1/24"], vec![])));
    running.handle.trigger().fire();
    tokio::time::advance(std::time::Duration::from_secs(31)).await;
    assert_eq!(running.platform.host().writes, writes);
}
