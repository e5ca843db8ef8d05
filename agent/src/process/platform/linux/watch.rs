//! Directories under inotify: one watch for each that is not ignored, and one for what holds a named path, so that a file or
//! directory that is replaced is seen too. Links are not followed, but for a named path itself.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ffi::OsString;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::io::unix::AsyncFd;

use crate::process::watched::Rules;
use crate::sys::inotify;

/// Directories that one process may have watched; each takes kernel memory.
const MOST_DIRECTORIES: usize = 8192;

/// What is watched of one process.
#[derive(Debug)]
pub struct Watch {
    descriptor: AsyncFd<OwnedFd>,
    tree: Arc<Mutex<Tree>>,
}

#[derive(Debug)]
struct Tree {
    inotify: Inotify,
    rules: Rules,
    most: usize,
    directories: HashMap<WatchDescriptor, Directory>,
}

/// A directory and what of it matters.
#[derive(Debug, Default)]
struct Directory {
    path: PathBuf,
    /// The watched directory that it is in, itself included.
    root: Option<PathBuf>,
    /// The named paths that it holds.
    names: BTreeSet<OsString>,
}

impl Watch {
    /// Begins to watch; blocks while it walks.
    pub(super) fn open(rules: Rules) -> Result<Self, String> {
        Self::open_with(rules, MOST_DIRECTORIES)
    }

    fn open_with(rules: Rules, most: usize) -> Result<Self, String> {
        let (inotify, descriptor) = inotify::open().map_err(|error| match error.raw_os_error() {
            Some(nix::libc::EMFILE) => {
                "watch: no more inotify instances; raise fs.inotify.max_user_instances".to_owned()
            }
            _ => format!("watch: failed to open inotify: {error}"),
        })?;
        let mut tree = Tree { inotify, rules, most, directories: HashMap::new() };
        tree.add_roots()?;
        Ok(Self { descriptor, tree: Arc::new(Mutex::new(tree)) })
    }

    /// Waits for a change and says where. What is being looked at when the future is dropped is looked at to its end.
    pub(super) async fn change(&self) -> Result<PathBuf, String> {
        loop {
            let Ok(mut guard) = self.descriptor.readable().await else { return std::future::pending().await };
            let tree = Arc::clone(&self.tree);
            let take = move || tree.lock().unwrap_or_else(PoisonError::into_inner).take();
            match tokio::task::spawn_blocking(take).await {
                Ok(Taken::Nothing) => guard.clear_ready(),
                Ok(Taken::Ignored) => {}
                Ok(Taken::Changed(path)) => return Ok(path),
                Ok(Taken::Failed(why)) => return Err(why),
                Err(_ending) => return std::future::pending().await,
            }
        }
    }
}

/// What a look at the events gave.
enum Taken {
    Nothing,
    Ignored,
    Changed(PathBuf),
    Failed(String),
}

impl Tree {
    fn add_roots(&mut self) -> Result<(), String> {
        for root in self.rules.roots.clone() {
            let (Some(parent), Some(name)) = (root.parent(), root.file_name()) else { continue };
            let holder =
                self.add(parent)?.ok_or_else(|| format!("watch: there is no directory {}", parent.display()))?;
            holder.names.insert(name.to_owned());
            self.add_tree(&root)?;
        }
        Ok(())
    }

    /// Adds the directory that `root` is or leads to, with all below it.
    fn add_tree(&mut self, root: &Path) -> Result<(), String> {
        // A named path may be a link, as that to the newest release.
        let Ok(start) = fs::canonicalize(root) else { return Ok(()) };
        if start.is_dir() { self.walk(&start, &start) } else { Ok(()) }
    }

    fn walk(&mut self, root: &Path, from: &Path) -> Result<(), String> {
        let mut waiting = VecDeque::from([from.to_owned()]);
        while let Some(path) = waiting.pop_front() {
            // It may be gone again.
            let Some(directory) = self.add(&path)? else { continue };
            directory.root = Some(root.to_owned());
            for entry in fs::read_dir(&path).into_iter().flatten().flatten() {
                let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
                if is_directory && !self.rules.ignores(root, &entry.path()) {
                    waiting.push_back(entry.path());
                }
            }
        }
        Ok(())
    }

    /// Watches one directory; `None`: there is none.
    fn add(&mut self, path: &Path) -> Result<Option<&mut Directory>, String> {
        if self.directories.len() >= self.most {
            let most = self.most;
            return Err(format!(
                "watch: more than {most} directories at {}; name fewer, or ignore some with ignore_watch",
                path.display()
            ));
        }
        let of_interest = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_ONLYDIR;
        match self.inotify.add_watch(path, of_interest) {
            Ok(descriptor) => {
                let directory = self.directories.entry(descriptor).or_default();
                path.clone_into(&mut directory.path);
                Ok(Some(directory))
            }
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            Err(error) => Err(refusal(error, path)),
        }
    }

    fn take(&mut self) -> Taken {
        let events = match self.inotify.read_events() {
            Ok(events) => events,
            Err(Errno::EAGAIN) => return Taken::Nothing,
            Err(error) => return Taken::Failed(format!("watch: failed to read inotify: {error}")),
        };
        let mut changed = None;
        for event in events {
            match self.look_at(&event) {
                Ok(Some(path)) => changed = Some(path),
                Ok(None) => {}
                Err(why) => return Taken::Failed(why),
            }
        }
        changed.map_or(Taken::Ignored, Taken::Changed)
    }

