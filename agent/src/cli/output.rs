//! How the command line writes: one writer, colour only where somebody looks, tables, sizes for people.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};

use serde::Serialize;

/// Whether text is coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    Plain,
    Colour,
}

/// What a colour says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Neutral,
    Heading,
    Good,
    Warning,
    Bad,
    Faint,
}

impl Style {
    /// Colour on a terminal, unless `NO_COLOR` has a value (<https://no-color.org>) or `TERM` is `dumb`.
    pub(super) fn of_stdout() -> Self {
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        if io::stdout().is_terminal() && !no_colour && !dumb { Self::Colour } else { Self::Plain }
    }

    /// `text` in the colour of `tone`.
    pub(super) fn paint(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Neutral => return text.to_owned(),
            Tone::Heading => "1",
            Tone::Good => "32",
            Tone::Warning => "33",
            Tone::Bad => "31",
            Tone::Faint => "2",
        };
        match self {
            Self::Plain => text.to_owned(),
            Self::Colour => format!("\x1b[{code}m{text}\x1b[0m"),
        }
    }
}

/// Writes to standard output and flushes.
///
/// # Errors
/// The reader is gone (`BrokenPipe`, which the caller ends on quietly), or the disk behind it is full.
pub(super) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Writes to standard error; nobody is left to tell when that fails.
pub(super) fn complain(text: &str) {
    io::stderr().lock().write_all(text.as_bytes()).ok();
}

/// Writes `value` as indented JSON.
///
/// # Errors
/// As [`print()`].
pub(super) fn print_json<T: Serialize>(value: &T) -> io::Result<()> {
    print(&(serde_json::to_string_pretty(value)? + "\n"))
}

/// Writes `value` as JSON on one line: one of many.
///
/// # Errors
/// As [`print()`].
pub(super) fn print_json_line<T: Serialize>(value: &T) -> io::Result<()> {
    print(&(serde_json::to_string(value)? + "\n"))
}

/// One cell of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cell {
    text: String,
    tone: Tone,
}

/// A cell without colour.
pub(super) fn cell(text: impl Into<String>) -> Cell {
    Cell { text: text.into(), tone: Tone::Neutral }
}

/// A coloured cell.
pub(super) fn toned(tone: Tone, text: impl Into<String>) -> Cell {
    Cell { text: text.into(), tone }
}

/// On which side a column is filled up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
}

/// Rows under a heading, in columns as wide as their widest cell.
#[derive(Debug)]
pub(super) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// An empty table.
    pub(super) fn new(columns: &[(&'static str, Align)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; it has a cell for each column.
    pub(super) fn row(&mut self, cells: Vec<Cell>) {
        debug_assert_eq!(cells.len(), self.columns.len(), "a row has as many cells as the table has columns");
        self.rows.push(cells);
    }

    /// The table as lines, two spaces between the columns, none at the end of a line.
    pub(super) fn render(&self, style: Style) -> String {
        let heading: Vec<Cell> = self.columns.iter().map(|(name, _)| toned(Tone::Heading, *name)).collect();
        let widths = self.widths();
        let mut text = String::new();
        for row in std::iter::once(&heading).chain(&self.rows) {
            text.push_str(self.line(row, &widths, style).trim_end());
            text.push('\n');
        }
        text
    }

    fn widths(&self) -> Vec<usize> {
        let mut widths: Vec<usize> = self.columns.iter().map(|(name, _)| name.chars().count()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.text.chars().count());
            }
        }
        widths
    }

    fn line(&self, row: &[Cell], widths: &[usize], style: Style) -> String {
        let mut line = String::new();
        for (index, ((cell, width), (_, align))) in row.iter().zip(widths).zip(&self.columns).enumerate() {
            let gap = if index == 0 { "" } else { "  " };
            let fill = " ".repeat(width - cell.text.chars().count());
            let painted = style.paint(cell.tone, &cell.text);
            match align {
                Align::Left => line.extend([gap, &painted, &fill]),
                Align::Right => line.extend([gap, &fill, &painted]),
            }
        }
        line
    }
}

/// Lines of `NAME  value`, the values below each other. Empty values are left out.
pub(super) fn fields(style: Style, fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(name, _)| name.chars().count()).max().unwrap_or_default();
    let mut text = String::new();
    for (name, value) in fields.iter().filter(|(_, value)| !value.is_empty()) {
        let fill = " ".repeat(width - name.chars().count());
        writeln!(text, "{}{fill}  {value}", style.paint(Tone::Heading, name)).expect("writing to a String cannot fail");
    }
    text
}

/// A number of bytes with three digits and a binary unit: `1.50 MiB`.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    // Precise enough: three digits are shown, an f64 holds fifteen.
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.decimals$} {}", UNITS[unit])
}

/// A time span by its two largest units: `2 h 5 min`.
pub(super) fn seconds(total: u64) -> String {
    let (days, hours, minutes, seconds) = (total / 86_400, total / 3600 % 24, total / 60 % 60, total % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {seconds} s"),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_bytes(count: u64, expected: &str) {
        assert_eq!(bytes(count), expected);
    }

    #[test]
    fn sizes_have_three_digits_and_a_unit() {
        check_bytes(0, "0 B");
        check_bytes(1023, "1023 B");
        check_bytes(1024, "1.00 KiB");
        check_bytes(15 * 1024 * 1024 + 512 * 1024, "15.5 MiB");
        check_bytes(1023 * 1024, "1.00 MiB");
        check_bytes(u64::MAX, "16.0 EiB");
    }

    #[test]
    fn spans_show_their_two_largest_units() {
        assert_eq!(
            [seconds(59), seconds(125), seconds(7500), seconds(90_000)],
            ["59 s", "2 min 5 s", "2 h 5 min", "1 d 1 h"]
        );
    }

    #[test]
    fn columns_line_up_whatever_is_coloured() {
        let mut table = Table::new(&[("NAME", Align::Left), ("RX", Align::Right), ("STATE", Align::Left)]);
        table.row(vec![cell("beta"), cell("7 B"), toned(Tone::Good, "connected")]);
        table.row(vec![cell("a-longer-name"), cell("1.00 KiB"), toned(Tone::Bad, "never")]);
        let plain = table.render(Style::Plain);
        assert_eq!(
            plain,
            "NAME                 RX  STATE\nbeta                7 B  connected\na-longer-name  1.00 KiB  never\n"
        );
        let coloured = table.render(Style::Colour);
        let stripped = ["1", "32", "31", "0"]
            .iter()
            .fold(coloured.clone(), |text, code| text.replace(&format!("\x1b[{code}m"), ""));
        assert_ne!(coloured, plain);
        assert_eq!(stripped, plain);
    }

    #[test]
    fn empty_fields_are_left_out() {
        let text =
            fields(Style::Plain, &[("node", "alpha".to_owned()), ("hook", String::new()), ("a b", "c".to_owned())]);
        assert_eq!(text, "node  alpha\na b   c\n");
    }
}
