//! Which files a process is restarted for: `watch`, `ignore_watch`, `watch_delay`. Pure.
//!
//! A pattern without `/` is about every name below a watched directory, one with `/` about the path below it, one that begins
//! with `/` about the path on the host; what matches a directory holds for all that is in it, which is not even looked at.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};

use super::definition::Definition;
use super::quantity::{Patterns, Watch};
use super::spec::SpecError;

/// PM2's: what is hidden, and what npm installs.
const IGNORED: [&str; 2] = [".*", "node_modules"];
/// Paths that one definition may name.
const MOST_ROOTS: usize = 64;
/// Changes that follow each other for ever are one change after this many times the delay.
const MOST_DELAYS: u32 = 50;

/// What is watched of one process.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Files or directories, absolute.
    pub roots: Vec<PathBuf>,
    /// How long nothing must have changed before the restart.
    pub delay: Duration,
    names: GlobSet,
    below: GlobSet,
    absolute: GlobSet,
    /// Directories that are ours, and log files: nothing below, and nothing whose name only goes on.
    own: Vec<PathBuf>,
}

impl Rules {
    /// The rules of a definition; `None`: it watches nothing.
    ///
    /// # Errors
    /// A path or pattern that cannot be.
    pub fn of(definition: &Definition) -> Result<Option<Self>, SpecError> {
        let cwd = definition.cwd.as_deref().unwrap_or(Path::new("/"));
        let roots = match &definition.watch {
            Watch::No => return Ok(None),
            Watch::Directory => vec![cwd.to_owned()],
            Watch::Paths(paths) => paths.iter().map(|path| cwd.join(path)).collect(),
        };
        check_roots(&roots)?;
        let patterns = match &definition.ignore_watch {
            Some(Patterns(patterns)) => patterns.clone(),
            None => IGNORED.map(str::to_owned).to_vec(),
        };
        let (mut names, mut below, mut absolute) = (GlobSet::builder(), GlobSet::builder(), GlobSet::builder());
        for pattern in patterns {
            let bare = pattern.trim_end_matches("**").trim_end_matches('/').trim_start_matches("./");
            let set: &mut GlobSetBuilder = match bare {
                bare if bare.starts_with('/') => &mut absolute,
                bare if bare.contains('/') => &mut below,
                _ => &mut names,
            };
            set.add(glob(bare).map_err(|why| refused("ignore_watch", format!("{pattern:?} is no pattern: {why}")))?);
        }
        let build = |set: &GlobSetBuilder| set.build().map_err(|error| refused("ignore_watch", error.to_string()));
        let logs = [&definition.out_file, &definition.error_file].into_iter().flatten().cloned().collect();
        Ok(Some(Self {
            roots,
            delay: definition.watch_delay.0,
            names: build(&names)?,
            below: build(&below)?,
            absolute: build(&absolute)?,
            own: logs,
        }))
    }

    /// The same without what is below `path` either.
    pub fn without(mut self, path: &Path) -> Self {
        self.own.push(path.to_owned());
        self
    }

    /// Whether nothing is done about `path`, which is in the watched directory `root`.
    pub fn ignores(&self, root: &Path, path: &Path) -> bool {
        self.own.iter().any(|own| is_of(own, path))
            || self.absolute.is_match(path)
            || path.strip_prefix(root).is_ok_and(|below| {
                self.below.is_match(below) || below.file_name().is_some_and(|name| self.names.is_match(Path::new(name)))
            })
    }
}

/// Whether `path` is `own`, in it, or a name that goes on after it, as rotated log files have.
fn is_of(own: &Path, path: &Path) -> bool {
    let goes_on = || {
        let names = (own.file_name(), path.file_name());
        let (Some(own_name), Some(name)) = names else { return false };
        let rest = name.as_encoded_bytes().strip_prefix(own_name.as_encoded_bytes());
        own.parent() == path.parent() && rest.is_some_and(|rest| rest.starts_with(b"."))
    };
    path.starts_with(own) || goes_on()
}

fn glob(pattern: &str) -> Result<Glob, String> {
    if pattern.is_empty() {
        return Err("it is empty".to_owned());
    }
    GlobBuilder::new(pattern).literal_separator(true).build().map_err(|error| error.kind().to_string())
}

fn check_roots(roots: &[PathBuf]) -> Result<(), SpecError> {
    let refuse = |why: String| Err(refused("watch", why));
    if roots.is_empty() {
        return refuse("no path is named; name some, or true for cwd, or leave it away".to_owned());
    }
    if roots.len() > MOST_ROOTS {
        return refuse(format!("{} paths are named; {MOST_ROOTS} are the limit", roots.len()));
    }
    match roots.iter().find(|root| root.parent().is_none() || root.components().any(|part| part.as_os_str() == "..")) {
        Some(root) if root.parent().is_none() => {
            refuse("the whole file system is not watched; set cwd, or name paths".to_owned())
        }
        Some(root) => refuse(format!("{} goes up with ..; write the path without it", root.display())),
        None => Ok(()),
    }
}

fn refused(key: &'static str, why: String) -> SpecError {
    SpecError { key, why }
}

