//! Plans as properties, and the reconciler over a host in memory.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use proptest::prelude::*;
use weft_ebpf_common::{Counters as RawCounters, PeerCounters as RawPeerCounters};

use super::config::AttachChoice;
use super::plan::Step;
use super::platform::fake::Fake;
use super::platform::{Hooks, MapContents, Slot, Slots};
use super::spec::{Desired, Sizes};
use super::status::Hook;
use super::*;
use crate::foundation::lifecycle::Shutdown;
use crate::model::key::PublicKey;
use crate::model::ordered::Ordered;
use crate::model::peer::Peer;
use crate::model::{Backend, Node};
use crate::sys::bpf::Side;

fn key(byte: u8) -> PublicKey {
    PublicKey::from_bytes([byte; 32])
}

fn peer(name: &str, byte: u8, allowed: &[&str]) -> Peer {
    Peer {
        name: name.parse().expect("a label"),
        public_key: key(byte),
        preshared_key: None,
        endpoint: None,
        allowed_ips: allowed.iter().map(|text| text.parse().expect("a prefix")).collect(),
        persistent_keepalive: None,
    }
}

fn model(peers: Vec<Peer>) -> Arc<Model> {
    let node = Node { id: "alpha".parse().expect("a label"), addresses: vec![], public_key: key(0xaa) };
    Arc::new(Model::new(node, "weft.internal".to_owned(), peers).expect("no contradictions"))
}

fn link(index: u32) -> Link {
    Link { name: "weft0".parse().expect("a link name"), index, backend: Backend::Kernel }
}

fn sizes() -> Sizes {
    Sizes::for_peers(100)
}

// Pure: what the maps should hold.

#[test]
fn an_exact_address_is_no_network() {
    let model = model(vec![peer("b", 1, &["10.0.0.2/32", "10.1.0.0/16", "fd00::2/128", "::/0"])]);
    let desired = spec::desired(&model, &Ordered::new(), sizes());
    let addresses: Vec<String> = desired.addresses.keys().map(ToString::to_string).collect();
    let prefixes: Vec<String> = desired.prefixes.keys().map(ToString::to_string).collect();
    assert_eq!(
        (addresses, prefixes),
        (vec!["10.0.0.2".to_owned(), "fd00::2".to_owned()], vec!["10.1.0.0/16".to_owned(), "::/0".to_owned()])
    );
}

#[test]
fn an_index_stays_with_its_key_and_is_never_reused() {
    let taken = [(key(1), 1), (key(2), 2)].into_iter().collect();
    let desired = spec::desired(&model(vec![peer("c", 3, &[]), peer("b", 2, &[])]), &taken, sizes());
    assert_eq!(desired.indexes, BTreeMap::from([(key(2), 2), (key(3), 3)]));
}

#[test]
fn peers_that_do_not_fit_are_refused_by_name_and_have_no_addresses() {
    let peers = vec![peer("a1", 1, &["10.0.0.1/32"]), peer("a2", 2, &["10.0.0.2/32"]), peer("a3", 3, &[])];
    let desired = spec::desired(&model(peers), &Ordered::new(), Sizes { indexes: 2, ..sizes() });
    assert_eq!(desired.indexes, BTreeMap::from([(key(1), 1)]));
    assert_eq!(desired.addresses.len(), 1);
    let text = desired.refused[0].to_string();
    assert!(text.contains("max_peers = 1 is used up") && text.contains("2 peers (the first: a2)"), "{text}");
}

#[test]
fn networks_that_do_not_fit_are_refused_by_name() {
    let model = model(vec![peer("b", 1, &["10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16", "fd00::/16"])]);
    let desired = spec::desired(&model, &Ordered::new(), Sizes { prefixes: 1, ..sizes() });
    assert_eq!(desired.prefixes.len(), 2, "one of each family");
    let text = desired.refused[0].to_string();
    assert!(text.contains("IPv4 networks takes 1, so 2 more (the first: 10.2.0.0/16)"), "{text}");
}

// Pure: the difference.

fn contents() -> impl Strategy<Value = MapContents> {
    let addresses = prop::collection::btree_map(any::<[u8; 4]>().prop_map(IpAddr::from), 1..9_u32, 0..8);
    let prefixes = prop::collection::btree_map(
        (any::<[u8; 4]>(), 0..32_u8).prop_map(|(octets, length)| {
            ipnet::IpNet::new(IpAddr::from(octets), length).expect("a length of IPv4").trunc()
        }),
        1..9_u32,
        0..8,
    );
    let indexes = prop::collection::btree_map(any::<u8>().prop_map(key), 1..9_u32, 0..8);
    (indexes, addresses, prefixes).prop_map(|(indexes, addresses, prefixes)| MapContents {
        indexes: indexes.into_iter().collect(),
        addresses,
        prefixes,
        ..MapContents::empty(sizes())
    })
}

