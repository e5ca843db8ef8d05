//! The sockets of the protocol: `<if>.sock` for requests, `<if>.name` for tools that list devices.
//!
//! Each client has a thread for the moment it is connected, a deadline, and a bound on what it may send: a slow or
//! senseless client holds up nobody. Everything waits on the stop event too.

use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, SockAddr, Socket, Type};
use zeroize::Zeroizing;

use crate::device::CreateError;
use crate::shared::Shared;
use crate::uapi::apply::apply;
use crate::uapi::listing::listing;
use crate::uapi::request::Request;

/// Clients at the same time; a tool connects once and leaves.
const MAX_CLIENTS: usize = 16;
/// A request with 100,000 peers of a few prefixes each.
const MAX_REQUEST: usize = 64 << 20;
/// For a request to arrive, and for its answer to be taken.
const PATIENCE: Duration = Duration::from_secs(5);
const BACKLOG: i32 = 64;

/// The bound control socket; its files go when it is dropped.
#[derive(Debug)]
pub(crate) struct ControlSocket {
    listener: UnixListener,
    files: Vec<OwnFile>,
}

/// A file we made, known by its inode so that a successor's is not removed.
#[derive(Debug)]
struct OwnFile {
    path: PathBuf,
    inode: u64,
}

impl ControlSocket {
    /// Binds the socket of `interface` in `directory`, taking the place of one that nobody answers.
    pub(crate) fn bind(directory: &Path, interface: &str) -> Result<Self, CreateError> {
        let path = directory.join(format!("{interface}.sock"));
        if UnixStream::connect(&path).is_ok() {
            return Err(CreateError::ControlSocketInUse { path });
        }
        let name_path = directory.join(format!("{interface}.name"));
        Self::bind_at(directory, path.clone(), name_path, interface)
            .map_err(|source| CreateError::ControlSocket { path, source })
    }

    fn bind_at(directory: &Path, path: PathBuf, name_path: PathBuf, interface: &str) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        remove_if_there(&path)?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.bind(&SockAddr::unix(&path)?)?;
        let mut files = vec![OwnFile::new(path)?];
        // Nobody can connect before `listen`, so the mode is right from the first moment.
        fs::set_permissions(&files[0].path, Permissions::from_mode(0o600))?;
        remove_if_there(&name_path)?;
        fs::write(&name_path, format!("{interface}\n"))?;
        files.push(OwnFile::new(name_path)?);
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(Self { listener: UnixListener::from(std::os::fd::OwnedFd::from(socket)), files })
    }
}

impl OwnFile {
    fn new(path: PathBuf) -> io::Result<Self> {
        let inode = fs::symlink_metadata(&path)?.ino();
        Ok(Self { path, inode })
    }
}

impl Drop for OwnFile {
    fn drop(&mut self) {
        let is_ours = fs::symlink_metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode);
        if is_ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "control file stays behind");
        }
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Accepts clients until the device stops.
pub(crate) fn run(shared: &Arc<Shared>, control: &ControlSocket) -> io::Result<()> {
    debug_assert_eq!(control.files.len(), 2, "both files are held while serving");
    let mut clients: Vec<JoinHandle<()>> = Vec::new();
    let result = accept(shared, &control.listener, &mut clients);
    for client in clients {
        if client.join().is_err() {
            tracing::error!("a control client's thread panicked");
        }
    }
    result
}

fn accept(shared: &Arc<Shared>, listener: &UnixListener, clients: &mut Vec<JoinHandle<()>>) -> io::Result<()> {
    loop {
        if let Wait::Stop = wait(shared, listener, PollFlags::POLLIN, None)? {
            return Ok(());
        }
        clients.retain(|client| !client.is_finished());
        match listener.accept() {
            Ok((stream, _)) if clients.len() >= MAX_CLIENTS => refuse(&stream),
            Ok((stream, _)) => {
                let shared = Arc::clone(shared);
                let builder = std::thread::Builder::new().name("wg-client".to_owned());
                clients.push(builder.spawn(move || serve_logged(&shared, &stream))?);
            }
            // The client has gone, or there are no descriptors left for the moment.
            Err(error) => tracing::debug!(%error, "control client not accepted"),
        }
    }
}

