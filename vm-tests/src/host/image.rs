//! The initramfs of a guest: this program as `/init`, the agent, the tools of the scenarios, kernel modules.
//!
//! In: a kernel and `target/<profile>`. Out: one file QEMU loads: two cpio archives behind each other, what belongs to
//! the distribution first and what was built here second. Programs bring the shared libraries `ldd` names.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::cpio::Archive;
use super::kernel::Kernel;
use super::system::{self, Root};
use crate::tool;

/// What the scenarios and the agent run.
const TOOLS: &[&str] = &["bpftool", "ip", "iperf3", "nft", "nsenter", "ping", "strace", "tc", "wg"];
/// Where Debian keeps them; root's `PATH` may lack the `sbin` ones.
const TOOL_DIRECTORIES: &[&str] = &["/usr/bin", "/usr/sbin", "/bin", "/sbin"];

const MOUNT_POINTS: &[&str] = &["dev", "proc", "run", "sys", "tmp", "root", "var/lib", "etc"];

/// Small files programs look for.
const FILES: &[(&str, &str)] = &[
    ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
    ("etc/group", "root:x:0:\nweft:x:900:\n"),
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    ("etc/hostname", "guest\n"),
    ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
    ("etc/resolv.conf", ""),
];

/// The programs that were built here.
#[derive(Debug)]
pub(crate) struct Programs {
    /// Becomes `/init`.
    pub(crate) init: PathBuf,
    /// Becomes `/weft`.
    pub(crate) agent: PathBuf,
}

/// Writes the initramfs for `kernel` to `target`.
pub(crate) fn write(kernel: &Kernel, programs: &Programs, target: &Path) -> Result<()> {
    let mut bytes = distribution(kernel)?.finish();
    bytes.extend(built_here(programs)?.finish());
    fs::write(target, bytes).with_context(|| format!("failed to write {}", target.display()))
}

/// Writes the initramfs of a machine that systemd boots: `root`, the modules, and what `cargo xtask dist` would install.
pub(crate) fn write_system(kernel: &Kernel, programs: &Programs, root: &Root, target: &Path) -> Result<()> {
    let mut archive = Archive::default();
    for (name, points_to) in system::MERGED {
        archive.symlink(name, points_to);
    }
    for directory in MOUNT_POINTS {
        archive.directory(directory);
    }
    archive.device("dev/console", 5, 1);
    archive.symlink("init", "/usr/lib/systemd/systemd");
    system::configure(&mut archive);
    add_stripped(&mut archive, &programs.init, "opt/vm-tests")?;
    add_stripped(&mut archive, &programs.agent, "usr/bin/weft")?;
    add_tree(&mut archive, &kernel.modules.join("lib/modules"), "usr/lib/modules/")?;
    add_tree(&mut archive, &root.path, "")?;
    fs::write(target, archive.finish()).with_context(|| format!("failed to write {}", target.display()))
}

fn distribution(kernel: &Kernel) -> Result<Archive> {
    let mut archive = Archive::default();
    for directory in MOUNT_POINTS {
        archive.directory(directory);
    }
    archive.device("dev/console", 5, 1);
    for (path, content) in FILES {
        archive.file(path, 0o644, content.as_bytes());
    }
    for tool in TOOLS {
        add_program(&mut archive, &find(tool)?, &format!("bin/{tool}"))?;
    }
    add_program(&mut archive, &find("dash")?, "bin/sh")?;
    // The kernel loads modules by running this path.
    add_program(&mut archive, &find("kmod")?, "bin/kmod")?;
    archive.symlink("sbin/modprobe", "../bin/kmod");
    add_tree(&mut archive, &kernel.modules, "")?;
    Ok(archive)
}

fn built_here(programs: &Programs) -> Result<Archive> {
    let mut archive = Archive::default();
    add_stripped(&mut archive, &programs.init, "init")?;
    // Beside `/init`, where the harness looks for the agent of its own build.
    add_stripped(&mut archive, &programs.agent, "weft")?;
    Ok(archive)
}

/// Debug information is most of a program built for tests, and none of it is read in the guest.
fn add_stripped(archive: &mut Archive, program: &Path, path: &str) -> Result<()> {
    let stripped = tempfile::NamedTempFile::new()?;
    tool::output(Command::new("strip").arg("--strip-debug").arg("-o").arg(stripped.path()).arg(program))?;
    archive.file(path, 0o755, &fs::read(stripped.path())?);
    add_libraries(archive, program)
}

fn add_program(archive: &mut Archive, program: &Path, path: &str) -> Result<()> {
    let content = fs::read(program).with_context(|| format!("failed to read {}", program.display()))?;
    archive.file(path, 0o755, &content);
    add_libraries(archive, program)
}

/// The shared libraries of a program, at the paths its loader looks for.
fn add_libraries(archive: &mut Archive, program: &Path) -> Result<()> {
    let listing = tool::output(Command::new("ldd").arg(program))?;
    for library in libraries(&listing)? {
        let path = library.trim_start_matches('/');
        // Where /lib is a link to /usr/lib, the root has the library under that name and in its own version.
        let path = if archive.contains_link("lib") { format!("usr/{path}") } else { path.to_owned() };
        if !archive.contains(&path) {
            archive.file(&path, 0o755, &fs::read(library).with_context(|| format!("failed to read {library}"))?);
        }
    }
    Ok(())
}

/// The paths in what `ldd` prints: `name => /path (address)` or `/path (address)`.
fn libraries(listing: &str) -> Result<Vec<&str>> {
    let mut paths = Vec::new();
    for line in listing.lines() {
        if line.contains("not found") {
            bail!("a shared library is missing on this machine: {}", line.trim());
        }
        let path = line.rsplit("=> ").next().unwrap_or(line).trim();
        if path.starts_with('/') {
            paths.push(path.split(' ').next().unwrap_or(path));
        }
    }
    Ok(paths)
}

fn add_tree(archive: &mut Archive, from: &Path, to: &str) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("failed to read {}", from.display()))? {
        let entry = entry?;
        let path = format!("{to}{}", entry.file_name().to_string_lossy());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            archive.directory(&path);
            add_tree(archive, &entry.path(), &format!("{path}/"))?;
        } else if kind.is_symlink() {
            let points_to = fs::read_link(entry.path())?;
            archive.symlink(&path, &points_to.to_string_lossy());
        } else {
            let permissions = entry.metadata()?.permissions().mode() & 0o777;
            archive.file(&path, permissions, &fs::read(entry.path())?);
        }
    }
    Ok(())
}

fn find(tool: &str) -> Result<PathBuf> {
    let paths = TOOL_DIRECTORIES.iter().map(|directory| Path::new(directory).join(tool));
    let mut found = paths.filter(|path| path.exists());
    found.next().with_context(|| {
        format!("{tool} is not installed; the packages in vm-tests/debian-packages.txt bring it (cargo xtask setup)")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_what_has_a_path() {
        let listing = "\tlinux-vdso.so.1 (0x00007f)\n\tlibc.so.6 => /lib/libc.so.6 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(libraries(listing).unwrap(), ["/lib/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]);
    }

    #[test]
    fn a_missing_library_is_an_error() {
        assert!(libraries("\tlibgone.so.1 => not found\n").is_err());
    }

    #[test]
    fn a_static_program_has_no_libraries() {
        assert!(libraries("\tstatically linked\n").unwrap().is_empty());
    }
}
