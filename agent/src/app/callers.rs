//! Gives the gateway what the kernel records about its callers: the seam between `ebpf::callers` and `pm3::caller`.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use crate::api::gateway::Steering;
use crate::ebpf::callers::status::Basis as Source;
use crate::ebpf::callers::{Callers, Identity};
use crate::foundation::error::chain;
use crate::pm3::caller::{Basis, Caller, Classifier, Standing};

/// The classification as the gateway asks for it.
pub(super) struct Recorded(pub(super) Callers);

impl Classifier for Recorded {
    fn classify(&self, socket: BorrowedFd<'_>, peer: SocketAddr, local: SocketAddr) -> Caller {
        caller(&self.0.of(socket, peer, local))
    }

    fn watch(&self, address: SocketAddr) -> Box<dyn Send + Sync> {
        Box::new(self.0.watch(address))
    }

    fn basis(&self) -> String {
        self.0.status().borrow().basis.to_string()
    }

    fn fallback_reason(&self) -> Option<String> {
        let status = self.0.status();
        let status = status.borrow();
        status.fallback_reason.clone().filter(|_| !status.is_chosen)
    }
}

impl Steering for Recorded {
    fn steer(&self, address: SocketAddr, socket: BorrowedFd<'_>) -> Result<Box<dyn Send + Sync>, String> {
        match self.0.steer(address, socket) {
            Ok(steered) => Ok(Box::new(steered)),
            Err(error) => Err(chain(&error)),
        }
    }
}

fn caller(identity: &Identity) -> Caller {
    let verdict = &identity.verdict;
    let basis = match (&identity.record, identity.basis) {
        (Some(_), Source::Storage) => Basis::Storage,
        (Some(_), Source::SockDiag) => Basis::SockDiag,
        (None, _) | (Some(_), Source::Nothing) => Basis::Nothing,
    };
    Caller {
        standing: if verdict.is_internal { Standing::Internal } else { Standing::External },
        basis,
        uid: identity.record.map(|record| record.uid),
        pid: identity.record.and_then(|record| record.pid),
        unit: verdict.unit.clone(),
        executable: verdict.executable.clone(),
        reason: Some(verdict.reason.clone()),
    }
}
