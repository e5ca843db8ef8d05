//! Lines with their times. Pure.
//!
//! A line in a file is `2026-01-02T03:04:05.678Z TEXT`. The time is when the keeper read the line's beginning.

use std::io::BufRead as _;
use std::time::{Duration, SystemTime};

use crate::foundation::rfc3339;

/// Bytes of a time and the space after it.
pub const STAMP_BYTES: usize = 25;

/// `time` as it stands before a line.
pub fn stamp(time: SystemTime) -> [u8; STAMP_BYTES] {
    let millis = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().subsec_millis();
    let text = rfc3339::format(time);
    let mut stamp = *b"0000-00-00T00:00:00.000Z ";
    // A year of five digits is not of this world.
    if let Some(seconds) = text.as_bytes().get(..19) {
        stamp[..19].copy_from_slice(seconds);
    }
    for (place, divisor) in [(20, 100), (21, 10), (22, 1)] {
        stamp[place] = b'0' + u8::try_from(millis / divisor % 10).unwrap_or_default();
    }
    stamp
}

/// Appends `chunk` to `out` with `stamp` at the beginning of each line; returns whether the next byte begins a line.
pub fn append(chunk: &[u8], mut begins_line: bool, stamp: &[u8; STAMP_BYTES], out: &mut Vec<u8>) -> bool {
    let mut rest = chunk;
    while !rest.is_empty() {
        if begins_line {
            out.extend_from_slice(stamp);
        }
        // Reading from memory cannot fail; this is the library's fast search for a byte.
        if rest.read_until(b'\n', out).is_err() {
            return begins_line;
        }
        begins_line = out.last() == Some(&b'\n');
    }
    begins_line
}

/// The time and the text of a line of a file; `None` for what has no time in front: the rest of a line that was cut.
pub fn parse(line: &[u8]) -> Option<(SystemTime, &[u8])> {
    let (head, text) = line.split_at_checked(STAMP_BYTES)?;
    let head = std::str::from_utf8(head).ok()?.strip_suffix("Z ")?;
    let digits = |range: std::ops::Range<usize>| head.get(range).and_then(|digits| digits.parse::<u64>().ok());
    let millis = digits(20..23)?;
    let seconds = rfc3339::parse(&format!("{}Z", head.get(..19)?))?;
    Some((seconds + Duration::from_millis(millis), text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(millis)
    }

    #[test]
    fn every_line_gets_its_time_once_however_it_is_cut() {
        let mut out = Vec::new();
        let mut begins = true;
        for (chunk, millis) in [("on", 1), ("e\ntwo\n", 2), ("\n", 3), ("rest", 86_400_004)] {
            begins = append(chunk.as_bytes(), begins, &stamp(at(millis)), &mut out);
        }
        let expected = "1970-01-01T00:00:00.001Z one\n1970-01-01T00:00:00.002Z two\n1970-01-01T00:00:00.003Z \n\
                        1970-01-02T00:00:00.004Z rest";
        assert_eq!((String::from_utf8_lossy(&out).as_ref(), begins), (expected, false));
    }

    #[test]
    fn what_was_stamped_is_read_back() {
        let time = at(1_700_000_000_123);
        let line = [&stamp(time)[..], b"text"].concat();
        assert_eq!(parse(&line), Some((time, &b"text"[..])));
        assert_eq!(parse(b"2026-01-02 a line of another's making"), None);
    }
}
