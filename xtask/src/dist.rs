//! `cargo xtask dist`: the release tarball in `target/dist`.
//!
//! Paths inside are those of the file system, so that unpacking at `/usr` installs it: the binary, the unit, the group, the
//! example configuration and the completions; a file with the SHA-256 lies beside it.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{repo, setup};

/// What is copied as it is: from the repository, to the tarball.
const FILES: [(&str, &str); 5] = [
    ("agent/dist/weft.service", "lib/systemd/system/weft.service"),
    ("agent/dist/weft.sysusers", "lib/sysusers.d/weft.conf"),
    ("agent/dist/sandbox.conf", "share/doc/weft/sandbox.conf"),
    ("agent/dist/weft.toml", "share/doc/weft/weft.toml"),
    ("README.md", "share/doc/weft/README.md"),
];
/// Shell, and where its completions are looked for.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "share/bash-completion/completions/weft"),
    ("zsh", "share/zsh/site-functions/_weft"),
    ("fish", "share/fish/vendor_completions.d/weft.fish"),
];

pub(crate) fn run() -> Result<()> {
    setup::for_build()?;
    println!("release build: about twelve minutes on two cores the first time");
    repo::execute(&mut repo::cargo(&["build", "--release", "--package", "weft-agent"]))?;
    let weft = repo::built("release", "weft");
    let name = format!("weft-{}-{}-linux", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH);
    let dist = repo::root().join("target/dist");
    let tree = dist.join(&name);
    if tree.exists() {
        fs::remove_dir_all(&tree).context("failed to remove the last tree")?;
    }
    copy(&weft, &tree.join("bin/weft"))?;
    for (from, to) in FILES {
        copy(&repo::root().join(from), &tree.join(to))?;
    }
    for (shell, to) in COMPLETIONS {
        let script = repo::capture(Command::new(&weft).args(["completions", shell]))?;
        write(&tree.join(to), script.as_bytes())?;
    }
    pack(&dist, &name)
}

fn pack(dist: &Path, name: &str) -> Result<()> {
    let tarball = format!("{name}.tar.gz");
    let owner = ["--owner=0", "--group=0", "--sort=name"];
    repo::execute(Command::new("tar").current_dir(dist).args(owner).args(["-czf", &tarball, "-C", name, "."]))?;
    let sum = repo::capture(Command::new("sha256sum").current_dir(dist).arg(&tarball))?;
    fs::write(dist.join(format!("{tarball}.sha256")), &sum).context("failed to write the checksum")?;
    println!("{}\n{}", dist.join(&tarball).display(), sum.trim_end());
    println!("install: tar -xzf {tarball} -C /usr && systemd-sysusers && systemctl enable --now weft");
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    make_parent(to)?;
    fs::copy(from, to).with_context(|| format!("failed to copy {}", from.display()))?;
    Ok(())
}

fn write(to: &Path, content: &[u8]) -> Result<()> {
    make_parent(to)?;
    fs::write(to, content).with_context(|| format!("failed to write {}", to.display()))
}

fn make_parent(path: &Path) -> Result<()> {
    let parent = path.parent().context("a file has a directory")?;
    fs::create_dir_all(parent).with_context(|| format!("failed to create {}", parent.display()))
}
