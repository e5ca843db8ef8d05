//! What was seen, judged. Pure.

use super::probe::{Answer, Ipv6, Module, Nft, Probe};
use super::{Finding, Level};

/// tcx came with 6.6; maps are charged to memory cgroups instead of RLIMIT_MEMLOCK since 5.11; aya-log's ring buffer
/// needs 5.8, which is what everything below counts on.
const TCX_SINCE: (u32, u32) = (6, 6);
const NO_MEMLOCK_SINCE: (u32, u32) = (5, 11);
const OLDEST: (u32, u32) = (5, 8);
/// The network namespace's cookie in sock_ops programs came with 5.15, sk_lookup programs with 5.9.
const CALLERS_SINCE: (u32, u32) = (5, 15);
const SK_LOOKUP_SINCE: (u32, u32) = (5, 9);
/// `gateway.max_connections` by default, twice where all are passed on, and the agent's own.
const OPEN_FILES_WANTED: u64 = 65_536;
/// What the maps for some thousand peers lock on an old kernel.
const MEMLOCK_NEEDED_BYTES: u64 = 64 * 1024 * 1024;

/// Every facility, in the order of how much hangs on it.
pub fn assess(probe: &Probe) -> Vec<Finding> {
    let mut findings =
        vec![kernel(probe), privileges(probe), wireguard(probe), tun(probe), bpf(probe), bpffs(probe), tcx(probe)];
    findings.extend([
        clsact(probe),
        btf(probe),
        cgroup2(probe),
        callers(probe),
        steering(probe),
        nft(probe),
        ipv6(probe),
        offload(probe),
    ]);
    findings.extend(memlock(probe));
    findings.extend([open_files(probe), forwarding(probe), rp_filter(probe), route_localnet(probe), resolver(probe)]);
    findings
}

fn kernel(probe: &Probe) -> Finding {
    let version = version(&probe.kernel);
    let old = version.is_some_and(|version| version < OLDEST);
    Finding {
        facility: "kernel",
        level: if old { Level::Missing } else { Level::Ok },
        found: format!("Linux {}", probe.kernel),
        used_for: "everything; 5.8 is the oldest that has what accounting needs",
        fallback: old.then_some("no per-peer accounting"),
        fix: old.then(|| "boot a newer kernel, best one of the distribution's with kernel WireGuard".to_owned()),
    }
}

fn privileges(probe: &Probe) -> Finding {
    let all = probe.missing_capabilities.is_empty();
    let found = match (all, probe.is_root) {
        (true, true) => "root with every capability".to_owned(),
        (true, false) => "every capability".to_owned(),
        (false, _) => format!("without {}", probe.missing_capabilities.join(", ")),
    };
    Finding {
        facility: "privileges",
        level: match (all, probe.is_root) {
            (true, _) => Level::Ok,
            // Said of this shell, not of the agent: whoever is not root asks out of curiosity.
            (false, false) => Level::Unknown,
            (false, true) => Level::Missing,
        },
        found,
        used_for: "making the link, routes and firewall table, loading BPF, port 53",
        fallback: None,
        fix: (!all).then(|| {
            if probe.is_root {
                "run outside the container, or give it these capabilities".to_owned()
            } else {
                "run `sudo weft doctor` to see what the agent would see".to_owned()
            }
        }),
    }
}

fn wireguard(probe: &Probe) -> Finding {
    let (level, found, fix) = match probe.wireguard {
        Module::Present => (Level::Ok, "in the kernel", None),
        Module::Loadable => (Level::Ok, "a module, loaded when it is used", None),
        Module::Absent => {
            let fix = "boot a kernel with CONFIG_WIREGUARD (every distribution's has it since 5.6)".to_owned();
            (Level::Fallback, "this kernel has none", Some(fix))
        }
        Module::Unknown => (Level::Unknown, "cannot be told before the agent tries", None),
    };
    Finding {
        facility: "kernel WireGuard",
        level,
        found: found.to_owned(),
        used_for: "encrypting in the kernel; the tunnel then outlives the agent",
        fallback: (level != Level::Ok).then_some("the embedded userspace device: slower, and it ends with the agent"),
        fix,
    }
}

fn tun(probe: &Probe) -> Finding {
    let needed = !matches!(probe.wireguard, Module::Present | Module::Loadable);
    let bad = if needed { Level::Missing } else { Level::Note };
    let (level, found, fix) = match &probe.tun {
        Answer::Yes => (Level::Ok, "opens".to_owned(), None),
        Answer::Denied => (Level::Unknown, "this user may not open it".to_owned(), None),
        Answer::No(reason) => (
            bad,
            reason.clone(),
            Some("modprobe tun; in a container: pass /dev/net/tun in (for docker --device /dev/net/tun)".to_owned()),
        ),
    };
    Finding {
        facility: "/dev/net/tun",
        level,
        found,
        used_for: "the embedded userspace device",
        fallback: (level == Level::Missing).then_some("no tunnel at all"),
        fix,
    }
}

