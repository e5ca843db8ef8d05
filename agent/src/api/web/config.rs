//! The `[web]` table, and the API key that it names.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::cors::{Origins, OriginsError};
use super::key::{ApiKey, KeyError};
use crate::foundation::secret::Secret;
use crate::sys::file::{self, FileError};

/// `[web]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Serve the process API, the web page, `/metrics` and `/health` over TCP at all.
    pub enabled: bool,
    pub listen: SocketAddr,
    /// A file that holds the API key alone, readable by its owner only. Without a key only local callers that the kernel
    /// vouches for reach the API.
    pub api_key_file: Option<PathBuf>,
    /// Origins whose pages may read answers, each `https://host`, or `*` for all. Such pages always need the API key.
    pub cors_origins: Vec<String>,
    /// Connections at a time; further ones wait in the kernel's queue.
    pub max_connections: usize,
    /// From the command line or the environment; goes over `api_key_file`. Never in the file itself.
    #[serde(skip)]
    pub api_key: Option<Secret<String>>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: true,
            listen: SocketAddr::from(([127, 0, 0, 1], 9615)),
            api_key_file: None,
            cors_origins: vec!["*".to_owned()],
            max_connections: 16_384,
            api_key: None,
        }
    }
}

/// What the listener is told.
#[derive(Debug, Clone)]
pub struct Settings {
    pub enabled: bool,
    pub listen: SocketAddr,
    pub max_connections: usize,
    pub(super) key: Option<ApiKey>,
    pub(super) origins: Origins,
}

/// Why `[web]` is of no use.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("web.max_connections 0 would answer nobody; set 1 or more, or web.enabled = false")]
    NoConnections,
    #[error(transparent)]
    Origins(#[from] OriginsError),
    #[error("web.api_key_file is of no use")]
    KeyFile(#[source] FileError),
    #[error("web.api_key_file {} does not exist; make it with `install -m 600 /dev/null FILE` and write a key into it", .0.display())]
    NoKeyFile(PathBuf),
    #[error("web.api_key_file {} can be read by others (mode {mode:o}); run `chmod 600` on it", path.display())]
    OpenKeyFile { path: PathBuf, mode: u32 },
    #[error("the key of {origin} is of no use")]
    Key {
        origin: String,
        #[source]
        source: KeyError,
    },
}

impl Config {
    /// Checks the table and reads the key.
    ///
    /// # Errors
    /// The first thing that is wrong, by its key.
    pub fn settings(&self) -> Result<Settings, ConfigError> {
        if self.max_connections == 0 {
            return Err(ConfigError::NoConnections);
        }
        Ok(Settings {
            enabled: self.enabled,
            listen: self.listen,
            max_connections: self.max_connections,
            key: self.key()?,
            origins: Origins::parse(&self.cors_origins)?,
        })
    }

    fn key(&self) -> Result<Option<ApiKey>, ConfigError> {
        if let Some(text) = &self.api_key {
            let key = ApiKey::new(text.expose());
            return key
                .map(Some)
                .map_err(|source| ConfigError::Key { origin: "--api-key (or its variable)".to_owned(), source });
        }
        self.api_key_file.as_deref().map(read_key).transpose()
    }
}

fn read_key(path: &Path) -> Result<ApiKey, ConfigError> {
    let failed = |source: io::Error| FileError { action: "read", path: path.to_owned(), source };
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.mode() & 0o077 != 0 => {
            return Err(ConfigError::OpenKeyFile { path: path.to_owned(), mode: metadata.mode() & 0o7777 });
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(ConfigError::NoKeyFile(path.to_owned()));
        }
        Err(error) => return Err(ConfigError::KeyFile(failed(error))),
    }
    let text = file::read_if_present(path).map_err(ConfigError::KeyFile)?;
    let text = Secret::new(text.ok_or_else(|| ConfigError::NoKeyFile(path.to_owned()))?);
    ApiKey::new(text.expose().trim())
        .map_err(|source| ConfigError::Key { origin: format!("web.api_key_file {}", path.display()), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const KEY: &str = "your-secret-api-key";

    fn with_key_file(content: &str, mode: u32) -> Result<Settings, ConfigError> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("key");
        std::fs::write(&path, content).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("its own");
        Config { api_key_file: Some(path), ..Config::default() }.settings()
    }

    #[test]
    fn a_key_is_read_from_a_file_that_only_its_owner_reads() {
        let settings = with_key_file(&format!("{KEY}\n"), 0o600).expect("right");
        assert!(settings.key.is_some_and(|key| key.is(KEY.as_bytes())));
        for mode in [0o640, 0o604, 0o644] {
            let error = with_key_file(KEY, mode).expect_err("refused").to_string();
            assert!(error.contains("web.api_key_file") && error.contains("chmod 600"), "{error}");
        }
    }

    #[test]
    fn a_file_without_a_key_is_refused_and_named() {
        let error = with_key_file("short", 0o600).expect_err("refused");
        assert!(error.to_string().contains("web.api_key_file"), "{error}");
        let missing = Config { api_key_file: Some("/nonexistent/key".into()), ..Config::default() };
        assert!(missing.settings().expect_err("refused").to_string().contains("/nonexistent/key"));
    }

    #[test]
    fn the_command_line_goes_over_the_file_and_is_never_shown() {
        let given = Secret::new("another-secret-api-key".to_owned());
        let config = Config { api_key: Some(given), api_key_file: Some("/nonexistent".into()), ..Config::default() };
        assert!(config.settings().expect("right").key.is_some_and(|key| key.is(b"another-secret-api-key")));
        assert!(!format!("{config:?}{:?}", config.settings()).contains("another-secret"));
    }

    #[test]
    fn the_file_cannot_hold_the_key_itself() {
        assert!(toml::from_str::<Config>("api_key = \"your-secret-api-key\"").is_err());
    }

    #[test]
    fn wrong_values_name_their_key() {
        let error = Config { max_connections: 0, ..Config::default() }.settings().expect_err("refused");
        assert!(error.to_string().contains("web.max_connections"));
        let origins = Config { cors_origins: vec!["example.com".to_owned()], ..Config::default() };
        assert!(origins.settings().expect_err("refused").to_string().contains("web.cors_origins"));
    }
}
