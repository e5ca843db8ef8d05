//! The `[bus]` table.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

/// `[bus]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Start a NATS server as a child of the agent, clustered with those of the other nodes over the mesh.
    pub enabled: bool,
    /// A NATS server elsewhere instead: `nats://HOST:PORT`, or `tls://…`. Without a user or password: those are in
    /// `credentials_file`.
    pub url: Option<String>,
    /// For `url`: a file of credentials as `nsc` writes it.
    pub credentials_file: Option<PathBuf>,
    /// The program, by its path or its name in `PATH`.
    pub server: PathBuf,
    /// Where clients of this host connect; loopback only. What they need is in `RUN_DIR/bus/client.url`.
    pub listen: SocketAddr,
    /// Where the server tells about itself; loopback only, shown under `/nats/` of the pm3 API.
    pub monitor: SocketAddr,
    /// Of this node's mesh address, for the servers of the other nodes.
    pub cluster_port: u16,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: false,
            url: None,
            credentials_file: None,
            server: PathBuf::from("nats-server"),
            listen: SocketAddr::from(([127, 0, 0, 1], 4222)),
            monitor: SocketAddr::from(([127, 0, 0, 1], 8222)),
            cluster_port: 6222,
        }
    }
}

/// Why the table is of no use.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("bus.enabled starts a server here and bus.url names one elsewhere; set one of them")]
    Both,
    #[error("bus.credentials_file is for bus.url; remove it, or set that")]
    Credentials,
    #[error("bus.url {0:?} is not nats://HOST:PORT or tls://HOST:PORT without user and password")]
    Url(String),
    #[error("bus.{key} {address} is not a loopback address with a port; only this host may reach it")]
    NotLoopback { key: &'static str, address: SocketAddr },
    #[error("bus.listen and bus.monitor are both {0}; give one of them another port")]
    Twice(SocketAddr),
    #[error("bus.cluster_port 0 is no port; the default is 6222")]
    ClusterPort,
}

impl Config {
    /// Checks the table.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn validate(&self) -> Result<(), ConfigError> {
        match &self.url {
            Some(_) if self.enabled => return Err(ConfigError::Both),
            Some(url) if !is_url(url) => return Err(ConfigError::Url(without_user(url))),
            None if self.credentials_file.is_some() => return Err(ConfigError::Credentials),
            Some(_) | None => {}
        }
        for (key, address) in [("listen", self.listen), ("monitor", self.monitor)] {
            if !address.ip().is_loopback() || address.port() == 0 {
                return Err(ConfigError::NotLoopback { key, address });
            }
        }
        if self.listen == self.monitor {
            return Err(ConfigError::Twice(self.listen));
        }
        if self.cluster_port == 0 { Err(ConfigError::ClusterPort) } else { Ok(()) }
    }
}

fn is_url(text: &str) -> bool {
    let place = text.strip_prefix("nats://").or_else(|| text.strip_prefix("tls://"));
    let is_plain = |place: &str| !place.is_empty() && !place.contains(['@', '/', '?', '#', ' ', ',']);
    place.is_some_and(is_plain)
}

/// An error must not show what may be a password.
fn without_user(url: &str) -> String {
    url.rsplit_once('@').map_or_else(|| url.to_owned(), |(_user, place)| format!("…@{place}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, named: &str) {
        let config: Config = toml::from_str(text).expect("it parses");
        match config.validate() {
            Ok(()) => assert_eq!(named, "", "{text} is accepted"),
            Err(error) => assert!(!named.is_empty() && error.to_string().contains(named), "{text}: {error}"),
        }
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_key() {
        check("", "");
        check("enabled = true", "");
        check("url = \"nats://192.0.2.1:4222\"", "");
        check("url = \"tls://bus.example\"\ncredentials_file = \"/etc/weft/bus.creds\"", "");
        check("enabled = true\nurl = \"nats://192.0.2.1:4222\"", "bus.url");
        check("credentials_file = \"/x\"", "bus.credentials_file");
        check("url = \"http://192.0.2.1\"", "bus.url");
        check("url = \"nats://\"", "bus.url");
        check("listen = \"0.0.0.0:4222\"", "bus.listen");
        check("monitor = \"127.0.0.1:0\"", "bus.monitor");
        check("monitor = \"127.0.0.1:4222\"", "bus.monitor");
        check("cluster_port = 0", "bus.cluster_port");
    }

    #[test]
    fn a_password_in_the_url_is_refused_and_not_repeated() {
        let config = Config { url: Some("nats://me:hush@192.0.2.1:4222".to_owned()), ..Config::default() };
        let text = config.validate().expect_err("a password").to_string();
        assert!(text.contains("192.0.2.1") && !text.contains("hush"), "{text}");
    }
}