proptest! {
    #[test]
    fn applying_a_plan_leaves_nothing_to_do(wanted in contents(), mut observed in contents()) {
        // An index that is taken is never another in what is desired: `spec` keeps it.
        let kept = |(key, index): (&PublicKey, &u32)| (*key, *observed.indexes.get(key).unwrap_or(index));
        let indexes = wanted.indexes.iter().map(kept).collect();
        let desired =
            Desired { indexes, addresses: wanted.addresses, prefixes: wanted.prefixes, refused: vec![] };
        for step in plan::maps(&desired, &observed) {
            observed.after(&step);
        }
        prop_assert_eq!(plan::maps(&desired, &observed), vec![]);
        prop_assert_eq!(&desired.addresses, &observed.addresses);
        prop_assert_eq!(&desired.prefixes, &observed.prefixes);
    }
}

/// Peers by number, each with some of a few prefixes; a prefix is one peer's only.
fn owned() -> impl Strategy<Value = BTreeMap<u8, u8>> {
    prop::collection::btree_map(0..12_u8, 1..6_u8, 0..10)
}

fn model_of(owned: &BTreeMap<u8, u8>) -> Arc<Model> {
    let mut prefixes: BTreeMap<u8, Vec<String>> = BTreeMap::new();
    for (number, owner) in owned {
        let prefix = if number % 2 == 0 { format!("10.0.0.{number}/32") } else { format!("10.{number}.0.0/16") };
        prefixes.entry(*owner).or_default().push(prefix);
    }
    let peers = prefixes.iter().map(|(owner, prefixes)| {
        peer(&format!("p{owner}"), *owner, &prefixes.iter().map(String::as_str).collect::<Vec<_>>())
    });
    model(peers.collect())
}

proptest! {
    #[test]
    fn what_changed_planned_alone_gives_what_everything_planned_gives(from in owned(), to in owned()) {
        let (older, newer) = (model_of(&from), model_of(&to));
        let mut maps = MapContents::empty(sizes());
        for step in plan::maps(&spec::desired(&older, &maps.indexes, sizes()), &maps) {
            maps.after(&step);
        }
        for step in plan::changed_peers(&newer.changes_since(&older), &maps).expect("there is room") {
            maps.after(&step);
        }
        let desired = spec::desired(&newer, &maps.indexes, sizes());
        prop_assert_eq!(plan::maps(&desired, &maps), vec![]);
    }
}

#[test]
fn what_may_not_fit_is_left_to_a_look_at_everything() {
    let (none, two) = (model(vec![]), model(vec![peer("a1", 1, &["10.0.0.1/32"]), peer("a2", 2, &[])]));
    let small = MapContents::empty(Sizes { indexes: 2, ..sizes() });
    assert_eq!(plan::changed_peers(&two.changes_since(&none), &small), None);
    assert!(plan::changed_peers(&two.changes_since(&none), &MapContents::empty(sizes())).is_some());
}

#[test]
fn an_address_that_moves_is_overwritten_before_anything_is_removed() {
    let address = "10.0.0.2".parse().expect("an address");
    let gone = "10.0.0.9".parse().expect("an address");
    let observed = MapContents { addresses: BTreeMap::from([(address, 1), (gone, 1)]), ..MapContents::empty(sizes()) };
    let desired = Desired { addresses: BTreeMap::from([(address, 2)]), ..Desired::default() };
    let steps = plan::maps(&desired, &observed);
    assert_eq!(steps, [Step::SetAddress { address, index: 2 }, Step::RemoveAddress(gone)]);
}

fn ingress_steps(wanted: Hook, tcx: Slot, clsact: Slot) -> Vec<Step> {
    let hooks = Hooks {
        tcx_supported: true,
        ingress: Slots { tcx, clsact, behind: false },
        egress: Slots { tcx: Slot::Current, ..Slots::default() },
        old_layouts: vec![],
    };
    let steps = plan::hooks(wanted, &hooks);
    let on_ingress = |step: &Step| !format!("{step:?}").contains("Egress");
    steps.into_iter().filter(on_ingress).collect()
}

