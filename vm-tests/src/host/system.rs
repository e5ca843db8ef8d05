//! The root of a small Debian that systemd boots: the packages, their files, and what their scripts would have set up.
//!
//! In: apt's lists. Out: a tree under `target/vm/system`, made once for a list of packages; removing it fetches the newest
//! again. Packages are unpacked and never configured, so nothing of them runs here and no root is needed:
//! [`configure`] writes by hand the few files that their scripts would have written.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::cpio::Archive;
use crate::tool;

/// What the machine is made of; apt finds what they depend on.
const PACKAGES: &[&str] = &[
    "systemd-sysv",
    "systemd-resolved",
    "dbus",
    "base-files",
    "base-passwd",
    "bash",
    "coreutils",
    "iproute2",
    "kmod",
    "libc-bin",
    "nftables",
    "wireguard-tools",
];
/// Bulk that no scenario reads.
const LEFT_OUT: &[&str] = &[
    "./usr/share/doc",
    "./usr/share/info",
    "./usr/share/locale",
    "./usr/share/man",
    "./usr/share/perl",
    "./usr/lib/x86_64-linux-gnu/perl",
    "./usr/lib/x86_64-linux-gnu/gconv",
];
/// The top-level links of a merged `/usr`, which no package brings.
pub(crate) const MERGED: &[(&str, &str)] =
    &[("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")];

const AGENT_UNIT: &str = include_str!("../../../agent/dist/weft.service");
const AGENT_GROUP: &str = include_str!("../../../agent/dist/weft.sysusers");
const AGENT_CONFIG: &str = include_str!("system/weft.toml");
const SCENARIOS_UNIT: &str = include_str!("system/vm-tests.service");

/// The members of `multi-user.target`; a package's script would have enabled them.
const ENABLED: &[&str] = &["systemd-resolved.service", "vm-tests.service", "weft.service"];

/// What would ask a question on the console, or wait for what this machine lacks: udev, a network.
const MASKED: &[&str] = &[
    "systemd-firstboot.service",
    "getty.target",
    "serial-getty@ttyS0.service",
    "systemd-networkd-wait-online.service",
];

/// An unpacked root.
#[derive(Debug)]
pub(crate) struct Root {
    pub(crate) path: PathBuf,
}

/// The root from `cache`, or made with apt.
pub(crate) fn obtain(cache: &Path) -> Result<Root> {
    let home = cache.join("system");
    let (path, list) = (home.join("root"), home.join("packages.list"));
    if fs::read_to_string(&list).is_ok_and(|known| known == recipe()) {
        return Ok(Root { path });
    }
    if home.exists() {
        fs::remove_dir_all(&home).context("failed to remove the outdated root")?;
    }
    let work = tempfile::tempdir_in(cache)?;
    if let Err(first) = make(work.path()) {
        println!("system: {first:#}; renewing apt's lists");
        tool::output(Command::new("apt-get").args(["-q", "update"])).context("failed to run apt-get update")?;
        make(work.path())?;
    }
    fs::remove_dir_all(work.path().join("packages"))?;
    fs::write(work.path().join("packages.list"), recipe())?;
    fs::rename(work.keep(), &home).with_context(|| format!("failed to name {}", home.display()))?;
    Ok(Root { path })
}

/// What decides the content of the tree.
fn recipe() -> String {
    format!("{}\nwithout {}\n", PACKAGES.join(" "), LEFT_OUT.join(" "))
}

