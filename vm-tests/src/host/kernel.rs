//! Debian's cloud kernels: from apt's package to what QEMU boots and the initramfs carries.
//!
//! In: a series (`6.1`, `6.12`). Out: an uncompressed kernel and a tree with the modules the scenarios need, under
//! `target/vm/<package>/`. A kernel that is there is used without asking apt, so later runs need no network;
//! removing `target/vm` fetches the newest again. A directory appears under its name only when complete.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::tool;

/// Modules the agent and the scenarios use; their dependencies are found.
const MODULES: &[&str] = &[
    "wireguard",
    "veth",
    "dummy",
    "tun",
    "sch_ingress",
    "cls_bpf",
    "act_bpf",
    "nf_tables",
    "nft_ct",
    "nft_nat",
    "nft_masq",
    "nft_chain_nat",
    "nft_limit",
    "nft_log",
    "nft_reject_inet",
    "nft_fib_inet",
    "nf_conntrack",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "unix_diag",
    // strace names the protocol of a netlink socket with it.
    "netlink_diag",
];

/// How the kernel may be packed inside the boot image: the mark it begins with and what unpacks it.
const PACKINGS: &[(&[u8], &str, &[&str])] = &[
    (b"\x28\xb5\x2f\xfd", "zstd", &["-dcq"]),
    (b"\xfd7zXZ\0", "xz", &["-dc", "--single-stream"]),
    (b"\x02\x21\x4c\x18", "lz4", &["-dcq"]),
    (b"\x1f\x8b\x08", "gzip", &["-dc"]),
];

/// A kernel ready to boot.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// As `uname -r` says it.
    pub(crate) release: String,
    /// The uncompressed ELF file; QEMU enters it by PVH, which saves the emulated decompression.
    pub(crate) vmlinux: PathBuf,
    /// A tree with `lib/modules/<release>` and nothing else.
    pub(crate) modules: PathBuf,
}

/// The newest kernel of `series` (`6.1`), from `cache` or from apt.
pub(crate) fn obtain(series: &str, cache: &Path) -> Result<Kernel> {
    fs::create_dir_all(cache).with_context(|| format!("failed to make {}", cache.display()))?;
    if let Some(package) = newest(&cached(series, cache)?) {
        return open(&cache.join(package));
    }
    let package = match fetch(series, cache) {
        Ok(package) => package,
        Err(first) => {
            println!("kernel {series}: {first:#}; renewing apt's lists");
            // They are missing, or older than what the mirror has.
            tool::output(Command::new("apt-get").args(["-q", "update"])).context("failed to run apt-get update")?;
            fetch(series, cache)?
        }
    };
    open(&cache.join(package))
}

/// Fetches the newest kernel package of `series` that apt lists into `cache`, and returns its name.
fn fetch(series: &str, cache: &Path) -> Result<String> {
    let package = newest(&listed(series)?).with_context(|| {
        format!("apt lists no package linux-image-{series}*-cloud-amd64; this needs a Debian that has it")
    })?;
    println!("kernel {series}: fetching {package}");
    let unpacked = tempfile::tempdir_in(cache)?;
    prepare(&package, unpacked.path()).with_context(|| format!("failed to prepare {package}"))?;
    let home = cache.join(&package);
    fs::rename(unpacked.keep(), &home).with_context(|| format!("failed to name {}", home.display()))?;
    Ok(package)
}

fn open(home: &Path) -> Result<Kernel> {
    let modules = home.join("modules");
    let releases = modules.join("lib/modules");
    let release = only_entry(&releases)?;
    Ok(Kernel { release, vmlinux: home.join("vmlinux"), modules })
}

