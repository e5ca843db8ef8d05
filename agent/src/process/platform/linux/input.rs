//! The standard input of a process: nothing, a file, or a FIFO that `weft send` writes into.
//!
//! Invariants: each life has a FIFO of its own, so that none reads what was meant for another; the process itself holds it open
//! for writing too, so that its input never ends; a write is whole or not at all and never waits.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::errno::Errno;
use nix::libc;
use nix::sys::stat::Mode;

use super::program::Account;
use super::transient;
use crate::process::platform::StartError;

/// A file that is read from its beginning.
///
/// # Errors
/// It cannot be read, or is none.
pub(super) fn file(path: &Path) -> Result<File, StartError> {
    let refuse = |why: String| StartError { why: format!("stdin {}: {why}", path.display()), permanent: true };
    // Whatever it is, opening it must not wait for anybody.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    let file = opened.map_err(|error| refuse(error.to_string()))?;
    let is_file = file.metadata().map_err(|error| refuse(error.to_string()))?.is_file();
    if is_file {
        Ok(file)
    } else {
        Err(refuse("it is no regular file; for input that comes later take \"pipe\"".to_owned()))
    }
}

/// A new FIFO at `path` for one life.
pub(super) fn fifo(path: &Path, account: &Account) -> Result<File, StartError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(transient("renew a FIFO")(error)),
        Ok(()) | Err(_) => {}
    }
    nix::unistd::mkfifo(path, Mode::from_bits_truncate(0o600))
        .map_err(|error| transient("make a FIFO")(error.into()))?;
    let opened = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(path);
    let fifo = opened.map_err(transient("open a FIFO"))?;
    if let Some(identity) = account.identity() {
        // So that it may open /dev/stdin.
        std::os::unix::fs::fchown(&fifo, Some(identity.uid), None).map_err(transient("hand a FIFO over"))?;
    }
    Ok(fifo)
}

/// Writes `input`, which pipe(7) takes whole.
///
/// # Errors
/// Nobody reads, or what was written before is not read yet; nothing was written then.
pub(super) fn send(path: &Path, input: &[u8]) -> Result<(), String> {
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
    let opened = OpenOptions::new().write(true).custom_flags(flags).open(path);
    let mut fifo = opened.map_err(|error| match error.raw_os_error() {
        Some(libc::ENXIO) => "it has closed its standard input".to_owned(),
        Some(libc::ENOENT) => "it was started without a pipe; restart it".to_owned(),
        _ => format!("its FIFO cannot be opened: {error}"),
    })?;
    if !fifo.metadata().is_ok_and(|metadata| metadata.file_type().is_fifo()) {
        return Err(format!("{} is not a FIFO; remove it and restart the process", path.display()));
    }
    fifo.write_all(input).map_err(|error| match error.raw_os_error() {
        Some(code) if code == Errno::EAGAIN as i32 => {
            "it does not read what was sent before, and its pipe is full".to_owned()
        }
        _ => format!("its FIFO cannot be written: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::process::definition::Definition;
    use crate::process::platform::linux::program::account;

    #[test]
    fn a_pipe_takes_whole_messages_until_it_is_full_and_a_new_life_reads_none_of_them() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, account) = (directory.path().join("web.in"), account(&Definition::new("web", "x")).expect("root's"));
        let mut first = fifo(&path, &account).expect("made");
        let message = [b'x'; 4096];
        let sent = (0..).take_while(|_| send(&path, &message).is_ok()).count();
        let error = send(&path, &message).expect_err("it is full");
        assert!(sent >= 1 && error.contains("full"), "{sent} {error}");
        let mut read = vec![0; sent * message.len()];
        first.read_exact(&mut read).expect("all of it is there");
        send(&path, b"late").expect("there is room");
        let mut second = fifo(&path, &account).expect("made anew");
        send(&path, b"new").expect("room");
        let mut text = [0; 8];
        let count = second.read(&mut text).expect("readable");
        assert_eq!(&text[..count], b"new");
        drop((first, second));
        assert!(send(&path, b"x").expect_err("nobody").contains("closed"));
    }

    #[test]
    fn a_file_is_read_and_what_is_none_is_refused_without_waiting() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("in");
        let why = |path: &Path| file(path).expect_err("refused").why;
        assert!(why(&path).starts_with("stdin "), "{}", why(&path));
        nix::unistd::mkfifo(&path, Mode::S_IRUSR).expect("made");
        assert!(why(&path).contains("no regular file"), "{}", why(&path));
        fs::remove_file(&path).expect("ours");
        fs::write(&path, "input").expect("ours");
        let mut text = String::new();
        file(&path).expect("opened").read_to_string(&mut text).expect("readable");
        assert_eq!(text, "input");
    }
}
