//! Every method: its path, its verbs, what it takes, what carries it out.
//!
//! A path segment `{x}` stands for one segment, `{x*}` at the end for all that follow. Methods that change something are never
//! for GET: a page that is shown in a browser can make it send a GET anywhere, without a word about where it came from.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::call::{Call, Outcome, Verb};
use super::failure::{Failure, Kind};
use super::params::{Field, FieldKind, decode_path};
use super::{Pm3, bus, ipinfo, kv, lambda, node, peers, service, signer};

/// One method.
#[derive(Debug)]
pub struct Method {
    pub path: &'static str,
    pub verbs: &'static [Verb],
    /// It changes something, so it is audited and not for GET.
    pub changes: bool,
    pub takes: Takes,
    pub(super) handler: Handler,
}

/// What a method reads of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// Nothing; a body that says something is refused.
    Nothing,
    /// The body as it is.
    Raw,
    /// The body as it is, and the headers beside it.
    Message,
    /// These parameters.
    Fields(&'static [Field]),
}

/// What carries a method out.
#[derive(Clone, Copy)]
pub(super) enum Handler {
    /// At once, without waiting.
    Now(fn(&Pm3, &Call) -> Outcome),
    /// As work that may wait; dropping it cancels the call.
    Later(fn(Arc<Pm3>, Call) -> BoxFuture<'static, Outcome>),
}

impl std::fmt::Debug for Handler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Now(_) => "Now",
            Self::Later(_) => "Later",
        })
    }
}

const ANY: &[Verb] = &[Verb::Get, Verb::Post, Verb::Put, Verb::Patch, Verb::Delete];
const CHANGE: &[Verb] = &[Verb::Post, Verb::Put, Verb::Patch, Verb::Delete];

const fn look(path: &'static str, takes: Takes, handler: Handler) -> Method {
    Method { path, verbs: ANY, changes: false, takes, handler }
}

const fn change(path: &'static str, takes: Takes, handler: Handler) -> Method {
    Method { path, verbs: CHANGE, changes: true, takes, handler }
}

/// For one verb; it changes something unless that is GET.
const fn only(verb: Verb, path: &'static str, takes: Takes, handler: Handler) -> Method {
    let (verbs, changes): (&[Verb], bool) = match verb {
        Verb::Get => (&[Verb::Get], false),
        Verb::Put => (&[Verb::Put], true),
        Verb::Post => (&[Verb::Post], true),
        Verb::Patch => (&[Verb::Patch], true),
        Verb::Delete => (&[Verb::Delete], true),
    };
    Method { path, verbs, changes, takes, handler }
}

const IP: &[Field] = &[Field { name: "ip", kind: FieldKind::Text }];

/// The table. Methods of one path stand together.
static METHODS: &[Method] = &[
    look("/ping", Takes::Nothing, Handler::Now(node::ping)),
    look("/version", Takes::Nothing, Handler::Now(node::version)),
    look("/system", Takes::Nothing, Handler::Now(node::system)),
    look("/session", Takes::Nothing, Handler::Now(node::session)),
    look("/peers", Takes::Nothing, Handler::Later(peers::all)),
    look("/peers/alive", Takes::Nothing, Handler::Later(peers::alive)),
    look("/ipinfo", Takes::Fields(IP), Handler::Now(ipinfo::look_up)),
    change("/reload", Takes::Nothing, Handler::Later(node::reload)),
    change("/shutdown", Takes::Nothing, Handler::Later(node::shutdown)),
    change("/sign", Takes::Fields(signer::FIELDS), Handler::Now(signer::sign)),
    look("/service", Takes::Nothing, Handler::Now(service::list)),
    look("/service/health", Takes::Nothing, Handler::Now(service::health)),
    look("/service/health/{service}", Takes::Nothing, Handler::Now(service::health)),
    look("/service/metrics", Takes::Nothing, Handler::Now(service::metrics)),
    look("/service/metrics/{service}", Takes::Nothing, Handler::Now(service::metrics)),
    look("/service/info", Takes::Nothing, Handler::Now(service::metrics)),
    look("/service/info/{service}", Takes::Nothing, Handler::Now(service::metrics)),
    change("/service/restart", Takes::Nothing, Handler::Later(service::restart)),
    change("/service/restart/{service}", Takes::Nothing, Handler::Later(service::restart)),
    change("/service/stop", Takes::Nothing, Handler::Later(service::stop)),
    change("/service/stop/{service}", Takes::Nothing, Handler::Later(service::stop)),
    change("/service/start", Takes::Nothing, Handler::Later(service::start)),
    change("/service/start/{service}", Takes::Nothing, Handler::Later(service::start)),
    change("/service/scale/{service}", Takes::Fields(service::SCALE), Handler::Later(service::scale)),
    change("/publish/{topic}", Takes::Message, Handler::Later(bus::publish)),
    look("/result/{stream}/{seq}", Takes::Nothing, Handler::Later(bus::result)),
    look("/lambda", Takes::Nothing, Handler::Now(lambda::list)),
    only(Verb::Get, "/kv", Takes::Fields(kv::LIST), Handler::Later(kv::list)),
    only(Verb::Get, "/kv/{key}", Takes::Nothing, Handler::Later(kv::get)),
    only(Verb::Put, "/kv/{key}", Takes::Fields(kv::PUT), Handler::Later(kv::put)),
    only(Verb::Post, "/kv/{key}", Takes::Raw, Handler::Later(kv::post)),
    only(Verb::Delete, "/kv/{key}", Takes::Nothing, Handler::Later(kv::delete)),
    change("/kv/{key}/cas", Takes::Fields(kv::CAS), Handler::Later(kv::cas)),
    look("/kv/{key}/watch", Takes::Fields(kv::WATCH), Handler::Later(kv::watch)),
    Method {
        path: "/lambda/{id}/{method*}",
        verbs: ANY,
        changes: false,
        takes: Takes::Raw,
        handler: Handler::Later(lambda::call),
    },
];

