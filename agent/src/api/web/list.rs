//! The list of processes as every interface of this listener shows it, written once for each state of it.
//!
//! A poller asks far more often than anything changes: the body is kept with the version of the state that it shows, and
//! written anew when the state is another one, or when its uptimes are older than [`MAX_AGE`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use serde::Serialize;

use super::problem::{Code, Problem};
use crate::process::handle::Handle;
use crate::process::view::{Snapshot, Status, View};

/// Where the list is.
pub(super) const PATH: &str = "/api/processes";
/// How old the uptimes of an answer may be.
const MAX_AGE: Duration = Duration::from_millis(250);
/// How old its other figures may be while somebody asks.
const FIGURES_AGE: Duration = Duration::from_secs(1);
/// Figures that take longer come with the next answer.
const SAMPLE_TIMEOUT: Duration = Duration::from_millis(500);

/// One instance in the list (spec, "List All Processes").
#[derive(Debug, Serialize)]
pub(super) struct Entry<'a> {
    id: u32,
    name: &'a str,
    status: &'static str,
    pid: Option<u32>,
    port: Option<u16>,
    cpu: f64,
    memory: u64,
    uptime: u64,
    restarts: u64,
    health: &'static str,
}

impl<'a> Entry<'a> {
    pub(super) fn of(view: &'a View, now: SystemTime) -> Self {
        Self {
            id: view.id,
            name: &view.name,
            status: view.status.as_str(),
            pid: view.pid,
            port: view.port,
            cpu: cpu(view),
            memory: view.figures.memory_bytes,
            uptime: uptime_millis(view, now),
            restarts: view.restarts,
            health: view.health.status.as_str(),
        }
    }
}

/// Percent of one processor, in tenths.
pub(super) fn cpu(view: &View) -> f64 {
    (view.figures.cpu_percent * 10.0).round() / 10.0
}

fn uptime_millis(view: &View, now: SystemTime) -> u64 {
    let runs = match view.status {
        Status::Starting | Status::Online | Status::Stopping => true,
        Status::Stopped | Status::Errored | Status::Restarting => false,
    };
    let started = view.started.filter(|_| runs);
    let age = started.and_then(|started| now.duration_since(started).ok()).unwrap_or_default();
    u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
}

/// All entries, in the order of their ids.
pub(super) fn entries(snapshot: &Snapshot, now: SystemTime) -> Vec<Entry<'_>> {
    snapshot.processes.iter().map(|view| Entry::of(view, now)).collect()
}

/// What `GET /api/processes` answers.
#[derive(Debug, Serialize)]
pub(super) struct Page<'a> {
    processes: Vec<Entry<'a>>,
    total: usize,
}

impl<'a> Page<'a> {
    pub(super) fn new(processes: Vec<Entry<'a>>) -> Self {
        Self { total: processes.len(), processes }
    }
}

/// The newest list as it was written.
#[derive(Debug, Default)]
pub(super) struct List {
    newest: ArcSwapOption<Written>,
    is_sampling: AtomicBool,
}

#[derive(Debug)]
struct Written {
    version: u64,
    at: Instant,
    sampled_at: Instant,
    body: Bytes,
}

impl List {
    /// The body of `GET /api/processes`, where it is written already and shows what is.
    pub(super) fn newest(&self, handle: &Handle) -> Option<Bytes> {
        let newest = self.newest.load();
        let written = newest.as_ref()?;
        let now = Instant::now();
        let is_new = now.duration_since(written.at) < MAX_AGE && now.duration_since(written.sampled_at) <= FIGURES_AGE;
        (is_new && written.version == handle.version()).then(|| written.body.clone())
    }

    /// The body of `GET /api/processes`.
    pub(super) async fn body(&self, handle: &Handle) -> Result<Bytes, Problem> {
        let now = Instant::now();
        let newest = self.newest.load_full();
        let is_old = |written: &Written| now.duration_since(written.sampled_at) > FIGURES_AGE;
        if newest.as_deref().is_none_or(is_old) && !self.is_sampling.swap(true, Ordering::AcqRel) {
            let _done = Done(&self.is_sampling);
            // What is late, or refused because nothing is supervised, changes no list.
            tokio::time::timeout(SAMPLE_TIMEOUT, handle.sample()).await.ok();
            return self.write(handle, Instant::now());
        }
        let snapshot = handle.snapshot();
        match newest {
            Some(written) if written.version == snapshot.version && now.duration_since(written.at) < MAX_AGE => {
                Ok(written.body.clone())
            }
            Some(written) => self.write(handle, written.sampled_at),
            None => self.write(handle, now),
        }
    }

    fn write(&self, handle: &Handle, sampled_at: Instant) -> Result<Bytes, Problem> {
        let snapshot = handle.snapshot();
        let page = Page::new(entries(&snapshot, SystemTime::now()));
        let mut text = serde_json::to_vec(&page).map_err(|error| {
            tracing::error!(%error, "failed to write the list of processes");
            Problem::new(Code::OperationFailed, "the list cannot be written as JSON")
        })?;
        text.push(b'\n');
        let body = Bytes::from(text);
        let written = Written { version: snapshot.version, at: Instant::now(), sampled_at, body: body.clone() };
        self.newest.store(Some(Arc::new(written)));
        Ok(body)
    }
}

/// Lets the next one sample, however this one ends.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}
