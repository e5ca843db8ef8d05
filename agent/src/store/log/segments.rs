//! The files of the log: one in use, older ones, and one made ready.
//!
//! A segment is written over zeros that exist already, so that `fdatasync` has no metadata to write. A thread makes the next
//! file ready while the current one fills.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

/// Bytes of a segment.
pub(super) const SEGMENT_BYTES: u64 = 8 * 1024 * 1024;
const SPARE: &str = "spare";
const UNFINISHED: &str = "spare.new";

/// The files in order; the last one is in use.
#[derive(Debug)]
pub(super) struct Segments {
    directory: PathBuf,
    current: Option<Current>,
    /// Those before the current one.
    old: Vec<Old>,
    spare: Option<mpsc::Receiver<io::Result<()>>>,
}

#[derive(Debug)]
struct Current {
    number: u64,
    file: File,
    at: u64,
    /// Highest index of an entry in it.
    highest: u64,
}

#[derive(Debug)]
pub(super) struct Old {
    pub(super) number: u64,
    pub(super) highest: u64,
}

pub(super) fn path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:016x}.log"))
}

/// Numbers of the segments that exist, sorted.
pub(super) fn list(directory: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for found in fs::read_dir(directory)? {
        let name = found?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".log")).filter(|number| number.len() == 16);
        numbers.extend(number.and_then(|number| u64::from_str_radix(number, 16).ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

impl Segments {
    /// The files as recovery found them. The last of `found` goes on being written at `at`.
    pub(super) fn of(directory: &Path, mut found: Vec<Old>, at: u64) -> io::Result<Self> {
        let current = match found.pop() {
            Some(Old { number, highest }) => {
                let file = OpenOptions::new().write(true).open(path(directory, number))?;
                Some(Current { number, file, at, highest })
            }
            None => None,
        };
        let mut segments = Self { directory: directory.to_owned(), current, old: found, spare: None };
        segments.prepare_spare();
        Ok(segments)
    }

    /// Whether `length` more bytes fit into the segment in use.
    pub(super) fn has_room(&self, length: usize) -> bool {
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        self.current.as_ref().is_some_and(|current| current.at.saturating_add(length) <= SEGMENT_BYTES)
    }

    /// Whether nothing was written to the segment in use.
    pub(super) fn is_fresh(&self) -> bool {
        self.current.as_ref().is_some_and(|current| current.at == 0)
    }

    /// Writes at the end and waits until it is durable.
    pub(super) fn append(&mut self, bytes: &[u8], highest: u64) -> io::Result<()> {
        let current = self.current.as_mut().ok_or_else(|| io::Error::other("no segment is open"))?;
        current.file.write_all_at(bytes, current.at)?;
        current.file.sync_data()?;
        current.at += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        current.highest = current.highest.max(highest);
        Ok(())
    }

    /// Begins the next segment.
    pub(super) fn roll(&mut self) -> io::Result<()> {
        let number = self.current.as_ref().map_or(1, |current| current.number + 1);
        if let Some(ready) = self.spare.take() {
            ready.recv().map_err(|_gone| io::Error::other("the thread that makes segments ready is gone"))??;
        } else {
            make_spare(&self.directory)?;
        }
        let path = path(&self.directory, number);
        fs::rename(self.directory.join(SPARE), &path)?;
        File::open(&self.directory)?.sync_all()?;
        let file = OpenOptions::new().write(true).open(&path)?;
        let next = Current { number, file, at: 0, highest: 0 };
        self.old.extend(self.current.replace(next).map(|Current { number, highest, .. }| Old { number, highest }));
        self.prepare_spare();
        Ok(())
    }

    /// Lets go of segments that hold nothing above `index`, oldest first.
    pub(super) fn purge(&mut self, index: u64) -> io::Result<()> {
        while let Some(old) = self.old.first().filter(|old| old.highest <= index) {
            fs::remove_file(path(&self.directory, old.number))?;
            self.old.remove(0);
        }
        Ok(())
    }

    fn prepare_spare(&mut self) {
        let (done, ready) = mpsc::channel();
        let directory = self.directory.clone();
        let work = move || {
            // Without a receiver the log is closed; the spare stays for the next start.
            done.send(make_spare(&directory)).unwrap_or_default();
        };
        self.spare = thread::Builder::new().name("raft-log-spare".to_owned()).spawn(work).ok().map(|_thread| ready);
    }
}

/// A file of zeros of a segment's size, durable, under the spare's name.
fn make_spare(directory: &Path) -> io::Result<()> {
    let spare = directory.join(SPARE);
    if fs::metadata(&spare).is_ok_and(|found| found.len() == SEGMENT_BYTES) {
        return Ok(());
    }
    let unfinished = directory.join(UNFINISHED);
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    let zeros = vec![0_u8; 256 * 1024];
    let mut at = 0;
    while at < SEGMENT_BYTES {
        file.write_all_at(&zeros, at)?;
        at += 256 * 1024;
    }
    file.sync_all()?;
    fs::rename(&unfinished, &spare)
}
