//! Memory that a start or a burst needed and the rest of a life does not.

#![expect(unsafe_code, reason = "malloc_trim and madvise over mappings of files have no safe wrapper")]

use std::fs;
use std::path::Path;

/// The mappings of `smaps` (proc(5)) that are parts of files and never written, by their bounds: the code of the program and of
/// its libraries, and their constants. They stay where they are as long as the process lives.
fn unwritten(smaps: &str, program: &Path) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut candidate = None;
    for line in smaps.lines() {
        if let Some(amount) = line.strip_prefix("Anonymous:") {
            // What the loader relocated looks like any constant but exists nowhere else.
            let is_of_file = amount.trim() == "0 kB";
            found.extend(candidate.take().filter(|_| is_of_file));
        } else if line.starts_with(|first: char| first.is_ascii_digit() || first.is_ascii_lowercase()) {
            candidate = file_mapping(line, program);
        }
    }
    found
}

/// The bounds, if it is a private mapping of `program` or of a library and nobody can write to it.
fn file_mapping(line: &str, program: &Path) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (bounds, access) = (fields.next()?, fields.next()?);
    let path = Path::new(fields.nth(3)?);
    let is_library = path.is_absolute() && path.file_name()?.to_str()?.contains(".so");
    if !(is_library || path == program) || !matches!(access, "r-xp" | "r--p") {
        return None;
    }
    let (from, to) = bounds.split_once('-')?;
    Some((usize::from_str_radix(from, 16).ok()?, usize::from_str_radix(to, 16).ok()?))
}

/// Gives the free parts of the heap back to the kernel, and lets go of code and constants: what is needed again is mapped again
/// from the page cache, a few microseconds each. Call it when a start or a burst is over.
pub fn give_back() {
    // SAFETY: it takes no pointer and only touches what the allocator holds free (malloc_trim(3)).
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
    let (Ok(smaps), Ok(program)) = (fs::read_to_string("/proc/self/smaps"), fs::read_link("/proc/self/exe")) else {
        return;
    };
    for (from, to) in unwritten(&smaps, &program) {
        // SAFETY: the bounds are those of a private mapping of a file that nobody can write to and of which no page was
        // written: what is taken away is read again from the same file. A debugger's breakpoints are lost, nothing else.
        if unsafe { libc::madvise(from as *mut libc::c_void, to - from, libc::MADV_DONTNEED) } != 0 {
            tracing::debug!(error = %std::io::Error::last_os_error(), "a mapping stays as it is");
        }
    }
}

/// Resident memory of this process; nothing where the kernel does not tell.
pub fn resident_bytes() -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let amount = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    amount.and_then(|amount| amount.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap_or_default() * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55c97bd12000-55c97c538000 r--p 00000000 fe:00 123 /usr/bin/weft
Rss:                1024 kB
Anonymous:             0 kB
VmFlags: rd mr mw me sd
55c97c538000-55c97e121000 r-xp 00825000 fe:00 123 /usr/bin/weft
Anonymous:             0 kB
55c97e121000-55c97e20b000 r--p 0240d000 fe:00 123 /usr/bin/weft
Anonymous:           936 kB
55c97e20b000-55c97e20c000 rw-p 024f7000 fe:00 123 /usr/bin/weft
Anonymous:             0 kB
7efdb2630000-7efdb2786000 r--p 00026000 00:00 0
Anonymous:             0 kB
7efdb2787000-7efdb2788000 r-xp 00000000 fe:00 457 /usr/lib/libc.so.6
Anonymous:             0 kB
7efdb278a000-7efdb278b000 r--p 00000000 fe:00 458 /usr/share/words
Anonymous:             0 kB
7efdb2790000-7efdb2791000 r--s 00000000 fe:00 456 /usr/share/shared
Anonymous:             0 kB
7ffd0c1f9000-7ffd0c1fb000 r-xp 00000000 00:00 0                          [vdso]
Anonymous:             0 kB
";

    #[test]
    fn only_parts_of_files_that_were_never_written_are_found() {
        let library = (0x7efd_b278_7000, 0x7efd_b278_8000);
        let program = [(0x55c9_7bd1_2000, 0x55c9_7c53_8000), (0x55c9_7c53_8000, 0x55c9_7e12_1000)];
        assert_eq!(unwritten(SMAPS, Path::new("/usr/bin/weft")), [program[0], program[1], library]);
        assert_eq!(unwritten(SMAPS, Path::new("/usr/bin/other")), [library]);
        assert_eq!(unwritten("nonsense\n", Path::new("/usr/bin/weft")), []);
    }

    #[test]
    fn the_program_goes_on_after_giving_back() {
        let kept: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
        give_back();
        assert_eq!(kept.iter().filter_map(|text| text.parse::<u64>().ok()).sum::<u64>(), 499_500);
        assert!(resident_bytes() > 0);
    }
}
