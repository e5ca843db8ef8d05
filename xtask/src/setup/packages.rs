//! The Debian packages, each with the reason it is here. Names are the same in Debian 12, 13 and Ubuntu 24.04,
//! unless `not_on` says otherwise.

use clap::ValueEnum;

use super::which;
use crate::ebpf;

/// What a package is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Group {
    /// Building the workspace.
    Build,
    /// Running the agent.
    Run,
    /// The tests, the demo and the benches.
    Test,
    /// The programs that a bench compares with and that no distribution has.
    Bench,
    /// Rebuilding the BPF object.
    Ebpf,
}

#[derive(Debug, Clone)]
pub(crate) struct Package {
    pub(crate) group: Group,
    pub(crate) name: &'static str,
    /// A program it brings, to recognise it where there is no dpkg; empty if it brings none.
    program: &'static str,
    pub(crate) why: &'static str,
    /// Units that it would start at boot.
    pub(crate) services: &'static [&'static str],
    /// The distribution (`ID` of os-release(5)) that has no such package; what needs it is skipped there.
    pub(crate) not_on: &'static str,
}

impl Package {
    pub(crate) fn has_program(&self) -> bool {
        which(self.program).is_some()
    }
}

const fn package(group: Group, name: &'static str, program: &'static str, why: &'static str) -> Package {
    Package { group, name, program, why, services: &[], not_on: "" }
}

/// The packages of `groups`.
pub(crate) fn of(groups: &[Group]) -> Vec<Package> {
    let ebpf = ebpf::DEBIAN_PACKAGES.iter().map(|name| package(Group::Ebpf, name, "", "rebuilding the BPF object"));
    PACKAGES.iter().cloned().chain(ebpf).filter(|package| groups.contains(&package.group)).collect()
}

const PACKAGES: &[Package] = &[
    package(Group::Build, "gcc", "gcc", "linker, and the C and assembly of aws-lc"),
    package(Group::Build, "libc6-dev", "gcc", "C headers"),
    package(Group::Build, "git", "git", "tidy asks it which files are ours"),
    package(Group::Run, "nftables", "nft", "the agent's table"),
    package(Group::Run, "iproute2", "ip", "links, addresses and routes, for people and tests"),
    package(Group::Run, "kmod", "modprobe", "loading the kernel's WireGuard"),
    package(Group::Run, "curl", "curl", "reading /metrics"),
    package(Group::Test, "wireguard-tools", "wg", "keys, and the other side's view"),
    package(Group::Test, "wireguard-go", "wireguard-go", "a foreign peer"),
    package(Group::Test, "util-linux", "nsenter", "entering network namespaces"),
    package(Group::Test, "iputils-ping", "ping", "traffic"),
    package(Group::Test, "iperf3", "iperf3", "traffic with a figure"),
    package(Group::Test, "procps", "sysctl", "switches of the kernel in a namespace"),
    package(Group::Test, "ethtool", "ethtool", "offloads of a link"),
    package(Group::Test, "bpftool", "bpftool", "what the kernel says is loaded"),
    package(Group::Test, "dnsperf", "dnsperf", "DNS load"),
    package(Group::Test, "bind9-dnsutils", "dig", "DNS questions"),
    package(Group::Test, "knot-dnsutils", "kdig", "DNS questions"),
    Package { services: &["knot.service"], ..package(Group::Test, "knot", "knotd", "the DNS server we compare with") },
    Package {
        services: &["prometheus.service"],
        ..package(Group::Test, "prometheus", "prometheus", "scrapes the agent; promtool checks the format")
    },
    Package {
        services: &["nginx.service"],
        ..package(Group::Test, "nginx-light", "nginx", "a proxy before the gateway, and the server we compare with")
    },
    Package {
        services: &["etcd.service"],
        ..package(Group::Test, "etcd-server", "etcd", "the replicated store we compare with")
    },
    Package {
        services: &["supervisor.service"],
        ..package(Group::Test, "supervisor", "supervisord", "the supervisor we compare with")
    },
    Package {
        services: &["nats-server.service"],
        ..package(Group::Run, "nats-server", "nats-server", "the message bus, where bus.enabled")
    },
    Package {
        services: &["ssh.socket", "ssh.service"],
        ..package(Group::Test, "openssh-server", "sshd", "a forwarder before the gateway")
    },
    package(Group::Test, "openssh-client", "ssh", "the other end of that"),
    package(Group::Test, "slirp4netns", "slirp4netns", "the network of a rootless container"),
    package(Group::Test, "systemd", "systemd-analyze", "checks the unit"),
    package(Group::Test, "qemu-system-x86", "qemu-system-x86_64", "guests with a distribution kernel"),
    package(Group::Test, "binutils", "objcopy", "the guests' kernel, unpacked"),
    package(Group::Test, "lz4", "lz4", "the guests' kernel, unpacked"),
    package(Group::Test, "xz-utils", "xz", "the guests' kernel, unpacked"),
    package(Group::Test, "zstd", "zstd", "image of the guests"),
    package(Group::Test, "dash", "dash", "shell of the guests"),
    package(Group::Test, "python3-grpcio", "", "a gRPC client of other hands"),
    package(Group::Test, "python3-grpc-tools", "", "its stubs"),
    package(Group::Test, "python3-requests", "", "the Python client of the web API's document"),
    package(Group::Test, "python3-websocket", "", "the same over WebSocket, and the driver of the browser"),
    package(Group::Test, "python3-jsonschema", "", "holds answers against the OpenAPI document"),
    package(Group::Test, "nodejs", "node", "the JavaScript client of the web API's document"),
    package(Group::Test, "node-axios", "", "the same"),
    Package { not_on: "ubuntu", ..package(Group::Test, "chromium", "chromium", "the web page in a real browser") },
    package(Group::Test, "wrk", "wrk", "HTTP load"),
    package(Group::Bench, "npm", "npm", "installs PM2 for the bench"),
    package(Group::Test, "strace", "strace", "counts the system calls that write"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_the_guests_need_is_installed_for_the_tests() {
        for wanted in include_str!("../../../vm-tests/debian-packages.txt").lines() {
            assert!(PACKAGES.iter().any(|package| package.name == wanted), "{wanted}");
        }
    }

    #[test]
    fn no_package_stands_twice() {
        for (at, package) in PACKAGES.iter().enumerate() {
            assert!(PACKAGES[..at].iter().all(|other| other.name != package.name), "{}", package.name);
        }
    }
}
