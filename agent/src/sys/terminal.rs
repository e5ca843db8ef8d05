//! The size of the terminal we write to.

#![expect(unsafe_code, reason = "TIOCGWINSZ has no safe wrapper in the libraries we use")]

use std::os::fd::{AsFd, AsRawFd as _};

/// How much fits on the screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub rows: usize,
    pub columns: usize,
}

/// The size of the terminal behind `file`; `None` when it is no terminal or does not know its size.
pub fn size(file: impl AsFd) -> Option<Size> {
    let mut window = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one `winsize` (ioctl_tty(2)), and `window` is one, alive for the call.
    let result = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut window) };
    let size = Size { rows: window.ws_row.into(), columns: window.ws_col.into() };
    (result == 0 && size.rows > 0 && size.columns > 0).then_some(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_no_size() {
        assert_eq!(size(std::fs::File::open("/dev/null").expect("it is always there")), None);
    }
}
