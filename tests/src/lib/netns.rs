//! A network namespace of its own, named below `/run/netns` as `ip netns` does.
//!
//! Processes enter it with `nsenter --net=…`, which leaves mounts alone: `ip netns exec` would hide bpffs and cgroup2.
//! Made by a thread that unshares and binds its namespace to the name, because a fork in a program of many threads is not
//! safe. Invariant: a name carries the process id, so that [`sweep`] knows what a killed run left.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

const DIRECTORY: &str = "/run/netns";
/// Begins every name, followed by the process id and a counter.
const PREFIX: &str = "weft-test-";

/// A network namespace; it goes away on drop, and with it its links, addresses, routes and nftables tables.
#[derive(Debug)]
pub struct NetNs {
    name: String,
    path: PathBuf,
}

impl NetNs {
    /// A new, empty namespace with loopback up.
    ///
    /// # Errors
    /// Not root, or the kernel refused.
    pub fn new() -> Result<Self> {
        static SWEEP: Once = Once::new();
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        SWEEP.call_once(sweep);
        fs::create_dir_all(DIRECTORY).with_context(|| format!("failed to create {DIRECTORY}"))?;
        let name = format!("{PREFIX}{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(DIRECTORY).join(&name);
        fs::File::create(&path).with_context(|| format!("failed to create {}", path.display()))?;
        // From here on the guard takes the file away again.
        let namespace = Self { name, path };
        on_own_thread(|| bind_new_namespace(&namespace.path))??;
        namespace.run(&["ip", "link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// The name, as `ip -n NAME` takes it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that holds the namespace.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A command that will run inside.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path.display())).arg("--").arg(program);
        command
    }

    /// Runs a command inside to its end and returns what it wrote to standard output.
    ///
    /// # Errors
    /// It could not be started or failed; the error carries the command and its standard error.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        let (program, args) = words.split_first().context("no command to run")?;
        let output = self.command(program).args(args).output().with_context(|| format!("failed to start {words:?}"))?;
        ensure!(
            output.status.success(),
            "`{}` in {} ended with {}: {}{}",
            shown(words),
            self.name,
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `work` on a thread of its own inside and returns its result. Sockets it opens stay in this namespace.
    ///
    /// # Errors
    /// The namespace could not be entered, or `work` panicked.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let file = fs::File::open(&self.path).with_context(|| format!("failed to open {}", self.path.display()))?;
        on_own_thread(move || -> Result<T> {
            setns(&file, CloneFlags::CLONE_NEWNET).context("failed to enter the network namespace")?;
            Ok(work())
        })?
    }
}

impl Drop for NetNs {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// The command as a message shows it: a script handed over as a word is cut to its beginning, so that what went wrong is seen.
fn shown(words: &[&str]) -> String {
    let cut = |word: &&str| match word.char_indices().nth(120) {
        Some((at, _)) => format!("{}…", &word[..at]),
        None => (*word).to_owned(),
    };
    words.iter().map(cut).collect::<Vec<_>>().join(" ")
}

/// Joins two namespaces with a veth pair, both ends up. Addresses are `ADDRESS/LENGTH`; none gives a bare link.
///
/// # Errors
/// A link name is taken, or `ip` failed.
pub fn veth(a: (&NetNs, &str, &[&str]), b: (&NetNs, &str, &[&str])) -> Result<()> {
    a.0.run(&["ip", "link", "add", a.1, "type", "veth", "peer", "name", b.1, "netns", b.0.name()])?;
    for (namespace, link, addresses) in [a, b] {
        for address in addresses {
            // Without duplicate address detection an IPv6 address can be used at once.
            let detection: &[&str] = if address.contains(':') { &["nodad"] } else { &[] };
            namespace.run(&[&["ip", "address", "add", address, "dev", link][..], detection].concat())?;
        }
        namespace.run(&["ip", "link", "set", link, "up"])?;
    }
    Ok(())
}

/// Removes the namespaces of runs that no longer live. Called once before the first namespace is made.
fn sweep() {
    let Ok(entries) = fs::read_dir(DIRECTORY) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove(&entry.path());
        }
    }
}

fn remove(path: &Path) {
    // Either may be gone already: a guard has nobody to report to.
    umount2(path, MntFlags::MNT_DETACH).ok();
    drop(fs::remove_file(path));
}

fn bind_new_namespace(path: &Path) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("failed to make a network namespace (are you root?)")?;
    mount(Some("/proc/thread-self/ns/net"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("failed to bind the namespace to {}", path.display()))
}

/// The namespace belongs to the thread, so the thread must end with the work.
fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        scope.spawn(work).join().map_err(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            anyhow!("panicked inside the network namespace: {text}")
        })
    })
}
