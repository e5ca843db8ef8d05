//! Memory that a start needed and the rest of a life does not.

#![expect(unsafe_code, reason = "malloc_trim and madvise over the code of the program have no safe wrapper")]

use std::fs;

/// The mapping of this program's code, from the text of `/proc/self/maps` (proc(5)): its bounds, and nothing that was ever written.
fn code(maps: &str, program: &str) -> Option<(usize, usize)> {
    maps.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (bounds, access) = (fields.next()?, fields.next()?);
        if access != "r-xp" || fields.next_back() != Some(program) {
            return None;
        }
        let (from, to) = bounds.split_once('-')?;
        Some((usize::from_str_radix(from, 16).ok()?, usize::from_str_radix(to, 16).ok()?))
    })
}

/// Gives the free parts of the heap back to the kernel, and lets go of the code that only a start runs: what is needed again
/// is mapped again from the page cache, a few microseconds each. Call it when the start is over.
pub fn give_back() {
    // SAFETY: it takes no pointer and only touches what the allocator holds free (malloc_trim(3)).
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
    let (Ok(maps), Ok(program)) = (fs::read_to_string("/proc/self/maps"), fs::read_link("/proc/self/exe")) else {
        return;
    };
    let Some((from, to)) = program.to_str().and_then(|program| code(&maps, program)) else { return };
    // SAFETY: the bounds are those of a private mapping of a file that is executed and never written: what is taken away
    // is read again from the same file. A debugger's breakpoints are lost, nothing else.
    if unsafe { libc::madvise(from as *mut libc::c_void, to - from, libc::MADV_DONTNEED) } != 0 {
        tracing::debug!(error = %std::io::Error::last_os_error(), "the code of the start stays mapped");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55c97bd12000-55c97c538000 r--p 00000000 fe:00 123 /usr/bin/weft\n\
55c97c538000-55c97e121000 r-xp 00825000 fe:00 123 /usr/bin/weft\n\
55c97e121000-55c97e20b000 r--p 0240d000 fe:00 123 /usr/bin/weft\n\
7efdb2630000-7efdb2786000 r-xp 00026000 fe:00 456 /usr/lib/libc.so.6\n\
7ffd0c000000-7ffd0c021000 rw-p 00000000 00:00 0 [stack]\n";

    #[test]
    fn only_the_programs_code_is_found() {
        assert_eq!(code(MAPS, "/usr/bin/weft"), Some((0x55c9_7c53_8000, 0x55c9_7e12_1000)));
        assert_eq!(code(MAPS, "/usr/bin/other"), None);
        assert_eq!(code("nonsense\n", "/usr/bin/weft"), None);
    }

    #[test]
    fn the_program_goes_on_after_giving_back() {
        let kept: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
        give_back();
        assert_eq!(kept.iter().filter_map(|text| text.parse::<u64>().ok()).sum::<u64>(), 499_500);
    }
}
