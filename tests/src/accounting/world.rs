//! Two namespaces, a veth pair between them, and a BPF file system of the test's own.

use std::cell::Cell;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use integration_tests::netns::{NetNs, veth};
use integration_tests::wait::eventually_some;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::UdpGsoSegment;
use tempfile::TempDir;
use tokio::sync::watch;
use weft_agent::ebpf::config::{AttachChoice, Config};
use weft_agent::ebpf::status::{Figures, PeerCounters, Status};
use weft_agent::ebpf::{self, Handle, Settings};
use weft_agent::foundation::lifecycle::Shutdown;
use weft_agent::foundation::metrics::Metrics;
use weft_agent::model::key::PublicKey;
use weft_agent::model::peer::Peer;
use weft_agent::model::{Backend, Link, Model, Node};
use weft_agent::sys::bpf::{Side, tcx_programs};
use weft_agent::sys::tc::filters;
use weft_ebpf_common::LAYOUT;

const LINK: &str = "wa";
const PATIENCE: Duration = Duration::from_secs(10);
/// Where nobody listens and everybody may send.
const PORT: u16 = 9;

/// A peer with a key made of one byte.
pub(crate) fn peer(name: &str, key: u8, allowed: &[&str]) -> Peer {
    Peer {
        name: name.parse().expect("a label"),
        public_key: PublicKey::from_bytes([key; 32]),
        preshared_key: None,
        endpoint: None,
        allowed_ips: allowed.iter().map(|text| text.parse().expect("a prefix")).collect(),
        persistent_keepalive: None,
    }
}

fn model(peers: Vec<Peer>) -> Arc<Model> {
    let addresses = vec!["10.91.0.1/24".parse().expect("an address")];
    let node = Node { id: "alpha".parse().expect("a label"), addresses, public_key: PublicKey::from_bytes([0xaa; 32]) };
    Arc::new(Model::new(node, "weft.internal".to_owned(), peers).expect("no contradictions"))
}

/// A BPF file system that goes away with its guard.
struct BpfFs(TempDir);

impl BpfFs {
    fn mount() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        mount(Some("bpf"), directory.path(), Some("bpf"), MsFlags::empty(), None::<&str>).expect("root may mount");
        Self(directory)
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        umount2(self.0.path(), MntFlags::MNT_DETACH).ok();
    }
}

/// What a test sees; its thread is in the first namespace.
pub(crate) struct World {
    pub(crate) settings: Settings,
    here: Arc<NetNs>,
    there: Arc<NetNs>,
    _bpffs: BpfFs,
}

