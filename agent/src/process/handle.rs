//! What the rest of the agent does with processes. Cheap to clone; the owner of the state is the supervisor's task.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::stream::{self, Stream};
use tokio::sync::{Notify, broadcast, mpsc, oneshot, watch};

use super::definition::Definition;
use super::error::Error;
use super::logs::client::LogKeeper;
use super::logs::read::{self, Follower, Source};
use super::logs::{LogLine, LogQuery, Stream as Output};
use super::quantity::Ports;
use super::spec::Spec;
use super::view::{Event, Snapshot, Status, View};

/// How long a stop or a restart is waited for beyond the process's own kill timeout.
const PATIENCE: Duration = Duration::from_secs(60);
/// The most that one [`Handle::send`] writes: pipe(7) takes this whole or not at all.
pub const MOST_INPUT_BYTES: usize = 4096;
/// How often files are looked at for a reader that follows them.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(100);

/// What the owner is asked; replies come after the snapshot that shows their effect.
#[derive(Debug)]
pub(super) enum Request {
    Create(Box<Definition>, Reply<Vec<u32>>),
    Start(Target, Reply<Vec<u32>>),
    Stop(Target, Reply<Vec<u32>>),
    Restart(Target, Change, Reply<Vec<u32>>),
    Reload(Target, Reply<Reloaded>),
    Scale(String, Scale, Reply<Vec<u32>>),
    Delete(Target, Reply<Vec<u32>>),
    Reset(Target, Reply<Vec<u32>>),
    Send(Target, Vec<u8>, Reply<Vec<u32>>),
    Configure(Vec<Spec>, Reply<Vec<String>>),
    Sample(Reply<()>),
    Save(Reply<PathBuf>),
    StopAll(Reply<Vec<u32>>),
}

pub(super) type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// Which instances are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    All,
    /// Those of a namespace.
    Namespace(String),
    /// An id, the name of an instance, or of a process with all its instances.
    Named(String),
}

impl Target {
    /// `all`, `namespace:NAME`, an id or a name.
    pub fn parse(text: &str) -> Self {
        match text.strip_prefix("namespace:") {
            Some(namespace) => Self::Namespace(namespace.to_owned()),
            None if text == "all" => Self::All,
            None => Self::Named(text.to_owned()),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Namespace(name) => write!(f, "namespace:{name}"),
            Self::Named(name) => f.write_str(name),
        }
    }
}

/// What a restart changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Change {
    pub port: Option<Ports>,
    pub instances: Option<u32>,
}

/// How many instances there are to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    To(u32),
    By(i32),
}

/// What a reload did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reloaded {
    pub ids: Vec<u32>,
    /// Which instances served nobody for a time, and why, a sentence each.
    pub notices: Vec<String>,
}

/// The processes of this agent.
#[derive(Debug, Clone)]
pub struct Handle {
    pub(super) shared: Result<Arc<Shared>, Arc<str>>,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) requests: mpsc::Sender<Request>,
    pub(super) snapshot: watch::Receiver<Arc<Snapshot>>,
    pub(super) events: broadcast::Sender<Event>,
    pub(super) logs: LogKeeper,
    pub(super) watchers: Arc<Watchers>,
}

/// Who looks at the figures.
#[derive(Debug, Default)]
pub(super) struct Watchers {
    pub(super) count: AtomicUsize,
    pub(super) changed: Notify,
}

/// While one lives the figures are renewed every two seconds.
#[derive(Debug)]
#[must_use = "dropping the guard ends the sampling"]
pub struct FiguresGuard(Option<Arc<Watchers>>);

