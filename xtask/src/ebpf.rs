//! `cargo xtask ebpf`: builds the BPF objects from `agent-ebpf` and commits them to `agent/ebpf`, so that building
//! and running the agent needs no BPF toolchain.
//!
//! Two builds with the same compiler and linker give the same bytes: no BTF, so no paths. Another compiler gives
//! other bytes that do the same. So the manifest beside the objects names both, and `--check` refuses to compare
//! when what is installed is not what the manifest names. A test of the agent compares the manifest's hash of the
//! sources with the tree, which needs no toolchain at all.

mod hash;
mod manifest;
mod toolchain;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};

use hash::Hashes;
use manifest::Manifest;
use toolchain::{Linker, Toolchain};

/// What Debian needs for `cargo xtask ebpf` without rustup's nightly.
pub(crate) const DEBIAN_PACKAGES: &[&str] =
    &["cargo-web", "rustc-web", "rust-web-src", "llvm-22-dev", "libpolly-22-dev", "zlib1g-dev"];

/// The objects: the binary of `agent-ebpf` and the committed file.
const OBJECTS: &[(&str, &str)] = &[
    ("accounting", "weft.bpf.o"),
    ("callers", "callers.bpf.o"),
    ("logs", "logs.bpf.o"),
    ("comparison", "comparison.bpf.o"),
];

/// The arguments of `cargo xtask ebpf`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Build again and compare with what is committed, byte by byte; changes nothing
    #[arg(long)]
    pub(crate) check: bool,
}

/// Builds the objects and writes or compares them.
pub(crate) fn run(check: bool) -> anyhow::Result<()> {
    let root = workspace_root()?;
    let committed = root.join("agent/ebpf");
    let manifest = Manifest::read(&committed.join("manifest.toml"))?;
    if check && manifest.is_none() {
        bail!("agent/ebpf/manifest.toml is missing; run `cargo xtask ebpf`");
    }
    let named = manifest.as_ref().map(|manifest| manifest.rustc.as_str());
    let toolchain = toolchain::choose(named)?;
    let linker = Linker::ensure(&root)?;
    eprintln!("ebpf: {} with {}, linker {}", toolchain.origin, toolchain.version, linker.version);
    if check && let Some(manifest) = &manifest {
        manifest.require(&toolchain.version, &linker.version)?;
    }
    let built = build(&root, &toolchain, &linker)?;
    let fresh = describe(&root, &toolchain, &linker, &built)?;
    if check {
        let committed_manifest = manifest.context("checked above")?;
        return compare(&committed, &built, &committed_manifest, &fresh);
    }
    std::fs::create_dir_all(&committed)?;
    for (path, name) in &built {
        std::fs::copy(path, committed.join(name)).with_context(|| format!("failed to write agent/ebpf/{name}"))?;
    }
    fresh.write(&committed.join("manifest.toml"))?;
    eprintln!("ebpf: wrote {} objects and the manifest to agent/ebpf", built.len());
    Ok(())
}

fn workspace_root() -> anyhow::Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask stands in the workspace")?;
    Ok(root.to_owned())
}

/// Builds every object; returns where each is and what it is called below `agent/ebpf`.
fn build(root: &Path, toolchain: &Toolchain, linker: &Linker) -> anyhow::Result<Vec<(PathBuf, &'static str)>> {
    let target = root.join("target/ebpf/objects");
    let mut command = Command::new(&toolchain.cargo);
    toolchain::clean(&mut command);
    command
        .current_dir(root.join("agent-ebpf"))
        .env("RUSTC", &toolchain.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("PATH", linker.path_before_others()?)
        .args(["build", "--release", "--locked", "--target", "bpfel-unknown-none", "-Z", "build-std=core"])
        .arg("--target-dir")
        .arg(&target);
    let status = command.status().with_context(|| format!("failed to start {}", toolchain.cargo.display()))?;
    ensure!(status.success(), "the BPF programs do not build ({status}); the compiler's messages are above");
    let release = target.join("bpfel-unknown-none/release");
    Ok(OBJECTS.iter().map(|(binary, name)| (release.join(binary), *name)).collect())
}

fn describe(
    root: &Path,
    toolchain: &Toolchain,
    linker: &Linker,
    built: &[(PathBuf, &'static str)],
) -> anyhow::Result<Manifest> {
    let mut objects = std::collections::BTreeMap::new();
    for (path, name) in built {
        objects.insert((*name).to_owned(), hash::of_file(path)?);
    }
    Ok(Manifest {
        sources: Hashes::of_sources(&root.join("agent-ebpf"))?.total,
        rustc: toolchain.version.clone(),
        linker: linker.version.clone(),
        objects,
    })
}

fn compare(
    committed: &Path,
    built: &[(PathBuf, &'static str)],
    old: &Manifest,
    fresh: &Manifest,
) -> anyhow::Result<()> {
    ensure!(
        old.sources == fresh.sources,
        "agent-ebpf has changed since agent/ebpf was built; run `cargo xtask ebpf` and commit the result"
    );
    for (path, name) in built {
        let (ours, theirs) = (std::fs::read(path)?, std::fs::read(committed.join(name))?);
        ensure!(ours == theirs, "agent/ebpf/{name} is not what its sources give; run `cargo xtask ebpf` and commit it");
    }
    ensure!(old.objects == fresh.objects, "agent/ebpf/manifest.toml names other objects; run `cargo xtask ebpf`");
    eprintln!("ebpf: {} objects are byte for byte what their sources give", built.len());
    Ok(())
}
