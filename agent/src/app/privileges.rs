//! Root is given up down to the capabilities that the enabled roles need.
//!
//! Capabilities belong to threads: [`restrict`] must run before the first other thread starts, so that all inherit it.
//! Where no processes are supervised the bounding set shrinks too, so that a program the agent starts (`nft`) cannot get back
//! what the agent gave up; a supervised process of root is an ordinary process of root.

use std::collections::HashSet;

use caps::errors::CapsError;
use caps::{CapSet, Capability};

/// What is switched on, as far as it decides on capabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roles {
    /// BPF programs are loaded.
    pub accounting: bool,
    /// Callers of the gateway are recorded by BPF programs, and their programs are looked up.
    pub callers: bool,
    /// A port below 1024 is bound.
    pub low_port: bool,
    /// The control socket is handed to a group.
    pub group_socket: bool,
    /// Processes are started, with the rights of any user.
    pub processes: bool,
}

/// Why the agent may not run, or could not give privileges up.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    #[error("the agent lacks {missing}; run it as root (sudo weft agent) or by the systemd unit, which grants them")]
    Missing { missing: String },
    #[error("failed to read the capabilities of this process")]
    Read(#[source] CapsError),
    #[error("failed to give up capabilities")]
    Drop(#[source] CapsError),
}

/// What `roles` need: first what the agent cannot do without, then what it uses if it has it.
pub fn needed(roles: Roles) -> (Vec<Capability>, Vec<Capability>) {
    // Links, addresses, routes, TUN, nftables, attaching to tcx, SO_MARK.
    let required = vec![Capability::CAP_NET_ADMIN];
    let mut useful = Vec::new();
    if roles.accounting || roles.callers {
        useful.extend([Capability::CAP_BPF, Capability::CAP_PERFMON]);
    }
    if roles.callers {
        // To see which file a process runs.
        useful.push(Capability::CAP_SYS_PTRACE);
    }
    if roles.low_port {
        useful.push(Capability::CAP_NET_BIND_SERVICE);
    }
    if roles.group_socket {
        useful.push(Capability::CAP_CHOWN);
    }
    if roles.processes {
        // Their user and groups, their directories, signals to them, their limits, their bounding set, their FIFOs.
        useful.extend([
            Capability::CAP_SETUID,
            Capability::CAP_SETGID,
            Capability::CAP_DAC_OVERRIDE,
            Capability::CAP_KILL,
            Capability::CAP_SYS_RESOURCE,
            Capability::CAP_SETPCAP,
        ]);
        if !roles.group_socket {
            useful.push(Capability::CAP_CHOWN);
        }
    }
    (required, useful)
}

/// Checks that the agent has what it cannot do without, before anything is read or made.
///
/// # Errors
/// A required capability that is not there.
pub fn require(roles: Roles) -> Result<(), PrivilegeError> {
    let held = caps::read(None, CapSet::Permitted).map_err(PrivilegeError::Read)?;
    let (required, _useful) = needed(roles);
    let missing: Vec<String> =
        required.iter().filter(|capability| !held.contains(capability)).map(ToString::to_string).collect();
    if missing.is_empty() { Ok(()) } else { Err(PrivilegeError::Missing { missing: missing.join(", ") }) }
}

/// Keeps what `roles` need and drops the rest for good; returns what was kept.
///
/// # Errors
/// The kernel refuses.
pub fn restrict(roles: Roles) -> Result<Vec<Capability>, PrivilegeError> {
    let held = caps::read(None, CapSet::Permitted).map_err(PrivilegeError::Read)?;
    let (required, useful) = needed(roles);
    let kept: HashSet<Capability> =
        required.into_iter().chain(useful).filter(|capability| held.contains(capability)).collect();
    // The bounding set is what a process that the agent starts for an operator may have: it is theirs to shrink.
    if held.contains(&Capability::CAP_SETPCAP) && !roles.processes {
        let bounding = caps::read(None, CapSet::Bounding).map_err(PrivilegeError::Read)?;
        for capability in bounding.difference(&kept) {
            caps::drop(None, CapSet::Bounding, *capability).map_err(PrivilegeError::Drop)?;
        }
    }
    caps::set(None, CapSet::Inheritable, &HashSet::new()).map_err(PrivilegeError::Drop)?;
    caps::set(None, CapSet::Effective, &kept).map_err(PrivilegeError::Drop)?;
    caps::set(None, CapSet::Permitted, &kept).map_err(PrivilegeError::Drop)?;
    let mut kept: Vec<Capability> = kept.into_iter().collect();
    kept.sort_by_key(Capability::index);
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_brings_its_own_and_nothing_else() {
        let none = Roles { accounting: false, callers: false, low_port: false, group_socket: false, processes: false };
        assert_eq!(needed(none), (vec![Capability::CAP_NET_ADMIN], vec![]));
        let all = Roles { accounting: true, callers: true, low_port: true, group_socket: true, processes: false };
        let expected = vec![
            Capability::CAP_BPF,
            Capability::CAP_PERFMON,
            Capability::CAP_SYS_PTRACE,
            Capability::CAP_NET_BIND_SERVICE,
            Capability::CAP_CHOWN,
        ];
        assert_eq!(needed(all), (vec![Capability::CAP_NET_ADMIN], expected));
    }
}
