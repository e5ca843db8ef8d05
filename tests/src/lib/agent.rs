//! The real `weft` binary on a host of its own, driven through its command line as an operator would.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use crate::key::KeyPair;
use crate::netns::NetNs;
use crate::process::Process;
use crate::wait::eventually;

/// How long a start may take on a loaded machine.
const READY_DEADLINE: Duration = Duration::from_secs(60);
const BPFFS: &str = "/sys/fs/bpf";

/// The binary under test: `WEFT_BIN`, else `weft` of the same build as the running program.
///
/// # Errors
/// There is no such file.
pub fn weft_binary() -> Result<PathBuf> {
    let binary = match std::env::var_os("WEFT_BIN") {
        Some(path) => PathBuf::from(path),
        None => {
            let this = std::env::current_exe().context("failed to find the running program")?;
            // A test binary lies in target/debug/deps, other programs in target/debug.
            let directory = this.ancestors().skip(1).find(|dir| !dir.ends_with("deps"));
            directory.context("the running program has no directory")?.join("weft")
        }
    };
    ensure!(binary.is_file(), "{} does not exist: run `cargo build -p weft-agent` first", binary.display());
    Ok(binary)
}

/// One `[[peer]]`.
#[derive(Debug, Clone, Default)]
pub struct PeerTable {
    pub name: String,
    pub public_key: String,
    pub preshared_key_file: Option<PathBuf>,
    pub endpoint: Option<String>,
    pub allowed_ips: Vec<String>,
    pub persistent_keepalive: Option<u16>,
}

/// What goes into `weft.toml` beside the names that keep agents apart.
#[derive(Debug, Clone)]
pub struct Settings {
    node: String,
    binary: Option<PathBuf>,
    keys: KeyPair,
    listen_port: u16,
    /// Further lines of `[wireguard]`.
    wireguard: String,
    peers: Vec<PeerTable>,
    /// Further tables.
    tables: String,
    web: bool,
    dns: bool,
}

impl Settings {
    /// A node with new keys, port 51820, the web API on `127.0.0.1:9615`, DNS on its default address, no peers.
    ///
    /// # Errors
    /// `wg` is not installed.
    pub fn new(node: &str) -> Result<Self> {
        Ok(Self {
            node: node.to_owned(),
            binary: None,
            keys: KeyPair::generate()?,
            listen_port: 51820,
            wireguard: String::new(),
            peers: Vec::new(),
            tables: String::new(),
            web: true,
            dns: true,
        })
    }

    /// These keys instead of new ones.
    #[must_use]
    pub fn with_keys(mut self, keys: KeyPair) -> Self {
        self.keys = keys;
        self
    }

    /// Another binary than [`weft_binary`].
    #[must_use]
    pub fn binary(mut self, path: &Path) -> Self {
        self.binary = Some(path.to_owned());
        self
    }

    /// The addresses of the node, `ADDRESS/LENGTH`.
    #[must_use]
    pub fn addresses(self, addresses: &[&str]) -> Self {
        let list = format!("addresses = {addresses:?}");
        self.wireguard(&list)
    }

    /// Another line for `[wireguard]`.
    #[must_use]
    pub fn wireguard(mut self, line: &str) -> Self {
        self.wireguard.push_str(line);
        self.wireguard.push('\n');
        self
    }

    #[must_use]
    pub fn listen_port(mut self, port: u16) -> Self {
        self.listen_port = port;
        self
    }

    #[must_use]
    pub fn peer(mut self, peer: PeerTable) -> Self {
        self.peers.push(peer);
        self
    }

    /// Other tables as they stand in the file. A `[web]` or `[dns]` table replaces the default one.
    #[must_use]
    pub fn table(mut self, text: &str) -> Self {
        self.web &= !text.contains("[web]");
        self.dns &= !text.contains("[dns]");
        self.tables.push_str(text);
        self.tables.push('\n');
        self
    }

    pub fn keys(&self) -> &KeyPair {
        &self.keys
    }

    fn render(&self, instance: &str, link: &str, directory: &Path) -> String {
        let mut text = format!(
            "instance = {instance:?}\nstate_dir = {:?}\nrun_dir = {:?}\n[node]\nid = {:?}\n[wireguard]\nlink = {link:?}\n\
             listen_port = {}\nprivate_key_file = {:?}\n{}",
            directory.join("state"),
            directory.join("run"),
            self.node,
            self.listen_port,
            directory.join("private.key"),
            self.wireguard,
        );
        for peer in &self.peers {
            render_peer(&mut text, peer);
        }
        if self.web {
            text.push_str("[web]\nlisten = \"127.0.0.1:9615\"\n");
        }
        if self.dns {
            // The host's resolvers cannot be reached from here.
            text.push_str("[dns]\nupstream = []\n");
        }
        text.push_str(&self.tables);
        text
    }
}

