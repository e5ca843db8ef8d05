//! Process 1 of the guest: mounts what an agent expects of a host, and ends the machine.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::symlink;
use std::process::Command;

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount};

use super::report::{Exit, Report};
use super::sys;
use crate::tool;

/// Mounted in this order: kind, where.
const MOUNTS: &[(&str, &str)] = &[
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/run"),
    ("tmpfs", "/tmp"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("bpf", "/sys/fs/bpf"),
    ("tracefs", "/sys/kernel/tracing"),
];

/// The second serial port: the report alone; the kernel's console is the first.
const REPORT_PORT: &str = "/dev/ttyS1";

/// Makes the machine a host; afterwards scenarios can run.
pub(crate) fn prepare() -> Result<()> {
    for (kind, place) in MOUNTS {
        fs::create_dir_all(place).ok();
        mount(Some(*kind), *place, Some(*kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("failed to mount {kind} on {place}"))?;
    }
    // What systemd-tmpfiles and ip netns would have made.
    for directory in ["/run/netns", "/run/lock", "/dev/shm"] {
        fs::create_dir_all(directory)?;
    }
    // What udev would have made: `nft` reads its rules from /dev/stdin.
    for (name, number) in [("stdin", 0), ("stdout", 1), ("stderr", 2)] {
        symlink(format!("/proc/self/fd/{number}"), format!("/dev/{name}"))?;
    }
    symlink("/proc/self/fd", "/dev/fd")?;
    fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")?;
    tool::output(Command::new("ip").args(["link", "set", "lo", "up"]))?;
    Ok(())
}

/// Opens the report on its own port.
pub(crate) fn report() -> Result<Report> {
    let port = OpenOptions::new().write(true).open(REPORT_PORT);
    Ok(Report::new(port.with_context(|| format!("failed to open {REPORT_PORT}"))?))
}

/// Says on the kernel's console why there is no report.
pub(crate) fn complain(error: &anyhow::Error) {
    fs::write("/dev/console", format!("init: {error:#}\n")).ok();
}

/// Ends the guest. `Some`: as `/init` wishes; `None`: it could not work, and the host shall see that.
pub(crate) fn halt(exit: Option<Exit>) -> ! {
    if let Some(exit) = exit {
        let error = sys::exit_qemu(exit.code());
        complain(&anyhow::Error::new(error).context("failed to leave QEMU"));
    }
    // Process 1 that ends makes the kernel panic, and `panic=-1` makes that the end of QEMU, with status 0.
    std::process::exit(1)
}

/// What the scenarios name themselves on the kernel's command line.
pub(crate) fn arguments() -> Result<Vec<String>> {
    let line = fs::read_to_string("/proc/cmdline").context("failed to read the kernel's command line")?;
    let mut chosen = line.split_whitespace().filter_map(|word| word.strip_prefix("weft.scenarios="));
    Ok(chosen.next().unwrap_or_default().split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

/// The running kernel's release, `6.1.0-56-cloud-amd64`, as numbers: `(6, 1)`.
pub(crate) fn kernel_version() -> Result<(u32, u32)> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => anyhow::bail!("the kernel release {:?} does not begin with two numbers", release.trim()),
    }
}
