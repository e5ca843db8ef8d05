//! The names a request is followed by: W3C trace context (`traceparent`) and the ray id (`x-ray`).
//!
//! Names are unique, not secret: a random beginning of this process and a counter, mixed.

use std::sync::atomic::{AtomicU64, Ordering};

use axum::http::HeaderValue;

use super::balance::mix;

/// Gives names out.
#[derive(Debug)]
pub(in crate::api::gateway) struct Names {
    seed: u64,
    count: AtomicU64,
    /// `-` and the first three letters of the node.
    node: [u8; 4],
}

const HEX: &[u8; 16] = b"0123456789abcdef";

impl Names {
    pub(in crate::api::gateway) fn new(node: &str) -> Self {
        let mut seed = [0; 8];
        // Without random bytes the names are unique in this process only.
        aws_lc_rs::rand::fill(&mut seed).ok();
        let mut letters = [b'-', b'x', b'x', b'x'];
        for (letter, byte) in letters[1..].iter_mut().zip(node.bytes()) {
            *letter = byte.to_ascii_uppercase();
        }
        Self { seed: u64::from_ne_bytes(seed), count: AtomicU64::new(0), node: letters }
    }

    fn next(&self) -> u64 {
        mix(self.seed ^ self.count.fetch_add(1, Ordering::Relaxed)).max(1)
    }

    /// A new ray: 16 hexadecimal digits and the node.
    pub(super) fn ray(&self) -> HeaderValue {
        let mut text = [0; 20];
        write_hex(&mut text[..16], self.next());
        text[16..].copy_from_slice(&self.node);
        value(&text)
    }

    /// The ray given, if it is one, else a new one.
    pub(in crate::api::gateway) fn ray_or(&self, given: Option<&HeaderValue>) -> HeaderValue {
        let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-';
        let is_ray = |ray: &&HeaderValue| (1..=64).contains(&ray.len()) && ray.as_bytes().iter().all(is_plain);
        given.filter(is_ray).cloned().unwrap_or_else(|| self.ray())
    }

    /// The trace context to pass on: the trace of `given` if it is one, else a new one, with a span of ours.
    pub(in crate::api::gateway) fn trace(&self, given: Option<&HeaderValue>) -> HeaderValue {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-01";
        match given.and_then(|given| trace_of(given.as_bytes())) {
            Some((trace, flags)) => {
                text[3..35].copy_from_slice(trace);
                text[53..].copy_from_slice(flags);
            }
            None => {
                write_hex(&mut text[3..19], self.next());
                write_hex(&mut text[19..35], self.next());
            }
        }
        write_hex(&mut text[36..52], self.next());
        value(&text)
    }
}

/// Trace and flags of a `traceparent` of a version that is understood.
fn trace_of(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let is_hex = |part: &[u8]| part.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let is_zero = |part: &[u8]| part.iter().all(|byte| *byte == b'0');
    let dashes = text.len() == 55 && [2, 35, 52].iter().all(|at| text[*at] == b'-');
    if !dashes || &text[..2] != b"00" {
        return None;
    }
    let (trace, span, flags) = (&text[3..35], &text[36..52], &text[53..]);
    let is_right = [trace, span, flags].into_iter().all(is_hex) && !is_zero(trace) && !is_zero(span);
    is_right.then_some((trace, flags))
}

fn write_hex(out: &mut [u8], number: u64) {
    for (at, digit) in out.iter_mut().enumerate() {
        *digit = HEX[((number >> (60 - 4 * at)) & 0xf) as usize];
    }
}

fn value(text: &[u8]) -> HeaderValue {
    // Letters of a node's name, digits and dashes.
    HeaderValue::from_bytes(text).unwrap_or(HeaderValue::from_static("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIVEN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_trace_is_kept_and_its_span_is_ours() {
        let names = Names::new("alpha");
        let passed = names.trace(Some(&HeaderValue::from_static(GIVEN)));
        let text = passed.to_str().expect("text");
        assert!(text.starts_with(&GIVEN[..36]) && text.ends_with("-01") && text[36..52] != GIVEN[36..52], "{text}");
        assert!(trace_of(text.as_bytes()).is_some());
    }

    #[test]
    fn what_is_no_trace_context_is_replaced() {
        let names = Names::new("al");
        for wrong in [
            "",
            "x",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
        ] {
            let passed = names.trace(Some(&HeaderValue::from_str(wrong).expect("a value")));
            assert!(trace_of(passed.as_bytes()).is_some_and(|(trace, _)| trace != &GIVEN.as_bytes()[3..35]), "{wrong}");
        }
        let (one, two) = (names.ray(), names.ray());
        assert!(one != two && one.len() == 20 && one.as_bytes().ends_with(b"-ALx"), "{one:?}");
    }
}
