//! `/etc/resolv.conf` while it points at us: written with a copy of what was there, and put back only if it is
//! still exactly what we wrote.
//!
//! In: addresses, never text. Two files in the state directory tell what happened, whatever killed the agent: the
//! copy of before (absent: there was no file) and the text that we wrote. Order of a take-over: copy, text, file.
//! A symbolic link is never touched: it belongs to the program that manages its target.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::dns::upstream::host;
use crate::sys::file::{self, FileError};

const MODE: u32 = 0o644;
/// resolv.conf(5): further ones are ignored.
const NAMESERVERS_MAX: usize = 3;
/// Times that another program may write over ours before we leave the file to it.
const FIGHTS_MAX: u32 = 3;

/// Why the file does not point at us.
#[derive(Debug, thiserror::Error)]
pub enum ResolvConfError {
    #[error(
        "dns.hook: {} is a symbolic link to {}, which another program manages; point that program at {address}, or set dns.hook = \"off\"",
        path.display(), target.display()
    )]
    Managed { path: PathBuf, target: PathBuf, address: IpAddr },
    #[error("dns.hook: another program keeps rewriting {}; stop it, or set dns.hook = \"off\"", path.display())]
    Fight { path: PathBuf },
    #[error(transparent)]
    File(#[from] FileError),
    #[error("failed to look at {}", path.display())]
    Look {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// What putting the file back found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restored {
    /// We had not written it.
    NotOurs,
    /// The file is as it was before.
    Restored,
    /// Somebody changed it after us: it stays as it is.
    LeftAlone,
}

/// The file and our two notes about it.
#[derive(Debug, Clone)]
pub struct ResolvConf {
    path: PathBuf,
    before: PathBuf,
    written: PathBuf,
    fights: u32,
}

impl ResolvConf {
    /// `path` is the file, `before` where its copy is kept; our own text is kept beside that.
    pub fn new(path: PathBuf, before: PathBuf) -> Self {
        let written = before.with_extension("written");
        Self { path, before, written, fights: 0 }
    }

    /// Makes `address` the first nameserver. The host's own stay behind it, for the time when we do not run.
    ///
    /// # Errors
    /// See [`ResolvConfError`]; the file is untouched then.
    pub fn apply(&mut self, address: IpAddr) -> Result<(), ResolvConfError> {
        self.refuse_symbolic_link(address)?;
        let now = file::read_if_present(&self.path)?;
        let written = file::read_if_present(&self.written)?;
        let ours = written.is_some() && now == written;
        let before = if ours { file::read_if_present(&self.before)? } else { now.clone() };
        let wanted = self.text(address, before.as_deref().unwrap_or_default());
        if now.as_ref() == Some(&wanted) {
            return Ok(());
        }
        if written.is_some() && !ours {
            self.fights += 1;
        }
        if self.fights > FIGHTS_MAX {
            return Err(ResolvConfError::Fight { path: self.path.clone() });
        }
        match &before {
            Some(text) => file::write_atomic(&self.before, text.as_bytes(), MODE)?,
            None => remove(&self.before)?,
        }
        file::write_atomic(&self.written, wanted.as_bytes(), MODE)?;
        file::write_atomic(&self.path, wanted.as_bytes(), MODE)?;
        Ok(())
    }

    /// Puts back what was there before, if what is there now is exactly ours.
    ///
    /// # Errors
    /// A file operation that fails; the notes stay, so that it can be tried again.
    pub fn restore(&self) -> Result<Restored, ResolvConfError> {
        let Some(written) = file::read_if_present(&self.written)? else { return Ok(Restored::NotOurs) };
        let ours = !self.is_symbolic_link()? && file::read_if_present(&self.path)? == Some(written);
        if ours {
            match file::read_if_present(&self.before)? {
                Some(before) => file::write_atomic(&self.path, before.as_bytes(), MODE)?,
                None => remove(&self.path)?,
            }
        }
        remove(&self.written)?;
        remove(&self.before)?;
        Ok(if ours { Restored::Restored } else { Restored::LeftAlone })
    }

    /// Search list and options stay the host's; nothing of them is made up.
    fn text(&self, address: IpAddr, before: &str) -> String {
        let mut text = format!(
            "# Written by weft (dns.hook). What was here before is in {}; `weft down` puts it back.\n",
            self.before.display()
        );
        let others = host::nameservers(before).into_iter().filter(|other| *other != address);
        for server in std::iter::once(address).chain(others).take(NAMESERVERS_MAX) {
            text.push_str(&format!("nameserver {server}\n"));
        }
        for line in before.lines() {
            if matches!(line.split_whitespace().next(), Some("search" | "domain" | "options")) {
                text.push_str(line.trim());
                text.push('\n');
            }
        }
        text
    }

    fn refuse_symbolic_link(&self, address: IpAddr) -> Result<(), ResolvConfError> {
        if !self.is_symbolic_link()? {
            return Ok(());
        }
        let target = fs::read_link(&self.path).unwrap_or_default();
        Err(ResolvConfError::Managed { path: self.path.clone(), target, address })
    }

    fn is_symbolic_link(&self) -> Result<bool, ResolvConfError> {
        match fs::symlink_metadata(&self.path) {
            Ok(metadata) => Ok(metadata.is_symlink()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(ResolvConfError::Look { path: self.path.clone(), source }),
        }
    }
}

fn remove(path: &std::path::Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(FileError { action: "remove", path: path.to_owned(), source: error })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str =
        "# by hand\nsearch example.com\nnameserver 192.0.2.1\nnameserver invalid IP\noptions ndots:2\n";

    struct Host {
        root: tempfile::TempDir,
        file: ResolvConf,
    }

    fn host(before: Option<&str>) -> Host {
        let root = tempfile::tempdir().expect("a temporary directory");
        let path = root.path().join("resolv.conf");
        if let Some(text) = before {
            fs::write(&path, text).expect("written");
        }
        Host { file: ResolvConf::new(path, root.path().join("resolv.conf.before")), root }
    }

    impl Host {
        fn now(&self) -> Option<String> {
            file::read_if_present(&self.root.path().join("resolv.conf")).expect("readable")
        }

        fn write(&self, text: &str) {
            fs::write(self.root.path().join("resolv.conf"), text).expect("written");
        }

        fn files(&self) -> usize {
            fs::read_dir(self.root.path()).expect("listed").count()
        }
    }

    fn us() -> IpAddr {
        "127.0.3.3".parse().expect("an address")
    }

    #[test]
    fn we_come_first_and_everything_comes_back() {
        let mut host = host(Some(BEFORE));
        host.file.apply(us()).expect("applied");
        let text = host.now().expect("there");
        let lines: Vec<&str> = text.lines().skip(1).collect();
        let expected = ["nameserver 127.0.3.3", "nameserver 192.0.2.1", "search example.com", "options ndots:2"];
        assert_eq!(lines, expected);
        assert_eq!(host.file.restore().expect("restored"), Restored::Restored);
        assert_eq!((host.now().as_deref(), host.files()), (Some(BEFORE), 1));
    }

    #[test]
    fn applying_twice_keeps_the_first_copy() {
        let mut host = host(Some(BEFORE));
        host.file.apply(us()).expect("applied");
        host.file.apply(us()).expect("applied");
        host.file.apply("127.0.9.9".parse().expect("an address")).expect("moved");
        assert!(host.now().expect("there").contains("nameserver 127.0.9.9\nnameserver 192.0.2.1"));
        host.file.restore().expect("restored");
        assert_eq!(host.now().as_deref(), Some(BEFORE));
    }

    #[test]
    fn what_an_unclean_stop_left_is_repaired_by_the_next_start() {
        let mut host = host(Some(BEFORE));
        host.file.apply(us()).expect("applied");
        let next = ResolvConf::new(host.root.path().join("resolv.conf"), host.root.path().join("resolv.conf.before"));
        assert_eq!(next.restore().expect("restored"), Restored::Restored);
        assert_eq!(host.now().as_deref(), Some(BEFORE));
    }

    #[test]
    fn a_stop_between_copy_and_file_changes_nothing() {
        let host = host(Some(BEFORE));
        fs::write(host.root.path().join("resolv.conf.before"), BEFORE).expect("written");
        fs::write(host.root.path().join("resolv.conf.written"), "nameserver 127.0.3.3\n").expect("written");
        assert_eq!(host.file.restore().expect("restored"), Restored::LeftAlone);
        assert_eq!((host.now().as_deref(), host.files()), (Some(BEFORE), 1));
    }

    #[test]
    fn what_somebody_else_wrote_after_us_stays() {
        let mut host = host(Some(BEFORE));
        host.file.apply(us()).expect("applied");
        host.write("nameserver 198.51.100.1\n");
        assert_eq!(host.file.restore().expect("left"), Restored::LeftAlone);
        assert_eq!(host.now().as_deref(), Some("nameserver 198.51.100.1\n"));
    }

    #[test]
    fn a_host_without_the_file_has_none_afterwards() {
        let mut host = host(None);
        host.file.apply(us()).expect("applied");
        host.file.restore().expect("restored");
        assert_eq!((host.now(), host.files()), (None, 0));
    }

    #[test]
    fn a_symbolic_link_is_refused_and_named() {
        let mut host = host(None);
        let path = host.root.path().join("resolv.conf");
        std::os::unix::fs::symlink("../run/other/resolv.conf", &path).expect("linked");
        let error = host.file.apply(us()).expect_err("refused").to_string();
        assert!(error.contains("../run/other/resolv.conf") && error.contains("dns.hook"), "{error}");
        assert!(fs::symlink_metadata(&path).expect("there").is_symlink());
    }

    #[test]
    fn a_program_that_keeps_rewriting_wins() {
        let mut host = host(Some(BEFORE));
        for round in 0..=FIGHTS_MAX {
            host.file.apply(us()).expect("applied");
            host.write(&format!("nameserver 198.51.100.{round}\n"));
        }
        assert!(matches!(host.file.apply(us()), Err(ResolvConfError::Fight { .. })));
        assert_eq!(host.now().as_deref(), Some("nameserver 198.51.100.3\n"));
    }

    #[test]
    fn restoring_what_we_never_wrote_does_nothing() {
        let host = host(Some(BEFORE));
        assert_eq!(host.file.restore().expect("nothing"), Restored::NotOurs);
        assert_eq!(host.now().as_deref(), Some(BEFORE));
    }
}
