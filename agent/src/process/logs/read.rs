//! Lines of the past, read from the end of the files backwards, merged over files by time.
//!
//! Bounds: at most [`MOST_LINES`] lines and [`MOST_BYTES`] of each file are held in memory; a line longer than a block of
//! [`MOST_LINE_BYTES`] is cut.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::rotate::rotated_files;
use super::{LogLine, LogQuery, Stream, format};

/// The most lines one answer holds.
pub const MOST_LINES: usize = 10_000;
/// The most that is read of one file for an answer.
const MOST_BYTES: u64 = 16 * 1024 * 1024;
const MOST_LINE_BYTES: usize = 64 * 1024;
const BLOCK_BYTES: u64 = 64 * 1024;

/// One file of one output of one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    pub name: Arc<str>,
    pub stream: Stream,
    pub path: PathBuf,
}

/// The newest lines of all `sources` that `query` asks for, the oldest first.
pub fn tail(sources: &[Source], query: &LogQuery) -> Vec<LogLine> {
    let wanted = query.lines.min(MOST_LINES);
    let mut lines = Vec::new();
    for source in sources.iter().filter(|source| query.stream.is_none_or(|stream| stream == source.stream)) {
        lines.extend(tail_one(source, wanted, query.since));
    }
    // Stable: lines of one moment stay in the order of their file.
    lines.sort_by_key(|line| line.time);
    let surplus = lines.len().saturating_sub(wanted);
    lines.drain(..surplus);
    lines
}

fn tail_one(source: &Source, wanted: usize, since: Option<SystemTime>) -> Vec<LogLine> {
    let mut lines = read_end(&source.path, wanted).map(|text| parse(&text, source)).unwrap_or_default();
    // The rotated ones only as far as they are needed.
    let older = rotated_files(&source.path).unwrap_or_default();
    for path in older.iter().rev() {
        let reaches_back = since.is_some_and(|since| lines.first().is_some_and(|line| line.time < since));
        if lines.len() >= wanted || reaches_back {
            break;
        }
        let Ok(text) = read_rotated(path, wanted) else { continue };
        let mut before = parse(&text, source);
        before.append(&mut lines);
        lines = before;
    }
    lines.retain(|line| since.is_none_or(|since| line.time >= since));
    let surplus = lines.len().saturating_sub(wanted);
    lines.drain(..surplus);
    lines
}

/// The lines in `text`; what has no time of its own belongs to the moment before.
pub fn parse(text: &[u8], source: &Source) -> Vec<LogLine> {
    let mut lines: Vec<LogLine> = Vec::new();
    for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let before = lines.last().map_or(SystemTime::UNIX_EPOCH, |line| line.time);
        let (time, text) = format::parse(line).unwrap_or((before, line));
        let text = &text[..text.len().min(MOST_LINE_BYTES)];
        let text = String::from_utf8_lossy(text.strip_suffix(b"\r").unwrap_or(text)).into_owned();
        lines.push(LogLine { time, stream: source.stream, name: Arc::clone(&source.name), text });
    }
    lines
}

/// The end of a file that holds at least `wanted` whole lines, if it has as many.
fn read_end(path: &Path, wanted: usize) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut start = length;
    let mut text: Vec<u8> = Vec::new();
    let mut found = 0;
    while start > 0 && found <= wanted && length - start < MOST_BYTES {
        let size = BLOCK_BYTES.min(start);
        start -= size;
        file.seek(SeekFrom::Start(start))?;
        let mut block = Vec::new();
        file.by_ref().take(size).read_to_end(&mut block)?;
        found += block.iter().filter(|byte| **byte == b'\n').count();
        block.append(&mut text);
        text = block;
    }
    if start > 0 {
        // The first line was cut.
        let first = text.iter().position(|byte| *byte == b'\n').map_or(text.len(), |end| end + 1);
        text.drain(..first);
    }
    Ok(text)
}

fn read_rotated(path: &Path, wanted: usize) -> io::Result<Vec<u8>> {
    if path.extension().is_none_or(|ending| ending != "gz") {
        return read_end(path, wanted);
    }
    let mut text = Vec::new();
    flate2::read::GzDecoder::new(File::open(path)?).take(4 * MOST_BYTES).read_to_end(&mut text)?;
    Ok(text)
}