fn render_peer(text: &mut String, peer: &PeerTable) {
    let fixed = "writing to a String cannot fail";
    writeln!(text, "[[peer]]\nname = {:?}\npublic_key = {:?}", peer.name, peer.public_key).expect(fixed);
    writeln!(text, "allowed_ips = {:?}", peer.allowed_ips).expect(fixed);
    if let Some(file) = &peer.preshared_key_file {
        writeln!(text, "preshared_key_file = {file:?}").expect(fixed);
    }
    if let Some(endpoint) = &peer.endpoint {
        writeln!(text, "endpoint = {endpoint:?}").expect(fixed);
    }
    if let Some(seconds) = peer.persistent_keepalive {
        writeln!(text, "persistent_keepalive = {seconds}").expect(fixed);
    }
}

/// An agent with a directory, an instance name and a link name of its own.
#[derive(Debug)]
pub struct TestAgent<'a> {
    host: &'a NetNs,
    binary: PathBuf,
    process: Option<Process>,
    directory: TempDir,
    instance: String,
    link: String,
    settings: Settings,
}

impl<'a> TestAgent<'a> {
    /// Writes the configuration without starting anything.
    ///
    /// # Errors
    /// The binary is missing or the directory cannot be written.
    pub fn prepare(host: &'a NetNs, settings: Settings) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        mount_bpffs();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let pid = std::process::id();
        let agent = Self {
            host,
            binary: settings.binary.clone().map_or_else(weft_binary, Ok)?,
            process: None,
            directory: TempDir::with_prefix("weft-test-").context("failed to make a directory")?,
            instance: format!("test-{pid}-{number}"),
            // Userspace control sockets are named by the link and shared by all namespaces: unique, 15 bytes at most.
            link: format!("wt{pid}x{number}"),
            settings,
        };
        agent.write_secret("private.key", &agent.settings.keys.private)?;
        agent.write_config()?;
        Ok(agent)
    }

    /// Starts an agent and waits until it is ready.
    ///
    /// # Errors
    /// It ended or was not ready in time; the error carries its log.
    pub fn start(host: &'a NetNs, settings: Settings) -> Result<Self> {
        let mut agent = Self::prepare(host, settings)?;
        agent.launch()?;
        agent.wait_until_ready()?;
        Ok(agent)
    }

    /// Starts the process and returns at once.
    ///
    /// # Errors
    /// The program could not be started.
    pub fn launch(&mut self) -> Result<()> {
        let command = self.host.command(&self.binary);
        self.spawn(command)
    }

    /// Starts the process under another program, such as `strace`, and returns at once. That program must replace itself
    /// with the agent: its process id is taken for the agent's.
    ///
    /// # Errors
    /// The program could not be started.
    pub fn launch_under(&mut self, wrapper: &[&str]) -> Result<()> {
        let (program, args) = wrapper.split_first().context("no program to start the agent under")?;
        let mut command = self.host.command(program);
        command.args(args).arg(&self.binary);
        self.spawn(command)
    }

    fn spawn(&mut self, mut command: Command) -> Result<()> {
        command.args(["agent", "--config"]).arg(self.config_file());
        self.process = Some(Process::spawn(&self.settings.node, command)?);
        Ok(())
    }

    /// Waits until `weft status --check ready` succeeds.
    ///
    /// # Errors
    /// The agent ended or was not ready in time.
    pub fn wait_until_ready(&mut self) -> Result<()> {
        let mut process = self.process.take().context("the agent was not started")?;
        let ready = process.wait_for("the agent is ready", READY_DEADLINE, || {
            self.cli(&["status", "--check", "ready"]).is_ok_and(|output| output.status.success())
        });
        self.process = Some(process);
        ready
    }

    /// Waits until the accounting is attached; what was sent before is not counted.
    ///
    /// # Errors
    /// It is not within the deadline, as on a kernel without BPF.
    pub fn wait_until_counting(&self) -> Result<()> {
        let attached = || self.cli_json(&["status"]).is_ok_and(|status| status["accounting"]["hook"].is_string());
        eventually(READY_DEADLINE, "the accounting is attached", attached)
    }

    /// Runs `weft ARGS` against this agent.
    ///
    /// # Errors
    /// The program could not be started. A failure of the command is in the output.
    pub fn cli(&self, args: &[&str]) -> Result<Output> {
        let (verb, rest) = args.split_first().context("no command")?;
        let mut command = self.host.command(&self.binary);
        command.arg("--config").arg(self.config_file()).arg(verb).args(rest);
        command.output().with_context(|| format!("failed to run weft {args:?}"))
    }

    /// Starts `weft ARGS`, which goes on until it is ended; what it writes is in its log.
    ///
    /// # Errors
    /// The program could not be started.
    pub fn cli_running(&self, args: &[&str]) -> Result<Process> {
        let (verb, rest) = args.split_first().context("no command")?;
        let mut command = self.host.command(&self.binary);
        command.arg("--config").arg(self.config_file()).arg(verb).args(rest);
        Process::spawn("weft", command)
    }

