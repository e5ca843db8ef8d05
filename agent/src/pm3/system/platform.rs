//! The host as `/system` reads it: a few files of `/proc`, and the disk of the working directory. What cannot be read is empty.

use std::collections::BTreeSet;
use std::fs;

use nix::unistd::{SysconfVar, sysconf};

use super::host::{Disk, Host, Texts, mounts};
use super::machine::{Counters, Reading};

/// What every Linux answers for `_SC_CLK_TCK` (time(7), "The software clock").
const TICKS_A_SECOND: u64 = 100;

/// The host as it is now. Blocks for the time of some file reads.
pub fn host() -> Host {
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|ticks| u64::try_from(ticks).ok());
    let texts = Texts {
        stat: text("/proc/stat"),
        meminfo: text("/proc/meminfo"),
        loadavg: text("/proc/loadavg"),
        uptime: text("/proc/uptime"),
        hostname: text("/proc/sys/kernel/hostname"),
        kernel: text("/proc/sys/kernel/osrelease"),
        os_release: Some(text("/etc/os-release"))
            .filter(|text| !text.is_empty())
            .unwrap_or_else(|| text("/usr/lib/os-release")),
        zone: zone(),
        cgroup_of_init: text("/proc/1/cgroup"),
        has_container_mark: ["/.dockerenv", "/run/.containerenv"].iter().any(|path| fs::metadata(path).is_ok()),
        ticks_a_second: ticks.unwrap_or(TICKS_A_SECOND),
    };
    let mut host = Host::read(&texts);
    host.disks = disks();
    host.macs = macs();
    host
}

/// The name of the time zone, as tzset(3) finds it.
fn zone() -> String {
    let linked = fs::read_link("/etc/localtime").unwrap_or_default().to_string_lossy().into_owned();
    let named = linked.split_once("zoneinfo/").map(|(_, name)| name.to_owned());
    named.unwrap_or_else(|| text("/etc/timezone").trim().to_owned())
}

/// Every file system that lies on a disk of this host. One over the network is not asked: it may never answer.
fn disks() -> Vec<Disk> {
    let found = mounts(&text("/proc/self/mountinfo"), &text("/proc/filesystems"));
    let measured = found.into_iter().filter_map(|mount| {
        let figures = nix::sys::statvfs::statvfs(mount.path.as_str()).ok()?;
        let block = figures.fragment_size();
        Some(Disk {
            path: mount.path,
            device: mount.device,
            total_bytes: figures.blocks() * block,
            free_bytes: figures.blocks_free() * block,
            inodes: figures.files(),
            inodes_free: figures.files_free(),
        })
    });
    measured.collect()
}

/// The hardware addresses of the links, each once.
fn macs() -> Vec<String> {
    let links = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let addresses =
        links.map(|link| fs::read_to_string(link.path().join("address")).unwrap_or_default().trim().to_owned());
    let has_bits = |address: &String| address.bytes().any(|byte| byte.is_ascii_hexdigit() && byte != b'0');
    addresses.filter(has_bits).collect::<BTreeSet<_>>().into_iter().collect()
}

pub(super) fn counters() -> Counters {
    Counters::parse(&text("/proc/stat"), &text("/proc/net/dev"))
}

pub(super) fn read() -> Reading {
    let (disk_free, disk_total) = disk();
    Reading {
        cpuinfo: text("/proc/cpuinfo"),
        meminfo: text("/proc/meminfo"),
        uptime: text("/proc/uptime"),
        loadavg: text("/proc/loadavg"),
        hostname: text("/proc/sys/kernel/hostname"),
        boot_id: text("/proc/sys/kernel/random/boot_id"),
        kernel: text("/proc/sys/kernel/osrelease"),
        arch: std::env::consts::ARCH.to_owned(),
        processes: processes(),
        disk_free,
        disk_total,
    }
}

fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn processes() -> usize {
    let is_pid = |name: &std::ffi::OsStr| name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
    fs::read_dir("/proc")
        .map(|entries| entries.flatten().filter(|entry| is_pid(&entry.file_name())).count())
        .unwrap_or(0)
}

fn disk() -> (u64, u64) {
    nix::sys::statvfs::statvfs(".").map_or((0, 0), |figures| {
        let block = figures.fragment_size();
        (figures.blocks_available() * block, figures.blocks() * block)
    })
}
