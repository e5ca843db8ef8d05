//! Files that are either the old or the new content, never half of it.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// A file operation that failed, with the path.
#[derive(Debug, thiserror::Error)]
#[error("failed to {action} {}", path.display())]
pub struct FileError {
    pub action: &'static str,
    pub path: PathBuf,
    #[source]
    pub source: io::Error,
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError { action, path, source }
}

/// Replaces `path` by `content` with the permission bits `mode`: written beside it, synced, renamed over it.
///
/// # Errors
/// Any step that fails; the old file is untouched then.
pub fn write_atomic(path: &Path, content: &[u8], mode: u32) -> Result<(), FileError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    let written = write_synced(&beside, content, mode)
        .and_then(|()| fs::rename(&beside, path))
        .and_then(|()| sync_directory_of(path));
    written.map_err(|source| {
        // The rename took it away, or it is ours to remove; a second failure adds nothing.
        fs::remove_file(&beside).ok();
        FileError { action: "write", path: path.to_owned(), source }
    })
}

fn write_synced(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()
}

fn sync_directory_of(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

/// Makes `path` and its parents with the permission bits `mode` where they are missing; an existing directory keeps its own.
///
/// # Errors
/// Any step that fails.
pub fn create_directory(path: &Path, mode: u32) -> Result<(), FileError> {
    if path.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(mode).create(path).map_err(failed("create directory", path))
}

/// Reads `path` as text; `None` if there is no such file.
///
/// # Errors
/// Any other failure, and text that is not UTF-8.
pub fn read_if_present(path: &Path) -> Result<Option<String>, FileError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_replaces_content_and_mode_and_leaves_nothing_beside() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("key");
        write_atomic(&path, b"old", 0o644).expect("written");
        write_atomic(&path, b"new", 0o600).expect("replaced");
        assert_eq!(read_if_present(&path).expect("readable").as_deref(), Some("new"));
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).expect("listed").count(), 1);
    }

    #[test]
    fn a_failed_write_names_the_path() {
        let error = write_atomic(Path::new("/nonexistent/key"), b"", 0o600).expect_err("no such directory");
        assert!(error.to_string().contains("/nonexistent/key"));
    }

    #[test]
    fn a_missing_file_is_none() {
        assert!(read_if_present(Path::new("/nonexistent/key")).expect("no error").is_none());
    }
}