/// Packages of the series that lie complete in the cache, made for the same list of modules.
fn cached(series: &str, cache: &Path) -> Result<Vec<String>> {
    let mut packages = Vec::new();
    for entry in fs::read_dir(cache).with_context(|| format!("failed to read {}", cache.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !is_wanted(&name, series) {
            continue;
        }
        if fs::read_to_string(entry.path().join("modules.list")).is_ok_and(|list| list == MODULES.join("\n")) {
            packages.push(name);
        } else {
            fs::remove_dir_all(entry.path()).with_context(|| format!("failed to remove the outdated {name}"))?;
        }
    }
    Ok(packages)
}

/// Packages of the series that apt can fetch.
fn listed(series: &str) -> Result<Vec<String>> {
    let pattern = format!("^linux-image-{}\\..*-cloud-amd64$", series.replace('.', "\\."));
    let listing = tool::output(Command::new("apt-cache").args(["search", "--names-only", &pattern]))?;
    let names = listing.lines().filter_map(|line| line.split(' ').next());
    Ok(names.filter(|name| is_wanted(name, series)).map(str::to_owned).collect())
}

fn is_wanted(package: &str, series: &str) -> bool {
    package.strip_prefix(&format!("linux-image-{series}.")).is_some_and(|rest| rest.ends_with("-cloud-amd64"))
}

fn newest(packages: &[String]) -> Option<String> {
    packages.iter().max_by_key(|package| version(package)).cloned()
}

/// The numbers in a name, which sort as versions do: `6.1.0-9` before `6.1.0-56`.
fn version(package: &str) -> Vec<u64> {
    package.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

/// Downloads and unpacks `package` into `home`: `vmlinux`, `modules/`, `modules.list`.
fn prepare(package: &str, home: &Path) -> Result<()> {
    // As root apt would drop to a user that cannot write here.
    let download = ["-q", "-o", "APT::Sandbox::User=root", "download", package];
    tool::output(Command::new("apt-get").args(download).current_dir(home)).context("failed to download")?;
    let archive = home.join(only_entry(home)?);
    let tree = home.join("tree");
    tool::output(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&tree))?;
    let release = only_entry(&tree.join("lib/modules"))?;
    let image = fs::read(tree.join(format!("boot/vmlinuz-{release}"))).context("the package has no boot image")?;
    fs::write(home.join("vmlinux"), uncompressed(&image)?)?;
    copy_modules(&tree, &home.join("modules"), &release)?;
    fs::write(home.join("modules.list"), MODULES.join("\n"))?;
    fs::remove_dir_all(&tree)?;
    fs::remove_file(&archive)?;
    Ok(())
}

/// The ELF kernel inside a boot image.
fn uncompressed(image: &[u8]) -> Result<Vec<u8>> {
    for (mark, program, args) in PACKINGS {
        for start in positions(image, mark) {
            let kernel = tool::filter(program, args, &image[start..])?;
            if kernel.starts_with(b"\x7fELF") {
                return Ok(kernel);
            }
        }
    }
    bail!("found no ELF kernel packed with zstd, xz, lz4 or gzip in the boot image")
}

fn positions<'a>(image: &'a [u8], mark: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    image.windows(mark.len()).enumerate().filter(move |(_, window)| *window == mark).map(|(at, _)| at)
}

/// Copies [`MODULES`] and what they need, uncompressed: loading a compressed one costs seconds under emulation.
fn copy_modules(tree: &Path, target: &Path, release: &str) -> Result<()> {
    tool::output(Command::new("depmod").arg("-b").arg(tree).arg(release))?;
    let from = tree.join("lib/modules").join(release);
    let to = target.join("lib/modules").join(release);
    fs::create_dir_all(&to)?;
    for list in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
        fs::copy(from.join(list), to.join(list)).with_context(|| format!("failed to copy {list}"))?;
    }
    let dependencies = fs::read_to_string(from.join("modules.dep"))?;
    let built_in = fs::read_to_string(from.join("modules.builtin"))?;
    for file in closure(&dependencies, &built_in)? {
        let content = fs::read(from.join(&file))?;
        let (name, content) = match file.strip_suffix(".xz") {
            Some(name) => (name, tool::filter("xz", &["-dc"], &content)?),
            None => (file.as_str(), content),
        };
        ensure!(content.starts_with(b"\x7fELF"), "module {file} is packed in a way this program does not know");
        let path = to.join(name);
        fs::create_dir_all(path.parent().context("a module lies in a directory")?)?;
        fs::write(path, content)?;
    }
    tool::output(Command::new("depmod").arg("-b").arg(target).arg(release))?;
    Ok(())
}