#[test]
fn a_program_leaves_one_hook_before_it_comes_to_the_other() {
    let side = Side::Ingress;
    let (off, on) = (Step::Detach { hook: Hook::Clsact, side }, Step::Attach { hook: Hook::Tcx, side });
    assert_eq!(ingress_steps(Hook::Tcx, Slot::Empty, Slot::Current), [off, on]);
}

#[test]
fn only_what_differs_on_a_hook_is_changed() {
    let (hook, side) = (Hook::Tcx, Side::Ingress);
    assert_eq!(ingress_steps(hook, Slot::Current, Slot::Empty), []);
    assert_eq!(ingress_steps(hook, Slot::Outdated, Slot::Empty), [Step::Replace { hook, side }]);
    assert_eq!(
        ingress_steps(hook, Slot::Stale, Slot::Empty),
        [Step::Detach { hook, side }, Step::Attach { hook, side }]
    );
    assert_eq!(ingress_steps(Hook::Clsact, Slot::Empty, Slot::Foreign), []);
}

// The reconciler over a host in memory.

struct Agent {
    handle: Handle,
    metrics: Metrics,
    model: watch::Sender<Arc<Model>>,
    link: watch::Sender<Option<Link>>,
    _shutdown: Shutdown,
}

fn agent(host: &Fake, attach: AttachChoice, peers: Vec<Peer>) -> Agent {
    let (model, model_rx) = watch::channel(model(peers));
    let (link, link_rx) = watch::channel(Some(link(7)));
    let (shutdown, metrics) = (Shutdown::default(), Metrics::default());
    let config = Config { attach, max_peers: 100, ..Config::default() };
    let settings = Settings::new("test".parse().expect("a label"), config);
    let handle = start_on(host.clone(), settings, model_rx, link_rx, &metrics, shutdown.stop());
    Agent { handle, metrics, model, link, _shutdown: shutdown }
}

impl Agent {
    async fn until(&self, what: impl Fn(&Status) -> bool) -> Status {
        let mut status = self.handle.status();
        let found = tokio::time::timeout(Duration::from_secs(60), status.wait_for(|status| what(status)));
        found.await.expect("the status comes").expect("the reconciler runs").clone()
    }

    async fn attached(&self) -> Status {
        self.until(|status| status.hook.is_some()).await
    }
}

fn beta() -> Vec<Peer> {
    vec![peer("beta", 1, &["10.0.0.2/32", "10.1.0.0/16"])]
}

#[tokio::test(start_paused = true)]
async fn a_restarted_agent_that_finds_all_as_wanted_writes_nothing() {
    let host = Fake::new();
    let first = agent(&host, AttachChoice::Auto, beta());
    assert_eq!(first.attached().await.prefixes, 2);
    drop(first);
    let writes = host.writes();
    agent(&host, AttachChoice::Auto, beta()).attached().await;
    assert_eq!(host.writes(), writes);
}

