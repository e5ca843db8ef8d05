//! Batches and records: the bytes of a segment. Pure.
//!
//! A batch is what one `fdatasync` made durable: a header of 24 bytes (magic, checksum, length, sequence number), then records.
//! Sequence numbers grow by one from batch to batch over all segments, so that what an older use of the same file left behind
//! is never taken for a continuation. Numbers are little endian; the checksum is CRC-32 over all that follows it.

use bytes::Bytes;

use crate::store::raft::{Entry, Id, Malformed, Reader, Vote, put_bytes, put_entry, put_id, put_vote};

/// `WFTL`.
const MAGIC: [u8; 4] = *b"WFTL";
pub(super) const HEADER_BYTES: usize = 24;

/// A record to be written.
#[derive(Debug)]
pub(super) enum Record<'a> {
    Entry(&'a Entry),
    Vote(&'a Vote),
    /// Entries after this one are void.
    Truncate(Option<&'a Id>),
    /// Entries up to this one are gone.
    Purge(&'a Id),
}

/// A record that was read.
#[derive(Debug, PartialEq)]
pub(super) enum Parsed {
    Entry(Entry),
    Vote(Vote),
    Truncate(Option<Id>),
    Purge(Id),
}

impl Record<'_> {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.put(&mut out);
        out
    }

    /// Appends kind, length and content.
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        let kind = match self {
            Self::Entry(_) => 1,
            Self::Vote(_) => 2,
            Self::Truncate(_) => 3,
            Self::Purge(_) => 4,
        };
        out.push(kind);
        let at = out.len();
        put_bytes(out, &[]);
        match self {
            Self::Entry(entry) => put_entry(out, entry),
            Self::Vote(vote) => put_vote(out, vote),
            Self::Truncate(id) => put_id(out, *id),
            Self::Purge(id) => put_id(out, Some(id)),
        }
        let length = u32::try_from(out.len() - at - 4).unwrap_or(u32::MAX);
        out[at..at + 4].copy_from_slice(&length.to_le_bytes());
    }
}

/// The records in the body of a batch.
pub(super) fn records(body: Bytes) -> Result<Vec<Parsed>, Malformed> {
    let mut reader = Reader::new(body);
    let mut records = Vec::new();
    while !reader.rest.is_empty() {
        let kind = reader.byte("record")?;
        let mut content = Reader::new(reader.bytes("record")?);
        records.push(match kind {
            1 => Parsed::Entry(content.entry()?),
            2 => Parsed::Vote(content.vote()?),
            3 => Parsed::Truncate(content.id()?),
            4 => Parsed::Purge(content.id()?.ok_or(Malformed("purge"))?),
            _ => return Err(Malformed("kind of record")),
        });
    }
    Ok(records)
}

/// Makes room for the header at the front of `batch`, which is empty.
pub(super) fn begin(batch: &mut Vec<u8>) {
    batch.clear();
    batch.resize(HEADER_BYTES, 0);
}

/// Fills the header of `batch`, which began with [`begin`].
pub(super) fn seal(batch: &mut [u8], sequence: u64) {
    let body = u64::try_from(batch.len() - HEADER_BYTES).unwrap_or(u64::MAX);
    batch[0..4].copy_from_slice(&MAGIC);
    batch[8..16].copy_from_slice(&body.to_le_bytes());
    batch[16..24].copy_from_slice(&sequence.to_le_bytes());
    let sum = checksum(&batch[8..]);
    batch[4..8].copy_from_slice(&sum.to_le_bytes());
}

fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// A whole batch at the front of `bytes`: its sequence number and its body. `None`: there is none, or not all of it.
pub(super) fn whole(bytes: &Bytes) -> Option<(u64, Bytes)> {
    let header = bytes.get(..HEADER_BYTES)?;
    if header[0..4] != MAGIC {
        return None;
    }
    let number =
        |range: std::ops::Range<usize>| header[range].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    let end = usize::try_from(number(8..16)).ok()?.checked_add(HEADER_BYTES)?;
    let covered = bytes.get(8..end)?;
    let matches = u64::from(checksum(covered)) == number(4..8);
    matches.then(|| (number(16..24), bytes.slice(HEADER_BYTES..end)))
}

/// Whether anywhere in `bytes` there is a whole batch with a number above `sequence`.
pub(super) fn holds_later(bytes: &Bytes, sequence: u64) -> bool {
    let mut rest = bytes.clone();
    while let Some(at) = rest.iter().position(|byte| *byte == MAGIC[0]) {
        rest = rest.slice(at..);
        if whole(&rest).is_some_and(|(found, _)| found > sequence) {
            return true;
        }
        rest = rest.slice(1..);
    }
    false
}
