//! Reads the journal at a start.
//!
//! Segments are read whole and in order. Each batch must have the number after the one before it. What follows the last whole
//! batch of the last segment is a write that was cut off: it was never acknowledged, and is written over. But a batch is only
//! written when the one before it is durable, so a whole batch with a higher number behind a broken one proves damage.

use std::fs;
use std::path::Path;

use bytes::Bytes;

use super::segments::{self, Old, Segments};
use super::{Memory, batch, replay};
use crate::store::error::OpenError;

/// What the journal came to.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) memory: Memory,
    pub(super) segments: Segments,
    /// Number of the next batch.
    pub(super) next_batch: u64,
}

pub(super) fn recover(directory: &Path) -> Result<Recovered, OpenError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::File { action, path, source }
    };
    let numbers = segments::list(directory).map_err(failed("list", directory))?;
    let mut journal = Journal { memory: Memory::default(), expected: None };
    let mut found = Vec::new();
    let mut end = 0;
    for (place, number) in numbers.iter().enumerate() {
        let path = segments::path(directory, *number);
        let bytes = Bytes::from(fs::read(&path).map_err(failed("read", &path))?);
        let read = journal.segment(&bytes).map_err(|(at, what)| OpenError::Damaged { path: path.clone(), at, what })?;
        let is_last = place + 1 == numbers.len();
        let rest = bytes.slice(usize::try_from(read.end).unwrap_or(bytes.len())..);
        if is_last && journal.expected.is_some_and(|next| batch::holds_later(&rest, next)) {
            let what = "a batch is broken and whole ones follow it";
            return Err(OpenError::Damaged { path, at: read.end, what });
        }
        if !is_last && read.batches == 0 {
            return Err(OpenError::Damaged { path, at: 0, what: "a segment that is not the last holds nothing" });
        }
        end = read.end;
        found.push(Old { number: *number, highest: read.highest });
    }
    if !super::is_whole(&journal.memory) {
        let path = segments::path(directory, numbers.first().copied().unwrap_or_default());
        return Err(OpenError::Damaged {
            path,
            at: 0,
            what: "entries between the purged ones and the first one are missing",
        });
    }
    let segments = Segments::of(directory, found, end).map_err(failed("open", directory))?;
    Ok(Recovered { memory: journal.memory, segments, next_batch: journal.expected.unwrap_or(1) })
}

struct Journal {
    memory: Memory,
    /// Number of the next batch; `None` before the first one.
    expected: Option<u64>,
}

struct Read {
    end: u64,
    highest: u64,
    batches: usize,
}

impl Journal {
    /// Reads the batches of one segment, up to the first that is none.
    fn segment(&mut self, bytes: &Bytes) -> Result<Read, (u64, &'static str)> {
        let mut read = Read { end: 0, highest: 0, batches: 0 };
        let mut rest = bytes.clone();
        while let Some((number, body)) = batch::whole(&rest) {
            match self.expected {
                // Left from an earlier use of the file, or the segment before this one is cut short.
                Some(expected) if number < expected => break,
                Some(expected) if number > expected => return Err((read.end, "batches are missing before it")),
                Some(_) | None => self.expected = Some(number + 1),
            }
            let length = batch::HEADER_BYTES + body.len();
            // What stays in memory are the entries, not the segment they came in: it is as large as it may ever grow.
            let records = batch::records(Bytes::copy_from_slice(&body)).map_err(|malformed| (read.end, malformed.0))?;
            for record in records {
                if let batch::Parsed::Entry(entry) = &record {
                    read.highest = read.highest.max(entry.log_id.index);
                }
                replay(&mut self.memory, record).map_err(|what| (read.end, what))?;
            }
            rest = rest.slice(length..);
            read.end += u64::try_from(length).unwrap_or(u64::MAX);
            read.batches += 1;
        }
        Ok(read)
    }
}
