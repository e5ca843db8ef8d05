//! The socket file: made once, never taken from a living agent, removed at the end.
//!
//! A lock file beside the socket decides who owns the run directory; the kernel frees it when its holder dies, however
//! it dies. Whatever socket file a dead agent left is replaced. Never removed: a file that is not a socket.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{Gid, Group, chown, getuid};
use tokio::net::UnixListener;

use super::caller::{GROUP, Policy};
use crate::sys::file::{self, FileError};

/// The longest path a unix socket can have (`sun_path` less the closing zero, unix(7)).
const LONGEST_PATH: usize = 107;
/// The socket is made under this longer name first.
const TEMPORARY_SUFFIX: &str = ".new";

/// Why the control socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("failed to make the run directory")]
    RunDirectory(#[source] FileError),
    #[error(
        "another agent (pid {pid}) uses {}; stop it, or give this one its own instance, run_dir, state_dir and \
         wireguard.link", path.display()
    )]
    InUse { path: PathBuf, pid: String },
    #[error("run_dir is too long: {} has more than {LONGEST_PATH} bytes, the most a unix socket can have", .0.display())]
    TooLong(PathBuf),
    #[error("{} is in the way and is not a socket; move it, or choose another run_dir", .0.display())]
    NotASocket(PathBuf),
    #[error("failed to {action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The path of the control socket in `run_dir`.
pub fn path(run_dir: &Path) -> PathBuf {
    run_dir.join("weft.sock")
}

/// The socket, listening but not yet served.
#[derive(Debug)]
pub struct Socket {
    pub(super) listener: UnixListener,
    pub(super) file: SocketFile,
    pub(super) policy: Policy,
}

/// The file of a socket and the lock that makes it ours; dropping it removes the socket file.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    _lock: Flock<File>,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // The next agent replaces it anyway; nobody is left to tell.
        fs::remove_file(&self.path).ok();
    }
}

/// Takes the run directory and makes the socket: mode 0660 for group `weft` where the host has it, else 0600.
///
/// # Errors
/// [`SocketError::InUse`] when another agent has it, or what failed.
pub fn bind(run_dir: &Path) -> Result<Socket, SocketError> {
    let path = path(run_dir);
    if path.as_os_str().len() + TEMPORARY_SUFFIX.len() > LONGEST_PATH {
        return Err(SocketError::TooLong(path));
    }
    file::create_directory(run_dir, 0o755).map_err(SocketError::RunDirectory)?;
    let lock = lock(run_dir, &path)?;
    refuse_other_files(&path)?;
    let group = Group::from_name(GROUP).ok().flatten().map(|group| group.gid);
    let listener = listen(&path, group)?;
    let policy = Policy { own_uid: getuid().as_raw(), group: group.map(Gid::as_raw) };
    Ok(Socket { listener, file: SocketFile { path, _lock: lock }, policy })
}

fn lock(run_dir: &Path, socket: &Path) -> Result<Flock<File>, SocketError> {
    let path = run_dir.join("weft.lock");
    let failed = |action, source| SocketError::File { action, path: path.clone(), source };
    // Not truncated: until the lock is ours, the pid inside is another's.
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(&path)
        .map_err(|source| failed("open", source))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id())).map_err(|e| failed("write", e))?;
            Ok(lock)
        }
        Err((_file, Errno::EWOULDBLOCK)) => {
            let pid = fs::read_to_string(&path).map(|text| text.trim().to_owned()).unwrap_or_default();
            let pid = if pid.is_empty() { "unknown".to_owned() } else { pid };
            Err(SocketError::InUse { path: socket.to_owned(), pid })
        }
        Err((_file, errno)) => Err(failed("lock", errno.into())),
    }
}

fn refuse_other_files(path: &Path) -> Result<(), SocketError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => Ok(()),
        Ok(_) => Err(SocketError::NotASocket(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(SocketError::File { action: "look at", path: path.to_owned(), source }),
    }
}

/// Listens under a name beside `path`, sets who may connect, and only then renames it to `path`.
fn listen(path: &Path, group: Option<Gid>) -> Result<UnixListener, SocketError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(TEMPORARY_SUFFIX);
    let beside = PathBuf::from(beside);
    let failed = |action| move |source| SocketError::File { action, path: path.to_owned(), source };
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("replace")(error)),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&beside).map_err(failed("bind"))?;
    let mode = if group.is_some() { 0o660 } else { 0o600 };
    chown(&beside, None, group).map_err(|errno| failed("give to group weft")(errno.into()))?;
    fs::set_permissions(&beside, Permissions::from_mode(mode)).map_err(failed("set the mode of"))?;
    fs::rename(&beside, path).map_err(failed("put in place"))?;
    Ok(listener)
}
