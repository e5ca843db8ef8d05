//! The classification without eBPF: who owns the client's end of a loopback connection, asked of the kernel right after
//! `accept` (`sock_diag(7)`).
//!
//! Only root and the agent's own user are internal, as on the control socket. A client that is gone already, that lives in
//! another network namespace, or whose packets came from elsewhere has no socket here and stays external.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use super::{Basis, Caller, Classifier, Standing};
use crate::sys::sock_diag;

/// Trusts these users of this host.
#[derive(Debug)]
pub struct LocalUsers {
    own_uid: u32,
}

impl LocalUsers {
    /// Trusts root and the user the agent runs as.
    pub fn new() -> Self {
        Self { own_uid: nix::unistd::geteuid().as_raw() }
    }
}

impl Default for LocalUsers {
    fn default() -> Self {
        Self::new()
    }
}

impl Classifier for LocalUsers {
    fn classify(&self, _socket: BorrowedFd<'_>, peer: SocketAddr, local: SocketAddr) -> Caller {
        if !peer.ip().to_canonical().is_loopback() {
            return Caller::unknown();
        }
        // The client's end has our remote address as its own.
        match sock_diag::owner(peer, local) {
            Ok(Some(uid)) => {
                let trusted = uid == 0 || uid == self.own_uid;
                let standing = if trusted { Standing::Internal } else { Standing::External };
                Caller { standing, basis: Basis::SockDiag, uid: Some(uid), pid: None, unit: None }
            }
            Ok(None) => Caller::unknown(),
            Err(error) => {
                tracing::warn!(%error, "the kernel does not tell who called; taken as external");
                Caller::unknown()
            }
        }
    }

    fn watch(&self, _address: SocketAddr) -> Box<dyn Send + Sync> {
        // The kernel is asked after the fact: there is nothing to record.
        Box::new(())
    }

    fn basis(&self) -> String {
        "sock_diag: loopback callers are internal if the client's socket belongs to root or to the agent's user"
            .to_owned()
    }
}
