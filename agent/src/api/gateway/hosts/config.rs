//! `[gateway.host.NAME]`: the routes of a virtual host as they are written, and what is wrong with them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, StatusCode};
use serde::Deserialize;

use super::balance::Balance;

/// `[gateway.host.NAME]`; NAME is a host name, or `*.NAME` for every name below it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostConfig {
    /// The longest path that fits a request counts.
    pub route: Vec<RouteConfig>,
}

/// `[[gateway.host.NAME.route]]`; exactly one of `upstream`, `files` and `redirect` says what it does.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RouteConfig {
    /// This path and everything below it; absent: everything.
    pub path: Option<String>,
    /// `HOST:PORT` of the servers requests are passed on to, by HTTP/1.1.
    pub upstream: Vec<String>,
    pub balance: Option<Balance>,
    /// A client stays with its server for as long as that works.
    pub sticky: Option<bool>,
    /// How many servers a request is tried on.
    pub attempts: Option<u32>,
    /// How long a server may take to begin its answer.
    pub timeout_seconds: Option<u64>,
    /// Asked of every server again and again; one that does not answer 2xx or 3xx gets no requests.
    pub health: Option<String>,
    /// Pass the path on without `path`.
    pub strip: Option<bool>,
    /// Headers the servers get.
    pub request_headers: BTreeMap<String, String>,
    /// A directory whose files are served.
    pub files: Option<PathBuf>,
    /// Where clients are sent; `{uri}` stands for path and query of the request.
    pub redirect: Option<String>,
    /// 301, 302, 307 or 308; absent: 302.
    pub status: Option<u16>,
    /// Headers of every answer.
    pub headers: BTreeMap<String, String>,
    /// Only for internal callers, as the pm3 API, and holders of a signed URL.
    pub internal: bool,
    /// Of one client address (IPv6: of one /64).
    pub requests_per_second: Option<u32>,
    /// How many may come at once; absent: as many as in a second.
    pub burst: Option<u32>,
}

/// What is wrong with a route, by the keys that lead to it.
#[derive(Debug, thiserror::Error)]
#[error("gateway.host.{host:?}: {place}{why}")]
pub struct HostError {
    pub host: String,
    /// `route N: key: `, or nothing.
    pub place: String,
    pub why: String,
}

/// Headers with names and values that can be sent.
pub(super) type Headers = Vec<(HeaderName, HeaderValue)>;

/// A checked route.
#[derive(Debug)]
pub(super) struct RouteSpec {
    /// Without a slash at its end; empty: everything.
    pub(super) path: String,
    pub(super) action: ActionSpec,
    pub(super) headers: Headers,
    pub(super) is_internal: bool,
    /// Requests a second and at once.
    pub(super) limit: Option<(u32, u32)>,
}

#[derive(Debug)]
pub(super) enum ActionSpec {
    Proxy(ProxySpec),
    Files(PathBuf),
    Redirect { target: String, status: StatusCode },
}

#[derive(Debug)]
pub(super) struct ProxySpec {
    pub(super) upstreams: Vec<String>,
    pub(super) balance: Balance,
    pub(super) is_sticky: bool,
    pub(super) attempts: u32,
    pub(super) timeout: Duration,
    pub(super) health: Option<String>,
    pub(super) strips: bool,
    pub(super) headers: Headers,
}

/// A key and what is wrong with its value.
type Wrong = (&'static str, String);

impl HostConfig {
    /// Checks the routes of `host`.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn validate(&self, host: &str) -> Result<(), HostError> {
        self.check(host).map(drop)
    }

    /// The routes of `host`, the longest path first.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub(super) fn check(&self, host: &str) -> Result<Vec<RouteSpec>, HostError> {
        let error = |place: String, why: String| HostError { host: host.to_owned(), place, why };
        if !is_host_name(host) {
            let why = "this is no host name in lower case like example.org or *.example.org; quote it in the file";
            return Err(error(String::new(), why.to_owned()));
        }
        if self.route.is_empty() {
            return Err(error(String::new(), "it has no route; add [[gateway.host.NAME.route]]".to_owned()));
        }
        let mut routes: Vec<RouteSpec> = Vec::new();
        for (number, route) in self.route.iter().enumerate() {
            let place = |key: &str| format!("route {}: {key}: ", number + 1);
            let checked = route.check().map_err(|(key, why)| error(place(key), why))?;
            if routes.iter().any(|other| other.path == checked.path) {
                return Err(error(place("path"), format!("{:?} stands twice", checked.path)));
            }
            routes.push(checked);
        }
        routes.sort_by_key(|route| std::cmp::Reverse(route.path.len()));
        Ok(routes)
    }
}

