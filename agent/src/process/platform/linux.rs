//! The real host: clone3 into cgroups, pidfds, FIFOs for what processes write.
//!
//! Invariants: nothing outside of `<cgroup2>/weft/<instance>` is ever killed or removed; a process is named by its pidfd, never
//! by its number; what a process writes goes into FIFOs that outlive the agent.

mod environment;
mod input;
pub mod keeper;
mod limits;
mod program;
mod usage;
mod watch;

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::sys::stat::Mode;
use tokio::io::unix::AsyncFd;
use tokio::sync::Semaphore;
use tracing::{debug, warn};

use super::{Found, Launch, Place, Platform, Purpose, Record, StartError, Usage};
use crate::foundation::id::InstanceName;
use crate::process::definition::stdin::Stdin;
use crate::process::definition::{Definition, KillSignal};
use crate::process::logs::client::LogKeeper;
use crate::process::logs::protocol::Target;
use crate::process::quantity::Words;
use crate::process::view::Exit;
use crate::process::watched::Rules;
use crate::sys::cgroup::{self, Hierarchies};
use crate::sys::listeners::{self, Listener};
use crate::sys::{pidfd, spawn};

/// The attribute of a cgroup directory that holds a [`Mark`].
const MARK: &str = "user.weft.process";
/// Starts under way at once. A start waits for the kernel most of its time and gains nothing from more; a thread for each of
/// a hundred would leave its stack and its share of the heap behind.
static STARTS: Semaphore = Semaphore::const_new(8);

/// This host.
#[derive(Debug, Clone)]
pub struct Linux {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    hierarchies: Hierarchies,
    /// `weft/<instance>`, below every hierarchy.
    root: PathBuf,
    fifos: PathBuf,
    /// Directories of the agent, where no change is anybody's but ours.
    own: [PathBuf; 2],
    logs: LogKeeper,
    log_policy: LogPolicy,
}

/// Where logs go and how they are rotated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogPolicy {
    pub directory: PathBuf,
    pub max_bytes: u64,
    pub max_age_s: u64,
    pub keep: u32,
    pub compress: bool,
}

impl LogPolicy {
    /// The log files of an instance: standard output, standard error.
    pub fn files(&self, definition: &Definition, name: &str) -> (PathBuf, PathBuf) {
        let file = |given: &Option<PathBuf>, ending: &str| {
            given.clone().unwrap_or_else(|| self.directory.join(format!("{name}-{ending}.log")))
        };
        (file(&definition.out_file, "out"), file(&definition.error_file, "error"))
    }
}

/// A process of this host.
#[derive(Debug, Clone)]
pub struct Child {
    pid: u32,
    pidfd: Arc<AsyncFd<OwnedFd>>,
}

/// What is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Main,
    Command(Purpose),
}

/// What is written at the cgroup of a running process.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Mark {
    pid: u32,
    /// In clock ticks since boot (proc(5), field 22): with the pid it names the process for ever.
    start_time: u64,
    record: Record,
}

