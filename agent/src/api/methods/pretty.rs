//! Compact JSON, indented by two spaces. Members keep their order and numbers their digits. Pure.

/// `json` with line ends and two spaces a level; text that is not JSON comes out as some text.
pub(in crate::api) fn indent(json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len() * 2);
    let mut depth = 0_usize;
    let (mut in_string, mut escaped) = (false, false);
    for (at, &byte) in json.iter().enumerate() {
        if in_string {
            out.push(byte);
            (in_string, escaped) = match (byte, escaped) {
                (_, true) => (true, false),
                (b'\\', false) => (true, true),
                (b'"', false) => (false, false),
                _ => (true, false),
            };
            continue;
        }
        let is_empty = |close| json.get(at + 1) == Some(&close);
        match byte {
            b'"' => {
                in_string = true;
                out.push(byte);
            }
            b'{' | b'[' => {
                out.push(byte);
                let close = if byte == b'{' { b'}' } else { b']' };
                depth += 1;
                if !is_empty(close) {
                    new_line(&mut out, depth);
                }
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                if !matches!(out.last(), Some(b'{' | b'[')) {
                    new_line(&mut out, depth);
                }
                out.push(byte);
            }
            b',' => {
                out.push(byte);
                new_line(&mut out, depth);
            }
            b':' => out.extend_from_slice(b": "),
            b' ' | b'\n' | b'\r' | b'\t' => {}
            other => out.push(other),
        }
    }
    out
}

fn new_line(out: &mut Vec<u8>, depth: usize) {
    out.push(b'\n');
    out.extend(std::iter::repeat_n(b"  ".as_slice(), depth).flatten());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_looks_as_serde_json_would_write_it() {
        let value = serde_json::json!({
            "a": [], "b": {}, "c": [1, [2.5, null], {"d": "x\"{,:[\\"}], "e": true
        });
        let compact = serde_json::to_vec(&value).expect("JSON");
        let expected = serde_json::to_string_pretty(&value).expect("JSON");
        assert_eq!(String::from_utf8(indent(&compact)).expect("text"), expected);
    }
}
