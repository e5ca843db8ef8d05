//! Durations, sizes and ports as people write them in a definition. Pure.
//!
//! A number is milliseconds or bytes; text carries a unit. Both forms are accepted wherever a value of the kind is.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::{Deserializer, Error as _, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// A time span: `1600` (milliseconds), `"500ms"`, `"5s"`, `"2m"`, `"1h"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl Span {
    /// This many milliseconds.
    pub const fn millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let factor = match unit.trim() {
            "" | "ms" => 1.0,
            "s" => 1e3,
            "m" | "min" => 6e4,
            "h" => 3.6e6,
            "d" => 8.64e7,
            _ => return None,
        };
        let millis = number.parse::<f64>().ok()? * factor;
        // A hundred years are for ever, and fit everywhere.
        (millis.is_finite() && (0.0..3.2e12).contains(&millis)).then(|| Self::millis(millis as u64))
    }
}

/// An amount of memory or disk: `1048576` (bytes), `"512K"`, `"512M"`, `"2G"`, `"1.5GB"`; 1024-based.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl Size {
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let shift = match unit.trim().to_ascii_uppercase().as_str() {
            "" | "B" => 0,
            "K" | "KB" | "KIB" => 10,
            "M" | "MB" | "MIB" => 20,
            "G" | "GB" | "GIB" => 30,
            "T" | "TB" | "TIB" => 40,
            _ => return None,
        };
        let bytes = number.parse::<f64>().ok()? * (1_u64 << shift) as f64;
        (bytes.is_finite() && (0.0..9e18).contains(&bytes)).then_some(Self(bytes as u64))
    }
}

/// How many instances: a number, or `"max"` for one a processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    Exactly(u32),
    Processors,
}

/// The ports of a process: `3000`, `"3000"`, `"3000-3003"`, `"auto:5000-5100"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ports {
    /// One; in a cluster the first instance has it.
    One(u16),
    /// One for each instance, the first for the first.
    Range { first: u16, last: u16 },
    /// For each instance the first that is free when it starts.
    Free { first: u16, last: u16 },
}

impl Ports {
    /// The port that `text` names.
    pub fn parse(text: &str) -> Option<Self> {
        let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port != 0);
        let range = |text: &str| {
            let (first, last) = text.split_once('-')?;
            let (first, last) = (port(first)?, port(last)?);
            (first <= last).then_some((first, last))
        };
        if let Some(rest) = text.trim().strip_prefix("auto:") {
            return range(rest).map(|(first, last)| Self::Free { first, last });
        }
        port(text).map(Self::One).or_else(|| range(text).map(|(first, last)| Self::Range { first, last }))
    }

    /// The ports that instance `index` may have, in the order of preference; empty: it has none.
    pub fn of_instance(self, index: u32) -> std::ops::RangeInclusive<u16> {
        #[expect(clippy::reversed_empty_ranges, reason = "an empty range says that there is none")]
        const NONE: std::ops::RangeInclusive<u16> = 1..=0;
        match self {
            Self::One(port) if index == 0 => port..=port,
            Self::One(_) => NONE,
            Self::Range { first, last } => match u16::try_from(index).ok().and_then(|index| first.checked_add(index)) {
                Some(port) if port <= last => port..=port,
                Some(_) | None => NONE,
            },
            Self::Free { first, last } => first..=last,
        }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(port) => write!(f, "{port}"),
            Self::Range { first, last } => write!(f, "{first}-{last}"),
            Self::Free { first, last } => write!(f, "auto:{first}-{last}"),
        }
    }
}

/// Reads a number or text as `T`; `what` says in an error what is accepted.
struct Either<T> {
    what: &'static str,
    number: fn(u64) -> Option<T>,
    text: fn(&str) -> Option<T>,
}

impl<T> Visitor<'_> for Either<T> {
    type Value = T;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<T, E> {
        (self.number)(value).ok_or_else(|| E::custom(format!("{value} is not {}", self.what)))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<T, E> {
        let number = u64::try_from(value).ok().and_then(self.number);
        number.ok_or_else(|| E::custom(format!("{value} is not {}", self.what)))
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<T, E> {
        (self.text)(value).ok_or_else(|| E::custom(format!("{value:?} is not {}", self.what)))
    }
}

macro_rules! either {
    ($name:ident, $what:literal, $number:expr, $text:expr) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(Either { what: $what, number: $number, text: $text })
            }
        }
    };
}

either!(
    Span,
    "a time in milliseconds, or text like \"500ms\", \"5s\", \"2m\", \"1h\"",
    |millis| (millis < 3_200_000_000_000).then(|| Self::millis(millis)),
    Self::parse
);
either!(Size, "a number of bytes, or text like \"512K\", \"300M\", \"2G\"", |bytes| Some(Self(bytes)), Self::parse);
either!(
    Count,
    "a number of instances from 1 to 1000, or \"max\"",
    |count| u32::try_from(count).ok().filter(|count| (1..=1000).contains(count)).map(Self::Exactly),
    |text| match text {
        "max" => Some(Self::Processors),
        text => text.parse().ok().filter(|count| (1..=1000).contains(count)).map(Self::Exactly),
    }
);
either!(
    Ports,
    "a port from 1 to 65535, a range like \"3000-3003\", or \"auto:5000-5100\"",
    |port| u16::try_from(port).ok().filter(|port| *port != 0).map(Self::One),
    Self::parse
);

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX))
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl Serialize for Count {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Exactly(count) => serializer.serialize_u32(*count),
            Self::Processors => serializer.serialize_str("max"),
        }
    }
}

