//! The `[gateway.caller]` table: who on this host may use the pm3 API.

use nix::unistd::User;
use serde::Deserialize;

use super::policy::{Pattern, Policy, Users};

/// Systemd units, containers and virtual machines whose processes speak for somebody else.
const DENY_UNITS: [&str; 26] = [
    "nginx.service",
    "apache2.service",
    "httpd.service",
    "haproxy.service",
    "caddy.service",
    "traefik.service",
    "envoy.service",
    "squid.service",
    "varnish.service",
    "lighttpd.service",
    "ssh.service",
    "sshd.service",
    "ssh@*.service",
    "sshd@*.service",
    "docker-*.scope",
    "libpod-*.scope",
    "crio-*.scope",
    "cri-containerd-*.scope",
    "machine-*.scope",
    "systemd-nspawn@*.service",
    "/docker/*",
    "/kubepods*",
    "/libpod_parent/*",
    "/lxc*",
    "/machine*",
    "/podruntime*",
];

/// Programs that carry other people's connections, by the name of their file or process.
const DENY_PROGRAMS: [&str; 36] = [
    "nginx",
    "angie",
    "openresty",
    "apache2",
    "httpd",
    "haproxy",
    "caddy",
    "traefik",
    "envoy",
    "squid",
    "varnishd",
    "lighttpd",
    "h2o",
    "pound",
    "hitch",
    "stunnel*",
    "privoxy",
    "tinyproxy",
    "3proxy",
    "dante",
    "sockd",
    "sshd",
    "sshd-session",
    "dropbear",
    "socat",
    "rinetd",
    "slirp4netns",
    "pasta*",
    "passt*",
    "rootlessport",
    "rootlesskit*",
    "docker-proxy",
    "conmon",
    "cloudflared",
    "frpc",
    "ngrok",
];

/// `[gateway.caller]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Have the kernel record callers (eBPF); without it the owner of the caller's socket is asked for afterwards.
    pub enabled: bool,
    /// Processes of these users are internal: names, numbers, or `*` for every user of this host.
    pub users: Vec<String>,
    /// Processes of these systemd units are internal, whoever their user is. `*` stands for any text.
    pub units: Vec<String>,
    /// Processes that this agent supervises are internal.
    pub supervised: bool,
    /// Processes of these units are external, whatever else holds. With a `/` in front: cgroups by their path.
    pub deny_units: Vec<String>,
    /// These programs are external, whatever else holds: they carry other people's connections.
    pub deny_programs: Vec<String>,
    /// Connections that can be between `connect` and `accept` at once, 64 to 1,048,576; each takes about 200 bytes of kernel
    /// memory. Beyond it callers are unknown, which is external. Taken when the map is made; `weft down` lets it be
    /// made anew.
    pub max_pending: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: true,
            users: vec!["root".to_owned()],
            units: Vec::new(),
            supervised: true,
            deny_units: DENY_UNITS.map(str::to_owned).to_vec(),
            deny_programs: DENY_PROGRAMS.map(str::to_owned).to_vec(),
            max_pending: 16_384,
        }
    }
}

/// Why `[gateway.caller]` is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("gateway.caller.max_pending = {0} is not from 64 to 1048576")]
    MaxPending(u32),
    #[error("gateway.caller.users has {0:?}, which is no user of this host; use a user's name, a number, or \"*\"")]
    User(String),
    #[error("gateway.caller.{key} has an empty entry; take it out")]
    Empty { key: &'static str },
}

impl Config {
    /// Checks the values and looks the users up.
    ///
    /// # Errors
    /// The first value that is wrong.
    pub fn policy(&self, instance: &str) -> Result<Policy, ConfigError> {
        if !(64..=1_048_576).contains(&self.max_pending) {
            return Err(ConfigError::MaxPending(self.max_pending));
        }
        Ok(Policy {
            users: users(&self.users)?,
            units: patterns("units", &self.units)?,
            supervised: self.supervised.then(|| format!("/weft/{instance}/")),
            deny_units: patterns("deny_units", &self.deny_units)?,
            deny_programs: patterns("deny_programs", &self.deny_programs)?,
        })
    }
}

fn users(names: &[String]) -> Result<Users, ConfigError> {
    if names.iter().any(|name| name == "*") {
        return Ok(Users::All);
    }
    let mut uids = Vec::new();
    for name in names {
        uids.push(uid(name).ok_or_else(|| ConfigError::User(name.clone()))?);
    }
    Ok(Users::These(uids))
}

fn uid(name: &str) -> Option<u32> {
    if let Ok(number) = name.parse() {
        return Some(number);
    }
    Some(User::from_name(name).ok()??.uid.as_raw())
}

fn patterns(key: &'static str, texts: &[String]) -> Result<Vec<Pattern>, ConfigError> {
    if texts.iter().any(String::is_empty) {
        return Err(ConfigError::Empty { key });
    }
    Ok(texts.iter().map(|text| Pattern::new(text)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        let config: Config = toml::from_str(text).expect("it parses");
        config.policy("default").expect_err("refused").to_string()
    }

    #[test]
    fn defaults_are_right() {
        let policy = Config::default().policy("default").expect("right");
        assert_eq!(policy.users, Users::These(vec![0]));
        assert_eq!(policy.supervised.as_deref(), Some("/weft/default/"));
    }

    #[test]
    fn wrong_values_name_the_key_the_value_and_what_is_accepted() {
        assert_eq!(refused("max_pending = 3"), "gateway.caller.max_pending = 3 is not from 64 to 1048576");
        let user = refused("users = [\"root\", \"no such user\"]");
        assert!(user.contains("gateway.caller.users has \"no such user\"") && user.contains("\"*\""), "{user}");
        assert_eq!(refused("units = [\"\"]"), "gateway.caller.units has an empty entry; take it out");
    }

    #[test]
    fn unknown_keys_are_refused() {
        assert!(toml::from_str::<Config>("user = [\"root\"]").is_err());
    }

    #[test]
    fn users_are_names_numbers_or_all() {
        assert_eq!(users(&["0".to_owned(), "root".to_owned()]), Ok(Users::These(vec![0, 0])));
        assert_eq!(users(&["root".to_owned(), "*".to_owned()]), Ok(Users::All));
    }
}
