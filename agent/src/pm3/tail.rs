//! `/tail`: what a reader of the log asks for, and the lines that answer it.
//!
//! History is merged by time over all files and comes first, oldest line first; with `follow` live lines come after it, none
//! twice and none missing but those the reader was too slow for, whose number it is told.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::stream::{self, Stream, StreamExt as _};
use serde::Deserialize;
use tokio::sync::broadcast;

use super::Pm3;
use super::call::Call;
use super::failure::Failure;
use super::params::{self, Field, FieldKind};
use crate::foundation::rfc3339;
use crate::foundation::telemetry::{Line, Snapshot};

/// Lines of history held in memory for one reader.
const MOST_LINES: usize = 100_000;
const DEFAULT_IO_BYTES: i64 = 1 << 30;
const BLOCK_BYTES: u64 = 64 * 1024;

const FIELDS: &[Field] = &[
    Field { name: "domain", kind: FieldKind::Text },
    Field { name: "level", kind: FieldKind::Text },
    Field { name: "after", kind: FieldKind::Text },
    Field { name: "before", kind: FieldKind::Text },
    Field { name: "substr", kind: FieldKind::Text },
    Field { name: "line_limit", kind: FieldKind::Number },
    Field { name: "io_limit", kind: FieldKind::Number },
    Field { name: "follow", kind: FieldKind::Bool },
];

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Arguments {
    domain: Option<String>,
    level: Option<String>,
    after: Option<String>,
    before: Option<String>,
    substr: Option<String>,
    line_limit: Option<i64>,
    io_limit: Option<i64>,
    follow: bool,
}

/// What a reader asks for, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    filter: Filter,
    /// The newest so many lines of history.
    lines: usize,
    /// Bytes read for the history; 0: none.
    io_bytes: u64,
    follow: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Filter {
    domain: Option<String>,
    /// 0 error to 4 trace; a line of a higher number is left out.
    level: usize,
    after: Option<u64>,
    before: Option<u64>,
    substr: Option<String>,
}

const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

impl Options {
    /// Reads the options of a call.
    ///
    /// # Errors
    /// The first that is wrong, named.
    pub fn read(call: &Call) -> Result<Self, Failure> {
        let arguments: Arguments = params::read("tail", FIELDS, call)?;
        let level = arguments.level.as_deref().unwrap_or("debug");
        let wanted = level.to_ascii_lowercase();
        let level = LEVELS
            .iter()
            .position(|known| *known == wanted)
            .ok_or_else(|| Failure::invalid(format!("level {level:?} is not one of {}", LEVELS.join(", "))))?;
        let time = |name: &str, text: Option<String>| -> Result<Option<u64>, Failure> {
            let Some(text) = text else { return Ok(None) };
            let time = rfc3339::parse(&text)
                .ok_or_else(|| Failure::invalid(format!("{name} {text:?} is not a time like 2026-01-02T03:04:05Z")))?;
            Ok(Some(millis(time)))
        };
        let filter = Filter {
            domain: arguments.domain.filter(|domain| !domain.is_empty()),
            level,
            after: time("after", arguments.after)?,
            before: time("before", arguments.before)?,
            substr: arguments.substr.filter(|text| !text.is_empty()),
        };
        let lines = arguments.line_limit.map_or(MOST_LINES, |limit| usize::try_from(limit).unwrap_or_default());
        let io_bytes = u64::try_from(arguments.io_limit.unwrap_or(DEFAULT_IO_BYTES)).unwrap_or_default();
        Ok(Self { filter, lines: lines.min(MOST_LINES), io_bytes, follow: arguments.follow })
    }
}

/// What the filter looks at of a line.
#[derive(Deserialize)]
struct Head<'a> {
    t: u64,
    #[serde(borrow)]
    l: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    dom: std::borrow::Cow<'a, str>,
}

impl Filter {
    /// The time of `line`, if it is wanted.
    fn accepts(&self, line: &str) -> Option<u64> {
        if self.substr.as_ref().is_some_and(|wanted| !line.contains(wanted.as_str())) {
            return None;
        }
        let head: Head<'_> = serde_json::from_str(line).ok()?;
        let level = LEVELS.iter().position(|known| *known == head.l).unwrap_or_default();
        let in_time = self.after.is_none_or(|after| head.t >= after) && self.before.is_none_or(|end| head.t < end);
        let in_domain = self.domain.as_ref().is_none_or(|domain| *domain == head.dom);
        (level <= self.level && in_time && in_domain).then_some(head.t)
    }
}

/// The lines that answer `options`, each without its end.
pub async fn open(pm3: &Pm3, options: Options) -> impl Stream<Item = Line> + Send + use<> {
    let (files, live) = pm3.history.read().await;
    let Options { filter, lines, io_bytes, follow } = options;
    let of_history = filter.clone();
    let history = tokio::task::spawn_blocking(move || read_history(files, &of_history, lines, io_bytes));
    // The blocking pool only refuses while the runtime ends.
    let history = history.await.unwrap_or_default();
    let live = follow.then(|| following(live, filter));
    stream::iter(history).chain(stream::iter(live).flatten())
}

