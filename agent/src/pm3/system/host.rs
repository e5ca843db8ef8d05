//! This host by the figures of the webmesh contract, read from what `/proc` and `os-release` say. Pure but for [`host`].

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use super::machine::memory;
pub use super::platform::host;

/// The host at one moment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Host {
    pub name: String,
    pub kernel: String,
    pub booted_at: Option<SystemTime>,
    pub uptime: Duration,
    pub is_container: bool,
    /// As the zone database calls it; empty where nothing says.
    pub zone: String,
    pub macs: Vec<String>,
    pub os: Os,
    pub times: Times,
    /// Means over one, five and fifteen minutes.
    pub load: [f32; 3],
    pub memory: Memory,
    pub disks: Vec<Disk>,
}

/// The distribution (os-release(5)).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Os {
    pub id: String,
    /// What it descends from; its own id where it descends from nothing.
    pub family: String,
    pub name: String,
    pub version: String,
    pub build: String,
    pub codename: String,
    /// The numbers of `VERSION_ID`; 0 where it has fewer.
    pub numbers: [i64; 3],
}

/// What all processors together have done since boot (proc(5), `stat`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Times {
    pub user: Duration,
    pub nice: Duration,
    pub system: Duration,
    pub idle: Duration,
    pub io_wait: Duration,
    pub irq: Duration,
    pub soft_irq: Duration,
    pub steal: Duration,
}

/// Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Memory {
    pub total: u64,
    pub available: u64,
    pub free: u64,
    pub swap_total: u64,
    pub swap_free: u64,
}

/// A file system on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    pub path: String,
    pub device: String,
    pub total_bytes: u64,
    pub free_bytes: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

/// The files as they were read.
#[derive(Debug, Clone, Default)]
pub(super) struct Texts {
    pub(super) stat: String,
    pub(super) meminfo: String,
    pub(super) loadavg: String,
    pub(super) uptime: String,
    pub(super) hostname: String,
    pub(super) kernel: String,
    pub(super) os_release: String,
    pub(super) zone: String,
    pub(super) cgroup_of_init: String,
    pub(super) has_container_mark: bool,
    pub(super) ticks_a_second: u64,
}

impl Host {
    /// All but the disks and the hardware addresses.
    pub(super) fn read(texts: &Texts) -> Self {
        let mut load = [0.0; 3];
        for (mean, word) in load.iter_mut().zip(texts.loadavg.split_whitespace()) {
            *mean = word.parse().unwrap_or_default();
        }
        let of_boot = texts.stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok());
        let uptime = texts.uptime.split_whitespace().next().and_then(|word| word.parse::<f64>().ok());
        let in_container = ["docker", "containerd", "kubepods", "lxc", "libpod"];
        Self {
            name: texts.hostname.trim().to_owned(),
            kernel: texts.kernel.trim().to_owned(),
            booted_at: of_boot.map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)),
            uptime: uptime.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).unwrap_or_default(),
            is_container: texts.has_container_mark
                || in_container.iter().any(|word| texts.cgroup_of_init.contains(word)),
            zone: texts.zone.clone(),
            macs: Vec::new(),
            os: Os::read(&texts.os_release),
            times: Times::read(&texts.stat, texts.ticks_a_second),
            load,
            memory: Memory::read(&texts.meminfo),
            disks: Vec::new(),
        }
    }
}

impl Os {
    fn read(text: &str) -> Self {
        let value = |name: &str| {
            let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            found.map(|value| value.trim_matches(['"', '\'']).to_owned()).unwrap_or_default()
        };
        let id = value("ID");
        let like = value("ID_LIKE").split(' ').next().map(str::to_owned).filter(|like| !like.is_empty());
        let mut numbers = [0; 3];
        for (number, part) in numbers.iter_mut().zip(value("VERSION_ID").split('.')) {
            *number = part.parse().unwrap_or_default();
        }
        Self {
            family: like.unwrap_or_else(|| id.clone()),
            id,
            name: value("NAME"),
            version: value("VERSION"),
            build: value("BUILD_ID"),
            codename: value("VERSION_CODENAME"),
            numbers,
        }
    }
}

impl Times {
    fn read(stat: &str, ticks_a_second: u64) -> Self {
        let words = stat.lines().next().and_then(|line| line.strip_prefix("cpu ")).unwrap_or_default();
        let mut ticks = words.split_whitespace().map(|word| word.parse().unwrap_or(0_u64));
        let mut next = || {
            let (ticks, second) = (ticks.next().unwrap_or_default(), ticks_a_second.max(1));
            Duration::from_secs(ticks / second) + Duration::from_millis(ticks % second * 1000 / second)
        };
        // In the order of the file.
        Self {
            user: next(),
            nice: next(),
            system: next(),
            idle: next(),
            io_wait: next(),
            irq: next(),
            soft_irq: next(),
            steal: next(),
        }
    }
}

