//! Who wants to know which tables changed.
//!
//! Level-triggered: a watcher learns the log index up to which its tables may have changed, and reads the tables. Changes that
//! come while it reads are one change. Who keeps what it read may ask which rows to read again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

/// More changed rows than this are told as every row: reading the table once is no dearer.
const MOST_ROWS: usize = 32;

/// Which rows of a table may have changed, by their rowid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Touched {
    Rows(BTreeSet<i64>),
    Every,
}

/// The changed tables, in lower case.
pub(super) type Changed = BTreeMap<String, Touched>;

impl Default for Touched {
    fn default() -> Self {
        Self::Rows(BTreeSet::new())
    }
}

impl Touched {
    pub(super) fn add(&mut self, row: i64) {
        if let Self::Rows(rows) = self {
            rows.insert(row);
            if rows.len() > MOST_ROWS {
                *self = Self::Every;
            }
        }
    }

    fn extend(&mut self, other: &Self) {
        match other {
            Self::Rows(rows) => rows.iter().for_each(|row| self.add(*row)),
            Self::Every => *self = Self::Every,
        }
    }
}

/// All watchers of one store; cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Watchers(Arc<Mutex<Vec<Watcher>>>);

#[derive(Debug)]
struct Watcher {
    tables: BTreeSet<String>,
    /// What changed since the watcher took it last.
    touched: Arc<Mutex<Changed>>,
    index: watch::Sender<u64>,
}

impl Watcher {
    /// Notes what of its tables is among `changed`; whether there is any.
    fn note(&self, changed: &Changed) -> bool {
        let mut touched = self.touched.lock().unwrap_or_else(PoisonError::into_inner);
        let mut is_any = false;
        for (table, rows) in changed.iter().filter(|(table, _)| self.tables.contains(*table)) {
            touched.entry(table.clone()).or_default().extend(rows);
            is_any = true;
        }
        is_any
    }
}

impl Watchers {
    /// Watches `tables`.
    pub(super) fn watch(&self, tables: &[&str]) -> Changes {
        let (index, receiver) = watch::channel(0);
        let tables = tables.iter().map(|table| table.to_ascii_lowercase()).collect();
        let touched = Arc::<Mutex<Changed>>::default();
        let watcher = Watcher { tables, touched: Arc::clone(&touched), index };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(watcher);
        Changes { index: receiver, touched }
    }

    /// Tells those who watch any of `changed`.
    pub(super) fn tell(&self, index: u64, changed: &Changed) {
        if changed.is_empty() {
            return;
        }
        let mut watchers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.retain(|watcher| !watcher.index.is_closed());
        for watcher in watchers.iter().filter(|watcher| watcher.note(changed)) {
            watcher.index.send_replace(index);
        }
    }
}

/// The changes of some tables.
#[derive(Debug)]
pub struct Changes {
    index: watch::Receiver<u64>,
    touched: Arc<Mutex<Changed>>,
}

impl Changes {
    /// Waits for a change since the last call and gives the log index of it; `None`: the store is gone. Cancel-safe.
    pub async fn changed(&mut self) -> Option<u64> {
        self.index.changed().await.ok()?;
        Some(*self.index.borrow_and_update())
    }

    /// The rows that may have changed since the last call, by table. Take them before reading: what changes later is told again.
    pub fn take_touched(&mut self) -> BTreeMap<String, Touched> {
        std::mem::take(&mut self.touched.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables(names: &[&str]) -> Changed {
        names.iter().map(|name| ((*name).to_owned(), rows([1]))).collect()
    }

    fn rows(rows: impl IntoIterator<Item = i64>) -> Touched {
        Touched::Rows(rows.into_iter().collect())
    }

    #[test]
    fn the_rows_that_changed_are_told_once_and_many_as_all() {
        let watchers = Watchers::default();
        let mut changes = watchers.watch(&["a"]);
        let tell = |touched: Touched| watchers.tell(1, &Changed::from([("a".to_owned(), touched)]));
        tell(rows([3]));
        tell(rows([5, 3]));
        assert_eq!(changes.take_touched().remove("a"), Some(rows([3, 5])));
        assert_eq!(changes.take_touched(), BTreeMap::new());
        tell(rows(0..100));
        tell(rows([1]));
        assert_eq!(changes.take_touched().remove("a"), Some(Touched::Every));
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
