use std::collections::BTreeMap;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::resolved::ResolvedError;
use super::*;
use crate::dns::zone::tests::mesh;
use crate::foundation::lifecycle::Shutdown;

const BEFORE: &str = "nameserver 192.0.2.1\n";

/// systemd-resolved with its state: what each link was told, and how often it was called.
#[derive(Debug, Clone, Default)]
struct FakeResolved {
    links: Arc<Mutex<BTreeMap<u32, LinkDns>>>,
    calls: Arc<AtomicUsize>,
}

impl FakeResolved {
    fn link(&self, index: u32) -> Option<LinkDns> {
        self.links.lock().expect("no test panics while holding it").get(&index).cloned()
    }
}

impl Resolve for FakeResolved {
    async fn apply(&mut self, link: &LinkDns) -> Result<(), ResolvedError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.links.lock().expect("no test panics while holding it").insert(link.index, link.clone());
        Ok(())
    }

    async fn revert(&mut self, index: u32) -> Result<(), ResolvedError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.links.lock().expect("no test panics while holding it").remove(&index);
        Ok(())
    }
}

struct Running {
    resolved: FakeResolved,
    root: tempfile::TempDir,
    state: watch::Receiver<State>,
    server: watch::Sender<Arc<Status>>,
    _model: watch::Sender<Arc<Model>>,
    link: watch::Sender<Option<Link>>,
    shutdown: Shutdown,
    task: Task,
}

fn files(root: &tempfile::TempDir) -> HostFiles {
    HostFiles {
        resolv_conf: root.path().join("resolv.conf"),
        resolved: root.path().join("resolved.conf"),
        backup: root.path().join("resolv.conf.before"),
        told: root.path().join("resolved.link"),
    }
}

fn listening(addresses: &[&str]) -> Arc<Status> {
    let listening = addresses.iter().map(|text| text.parse().expect("an address")).collect();
    Arc::new(Status { listening, ..Status::default() })
}

fn start_hook(choice: HookChoice, root: tempfile::TempDir) -> Running {
    start_hook_beside(choice, root, FakeResolved::default())
}

fn start_hook_beside(choice: HookChoice, root: tempfile::TempDir, resolved: FakeResolved) -> Running {
    let (model, model_rx) = watch::channel(Arc::new(mesh(1)));
    let (link, link_rx) = watch::channel(None);
    let (server, server_rx) = watch::channel(listening(&["10.80.0.1:53", "127.0.3.3:53"]));
    let (state_tx, state) = watch::channel(State::default());
    let shutdown = Shutdown::default();
    let inputs = Inputs { model: model_rx, link: link_rx, server: server_rx };
    let hook = Hook::new(choice, files(&root), resolved.clone());
    let task = start(hook, inputs, state_tx, shutdown.stop());
    Running { resolved, root, state, server, _model: model, link, shutdown, task }
}

fn host_with(text: &str) -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a temporary directory");
    fs::write(files(&root).resolv_conf, text).expect("written");
    root
}

impl Running {
    fn text(&self) -> String {
        fs::read_to_string(files(&self.root).resolv_conf).expect("readable")
    }

    async fn state(&mut self, until: impl FnMut(&State) -> bool) -> State {
        let found = tokio::time::timeout(Duration::from_secs(10), self.state.wait_for(until)).await;
        found.expect("in time").expect("the hook runs").clone()
    }
}

#[tokio::test]
async fn auto_takes_the_file_where_resolved_does_not_own_lookups_and_a_stop_puts_it_back() {
    let mut running = start_hook(HookChoice::Auto, host_with(BEFORE));
    let state = running.state(|state| state.hook.is_some()).await;
    assert!(state.hook.expect("active").contains("names 127.0.3.3"));
    assert!(running.text().contains("nameserver 127.0.3.3\nnameserver 192.0.2.1\n"));
    let path = files(&running.root).resolv_conf;
    assert!(running.shutdown.drain(Duration::from_secs(5)).await);
    assert_eq!(running.task.join().await, Some(()));
    assert_eq!(fs::read_to_string(path).expect("readable"), BEFORE);
}

#[tokio::test]
async fn off_changes_nothing_but_repairs_what_a_kill_left() {
    let root = host_with(BEFORE);
    let mut file = ResolvConf::new(files(&root).resolv_conf, files(&root).backup);
    file.apply("127.0.3.3".parse().expect("an address")).expect("applied");
    let running = start_hook(HookChoice::Off, root);
    let path = files(&running.root).resolv_conf;
    assert!(running.shutdown.drain(Duration::from_secs(5)).await);
    assert_eq!(fs::read_to_string(path).expect("readable"), BEFORE);
}

#[tokio::test]
async fn without_a_server_on_port_53_the_file_stays_and_the_error_says_so() {
    let root = host_with(BEFORE);
    let mut running = start_hook(HookChoice::ResolvConf, root);
    running.state(|state| state.hook.is_some()).await;
    running.server.send_replace(listening(&["127.0.0.1:5353"]));
    let state = running.state(|state| state.error.is_some()).await;
    assert!(state.error.expect("an error").contains("dns.listen"));
}