impl Memory {
    fn read(meminfo: &str) -> Self {
        Self {
            total: memory(meminfo, "MemTotal:"),
            available: memory(meminfo, "MemAvailable:"),
            free: memory(meminfo, "MemFree:"),
            swap_total: memory(meminfo, "SwapTotal:"),
            swap_free: memory(meminfo, "SwapFree:"),
        }
    }
}

/// Where a file system is mounted, and the device it lies on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    pub(super) path: String,
    pub(super) device: String,
}

/// The mounts of file systems on disks, each file system once, at its first place (proc(5), `mountinfo` and `filesystems`).
pub(super) fn mounts(mountinfo: &str, filesystems: &str) -> Vec<Mount> {
    let on_disk: BTreeSet<&str> =
        filesystems.lines().filter_map(|line| line.strip_prefix('\t')).chain(["zfs"]).collect();
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for line in mountinfo.lines() {
        let Some((place, rest)) = line.split_once(" - ") else { continue };
        let (mut place, mut rest) = (place.split(' ').skip(2), rest.split(' '));
        let (Some(number), Some(path)) = (place.next(), place.nth(1)) else { continue };
        let (Some(kind), Some(device)) = (rest.next(), rest.next()) else { continue };
        if on_disk.contains(kind) && seen.insert(number) {
            found.push(Mount { path: unescaped(path), device: unescaped(device) });
        }
    }
    found
}

/// A path in which the kernel wrote blanks, line ends and backslashes as three octal digits.
fn unescaped(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (written, meant)| text.replace(written, meant))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_read_from_its_files() {
        let texts = Texts {
            stat: "cpu  150 1 30 800 5 6 7 8 0 0\ncpu0 1\nbtime 1705329025\n".to_owned(),
            meminfo: "MemTotal: 10 kB\nMemFree: 2 kB\nMemAvailable: 4 kB\nSwapTotal: 8 kB\nSwapFree: 7 kB\n".to_owned(),
            loadavg: "0.50 1.25 2.00 1/100 7\n".to_owned(),
            uptime: "12.50 30.00\n".to_owned(),
            hostname: "alpha\n".to_owned(),
            kernel: "6.1.0\n".to_owned(),
            os_release:
                "NAME=\"Ubuntu\"\nVERSION_ID=\"24.04\"\nID=ubuntu\nID_LIKE=\"debian x\"\nVERSION_CODENAME=noble\n"
                    .to_owned(),
            cgroup_of_init: "0::/kubepods/x\n".to_owned(),
            ticks_a_second: 100,
            ..Texts::default()
        };
        let host = Host::read(&texts);
        assert_eq!((host.name.as_str(), host.kernel.as_str(), host.is_container), ("alpha", "6.1.0", true));
        assert_eq!((host.load, host.uptime), ([0.5, 1.25, 2.0], Duration::from_millis(12_500)));
        assert_eq!(host.booted_at, Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_705_329_025)));
        let millis = |time: Duration| time.as_millis();
        let Times { user, nice, system, idle, io_wait, irq, soft_irq, steal } = host.times;
        let times = [user, nice, system, idle, io_wait, irq, soft_irq, steal].map(millis);
        assert_eq!(times, [1500, 10, 300, 8000, 50, 60, 70, 80]);
        let expected = Memory { total: 10_240, available: 4096, free: 2048, swap_total: 8192, swap_free: 7168 };
        assert_eq!(host.memory, expected);
        assert_eq!((host.os.id.as_str(), host.os.family.as_str(), host.os.numbers), ("ubuntu", "debian", [24, 4, 0]));
    }

    #[test]
    fn a_file_system_on_a_disk_is_shown_once_and_others_never() {
        let mountinfo = "22 27 0:21 / /proc rw - proc proc rw\n27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
                         42 27 254:0 /run /run/x rw - ext4 /dev/vda rw\n43 27 254:1 / /a\\040b rw - xfs /dev/vdb rw\n\
                         44 27 0:50 / /far rw - nfs host:/x rw\nnonsense\n";
        let found = mounts(mountinfo, "nodev\tproc\nnodev\tnfs\n\text4\n\txfs\n");
        let mount = |path: &str, device: &str| Mount { path: path.to_owned(), device: device.to_owned() };
        assert_eq!(found, [mount("/", "/dev/vda"), mount("/a b", "/dev/vdb")]);
    }

    #[test]
    fn this_host_has_a_processor_a_memory_and_a_disk() {
        let host = host();
        assert!(
            host.times.user + host.times.system > Duration::ZERO && host.memory.total > host.memory.free,
            "{host:?}"
        );
        assert!(!host.name.is_empty() && host.booted_at.is_some(), "{host:?}");
        assert!(host.disks.iter().all(|disk| disk.total_bytes >= disk.free_bytes), "{host:?}");
    }
}