/// Why this host cannot supervise.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error(
        "cgroup2 is not mounted; mount it with `mount -t cgroup2 none /sys/fs/cgroup/unified`, or boot with systemd.unified_cgroup_hierarchy=1"
    )]
    NoCgroup,
    #[error("failed to prepare {}", path.display())]
    Prepare {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Linux {
    /// Makes the directories of `instance` in `run_dir`; changes there and in `state_dir` are never anybody's but ours.
    ///
    /// # Errors
    /// There is no cgroup2, or a directory cannot be made.
    pub fn prepare(
        instance: &InstanceName,
        [run_dir, state_dir]: [PathBuf; 2],
        logs: LogKeeper,
        log_policy: LogPolicy,
    ) -> Result<Self, HostError> {
        let prepare = |path: &Path| {
            let path = path.to_owned();
            move |source| HostError::Prepare { path, source }
        };
        let proc = Path::new("/proc/self/mountinfo");
        let hierarchies = Hierarchies::find().map_err(prepare(proc))?.ok_or(HostError::NoCgroup)?;
        let root = Path::new("weft").join(instance.as_str());
        let (fifos, own) = (run_dir.join("process"), [run_dir, state_dir]);
        let shared = Shared { fifos, own, root, hierarchies, logs, log_policy };
        let unified = shared.unified();
        cgroup::create(&unified).map_err(prepare(&unified))?;
        limits::delegate(&shared.hierarchies, &shared.root);
        fs::create_dir_all(&shared.fifos).map_err(prepare(&shared.fifos))?;
        Ok(Self { shared: Arc::new(shared) })
    }
}

impl Linux {
    /// Has the outputs of an instance read before anything writes: a command that is over before anybody else holds its FIFOs
    /// would take what it wrote with it.
    async fn have_read(&self, launch: &Launch) -> Result<(), StartError> {
        let (shared, launch) = (Arc::clone(&self.shared), launch.clone());
        let targets = blocking(move || {
            let account = program::account(&launch.definition)?;
            for output in ["out", "error"] {
                shared.fifo(&launch.log_name, output, &account)?;
            }
            Ok(shared.targets(&launch.definition, &launch.log_name))
        })
        .await?;
        for target in targets {
            self.shared.logs.open(target).await;
        }
        self.shared.logs.sync().await;
        Ok(())
    }
}

/// The cgroup of `instance` in the unified hierarchy, if the host has one.
pub fn root_of(instance: &InstanceName) -> Option<PathBuf> {
    let hierarchies = Hierarchies::find().ok().flatten()?;
    Some(hierarchies.unified.join("weft").join(instance.as_str()))
}

/// Takes away what is left of `instance` once nothing of it runs: its cgroups.
///
/// # Errors
/// Processes live in them.
pub fn remove_root(instance: &InstanceName) -> io::Result<()> {
    root_of(instance).map_or(Ok(()), |root| cgroup::remove(&root))
}

/// Kills everything that runs in the cgroups of `instance`; returns whether there was anything.
///
/// # Errors
/// The kernel refuses.
pub async fn kill_root(instance: &InstanceName) -> io::Result<bool> {
    let Some(root) = root_of(instance).filter(|root| root.exists()) else { return Ok(false) };
    let had = cgroup::is_populated(&root);
    cgroup::kill(&root)?;
    cgroup::emptied(&root).await?;
    cgroup::remove(&root)?;
    Ok(had)
}

impl Shared {
    fn unified(&self) -> PathBuf {
        self.hierarchies.unified.join(&self.root)
    }

    fn cgroup(&self, place: &Place) -> PathBuf {
        self.unified().join(place.cgroup())
    }

    fn spawn(&self, launch: &Launch) -> Result<Child, StartError> {
        let path = self.cgroup(&launch.place);
        let spawned = self.start(&path, launch, &launch.definition, Role::Main)?;
        let start_time = start_time(spawned.pid).unwrap_or_default();
        write_mark(&path, &Mark { pid: spawned.pid, start_time, record: launch.record.clone() });
        watch(spawned.pid, spawned.pidfd).map_err(transient("watch the process"))
    }

    /// Starts `command` in a cgroup of its own below that of the process.
    fn spawn_command(&self, launch: &Launch, command: &str, purpose: Purpose) -> Result<Child, StartError> {
        let mut definition = Definition::clone(&launch.definition);
        command.clone_into(&mut definition.script);
        definition.args = Words::default();
        definition.interpreter = None;
        definition.interpreter_args = Words::default();
        let spawned = self.start(&self.command_cgroup(launch, purpose), launch, &definition, Role::Command(purpose))?;
        watch(spawned.pid, spawned.pidfd).map_err(transient("watch a command"))
    }

    fn command_cgroup(&self, launch: &Launch, purpose: Purpose) -> PathBuf {
        self.cgroup(&launch.place).join(match purpose {
            Purpose::Check => "check",
            Purpose::Hook => "hook",
        })
    }

    fn start(
        &self,
        path: &Path,
        launch: &Launch,
        definition: &Definition,
        role: Role,
    ) -> Result<spawn::Spawned, StartError> {
        let account = program::account(definition)?;
        let environment = environment::build(launch, &account)?;
        let program = program::resolve(definition, environment.path())?;
        cgroup::create(path).map_err(transient("make a cgroup"))?;
        let moves = match role {
            Role::Main => limits::apply(&self.hierarchies, &self.root, &launch.place, &definition.limits)?,
            Role::Command(_) => Vec::new(),
        };
        let group = File::open(path).map_err(transient("open the cgroup"))?;
        let null = OpenOptions::new().read(true).write(true).open("/dev/null").map_err(transient("open /dev/null"))?;
        let output = |output: &str| match role {
            Role::Main | Role::Command(Purpose::Hook) => self.fifo(&launch.log_name, output, &account).map(Some),
            Role::Command(Purpose::Check) => Ok(None),
        };
        let (stdout, stderr) = (output("out")?, output("error")?);
        let stdin = match (role, &definition.stdin) {
            (Role::Command(_), _) | (Role::Main, Stdin::Null) => None,
            (Role::Main, Stdin::File(path)) => Some(input::file(path)?),
            (Role::Main, Stdin::Pipe) => Some(input::fifo(&self.fifo_path(&launch.place.cgroup(), "in"), &account)?),
        };
        let directory = definition.cwd.as_deref().unwrap_or(Path::new("/"));
        let child = spawn::Child {
            program: text(program.path.as_os_str().as_bytes())?,
            arguments: program.arguments.iter().map(|word| text(word.as_bytes())).collect::<Result<_, _>>()?,
            environment: environment.lines()?,
            directory: text(directory.as_os_str().as_bytes())?,
            stdin: stdin.as_ref().unwrap_or(&null).as_fd(),
            stdout: stdout.as_ref().unwrap_or(&null).as_fd(),
            stderr: stderr.as_ref().unwrap_or(&null).as_fd(),
            cgroup: group.as_fd(),
            moves: moves.iter().map(|file| file.as_fd()).collect(),
            identity: account.identity(),
            limits: limits::resources(&definition.limits),
            no_new_privileges: definition.isolation.no_new_privileges,
            capabilities: program::capabilities(definition),
        };
        spawn::spawn(&child).map_err(|error| refused(&error, &program, directory))
    }

    /// The FIFO of one output, open for reading and writing: nobody's end gives its writer SIGPIPE.
    fn fifo(&self, name: &str, output: &str, account: &program::Account) -> Result<File, StartError> {
        let path = self.fifo_path(name, output);
        match nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o600)) {
            Ok(()) | Err(nix::Error::EEXIST) => {}
            Err(error) => return Err(transient("make a FIFO")(error.into())),
        }
        let mut options = OpenOptions::new();
        let fifo = options.read(true).write(true).custom_flags(nix::libc::O_NOFOLLOW).open(&path);
        let fifo = fifo.map_err(transient("open a FIFO"))?;
        if !fifo.metadata().is_ok_and(|metadata| metadata.file_type().is_fifo()) {
            return Err(StartError { why: format!("{} is not a FIFO; remove it", path.display()), permanent: true });
        }
        if let Some(identity) = account.identity() {
            // So that it may open /dev/stdout.
            std::os::unix::fs::fchown(&fifo, Some(identity.uid), None).map_err(transient("hand a FIFO over"))?;
        }
        Ok(fifo)
    }

    fn fifo_path(&self, name: &str, output: &str) -> PathBuf {
        self.fifos.join(format!("{name}.{output}"))
    }

    fn targets(&self, definition: &Definition, name: &str) -> [Target; 2] {
        let (out, error) = self.log_policy.files(definition, name);
        [("out", out), ("error", error)].map(|(output, file)| Target {
            fifo: self.fifo_path(name, output),
            file,
            max_bytes: self.log_policy.max_bytes,
            max_age_s: self.log_policy.max_age_s,
            keep: self.log_policy.keep,
            compress: self.log_policy.compress,
        })
    }

    fn find_one(&self, place: Place) -> Option<Found<Child>> {
        let path = self.cgroup(&place);
        if !cgroup::is_populated(&path) {
            cgroup::remove(&path).ok();
            limits::remove(&self.hierarchies, &self.root, &place);
            return None;
        }
        Some(Found { main: self.find_main(&path), place })
    }

    fn find_main(&self, path: &Path) -> Option<(Child, Record)> {
        let members = cgroup::members(path);
        let mark: Option<Mark> = cgroup::attribute(path, MARK).and_then(|text| serde_json::from_slice(&text).ok());
        let (pid, expected, record) = match mark {
            Some(mark) => (mark.pid, Some(mark.start_time), mark.record),
            // The agent died between the birth and the mark: the process whose parent is outside came first.
            None => (first_of(&members)?, None, Record::default()),
        };
        if !members.contains(&pid) {
            return None;
        }
        let descriptor = pidfd::open(pid).ok()?;
        // Asked after the descriptor was opened: it is this process and no later one.
        if expected.is_some_and(|expected| start_time(pid) != Some(expected)) {
            return None;
        }
        Some((watch(pid, descriptor).ok()?, record))
    }
}