impl RouteConfig {
    fn check(&self) -> Result<RouteSpec, Wrong> {
        let path = self.path.as_deref().unwrap_or("/");
        let is_path = path.starts_with('/') && !path.contains("//") && !path.contains(['?', '#', '%', '\\', ' ']);
        let has_dots = path.split('/').any(|segment| matches!(segment, "." | ".."));
        if !is_path || has_dots {
            return Err(("path", format!("{path:?} is not a plain path that begins with a slash")));
        }
        let limit = match (self.requests_per_second, self.burst) {
            (None, None) => None,
            (None, Some(_)) => return Err(("burst", "it needs requests_per_second".to_owned())),
            (Some(0), _) | (_, Some(0)) => {
                return Err(("requests_per_second", "0 would answer nobody; remove it for no limit".to_owned()));
            }
            (Some(rate), burst) => Some((rate, burst.unwrap_or(rate))),
        };
        Ok(RouteSpec {
            path: path.trim_end_matches('/').to_owned(),
            action: self.action()?,
            headers: headers("headers", &self.headers)?,
            is_internal: self.internal,
            limit,
        })
    }

    fn action(&self) -> Result<ActionSpec, Wrong> {
        let chosen = [!self.upstream.is_empty(), self.files.is_some(), self.redirect.is_some()];
        if chosen.into_iter().filter(|is_chosen| *is_chosen).count() != 1 {
            return Err(("upstream", "a route has exactly one of upstream, files and redirect".to_owned()));
        }
        if self.redirect.is_none() && self.status.is_some() {
            return Err(("status", "it belongs to redirect".to_owned()));
        }
        if self.upstream.is_empty() {
            self.refuse_proxy_keys()?;
        }
        match (&self.files, &self.redirect) {
            (Some(directory), _) if !directory.is_absolute() => {
                Err(("files", format!("{} is not an absolute path", directory.display())))
            }
            (Some(directory), _) => Ok(ActionSpec::Files(directory.clone())),
            (None, Some(target)) => self.redirect(target),
            (None, None) => self.proxy().map(ActionSpec::Proxy),
        }
    }

    fn refuse_proxy_keys(&self) -> Result<(), Wrong> {
        let given = [
            ("balance", self.balance.is_some()),
            ("sticky", self.sticky.is_some()),
            ("attempts", self.attempts.is_some()),
            ("timeout_seconds", self.timeout_seconds.is_some()),
            ("health", self.health.is_some()),
            ("strip", self.strip.is_some()),
            ("request_headers", !self.request_headers.is_empty()),
        ];
        match given.into_iter().find(|(_, is_given)| *is_given) {
            Some((key, _)) => Err((key, "it belongs to upstream".to_owned())),
            None => Ok(()),
        }
    }

    fn redirect(&self, target: &str) -> Result<ActionSpec, Wrong> {
        let status = self.status.unwrap_or(302);
        if !matches!(status, 301 | 302 | 307 | 308) {
            return Err(("status", format!("{status} is not one of 301, 302, 307, 308")));
        }
        let is_place = target.starts_with('/') || target.starts_with("http://") || target.starts_with("https://");
        if !is_place || HeaderValue::from_str(target).is_err() {
            return Err(("redirect", format!("{target:?} is neither a URL nor a path")));
        }
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::FOUND);
        Ok(ActionSpec::Redirect { target: target.to_owned(), status })
    }

    fn proxy(&self) -> Result<ProxySpec, Wrong> {
        for (at, upstream) in self.upstream.iter().enumerate() {
            let port =
                upstream.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
            if !matches!(port, Some(Ok(1..))) {
                return Err(("upstream", format!("{upstream:?} is not HOST:PORT")));
            }
            if self.upstream[..at].contains(upstream) {
                return Err(("upstream", format!("{upstream} stands twice")));
            }
        }
        let attempts = self.attempts.unwrap_or(3);
        let timeout = self.timeout_seconds.unwrap_or(60);
        if attempts == 0 || timeout == 0 {
            return Err(("attempts", "attempts and timeout_seconds are 1 or more".to_owned()));
        }
        if let Some(path) =
            self.health.as_ref().filter(|path| !path.starts_with('/') || path.contains([' ', '\r', '\n']))
        {
            return Err(("health", format!("{path:?} is not a path")));
        }
        Ok(ProxySpec {
            upstreams: self.upstream.clone(),
            balance: self.balance.unwrap_or_default(),
            is_sticky: self.sticky.unwrap_or(false),
            attempts,
            timeout: Duration::from_secs(timeout),
            health: self.health.clone(),
            strips: self.strip.unwrap_or(false),
            headers: headers("request_headers", &self.request_headers)?,
        })
    }
}

