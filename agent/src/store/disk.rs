//! The disk that the store lies on: whether there is room, and how long it takes to make something durable.
//!
//! A leader takes no write while less is free than the log's next segments and one more snapshot may need: what is under way can
//! still be finished, and the database can still be read. It is looked at when somebody writes, so that an idle node sleeps.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::metrics::histogram::Histogram;

/// Free beside the size of the database: two segments of the log and SQLite's own log.
const RESERVE_BYTES: u64 = 24 * 1024 * 1024;
/// How old what is known may be. The disk holds more than is written meanwhile.
const FRESH: Duration = Duration::from_millis(200);
/// Syncs whose times are remembered.
const REMEMBERED: usize = 128;
/// Upper bounds in seconds.
const BOUNDS: [f64; 9] = [0.0002, 0.0005, 0.001, 0.002, 0.005, 0.02, 0.1, 0.5, 2.0];

/// What the disk has and what the store needs free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Room {
    pub(super) free_bytes: u64,
    pub(super) needed_bytes: u64,
    /// Writes are refused.
    pub(super) is_full: bool,
}

impl Room {
    /// What follows `self`: a disk that was full has room again with a quarter more than is needed, so that it does not flutter.
    fn then(self, free_bytes: u64, needed_bytes: u64) -> Self {
        let wanted = if self.is_full { needed_bytes.saturating_add(needed_bytes / 4) } else { needed_bytes };
        Self { free_bytes, needed_bytes, is_full: free_bytes < wanted }
    }
}

/// The disk of one store; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    directory: Arc<Path>,
    database: Arc<Path>,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    room: Room,
    at: Option<Instant>,
    /// When the lead was last given away for want of room.
    handed_over: Option<Instant>,
}

impl Disk {
    pub(super) fn of(directory: PathBuf, database: PathBuf) -> Self {
        Self { directory: directory.into(), database: database.into(), seen: Arc::default() }
    }

    /// The room now. A disk that does not tell is taken to have some.
    pub(super) fn room(&self) -> Room {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.at.is_some_and(|at| at.elapsed() < FRESH) {
            return seen.room;
        }
        let database = fs::metadata(&*self.database).map_or(0, |found| found.len());
        let free = nix::sys::statvfs::statvfs(&*self.directory)
            .map_or(u64::MAX, |found| found.blocks_available().saturating_mul(found.fragment_size()));
        seen.room = seen.room.then(free, database.saturating_add(RESERVE_BYTES));
        seen.at = Some(Instant::now());
        seen.room
    }

    /// Whether another snapshot, a whole copy of the database, fits.
    pub(super) fn fits_a_snapshot(&self) -> bool {
        let room = self.room();
        room.free_bytes > room.needed_bytes.saturating_sub(RESERVE_BYTES / 2)
    }

    /// What is wrong and what helps; `None`: there is room.
    pub(super) fn problem(&self) -> Option<String> {
        let room = self.room();
        let mebibytes = |bytes: u64| bytes / (1024 * 1024);
        room.is_full.then(|| {
            format!(
                "the disk that holds {} is full: {} MiB are free, and the store takes no writes until {} MiB are: \
                 make room there or set state_dir to a larger disk",
                self.directory.display(),
                mebibytes(room.free_bytes),
                mebibytes(room.needed_bytes.saturating_add(room.needed_bytes / 4)),
            )
        })
    }

    /// Whether the lead may be given away once more: not within `pause` of the last time.
    pub(super) fn may_hand_over(&self, pause: Duration) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let may = seen.handed_over.is_none_or(|at| at.elapsed() >= pause);
        if may {
            seen.handed_over = Some(Instant::now());
        }
        may
    }
}

/// How long writing and syncing a batch of the log took; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Syncs {
    pub(super) seconds: Histogram,
    recent: Arc<Mutex<VecDeque<Duration>>>,
}

impl Default for Syncs {
    fn default() -> Self {
        Self { seconds: Histogram::new(BOUNDS), recent: Arc::default() }
    }
}

impl Syncs {
    pub(super) fn note(&self, took: Duration) {
        self.seconds.observe(took.as_secs_f64());
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() == REMEMBERED {
            recent.pop_front();
        }
        recent.push_back(took);
    }

    /// The middle one and the longest of the last ones; zero before the first.
    pub(super) fn median_and_worst(&self) -> (Duration, Duration) {
        let mut sorted: Vec<Duration> =
            self.recent.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        sorted.sort_unstable();
        let at = |place: usize| sorted.get(place).copied().unwrap_or_default();
        (at(sorted.len() / 2), at(sorted.len().saturating_sub(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_has_room_again_with_a_quarter_more_than_is_needed() {
        let room = Room::default().then(100, 100);
        assert!(!room.is_full);
        let full = room.then(99, 100);
        assert!(full.is_full && full.then(124, 100).is_full);
        assert!(!full.then(125, 100).is_full);
    }

    #[test]
    fn of_the_last_syncs_the_middle_and_the_longest_are_told() {
        let syncs = Syncs::default();
        assert_eq!(syncs.median_and_worst(), (Duration::ZERO, Duration::ZERO));
        syncs.note(Duration::from_secs(9));
        for millis in 1..=128 {
            syncs.note(Duration::from_millis(millis));
        }
        assert_eq!(syncs.median_and_worst(), (Duration::from_millis(65), Duration::from_millis(128)));
    }

    #[test]
    fn the_lead_is_given_away_once_within_the_pause() {
        let disk = Disk::of("/".into(), "/none".into());
        assert!(disk.may_hand_over(Duration::from_secs(3600)));
        assert!(!disk.may_hand_over(Duration::from_secs(3600)));
        assert!(disk.may_hand_over(Duration::ZERO));
    }
}