impl Drop for FiguresGuard {
    fn drop(&mut self) {
        if let Some(watchers) = &self.0 {
            watchers.count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Handle {
    /// An agent that supervises nothing, and why.
    pub fn disabled(why: &str) -> Self {
        Self { shared: Err(why.into()) }
    }

    fn shared(&self) -> Result<&Arc<Shared>, Error> {
        self.shared.as_ref().map_err(|why| Error::Disabled { why: Arc::clone(why) })
    }

    /// Every instance as it is now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.as_ref().map_or_else(|_why| Arc::default(), |shared| Arc::clone(&shared.snapshot.borrow()))
    }

    /// The version of [`Self::snapshot`].
    pub fn version(&self) -> u64 {
        self.shared.as_ref().map_or_else(|_why| Snapshot::default().version, |shared| shared.snapshot.borrow().version)
    }

    /// Every instance, and every change.
    pub fn changes(&self) -> watch::Receiver<Arc<Snapshot>> {
        match &self.shared {
            Ok(shared) => shared.snapshot.clone(),
            Err(_why) => watch::channel(Arc::default()).1,
        }
    }

    /// What happens from now on; a reader that lags reads the snapshot again.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        match &self.shared {
            Ok(shared) => shared.events.subscribe(),
            Err(_why) => broadcast::channel(1).1,
        }
    }

    /// Has the figures renewed every two seconds while the guard lives.
    pub fn watch_figures(&self) -> FiguresGuard {
        let watchers = self.shared.as_ref().ok().map(|shared| Arc::clone(&shared.watchers));
        if let Some(watchers) = &watchers {
            watchers.count.fetch_add(1, Ordering::Relaxed);
            watchers.changed.notify_one();
        }
        FiguresGuard(watchers)
    }

    /// Has the figures renewed unless they are younger than a second, and waits for it.
    ///
    /// # Errors
    /// The agent supervises nothing or is stopping.
    pub async fn sample(&self) -> Result<(), Error> {
        self.ask(Request::Sample).await
    }

    /// Defines a process and starts it; returns once it was accepted.
    ///
    /// # Errors
    /// The definition is wrong, its name is taken, its port is in use, or it cannot be started; nothing is kept then.
    pub async fn create(&self, definition: Definition) -> Result<Vec<Arc<View>>, Error> {
        let ids = self.ask(|reply| Request::Create(Box::new(definition), reply)).await?;
        Ok(self.views(&ids))
    }

    /// Starts what does not run.
    ///
    /// # Errors
    /// There is none, or all of it runs.
    pub async fn start(&self, target: &Target) -> Result<Vec<Arc<View>>, Error> {
        let ids = self.ask(|reply| Request::Start(target.clone(), reply)).await?;
        Ok(self.views(&ids))
    }

    /// Starts what does not run and waits until it is online or given up.
    ///
    /// # Errors
    /// There is none, or all of it runs.
    pub async fn start_and_wait(&self, target: &Target) -> Result<Vec<Arc<View>>, Error> {
        let ids = self.ask(|reply| Request::Start(target.clone(), reply)).await?;
        self.settled(&ids, |view| matches!(view.status, Status::Online | Status::Stopped | Status::Errored)).await;
        Ok(self.views(&ids))
    }

    /// Stops and waits until nothing is left of it.
    ///
    /// # Errors
    /// There is none.
    pub async fn stop(&self, target: &Target) -> Result<Vec<Arc<View>>, Error> {
        let ids = self.ask(|reply| Request::Stop(target.clone(), reply)).await?;
        self.settled(&ids, |view| matches!(view.status, Status::Stopped | Status::Errored)).await;
        Ok(self.views(&ids))
    }

    /// Stops, starts again, and waits until it is online or given up.
    ///
    /// # Errors
    /// There is none, or the change is wrong.
    pub async fn restart(&self, target: &Target, change: Change) -> Result<Vec<Arc<View>>, Error> {
        let ids = self.ask(|reply| Request::Restart(target.clone(), change, reply)).await?;
        self.settled(&ids, |view| matches!(view.status, Status::Online | Status::Stopped | Status::Errored)).await;
        Ok(self.views(&ids))
    }

