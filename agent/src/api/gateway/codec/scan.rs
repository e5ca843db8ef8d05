//! Where a JSON object ends, and where its members are, without building it. Pure; no recursion, so depth costs no stack.

use std::ops::Range;

use super::{Broken, MAX_DEPTH};

/// Finds whole objects in a stream. Remembers how far it looked.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    /// Where the object begins, once it does.
    begin: Option<usize>,
    at: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Scanner {
    /// The first whole object of `text`, which is what it was last time with more at its end.
    pub(super) fn find_object(&mut self, text: &[u8]) -> Result<Option<Range<usize>>, Broken> {
        let begin = match self.begin {
            Some(begin) => begin,
            None => {
                let Some(first) = text.iter().position(|byte| !byte.is_ascii_whitespace()) else { return Ok(None) };
                if text[first] != b'{' {
                    return Err(Broken::NotAnObject);
                }
                self.begin = Some(first);
                self.at = first;
                first
            }
        };
        while let Some(&byte) = text.get(self.at) {
            self.at += 1;
            if self.in_string {
                (self.in_string, self.escaped) = after_string_byte(byte, self.escaped);
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' if self.depth == MAX_DEPTH => return Err(Broken::TooDeep),
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        let range = begin..self.at;
                        *self = Self::default();
                        return Ok(Some(range));
                    }
                }
                _ => {}
            }
        }
        Ok(None)
    }
}

/// Whether the string goes on, and whether the next byte is escaped.
fn after_string_byte(byte: u8, escaped: bool) -> (bool, bool) {
    match (byte, escaped) {
        (_, true) => (true, false),
        (b'\\', false) => (true, true),
        (b'"', false) => (false, false),
        _ => (true, false),
    }
}

/// Whether `text` is one JSON value.
pub(super) fn is_json(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok_and(|text| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok())
}

/// The members that matter, as they came.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Members<'a> {
    pub(super) jsonrpc: Option<&'a [u8]>,
    pub(super) id: Option<&'a [u8]>,
    pub(super) method: Option<&'a [u8]>,
    pub(super) params: Option<&'a [u8]>,
    pub(super) result: Option<&'a [u8]>,
    pub(super) error: Option<&'a [u8]>,
}

/// The members of an object; `None` if `text` is not JSON. Of two members of one name the later counts.
pub(super) fn members(text: &[u8]) -> Option<Members<'_>> {
    if !is_json(text) {
        return None;
    }
    let mut found = Members::default();
    // It is an object, so it has two braces.
    let mut rest = text.trim_ascii().strip_prefix(b"{")?;
    while let [b'"', ..] = rest.trim_ascii_start() {
        rest = rest.trim_ascii_start();
        let (name, after) = rest.split_at(value_length(rest));
        let after = after.trim_ascii_start().strip_prefix(b":")?.trim_ascii_start();
        let (value, after) = after.split_at(value_length(after));
        let value = value.trim_ascii_end();
        match name {
            b"\"jsonrpc\"" => found.jsonrpc = Some(value),
            b"\"id\"" => found.id = Some(value),
            b"\"method\"" => found.method = Some(value),
            b"\"params\"" => found.params = Some(value),
            b"\"result\"" => found.result = Some(value),
            b"\"error\"" => found.error = Some(value),
            _ => {}
        }
        rest = after.trim_ascii_start().strip_prefix(b",").unwrap_or(b"");
    }
    Some(found)
}

/// The first element of an array; `None` if it is empty.
pub(super) fn first_element(array: &[u8]) -> Option<&[u8]> {
    let inside = array.strip_prefix(b"[")?.trim_ascii_start();
    if inside.starts_with(b"]") {
        return None;
    }
    Some(inside[..value_length(inside)].trim_ascii_end())
}

/// How long the value at the beginning of `text` is; `text` goes on behind it.
fn value_length(text: &[u8]) -> usize {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for (at, &byte) in text.iter().enumerate() {
        if in_string {
            (in_string, escaped) = after_string_byte(byte, escaped);
            if !in_string && depth == 0 {
                return at + 1;
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 0 => return at,
            b'}' | b']' => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            b',' if depth == 0 => return at,
            _ => {}
        }
    }
    text.len()
}