#[tokio::test(start_paused = true)]
async fn another_program_replaces_the_running_one() {
    let host = Fake::new();
    agent(&host, AttachChoice::Auto, beta()).attached().await;
    let upgraded = host.with_program(2);
    let writes = host.writes();
    agent(&upgraded, AttachChoice::Auto, beta()).attached().await;
    assert_eq!((host.writes() - writes, host.running(Side::Ingress, 7)), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_link_made_anew_gets_the_programs() {
    let host = Fake::new();
    let agent = agent(&host, AttachChoice::Clsact, beta());
    agent.attached().await;
    agent.link.send_replace(None);
    agent.until(|status| status.hook.is_none()).await;
    agent.link.send_replace(Some(link(8)));
    agent.attached().await;
    assert_eq!((host.running(Side::Egress, 7), host.running(Side::Egress, 8)), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn without_tcx_the_fallback_is_announced_or_refused() {
    let host = Fake::new();
    host.remove_tcx();
    let status = agent(&host, AttachChoice::Auto, beta()).attached().await;
    assert_eq!(status.hook, Some(Hook::Clsact));
    assert!(status.fallback_reason.is_some_and(|reason| reason.contains("no tcx")));
    let status = agent(&host, AttachChoice::Tcx, beta()).until(|status| !status.errors.is_empty()).await;
    assert!(status.errors[0].contains("set it to \"auto\""), "{status:?}");
}

#[tokio::test(start_paused = true)]
async fn a_missing_file_system_is_an_error_that_ends_by_itself() {
    let host = Fake::new();
    host.set_bpffs(false);
    let agent = agent(&host, AttachChoice::Auto, beta());
    let status = agent.until(|status| !status.errors.is_empty()).await;
    assert!(status.errors[0].contains("mount -t bpf"), "{status:?}");
    assert!(matches!(agent.handle.figures().await, Err(FiguresError::NotCounting)));
    host.set_bpffs(true);
    assert!(agent.attached().await.errors.is_empty());
}

fn counted(bytes: u64) -> RawPeerCounters {
    RawPeerCounters { rx: RawCounters { packets: 1, class_bytes: [bytes, 0, 0, 0] }, tx: RawCounters::default() }
}

#[tokio::test(start_paused = true)]
async fn figures_have_names_and_removed_peers_stay_in_the_total() {
    let host = Fake::new();
    let agent = agent(&host, AttachChoice::Auto, beta());
    agent.attached().await;
    host.count(0, counted(5));
    host.count(1, counted(100));
    let figures = agent.handle.figures().await.expect("readable");
    assert_eq!((figures.peers[0].name.as_str(), figures.peers[0].rx.tcp_bytes), ("beta", 100));
    assert_eq!(figures.unattributed_rx.bytes, 5);
    agent.model.send_replace(model(vec![]));
    agent.until(|status| status.peers == 0).await;
    let figures = agent.handle.figures().await.expect("readable");
    assert_eq!((figures.peers.len(), figures.retired_rx.bytes), (0, 100));
}

#[tokio::test(start_paused = true)]
async fn metrics_carry_every_counter_once() {
    let host = Fake::new();
    let agent = agent(&host, AttachChoice::Auto, beta());
    agent.attached().await;
    host.count(1, counted(100));
    let text = agent.metrics.scrape().await.expect("it formats");
    let id = key(1).to_string();
    for line in [
        format!("weft_peer_bytes_total{{peer=\"beta\",peer_id=\"{id}\",direction=\"rx\"}} 100"),
        format!("weft_peer_packets_total{{peer=\"beta\",peer_id=\"{id}\",direction=\"rx\"}} 1"),
        format!(
            "weft_peer_protocol_bytes_total{{peer=\"beta\",peer_id=\"{id}\",direction=\"rx\",protocol=\"tcp\"}} 100"
        ),
        "weft_unattributed_bytes_total{direction=\"tx\"} 0".to_owned(),
        "weft_retired_packets_total{direction=\"rx\"} 0".to_owned(),
        "weft_accounting_attached{hook=\"tcx\"} 1".to_owned(),
        "weft_accounting_attached{hook=\"clsact\"} 0".to_owned(),
    ] {
        assert_eq!(text.lines().filter(|found| **found == line).count(), 1, "{line}\n{text}");
    }
}

// The committed object.

fn sha256(content: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, content);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn files_below(root: &std::path::Path, below: PathBuf, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(root.join(&below)).expect("a directory of the sources") {
        let entry = entry.expect("readable");
        let path = below.join(entry.file_name());
        if !entry.file_type().expect("known").is_dir() {
            files.push(path);
        } else if path != std::path::Path::new("target") {
            files_below(root, path, files);
        }
    }
}

/// The recipe is that of `xtask/src/ebpf/hash.rs`.
#[test]
fn the_committed_objects_are_made_from_the_sources_beside_them() {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let manifest = std::fs::read_to_string(here.join("ebpf/manifest.toml")).expect("committed");
    let manifest: toml::Table = manifest.parse().expect("TOML");
    let sources = here.join("../agent-ebpf");
    let mut files = Vec::new();
    files_below(&sources, PathBuf::new(), &mut files);
    files.sort();
    let listing: String = files
        .iter()
        .map(|file| format!("{}  {}\n", sha256(&std::fs::read(sources.join(file)).expect("readable")), file.display()))
        .collect();
    let stale = "agent-ebpf has changed since agent/ebpf was built; run `cargo xtask ebpf` and commit the result";
    assert_eq!(manifest["sources"].as_str(), Some(sha256(listing.as_bytes()).as_str()), "{stale}");
    for (name, hash) in manifest["objects"].as_table().expect("a table") {
        let object = std::fs::read(here.join("ebpf").join(name)).expect("committed");
        assert_eq!(hash.as_str(), Some(sha256(&object).as_str()), "agent/ebpf/{name} is not what was built");
    }
}
