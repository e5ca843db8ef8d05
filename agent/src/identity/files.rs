//! The file of an identity, `identity.pem` of mode 0600: the node's certificate, the authority's, the node's key, and the
//! authority's key where this node may issue.
//!
//! One file, replaced whole: a crash at any instruction leaves the old identity or the new one.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::Material;
use crate::foundation::secret::Secret;
use crate::sys::file::{self, FileError};

/// Why the file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("failed to look at {}", path.display())]
    Look {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} can be read by others (mode {mode:o}); `chmod 600` it, and rotate the key if others use this host", path.display())]
    Open { path: PathBuf, mode: u32 },
    #[error(
        "{} does not hold two certificates and one or two private keys in PEM; restore it, or remove it to make a new \
         identity and join again", .0.display()
    )]
    Form(PathBuf),
}

/// Where it is.
#[derive(Debug, Clone)]
pub(super) struct Files {
    path: PathBuf,
}

impl Files {
    pub(super) fn at(directory: &Path) -> Self {
        Self { path: directory.join("identity.pem") }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What is there; `None` if nothing is.
    pub(super) fn read(&self) -> Result<Option<Material>, FilesError> {
        match std::fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(FilesError::Look { path: self.path.clone(), source }),
            Ok(metadata) => {
                let mode = metadata.permissions().mode() & 0o777;
                if mode & 0o077 != 0 {
                    return Err(FilesError::Open { path: self.path.clone(), mode });
                }
            }
        }
        let text = Zeroizing::new(file::read_if_present(&self.path)?.unwrap_or_default());
        parse(&text).map(Some).ok_or_else(|| FilesError::Form(self.path.clone()))
    }

    /// Puts `material` in the place of what is there.
    pub(super) fn write(&self, material: &Material) -> Result<(), FilesError> {
        if let Some(directory) = self.path.parent() {
            file::create_directory(directory, 0o700)?;
        }
        let mut text = Zeroizing::new(String::with_capacity(4096));
        let authority_key = material.ca_key_pem.as_ref().map_or("", |key| key.expose());
        for block in [&material.certificate_pem, &material.ca_pem, material.key_pem.expose(), authority_key] {
            if !block.is_empty() {
                text.push_str(block.trim_end());
                text.push('\n');
            }
        }
        Ok(file::write_atomic(&self.path, text.as_bytes(), 0o600)?)
    }
}

fn parse(text: &str) -> Option<Material> {
    let mut certificates = blocks(text, "CERTIFICATE");
    let mut keys = blocks(text, "PRIVATE KEY");
    let material = Material {
        certificate_pem: certificates.next()?,
        ca_pem: certificates.next()?,
        key_pem: Secret::new(keys.next()?),
        ca_key_pem: keys.next().map(Secret::new),
    };
    (certificates.next().is_none() && keys.next().is_none()).then_some(material)
}

/// The blocks of one kind in the order they stand (RFC 7468).
fn blocks<'a>(text: &'a str, label: &str) -> impl Iterator<Item = String> + use<'a> {
    let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
    let mut rest = text;
    std::iter::from_fn(move || {
        let start = rest.find(&begin)?;
        let stop = start + rest[start..].find(&end)? + end.len();
        let block = rest[start..stop].to_owned();
        rest = &rest[stop..];
        Some(block + "\n")
    })
}