/// The member that was started first.
fn first_of(members: &[u32]) -> Option<u32> {
    members.iter().copied().filter_map(|pid| Some((start_time(pid)?, pid))).min().map(|(_, pid)| pid)
}

/// Field 22 of `/proc/PID/stat`; the second holds anything, in parentheses.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

fn watch(pid: u32, descriptor: OwnedFd) -> io::Result<Child> {
    let pidfd = Arc::new(pidfd::watch(descriptor)?);
    Ok(Child { pid, pidfd })
}

fn write_mark(path: &Path, mark: &Mark) {
    let written = serde_json::to_vec(mark).map_err(io::Error::from);
    if let Err(error) = written.and_then(|text| cgroup::set_attribute(path, MARK, &text)) {
        debug!(%error, path = %path.display(), "failed to mark a cgroup; its oldest process is taken for the main one");
    }
}

fn text(bytes: &[u8]) -> Result<CString, StartError> {
    CString::new(bytes).map_err(|_nul| StartError { why: "a NUL byte in an argument".to_owned(), permanent: true })
}

/// A failure that may pass.
fn transient(what: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |error| StartError { why: format!("failed to {what}: {error}"), permanent: false }
}

fn refused(error: &spawn::SpawnError, program: &program::Program, directory: &Path) -> StartError {
    let kind = error.source.kind();
    let permanent =
        matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied | io::ErrorKind::NotADirectory)
            || error.source.raw_os_error() == Some(nix::libc::ENOEXEC);
    let about = match error.step {
        "enter the working directory" => directory.display().to_string(),
        _ => program.path.display().to_string(),
    };
    let hint = match error.source.raw_os_error() {
        Some(nix::libc::ENOEXEC) => "; it is no program: give it a #! line or set interpreter",
        Some(nix::libc::ENOENT) if error.step == "run the program" => {
            "; its interpreter (#! line or loader) is missing"
        }
        _ => "",
    };
    StartError { why: format!("failed to {} {about}: {}{hint}", error.step, error.source), permanent }
}

