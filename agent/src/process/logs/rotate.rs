//! One log file: appended to, rotated by size and age at the end of a line, old ones compressed, the oldest removed.
//!
//! The writer itself renames and opens anew, so that no line can fall between. A rotated file is `NAME.TIME`, where the time is
//! that of the rotation in a form that sorts; then `NAME.TIME.gz`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::format::{self, STAMP_BYTES};
use super::protocol::Target;

/// The file that is written now.
#[derive(Debug)]
pub struct LogFile {
    target: Target,
    file: Option<Open>,
    begins_line: bool,
    /// Bytes that could not be written since the last that could.
    lost: u64,
}

#[derive(Debug)]
struct Open {
    file: File,
    bytes: u64,
    since: SystemTime,
}

impl LogFile {
    /// A file that is opened when there is something to write.
    pub fn new(target: Target) -> Self {
        Self { target, file: None, begins_line: true, lost: 0 }
    }

    /// Changes everything but the FIFO.
    pub fn retarget(&mut self, target: Target) {
        if target.file != self.target.file {
            self.file = None;
        }
        self.target = target;
    }

    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Appends what a process wrote. What the disk does not take is counted and told in the file once it does.
    pub fn append(&mut self, chunk: &[u8], now: SystemTime, scratch: &mut Vec<u8>) {
        // Chunks end anywhere, and a file is rotated at the end of a line: the first in the chunk, where it is time.
        let end =
            chunk.iter().position(|byte| *byte == b'\n').filter(|_| !self.begins_line && self.is_long_with(chunk));
        let (rest_of_line, more) = chunk.split_at(end.map_or(0, |end| end + 1));
        for part in [rest_of_line, more] {
            if !part.is_empty() {
                self.append_part(part, now, scratch);
            }
        }
    }

    /// Whether `chunk` could make the file too long, times of lines included.
    fn is_long_with(&self, chunk: &[u8]) -> bool {
        let more = chunk.len() as u64 * 2;
        self.file.as_ref().is_some_and(|open| open.bytes + more > self.target.max_bytes)
    }

    fn append_part(&mut self, chunk: &[u8], now: SystemTime, scratch: &mut Vec<u8>) {
        scratch.clear();
        let stamp = format::stamp(now);
        if self.lost > 0 {
            let note = format!("weft: {} bytes could not be written and are lost\n", self.lost);
            if !self.begins_line {
                scratch.push(b'\n');
            }
            self.begins_line = format::append(note.as_bytes(), true, &stamp, scratch);
        }
        let begins_line = format::append(chunk, self.begins_line, &stamp, scratch);
        match self.write(scratch, now) {
            Ok(()) => {
                self.begins_line = begins_line;
                self.lost = 0;
            }
            Err(_full) => self.lost += chunk.len() as u64,
        }
    }

    fn write(&mut self, bytes: &[u8], now: SystemTime) -> io::Result<()> {
        self.rotate_if_due(bytes.len() as u64, now)?;
        if self.file.is_none() {
            self.file = Some(open(&self.target.file, now)?);
        }
        let Some(open) = &mut self.file else { return Err(io::Error::from(io::ErrorKind::NotFound)) };
        let before = open.bytes;
        let written = open.file.write_all(bytes);
        if written.is_ok() {
            open.bytes += bytes.len() as u64;
        } else {
            // Half of it may stand there: it is taken back, so that the count of what is lost is right.
            open.file.set_len(before).ok();
        }
        written
    }

    fn rotate_if_due(&mut self, more: u64, now: SystemTime) -> io::Result<()> {
        let Some(open) = &self.file else { return Ok(()) };
        let is_long = open.bytes > 0 && open.bytes + more > self.target.max_bytes;
        // A line without an end does not keep a file from being rotated for ever.
        let may_cut = self.begins_line || open.bytes > self.target.max_bytes.saturating_mul(2);
        let age = Duration::from_secs(self.target.max_age_s);
        let is_old = now.duration_since(open.since).is_ok_and(|passed| passed > age);
        if !may_cut || !(is_long || is_old) {
            return Ok(());
        }
        self.file = None;
        let rotated = rotated_name(&self.target.file, now);
        fs::rename(&self.target.file, &rotated)?;
        let (target, compress) = (self.target.clone(), self.target.compress);
        // Compression takes as long as it takes and must not hold up a writer.
        let tidy = move || {
            if compress {
                compress_file(&rotated).ok();
            }
            remove_oldest(&target).ok();
        };
        std::thread::Builder::new().name("compress".to_owned()).spawn(tidy).map(drop)
    }
}

fn open(path: &Path, now: SystemTime) -> io::Result<Open> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    let metadata = file.metadata()?;
    let since = if metadata.len() == 0 { now } else { first_time(path).unwrap_or(now) };
    Ok(Open { bytes: metadata.size(), file, since })
}

/// The time of the first line.
fn first_time(path: &Path) -> Option<SystemTime> {
    let mut head = [0; STAMP_BYTES];
    io::Read::read_exact(&mut File::open(path).ok()?, &mut head).ok()?;
    format::parse(&head).map(|(time, _)| time)
}

