//! The compiler and the linker for BPF: found where they are, the linker built when it is missing.
//!
//! A compiler will do when it has the sources of `core` beside it: Debian's (`rustc-web` + `rust-web-src`), or a
//! toolchain of rustup with the component `rust-src`. Unstable flags of a stable compiler are opened by
//! `RUSTC_BOOTSTRAP=1`, for this one build.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};

const LINKER_VERSION: &str = "0.10.3";
/// Debian's LLVM that the linker is built against; at least as new as the compiler's.
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// A compiler that can build `core` for BPF.
#[derive(Debug)]
pub(crate) struct Toolchain {
    /// Where it comes from, for people.
    pub(crate) origin: String,
    pub(crate) cargo: PathBuf,
    pub(crate) rustc: PathBuf,
    /// The compiler's version with its LLVM's.
    pub(crate) version: String,
}

/// The toolchain whose version is `wanted`, else the first that will do.
pub(crate) fn choose(wanted: Option<&str>) -> anyhow::Result<Toolchain> {
    let mut found = Vec::new();
    found.extend(debian()?);
    found.extend(rustup()?);
    if let Some(index) = found.iter().position(|toolchain| Some(toolchain.version.as_str()) == wanted) {
        return Ok(found.swap_remove(index));
    }
    match found.into_iter().next() {
        Some(first) => Ok(first),
        None => bail!(
            "no compiler with the sources of core: install Debian's (apt-get install {}), or `rustup toolchain install \
             nightly --component rust-src`",
            super::DEBIAN_PACKAGES.join(" ")
        ),
    }
}

fn debian() -> anyhow::Result<Option<Toolchain>> {
    let rustc = PathBuf::from("/usr/bin/rustc");
    if !rustc.exists() || !has_core_sources(&rustc)? {
        return Ok(None);
    }
    // Any cargo drives any compiler; Debian's where it is installed.
    let cargo = [PathBuf::from("/usr/bin/cargo")].into_iter().find(|cargo| cargo.exists());
    let cargo = cargo.unwrap_or_else(|| PathBuf::from(std::env::var_os("CARGO").unwrap_or("cargo".into())));
    Ok(Some(Toolchain { origin: "Debian's rustc".to_owned(), version: compiler_version(&rustc)?, cargo, rustc }))
}

/// Toolchains of rustup that have `rust-src`, the nightly one first.
fn rustup() -> anyhow::Result<Vec<Toolchain>> {
    let Ok(output) = clean(&mut Command::new("rustup")).args(["toolchain", "list"]).output() else {
        return Ok(Vec::new());
    };
    let text = String::from_utf8(output.stdout)?;
    let mut names: Vec<&str> = text.lines().filter_map(|line| line.split_whitespace().next()).collect();
    names.sort_by_key(|name| !name.starts_with("nightly"));
    let mut found = Vec::new();
    for name in names {
        let which = |tool: &str| -> anyhow::Result<PathBuf> {
            let mut command = Command::new("rustup");
            Ok(PathBuf::from(output_of(clean(&mut command).args(["which", "--toolchain", name, tool]))?.trim()))
        };
        let rustc = which("rustc")?;
        if has_core_sources(&rustc)? {
            let version = compiler_version(&rustc)?;
            found.push(Toolchain { origin: format!("rustup's {name}"), cargo: which("cargo")?, rustc, version });
        }
    }
    Ok(found)
}

fn has_core_sources(rustc: &Path) -> anyhow::Result<bool> {
    let sysroot = output_of(clean(&mut Command::new(rustc)).args(["--print", "sysroot"]))?;
    Ok(Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/src/lib.rs").exists())
}

fn compiler_version(rustc: &Path) -> anyhow::Result<String> {
    let text = output_of(clean(&mut Command::new(rustc)).arg("-vV"))?;
    let first = text.lines().next().unwrap_or_default();
    let llvm = text.lines().find(|line| line.starts_with("LLVM version")).unwrap_or_default();
    Ok(format!("{first}, {llvm}"))
}

/// `bpf-linker`.
#[derive(Debug)]
pub(crate) struct Linker {
    directory: PathBuf,
    /// Its version with its LLVM's.
    pub(crate) version: String,
}

impl Linker {
    /// The linker below `target`, built there (two minutes) if it is missing.
    pub(crate) fn ensure(root: &Path) -> anyhow::Result<Self> {
        let base = root.join("target/ebpf/linker");
        let program = base.join("bin/bpf-linker");
        if !program.exists() {
            build_linker(root, &base)?;
        }
        let version = output_of(Command::new(&program).arg("--version"))?;
        let llvm = output_of(Command::new(Path::new(LLVM_PREFIX).join("bin/llvm-config")).arg("--version"))?;
        let version = format!("{}, LLVM version: {}", version.trim(), llvm.trim());
        Ok(Self { directory: base.join("bin"), version })
    }

    /// `PATH` with the linker in front: the compiler looks for it by name.
    pub(crate) fn path_before_others(&self) -> anyhow::Result<OsString> {
        let rest = std::env::var_os("PATH").unwrap_or_default();
        Ok(std::env::join_paths(std::iter::once(self.directory.clone()).chain(std::env::split_paths(&rest)))?)
    }
}

fn build_linker(root: &Path, base: &Path) -> anyhow::Result<()> {
    ensure!(
        Path::new(LLVM_PREFIX).join("bin/llvm-config").exists(),
        "bpf-linker needs LLVM below {LLVM_PREFIX}; apt-get install {}",
        super::DEBIAN_PACKAGES.join(" ")
    );
    eprintln!("ebpf: building bpf-linker {LINKER_VERSION}, about two minutes");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    clean(&mut command)
        .env("LLVM_PREFIX", LLVM_PREFIX)
        .args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked"])
        .args(["--no-default-features", "--features", "llvm-22", "--root"])
        .arg(base)
        .arg("--target-dir")
        .arg(root.join("target/ebpf/linker-build"));
    let status = command.status().context("failed to start cargo")?;
    ensure!(status.success(), "bpf-linker {LINKER_VERSION} does not build ({status}); the messages are above");
    Ok(())
}

/// Takes away what the outer cargo and rustup set for their own children, and flags that change the objects.
pub(crate) fn clean(command: &mut Command) -> &mut Command {
    for name in
        ["RUSTUP_TOOLCHAIN", "RUSTC", "RUSTC_WRAPPER", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_RUSTFLAGS"]
    {
        command.env_remove(name);
    }
    command
}

fn output_of(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("failed to start {:?}", command.get_program()))?;
    ensure!(output.status.success(), "{:?} failed: {}", command.get_program(), output.status);
    Ok(String::from_utf8(output.stdout)?)
}