/// Follows one file: every call returns the whole lines that came since the last.
#[derive(Debug)]
pub struct Follower {
    source: Source,
    file: Option<File>,
    rest: Vec<u8>,
}

impl Follower {
    /// Begins at the end of what is there.
    pub fn at_end(source: Source) -> Self {
        let mut follower = Self { source, file: None, rest: Vec::new() };
        if let Ok(mut file) = File::open(&follower.source.path)
            && file.seek(SeekFrom::End(0)).is_ok()
        {
            follower.file = Some(file);
        }
        follower
    }

    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The lines that came; after a rotation those of the old file first.
    pub fn new_lines(&mut self) -> Vec<LogLine> {
        self.read();
        if self.was_rotated() {
            self.file = File::open(&self.source.path).ok();
            self.read();
        }
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else { return Vec::new() };
        let rest = self.rest.split_off(end + 1);
        let text = std::mem::replace(&mut self.rest, rest);
        parse(&text, &self.source)
    }

    fn read(&mut self) {
        if let Some(file) = &mut self.file {
            // What cannot be read now is read the next time.
            file.take(MOST_BYTES).read_to_end(&mut self.rest).ok();
        }
        if self.rest.len() > usize::try_from(MOST_BYTES).unwrap_or(usize::MAX) {
            self.rest.push(b'\n');
        }
    }

    fn was_rotated(&self) -> bool {
        use std::os::unix::fs::MetadataExt as _;
        let Ok(now) = std::fs::metadata(&self.source.path) else { return false };
        let Some(Ok(held)) = self.file.as_ref().map(File::metadata) else { return true };
        held.ino() != now.ino() || held.dev() != now.dev()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::protocol::Target;
    use super::super::rotate::LogFile;
    use super::*;

    fn target(directory: &Path, name: &str) -> Target {
        let (fifo, file) = (directory.join("fifo"), directory.join(name));
        Target { fifo, file, max_bytes: 1000, max_age_s: 3600, keep: 20, compress: true }
    }

    fn source(path: &Path, stream: Stream) -> Source {
        Source { name: "web".into(), stream, path: path.to_owned() }
    }

    fn at(millis: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(millis)
    }

    const ALL: LogQuery = LogQuery { lines: 1000, stream: None, since: None };

    #[test]
    fn lines_of_both_outputs_come_in_the_order_of_time_through_every_rotation() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut scratch = Vec::new();
        let mut out = LogFile::new(target(directory.path(), "out.log"));
        let mut err = LogFile::new(target(directory.path(), "err.log"));
        for number in 0..100 {
            let log = if number % 3 == 0 { &mut err } else { &mut out };
            log.append(format!("line {number}\n").as_bytes(), at(1000 + number), &mut scratch);
        }
        let sources = [source(&out.target().file, Stream::Stdout), source(&err.target().file, Stream::Stderr)];
        let numbers = |lines: &[LogLine]| -> Vec<String> { lines.iter().map(|line| line.text.clone()).collect() };
        let all = tail(&sources, &ALL);
        assert_eq!(numbers(&all), (0..100).map(|number| format!("line {number}")).collect::<Vec<_>>());
        let last = tail(&sources, &LogQuery { lines: 2, stream: Some(Stream::Stderr), ..ALL });
        assert_eq!(numbers(&last), ["line 96", "line 99"]);
        let since = tail(&sources, &LogQuery { since: Some(at(1098)), ..ALL });
        assert_eq!(numbers(&since), ["line 98", "line 99"]);
    }

    #[test]
    fn a_follower_sees_every_line_once_also_over_a_rotation() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut scratch = Vec::new();
        let mut log = LogFile::new(target(directory.path(), "out.log"));
        log.append(b"before\n", at(1), &mut scratch);
        let mut follower = Follower::at_end(source(&log.target().file, Stream::Stdout));
        let mut seen = Vec::new();
        for number in 0..100 {
            log.append(format!("line {number}\n").as_bytes(), at(2), &mut scratch);
            seen.extend(follower.new_lines());
        }
        let expected: Vec<String> = (0..100).map(|number| format!("line {number}")).collect();
        assert_eq!(seen.iter().map(|line| line.text.clone()).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_file_that_is_not_there_has_no_lines() {
        assert!(tail(&[source(Path::new("/nonexistent/x"), Stream::Stdout)], &ALL).is_empty());
    }
}