fn owned_by_resolved(text: &str) -> bool {
    let root = host_with(text);
    Hook::new(HookChoice::Auto, files(&root), FakeResolved::default()).resolved_owns_lookups()
}

#[test]
fn resolved_owns_lookups_only_if_nothing_else_is_asked() {
    assert!(owned_by_resolved("nameserver 127.0.0.53\noptions edns0\n"));
    assert!(!owned_by_resolved("nameserver 127.0.0.53\nnameserver 192.0.2.1\n"));
    assert!(!owned_by_resolved("search example.com\n"));
}

#[tokio::test]
async fn auto_tells_resolved_about_the_link_and_a_stop_reverts_it() {
    let stub = "nameserver 127.0.0.53\n";
    let mut running = start_hook(HookChoice::Auto, host_with(stub));
    let link =
        |index| Link { name: "weft0".parse().expect("a link name"), index, backend: crate::model::Backend::Kernel };
    running.link.send_replace(Some(link(7)));
    let state = running.state(|state| state.hook.is_some()).await;
    assert!(state.hook.expect("active").contains("10.80.0.1 for ~weft.internal on weft0"));
    let told = running.resolved.link(7).expect("told");
    assert_eq!(told.servers, ["10.80.0.1".parse::<IpAddr>().expect("an address")]);
    assert_eq!(told.domains, ["weft.internal", "pm3"]);
    // A status that says the same gives a pass without a call.
    running.server.send_replace(listening(&["10.80.0.1:53", "127.0.3.3:53", "127.0.0.9:53"]));
    running.link.send_replace(Some(link(8)));
    let resolved = running.resolved.clone();
    let told_again = async {
        while resolved.link(8).is_none() {
            tokio::task::yield_now().await
        }
    };
    tokio::time::timeout(Duration::from_secs(10), told_again).await.expect("the new link was told");
    assert!(running.shutdown.drain(Duration::from_secs(5)).await);
    assert_eq!(running.resolved.link(8), None);
    assert_eq!(running.resolved.calls.load(Ordering::SeqCst), 3);
    assert_eq!(fs::read_to_string(files(&running.root).resolv_conf).expect("readable"), stub);
}

/// A run that told resolved about link 7 and was killed.
fn killed_while_hooked() -> (tempfile::TempDir, FakeResolved) {
    let root = host_with("nameserver 127.0.0.53\n");
    let resolved = FakeResolved::default();
    let link = LinkDns { index: 7, servers: Vec::new(), domains: Vec::new() };
    resolved.links.lock().expect("no test panics while holding it").insert(7, link);
    fs::write(files(&root).told, format!("7 {}", boot_id())).expect("written");
    (root, resolved)
}

#[test]
fn a_note_of_another_boot_names_a_link_that_is_gone() {
    let (root, resolved) = killed_while_hooked();
    fs::write(files(&root).told, "7 00000000-0000-0000-0000-000000000000").expect("written");
    let mut hook = Hook::new(HookChoice::Off, files(&root), resolved);
    hook.repair();
    assert_eq!(hook.active, Active::None);
}

#[tokio::test]
async fn a_stop_before_the_first_answer_takes_away_what_a_killed_run_told_resolved() {
    let (root, resolved) = killed_while_hooked();
    let running = start_hook_beside(HookChoice::Auto, root, resolved);
    assert!(running.shutdown.drain(Duration::from_secs(5)).await);
    assert_eq!(running.resolved.link(7), None);
    assert!(!files(&running.root).told.exists());
}

#[tokio::test]
async fn a_hook_that_is_off_now_takes_away_what_a_killed_run_told_resolved() {
    let (root, resolved) = killed_while_hooked();
    let running = start_hook_beside(HookChoice::Off, root, resolved);
    let resolved = running.resolved.clone();
    let reverted = async {
        while resolved.link(7).is_some() {
            tokio::task::yield_now().await
        }
    };
    tokio::time::timeout(Duration::from_secs(10), reverted).await.expect("reverted");
    assert!(running.shutdown.drain(Duration::from_secs(5)).await);
    assert!(!files(&running.root).told.exists());
}

#[test]
fn the_host_asks_loopback_if_it_can() {
    let reach = |addresses: &[&str]| reachable_from_host(&listening(addresses).listening).map(|a| a.to_string());
    assert_eq!(reach(&["10.80.0.1:53", "127.0.3.3:53"]).as_deref(), Some("127.0.3.3"));
    assert_eq!(reach(&["10.80.0.1:53"]).as_deref(), Some("10.80.0.1"));
    assert_eq!(reach(&["0.0.0.0:53"]).as_deref(), Some("127.0.0.1"));
    assert_eq!(reach(&["127.0.0.1:5353"]), None);
}

#[test]
fn down_puts_the_file_back() {
    let root = host_with(BEFORE);
    let mut file = ResolvConf::new(files(&root).resolv_conf, files(&root).backup);
    file.apply("127.0.3.3".parse().expect("an address")).expect("applied");
    assert_eq!(down(files(&root)).expect("restored"), Restored::Restored);
    assert_eq!(fs::read_to_string(files(&root).resolv_conf).expect("readable"), BEFORE);
}