impl Platform for Linux {
    type Child = Child;
    type Watch = watch::Watch;

    async fn check(&self, definition: &Definition) -> Result<(), StartError> {
        let definition = definition.clone();
        if let Some(rules) = Rules::of(&definition).ok().flatten() {
            self.watch(rules).await.map_err(|why| StartError { why, permanent: true })?;
        }
        blocking(move || {
            let account = program::account(&definition)?;
            let environment = environment::of_definition(&definition, &account)?;
            if let Stdin::File(path) = &definition.stdin {
                input::file(path)?;
            }
            program::resolve(&definition, environment.path()).map(drop)
        })
        .await
    }

    async fn spawn(&self, launch: Launch) -> Result<Child, StartError> {
        let shared = Arc::clone(&self.shared);
        let targets = shared.targets(&launch.definition, &launch.log_name);
        let place = launch.place.clone();
        let child = match blocking(move || shared.spawn(&launch)).await {
            Ok(child) => child,
            Err(error) => {
                // One that could not run its program has ended, but may be in its cgroup for a moment more.
                self.sweep(place).await;
                return Err(error);
            }
        };
        for target in targets {
            self.shared.logs.open(target).await;
        }
        Ok(child)
    }

    async fn run(&self, launch: Launch, command: &str, purpose: Purpose, limit: Duration) -> Result<(), String> {
        let (shared, command) = (Arc::clone(&self.shared), command.to_owned());
        let path = shared.command_cgroup(&launch, purpose);
        if purpose == Purpose::Hook {
            self.have_read(&launch).await.map_err(|error| error.why)?;
        }
        let child =
            blocking(move || shared.spawn_command(&launch, &command, purpose)).await.map_err(|error| error.why)?;
        let ended = tokio::time::timeout(limit, self.ended(child)).await;
        // What it started and left goes with it.
        cgroup::kill(&path).map_err(|error| error.to_string())?;
        cgroup::emptied(&path).await.map_err(|error| error.to_string())?;
        cgroup::remove(&path).map_err(|error| error.to_string())?;
        match ended {
            Ok(Exit::Code(0)) => Ok(()),
            Ok(Exit::Code(code)) => Err(format!("it ended with code {code}")),
            Ok(Exit::Signal(signal)) => Err(format!("it ended with signal {signal}")),
            Ok(Exit::Unknown) => Err("nobody knows how it ended".to_owned()),
            Err(_elapsed) => Err(format!("it did not end within {} ms", limit.as_millis())),
        }
    }

    fn pid(&self, child: &Child) -> u32 {
        child.pid
    }

    async fn ended(&self, child: Child) -> Exit {
        loop {
            let Ok(mut guard) = child.pidfd.readable().await else { return Exit::Unknown };
            match pidfd::reap(child.pidfd.get_ref()) {
                Ok(Some(exit)) => return exit,
                Ok(None) => guard.clear_ready(),
                // A child of an earlier agent: init has collected it.
                Err(_not_ours) => return pidfd::exit_of_stranger(child.pidfd.get_ref()),
            }
        }
    }

    fn signal(&self, child: &Child, signal: KillSignal) {
        if let Err(error) = pidfd::signal(child.pidfd.get_ref(), number(signal)) {
            debug!(%error, pid = child.pid, "no signal");
        }
    }