fn bpf(probe: &Probe) -> Finding {
    let (level, found, fix) = match &probe.bpf {
        Answer::Yes => (Level::Ok, "works".to_owned(), None),
        Answer::Denied if probe.is_root => (
            Level::Missing,
            "refused".to_owned(),
            Some("run outside the container or give it CAP_BPF; with kernel lockdown, boot without it".to_owned()),
        ),
        Answer::Denied => (Level::Unknown, "this user may not ask".to_owned(), None),
        Answer::No(reason) => {
            (Level::Missing, reason.clone(), Some("boot a kernel with CONFIG_BPF_SYSCALL".to_owned()))
        }
    };
    Finding {
        facility: "bpf(2)",
        level,
        found,
        used_for: "counting bytes and packets per peer",
        fallback: (level == Level::Missing).then_some("WireGuard's own counters: no packets, no protocols"),
        fix,
    }
}

fn bpffs(probe: &Probe) -> Finding {
    Finding {
        facility: "bpffs",
        level: if probe.bpffs { Level::Ok } else { Level::Fallback },
        found: if probe.bpffs { "mounted on /sys/fs/bpf" } else { "not mounted on /sys/fs/bpf" }.to_owned(),
        used_for: "counters and programs that outlive the agent",
        fallback: (!probe.bpffs).then_some("the agent mounts it if it may; else counting ends with the agent"),
        fix: (!probe.bpffs).then(|| "mount -t bpf bpf /sys/fs/bpf".to_owned()),
    }
}

fn tcx(probe: &Probe) -> Finding {
    let new_enough = version(&probe.kernel).is_some_and(|version| version >= TCX_SINCE);
    let (level, found, fix) = match (&probe.tcx, new_enough) {
        (Answer::Yes, _) => (Level::Ok, "works".to_owned(), None),
        (Answer::Denied, true) => (Level::Unknown, "this user may not ask; the kernel is new enough".to_owned(), None),
        (Answer::Denied | Answer::No(_), false) => {
            (Level::Fallback, "needs Linux 6.6".to_owned(), Some("boot Linux 6.6 or newer".to_owned()))
        }
        (Answer::No(reason), true) => {
            (Level::Fallback, reason.clone(), Some("boot a kernel with CONFIG_NET_XGRESS".to_owned()))
        }
    };
    Finding {
        facility: "tcx",
        level,
        found,
        used_for: "the hook where packets are counted; replaced atomically, beside other programs",
        fallback: (level == Level::Fallback).then_some("clsact"),
        fix,
    }
}

fn clsact(probe: &Probe) -> Finding {
    let needed = !matches!(probe.tcx, Answer::Yes);
    let (level, found) = match probe.clsact {
        Module::Present => (Level::Ok, "in the kernel"),
        Module::Loadable => (Level::Ok, "a module, loaded when it is used"),
        Module::Absent if needed => (Level::Missing, "this kernel has none"),
        Module::Absent => (Level::Note, "this kernel has none, and tcx needs none"),
        Module::Unknown => (if needed { Level::Unknown } else { Level::Note }, "cannot be told from here"),
    };
    Finding {
        facility: "clsact",
        level,
        found: found.to_owned(),
        used_for: "the hook where packets are counted before Linux 6.6",
        fallback: (level == Level::Missing).then_some("WireGuard's own counters: no packets, no protocols"),
        fix: (level == Level::Missing)
            .then(|| "install the kernel's full module package (sch_ingress, cls_bpf), or boot Linux 6.6".to_owned()),
    }
}

fn btf(probe: &Probe) -> Finding {
    Finding {
        facility: "BTF",
        level: if probe.btf { Level::Ok } else { Level::Note },
        found: if probe.btf { "/sys/kernel/btf/vmlinux" } else { "none; our programs do without" }.to_owned(),
        used_for: "tools that show the programs (bpftool)",
        fallback: None,
        fix: None,
    }
}

fn cgroup2(probe: &Probe) -> Finding {
    let (level, found) = match &probe.cgroup2 {
        Some(at) if at.ends_with("unified") => (Level::Note, format!("{} (hybrid hierarchy)", at.display())),
        Some(at) => (Level::Ok, at.display().to_string()),
        None => (Level::Note, "not mounted".to_owned()),
    };
    Finding {
        facility: "cgroup2",
        level,
        found,
        used_for: "telling which unit or process a local caller is",
        fallback: None,
        fix: probe.cgroup2.is_none().then(|| {
            "mount -t cgroup2 none /sys/fs/cgroup/unified, or boot with systemd.unified_cgroup_hierarchy=1".to_owned()
        }),
    }
}

