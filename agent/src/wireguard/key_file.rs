//! Key files: one key in base64, mode 0600 (wg(8)).
//!
//! In: a path. Out: a key that cannot be wrong, or one clear error. Invariants: our own private key is made once and
//! never written over; a key that others can read is refused; no error shows what stands in the file.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use zeroize::Zeroizing;

use crate::model::key::{KeyError, PresharedKey, PrivateKey};
use crate::sys::file::{self, FileError};

/// A key is 44 characters and a line end; more than this is not a key file.
const LONGEST: u64 = 256;

/// Why a key file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error("{what} {} does not exist; make it with `{make} > {}` under umask 077", path.display(), path.display())]
    Missing { what: &'static str, make: &'static str, path: PathBuf },
    #[error("failed to read {what} {}; it must be a file that the agent's user can read", path.display())]
    Unreadable {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{what} {} can be read by others (mode {mode:04o}); run `chmod 600 {}`", path.display(), path.display())]
    Exposed { what: &'static str, path: PathBuf, mode: u32 },
    #[error("{what} {} is not a regular file", path.display())]
    NotAFile { what: &'static str, path: PathBuf },
    #[error("{what} {} is damaged; restore it from a backup{remedy}", path.display())]
    Damaged {
        what: &'static str,
        path: PathBuf,
        remedy: &'static str,
        #[source]
        source: KeyError,
    },
    #[error("{what} {} holds only zeroes, which is no key; make one with `{make}`", path.display())]
    Zero { what: &'static str, make: &'static str, path: PathBuf },
    #[error("failed to make the private key")]
    Create(#[source] FileError),
}

/// The kinds of key files, for the messages.
#[derive(Clone, Copy)]
struct Kind {
    what: &'static str,
    make: &'static str,
    remedy: &'static str,
}

const PRIVATE: Kind = Kind {
    what: "private key file",
    make: "wg genkey",
    remedy: ", or remove it to have a new key made (every peer then needs the new public key)",
};
const CONFIGURED_PRIVATE: Kind = Kind { remedy: ", or make a new key with `wg genkey`", ..PRIVATE };
const PRESHARED: Kind = Kind {
    what: "preshared key file",
    make: "wg genpsk",
    remedy: ", or make a new key with `wg genpsk` on both sides",
};

/// The private key in `path`, which the configuration names.
///
/// # Errors
/// Any [`KeyFileError`] but [`KeyFileError::Create`].
pub fn private_key(path: &Path) -> Result<PrivateKey, KeyFileError> {
    required(path, CONFIGURED_PRIVATE)
}

/// The agent's own private key in `path`, made on the first call.
///
/// # Errors
/// Any [`KeyFileError`] but [`KeyFileError::Missing`].
pub fn private_key_or_new(path: &Path) -> Result<PrivateKey, KeyFileError> {
    if let Some(key) = read(path, PRIVATE)? {
        return Ok(key);
    }
    let fresh = PrivateKey::from_bytes(x25519_dalek::StaticSecret::random().to_bytes());
    let mut line = fresh.to_base64();
    line.push('\n');
    let parent = path.parent().unwrap_or(Path::new("."));
    file::create_directory(parent, 0o700).map_err(KeyFileError::Create)?;
    file::write_atomic(path, line.as_bytes(), 0o600).map_err(KeyFileError::Create)?;
    Ok(fresh)
}

/// The preshared key in `path`.
///
/// # Errors
/// Any [`KeyFileError`] but [`KeyFileError::Create`].
pub fn preshared_key(path: &Path) -> Result<PresharedKey, KeyFileError> {
    let key: PresharedKey = required(path, PRESHARED)?;
    if key.expose() == &[0; 32] {
        // The protocol's spelling of "no preshared key".
        return Err(KeyFileError::Zero { what: PRESHARED.what, make: PRESHARED.make, path: path.to_owned() });
    }
    Ok(key)
}

fn required<K: FromStr<Err = KeyError>>(path: &Path, kind: Kind) -> Result<K, KeyFileError> {
    let missing = || KeyFileError::Missing { what: kind.what, make: kind.make, path: path.to_owned() };
    read(path, kind)?.ok_or_else(missing)
}

fn read<K: FromStr<Err = KeyError>>(path: &Path, kind: Kind) -> Result<Option<K>, KeyFileError> {
    let Kind { what, remedy, .. } = kind;
    let unreadable = |source| KeyFileError::Unreadable { what, path: path.to_owned(), source };
    // Looked at before it is opened: opening a pipe would wait for its writer.
    match std::fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => return Err(KeyFileError::NotAFile { what, path: path.to_owned() }),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    }
    let file = File::open(path).map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Exposed { what, path: path.to_owned(), mode });
    }
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(LONGEST).read_to_end(&mut bytes).map_err(unreadable)?;
    let text = std::str::from_utf8(&bytes).unwrap_or_default();
    let damaged = |source| KeyFileError::Damaged { what, path: path.to_owned(), remedy, source };
    text.parse().map(Some).map_err(damaged)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};

    use super::*;
    use crate::foundation::error;

    struct Directory(tempfile::TempDir);

    impl Directory {
        fn new() -> Self {
            Self(tempfile::tempdir().expect("a temporary directory"))
        }

        fn file(&self, content: &str, mode: u32) -> PathBuf {
            let path = self.0.path().join("key");
            fs::write(&path, content).expect("written");
            fs::set_permissions(&path, Permissions::from_mode(mode)).expect("its mode is set");
            path
        }
    }

    fn refusal(content: &str, mode: u32) -> String {
        let directory = Directory::new();
        let path = directory.file(content, mode);
        let error = private_key_or_new(&path).expect_err("refused");
        assert_eq!(fs::read_to_string(&path).expect("still there"), content, "a refused file is not touched");
        error::chain(&error)
    }

    #[test]
    fn the_own_key_is_made_once_and_only_for_us() {
        let directory = Directory::new();
        let path = directory.0.path().join("state/private.key");
        let first = private_key_or_new(&path).expect("made");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(private_key_or_new(&path).expect("read"), first);
        assert_eq!(private_key(&path).expect("read"), first);
    }

    #[test]
    fn a_truncated_key_is_refused_and_kept() {
        let text = refusal("dGhpcyBpcyBzaG9ydA==\n", 0o600);
        assert!(text.contains("is damaged") && text.contains("44 characters"), "{text}");
        assert!(!text.contains("dGhpcyBpcyBzaG9ydA"), "{text}");
    }

    #[test]
    fn an_empty_key_file_is_refused() {
        assert!(refusal("", 0o600).contains("has 0 bytes"));
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let text = refusal("AAAA", 0o640);
        assert!(text.contains("mode 0640") && text.contains("chmod 600"), "{text}");
    }

    #[test]
    fn a_directory_is_not_a_key() {
        let directory = Directory::new();
        let error = private_key(directory.0.path()).expect_err("refused");
        assert!(error.to_string().contains("not a regular file"), "{error}");
    }

    #[test]
    fn a_missing_configured_key_says_how_to_make_it() {
        let error = private_key(Path::new("/nonexistent/private.key")).expect_err("missing").to_string();
        assert!(error.contains("/nonexistent/private.key") && error.contains("wg genkey"), "{error}");
    }

    #[test]
    fn a_preshared_key_of_zeroes_is_no_key() {
        let directory = Directory::new();
        let path = directory.file(&format!("{}=\n", "A".repeat(43)), 0o600);
        let error = preshared_key(&path).expect_err("refused").to_string();
        assert!(error.contains("only zeroes"), "{error}");
    }
}
