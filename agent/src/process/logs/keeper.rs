//! The log keeper: one thread, one epoll, no allocation a line.
//!
//! In: FIFOs and commands over its socket. Out: log files. It ends only when it is told to, or when another keeper has its
//! lock. Invariants: a slow or full disk costs lines, which are counted, and never blocks a process for longer than a write
//! takes; no process can make it hold more than one buffer.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::protocol::{Command, Reply, Target, VERSION};
use super::rotate::LogFile;
use crate::sys::memory;

/// What a FIFO holds at most, so that one read empties it.
const CHUNK_BYTES: usize = 64 * 1024;
/// Reads of one FIFO in a row while it is emptied; a flood must not hold up an answer for ever.
const MOST_READS: usize = 64;
/// The longest command.
const MOST_COMMAND_BYTES: usize = 64 * 1024;
const LISTENER: u64 = u64::MAX;
/// After so long without anything to do, what the work needed is given back.
const QUIET_MS: u16 = 3000;

/// The keeper's socket below `run_dir`.
pub fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("log-keeper.sock")
}

/// Keeps logs until it is told to end.
///
/// # Errors
/// The socket cannot be had, or epoll fails. Another keeper is no error: this one ends.
pub fn run(run_dir: &Path) -> io::Result<()> {
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(run_dir.join("log-keeper.lock"))?;
    let Ok(_lock) = Flock::lock(lock, FlockArg::LockExclusiveNonblock) else { return Ok(()) };
    let path = socket_path(run_dir);
    // Nobody holds the lock: the socket is a dead keeper's.
    fs::remove_file(&path)
        .or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })?;
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Keeper::new(listener)?.run()?;
    fs::remove_file(&path)
}

struct Keeper {
    epoll: Epoll,
    listener: UnixListener,
    streams: HashMap<RawFd, Source>,
    agents: HashMap<RawFd, Agent>,
    chunk: Box<[u8]>,
    scratch: Vec<u8>,
}

/// One FIFO and the file it goes to.
struct Source {
    fifo: File,
    log: LogFile,
}

/// One connection.
struct Agent {
    stream: UnixStream,
    received: Vec<u8>,
}

/// Whether it goes on.
#[derive(PartialEq, Eq)]
enum Flow {
    Continue,
    End,
}