/// What the kernel must have to record callers; the running agent has proven it, or says why not.
fn callers(probe: &Probe) -> Finding {
    let new_enough = version(&probe.kernel).is_some_and(|version| version >= CALLERS_SINCE);
    let (level, found, fix) = match (new_enough, &probe.bpf, &probe.cgroup2, probe.bpffs) {
        (false, ..) => (Level::Fallback, "needs Linux 5.15", Some("boot Linux 5.15 or newer")),
        (true, Answer::No(_), ..) => (Level::Fallback, "needs bpf(2)", Some("boot a kernel with CONFIG_BPF_SYSCALL")),
        (true, Answer::Denied, ..) => (Level::Unknown, "this user may not ask; the kernel is new enough", None),
        (true, Answer::Yes, None, _) => {
            (Level::Fallback, "needs cgroup2", Some("mount -t cgroup2 none /sys/fs/cgroup/unified"))
        }
        (true, Answer::Yes, Some(_), false) => (Level::Fallback, "needs bpffs", Some("mount -t bpf bpf /sys/fs/bpf")),
        (true, Answer::Yes, Some(_), true) => (Level::Ok, "socket storage, hooks of cgroup2", None),
    };
    Finding {
        facility: "caller records",
        level,
        found: found.to_owned(),
        used_for: "telling who calls the pm3 API: recorded by the kernel inside connect(2)",
        fallback: (level == Level::Fallback)
            .then_some("the owner of the caller's socket, asked of sock_diag afterwards"),
        fix: fix.map(str::to_owned),
    }
}

fn steering(probe: &Probe) -> Finding {
    let new_enough = version(&probe.kernel).is_some_and(|version| version >= SK_LOOKUP_SINCE);
    let level = match (new_enough, &probe.bpf) {
        (true, Answer::Yes) => Level::Ok,
        (true, Answer::Denied) => Level::Unknown,
        (false, _) | (true, Answer::No(_)) => Level::Note,
    };
    Finding {
        facility: "sk_lookup",
        level,
        found: if new_enough { "the kernel is new enough" } else { "needs Linux 5.9" }.to_owned(),
        used_for: "the pm3 API on port 80 of its addresses while another server holds port 80 of all",
        fallback: (level == Level::Note).then_some("a plain bind: whoever comes first has the port"),
        fix: (level == Level::Note).then(|| "boot Linux 5.9 or newer with CONFIG_BPF_SYSCALL".to_owned()),
    }
}

fn nft(probe: &Probe) -> Finding {
    let (level, found, fix) = match &probe.nft {
        Nft::Works => (Level::Ok, "works".to_owned(), None),
        Nft::NoTool => (Level::Note, "nft is not installed".to_owned(), Some("apt-get install nftables".to_owned())),
        Nft::Refused(reason) => {
            (Level::Note, reason.clone(), Some("modprobe nf_tables; in a container: load it on the host".to_owned()))
        }
        Nft::Denied => (Level::Unknown, "this user may not ask".to_owned(), None),
    };
    Finding {
        facility: "nftables",
        level,
        found,
        used_for: "firewall.open_port, firewall.forward and firewall.masquerade; nothing else",
        fallback: None,
        fix,
    }
}

fn ipv6(probe: &Probe) -> Finding {
    let (level, found, fix) = match probe.ipv6 {
        Ipv6::On => (Level::Ok, "on", None),
        Ipv6::SwitchedOff => (
            Level::Note,
            "switched off by net.ipv6.conf.all.disable_ipv6",
            Some("sysctl -w net.ipv6.conf.all.disable_ipv6=0"),
        ),
        Ipv6::Absent => (Level::Note, "this kernel has none, or it was booted with ipv6.disable=1", None),
    };
    Finding {
        facility: "IPv6",
        level,
        found: found.to_owned(),
        used_for: "IPv6 addresses in the tunnel and IPv6 endpoints",
        fallback: None,
        fix: fix.map(str::to_owned),
    }
}

fn offload(probe: &Probe) -> Finding {
    let reason = match (&probe.udp_send_offload, &probe.udp_receive_offload) {
        (Answer::Yes, Answer::Yes) => None,
        (Answer::No(reason), _) => Some(format!("sending: {reason}")),
        (_, Answer::No(reason)) => Some(format!("receiving: {reason}")),
        (Answer::Denied, _) | (_, Answer::Denied) => Some("refused".to_owned()),
    };
    Finding {
        facility: "UDP GSO and GRO",
        level: if reason.is_none() { Level::Ok } else { Level::Note },
        found: reason.unwrap_or_else(|| "both work".to_owned()),
        used_for: "many packets a system call on the embedded userspace device",
        fallback: None,
        fix: None,
    }
}