impl World {
    /// Runs a test inside.
    pub(crate) fn run<F: Future<Output = ()>>(attach: AttachChoice, test: impl FnOnce(Self) -> F + Send) {
        let (here, there) = (NetNs::new().expect("a namespace"), NetNs::new().expect("a namespace"));
        let (here, there) = (Arc::new(here), Arc::new(there));
        let bpffs = BpfFs::mount();
        let config = Config { attach, max_peers: 64, ..Config::default() };
        let mut settings = Settings::new("test".parse().expect("a label"), config);
        settings.pin_root = bpffs.0.path().join("weft");
        settings.l2_length = 14;
        let world = Self { settings, here: Arc::clone(&here), there, _bpffs: bpffs };
        world.make_link();
        let inside = here.enter(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(test(world));
        });
        inside.expect("the namespace can be entered");
    }

    fn make_link(&self) {
        let here: &[&str] = &["10.91.0.1/24", "fd91::1/64"];
        let there: &[&str] =
            &["10.91.0.2/24", "fd91::2/64", "10.92.3.4/16", "10.92.3.5/16", "fd92::4/32", "fd92::5/32"];
        veth((&self.here, LINK, here), (&self.there, "wb", there)).expect("a pair of links");
        let (mac_here, mac_there) = (self.mac(&self.here, LINK), self.mac(&self.there, "wb"));
        self.ip(&self.here, &["route", "add", "10.92.0.0/16", "dev", LINK]);
        self.ip(&self.here, &["route", "add", "fd92::/32", "dev", LINK]);
        for address in ["10.91.0.2", "10.92.3.4", "10.92.3.5", "fd91::2", "fd92::4", "fd92::5"] {
            self.neighbour(&self.here, address, &mac_there, LINK);
        }
        for address in ["10.91.0.1", "fd91::1"] {
            self.neighbour(&self.there, address, &mac_here, "wb");
        }
    }

    /// Gives the other end one more address of its routed network.
    pub(crate) fn reach(&self, address: Ipv4Addr) {
        let text = address.to_string();
        self.ip(&self.there, &["address", "replace", &format!("{text}/16"), "dev", "wb"]);
        self.neighbour(&self.here, &text, &self.mac(&self.there, "wb"), LINK);
    }

    fn ip(&self, namespace: &NetNs, words: &[&str]) {
        namespace.run(&[&["ip"], words].concat()).expect("ip does it");
    }

    fn neighbour(&self, namespace: &NetNs, address: &str, mac: &str, link: &str) {
        let words = ["neighbour", "replace", address, "lladdr", mac, "nud", "permanent", "dev", link];
        self.ip(namespace, &words);
    }

    fn mac(&self, namespace: &NetNs, link: &str) -> String {
        let text = namespace.run(&["ip", "-o", "link", "show", link]).expect("there");
        let after = text.split("link/ether ").nth(1).expect("Ethernet");
        after.split_whitespace().next().expect("an address").to_owned()
    }

    /// Takes the pair away and makes another under the same name.
    pub(crate) fn remake_link(&self) {
        self.ip(&self.here, &["link", "delete", LINK]);
        self.make_link();
    }

    /// The link as it is now.
    pub(crate) fn link(&self) -> Link {
        let index = if_nametoindex(LINK).expect("the link is there");
        Link { name: LINK.parse().expect("a link name"), index, backend: Backend::Userspace }
    }

    /// Starts the accounting and waits until it is attached or says why not.
    pub(crate) async fn start(&self, peers: Vec<Peer>) -> Running {
        let running = self.start_any(peers).await;
        assert!(self.settings.pin_root.exists(), "{:?}", running.status());
        running
    }

    /// Starts the accounting and waits for the first pass.
    pub(crate) async fn start_any(&self, peers: Vec<Peer>) -> Running {
        let (model_tx, model_rx) = watch::channel(model(peers));
        let (link_tx, link_rx) = watch::channel(Some(self.link()));
        let shutdown = Shutdown::default();
        let handle = ebpf::start(self.settings.clone(), model_rx, link_rx, &Metrics::default(), shutdown.stop());
        let running = Running { handle, model_tx, link_tx, passes: Cell::new(0), _shutdown: shutdown };
        let settled = |status: &Status| status.hook.is_some() || !status.errors.is_empty();
        running.wait(settled).await;
        running
    }

    /// Datagrams to an address in the other namespace. They are counted when this returns.
    pub(crate) fn send(&self, to: &str, datagrams: usize, bytes: usize) {
        let to: IpAddr = to.parse().expect("an address");
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).expect("a socket");
        let listener = self.there.enter(|| UdpSocket::bind((to, PORT))).expect("entered").expect("a listener");
        for _ in 0..datagrams {
            socket.send_to(&vec![0; bytes], (to, PORT)).expect("sent");
        }
        drop(listener);
    }

    /// One write that the kernel carries as one packet to the link and segments there.
    pub(crate) fn send_in_segments(&self, to: &str, segments: usize, bytes: u16) {
        let to: IpAddr = to.parse().expect("an address");
        let listener = self.there.enter(|| UdpSocket::bind((to, PORT))).expect("entered").expect("a listener");
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        setsockopt(&socket, UdpGsoSegment, &i32::from(bytes)).expect("the kernel segments UDP");
        let all = vec![0; segments * usize::from(bytes)];
        assert_eq!(socket.send_to(&all, (to, PORT)).expect("sent"), all.len());
        drop(listener);
    }

    /// One stream of bytes to an address in the other namespace, to its end; returns what the kernel's TCP says it sent.
    pub(crate) fn stream(&self, to: &str, bytes: u64) -> Sent {
        let to: IpAddr = to.parse().expect("an address");
        let listener = self.there.enter(|| TcpListener::bind((to, 0))).expect("entered").expect("a listener");
        let address = listener.local_addr().expect("bound");
        let reader = std::thread::spawn(move || {
            let (mut stream, _from) = listener.accept().expect("a connection");
            let mut all = Vec::new();
            stream.read_to_end(&mut all).expect("read to the end");
            all.len() as u64
        });
        let mut stream = TcpStream::connect(address).expect("connected");
        let chunk = vec![0; 1 << 16];
        for _ in 0..bytes / chunk.len() as u64 {
            stream.write_all(&chunk).expect("written");
        }
        let filter = format!("dport = :{}", address.port());
        let sent = eventually_some(Duration::from_secs(20), "all of the stream is acknowledged", || {
            // While it is open: afterwards nobody knows its figures any more.
            let text = self.here.run(&["ss", "--tcp", "--info", "--numeric", "--no-header", &filter]).ok()?;
            let acknowledged = figure(&text, " bytes_acked:")?;
            // The byte more is the SYN's.
            (acknowledged > bytes).then_some(())?;
            Some(Sent { segments: figure(&text, " segs_out:")?, payload: figure(&text, " bytes_sent:")? })
        });
        drop(stream);
        assert_eq!(reader.join().expect("the reader ends"), bytes);
        sent.expect("it is acknowledged")
    }

    /// Echoes with this many bytes of payload.
    pub(crate) fn ping(&self, to: &str, count: usize, bytes: usize) {
        let (count, bytes) = (count.to_string(), bytes.to_string());
        self.here.run(&["ping", "-c", &count, "-s", &bytes, "-i", "0.01", to]).expect("answered");
    }

    /// The programs on either side, on any hook, by their ids.
    pub(crate) fn programs(&self) -> (Vec<u32>, Vec<u32>) {
        let index = self.link().index;
        let on = |side| {
            let mut ids = tcx_programs(index, side).expect("listed").unwrap_or_default();
            let filters = filters(index, side).expect("listed");
            ids.extend(filters.into_iter().filter(|filter| filter.name.starts_with("weft")).flat_map(|f| f.program_id));
            ids
        };
        (on(Side::Ingress), on(Side::Egress))
    }

    /// The names of all pins, in order.
    pub(crate) fn pins(&self) -> Vec<String> {
        let mut names = walk(&self.settings.pin_root);
        names.sort();
        names
    }

    /// The pin whose name begins so.
    pub(crate) fn pin_starting_with(&self, start: &str) -> PathBuf {
        let directory = self.settings.pin_root.join(format!("test/v{LAYOUT}"));
        let name = walk(&directory).into_iter().find(|name| name.starts_with(start)).expect("pinned");
        directory.join(name)
    }

    /// Lets the next start load an object that differs from the built-in one in a byte nobody reads.
    pub(crate) fn use_other_object(&mut self) {
        let built_in = Path::new(env!("CARGO_MANIFEST_DIR")).join("../agent/ebpf/weft.bpf.o");
        let mut bytes = std::fs::read(built_in).expect("committed");
        bytes.push(0);
        let path = self.here.path().with_file_name(format!("{}.bpf.o", self.here.name()));
        std::fs::write(&path, bytes).expect("written");
        self.settings.config.object = Some(path);
    }

    /// Adds a filter that is not ours: `return 0` in classic BPF, the one kind that tc takes without a compiler.
    pub(crate) fn add_foreign_filter(&self, priority: u16) {
        self.tc(&["qdisc", "add", "dev", LINK, "clsact"]);
        let priority = priority.to_string();
        let place = ["filter", "add", "dev", LINK, "ingress", "pref", &priority, "handle", "1", "protocol", "all"];
        self.tc(&[&place[..], &["bpf", "bytecode", "1,6 0 0 0"]].concat());
    }

    /// How many filters there are on the receiving side.
    pub(crate) fn filters(&self) -> usize {
        filters(self.link().index, Side::Ingress).expect("listed").len()
    }

    fn tc(&self, words: &[&str]) {
        self.here.run(&[&["tc"], words].concat()).expect("tc does it");
    }

    /// Waits on a thread of its own while the runtime goes on.
    pub(crate) async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        tokio::task::spawn_blocking(work).await.expect("the wait ends")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(object) = &self.settings.config.object {
            std::fs::remove_file(object).ok();
        }
    }
}

