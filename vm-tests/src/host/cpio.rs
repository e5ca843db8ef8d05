//! An initramfs archive in memory: the kernel's "newc" cpio format
//! (Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! In: paths and contents. Out: the bytes of one archive, uncompressed: under emulation unpacking costs more than loading.
//! Directories above an entry are made by themselves; a path is written once, the first content wins.

use std::collections::BTreeSet;

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// An archive being written.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    written: BTreeSet<String>,
    links: BTreeSet<String>,
}

impl Archive {
    /// A directory and those above it; `path` has no leading slash.
    pub(crate) fn directory(&mut self, path: &str) {
        if !path.is_empty() && !self.contains(path) {
            self.entry(path, DIRECTORY, (0, 0), &[]);
        }
    }

    /// A regular file with these permission bits.
    pub(crate) fn file(&mut self, path: &str, permissions: u32, content: &[u8]) {
        self.entry(path, FILE | permissions, (0, 0), content);
    }

    /// A symbolic link.
    pub(crate) fn symlink(&mut self, path: &str, target: &str) {
        self.links.insert(path.to_owned());
        self.entry(path, SYMLINK, (0, 0), target.as_bytes());
    }

    /// A character device node.
    pub(crate) fn device(&mut self, path: &str, major: u32, minor: u32) {
        self.entry(path, CHARACTER_DEVICE, (major, minor), &[]);
    }

    /// Whether the path is in the archive.
    pub(crate) fn contains(&self, path: &str) -> bool {
        self.written.contains(path)
    }

    /// Whether the path was written as a symbolic link.
    pub(crate) fn contains_link(&self, path: &str) -> bool {
        self.links.contains(path)
    }

    /// The finished archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.record("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
        if self.written.insert(path.to_owned()) {
            self.record(path, mode, device, content);
        }
    }

    fn record(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        let inode = self.written.len() as u32;
        let fields = [
            inode,
            mode,
            0, // owner
            0, // group
            1, // links
            0, // time
            content.len() as u32,
            0, // device of the file system
            0,
            device.0,
            device.1,
            path.len() as u32 + 1,
            0, // checksum, unused in this format
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_above_an_entry_are_written_once_and_before_it() {
        let mut archive = Archive::default();
        archive.file("a/b/c", 0o755, b"x");
        archive.file("a/b/d", 0o644, b"y");
        let names = names(&archive.finish());
        assert_eq!(names, ["a", "a/b", "a/b/c", "a/b/d", "TRAILER!!!"]);
    }

    #[test]
    fn headers_contents_and_records_start_on_four_bytes() {
        let mut archive = Archive::default();
        archive.file("abc", 0o644, b"12345");
        let bytes = archive.finish();
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[116..121], b"12345"); // 110 bytes of header, "abc\0", padded to 116
        assert_eq!(&bytes[124..130], b"070701");
        assert_eq!(bytes.len() % 4, 0);
    }

    /// Reads the archive back the way the kernel does.
    fn names(bytes: &[u8]) -> Vec<String> {
        let mut names = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let field = |n: usize| {
                let text = std::str::from_utf8(&bytes[at + 6 + n * 8..at + 14 + n * 8]).unwrap();
                usize::from_str_radix(text, 16).unwrap()
            };
            let (content, name) = (field(6), field(11));
            names.push(String::from_utf8(bytes[at + 110..at + 110 + name - 1].to_vec()).unwrap());
            at = (at + 110 + name).next_multiple_of(4) + content.next_multiple_of(4);
        }
        names
    }
}
