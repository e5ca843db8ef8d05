//! Looks at the host. Changes nothing, waits for nothing, needs no privilege: what may not be seen is said to be unknown.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use caps::{CapSet, Capability};
use nix::sys::utsname::uname;
use nix::unistd::geteuid;

use crate::sys::{bpf, probe as ask};

/// The loopback link has this index in every network namespace.
const LOOPBACK_INDEX: u32 = 1;

/// Everything that was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Release of the kernel as `uname -r` tells it.
    pub kernel: String,
    pub is_root: bool,
    /// Capabilities among [`NEEDED`] that this process does not have.
    pub missing_capabilities: Vec<&'static str>,
    pub tun: Answer,
    pub wireguard: Module,
    pub bpf: Answer,
    pub bpffs: bool,
    pub btf: bool,
    pub tcx: Answer,
    pub clsact: Module,
    /// Mount point of cgroup2.
    pub cgroup2: Option<PathBuf>,
    pub nft: Nft,
    pub ipv6: Ipv6,
    pub udp_send_offload: Answer,
    pub udp_receive_offload: Answer,
    pub ip_forward: Sysctl,
    pub ipv6_forwarding: Sysctl,
    pub rp_filter: Sysctl,
    pub route_localnet: Sysctl,
    pub resolver: Resolver,
    /// Bytes a process may lock; `None`: no limit, or unknown.
    pub locked_memory_bytes: Option<u64>,
    /// Files a process may have open at most, the hard limit; `None`: no limit, or unknown.
    pub open_files: Option<u64>,
}

/// The capabilities of an agent with every role on.
pub const NEEDED: [(&str, Capability); 5] = [
    ("CAP_NET_ADMIN", Capability::CAP_NET_ADMIN),
    ("CAP_NET_BIND_SERVICE", Capability::CAP_NET_BIND_SERVICE),
    ("CAP_BPF", Capability::CAP_BPF),
    ("CAP_PERFMON", Capability::CAP_PERFMON),
    ("CAP_SYS_PTRACE", Capability::CAP_SYS_PTRACE),
];

/// What the kernel said to a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Yes,
    /// It cannot; the reason.
    No(String),
    /// This user may not ask.
    Denied,
}

/// A part of the kernel that may be a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Module {
    /// Loaded or built in.
    Present,
    /// Loaded when it is first used.
    Loadable,
    Absent,
    /// The kernel brings no list of its modules.
    Unknown,
}

/// The nftables tool, and whether the kernel serves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Nft {
    Works,
    NoTool,
    /// The tool is there; it said this.
    Refused(String),
    /// This user may not ask.
    Denied,
}

/// Whether there is IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ipv6 {
    On,
    SwitchedOff,
    Absent,
}

/// The value of a sysctl; `None` where the kernel does not have it.
pub type Sysctl = Option<String>;

/// Who answers the host's own lookups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolver {
    pub resolved_runs: bool,
    /// Where `/etc/resolv.conf` leads; `None`: it is a file of its own.
    pub link: Option<PathBuf>,
    /// The program that its first lines say writes it.
    pub written_by: Option<&'static str>,
}

/// Looks at everything.
pub fn probe() -> Probe {
    let kernel = uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    Probe {
        is_root: geteuid().is_root(),
        missing_capabilities: missing_capabilities(),
        tun: tun(),
        wireguard: wireguard(&kernel),
        bpf: answer(ask::bpf_map()),
        bpffs: mount_of(&mounts, "bpf").is_some_and(|at| at == Path::new("/sys/fs/bpf")),
        btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        tcx: tcx(),
        clsact: module(&kernel, "sch_ingress"),
        cgroup2: mount_of(&mounts, "cgroup2"),
        nft: nft(),
        ipv6: ipv6(),
        udp_send_offload: answer(ask::udp_send_offload()),
        udp_receive_offload: answer(ask::udp_receive_offload()),
        ip_forward: sysctl("net/ipv4/ip_forward"),
        ipv6_forwarding: sysctl("net/ipv6/conf/all/forwarding"),
        rp_filter: sysctl("net/ipv4/conf/all/rp_filter"),
        route_localnet: sysctl("net/ipv4/conf/all/route_localnet"),
        resolver: resolver(),
        locked_memory_bytes: limit(&limits, "Max locked memory", Which::Soft),
        open_files: limit(&limits, "Max open files", Which::Hard),
        kernel,
    }
}

fn answer(result: io::Result<()>) -> Answer {
    match result {
        Ok(()) => Answer::Yes,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Answer::Denied,
        Err(error) => Answer::No(error.to_string()),
    }
}

fn tcx() -> Answer {
    match bpf::tcx_programs(LOOPBACK_INDEX, bpf::Side::Ingress) {
        Ok(Some(_)) => Answer::Yes,
        Ok(None) => Answer::No("this kernel has no such hook".to_owned()),
        Err(error) => answer(Err(error)),
    }
}

fn missing_capabilities() -> Vec<&'static str> {
    let missing =
        |(_, capability): &&(&str, Capability)| !caps::has_cap(None, CapSet::Effective, *capability).unwrap_or(false);
    NEEDED.iter().filter(missing).map(|(name, _)| *name).collect()
}

