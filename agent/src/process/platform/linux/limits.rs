//! What the kernel keeps a process below: in the unified hierarchy where the controller is there, else in the older one.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit};

use crate::process::definition::Limits;
use crate::process::platform::{Place, StartError};
use crate::sys::cgroup::{self, Hierarchies};

/// The period in which the share of the processors is counted.
const PERIOD_MICROS: u64 = 100_000;

/// One limit in both hierarchies.
struct Limit {
    key: &'static str,
    controller: &'static str,
    unified: (&'static str, String),
    legacy: (&'static str, String),
}

fn wanted(limits: &Limits) -> Vec<Limit> {
    let mut wanted = Vec::new();
    if let Some(memory) = limits.memory {
        wanted.push(Limit {
            key: "limits.memory",
            controller: "memory",
            unified: ("memory.max", memory.0.to_string()),
            legacy: ("memory.limit_in_bytes", memory.0.to_string()),
        });
    }
    if let Some(cpus) = limits.cpus {
        let quota = u64::from(cpus.0) * PERIOD_MICROS / 1000;
        wanted.push(Limit {
            key: "limits.cpus",
            controller: "cpu",
            unified: ("cpu.max", format!("{quota} {PERIOD_MICROS}")),
            legacy: ("cpu.cfs_quota_us", quota.to_string()),
        });
    }
    if let Some(tasks) = limits.tasks {
        wanted.push(Limit {
            key: "limits.tasks",
            controller: "pids",
            unified: ("pids.max", tasks.to_string()),
            legacy: ("pids.max", tasks.to_string()),
        });
    }
    wanted
}

/// Makes the controllers available below `root`, where they are not yet; a host that has none of them here sets limits in
/// the older hierarchy.
pub(super) fn delegate(hierarchies: &Hierarchies, root: &Path) {
    let here = hierarchies.unified_controllers();
    let offered = |controller: &&str| here.iter().any(|name| name == controller);
    let mut path = hierarchies.unified.clone();
    for part in [None, root.iter().next(), root.iter().nth(1)] {
        path.extend(part);
        let handed_down = cgroup::handed_down(&path);
        let is_missing = |controller: &&str| !handed_down.iter().any(|name| name == controller);
        for controller in ["memory", "cpu", "pids"].iter().copied().filter(offered).filter(is_missing) {
            // A refusal shows when a limit is set.
            cgroup::write(&path, "cgroup.subtree_control", &format!("+{controller}")).ok();
        }
    }
}

/// Sets the limits; returns `cgroup.procs` of the older hierarchies that the process has to enter.
///
/// # Errors
/// A limit that cannot be set on this host.
pub(super) fn apply(
    hierarchies: &Hierarchies,
    root: &Path,
    place: &Place,
    limits: &Limits,
) -> Result<Vec<File>, StartError> {
    let mut moves = Vec::new();
    for limit in wanted(limits) {
        let refused = |error: io::Error| StartError {
            why: format!("{} cannot be set on this host: {error}", limit.key),
            permanent: true,
        };
        let unified = hierarchies.unified.join(root).join(place.cgroup());
        let (name, value) = &limit.unified;
        if unified.join(name).exists() {
            cgroup::write(&unified, name, value).map_err(refused)?;
            continue;
        }
        let mount = hierarchies
            .legacy(limit.controller)
            .ok_or_else(|| refused(io::Error::other(format!("the kernel has no {} controller", limit.controller))))?;
        let path = mount.join(root).join(place.cgroup());
        cgroup::create(&path).map_err(refused)?;
        let (name, value) = &limit.legacy;
        cgroup::write(&path, name, value).map_err(refused)?;
        moves.push(OpenOptions::new().write(true).open(path.join("cgroup.procs")).map_err(refused)?);
    }
    Ok(moves)
}

/// Takes the cgroups of the older hierarchies away.
pub(super) fn remove(hierarchies: &Hierarchies, root: &Path, place: &Place) {
    for (_, mount) in &hierarchies.legacy {
        // One that was never made is away; one that the kernel still empties is taken by the next agent's search.
        cgroup::remove(&mount.join(root).join(place.cgroup())).ok();
    }
}

/// Open files where a definition says nothing: what select(2) can take, and what a program that knows better may raise.
const OPEN_FILES: u64 = 1024;

/// Locked memory where a definition says nothing: what the kernel gives who says nothing. The agent's own is what its maps take.
const LOCKED_BYTES: u64 = 8 * 1024 * 1024;

/// The limits of setrlimit(2): resource, soft, hard.
pub(super) fn resources(limits: &Limits) -> Vec<(u32, u64, u64)> {
    let open_files = match limits.open_files {
        Some(files) => Some((files, files)),
        // The agent raised its own soft limit to the hard one, which stays what the service manager gave.
        None => getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(_soft, hard)| (OPEN_FILES.min(hard), hard)),
    };
    let locked = match limits.locked_memory {
        Some(bytes) => Some(bytes.0),
        None => getrlimit(Resource::RLIMIT_MEMLOCK).ok().map(|(_soft, hard)| locked_by_default(hard)),
    };
    let open_files = open_files.map(|(soft, hard)| (nix::libc::RLIMIT_NOFILE, soft, hard));
    let locked = locked.map(|bytes| (nix::libc::RLIMIT_MEMLOCK, bytes, bytes));
    open_files.into_iter().chain(locked).collect()
}

/// Of an agent that may lock `hard` bytes itself.
fn locked_by_default(hard: u64) -> u64 {
    LOCKED_BYTES.min(hard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_unit_gives_the_agent_to_lock_is_not_handed_on() {
        assert_eq!(locked_by_default(u64::MAX), 8 << 20);
        assert_eq!(locked_by_default(65536), 65536, "nobody gets more than there is");
    }
}
