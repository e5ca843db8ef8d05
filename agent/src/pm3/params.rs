//! Query and body as typed parameters: the query first, then the members of a JSON object over it.
//!
//! Pure. A query key that the method does not know is not its business (`pretty`, a cache breaker); a member of the body that
//! it does not know is an error that names it.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::call::Call;
use super::failure::Failure;

/// One parameter a method takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    pub name: &'static str,
    pub kind: FieldKind,
}

/// How text of a query is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldKind {
    Text,
    Bool,
    Number,
    /// JSON text; it comes in the body as a rule.
    Json,
}

/// Reads the parameters of `call` as `T`, whose members are `fields`.
///
/// # Errors
/// A body that is no JSON object, a member that is not known or of the wrong type, each named.
pub fn read<T: DeserializeOwned>(method: &str, fields: &[Field], call: &Call) -> Result<T, Failure> {
    let mut members = from_query(fields, call.query.as_deref().unwrap_or_default());
    if !call.body.trim_ascii().is_empty() {
        let body: Map<String, Value> = serde_json::from_slice(&call.body)
            .map_err(|error| Failure::invalid(format!("the body is not a JSON object: {error}")))?;
        for (name, value) in body {
            let Some(field) = fields.iter().find(|field| field.name == name) else {
                return Err(unknown(method, fields, &name));
            };
            members.insert(field.name.to_owned(), value);
        }
    }
    serde_json::from_value(Value::Object(members))
        .map_err(|error| Failure::invalid(format!("the arguments of {method} are wrong: {error}")))
}

fn unknown(method: &str, fields: &[Field], name: &str) -> Failure {
    let known: Vec<&str> = fields.iter().map(|field| field.name).collect();
    let hint = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    Failure::invalid(format!("{method} takes no argument {name:?}; it takes {hint}"))
}

fn from_query(fields: &[Field], query: &str) -> Map<String, Value> {
    let mut members = Map::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let Some(field) = fields.iter().find(|field| field.name.eq_ignore_ascii_case(name)) else { continue };
        if let Some(value) = decode(value).and_then(|text| field.kind.read(text)) {
            members.insert(field.name.to_owned(), value);
        }
    }
    members
}

impl FieldKind {
    fn read(self, text: String) -> Option<Value> {
        match self {
            Self::Text => Some(Value::String(text)),
            Self::Bool => match text.as_str() {
                "" | "1" | "true" => Some(Value::Bool(true)),
                "0" | "false" => Some(Value::Bool(false)),
                _ => None,
            },
            Self::Number => text.parse::<i64>().ok().map(Value::from),
            Self::Json => serde_json::from_str(&text).ok(),
        }
    }
}

/// Percent-decoded text, `+` as a space; `None` for what is not UTF-8 or ends within an escape.
pub fn decode(text: &str) -> Option<String> {
    decode_with(text, true)
}

/// A part of a path with everything but letters, digits, `-._~` and the slash as `%` and two digits.
pub fn encode_path(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// Percent-decoded text of a path, where `+` is itself.
pub fn decode_path(text: &str) -> Option<String> {
    decode_with(text, false)
}

fn decode_with(text: &str, plus_is_space: bool) -> Option<String> {
    if !text.contains(['%', '+']) {
        return Some(text.to_owned());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' if plus_is_space => b' ',
            b'%' => (hex(rest.next()?)? << 4) | hex(rest.next()?)?,
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FIELDS: &[Field] = &[
        Field { name: "ip", kind: FieldKind::Text },
        Field { name: "invalidate", kind: FieldKind::Bool },
        Field { name: "line_limit", kind: FieldKind::Number },
    ];

    #[test]
    fn a_query_is_read_by_the_kind_of_its_field_and_without_regard_to_case() {
        let members = from_query(FIELDS, "IP=1.1.1.1%20&invalidate&line_limit=7&pretty=1&line_limit=x");
        assert_eq!(
            Value::Object(members),
            serde_json::json!({ "ip": "1.1.1.1 ", "invalidate": true, "line_limit": 7 })
        );
    }

    #[test]
    fn half_an_escape_and_bytes_that_are_no_text_are_refused() {
        for wrong in ["%", "%4", "%zz", "%ff"] {
            assert_eq!(decode(wrong), None, "{wrong}");
        }
        assert_eq!(decode_path("a+b%2Fc").as_deref(), Some("a+b/c"));
    }

    proptest! {
        #[test]
        fn any_query_is_read_without_a_panic(query in ".{0,200}") {
            from_query(FIELDS, &query);
        }

        #[test]
        fn what_is_escaped_comes_back(text in "\\PC{0,40}") {
            let escaped: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
            prop_assert_eq!(decode(&escaped), Some(text.clone()));
            prop_assert_eq!(decode_path(&escaped), Some(text));
        }
    }
}