/// Makes one change of many that follow each other.
#[derive(Debug, Clone, Copy)]
pub struct Debounce {
    delay: Duration,
    first: Instant,
    last: Instant,
}

impl Debounce {
    /// A first change.
    pub fn new(delay: Duration, now: Instant) -> Self {
        Self { delay, first: now, last: now }
    }

    /// Another one.
    pub fn again(&mut self, now: Instant) {
        self.last = now;
    }

    /// When they are over unless another one comes.
    pub fn deadline(&self) -> Instant {
        (self.last + self.delay).min(self.first + self.delay * MOST_DELAYS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(watch: Watch, ignore: Option<&[&str]>) -> Result<Rules, String> {
        let ignore_watch = ignore.map(|patterns| Patterns(patterns.iter().map(|text| (*text).to_owned()).collect()));
        let cwd = Some(PathBuf::from("/srv/app"));
        let definition = Definition { watch, ignore_watch, cwd, ..Definition::new("web", "x") };
        Rules::of(&definition).map(|rules| rules.expect("it watches")).map_err(|error| error.to_string())
    }

    fn ignored<'a>(patterns: Option<&[&str]>, paths: &[&'a str]) -> Vec<&'a str> {
        let rules = rules(Watch::Directory, patterns).expect("valid").without(Path::new("/var/lib/weft"));
        let root = Path::new("/srv/app");
        paths.iter().copied().filter(|path| rules.ignores(root, Path::new(path))).collect()
    }

    #[test]
    fn hidden_files_and_installed_packages_are_ignored_unless_something_else_is_said() {
        let paths = ["/srv/app/.git", "/srv/app/node_modules", "/srv/app/lib/.x.swp", "/srv/app/lib/a.js"];
        assert_eq!(ignored(None, &paths), paths[..3]);
        assert_eq!(ignored(Some(&[]), &paths), Vec::<&str>::new());
    }

    #[test]
    fn a_pattern_is_about_names_paths_below_or_paths_of_the_host() {
        let paths = [
            "/srv/app/a.log",
            "/srv/app/lib/b.log",
            "/srv/app/tmp",
            "/srv/app/lib/tmp",
            "/srv/app/lib/c.js",
            "/srv/app/lib/deep/c.js",
        ];
        assert_eq!(ignored(Some(&["*.log"]), &paths), paths[..2]);
        assert_eq!(ignored(Some(&["./lib/*.js", "tmp/"]), &paths), [paths[2], paths[3], paths[4]]);
        assert_eq!(ignored(Some(&["lib/**/*.js"]), &paths), paths[4..]);
        assert_eq!(ignored(Some(&["/srv/app/lib/tmp/**", "\\.git"]), &paths), [paths[3]]);
        assert_eq!(ignored(Some(&["*.{js,log}"]), &paths).len(), 4);
    }

    #[test]
    fn what_is_ours_is_never_watched() {
        let mut definition = Definition { watch: Watch::Directory, ..Definition::new("web", "x") };
        definition.cwd = Some("/srv".into());
        definition.out_file = Some("/srv/web.log".into());
        let rules = Rules::of(&definition).expect("valid").expect("it watches").without(Path::new("/srv/weft"));
        let is_ignored = |path: &str| rules.ignores(Path::new("/srv"), Path::new(path));
        assert!(is_ignored("/srv/web.log") && is_ignored("/srv/web.log.1.gz") && is_ignored("/srv/weft/state/x"));
        assert!(!is_ignored("/srv/web.logs") && !is_ignored("/srv/weft2"));
    }

    #[test]
    fn wrong_paths_and_patterns_are_refused() {
        let refused = |watch, patterns: Option<&[&str]>, expected: &str| {
            let why = rules(watch, patterns).expect_err(expected);
            assert!(why.contains(expected), "{why}");
        };
        refused(Watch::Paths(Vec::new()), None, "watch: no path");
        refused(Watch::Paths(vec!["/".into()]), None, "whole file system");
        refused(Watch::Paths(vec!["../lib".into()]), None, "without it");
        refused(Watch::Directory, Some(&["a["]), "ignore_watch: \"a[\" is no pattern");
        refused(Watch::Directory, Some(&[""]), "it is empty");
        let nowhere = Definition { watch: Watch::Directory, ..Definition::new("web", "x") };
        assert!(Rules::of(&nowhere).is_err_and(|error| error.why.contains("set cwd")));
        assert_eq!(rules(Watch::Paths(vec!["lib".into()]), None).expect("valid").roots, [Path::new("/srv/app/lib")]);
    }

    #[test]
    fn changes_that_follow_each_other_are_one_and_come_to_an_end() {
        let begun = Instant::now();
        let delay = Duration::from_millis(200);
        let mut debounce = Debounce::new(delay, begun);
        assert_eq!(debounce.deadline(), begun + delay);
        debounce.again(begun + Duration::from_millis(150));
        assert_eq!(debounce.deadline(), begun + Duration::from_millis(350));
        debounce.again(begun + Duration::from_secs(60));
        assert_eq!(debounce.deadline(), begun + delay * MOST_DELAYS);
    }
}
