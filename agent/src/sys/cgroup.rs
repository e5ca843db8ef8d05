//! cgroups: one directory for each thing that runs, made, filled at birth, emptied and taken away as a whole.
//!
//! The unified hierarchy (v2) owns processes everywhere: `cgroup.kill` ends all of them, `cgroup.events` says when none is
//! left. Where a controller hangs in the older hierarchy (v1, hybrid hosts), its limit is set there.

#![expect(
    unsafe_code,
    reason = "extended attributes and readiness of a descriptor have no safe wrapper in the libraries we use"
)]

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Where the hierarchies of this host are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchies {
    /// The unified hierarchy.
    pub unified: PathBuf,
    /// Mounts of v1 controllers.
    pub legacy: Vec<(String, PathBuf)>,
}

impl Hierarchies {
    /// Reads `/proc/self/mountinfo`; `None` where the unified hierarchy is not mounted.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn find() -> io::Result<Option<Self>> {
        Ok(Self::parse(&fs::read_to_string("/proc/self/mountinfo")?))
    }

    fn parse(mounts: &str) -> Option<Self> {
        let mut unified = None;
        let mut legacy = Vec::new();
        for line in mounts.lines() {
            // ID PARENT DEVICE ROOT MOUNT-POINT OPTIONS … - TYPE SOURCE SUPER-OPTIONS (proc(5)).
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(point) = left.split(' ').nth(4) else { continue };
            let mut right = right.split(' ');
            match right.next() {
                Some("cgroup2") if unified.is_none() => unified = Some(PathBuf::from(point)),
                Some("cgroup") => {
                    let options = right.nth(1).unwrap_or_default();
                    let controllers = options.split(',').filter(|option| matches!(*option, "memory" | "cpu" | "pids"));
                    legacy.extend(controllers.map(|controller| (controller.to_owned(), PathBuf::from(point))));
                }
                _ => {}
            }
        }
        Some(Self { unified: unified?, legacy })
    }

    /// Where `controller` hangs in the older hierarchy.
    pub fn legacy(&self, controller: &str) -> Option<&Path> {
        self.legacy.iter().find(|(name, _)| name == controller).map(|(_, path)| path.as_path())
    }

    /// The controllers that the unified hierarchy has.
    pub fn unified_controllers(&self) -> Vec<String> {
        let text = fs::read_to_string(self.unified.join("cgroup.controllers")).unwrap_or_default();
        text.split_whitespace().map(str::to_owned).collect()
    }
}

/// Makes the directory and its parents below the mount; one that exists is fine.
///
/// # Errors
/// The kernel refuses.
pub fn create(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    match fs::create_dir(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir_all(path),
        Err(error) => Err(error),
    }
}

/// Writes `value` to the control file `name` of the cgroup at `path`.
///
/// # Errors
/// There is no such file, or the kernel refuses the value.
pub fn write(path: &Path, name: &str, value: &str) -> io::Result<()> {
    fs::OpenOptions::new().write(true).open(path.join(name))?.write_all(value.as_bytes())
}

/// The controllers that the cgroup at `path` hands down to those below it.
pub fn handed_down(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path.join("cgroup.subtree_control")).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// The processes in the cgroup itself; none where it does not exist.
pub fn members(path: &Path) -> Vec<u32> {
    let text = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// The numbers of the cgroup and of those right below it, as the kernel tells them of sockets.
pub fn ids(path: &Path) -> BTreeSet<u64> {
    let below = fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let directories = below.chain([path.to_owned()]).filter_map(|path| fs::metadata(path).ok());
    directories.filter(fs::Metadata::is_dir).map(|metadata| metadata.ino()).collect()
}

/// Whether a process lives in the cgroup or below it.
pub fn is_populated(path: &Path) -> bool {
    fs::read_to_string(path.join("cgroup.events")).is_ok_and(|text| text.lines().any(|line| line == "populated 1"))
}

/// Kills every process in the cgroup and below it, at once and without a race against forks.
///
/// # Errors
/// The kernel refuses; a cgroup that does not exist has nothing to kill.
pub fn kill(path: &Path) -> io::Result<()> {
    match write(path, "cgroup.kill", "1") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Waits until no process is left in the cgroup or below it; one that does not exist is empty.
///
/// # Errors
/// `cgroup.events` cannot be watched.
pub async fn emptied(path: &Path) -> io::Result<()> {
    let file = match fs::File::open(path.join("cgroup.events")) {
        Ok(file) => OwnedFd::from(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !is_populated(path) {
        return Ok(());
    }
    // SAFETY: an owned descriptor stays open and the same for as long as it lives, which the AsyncFd does not outlive.
    let events = unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) }.map_err(io::Error::from)?;
    loop {
        let mut guard = events.ready(Interest::PRIORITY).await?;
        guard.clear_ready();
        // A read through the watched file arms the next notification (kernfs).
        if !is_populated_at(events.get_ref()) {
            return Ok(());
        }
    }
}

fn is_populated_at(file: &OwnedFd) -> bool {
    let mut buffer = [0; 64];
    let length = nix::sys::uio::pread(file, &mut buffer, 0).unwrap_or_default();
    buffer[..length].split(|byte| *byte == b'\n').any(|line| line == b"populated 1")
}

/// Takes the cgroup and those below it away; one that does not exist is away.
///
/// # Errors
/// Processes live in it (`EBUSY`).
pub fn remove(path: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path())?;
        }
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Writes the extended attribute `name` of the directory at `path`; it goes away with it.
///
/// # Errors
/// The kernel has no attributes of users on cgroups (before 5.7), or the value is too long.
pub fn set_attribute(path: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    let (path, name) = (CString::new(path.as_os_str().as_bytes())?, CString::new(name)?);
    // SAFETY: both texts end with NUL, and the length is that of the value.
    let result = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The extended attribute `name` of the directory at `path`, up to 4096 bytes.
pub fn attribute(path: &Path, name: &str) -> Option<Vec<u8>> {
    let (path, name) = (CString::new(path.as_os_str().as_bytes()).ok()?, CString::new(name).ok()?);
    let mut value = vec![0_u8; 4096];
    // SAFETY: the kernel writes no more than the length of the buffer.
    let length = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(usize::try_from(length).ok()?);
    Some(value)
}

/// CPU time that the cgroup has used, in microseconds (`cpu.stat`, without a controller too).
pub fn cpu_usage_micros(path: &Path) -> Option<u64> {
    let text = fs::read_to_string(path.join("cpu.stat")).ok()?;
    text.strip_prefix("usage_usec ")?.lines().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_and_unified_hosts_are_told_apart() {
        let hybrid = "30 25 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      31 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:1 - cgroup cgroup rw,cpu,cpuacct\n\
                      35 25 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let found = Hierarchies::parse(hybrid).expect("cgroup2 is there");
        assert_eq!(found.unified, Path::new("/sys/fs/cgroup/unified"));
        assert_eq!(found.legacy("cpu"), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct")));
        assert_eq!(found.legacy("pids"), None);
        let unified = Hierarchies::parse("35 25 0:31 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n");
        assert_eq!(unified.map(|found| found.unified), Some(PathBuf::from("/sys/fs/cgroup")));
        assert_eq!(Hierarchies::parse("1 1 0:1 / / rw - ext4 /dev/vda rw\n"), None);
    }
}
