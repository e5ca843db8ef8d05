//! The host as `/system` reads it: a few files of `/proc`, and the disk of the working directory. What cannot be read is empty.

use std::fs;

use super::machine::{Counters, Reading};

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