/// The names of the files below, but not of the directories.
fn walk(directory: &Path) -> Vec<String> {
    let Ok(output) = Command::new("find").arg(directory).args(["-type", "f", "-printf", "%f\n"]).output() else {
        return Vec::new();
    };
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

/// A running accounting.
pub(crate) struct Running {
    handle: Handle,
    model_tx: watch::Sender<Arc<Model>>,
    link_tx: watch::Sender<Option<Link>>,
    passes: Cell<usize>,
    _shutdown: Shutdown,
}

/// The figures, by name.
pub(crate) trait ByName {
    fn of(&self, name: &str) -> PeerCounters;
}

impl ByName for Figures {
    fn of(&self, name: &str) -> PeerCounters {
        self.peers.iter().find(|peer| peer.name.as_str() == name).expect("the peer is counted").clone()
    }
}

impl Running {
    pub(crate) fn status(&self) -> Status {
        self.handle.status().borrow().clone()
    }

    pub(crate) async fn figures(&self) -> Figures {
        self.handle.figures().await.expect("the counters can be read")
    }

    /// Takes other peers and waits until the maps have them.
    pub(crate) async fn replace_peers(&self, peers: Vec<Peer>) {
        let (count, prefixes) = (peers.len(), peers.iter().map(|peer| peer.allowed_ips.len()).sum::<usize>());
        self.model_tx.send_replace(model(peers));
        self.wait(|status| (status.peers, status.prefixes) == (count, prefixes)).await;
    }

    /// Says that the link is another now, and waits until it is counted on.
    pub(crate) async fn announce_link(&self, link: Link) {
        self.link_tx.send_replace(None);
        self.wait(|status| status.hook.is_none()).await;
        self.link_tx.send_replace(Some(link));
        self.wait(|status| status.hook.is_some()).await;
    }

    async fn wait(&self, condition: impl Fn(&Status) -> bool) {
        self.passes.set(self.passes.get() + 1);
        let mut status = self.handle.status();
        let waited = tokio::time::timeout(PATIENCE, status.wait_for(|status| condition(status))).await;
        assert!(waited.is_ok(), "after wait {}: {:?}", self.passes.get(), self.status());
    }
}

/// What the kernel's TCP has sent, retransmissions included.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent {
    pub(crate) segments: u64,
    /// Bytes without headers.
    pub(crate) payload: u64,
}

/// The number behind `name` in what `ss --info` prints.
fn figure(text: &str, name: &str) -> Option<u64> {
    text.split_once(name)?.1.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}