    /// Replaces one instance after the other: its next process takes the place of the one that runs once it serves, where both
    /// can be there at once; else that is stopped first, and a notice says why. Returns the instances and the notices.
    ///
    /// # Errors
    /// There is none, or a next process did not come up: that instance and those after it are as they were.
    pub async fn reload(&self, target: &Target) -> Result<(Vec<Arc<View>>, Vec<String>), Error> {
        let reloaded = self.ask(|reply| Request::Reload(target.clone(), reply)).await?;
        Ok((self.views(&reloaded.ids), reloaded.notices))
    }

    /// Changes the number of instances; returns those that are to stay.
    ///
    /// # Errors
    /// There is no such process, or the number is wrong for it.
    pub async fn scale(&self, process: &str, scale: Scale) -> Result<Vec<Arc<View>>, Error> {
        let ids = self.ask(|reply| Request::Scale(process.to_owned(), scale, reply)).await?;
        Ok(self.views(&ids))
    }

    /// Stops, forgets, and waits until nothing is left of it. Its log files stay. Returns what it was.
    ///
    /// # Errors
    /// There is none, or it is defined in `weft.toml`.
    pub async fn delete(&self, target: &Target) -> Result<Vec<Arc<View>>, Error> {
        let before = self.snapshot();
        let ids = self.ask(|reply| Request::Delete(target.clone(), reply)).await?;
        self.settled(&ids, |_still_there| false).await;
        Ok(before.processes.iter().filter(|view| ids.contains(&view.id)).cloned().collect())
    }

    /// Sets the restart counters to zero.
    ///
    /// # Errors
    /// There is none.
    pub async fn reset(&self, target: &Target) -> Result<Vec<Arc<View>>, Error> {
        let ids = self.ask(|reply| Request::Reset(target.clone(), reply)).await?;
        Ok(self.views(&ids))
    }

    /// Writes `input` into the standard input of what is meant, at most [`MOST_INPUT_BYTES`].
    ///
    /// # Errors
    /// There is none, or one of them has no pipe there, does not run, or does not read; those before it got the input.
    pub async fn send(&self, target: &Target, input: Vec<u8>) -> Result<Vec<Arc<View>>, Error> {
        let ids = self.ask(|reply| Request::Send(target.clone(), input, reply)).await?;
        Ok(self.views(&ids))
    }

    /// Makes the processes of `weft.toml` be as it says; the lines say what changed.
    ///
    /// # Errors
    /// The agent is stopping.
    pub async fn configure(&self, specs: Vec<Spec>) -> Result<Vec<String>, Error> {
        self.ask(|reply| Request::Configure(specs, reply)).await
    }

    /// Writes the list of processes to disk, which every change does too; returns where.
    ///
    /// # Errors
    /// The disk refuses.
    pub async fn save(&self) -> Result<PathBuf, Error> {
        self.ask(Request::Save).await
    }

    /// Stops everything for good and ends the log keeper: for `weft down`. Nothing is forgotten.
    ///
    /// # Errors
    /// The agent supervises nothing.
    pub async fn stop_all(&self) -> Result<usize, Error> {
        let ids = self.ask(Request::StopAll).await?;
        self.settled(&ids, |view| matches!(view.status, Status::Stopped | Status::Errored)).await;
        self.shared()?.logs.quit().await;
        Ok(ids.len())
    }

    /// The newest lines that are meant, of all instances together, the oldest first.
    ///
    /// # Errors
    /// There is no such process.
    pub async fn logs(&self, target: &Target, query: LogQuery) -> Result<Vec<LogLine>, Error> {
        let sources = self.sources(target)?;
        self.shared()?.logs.sync().await;
        let read = tokio::task::spawn_blocking(move || read::tail(&sources, &query));
        read.await.map_err(|_ending| Error::Stopping)
    }

