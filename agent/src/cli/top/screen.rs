//! The terminal while `weft top` or `weft ps --watch` draws on it.
//!
//! Invariant: however the command ends, the drop gives the terminal back as it was.

use std::io;

use crate::cli::output;
use crate::sys::terminal;

/// The alternate screen, cursor hidden, long lines cut instead of wrapped; the user's scroll-back is not touched.
const OPEN: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const CLOSE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";
const HOME: &str = "\x1b[H";
const CLEAR_REST_OF_LINE: &str = "\x1b[K";
const CLEAR_REST_OF_SCREEN: &str = "\x1b[J";

/// The screen while it is ours.
pub(in crate::cli) struct Screen;

impl Screen {
    pub(in crate::cli) fn open() -> io::Result<Self> {
        output::print(OPEN)?;
        Ok(Self)
    }

    /// Shows `text`, as much as fits.
    pub(in crate::cli) fn draw(&mut self, text: &str) -> io::Result<()> {
        let rows = terminal::size(io::stdout()).map_or(24, |size| size.rows);
        output::print(&frame(text, rows))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs no cleaning.
        output::print(CLOSE).ok();
    }
}

/// One redraw: line over line, so that nothing flickers. The last row stays free, or the terminal would scroll.
fn frame(text: &str, rows: usize) -> String {
    let mut frame = HOME.to_owned();
    for line in text.lines().take(rows.saturating_sub(1)) {
        frame.extend([line, CLEAR_REST_OF_LINE, "\r\n"]);
    }
    frame + CLEAR_REST_OF_SCREEN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_cut_to_the_screen() {
        assert_eq!(frame("a\nb\nc\n", 3), "\x1b[Ha\x1b[K\r\nb\x1b[K\r\n\x1b[J");
    }
}
