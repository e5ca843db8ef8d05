//! Creating a device, asking how it is, and taking it away.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use crate::shared::Shared;
use crate::socket::UdpSocket;
use crate::tun::{MtuWatch, Tun};
use crate::uapi::server::{self, ControlSocket};
use crate::{inbound, outbound, timers};

/// Where tools look for control sockets.
const CONTROL_DIRECTORY: &str = "/var/run/wireguard";

/// What a device needs from the start; the rest is set through its control socket.
#[derive(Debug, Clone)]
pub struct Options {
    /// The name of the interface, which must not exist.
    pub name: String,
    /// UDP port; 0 lets the kernel choose.
    pub listen_port: u16,
    /// Mark on the tunnel's own packets; 0 is none.
    pub fwmark: u32,
    /// The directory of the control socket. `wg` and `wireguard-control` know only the default.
    pub control_directory: PathBuf,
}

impl Options {
    /// An interface `name` on a port of the kernel's choice.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), listen_port: 0, fwmark: 0, control_directory: CONTROL_DIRECTORY.into() }
    }
}

/// Why there is no device. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    #[error("{name:?} cannot name an interface: use 1 to 15 letters, digits, '-', '_' or '.'")]
    InvalidName { name: String },
    #[error("this kernel has no /dev/net/tun: load the module with `modprobe tun`, or give the container the device")]
    NoTunDevice { source: io::Error },
    #[error("not allowed to create interface {name}: run as root or with CAP_NET_ADMIN")]
    Permission { name: String, source: io::Error },
    #[error("interface {name} exists already: choose another name, or remove it with `ip link delete {name}`")]
    NameTaken { name: String },
    #[error("failed to create interface {name}")]
    Tun { name: String, source: io::Error },
    #[error("UDP port {port} is in use: choose another listen port, or stop the program that holds it")]
    PortInUse { port: u16, source: io::Error },
    #[error("failed to open UDP port {port}")]
    Socket { port: u16, source: io::Error },
    #[error("another device answers on {path}: choose another interface name")]
    ControlSocketInUse { path: PathBuf },
    #[error("failed to create the control socket {path}")]
    ControlSocket { path: PathBuf, source: io::Error },
    #[error("failed to start the threads of interface {name}")]
    Threads { name: String, source: io::Error },
}

/// Which offloads of the kernel are in use; without one the device works and is slower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// TCP super-packets from and to the TUN.
    pub tun_tcp_offload: bool,
    /// UDP super-packets from and to the TUN (Linux 6.2).
    pub tun_udp_offload: bool,
    /// Many messages in one send (`UDP_SEGMENT`).
    pub udp_send_runs: bool,
    /// Many messages in one receive (`UDP_GRO`).
    pub udp_receive_runs: bool,
}

/// A WireGuard device in this process. Dropping it takes interface, sockets and threads away.
pub struct Device {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Device {
    /// Creates the interface in the network namespace of the calling thread, down and without keys, and its control socket.
    pub fn create(options: Options) -> Result<Self, CreateError> {
        let Options { name, listen_port, fwmark, control_directory } = options;
        let tun = Tun::create(&name)?;
        let control = ControlSocket::bind(&control_directory, &name)?;
        let socket = UdpSocket::bind(listen_port, fwmark).map_err(|source| {
            if source.kind() == io::ErrorKind::AddrInUse {
                return CreateError::PortInUse { port: listen_port, source };
            }
            CreateError::Socket { port: listen_port, source }
        })?;
        let failed = |source: io::Error| CreateError::Threads { name: name.clone(), source };
        let watch = MtuWatch::new(&tun).map_err(failed)?;
        let mtu = watch.current().map_err(failed)?;
        let shared = Shared::new(tun, socket, mtu, fwmark, &name).map_err(|error| failed(error.into()))?;
        let mut device = Self { shared: Arc::new(shared), threads: Vec::new() };
        // A thread that does not start drops the device, which stops those that did.
        device.spawn("wg-out", |shared| outbound::run(shared)).map_err(failed)?;
        device.spawn("wg-in", |shared| inbound::run(shared)).map_err(failed)?;
        device.spawn("wg-timers", move |shared| timers::run(shared, &watch)).map_err(failed)?;
        device.spawn("wg-control", move |shared| server::run(shared, &control)).map_err(failed)?;
        Ok(device)
    }

    pub fn name(&self) -> &str {
        &self.shared.name
    }

    pub fn features(&self) -> Features {
        let socket = self.shared.socket();
        Features {
            tun_tcp_offload: self.shared.tun.tcp_offload,
            tun_udp_offload: self.shared.tun.udp_offload,
            udp_send_runs: socket.sends_runs(),
            udp_receive_runs: socket.receives_runs(),
        }
    }

    /// How often it was configured through its control socket.
    pub fn times_configured(&self) -> u64 {
        self.shared.times_configured()
    }

    /// Why the device no longer works: its interface was deleted, or a thread of it failed.
    pub fn failure(&self) -> Option<&str> {
        self.shared.health.failure()
    }

    pub fn is_alive(&self) -> bool {
        self.failure().is_none()
    }

    /// Readable from the moment the device has failed; made to be watched, not read.
    pub fn failed_event(&self) -> BorrowedFd<'_> {
        self.shared.health.failed.as_fd()
    }

    fn spawn(
        &mut self,
        name: &'static str,
        body: impl FnOnce(&Arc<Shared>) -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            // The shared state is either behind locks that tolerate this or atomic, and the device ends with it.
            let failure = match catch_unwind(AssertUnwindSafe(|| body(&shared))) {
                Ok(Ok(())) => return,
                Ok(Err(error)) => format!("{name}: {error}"),
                Err(_panic) => format!("{name} panicked"),
            };
            shared.health.fail(failure);
        })?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.shared.stop();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!(interface = %self.shared.name, "a thread of the device panicked while stopping");
            }
        }
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device")
            .field("name", &self.shared.name)
            .field("failure", &self.failure())
            .finish_non_exhaustive()
    }
}
