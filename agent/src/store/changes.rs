//! Who wants to know which tables changed.
//!
//! Level-triggered: a watcher learns the log index up to which its tables may have changed, and reads the tables. Changes that
//! come while it reads are one change.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

/// All watchers of one store; cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Watchers(Arc<Mutex<Vec<Watcher>>>);

#[derive(Debug)]
struct Watcher {
    tables: BTreeSet<String>,
    index: watch::Sender<u64>,
}

impl Watchers {
    /// Watches `tables`.
    pub(super) fn watch(&self, tables: &[&str]) -> Changes {
        let (index, receiver) = watch::channel(0);
        let tables = tables.iter().map(|table| table.to_ascii_lowercase()).collect();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Watcher { tables, index });
        Changes { index: receiver }
    }

    /// Tells those who watch any of `changed`.
    pub(super) fn tell(&self, index: u64, changed: &BTreeSet<String>) {
        if changed.is_empty() {
            return;
        }
        let mut watchers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.retain(|watcher| !watcher.index.is_closed());
        for watcher in watchers.iter().filter(|watcher| !watcher.tables.is_disjoint(changed)) {
            watcher.index.send_replace(index);
        }
    }
}

/// The changes of some tables.
#[derive(Debug, Clone)]
pub struct Changes {
    index: watch::Receiver<u64>,
}

impl Changes {
    /// Waits for a change since the last call and gives the log index of it; `None`: the store is gone. Cancel-safe.
    pub async fn changed(&mut self) -> Option<u64> {
        self.index.changed().await.ok()?;
        Some(*self.index.borrow_and_update())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[tokio::test]
    async fn a_watcher_hears_of_its_tables_only_and_of_many_changes_once() {
        let watchers = Watchers::default();
        let mut changes = watchers.watch(&["A", "b"]);
        watchers.tell(1, &tables(&["c"]));
        watchers.tell(2, &tables(&["a", "c"]));
        watchers.tell(3, &tables(&["b"]));
        assert_eq!(changes.changed().await, Some(3));
        drop(watchers);
        assert_eq!(changes.changed().await, None);
    }
}
