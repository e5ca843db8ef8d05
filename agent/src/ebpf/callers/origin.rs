//! What `/proc` and the cgroup hierarchy say about a recorded caller: where its cgroup is, what its program is called.
//!
//! A process id may have passed to another process since: what is read by it counts only if the process began before
//! the connection, and a cgroup's path only if the directory there has the recorded id.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Paths that are remembered; then it begins anew. Ids are not used again, so no entry is ever wrong.
const REMEMBERED: usize = 4096;
/// Directories looked at when a cgroup must be searched for.
const SEARCHED: usize = 20_000;

/// Where cgroup2 is mounted first (proc_pid_mountinfo(5)).
pub(super) fn cgroup_mount() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let is_it = file_system.split(' ').next() == Some("cgroup2");
        is_it.then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// Paths of cgroups by their ids.
#[derive(Debug)]
pub(super) struct Cgroups {
    mount: Option<PathBuf>,
    known: Mutex<HashMap<u64, Arc<str>>>,
}

impl Cgroups {
    pub(super) fn new() -> Self {
        Self { mount: cgroup_mount(), known: Mutex::default() }
    }

    /// The path of a cgroup below the mount, beginning with a slash; `pid` was in it a moment ago.
    pub(super) fn path(&self, id: u64, pid: Option<u32>) -> Option<Arc<str>> {
        if let Some(path) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&id) {
            return Some(Arc::clone(path));
        }
        let mount = self.mount.as_deref()?;
        let path: Arc<str> = pid.and_then(|pid| of_process(mount, id, pid)).or_else(|| search(mount, id))?.into();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(id, Arc::clone(&path));
        Some(path)
    }

    /// The processes in a cgroup now.
    pub(super) fn processes(&self, path: &str) -> Vec<u32> {
        let Some(mount) = &self.mount else { return Vec::new() };
        let file = mount.join(path.trim_start_matches('/')).join("cgroup.procs");
        let text = fs::read_to_string(file).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }
}

fn of_process(mount: &Path, id: u64, pid: u32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    let inode = fs::metadata(mount.join(path.trim_start_matches('/'))).ok()?.ino();
    (inode == id).then(|| path.to_owned())
}

/// Looks through the hierarchy, outer groups first.
fn search(mount: &Path, id: u64) -> Option<String> {
    let mut waiting = std::collections::VecDeque::from([mount.to_owned()]);
    for _ in 0..SEARCHED {
        let directory = waiting.pop_front()?;
        if fs::metadata(&directory).is_ok_and(|metadata| metadata.ino() == id) {
            let below = directory.strip_prefix(mount).ok()?;
            return Some(format!("/{}", below.display()));
        }
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        let directories = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        waiting.extend(directories.map(|entry| entry.path()));
    }
    None
}

/// The name of the process, as it is now.
pub(super) fn process_name(pid: u32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(text.trim_end_matches('\n').to_owned())
}

/// The file that the process runs. Needs CAP_SYS_PTRACE for processes with more capabilities than ours.
pub(super) fn executable(pid: u32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/exe")).ok()
}

/// Whether the process began before that moment, in nanoseconds since boot.
pub(super) fn began_before(pid: u32, moment: u64) -> bool {
    let Ok(text) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    start_nanoseconds(&text, ticks_per_second()).is_some_and(|start| start <= moment)
}

fn ticks_per_second() -> u64 {
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten();
    ticks.and_then(|ticks| u64::try_from(ticks).ok()).filter(|ticks| *ticks > 0).unwrap_or(100)
}

/// Field 22 of `/proc/PID/stat`, clock ticks since boot; the name before it may hold anything.
fn start_nanoseconds(stat: &str, ticks: u64) -> Option<u64> {
    let after_name = stat.rsplit_once(')')?.1;
    let start: u64 = after_name.split_whitespace().nth(19)?.parse().ok()?;
    start.checked_mul(1_000_000_000 / ticks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_is_the_22nd_field_whatever_the_name_is() {
        let stat = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 250 20 21";
        assert_eq!(start_nanoseconds(stat, 100), Some(2_500_000_000));
        assert_eq!(start_nanoseconds("7 (a) S 1", 100), None);
    }

    #[test]
    fn this_process_began_before_now_and_after_boot() {
        let own = std::process::id();
        assert!(began_before(own, u64::MAX));
        assert!(!began_before(own, 0));
    }

    #[test]
    fn the_own_cgroup_is_found_by_its_id_with_and_without_the_process() {
        let Some(mount) = cgroup_mount() else { return };
        let text = fs::read_to_string("/proc/self/cgroup").expect("proc is mounted");
        let Some(path) = text.lines().find_map(|line| line.strip_prefix("0::")) else { return };
        let Ok(metadata) = fs::metadata(mount.join(path.trim_start_matches('/'))) else { return };
        for pid in [Some(std::process::id()), None] {
            assert_eq!(Cgroups::new().path(metadata.ino(), pid).as_deref(), Some(path));
        }
        assert_eq!(Cgroups::new().path(u64::MAX, None), None);
    }
}
