//! The size of the terminal we write to, and the keys of the one we read from.

#![expect(
    unsafe_code,
    reason = "TIOCGWINSZ, termios and readiness of a terminal have no safe wrapper in the libraries we use"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

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

/// Keys as they are pressed, without echo; a line is not waited for. The drop gives the terminal back as it was.
#[derive(Debug)]
pub struct Keys {
    terminal: AsyncFd<BorrowedFd<'static>>,
    before: libc::termios,
}

impl Keys {
    /// Takes the terminal that is standard input, if it is one.
    pub fn of_standard_input() -> Option<Self> {
        // SAFETY: descriptor 0 is open as long as this process runs: the runtime of the language opens it where it was closed.
        Self::of(unsafe { BorrowedFd::borrow_raw(libc::STDIN_FILENO) })
    }

    /// Takes the terminal behind `file`; `None` where it is none.
    pub fn of(file: BorrowedFd<'static>) -> Option<Self> {
        let mut before = std::mem::MaybeUninit::<libc::termios>::uninit();
        // SAFETY: tcgetattr writes one `termios`, and there is room for one.
        if unsafe { libc::tcgetattr(file.as_raw_fd(), before.as_mut_ptr()) } != 0 {
            return None;
        }
        // SAFETY: tcgetattr succeeded, so it is written.
        let before = unsafe { before.assume_init() };
        // SAFETY: it is borrowed for ever, so it stays open and the same.
        let terminal = unsafe { AsyncFd::register_with_interest(file, Interest::READABLE) }.ok()?;
        let keys = Self { terminal, before };
        let mut raw = before;
        // Interrupts stay signals.
        raw.c_lflag &= !(libc::ICANON | libc::ECHO);
        (raw.c_cc[libc::VMIN], raw.c_cc[libc::VTIME]) = (0, 0);
        // SAFETY: only reads `raw`. From here on the drop restores what was.
        let taken = unsafe { libc::tcsetattr(file.as_raw_fd(), libc::TCSANOW, &raw const raw) };
        (taken == 0).then_some(keys)
    }

    /// Waits for the next key; several bytes that come at once are one, by the first. Cancel-safe.
    ///
    /// # Errors
    /// The terminal is gone.
    pub async fn next(&mut self) -> io::Result<u8> {
        loop {
            let mut ready = self.terminal.readable().await?;
            let mut bytes = [0; 64];
            let fd = ready.get_inner().as_raw_fd();
            // SAFETY: read(2) writes at most as many bytes as there is room for.
            let count = unsafe { libc::read(fd, bytes.as_mut_ptr().cast(), bytes.len()) };
            match count {
                0 => ready.clear_ready(),
                count if count < 0 => return Err(io::Error::last_os_error()),
                _ => return Ok(bytes[0]),
            }
        }
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        // SAFETY: only reads `before`; a terminal that is gone needs nothing.
        unsafe { libc::tcsetattr(self.terminal.as_raw_fd(), libc::TCSANOW, &raw const self.before) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keys_come_one_by_one_and_the_terminal_is_given_back() {
        let (mut main, mut terminal) = (0, 0);
        let (name, settings, window) = (std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: openpty writes two descriptors; the rest may be null.
        let opened = unsafe { libc::openpty(&raw mut main, &raw mut terminal, name, settings, window) };
        assert_eq!(opened, 0);
        // SAFETY: both are open, and stay so for the rest of this process.
        let (main, terminal) = unsafe { (BorrowedFd::borrow_raw(main), BorrowedFd::borrow_raw(terminal)) };
        let flags = || {
            // SAFETY: all zeroes are a termios, which is then written.
            unsafe {
                let mut now: libc::termios = std::mem::zeroed();
                libc::tcgetattr(terminal.as_raw_fd(), &raw mut now);
                now.c_lflag
            }
        };
        let before = flags();
        let mut keys = Keys::of(terminal).expect("a terminal");
        assert_eq!(flags() & (libc::ICANON | libc::ECHO), 0);
        nix::unistd::write(main, b"p").expect("pressed");
        assert_eq!(keys.next().await.expect("read"), b'p');
        nix::unistd::write(main, b"q").expect("pressed");
        assert_eq!(keys.next().await.expect("read"), b'q');
        drop(keys);
        assert_eq!(flags(), before);
        let null: &'static std::fs::File = Box::leak(Box::new(std::fs::File::open("/dev/null").expect("always there")));
        assert!(Keys::of(null.as_fd()).is_none());
    }

    #[test]
    fn a_file_has_no_size() {
        assert_eq!(size(std::fs::File::open("/dev/null").expect("it is always there")), None);
    }
}