    /// Where something changed that matters; what appeared is watched from now on.
    fn look_at(&mut self, event: &InotifyEvent) -> Result<Option<PathBuf>, String> {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            // Nobody knows what was lost.
            self.add_roots()?;
            return Ok(self.rules.roots.first().cloned());
        }
        if event.mask.contains(AddWatchFlags::IN_IGNORED) {
            self.directories.remove(&event.wd);
            return Ok(None);
        }
        let (Some(directory), Some(name)) = (self.directories.get(&event.wd), &event.name) else { return Ok(None) };
        let path = directory.path.join(name);
        let is_named = directory.names.contains(name);
        let root = directory.root.clone().filter(|root| !self.rules.ignores(root, &path));
        let appeared = event.mask.intersects(AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO);
        if is_named && appeared {
            self.add_tree(&path)?;
        } else if let Some(root) = root.as_ref().filter(|_| appeared && event.mask.contains(AddWatchFlags::IN_ISDIR)) {
            self.walk(root, &path)?;
        }
        Ok((is_named || root.is_some()).then_some(path))
    }
}

fn refusal(error: Errno, path: &Path) -> String {
    let path = path.display();
    if error == Errno::ENOSPC {
        let hint = "raise fs.inotify.max_user_watches, or ignore more with ignore_watch";
        return format!("watch: the kernel takes no more watches at {path}; {hint}");
    }
    format!("watch: failed to watch {path}: {error}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::process::definition::Definition;
    use crate::process::quantity::Watch as Watched;

    fn rules(cwd: &Path, watch: Watched) -> Rules {
        let definition = Definition { watch, cwd: Some(cwd.to_owned()), ..Definition::new("web", "x") };
        Rules::of(&definition).expect("valid").expect("it watches")
    }

    async fn next(watch: &Watch) -> PathBuf {
        tokio::time::timeout(Duration::from_secs(20), watch.change()).await.expect("in time").expect("no failure")
    }

    /// Everything that is reported until `last` is.
    async fn until(watch: &Watch, last: &Path) -> BTreeSet<PathBuf> {
        let mut seen = BTreeSet::new();
        while !seen.contains(last) {
            seen.insert(next(watch).await);
        }
        seen
    }

    #[tokio::test]
    async fn changes_in_new_and_old_directories_are_seen_and_ignored_ones_are_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = fs::canonicalize(directory.path()).expect("it is there").join("app");
        fs::create_dir_all(root.join("node_modules/x")).expect("made");
        fs::create_dir_all(root.join("lib")).expect("made");
        let watch = Watch::open(rules(&root, Watched::Directory)).expect("opened");
        fs::write(root.join("node_modules/x/index.js"), "").expect("written");
        fs::write(root.join("lib/.a.js.swp"), "").expect("written");
        fs::write(root.join("lib/a.js"), "").expect("written");
        assert_eq!(until(&watch, &root.join("lib/a.js")).await, BTreeSet::from([root.join("lib/a.js")]));
        fs::create_dir(root.join("new")).expect("made");
        until(&watch, &root.join("new")).await;
        fs::write(root.join("new/b.js"), "").expect("written");
        until(&watch, &root.join("new/b.js")).await;
        // As an editor does it, and as a deployment does.
        fs::write(root.join(".c"), "").expect("written");
        fs::rename(root.join(".c"), root.join("lib/a.js")).expect("renamed");
        until(&watch, &root.join("lib/a.js")).await;
        fs::rename(&root, root.with_file_name("old")).expect("renamed");
        fs::create_dir_all(root.join("lib")).expect("made");
        until(&watch, &root).await;
        fs::write(root.join("lib/a.js"), "again").expect("written");
        until(&watch, &root.join("lib/a.js")).await;
    }

    #[tokio::test]
    async fn a_named_file_is_watched_over_its_replacement_and_a_named_link_is_followed() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = fs::canonicalize(directory.path()).expect("it is there");
        fs::create_dir(root.join("one")).expect("made");
        fs::create_dir(root.join("two")).expect("made");
        std::os::unix::fs::symlink("one", root.join("current")).expect("linked");
        let watch =
            Watch::open(rules(&root, Watched::Paths(vec!["config.json".into(), "current".into()]))).expect("opened");
        fs::write(root.join("other"), "").expect("written");
        fs::write(root.join("config.json"), "1").expect("written");
        assert_eq!(next(&watch).await, root.join("config.json"), "the other is not asked for");
        fs::write(root.join("one/a"), "").expect("written");
        until(&watch, &root.join("one/a")).await;
        std::os::unix::fs::symlink("two", root.join("next")).expect("linked");
        fs::rename(root.join("next"), root.join("current")).expect("renamed");
        until(&watch, &root.join("current")).await;
        fs::write(root.join("two/a"), "").expect("written");
        until(&watch, &root.join("two/a")).await;
    }

    #[tokio::test]
    async fn too_many_directories_and_limits_of_the_kernel_are_named() {
        let directory = tempfile::tempdir().expect("a directory");
        for name in ["a", "b", "c"] {
            fs::create_dir(directory.path().join(name)).expect("made");
        }
        let rules = rules(directory.path(), Watched::Directory);
        let why = Watch::open_with(rules.clone(), 3).expect_err("there are five with the root and its parent");
        assert!(why.contains("more than 3 directories") && why.contains("ignore_watch"), "{why}");
        assert!(Watch::open_with(rules, 5).is_ok());
        assert!(refusal(Errno::ENOSPC, Path::new("/srv")).contains("fs.inotify.max_user_watches"));
    }
}