fn tun() -> Answer {
    answer(fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun").map(drop))
}

fn wireguard(kernel: &str) -> Module {
    match module(kernel, "wireguard") {
        // Without a list of modules there is nothing the question could load.
        Module::Unknown => match ask::netlink_family("wireguard") {
            Ok(true) => Module::Present,
            Ok(false) => Module::Absent,
            Err(_) => Module::Unknown,
        },
        known @ (Module::Present | Module::Loadable | Module::Absent) => known,
    }
}

fn module(kernel: &str, name: &str) -> Module {
    if Path::new("/sys/module").join(name).exists() {
        return Module::Present;
    }
    let directory = Path::new("/lib/modules").join(kernel);
    let list = |file: &str| fs::read_to_string(directory.join(file)).ok();
    match (list("modules.builtin"), list("modules.dep")) {
        (None, None) => Module::Unknown,
        (Some(builtin), _) if lists_module(&builtin, name) => Module::Present,
        (_, Some(loadable)) if lists_module(&loadable, name) => Module::Loadable,
        _ => Module::Absent,
    }
}

/// Whether a line of `modules.dep` or `modules.builtin` is about the module.
fn lists_module(list: &str, name: &str) -> bool {
    list.lines().any(|line| {
        let path = line.split(':').next().unwrap_or_default();
        let file = path.rsplit('/').next().unwrap_or_default();
        file.split(".ko").next().is_some_and(|module| module.replace('-', "_") == name) && file.contains(".ko")
    })
}

/// Where a file system of this type is mounted first (proc_pid_mountinfo(5)).
fn mount_of(mounts: &str, kind: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let is_it = file_system.split(' ').next() == Some(kind);
        is_it.then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    })
}

fn nft() -> Nft {
    let output = Command::new("nft").args(["list", "tables"]).stdin(Stdio::null()).output();
    match output {
        Err(_) => Nft::NoTool,
        Ok(output) if output.status.success() => Nft::Works,
        Ok(output) => {
            let complaint =
                String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or_default().trim().to_owned();
            let denied = complaint.contains("ermission") || complaint.contains("permitted");
            if denied { Nft::Denied } else { Nft::Refused(complaint) }
        }
    }
}

fn ipv6() -> Ipv6 {
    match (Path::new("/proc/net/if_inet6").exists(), sysctl("net/ipv6/conf/all/disable_ipv6").as_deref()) {
        (false, _) => Ipv6::Absent,
        (true, Some("1")) => Ipv6::SwitchedOff,
        (true, _) => Ipv6::On,
    }
}

fn sysctl(name: &str) -> Sysctl {
    fs::read_to_string(Path::new("/proc/sys").join(name)).ok().map(|text| text.trim().to_owned())
}

fn resolver() -> Resolver {
    let path = Path::new("/etc/resolv.conf");
    Resolver {
        resolved_runs: Path::new("/run/systemd/resolve/io.systemd.Resolve").exists(),
        link: fs::read_link(path).ok(),
        written_by: written_by(&fs::read_to_string(path).unwrap_or_default()),
    }
}

fn written_by(text: &str) -> Option<&'static str> {
    let comments: String = text.lines().filter(|line| line.starts_with(['#', ';'])).collect();
    // resolvconf keeps the comments of others, so it is asked first.
    ["resolvconf", "NetworkManager", "systemd-resolved", "dhclient", "dhcpcd", "weft"]
        .into_iter()
        .find(|program| comments.contains(program))
}

#[derive(Debug, Clone, Copy)]
enum Which {
    Soft,
    Hard,
}

/// A limit in `/proc/self/limits`; `None` for `unlimited`.
fn limit(limits: &str, name: &str, which: Which) -> Option<u64> {
    let mut words = limits.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace();
    match which {
        Which::Soft => words.next()?.parse().ok(),
        Which::Hard => words.nth(1)?.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_found_in_the_lists_of_depmod() {
        let list = "kernel/drivers/net/wireguard/wireguard.ko.xz: kernel/lib/libcurve25519.ko.xz\n\
                    kernel/net/sched/sch-ingress.ko:\n";
        assert!(lists_module(list, "wireguard"));
        assert!(lists_module(list, "sch_ingress"));
        assert!(!lists_module(list, "libcurve25519"), "it is a dependency on that line, not its subject");
        assert!(!lists_module(list, "wire"));
    }

    #[test]
    fn mounts_are_found_by_their_type() {
        let mounts = "24 1 0:22 / /sys/fs/cgroup ro shared:9 - tmpfs tmpfs ro\n\
                      25 24 0:23 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_of(mounts, "cgroup2"), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(mount_of(mounts, "bpf"), None);
    }

    #[test]
    fn limits_and_writers_are_read() {
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax locked memory         8388608              8388608              bytes\n";
        assert_eq!(limit(limits, "Max locked memory", Which::Soft), Some(8_388_608));
        assert_eq!(limit("Max locked memory  unlimited  unlimited  bytes\n", "Max locked memory", Which::Soft), None);
        assert_eq!(limit("Max open files  1024  524288  files\n", "Max open files", Which::Hard), Some(524_288));
        assert_eq!(written_by("# Generated by NetworkManager\nnameserver 192.0.2.1\n"), Some("NetworkManager"));
        assert_eq!(written_by("nameserver 192.0.2.1 # resolvconf\n"), None);
    }

    #[test]
    fn looking_works_for_every_user() {
        assert!(probe().kernel.contains('.'), "uname tells a release");
    }
}