impl Keeper {
    fn new(listener: UnixListener) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
        Ok(Self {
            epoll,
            listener,
            streams: HashMap::new(),
            agents: HashMap::new(),
            chunk: chunk(),
            scratch: Vec::new(),
        })
    }

    fn run(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); 64];
        // A start is work.
        let mut patience = EpollTimeout::from(QUIET_MS);
        loop {
            let count = match self.epoll.wait(&mut events, patience) {
                Ok(0) => {
                    self.rest();
                    patience = EpollTimeout::NONE;
                    continue;
                }
                Ok(count) => count,
                Err(nix::Error::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            patience = EpollTimeout::from(QUIET_MS);
            // One time serves all that is read now; lines of one moment have one time.
            let now = SystemTime::now();
            for event in &events[..count] {
                if self.on_event(event.data(), now) == Flow::End {
                    return Ok(());
                }
            }
        }
    }

    /// Nothing was to be done for a while.
    fn rest(&mut self) {
        self.chunk = chunk();
        self.scratch = Vec::new();
        memory::give_back();
    }

    fn on_event(&mut self, token: u64, now: SystemTime) -> Flow {
        if token == LISTENER {
            self.accept();
            return Flow::Continue;
        }
        let Ok(fd) = RawFd::try_from(token) else { return Flow::Continue };
        if self.streams.contains_key(&fd) {
            self.read_once(fd, now);
            return Flow::Continue;
        }
        self.on_agent(fd)
    }

    /// Returns how many bytes came.
    fn read_once(&mut self, fd: RawFd, now: SystemTime) -> usize {
        let Some(source) = self.streams.get_mut(&fd) else { return 0 };
        // Nothing there, or interrupted: epoll says again when there is something.
        let count = source.fifo.read(&mut self.chunk).unwrap_or_default();
        if count > 0 {
            source.log.append(&self.chunk[..count], now, &mut self.scratch);
        }
        count
    }

    fn empty(&mut self, fd: RawFd) {
        for _ in 0..MOST_READS {
            if self.read_once(fd, SystemTime::now()) == 0 {
                return;
            }
        }
    }

    fn empty_all(&mut self) {
        let all: Vec<RawFd> = self.streams.keys().copied().collect();
        for fd in all {
            self.empty(fd);
        }
    }

    fn accept(&mut self) {
        let Ok((stream, _address)) = self.listener.accept() else { return };
        let fd = stream.as_raw_fd();
        let is_ready = stream.set_nonblocking(true).is_ok()
            && self.epoll.add(stream.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, token(fd))).is_ok();
        if is_ready {
            self.agents.insert(fd, Agent { stream, received: Vec::new() });
        }
    }

    fn on_agent(&mut self, fd: RawFd) -> Flow {
        let Some(agent) = self.agents.get_mut(&fd) else { return Flow::Continue };
        match agent.stream.read(&mut self.chunk) {
            Ok(0) => {
                self.agents.remove(&fd);
                return Flow::Continue;
            }
            Ok(count) => agent.received.extend_from_slice(&self.chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Flow::Continue,
            Err(_broken) => {
                self.agents.remove(&fd);
                return Flow::Continue;
            }
        }
        while let Some(line) = self.next_line(fd) {
            if self.on_command(fd, &line) == Flow::End {
                return Flow::End;
            }
        }
        Flow::Continue
    }

    fn next_line(&mut self, fd: RawFd) -> Option<Vec<u8>> {
        let agent = self.agents.get_mut(&fd)?;
        let Some(end) = agent.received.iter().position(|byte| *byte == b'\n') else {
            if agent.received.len() > MOST_COMMAND_BYTES {
                self.agents.remove(&fd);
            }
            return None;
        };
        let rest = agent.received.split_off(end + 1);
        Some(std::mem::replace(&mut agent.received, rest))
    }

    fn on_command(&mut self, fd: RawFd, line: &[u8]) -> Flow {
        let command = match serde_json::from_slice(line) {
            Ok(command) => command,
            Err(error) => {
                self.reply(fd, &Reply::Failed { why: format!("not understood: {error}") });
                return Flow::Continue;
            }
        };
        match command {
            Command::Hello => self.reply(fd, &Reply::Hello { version: VERSION, pid: std::process::id() }),
            Command::Open(target) => {
                if let Err(error) = self.open(target) {
                    self.reply(fd, &Reply::Failed { why: error.to_string() });
                }
            }
            Command::Close { fifo } => self.close(&fifo),
            Command::Sync { id } => {
                self.empty_all();
                self.reply(fd, &Reply::Synced { id });
            }
            Command::Quit => {
                self.empty_all();
                return Flow::End;
            }
        }
        Flow::Continue
    }

    fn open(&mut self, target: Target) -> io::Result<()> {
        if let Some(source) = self.streams.values_mut().find(|source| source.log.target().fifo == target.fifo) {
            source.log.retarget(target);
            return Ok(());
        }
        // For reading and writing: it is never at its end, and opening does not wait for a writer.
        let flags = nix::libc::O_NONBLOCK | nix::libc::O_NOFOLLOW;
        let fifo = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&target.fifo)?;
        if !fifo.metadata()?.file_type().is_fifo() {
            return Err(io::Error::other(format!("{} is not a FIFO", target.fifo.display())));
        }
        let fd = fifo.as_raw_fd();
        self.epoll.add(fifo.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, token(fd)))?;
        self.streams.insert(fd, Source { fifo, log: LogFile::new(target) });
        Ok(())
    }

    fn close(&mut self, fifo: &Path) {
        let found = self.streams.iter().find(|(_, source)| source.log.target().fifo == fifo).map(|(fd, _)| *fd);
        if let Some(fd) = found {
            self.empty(fd);
            self.streams.remove(&fd);
        }
    }

    fn reply(&mut self, fd: RawFd, reply: &Reply) {
        let Some(agent) = self.agents.get_mut(&fd) else { return };
        let Ok(mut text) = serde_json::to_vec(reply) else { return };
        text.push(b'\n');
        // An agent that does not read its answers gets none.
        if agent.stream.write_all(&text).is_err() {
            self.agents.remove(&fd);
        }
    }
}

fn chunk() -> Box<[u8]> {
    vec![0; CHUNK_BYTES].into_boxed_slice()
}

fn token(fd: RawFd) -> u64 {
    u64::try_from(fd).unwrap_or(LISTENER)
}