/// Only kernels that charge BPF maps to the limit have this finding.
fn memlock(probe: &Probe) -> Option<Finding> {
    let old = version(&probe.kernel).is_some_and(|version| version < NO_MEMLOCK_SINCE);
    let limit = probe.locked_memory_bytes.filter(|_| old)?;
    let low = limit < MEMLOCK_NEEDED_BYTES;
    Some(Finding {
        facility: "RLIMIT_MEMLOCK",
        level: if low { Level::Fallback } else { Level::Ok },
        found: format!("{limit} bytes"),
        used_for: "the memory of BPF maps, before Linux 5.11",
        fallback: low.then_some("the agent raises it if it may; else nothing is counted"),
        fix: low.then(|| "LimitMEMLOCK=infinity in the unit, or `ulimit -l unlimited`".to_owned()),
    })
}

/// Said of this shell; a unit has a limit of its own.
fn open_files(probe: &Probe) -> Finding {
    let few = probe.open_files.is_some_and(|limit| limit < OPEN_FILES_WANTED);
    Finding {
        facility: "open files",
        level: if few { Level::Note } else { Level::Ok },
        found: probe.open_files.map_or("no limit".to_owned(), |limit| format!("at most {limit}")),
        used_for: "connections to the gateway: one each, two where a request is passed on",
        fallback: None,
        fix: few.then(|| {
            "raise LimitNOFILE in the unit or the hard limit of this shell; the agent raises the soft one".to_owned()
        }),
    }
}

fn forwarding(probe: &Probe) -> Finding {
    let on = |value: &Option<String>| value.as_deref() == Some("1");
    let both = on(&probe.ip_forward) && (on(&probe.ipv6_forwarding) || probe.ipv6 != Ipv6::On);
    Finding {
        facility: "forwarding",
        level: if both { Level::Ok } else { Level::Note },
        found: format!("ip_forward={}, ipv6={}", shown(&probe.ip_forward), shown(&probe.ipv6_forwarding)),
        used_for: "a gateway: peers that reach networks behind this host",
        fallback: None,
        fix: (!both)
            .then(|| "only for a gateway: sysctl -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1".to_owned()),
    }
}

fn rp_filter(probe: &Probe) -> Finding {
    let strict = probe.rp_filter.as_deref() == Some("1");
    Finding {
        facility: "rp_filter",
        level: if strict { Level::Note } else { Level::Ok },
        found: format!("net.ipv4.conf.all.rp_filter={}", shown(&probe.rp_filter)),
        used_for: "nothing; the strict mode drops what comes back another way than it went",
        fallback: None,
        fix: strict.then(|| "with asymmetric routes only: sysctl -w net.ipv4.conf.all.rp_filter=2".to_owned()),
    }
}

fn route_localnet(probe: &Probe) -> Finding {
    let open = probe.route_localnet.as_deref() == Some("1");
    Finding {
        facility: "route_localnet",
        level: if open { Level::Note } else { Level::Ok },
        found: format!("net.ipv4.conf.all.route_localnet={}", shown(&probe.route_localnet)),
        used_for: "nothing; switched on, other hosts may reach what listens on 127.0.0.0/8",
        fallback: None,
        fix: open.then(|| "unless something needs it: sysctl -w net.ipv4.conf.all.route_localnet=0".to_owned()),
    }
}

fn resolver(probe: &Probe) -> Finding {
    let resolver = &probe.resolver;
    let owner = match (&resolver.link, resolver.written_by) {
        (Some(link), Some(program)) => format!("/etc/resolv.conf -> {}, written by {program}", link.display()),
        (Some(link), None) => format!("/etc/resolv.conf -> {}", link.display()),
        (None, Some(program)) => format!("/etc/resolv.conf is written by {program}"),
        (None, None) => "/etc/resolv.conf is a plain file".to_owned(),
    };
    let runs = if resolver.resolved_runs { "systemd-resolved runs" } else { "no systemd-resolved" };
    Finding {
        facility: "host resolver",
        level: Level::Ok,
        found: format!("{runs}; {owner}"),
        used_for: "dns.hook: names of the mesh for every program of this host",
        fallback: None,
        fix: None,
    }
}

fn shown(value: &Option<String>) -> &str {
    value.as_deref().unwrap_or("absent")
}

/// The first two numbers of a release: `6.1.0-18-amd64` is 6.1.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests;