/// Files of [`MODULES`] and of all they depend on; `modules.dep` names for each file all it needs.
fn closure(dependencies: &str, built_in: &str) -> Result<BTreeSet<String>> {
    let mut by_name = BTreeMap::new();
    for line in dependencies.lines() {
        let (file, needs) = line.split_once(':').context("modules.dep has a line without a colon")?;
        by_name.insert(module_name(file), (file, needs));
    }
    let built_in: BTreeSet<String> = built_in.lines().map(module_name).collect();
    let mut files = BTreeSet::new();
    for module in MODULES {
        match by_name.get(*module) {
            Some((file, needs)) => {
                files.insert((*file).to_owned());
                files.extend(needs.split_whitespace().map(str::to_owned));
            }
            None => ensure!(built_in.contains(*module), "the kernel has no module {module}"),
        }
    }
    Ok(files)
}

/// `kernel/net/sched/cls-bpf.ko.xz` is module `cls_bpf`.
fn module_name(file: &str) -> String {
    let file = file.rsplit('/').next().unwrap_or(file);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

fn only_entry(directory: &Path) -> Result<String> {
    let entries = fs::read_dir(directory).with_context(|| format!("failed to read {}", directory.display()))?;
    let names: Vec<_> = entries.collect::<Result<_, _>>()?;
    let [entry] = names.as_slice() else { bail!("{} holds {} entries, wanted one", directory.display(), names.len()) };
    Ok(entry.file_name().to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_chosen_by_number_not_by_letter() {
        let packages = ["linux-image-6.1.0-9-cloud-amd64", "linux-image-6.1.0-56-cloud-amd64"].map(str::to_owned);
        assert_eq!(newest(&packages).as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
    }

    #[test]
    fn only_signed_images_of_the_series_are_wanted() {
        assert!(is_wanted("linux-image-6.1.0-56-cloud-amd64", "6.1"));
        assert!(!is_wanted("linux-image-6.12.117+deb12-cloud-amd64", "6.1"));
        assert!(!is_wanted("linux-image-6.1.0-56-cloud-amd64-unsigned", "6.1"));
        assert!(!is_wanted("linux-image-6.1.0-56-cloud-amd64-dbg", "6.1"));
    }

    #[test]
    fn a_packed_kernel_is_found_behind_the_boot_code() {
        let kernel = b"\x7fELF and the rest".to_vec();
        let mut image = b"boot code \x1f\x8b\x08 that is no stream ".to_vec();
        image.extend(tool::filter("gzip", &["-c"], &kernel).unwrap());
        image.extend(b"what follows");
        assert_eq!(uncompressed(&image).unwrap(), kernel);
    }

    #[test]
    fn a_module_brings_its_dependencies_and_a_built_in_one_brings_nothing() {
        let mut dependencies =
            String::from("kernel/net/wireguard.ko: kernel/lib/chacha-x86.ko\nkernel/lib/chacha-x86.ko:\n");
        let mut built_in = String::new();
        for module in MODULES.iter().filter(|module| **module != "wireguard") {
            built_in.push_str(&format!("kernel/{module}.ko\n"));
        }
        let files = closure(&dependencies, &built_in).unwrap();
        assert_eq!(files.into_iter().collect::<Vec<_>>(), ["kernel/lib/chacha-x86.ko", "kernel/net/wireguard.ko"]);
        dependencies.clear();
        assert!(closure(&dependencies, &built_in).is_err());
    }
}