/// Headers that say where a message ends or to whom it goes are not for a configuration to set.
const OF_THE_MESSAGE: [&str; 6] = ["connection", "content-length", "transfer-encoding", "upgrade", "te", "trailer"];

fn headers(key: &'static str, given: &BTreeMap<String, String>) -> Result<Headers, Wrong> {
    let mut headers = Vec::new();
    for (name, value) in given {
        let name: HeaderName = name.parse().map_err(|_wrong| (key, format!("{name:?} is no header name")))?;
        let value =
            HeaderValue::from_str(value).map_err(|_wrong| (key, format!("{name} has a value no header can have")))?;
        if OF_THE_MESSAGE.contains(&name.as_str()) {
            return Err((key, format!("{name} belongs to the message itself")));
        }
        headers.push((name, value));
    }
    Ok(headers)
}

fn is_host_name(name: &str) -> bool {
    let name = name.strip_prefix("*.").unwrap_or(name);
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
    };
    name.len() <= 253 && name.split('.').all(is_label) && name != "pm3" && !name.ends_with(".pm3")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(host: &str, text: &str, named: &str) {
        let config: HostConfig = toml::from_str(text).expect("it parses");
        let error = config.check(host).expect_err(named).to_string();
        assert!(error.contains(named) && error.contains(host), "{error}");
    }

    #[test]
    fn wrong_routes_are_named_by_host_route_and_key() {
        let proxy = "[[route]]\nupstream = [\"127.0.0.1:3000\"]\n";
        check("Example.org", proxy, "lower case");
        check("pm3", proxy, "no host name");
        check("a..b", proxy, "no host name");
        check("a", "route = []", "no route");
        check("a", "[[route]]\n", "exactly one of");
        check("a", "[[route]]\nupstream = [\"a:1\"]\nredirect = \"/x\"", "exactly one of");
        check("a", &format!("{proxy}{proxy}"), "route 2: path");
        check("a", &format!("{proxy}path = \"x\""), "plain path");
        check("a", &format!("{proxy}path = \"/a/../b\""), "plain path");
        check("a", &format!("{proxy}burst = 1"), "requests_per_second");
        check("a", &format!("{proxy}requests_per_second = 0"), "would answer nobody");
        check("a", &format!("{proxy}attempts = 0"), "1 or more");
        check("a", &format!("{proxy}health = \"x\""), "health");
        check("a", &format!("{proxy}headers = {{ \"a b\" = \"c\" }}"), "header name");
        check("a", &format!("{proxy}request_headers = {{ \"content-length\" = \"1\" }}"), "message itself");
        check("a", "[[route]]\nupstream = [\"127.0.0.1\"]", "HOST:PORT");
        check("a", "[[route]]\nupstream = [\"b:1\", \"b:1\"]", "stands twice");
        check("a", "[[route]]\nfiles = \"www\"", "absolute");
        check("a", "[[route]]\nfiles = \"/www\"\nsticky = true", "belongs to upstream");
        check("a", "[[route]]\nfiles = \"/www\"\nstatus = 301", "belongs to redirect");
        check("a", "[[route]]\nredirect = \"evil\"", "neither");
        check("a", "[[route]]\nredirect = \"/x\"\nstatus = 200", "200");
    }

    #[test]
    fn the_longest_path_comes_first() {
        let text = "[[route]]\nfiles = \"/www\"\n[[route]]\npath = \"/api/\"\nupstream = [\"[::1]:80\"]\n";
        let config: HostConfig = toml::from_str(text).expect("it parses");
        let routes = config.check("*.example.org").expect("right");
        let paths: Vec<&str> = routes.iter().map(|route| route.path.as_str()).collect();
        assert_eq!(paths, ["/api", ""]);
    }
}
