//! The log as it was and as it goes on: a file of JSON lines for readers that come later, a broadcast for those that follow.
//!
//! Invariants: the thread that logs never waits: a full queue or a slow reader loses lines, which are counted. One short lock
//! orders lines and readers, so that a reader sees every line exactly once: from the files up to its mark, live after it.

use std::fmt::{self, Write as _};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio::sync::{broadcast, oneshot};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Lines on their way to the file; a disk that stands still for longer loses some.
const QUEUE: usize = 4096;
/// Lines a follower may lag behind.
const FOLLOW: usize = 1024;
/// A file of this size is put aside.
const FILE_BYTES: u64 = 16 * 1024 * 1024;
/// Files put aside; older ones are removed.
const FILES: usize = 7;
/// One line; a longer message is cut.
const LINE_BYTES: usize = 16 * 1024;

/// One line of JSON without its end.
pub type Line = Arc<str>;

enum Item {
    Line(Line),
    /// Everything before it is in the files; the answer is the files as they are then, the newest first.
    Mark(oneshot::Sender<Vec<Snapshot>>),
}

/// A file of the log up to a length.
#[derive(Debug)]
pub struct Snapshot {
    pub file: File,
    pub bytes: u64,
}

struct Gate {
    live: broadcast::Sender<Line>,
    queue: SyncSender<Item>,
}

struct Inner {
    gate: Mutex<Gate>,
    /// Until the writer takes it.
    items: Mutex<Option<Receiver<Item>>>,
    dropped: AtomicU64,
}

/// The log's history; cheap to clone.
#[derive(Clone)]
pub struct History(Arc<Inner>);

impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("History")
    }
}

impl Default for History {
    fn default() -> Self {
        // The bounds are those above.
        let (queue, items) = sync_channel(QUEUE);
        let live = broadcast::Sender::new(FOLLOW);
        let inner = Inner {
            gate: Mutex::new(Gate { live, queue }),
            items: Mutex::new(Some(items)),
            dropped: AtomicU64::new(0),
        };
        Self(Arc::new(inner))
    }
}