/// The methods, ready to be found.
#[derive(Debug)]
pub(super) struct Table {
    exact: HashMap<&'static str, Vec<&'static Method>>,
    patterns: Vec<&'static Method>,
}

impl Table {
    pub(super) fn new() -> Self {
        let mut table = Self { exact: HashMap::new(), patterns: Vec::new() };
        for method in METHODS {
            if method.path.contains('{') {
                table.patterns.push(method);
            } else {
                table.exact.entry(method.path).or_default().push(method);
            }
        }
        table
    }

    pub(super) fn find(&self, verb: Verb, path: &str) -> Result<(&'static Method, Vec<String>), Failure> {
        if let Some(methods) = self.exact.get(path) {
            let method = methods.iter().find(|method| method.verbs.contains(&verb));
            return method.map(|method| (*method, Vec::new())).ok_or_else(|| wrong_verb(verb, path, methods));
        }
        let mut of_other_verbs = Vec::new();
        for method in &self.patterns {
            let Some(parts) = matched(method.path, path) else { continue };
            if method.verbs.contains(&verb) {
                let parts = parts.into_iter().map(decode_path).collect::<Option<_>>();
                return parts
                    .map(|parts| (*method, parts))
                    .ok_or_else(|| Failure::invalid(format!("the path {path:?} is not percent-encoded text")));
            }
            of_other_verbs.push(*method);
        }
        if of_other_verbs.is_empty() { Err(no_such(path)) } else { Err(wrong_verb(verb, path, &of_other_verbs)) }
    }
}

fn wrong_verb(verb: Verb, path: &str, methods: &[&Method]) -> Failure {
    let verbs: Vec<&str> = methods.iter().flat_map(|method| method.verbs).map(|verb| verb.as_str()).collect();
    let text = format!("{path} is not for {}; it takes {}", verb.as_str(), verbs.join(", "));
    Failure::new(Kind::WrongVerb, text)
}

fn no_such(path: &str) -> Failure {
    let mut paths: Vec<&str> = METHODS.iter().map(|method| method.path).collect();
    paths.dedup();
    Failure::new(Kind::NotFound, format!("there is no {path}; there is {}", paths.join(" ")))
}

/// The variable segments of `path`, if it has the shape of `pattern`.
fn matched<'p>(pattern: &str, path: &'p str) -> Option<Vec<&'p str>> {
    let mut parts = Vec::new();
    // What follows the next slash; `None` once the path has ended.
    let mut rest = Some(path.strip_prefix('/')?);
    for wanted in pattern.strip_prefix('/')?.split('/') {
        let left = rest?;
        if wanted.ends_with("*}") {
            parts.push(left);
            return (!left.is_empty()).then_some(parts);
        }
        let (segment, after) = match left.split_once('/') {
            Some((segment, after)) => (segment, Some(after)),
            None => (left, None),
        };
        if wanted.starts_with('{') {
            if segment.is_empty() {
                return None;
            }
            parts.push(segment);
        } else if wanted != segment {
            return None;
        }
        rest = after;
    }
    rest.is_none().then_some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pattern: &str, path: &str, expected: Option<&[&str]>) {
        assert_eq!(matched(pattern, path).as_deref(), expected, "{pattern} {path}");
    }

    #[test]
    fn patterns_take_whole_segments() {
        check("/kv/{key}", "/kv/a", Some(&["a"]));
        check("/kv/{key}", "/kv/", None);
        check("/kv/{key}", "/kv", None);
        check("/kv/{key}", "/kv/a/b", None);
        check("/kv/{key}/cas", "/kv/a/cas", Some(&["a"]));
        check("/kv/{key}/cas", "/kv/a", None);
        check("/lambda/{id}/{method*}", "/lambda/x/a/b", Some(&["x", "a/b"]));
        check("/lambda/{id}/{method*}", "/lambda/x/", None);
        check("/lambda/{id}/{method*}", "/lambda/x", None);
    }

    #[test]
    fn nothing_that_changes_is_for_get() {
        for method in METHODS.iter().filter(|method| method.changes) {
            assert!(!method.verbs.contains(&Verb::Get), "{}", method.path);
        }
    }

    #[test]
    fn a_wrong_verb_and_a_wrong_path_are_told_apart() {
        let table = Table::new();
        assert_eq!(table.find(Verb::Get, "/shutdown").expect_err("a change").kind, Kind::WrongVerb);
        let missing = table.find(Verb::Get, "/nothing").expect_err("not there");
        assert!(missing.kind == Kind::NotFound && missing.text.contains("/ping"), "{missing}");
        assert_eq!(table.find(Verb::Get, "/ping").map(|found| found.0.path), Ok("/ping"));
    }
}