    /// Runs `weft ARGS`, which must succeed, and returns its standard output.
    ///
    /// # Errors
    /// Any other exit code than 0; the error carries both outputs.
    pub fn cli_text(&self, args: &[&str]) -> Result<String> {
        let output = self.cli(args)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "weft {args:?} ended with {}: {text}{errors}", output.status);
        Ok(text)
    }

    /// Runs `weft ARGS --json` and parses the answer; one of a degraded agent (exit code 4) is an answer too.
    ///
    /// # Errors
    /// Any other exit code, or the answer is not JSON.
    pub fn cli_json(&self, args: &[&str]) -> Result<serde_json::Value> {
        let output = self.cli(&[args, &["--json"]].concat())?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(matches!(output.status.code(), Some(0 | 4)), "weft {args:?} ended with {}: {errors}", output.status);
        serde_json::from_str(&text).with_context(|| format!("weft {args:?} --json is not JSON: {text}"))
    }

    /// Ends the agent as a crash would.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill9(&mut self) -> Result<()> {
        self.process.take().context("the agent does not run")?.kill9()
    }

    /// Asks the agent to end with SIGTERM; it must end with exit status 0.
    ///
    /// # Errors
    /// It does not run, does not end, or ends with a failure.
    pub fn stop(&mut self) -> Result<()> {
        let mut process = self.process.take().context("the agent does not run")?;
        let status = process.stop()?;
        ensure!(status.success(), "the agent ended with {status}:\n{}", process.tail());
        Ok(())
    }

    /// Starts the agent again with the configuration as it is now, and waits until it is ready.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn restart(&mut self) -> Result<()> {
        if self.process.is_some() {
            self.stop()?;
        }
        self.launch()?;
        self.wait_until_ready()
    }

    /// Replaces the settings and writes the file; a running agent reads it on SIGHUP or restart.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn reconfigure(&mut self, settings: Settings) -> Result<()> {
        self.settings = settings;
        self.write_secret("private.key", &self.settings.keys.private)?;
        self.write_config()
    }

    /// Replaces the file by `text`; a running agent reads it on SIGHUP or restart.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn overwrite_config(&self, text: &str) -> Result<()> {
        fs::write(self.config_file(), text).context("failed to write weft.toml")
    }

    /// The file as it is now.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn config_text(&self) -> Result<String> {
        fs::read_to_string(self.config_file()).context("failed to read weft.toml")
    }

    /// Starts the agent, which must refuse, and returns what it wrote.
    ///
    /// # Errors
    /// It still runs after the deadline, or ended with success.
    pub fn launch_refused(&mut self) -> Result<String> {
        self.launch()?;
        let mut process = self.process.take().context("the agent was started")?;
        let status = process.wait_for_exit(READY_DEADLINE)?;
        ensure!(!status.success(), "the agent ended with success:\n{}", process.tail());
        Ok(process.log())
    }

    /// The process id of the running agent.
    pub fn pid(&self) -> Option<i32> {
        self.process.as_ref().and_then(|process| i32::try_from(process.pid()).ok())
    }

    /// The running process.
    pub fn process(&mut self) -> Option<&mut Process> {
        self.process.as_mut()
    }

    /// What the agent wrote since it was started last.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    pub fn host(&self) -> &'a NetNs {
        self.host
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub fn link(&self) -> &str {
        &self.link
    }

    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// The directory that holds everything of this agent: `state`, `run`, the configuration.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn config_file(&self) -> PathBuf {
        self.directory().join("weft.toml")
    }

    pub fn socket(&self) -> PathBuf {
        self.directory().join("run/weft.sock")
    }

    fn write_config(&self) -> Result<()> {
        let text = self.settings.render(&self.instance, &self.link, self.directory());
        fs::write(self.config_file(), text).context("failed to write weft.toml")
    }

    fn write_secret(&self, name: &str, content: &str) -> Result<()> {
        let file = self.directory().join(name);
        fs::write(&file, content).with_context(|| format!("failed to write {}", file.display()))?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).context("failed to protect the key")
    }
}

impl Drop for TestAgent<'_> {
    fn drop(&mut self) {
        // The log of a failed test is shown by the process's own guard.
        drop(self.process.take());
        // `weft down` is what takes pins away; a test that broke it must not leave them on the host.
        drop(self.cli(&["down"]));
        drop(fs::remove_dir_all(Path::new(BPFFS).join("weft").join(&self.instance)));
        for suffix in ["sock", "name"] {
            drop(fs::remove_file(format!("/run/wireguard/{}.{suffix}", self.link)));
        }
    }
}

/// Mounts bpffs where the distribution would have: pins need it, containers and small guests come without.
fn mount_bpffs() {
    static MOUNT: std::sync::Once = std::sync::Once::new();
    MOUNT.call_once(|| {
        let mounted = fs::read_to_string("/proc/self/mounts").is_ok_and(|mounts| mounts.contains(" /sys/fs/bpf bpf "));
        if !mounted {
            // A kernel without BPF has no bpffs: the agent then says so itself.
            let none = nix::mount::MsFlags::empty();
            nix::mount::mount(Some("bpf"), BPFFS, Some("bpf"), none, None::<&str>).ok();
        }
    });
}
