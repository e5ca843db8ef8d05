//! What the guest says and the host reads: a line for each verdict, notes below it, and the exit code.

use std::fmt;
use std::io::Write;
use std::ops::AddAssign;
use std::time::Duration;

/// How the guest ends when nothing went wrong with the guest itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    AllPassed,
    SomeFailed,
}

impl Exit {
    /// What is written to QEMU's debug device.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::AllPassed => 0,
            Self::SomeFailed => 1,
        }
    }

    /// The inverse of [`Self::code`].
    pub(crate) fn from_code(code: i32) -> Option<Self> {
        [Self::AllPassed, Self::SomeFailed].into_iter().find(|exit| i32::from(exit.code()) == code)
    }
}

/// How many scenarios passed and failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Tally {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
}

impl Tally {
    /// Counts one scenario.
    pub(crate) fn count(&mut self, passed: bool) {
        if passed {
            self.passed += 1;
        } else {
            self.failed += 1;
        }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

/// A verdict as the host reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) name: String,
    pub(crate) passed: bool,
}

impl Verdict {
    /// From `SCENARIO name ... ok (2.1 s)` or `SCENARIO name ... FAILED: why`; other lines are notes.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let (name, outcome) = line.strip_prefix("SCENARIO ")?.split_once(" ... ")?;
        Some(Self { name: name.to_owned(), passed: outcome.starts_with("ok") })
    }
}

/// Where the guest writes what it found.
pub(crate) struct Report {
    out: Box<dyn Write>,
}

impl Report {
    pub(crate) fn new(out: impl Write + 'static) -> Self {
        Self { out: Box::new(out) }
    }

    /// A figure or a fact under the verdict that follows.
    pub(crate) fn note(&mut self, text: impl fmt::Display) {
        self.line(format_args!("    {text}"));
    }

    /// The verdict of a scenario.
    pub(crate) fn verdict(&mut self, name: &str, took: Duration, outcome: &anyhow::Result<()>) {
        match outcome {
            Ok(()) => self.line(format_args!("SCENARIO {name} ... ok ({:.1} s)", took.as_secs_f32())),
            Err(error) => {
                // One line: the host reads lines.
                let why = format!("{error:#}").replace('\n', " | ");
                self.line(format_args!("SCENARIO {name} ... FAILED: {why}"));
            }
        }
    }

    /// Ends when the last byte is on the line: closing a serial port waits for that.
    pub(crate) fn finish(mut self) {
        self.out.flush().ok();
    }

    fn line(&mut self, text: fmt::Arguments<'_>) {
        // A report that cannot be written has no reader; the host then counts the missing verdicts as failed.
        writeln!(self.out, "{text}").and_then(|()| self.out.flush()).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_report_writes_is_what_the_host_reads() {
        for (outcome, passed) in [(Ok(()), true), (Err(anyhow::anyhow!("two\nlines")), false)] {
            let path = tempfile::NamedTempFile::new().unwrap();
            let mut report = Report::new(path.reopen().unwrap());
            report.verdict("a-name", Duration::from_secs(1), &outcome);
            report.finish();
            let text = std::fs::read_to_string(path.path()).unwrap();
            assert_eq!(text.lines().count(), 1);
            let verdict = Verdict { name: "a-name".to_owned(), passed };
            assert_eq!(Verdict::parse(text.trim_end()), Some(verdict));
        }
    }

    #[test]
    fn notes_are_not_verdicts() {
        assert_eq!(Verdict::parse("    SCENARIO x ... ok"), None);
    }
}