/// The newest `most` lines that are wanted, ordered by time.
fn read_history(files: Vec<Snapshot>, filter: &Filter, most: usize, io_bytes: u64) -> Vec<Line> {
    let mut found: Vec<(u64, Line)> = Vec::new();
    let mut left = io_bytes;
    for snapshot in files {
        if found.len() >= most || left == 0 {
            break;
        }
        let mut newest_first = |line: &str| {
            if let Some(time) = filter.accepts(line) {
                found.push((time, line.into()));
            }
            found.len() < most
        };
        // A file that cannot be read any more has nothing to say.
        left = each_line_backwards(snapshot, left, &mut newest_first).unwrap_or(left);
    }
    found.reverse();
    // Lines of one millisecond keep their order.
    found.sort_by_key(|(time, _)| *time);
    found.into_iter().map(|(_, line)| line).collect()
}

/// Hands over the lines of a file from its end until `take` has enough; returns how many bytes may still be read.
fn each_line_backwards(
    mut snapshot: Snapshot,
    mut left: u64,
    take: &mut impl FnMut(&str) -> bool,
) -> std::io::Result<u64> {
    let mut end = snapshot.bytes;
    // The beginning of a line whose rest was handed over with a later block, or not yet.
    let mut tail: Vec<u8> = Vec::new();
    while end > 0 && left > 0 {
        let length = BLOCK_BYTES.min(end).min(left);
        let mut block = vec![0; usize::try_from(length).unwrap_or_default()];
        snapshot.file.seek(SeekFrom::Start(end - length))?;
        snapshot.file.read_exact(&mut block)?;
        (end, left) = (end - length, left - length);
        block.extend_from_slice(&tail);
        let first_whole =
            if end == 0 { 0 } else { block.iter().position(|b| *b == b'\n').map_or(block.len(), |at| at + 1) };
        for line in block[first_whole..].rsplit(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            if !std::str::from_utf8(line).is_ok_and(&mut *take) {
                return Ok(left);
            }
        }
        block.truncate(first_whole);
        tail = block;
    }
    Ok(left)
}

/// Live lines that are wanted; a reader that was too slow is told how many it missed.
fn following(live: broadcast::Receiver<Line>, filter: Filter) -> impl Stream<Item = Line> + Send {
    stream::unfold((live, filter), |(mut live, filter)| async move {
        loop {
            match live.recv().await {
                Ok(line) if filter.accepts(&line).is_some() => return Some((line, (live, filter))),
                Ok(_unwanted) => {}
                Err(broadcast::error::RecvError::Lagged(missed)) => return Some((gap(missed), (live, filter))),
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    })
}

fn gap(missed: u64) -> Line {
    let now = millis(SystemTime::now());
    let text = format!(
        "{{\"t\":{now},\"l\":\"warn\",\"dom\":\"tail\",\"msg\":\"this reader was too slow: {missed} lines are missing here\",\
         \"dropped\":{missed}}}"
    );
    Arc::from(text)
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn line(t: u64, level: &str, domain: &str) -> String {
        format!("{{\"t\":{t},\"l\":\"{level}\",\"dom\":\"{domain}\",\"msg\":\"m{t}\"}}")
    }

    fn snapshot(lines: &[String]) -> Snapshot {
        let mut file = tempfile::tempfile().expect("a file");
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        file.write_all(text.as_bytes()).expect("written");
        Snapshot { file, bytes: text.len() as u64 }
    }

    #[test]
    fn every_filter_is_applied() {
        let all = Filter { level: 4, ..Filter::default() };
        let check =
            |filter: &Filter, line: &str, wanted: bool| assert_eq!(filter.accepts(line).is_some(), wanted, "{line}");
        check(&all, &line(5, "trace", "dns"), true);
        check(&all, "no json", false);
        check(&Filter { level: 1, ..all.clone() }, &line(5, "info", "dns"), false);
        check(&Filter { level: 1, ..all.clone() }, &line(5, "error", "dns"), true);
        check(&Filter { domain: Some("dn".into()), ..all.clone() }, &line(5, "info", "dns"), false);
        check(&Filter { after: Some(5), before: Some(6), ..all.clone() }, &line(5, "info", "dns"), true);
        check(&Filter { before: Some(5), ..all.clone() }, &line(5, "info", "dns"), false);
        check(&Filter { substr: Some("m5".into()), ..all.clone() }, &line(5, "info", "dns"), true);
        check(&Filter { substr: Some("m6".into()), ..all }, &line(5, "info", "dns"), false);
    }

    #[test]
    fn history_is_the_newest_lines_of_all_files_in_the_order_of_time() {
        let newer = snapshot(&[line(4, "info", "b"), line(3, "info", "b"), line(9, "info", "b")]);
        let older = snapshot(&[line(1, "info", "a"), line(5, "info", "a")]);
        let all = Filter { level: 4, ..Filter::default() };
        let read: Vec<String> =
            read_history(vec![newer, older], &all, 4, 1 << 20).iter().map(ToString::to_string).collect();
        assert_eq!(read, [line(3, "info", "b"), line(4, "info", "b"), line(5, "info", "a"), line(9, "info", "b")]);
    }

    proptest! {
        #[test]
        fn every_line_is_seen_whatever_its_length(lengths in prop::collection::vec(1_usize..40_000, 1..12)) {
            let lines: Vec<String> = lengths.iter().map(|length| "x".repeat(*length)).collect();
            let mut seen = Vec::new();
            let left = each_line_backwards(snapshot(&lines), 1 << 30, &mut |line: &str| { seen.push(line.len()); true });
            seen.reverse();
            prop_assert_eq!(&seen, &lengths);
            let total: usize = lengths.iter().map(|length| length + 1).sum();
            prop_assert_eq!(left.expect("read"), (1 << 30) - total as u64);
        }
    }
}
