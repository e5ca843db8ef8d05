//! A namespace with a BPF file system of its own, servers that ask who called, and callers that say who they are.

use std::fs::{self, Permissions};
use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use integration_tests::netns::NetNs;
use integration_tests::process::Process;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;
use weft_agent::ebpf::callers::status::Basis;
use weft_agent::ebpf::callers::{self, Callers, Identity, Settings, Watched};
use weft_agent::foundation::metrics::Metrics;
use weft_agent::sys::bpf::sockets::{Attached, attached};

const PATIENCE: Duration = Duration::from_secs(20);

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

/// What goes away with the test.
struct Room {
    programs: TempDir,
    cgroups: Mutex<Vec<PathBuf>>,
    _bpffs: BpfFs,
}

impl Drop for Room {
    fn drop(&mut self) {
        let cgroups = self.cgroups.get_mut().unwrap_or_else(PoisonError::into_inner);
        // The inner ones first; one that others use too stays with them.
        for cgroup in cgroups.iter().rev() {
            fs::remove_dir(cgroup).ok();
        }
    }
}

/// What a test sees; its thread is in the namespace.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) settings: Settings,
    pub(crate) metrics: Metrics,
    pub(crate) here: Arc<NetNs>,
    room: Arc<Room>,
}

impl World {
    /// Runs a test inside.
    pub(crate) fn run<F: Future<Output = ()>>(test: impl FnOnce(Self) -> F + Send) {
        let here = Arc::new(NetNs::new().expect("a namespace"));
        let bpffs = BpfFs::mount();
        let instance = here.name().parse().expect("a label");
        let mut settings = Settings::new(instance, callers::config::Config::default()).expect("right");
        settings.pin_root = bpffs.0.path().join("weft");
        let programs = tempfile::tempdir().expect("a temporary directory");
        fs::set_permissions(programs.path(), Permissions::from_mode(0o755)).expect("ours");
        // By another process: a file that this one wrote may be open in what another test is just starting, and is busy then.
        let mut copy = Command::new("cp");
        let copied = copy.arg(env!("CARGO_BIN_EXE_connector")).arg(programs.path().join("connector")).status();
        assert!(copied.expect("cp is everywhere").success(), "the connector is built");
        let room = Arc::new(Room { programs, cgroups: Mutex::default(), _bpffs: bpffs });
        let world = Self { settings, metrics: Metrics::default(), here: Arc::clone(&here), room };
        let inside = here.enter(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(test(world));
        });
        inside.expect("the namespace can be entered");
    }

    /// Starts the classification, which must rest on what the kernel records.
    pub(crate) async fn start(&self) -> Callers {
        let callers = self.start_any().await;
        let status = callers.status().borrow().clone();
        assert_eq!((status.basis, status.can_steer), (Basis::Storage, true), "{status:?}");
        callers
    }

    pub(crate) async fn start_any(&self) -> Callers {
        Callers::start(self.settings.clone(), &self.metrics).await
    }

    /// Works on a thread of its own inside while the runtime goes on.
    pub(crate) async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&Self) -> T + Send + 'static) -> T {
        let world = self.clone();
        tokio::task::spawn_blocking(move || work(&world)).await.expect("the work ends")
    }

    /// A server that asks who called, and compares it with what the caller says.
    pub(crate) fn serve(&self, callers: &Callers, address: &str) -> Server {
        let listener = TcpListener::bind(address).expect("a free address");
        let address = listener.local_addr().expect("bound");
        let watched = callers.watch(address);
        Server::start(callers, listener, address, Some(watched))
    }

    /// A caller that connects once.
    pub(crate) fn connector(&self, to: SocketAddr) -> Command {
        self.named("connector", to)
    }

    /// The same as another user.
    pub(crate) fn as_user(&self, to: SocketAddr, uid: u32) -> Command {
        let mut command = self.connector(to);
        command.uid(uid);
        command
    }

    /// The same, its file called like another program.
    pub(crate) fn named(&self, name: &str, to: SocketAddr) -> Command {
        let mut command = Command::new(self.program(name));
        command.args(["say", &to.to_string(), "1"]);
        command
    }

    /// The file of the caller under another name.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        let own = self.room.programs.path().join("connector");
        let named = self.room.programs.path().join(name);
        if !named.exists() {
            fs::hard_link(own, &named).expect("a name that is free");
        }
        named
    }

    /// The same in a cgroup, below one of the test's own.
    pub(crate) fn in_cgroup(&self, path: &str, to: SocketAddr) -> Command {
        self.inside(&format!("{}/{path}", self.here.name()), to)
    }

    /// The same in the cgroup of a process that this instance supervises.
    pub(crate) fn in_supervised(&self, process: &str, to: SocketAddr) -> Command {
        self.inside(&format!("weft/{}/{process}", self.settings.instance), to)
    }

    fn inside(&self, path: &str, to: SocketAddr) -> Command {
        let mount = cgroup_mount().expect("cgroup2 is mounted");
        let mut cgroup = mount;
        for part in path.split('/') {
            cgroup.push(part);
            if fs::create_dir(&cgroup).is_ok() {
                self.room.cgroups.lock().unwrap_or_else(PoisonError::into_inner).push(cgroup.clone());
            }
        }
        let mut command = self.connector(to);
        command.env("CONNECTOR_CGROUP", cgroup);
        command
    }

    /// A process of `uid` that connects `count` times.
    pub(crate) fn say(&self, to: SocketAddr, count: usize, uid: u32) -> Process {
        let mut command = Command::new(self.program("connector"));
        command.args(["say", &to.to_string(), &count.to_string()]).uid(uid);
        Process::spawn("connector", command).expect("it starts")
    }

    /// Runs a caller to its end; who the server took it for.
    pub(crate) fn one(&self, command: Command, server: &Server) -> Identity {
        let mut child = Process::spawn("caller", command).expect("it starts");
        let identity = server.heard.recv_timeout(PATIENCE).expect("somebody calls");
        let status = child.wait_for_exit(PATIENCE).expect("it ends");
        assert!(status.success(), "{}", child.log());
        identity
    }

    /// Runs any program that connects to the server, however it ends; who the server took it for.
    pub(crate) fn one_of_any(&self, command: Command, server: &Server) -> Identity {
        let mut child = Process::spawn("any", command).expect("it starts");
        let identity = server.heard.recv_timeout(PATIENCE).expect("somebody calls");
        child.wait_for_exit(PATIENCE).expect("it ends");
        identity
    }

    /// A process of `uid` that begins `count` connections and keeps them.
    pub(crate) fn hold(&self, to: SocketAddr, count: usize, uid: u32) -> Process {
        let mut command = Command::new(self.program("connector"));
        command.args(["hold", &to.to_string(), &count.to_string()]).uid(uid);
        Process::spawn("holder", command).expect("it starts")
    }

    /// A real nginx that listens there.
    pub(crate) fn nginx(&self, listen: &str, server: &str) -> Process {
        let directory = self.room.programs.path().join("nginx-files");
        fs::create_dir_all(&directory).expect("ours");
        let (at, file) = (directory.display(), directory.join("nginx.conf"));
        let text = format!(
            "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log;\n\
             events {{}}\n\
             http {{ access_log off; client_body_temp_path {at}/body; proxy_temp_path {at}/proxy;\n\
             fastcgi_temp_path {at}/fastcgi; uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;\n\
             server {{ listen {listen}; {server} }} }}\n"
        );
        fs::write(&file, text).expect("ours");
        let mut command = Command::new("nginx");
        command.arg("-c").arg(&file).arg("-e").arg(directory.join("start.log"));
        let mut nginx = Process::spawn("nginx", command).expect("installed");
        let address: SocketAddr = listen.replace("0.0.0.0", "127.0.0.1").parse().expect("an address");
        nginx.wait_for("it accepts", PATIENCE, || TcpStream::connect(address).is_ok()).expect("it starts");
        nginx
    }

    fn directory(&self) -> PathBuf {
        self.settings.pin_root.join(self.settings.instance.as_str()).join("callers-v1")
    }

    /// The names of all pins, in order.
    pub(crate) fn pins(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory()).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// What is attached where, by the names of the pins.
    pub(crate) fn links(&self) -> Vec<Attached> {
        let pins = self.pins().into_iter().filter(|name| name.contains('-'));
        pins.map(|name| attached(&self.directory().join(name)).expect("a link")).collect()
    }

    /// Has the attached programs look as if another version of the agent had attached them.
    pub(crate) fn age_pins(&self) {
        for name in self.pins() {
            if let Some((hook, _program)) = name.split_once('-') {
                let older = self.directory().join(format!("{hook}-0000000000000001"));
                fs::rename(self.directory().join(&name), older).expect("on one file system");
            }
        }
    }

    pub(crate) fn down(&self) -> (usize, usize) {
        callers::down(&self.settings.pin_root, &self.settings.instance).expect("it can be removed")
    }
}

