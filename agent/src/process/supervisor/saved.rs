//! The list of processes on disk: written whole at every change, beside the old one and renamed over it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};

use super::instance::Origin;
use super::{Done, Platform, Supervisor};
use crate::foundation::error::chain;
use crate::process::definition::Definition;
use crate::process::error::Error;
use crate::process::handle::Reply;
use crate::sys::file;

const VERSION: u32 = 1;

/// The file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Saved {
    version: u32,
    pub(super) next_id: u32,
    pub(super) processes: Vec<SavedProcess>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedProcess {
    pub(super) definition: Definition,
    pub(super) origin: Origin,
    /// Milliseconds since 1970.
    created_ms: u64,
    pub(super) instances: Vec<SavedInstance>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedInstance {
    pub(super) id: u32,
    pub(super) wanted: bool,
    pub(super) restarts: u64,
}

impl SavedProcess {
    pub(super) fn created(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.created_ms)
    }
}

/// What of the list is on disk.
pub(super) struct Store {
    path: PathBuf,
    version: u64,
    written: u64,
    under_way: bool,
    waiting: Vec<(u64, Reply<PathBuf>)>,
}

impl Store {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, version: 0, written: 0, under_way: false, waiting: Vec::new() }
    }

    /// The list is not what is on disk any more.
    pub(super) fn changed(&mut self) {
        self.version += 1;
    }

    /// The list that an earlier agent wrote.
    ///
    /// # Errors
    /// It cannot be read; one that is not there is empty.
    pub(super) fn load(&self) -> Result<Option<Saved>, String> {
        let named = |why: String| format!("{}: {why}", self.path.display());
        let Some(text) = file::read_if_present(&self.path).map_err(|error| chain(&error))? else { return Ok(None) };
        let saved: Saved = serde_json::from_str(&text).map_err(|error| named(error.to_string()))?;
        if saved.version == VERSION {
            Ok(Some(saved))
        } else {
            Err(named(format!("version {} is not known", saved.version)))
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl<P: Platform> Supervisor<P> {
    /// Writes the list if it changed and is not being written.
    pub(super) fn save_if_changed(&mut self) {
        if self.store.under_way || self.store.version == self.store.written {
            return;
        }
        self.store.under_way = true;
        let (version, saved, path) = (self.store.version, self.saved(), self.store.path.clone());
        self.pending.push(Box::pin(async move {
            let written = tokio::task::spawn_blocking(move || write(&path, &saved)).await;
            Done::Saved(version, written.unwrap_or_else(|_ending| Err("the agent is stopping".to_owned())))
        }));
    }

    pub(super) fn on_saved(&mut self, version: u64, result: Result<(), String>) {
        self.store.under_way = false;
        self.store.written = version;
        if let Err(why) = &result {
            tracing::error!(why, "the list of processes was not saved; a restart of the agent would not know them");
        }
        let (done, waiting) =
            std::mem::take(&mut self.store.waiting).into_iter().partition(|(wanted, _)| *wanted <= version);
        self.store.waiting = waiting;
        for (_, reply) in done {
            let result = result.clone().map(|()| self.store.path.clone()).map_err(|why| Error::Save { why });
            self.answer(reply, result);
        }
    }

    pub(super) fn save_for(&mut self, reply: Reply<PathBuf>) {
        self.store.changed();
        self.store.waiting.push((self.store.version, reply));
    }

    /// Writes the list before the agent ends.
    pub(super) async fn save_now(mut self) {
        // An older list that is being written must not come after this one.
        while self.store.under_way {
            match self.pending.next().await {
                Some(Done::Saved(version, result)) => self.on_saved(version, result),
                Some(_) => {}
                None => break,
            }
        }
        let (saved, path) = (self.saved(), self.store.path.clone());
        match tokio::task::spawn_blocking(move || write(&path, &saved)).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => tracing::error!(why, "the list of processes was not saved"),
            Err(_ending) => {}
        }
    }

    fn saved(&self) -> Saved {
        let instance = |id: &u32| {
            let instance = self.instances.get(id)?;
            Some(SavedInstance { id: *id, wanted: instance.wanted, restarts: instance.machine.restarts() })
        };
        let processes = self.processes.values().map(|process| SavedProcess {
            definition: Definition::clone(&process.spec.definition),
            origin: process.origin,
            created_ms: millis(process.created),
            instances: process.ids.iter().filter_map(instance).collect(),
        });
        // One that leaves is not there any more for the next agent, which clears its cgroup.
        let stays = |saved: &SavedProcess| {
            saved.instances.iter().any(|saved| !self.instances.get(&saved.id).is_some_and(|instance| instance.leaving))
        };
        Saved { version: VERSION, next_id: self.next_id, processes: processes.filter(stays).collect() }
    }
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn write(path: &Path, saved: &Saved) -> Result<(), String> {
    let text = serde_json::to_vec_pretty(saved).map_err(|error| chain(&io::Error::from(error)))?;
    // Environments may hold secrets.
    file::write_atomic(path, &text, 0o600).map_err(|error| chain(&error))
}
