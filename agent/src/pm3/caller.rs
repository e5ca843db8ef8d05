//! Who calls, as far as the kernel vouches for it, and the seam that decides it.
//!
//! Invariant: what nobody vouches for is [`Standing::External`]; a classifier that fails says so by that, never by a guess.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// Whether a caller may reach the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Internal,
    External,
}

/// What the standing rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// The record of `connect()` on the control socket.
    Socket,
    /// The record of `connect()` in socket storage, by eBPF.
    Storage,
    /// The owner of the other end of a loopback connection, asked of the kernel after the fact.
    SockDiag,
    /// A client certificate of the mesh.
    Certificate,
    /// A signed URL; it vouches for one request.
    Signature,
    /// Nothing: the caller is external.
    Nothing,
}

impl Basis {
    /// How it is written in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Socket => "socket",
            Self::Storage => "storage",
            Self::SockDiag => "sock_diag",
            Self::Certificate => "certificate",
            Self::Signature => "signature",
            Self::Nothing => "nothing",
        }
    }
}

/// Who opened a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub standing: Standing,
    pub basis: Basis,
    pub uid: Option<u32>,
    pub pid: Option<u32>,
    /// The systemd unit or supervised process, from its cgroup.
    pub unit: Option<Arc<str>>,
    /// The file of its program.
    pub executable: Option<Arc<str>>,
    /// Which rule decided about its standing.
    pub reason: Option<Arc<str>>,
}

impl Caller {
    /// Nobody vouches for this one.
    pub fn unknown() -> Self {
        Self {
            standing: Standing::External,
            basis: Basis::Nothing,
            uid: None,
            pid: None,
            unit: None,
            executable: None,
            reason: None,
        }
    }

    /// Whether the API is open to it.
    pub fn is_internal(&self) -> bool {
        self.standing == Standing::Internal
    }
}

/// Decides about a connection once, when it is accepted and before its first byte is read.
pub trait Classifier: Send + Sync + 'static {
    /// Who opened `socket`. It must not wait on anything but the kernel.
    fn classify(&self, socket: BorrowedFd<'_>, peer: SocketAddr, local: SocketAddr) -> Caller;
    /// Has connections to `address` recorded from now on, for as long as the guard lives; called before anybody can connect.
    fn watch(&self, address: SocketAddr) -> Box<dyn Send + Sync>;
    /// What the classification rests on, a sentence for status and doctor.
    fn basis(&self) -> String;
    /// Why that is not the best there is.
    fn fallback_reason(&self) -> Option<String> {
        None
    }
}
