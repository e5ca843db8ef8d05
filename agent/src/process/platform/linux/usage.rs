//! What the processes of a cgroup use.

use std::fs;
use std::path::Path;

use crate::process::platform::Usage;
use crate::sys::cgroup;

/// Reads the cgroup at `path`, whose main process is `pid`.
pub(super) fn read(path: &Path, pid: u32) -> Option<Usage> {
    let cpu_micros = cgroup::cpu_usage_micros(path)?;
    Some(Usage { cpu_micros, memory_bytes: memory(path, pid) })
}

/// `memory.current` counts page cache that nobody would miss; resident memory is what PM2 and people mean.
fn memory(path: &Path, pid: u32) -> u64 {
    let members = cgroup::members(path);
    if members.is_empty() { resident(pid) } else { members.iter().map(|pid| resident(*pid)).sum() }
}

/// The second field of `/proc/PID/statm` in bytes; a process that is gone uses nothing.
fn resident(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages: u64 = text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
    pages * page_bytes()
}

fn page_bytes() -> u64 {
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    size.and_then(|size| u64::try_from(size).ok()).unwrap_or(4096)
}