impl History {
    /// Begins to write to `directory`, lines from before included. Call it once, when threads may start.
    ///
    /// # Errors
    /// The directory or the file cannot be made.
    pub fn start(&self, directory: &Path) -> io::Result<()> {
        let mut writer = Writer::open(directory)?;
        let items = self.0.items.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(items) = items else { return Ok(()) };
        let inner = Arc::downgrade(&self.0);
        let work = move || {
            while let Ok(item) = items.recv() {
                if writer.take(item, &items).is_err()
                    && let Some(inner) = inner.upgrade()
                {
                    inner.dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
        };
        std::thread::Builder::new().name("log-history".to_owned()).spawn(work).map(drop)
    }

    /// Lines that are in no file because the disk was too slow or full.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }

    /// The files up to now, and every line after that.
    pub async fn read(&self) -> (Vec<Snapshot>, broadcast::Receiver<Line>) {
        let (reply, answer) = oneshot::channel();
        let live = {
            let gate = self.0.gate.lock().unwrap_or_else(PoisonError::into_inner);
            // A full queue gives no files: the reply is dropped, and the reader sees only what comes.
            gate.queue.try_send(Item::Mark(reply)).ok();
            gate.live.subscribe()
        };
        let is_written = self.0.items.lock().unwrap_or_else(PoisonError::into_inner).is_none();
        let files = if is_written { answer.await.unwrap_or_default() } else { Vec::new() };
        (files, live)
    }

    /// Takes one line.
    pub fn push(&self, line: Line) {
        let gate = self.0.gate.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody follows: no failure.
        gate.live.send(Arc::clone(&line)).ok();
        if let Err(TrySendError::Full(_)) = gate.queue.try_send(Item::Line(line)) {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct Writer {
    directory: PathBuf,
    file: File,
    bytes: u64,
    buffer: Vec<u8>,
}

impl Writer {
    fn open(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let (file, bytes) = open(&directory.join("agent.log"))?;
        Ok(Self { directory: directory.to_owned(), file, bytes, buffer: Vec::new() })
    }

    /// Takes `first` and whatever waits behind it, in one write.
    fn take(&mut self, first: Item, waiting: &Receiver<Item>) -> io::Result<()> {
        let mut next = Some(first);
        while let Some(item) = next {
            match item {
                Item::Line(line) => {
                    self.buffer.extend_from_slice(line.as_bytes());
                    self.buffer.push(b'\n');
                }
                Item::Mark(reply) => {
                    let flushed = self.flush();
                    // A reader that went away needs no files.
                    reply.send(self.snapshots()).ok();
                    flushed?;
                }
            }
            next = if self.buffer.len() < 64 * 1024 { waiting.try_recv().ok() } else { None };
        }
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let written = self.file.write_all(&self.buffer);
        self.bytes += u64::try_from(self.buffer.len()).unwrap_or_default();
        self.buffer.clear();
        written?;
        if self.bytes >= FILE_BYTES { self.rotate() } else { Ok(()) }
    }

    fn path(&self, age: usize) -> PathBuf {
        self.directory.join(if age == 0 { "agent.log".to_owned() } else { format!("agent.log.{age}") })
    }

    fn rotate(&mut self) -> io::Result<()> {
        for age in (0..FILES).rev() {
            match fs::rename(self.path(age), self.path(age + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        (self.file, self.bytes) = open(&self.path(0))?;
        Ok(())
    }

    fn snapshots(&self) -> Vec<Snapshot> {
        let open = |age| {
            let file = File::open(self.path(age)).ok()?;
            let bytes = file.metadata().ok()?.len();
            Some(Snapshot { file, bytes })
        };
        (0..=FILES).map_while(open).collect()
    }
}

fn open(path: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    let bytes = file.metadata()?.len();
    Ok((file, bytes))
}

/// Hands every event of the subscriber to a [`History`].
pub(super) struct HistoryLayer(pub(super) History);

impl<S: Subscriber> Layer<S> for HistoryLayer {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let metadata = event.metadata();
        let mut fields = Fields::default();
        event.record(&mut fields);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        let (level, domain) = (level(*metadata.level()), domain(metadata.target()));
        let mut line =
            format!("{{\"t\":{now},\"l\":\"{level}\",\"dom\":{},\"msg\":{}", text(domain), text(&fields.message));
        if line.len() + fields.rest.len() < LINE_BYTES {
            line.push_str(&fields.rest);
        }
        line.push('}');
        self.0.push(line.into());
    }
}

fn level(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

/// The room of the agent that a target names, or the library.
fn domain(target: &str) -> &str {
    let mut parts = target.split("::");
    match (parts.next(), parts.next()) {
        (Some("weft_agent"), Some(room)) => room,
        (Some(library), _) => library,
        (None, _) => "",
    }
}

fn text(value: &str) -> String {
    // A string can always be written.
    serde_json::to_string(value).unwrap_or_default()
}

#[derive(Default)]
struct Fields {
    message: String,
    /// `,"name":value` each.
    rest: String,
}

impl Fields {
    fn add(&mut self, field: &Field, value: impl fmt::Display) {
        let name = match field.name() {
            // These names are taken.
            taken @ ("t" | "l" | "dom" | "msg") => format!("{taken}_"),
            name => name.to_owned(),
        };
        // Writing to a String cannot fail.
        write!(self.rest, ",{}:{value}", text(&name)).ok();
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
            let end = (0..=self.message.len().min(LINE_BYTES / 8)).rev().find(|at| self.message.is_char_boundary(*at));
            self.message.truncate(end.unwrap_or_default());
        } else {
            self.add(field, text(&format!("{value:?}")));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.add(field, text(value));
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn lines(snapshots: Vec<Snapshot>) -> Vec<String> {
        let text = |snapshot: Snapshot| {
            let mut text = String::new();
            snapshot.file.take(snapshot.bytes).read_to_string(&mut text).expect("readable");
            text
        };
        snapshots.into_iter().rev().map(text).collect::<String>().lines().map(str::to_owned).collect()
    }

    #[tokio::test]
    async fn a_reader_sees_every_line_once_from_the_file_or_live() {
        let directory = tempfile::tempdir().expect("a directory");
        let history = History::default();
        history.push("early".into());
        history.start(directory.path()).expect("started");
        let pusher = history.clone();
        let pushing = std::thread::spawn(move || {
            for number in 0..500 {
                pusher.push(number.to_string().into());
            }
        });
        let (files, mut live) = history.read().await;
        pushing.join().expect("no panic");
        let mut seen = lines(files);
        while let Ok(line) = live.try_recv() {
            seen.push(line.to_string());
        }
        let expected: Vec<String> =
            std::iter::once("early".to_owned()).chain((0..500).map(|n| n.to_string())).collect();
        assert_eq!((seen, history.dropped()), (expected, 0));
    }

    #[test]
    fn a_disk_that_stands_still_loses_lines_and_counts_them() {
        let history = History::default();
        for _ in 0..QUEUE + 7 {
            history.push("x".into());
        }
        assert_eq!(history.dropped(), 7);
    }

    #[tokio::test]
    async fn full_files_are_put_aside_and_the_oldest_removed() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut writer = Writer::open(directory.path()).expect("opened");
        let (_queue, waiting) = sync_channel(1);
        for number in 0..FILES + 3 {
            writer.bytes = FILE_BYTES;
            writer.take(Item::Line(number.to_string().into()), &waiting).expect("written");
        }
        assert_eq!(fs::read_dir(directory.path()).expect("listed").count(), FILES + 1);
        let kept = lines(writer.snapshots());
        assert_eq!((kept.first().map(String::as_str), kept.len()), (Some("3"), FILES));
    }

    #[test]
    fn an_event_becomes_one_line_of_json() {
        use tracing_subscriber::layer::SubscriberExt as _;
        let history = History::default();
        let mut live = history.0.gate.lock().expect("free").live.subscribe();
        let subscriber = tracing_subscriber::registry().with(HistoryLayer(history));
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(target: "weft_agent::dns::server", count = 7, name = "a\"b\n", "it {}", "broke");
        });
        let line = live.try_recv().expect("one line");
        let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!((&value["l"], &value["dom"], &value["msg"]), (&"warn".into(), &"dns".into(), &"it broke".into()));
        assert_eq!((&value["count"], &value["name"]), (&7.into(), &"a\"b\n".into()));
        assert!(value["t"].as_u64().is_some_and(|t| t > 1_700_000_000_000));
    }
}