impl Serialize for Ports {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Arguments: a list, or one line that is cut into words as a shell would, without anything else a shell does.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(transparent)]
pub struct Words(pub Vec<String>);

#[derive(Deserialize)]
#[serde(untagged)]
enum WordsForm {
    Line(String),
    List(Vec<String>),
}

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match WordsForm::deserialize(deserializer) {
            Ok(WordsForm::List(words)) => Ok(Self(words)),
            Ok(WordsForm::Line(line)) => split(&line).map(Self).map_err(D::Error::custom),
            Err(_neither) => Err(D::Error::custom("expected a list of texts or one line")),
        }
    }
}

/// Whether and which files a process is restarted for: `true`, a path, or a list of them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "WatchForm", into = "WatchForm")]
pub enum Watch {
    #[default]
    No,
    /// Its working directory.
    Directory,
    /// Below its working directory unless they are absolute.
    Paths(Vec<PathBuf>),
}

#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "watch is true, a path, or a list of paths")]
enum WatchForm {
    Switch(bool),
    One(PathBuf),
    List(Vec<PathBuf>),
}

impl From<WatchForm> for Watch {
    fn from(form: WatchForm) -> Self {
        match form {
            WatchForm::Switch(false) => Self::No,
            WatchForm::Switch(true) => Self::Directory,
            WatchForm::One(path) => Self::Paths(vec![path]),
            WatchForm::List(paths) => Self::Paths(paths),
        }
    }
}

impl From<Watch> for WatchForm {
    fn from(watch: Watch) -> Self {
        match watch {
            Watch::No => Self::Switch(false),
            Watch::Directory => Self::Switch(true),
            Watch::Paths(paths) => Self::List(paths),
        }
    }
}

/// Patterns of paths: one or a list.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "PatternsForm")]
pub struct Patterns(pub Vec<String>);

#[derive(Deserialize)]
#[serde(untagged, expecting = "ignore_watch is a pattern or a list of patterns")]
enum PatternsForm {
    One(String),
    List(Vec<String>),
}

impl From<PatternsForm> for Patterns {
    fn from(form: PatternsForm) -> Self {
        match form {
            PatternsForm::One(pattern) => Self(vec![pattern]),
            PatternsForm::List(patterns) => Self(patterns),
        }
    }
}

/// The words of `line`; quotes and backslashes keep what they enclose together.
///
/// # Errors
/// A quote that is not closed.
pub fn split(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut rest = line.chars();
    while let Some(c) = rest.next() {
        match c {
            ' ' | '\t' | '\n' => words.extend(word.take()),
            '\\' => word.get_or_insert_default().extend(rest.next()),
            '\'' | '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match rest.next() {
                        Some(end) if end == c => break,
                        Some('\\') if c == '"' => word.extend(rest.next()),
                        Some(other) => word.push(other),
                        None => return Err(format!("{line:?} has a quote {c} that is not closed")),
                    }
                }
            }
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T: for<'de> Deserialize<'de>>(json: &str) -> Result<T, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn spans_and_sizes_take_numbers_and_units() {
        assert_eq!(read("1600"), Ok(Span::millis(1600)));
        assert_eq!(read("\"1.5s\""), Ok(Span::millis(1500)));
        assert_eq!(read("\"512M\""), Ok(Size(512 << 20)));
        assert_eq!(read("1000000"), Ok(Size(1_000_000)));
        assert!(read::<Span>("\"5 fortnights\"").is_err_and(|error| error.contains("\"5s\"")));
        assert!(read::<Size>("-1").is_err());
    }

    #[test]
    fn ports_come_as_number_text_range_and_auto() {
        assert_eq!(read("3000"), Ok(Ports::One(3000)));
        assert_eq!(read("\"3000\""), Ok(Ports::One(3000)));
        assert_eq!(read("\"3000-3003\""), Ok(Ports::Range { first: 3000, last: 3003 }));
        assert_eq!(read("\"auto:5000-5100\""), Ok(Ports::Free { first: 5000, last: 5100 }));
        for wrong in ["0", "65536", "\"3003-3000\"", "\"x\"", "\"auto:1\""] {
            assert!(read::<Ports>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_instance_of_a_range_has_its_own_port() {
        let range = Ports::Range { first: 3000, last: 3001 };
        assert_eq!([0, 1, 2].map(|index| range.of_instance(index).next()), [Some(3000), Some(3001), None]);
        assert_eq!(Ports::One(1).of_instance(1).next(), None);
    }

    #[test]
    fn what_is_watched_is_a_switch_a_path_or_a_list() {
        assert_eq!(read("false"), Ok(Watch::No));
        assert_eq!(read("true"), Ok(Watch::Directory));
        assert_eq!(read("\"lib\""), Ok(Watch::Paths(vec!["lib".into()])));
        let two = Watch::Paths(vec!["a".into(), "b".into()]);
        assert_eq!(read(&serde_json::to_string(&two).expect("written")), Ok(two));
        assert!(read::<Watch>("7").is_err_and(|error| error.contains("a list of paths")));
        assert_eq!(read("\"*.log\""), Ok(Patterns(vec!["*.log".to_owned()])));
    }

    #[test]
    fn a_line_is_cut_as_a_shell_cuts_it() {
        assert_eq!(
            split(r#"a 'b c' "d \" e" f\ g ''"#),
            Ok(["a", "b c", "d \" e", "f g", ""].map(str::to_owned).to_vec())
        );
        assert!(split("a 'b").is_err());
    }
}