    /// The lines of [`Self::logs`], then those that come. Processes that are made later are not in it.
    ///
    /// # Errors
    /// There is no such process.
    pub async fn follow(
        &self,
        target: &Target,
        query: LogQuery,
    ) -> Result<impl Stream<Item = Vec<LogLine>> + Send + use<>, Error> {
        let sources = self.sources(target)?;
        let wanted = |source: &&Source| query.stream.is_none_or(|stream| stream == source.stream);
        self.shared()?.logs.sync().await;
        let followers: Vec<Follower> = sources.iter().filter(wanted).cloned().map(Follower::at_end).collect();
        let past = tokio::task::spawn_blocking(move || read::tail(&sources, &query));
        let past = past.await.map_err(|_ending| Error::Stopping)?;
        let interval = tokio::time::interval(FOLLOW_INTERVAL);
        let state = (Some(past), followers, interval);
        Ok(stream::unfold(state, |(past, mut followers, mut interval)| async move {
            if let Some(past) = past {
                return Some((past, (None, followers, interval)));
            }
            loop {
                interval.tick().await;
                let mut lines: Vec<LogLine> = followers.iter_mut().flat_map(Follower::new_lines).collect();
                if !lines.is_empty() {
                    lines.sort_by_key(|line| line.time);
                    return Some((lines, (None, followers, interval)));
                }
            }
        }))
    }

    fn sources(&self, target: &Target) -> Result<Vec<Source>, Error> {
        let views = self.find(target)?;
        let source =
            |view: &View, stream, path: &Path| Source { name: Arc::clone(&view.name), stream, path: path.to_owned() };
        let both = |view: Arc<View>| {
            [source(&view, Output::Stdout, &view.out_log), source(&view, Output::Stderr, &view.error_log)]
        };
        Ok(views.into_iter().flat_map(both).collect())
    }

    /// The instances that are meant.
    ///
    /// # Errors
    /// There is none.
    pub fn find(&self, target: &Target) -> Result<Vec<Arc<View>>, Error> {
        self.shared()?;
        let snapshot = self.snapshot();
        let found: Vec<Arc<View>> = find(&snapshot, target).cloned().collect();
        if found.is_empty() && *target != Target::All { Err(not_found(&snapshot, target)) } else { Ok(found) }
    }

    fn views(&self, ids: &[u32]) -> Vec<Arc<View>> {
        let snapshot = self.snapshot();
        snapshot.processes.iter().filter(|view| ids.contains(&view.id)).cloned().collect()
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.shared()?.requests.send(request(reply)).await.map_err(|_gone| Error::Stopping)?;
        answer.await.map_err(|_gone| Error::Stopping)?
    }

    /// Waits until each of `ids` is gone or `done`. What never comes to rest is waited for only so long.
    async fn settled(&self, ids: &[u32], done: impl Fn(&View) -> bool) {
        let Ok(shared) = self.shared() else { return };
        let mut snapshot = shared.snapshot.clone();
        let longest = |snapshot: &Snapshot| {
            let of_ids = snapshot.processes.iter().filter(|view| ids.contains(&view.id));
            of_ids.map(|view| view.definition.kill_timeout.0).max().unwrap_or_default()
        };
        let limit = longest(&snapshot.borrow()) + PATIENCE;
        let all_done = |snapshot: &Arc<Snapshot>| {
            snapshot.processes.iter().filter(|view| ids.contains(&view.id)).all(|view| done(view))
        };
        tokio::time::timeout(limit, snapshot.wait_for(all_done)).await.map(drop).ok();
    }
}

fn find<'a>(snapshot: &'a Snapshot, target: &'a Target) -> impl Iterator<Item = &'a Arc<View>> {
    snapshot.processes.iter().filter(move |view| match target {
        Target::All => true,
        Target::Namespace(namespace) => *view.namespace == **namespace,
        Target::Named(name) => *view.process == **name || *view.name == **name || view.id.to_string() == *name,
    })
}

fn not_found(snapshot: &Snapshot, target: &Target) -> Error {
    Error::NotFound {
        target: target.to_string(),
        available: snapshot.processes.iter().map(|view| Arc::clone(&view.name)).collect(),
    }
}