/// Downloads the packages and all they depend on into `work/packages`, and unpacks them into `work/root`.
fn make(work: &Path) -> Result<()> {
    println!("system: fetching {} packages and what they need", PACKAGES.len());
    let (packages, root) = (work.join("packages"), work.join("root"));
    fs::create_dir_all(packages.join("partial"))?;
    let status = work.join("packages/status");
    fs::write(&status, "")?;
    let mut download = Command::new("apt-get");
    download.args(["-q", "-y", "--download-only", "--no-install-recommends"]);
    // An empty machine: nothing counts as installed, and no lock or user of this host's apt is touched.
    download.arg("-o").arg(format!("Dir::State::status={}", status.display()));
    download.arg("-o").arg(format!("Dir::Cache::archives={}", packages.display()));
    download.args(["-o", "APT::Sandbox::User=root", "-o", "Debug::NoLocking=1", "install"]).args(PACKAGES);
    tool::output(&mut download).context("failed to download the packages of the system")?;
    for (name, points_to) in MERGED {
        fs::create_dir_all(root.join(points_to))?;
        if !root.join(name).is_symlink() {
            std::os::unix::fs::symlink(points_to, root.join(name))?;
        }
    }
    for entry in fs::read_dir(&packages)? {
        let package = entry?.path();
        if package.extension().is_some_and(|extension| extension == "deb") {
            unpack(&package, &root)?;
        }
    }
    Ok(())
}

fn unpack(package: &Path, root: &Path) -> Result<()> {
    let archive = root.with_extension("tar");
    let file = fs::File::create(&archive)?;
    let status = Command::new("dpkg-deb").arg("--fsys-tarfile").arg(package).stdout(file).status();
    anyhow::ensure!(status.context("failed to run dpkg-deb")?.success(), "failed to read {}", package.display());
    let mut extract = Command::new("tar");
    extract.arg("-xf").arg(&archive).arg("-C").arg(root).args(["--keep-directory-symlink", "--no-same-owner"]);
    extract.args(LEFT_OUT.iter().map(|path| format!("--exclude={path}")));
    tool::output(&mut extract).with_context(|| format!("failed to unpack {}", package.display()))?;
    fs::remove_file(&archive)?;
    Ok(())
}

/// Adds what the packages' scripts would have made, and what `cargo xtask dist` installs. Goes into the archive before
/// the root: the first content wins.
pub(crate) fn configure(archive: &mut Archive) {
    for (path, content) in [
        ("etc/hostname", "alpha\n"),
        ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
        ("etc/machine-id", "uninitialized\n"),
        ("etc/fstab", ""),
        ("etc/passwd", "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"),
        ("etc/group", "root:x:0:\nadm:x:4:\ntty:x:5:\nutmp:x:43:\nnogroup:x:65534:\n"),
        ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
        ("usr/lib/sysusers.d/dbus.conf", "u messagebus - -\n"),
        ("usr/lib/sysusers.d/weft.conf", AGENT_GROUP),
        ("usr/lib/systemd/system/weft.service", AGENT_UNIT),
        ("etc/systemd/system/vm-tests.service", SCENARIOS_UNIT),
        // Half a minute is the unit's; a scenario that waits for it three times over is not needed.
        ("etc/systemd/system/weft.service.d/watchdog.conf", "[Service]\nWatchdogSec=10\n"),
        ("etc/weft/weft.toml", AGENT_CONFIG),
    ] {
        archive.file(path, 0o644, content.as_bytes());
    }
    archive.symlink("var/run", "/run");
    archive.symlink("etc/resolv.conf", "/run/systemd/resolve/stub-resolv.conf");
    archive.symlink("etc/systemd/system/default.target", "/usr/lib/systemd/system/multi-user.target");
    for unit in ENABLED {
        let home = if *unit == "vm-tests.service" { "/etc/systemd/system" } else { "/usr/lib/systemd/system" };
        archive.symlink(&format!("etc/systemd/system/multi-user.target.wants/{unit}"), &format!("{home}/{unit}"));
    }
    for unit in MASKED {
        archive.symlink(&format!("etc/systemd/system/{unit}"), "/dev/null");
    }
    archive.symlink(
        "etc/systemd/system/dbus-org.freedesktop.resolve1.service",
        "/usr/lib/systemd/system/systemd-resolved.service",
    );
}