    async fn sweep(&self, place: Place) {
        let path = self.shared.cgroup(&place);
        if let Err(error) = cgroup::remove(&path) {
            debug!(%error, place = %place.cgroup(), "somebody lives in the cgroup; all of them are killed");
            if let Err(error) = cgroup::kill(&path) {
                warn!(%error, place = %place.cgroup(), "failed to kill what is left of a process");
            }
            if let Err(error) = cgroup::emptied(&path).await {
                warn!(%error, place = %place.cgroup(), "failed to wait for the end of what is left of a process");
            }
            if let Err(error) = cgroup::remove(&path) {
                warn!(%error, place = %place.cgroup(), "failed to take a cgroup away");
            }
        }
        limits::remove(&self.shared.hierarchies, &self.shared.root, &place);
        // Most have no input.
        fs::remove_file(self.shared.fifo_path(&place.cgroup(), "in")).ok();
    }

    async fn send(&self, place: &Place, input: Vec<u8>) -> Result<(), String> {
        let path = self.shared.fifo_path(&place.cgroup(), "in");
        match tokio::task::spawn_blocking(move || input::send(&path, &input)).await {
            Ok(result) => result,
            Err(_ending) => Err("the agent is stopping".to_owned()),
        }
    }

    async fn retire(&self, log_name: &str) {
        for output in ["out", "error"] {
            self.shared.logs.close(self.shared.fifo_path(log_name, output)).await;
        }
    }

    async fn usage(&self, places: Vec<(Place, u32)>) -> Vec<Option<Usage>> {
        let shared = Arc::clone(&self.shared);
        let read = move || {
            let read_one = |(place, pid): &(Place, u32)| usage::read(&shared.cgroup(place), *pid);
            places.iter().map(read_one).collect()
        };
        tokio::task::spawn_blocking(read).await.unwrap_or_default()
    }

    async fn find(&self) -> Vec<Found<Child>> {
        let shared = Arc::clone(&self.shared);
        let entries = fs::read_dir(shared.unified()).into_iter().flatten().flatten();
        let places = entries.filter_map(|entry| Place::parse(entry.file_name().to_str()?));
        places.filter_map(|place| shared.find_one(place)).collect()
    }

    async fn watch(&self, rules: Rules) -> Result<watch::Watch, String> {
        let rules = self.shared.own.iter().fold(rules, |rules, own| rules.without(own));
        match tokio::task::spawn_blocking(|| watch::Watch::open(rules)).await {
            Ok(opened) => opened,
            Err(_ending) => Err("the agent is stopping".to_owned()),
        }
    }

    async fn change(&self, watch: &mut watch::Watch) -> Result<PathBuf, String> {
        watch.change().await
    }

    async fn listeners(&self, place: Place) -> Option<Vec<Listener>> {
        let path = self.shared.cgroup(&place);
        let asked = tokio::task::spawn_blocking(move || listeners::of_cgroups(&cgroup::ids(&path)));
        let told = asked.await.unwrap_or(Ok(None));
        told.unwrap_or_else(|error| {
            debug!(%error, place = %place.cgroup(), "nobody tells where a process listens");
            None
        })
    }

    fn ephemeral_ports(&self) -> RangeInclusive<u16> {
        listeners::ephemeral_ports()
    }

    fn promote(&self, child: &Child, place: &Place, record: &Record) {
        let start_time = start_time(child.pid).unwrap_or_default();
        write_mark(&self.shared.cgroup(place), &Mark { pid: child.pid, start_time, record: record.clone() });
    }

    fn is_port_free(&self, port: u16) -> bool {
        program::is_port_free(port)
    }

    fn wall_clock(&self) -> SystemTime {
        SystemTime::now()
    }
}

fn number(signal: KillSignal) -> i32 {
    match signal {
        KillSignal::Term => nix::libc::SIGTERM,
        KillSignal::Int => nix::libc::SIGINT,
        KillSignal::Quit => nix::libc::SIGQUIT,
        KillSignal::Hup => nix::libc::SIGHUP,
        KillSignal::Usr1 => nix::libc::SIGUSR1,
        KillSignal::Usr2 => nix::libc::SIGUSR2,
        KillSignal::Kill => nix::libc::SIGKILL,
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StartError> + Send + 'static,
) -> Result<T, StartError> {
    // It is never closed: without a permit the work is done all the same.
    let _permit = STARTS.acquire().await.ok();
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_ending) => Err(StartError { why: "the agent is stopping".to_owned(), permanent: true }),
    }
}