fn cgroup_mount() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"))?;
    line.split(' ').nth(1).map(|path| Path::new(path).to_owned())
}

/// What a server saw.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Seen {
    /// The record says what the caller says.
    pub(crate) right: u64,
    /// There is no record.
    pub(crate) unknown: u64,
    /// The record says something else.
    pub(crate) wrong: Vec<String>,
}

impl Seen {
    pub(crate) fn add(&mut self, other: &Self) {
        self.right += other.right;
        self.unknown += other.unknown;
        self.wrong.extend(other.wrong.iter().cloned());
    }
}

/// Accepts connections, asks who called, and lets the caller say who it is.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    /// Who called, in order.
    pub(crate) heard: Receiver<Identity>,
    watched: Mutex<Option<Watched>>,
    seen: Arc<Mutex<Seen>>,
    ending: Arc<Mutex<bool>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves a listener that is there already; `address` is where callers go.
    pub(crate) fn start(
        callers: &Callers,
        listener: TcpListener,
        address: SocketAddr,
        watched: Option<Watched>,
    ) -> Self {
        let (tx, heard) = channel();
        let (seen, ending) = (Arc::new(Mutex::new(Seen::default())), Arc::new(Mutex::new(false)));
        let (thread_seen, thread_ending, callers) = (Arc::clone(&seen), Arc::clone(&ending), callers.clone());
        let thread = std::thread::spawn(move || {
            for accepted in listener.incoming() {
                if *thread_ending.lock().unwrap_or_else(PoisonError::into_inner) {
                    break;
                }
                // A caller that has gone before it was accepted is nobody's.
                let Ok(stream) = accepted else { continue };
                hear(&callers, stream, &thread_seen, &tx);
            }
        });
        Self { address, heard, watched: Mutex::new(watched), seen, ending, thread: Some(thread) }
    }

    /// Has its address recorded no longer.
    pub(crate) fn unwatch(&self) {
        drop(self.watched.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Stops accepting; what it saw.
    pub(crate) fn end(mut self) -> Seen {
        self.stop();
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn stop(&mut self) {
        *self.ending.lock().unwrap_or_else(PoisonError::into_inner) = true;
        // Its thread waits for one more.
        let mut to = self.address;
        if to.ip().is_unspecified() {
            to.set_ip(if to.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() });
        }
        drop(TcpStream::connect_timeout(&to, PATIENCE));
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server ends");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.stop();
        }
    }
}

fn hear(callers: &Callers, stream: TcpStream, seen: &Mutex<Seen>, heard: &Sender<Identity>) {
    let Ok(peer) = stream.peer_addr() else { return };
    let local = stream.local_addr().expect("accepted");
    let identity = callers.of(stream.as_fd(), peer, local);
    let mut line = String::new();
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    // A caller that says nothing is one for which only the identity matters.
    drop(BufReader::new(&stream).read_line(&mut line));
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    match identity.record {
        None => seen.unknown += 1,
        Some(record) => {
            let recorded = format!("{} {}", record.pid.unwrap_or_default(), record.uid);
            if recorded == line.trim() { seen.right += 1 } else { seen.wrong.push(format!("{recorded}, not {line}")) }
        }
    }
    // The test may look at the sums only.
    heard.send(identity).ok();
}