fn rotated_name(path: &Path, now: SystemTime) -> PathBuf {
    let stamp = format::stamp(now);
    let digits: String = stamp.iter().filter(|byte| byte.is_ascii_digit()).map(|byte| char::from(*byte)).collect();
    let mut number = 0_u32;
    loop {
        let name = PathBuf::from(format!("{}.{digits}{number:03}", path.display()));
        let compressed = PathBuf::from(format!("{}.gz", name.display()));
        if !name.exists() && !compressed.exists() {
            return name;
        }
        number += 1;
    }
}

fn compress_file(path: &Path) -> io::Result<()> {
    let compressed = PathBuf::from(format!("{}.gz", path.display()));
    let beside = PathBuf::from(format!("{}.tmp", compressed.display()));
    let output = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    let mut encoder = GzEncoder::new(output, Compression::fast());
    let done = io::copy(&mut File::open(path)?, &mut encoder).and_then(|_bytes| encoder.finish()).map(drop);
    if let Err(error) = done.and_then(|()| fs::rename(&beside, &compressed)) {
        // The plain file stays.
        fs::remove_file(&beside).ok();
        return Err(error);
    }
    fs::remove_file(path)
}

fn remove_oldest(target: &Target) -> io::Result<()> {
    let rotated = rotated_files(&target.file)?;
    let surplus = rotated.len().saturating_sub(usize::try_from(target.keep).unwrap_or(usize::MAX));
    rotated.iter().take(surplus).try_for_each(fs::remove_file)
}

/// The rotated files of `path`, the oldest first.
///
/// # Errors
/// Its directory cannot be listed.
pub fn rotated_files(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Ok(Vec::new());
    };
    let is_rotated = |found: &str| {
        let rest = found.strip_prefix(name).and_then(|rest| rest.strip_prefix('.'));
        let digits = rest.map(|rest| rest.strip_suffix(".gz").unwrap_or(rest));
        digits.is_some_and(|digits| digits.len() >= 17 && digits.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(is_rotated) {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(directory: &Path, max_bytes: u64) -> Target {
        let (fifo, file) = (directory.join("fifo"), directory.join("web-out.log"));
        Target { fifo, file, max_bytes, max_age_s: 3600, keep: 2, compress: false }
    }

    fn text(path: &Path) -> String {
        fs::read_to_string(path).expect("readable")
    }

    #[test]
    fn a_file_is_rotated_at_the_end_of_a_line_and_nothing_is_lost() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut log = LogFile::new(Target { keep: 100, ..target(directory.path(), 100) });
        let (now, mut scratch) = (SystemTime::now(), Vec::new());
        for number in 0..8 {
            log.append(format!("line {number} begins").as_bytes(), now, &mut scratch);
            log.append(b" and ends\n", now, &mut scratch);
        }
        let mut files = rotated_files(&log.target.file).expect("listed");
        files.push(log.target.file.clone());
        let whole: String = files.iter().map(|file| text(file)).collect();
        let lines: Vec<&str> = whole.lines().collect();
        assert_eq!(lines.len(), 8, "{whole}");
        for (number, line) in lines.iter().enumerate() {
            assert!(line.ends_with(&format!("line {number} begins and ends")), "{whole}");
        }
        assert!(files.len() > 1, "it was rotated");
        assert!(files.iter().all(|file| text(file).ends_with('\n') && text(file).len() < 150));
    }

    #[test]
    fn an_old_file_is_rotated_and_only_the_newest_stay() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut log = LogFile::new(Target { keep: 1, ..target(directory.path(), 1 << 20) });
        let mut scratch = Vec::new();
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        for hours in 0..4 {
            log.append(b"a line\n", start + Duration::from_secs(hours * 3601), &mut scratch);
        }
        let is_one = || rotated_files(&log.target.file).is_ok_and(|files| files.len() == 1);
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while !is_one() {
            assert!(std::time::Instant::now() < deadline, "the oldest were not removed");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_rotated_file_is_compressed_whole() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("web-out.log.1");
        fs::write(&path, "a line\n".repeat(1000)).expect("written");
        compress_file(&path).expect("compressed");
        let mut text = String::new();
        let compressed = File::open(directory.path().join("web-out.log.1.gz")).expect("there");
        io::Read::read_to_string(&mut flate2::read::GzDecoder::new(compressed), &mut text).expect("whole");
        assert!(text == "a line\n".repeat(1000) && !path.exists());
    }

    #[test]
    fn what_a_full_disk_lost_is_told() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut log = LogFile::new(target(directory.path(), 1 << 20));
        log.target.file = PathBuf::from("/dev/full");
        let mut scratch = Vec::new();
        log.append(b"lost\n", SystemTime::now(), &mut scratch);
        let target = target(directory.path(), 1 << 20);
        log.retarget(target.clone());
        log.append(b"kept\n", SystemTime::now(), &mut scratch);
        let text = text(&target.file);
        assert!(text.contains("weft: 5 bytes could not be written") && text.ends_with(" kept\n"), "{text}");
    }
}