fn refuse(mut stream: &UnixStream) {
    if let Err(error) = stream.write_all(answer("", libc::EBUSY).as_bytes()) {
        tracing::debug!(%error, "control client not answered");
    }
}

fn serve_logged(shared: &Shared, stream: &UnixStream) {
    if let Err(error) = serve(shared, stream) {
        tracing::debug!(%error, "control client");
    }
}

/// Answers requests until the client leaves, is too slow, or sends something wrong.
fn serve(shared: &Shared, stream: &UnixStream) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let mut pending = Zeroizing::new(Vec::new());
    while let Incoming::Request(length) = read_request(shared, stream, &mut pending)? {
        let outcome = handle(shared, &pending[..length]);
        // Two more for the line ends behind the request.
        pending.drain(..length + 2);
        write(shared, stream, outcome.text.as_bytes())?;
        if !outcome.is_ok {
            return Ok(());
        }
    }
    Ok(())
}

enum Incoming {
    /// The request is the first bytes of the buffer, an empty line behind it.
    Request(usize),
    Gone,
}

fn read_request(shared: &Shared, mut stream: &UnixStream, pending: &mut Zeroizing<Vec<u8>>) -> io::Result<Incoming> {
    let deadline = Instant::now() + PATIENCE;
    let mut searched = 0usize;
    let mut chunk = Zeroizing::new(vec![0; 64 << 10]);
    loop {
        let from = searched.saturating_sub(1);
        if let Some(at) = pending[from..].windows(2).position(|pair| pair == b"\n\n") {
            return Ok(Incoming::Request(from + at));
        }
        searched = pending.len();
        if pending.len() > MAX_REQUEST {
            write(shared, stream, answer("", libc::E2BIG).as_bytes())?;
            return Ok(Incoming::Gone);
        }
        match wait(shared, stream, PollFlags::POLLIN, Some(deadline))? {
            Wait::Ready => {}
            Wait::Stop | Wait::TimedOut => return Ok(Incoming::Gone),
        }
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(Incoming::Gone),
            Ok(length) => pending.extend_from_slice(&chunk[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

struct Outcome {
    text: Zeroizing<String>,
    is_ok: bool,
}

fn handle(shared: &Shared, request: &[u8]) -> Outcome {
    let request = std::str::from_utf8(request).ok().and_then(|text| Request::parse(text).ok());
    match request {
        Some(Request::Get) => {
            let mut text = listing(shared);
            text.push_str(&answer("", 0));
            Outcome { text, is_ok: true }
        }
        Some(Request::Set(change)) => {
            let result = apply(shared, change);
            if let Err(error) = &result {
                tracing::warn!(%error, "change refused");
            }
            let errno = result.as_ref().err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
            Outcome { text: Zeroizing::new(answer("", errno)), is_ok: errno == 0 }
        }
        None => Outcome { text: Zeroizing::new(answer("", libc::EINVAL)), is_ok: false },
    }
}

fn answer(text: &str, errno: libc::c_int) -> String {
    format!("{text}errno={errno}\n\n")
}

fn write(shared: &Shared, mut stream: &UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                match wait(shared, stream, PollFlags::POLLOUT, Some(deadline))? {
                    Wait::Ready => {}
                    Wait::Stop | Wait::TimedOut => return Err(io::ErrorKind::TimedOut.into()),
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

enum Wait {
    Ready,
    Stop,
    TimedOut,
}

fn wait(shared: &Shared, file: &impl AsFd, flags: PollFlags, deadline: Option<Instant>) -> io::Result<Wait> {
    let timeout = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
        Some(Duration::ZERO) => return Ok(Wait::TimedOut),
        Some(left) => PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX),
        None => PollTimeout::NONE,
    };
    let mut events = [PollFd::new(file.as_fd(), flags), PollFd::new(shared.stop.as_fd(), PollFlags::POLLIN)];
    match poll(&mut events, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    if events[1].any() == Some(true) {
        return Ok(Wait::Stop);
    }
    // A time-out is noticed by the next call, whose deadline has passed.
    Ok(Wait::Ready)
}
