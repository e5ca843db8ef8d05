//! The messages of a session, sans-IO: bytes in, whole messages out.
//!
//! `json-rpc` is a stream of JSON objects (JSON-RPC 1.0, 2.0 accepted); frames may hold several or parts of one. `jrpc` is
//! binary: a header of four bytes, little endian, whose highest bit marks a reply and whose rest is the sequence; a string ended
//! by a zero byte (the method, or the error of a reply, empty if there is none); JSON up to a line end.
//!
//! Invariants: no message is larger than [`MAX_MESSAGE_BYTES`] or deeper than [`MAX_DEPTH`]; no byte is scanned twice; what
//! is handed on as JSON is JSON.

mod scan;

use bytes::{Buf as _, Bytes, BytesMut};

use crate::api::error::ApiError;
use crate::api::methods;
use crate::pm3::call::{Outcome, Reply};

/// The largest message.
pub(super) const MAX_MESSAGE_BYTES: usize = 1024 * 1024;
/// Brackets within brackets.
pub(super) const MAX_DEPTH: usize = 128;
const REPLY: u32 = 1 << 31;

/// How messages are framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Codec {
    JsonRpc,
    Jrpc,
}

impl Codec {
    /// By the name that is negotiated.
    pub(super) fn named(name: &str) -> Option<Self> {
        match name {
            "json-rpc" => Some(Self::JsonRpc),
            "jrpc" => Some(Self::Jrpc),
            _ => None,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::JsonRpc => "json-rpc",
            Self::Jrpc => "jrpc",
        }
    }
}

/// Which shape a reply has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    One,
    Two,
}

/// Ties a reply to its call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Id {
    /// JSON as it came.
    Json(Bytes, Version),
    Sequence(u32),
}

/// What the other side sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Message {
    Call {
        id: Id,
        method: String,
        /// The JSON of the one parameter; empty: none.
        parameter: Bytes,
        /// A JSON-RPC 2.0 notification: nobody wants the reply.
        is_notification: bool,
    },
    /// An answer to a call of ours.
    Reply { sequence: Option<u64>, result: Result<Bytes, String> },
    /// A whole message that makes no sense; the session goes on.
    Wrong { id: Id, text: String },
}

/// The stream cannot be made sense of any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    #[error("a message is larger than {MAX_MESSAGE_BYTES} bytes")]
    TooLarge,
    #[error("a message is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    #[error("what came is not a JSON object")]
    NotAnObject,
    #[error("a string is not ended within its message")]
    Unterminated,
}

/// Puts messages together.
#[derive(Debug)]
pub(super) struct Decoder {
    codec: Codec,
    /// Begins with the next message.
    buffer: BytesMut,
    scanner: scan::Scanner,
}

impl Decoder {
    pub(super) fn new(codec: Codec) -> Self {
        Self { codec, buffer: BytesMut::new(), scanner: scan::Scanner::default() }
    }

    /// Takes what came; as it is where nothing waits for more.
    pub(super) fn push(&mut self, bytes: BytesMut) {
        if self.buffer.is_empty() {
            self.buffer = bytes;
        } else {
            self.buffer.extend_from_slice(&bytes);
        }
    }

    /// The next whole message, if there is one.
    ///
    /// # Errors
    /// [`Broken`]; the session is to be closed.
    pub(super) fn next(&mut self) -> Result<Option<Message>, Broken> {
        let message = match self.codec {
            Codec::JsonRpc => self.next_json(),
            Codec::Jrpc => self.next_jrpc(),
        }?;
        if message.is_none() && self.buffer.len() > MAX_MESSAGE_BYTES {
            return Err(Broken::TooLarge);
        }
        if self.buffer.is_empty() {
            // The memory goes back to whoever read into it.
            self.buffer = BytesMut::new();
        }
        Ok(message)
    }

    fn next_json(&mut self) -> Result<Option<Message>, Broken> {
        let Some(range) = self.scanner.find_object(&self.buffer)? else { return Ok(None) };
        if range.len() > MAX_MESSAGE_BYTES {
            return Err(Broken::TooLarge);
        }
        let message = parse_json(&self.buffer[range.clone()]);
        self.buffer.advance(range.end);
        Ok(Some(message))
    }

    fn next_jrpc(&mut self) -> Result<Option<Message>, Broken> {
        let Some((header, rest)) = self.buffer.split_first_chunk::<4>() else { return Ok(None) };
        let Some(line) = rest.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
        let Some(zero) = rest[..line].iter().position(|byte| *byte == 0) else { return Err(Broken::Unterminated) };
        let word = u32::from_le_bytes(*header);
        let text = String::from_utf8_lossy(&rest[..zero]).into_owned();
        let json = Bytes::copy_from_slice(rest[zero + 1..line].trim_ascii());
        self.buffer.advance(4 + line + 1);
        Ok(Some(parse_jrpc(word, text, json)))
    }
}

fn parse_jrpc(word: u32, text: String, json: Bytes) -> Message {
    let id = Id::Sequence(word & !REPLY);
    let is_json = json.is_empty() || scan::is_json(&json);
    if word & REPLY != 0 {
        let result = match (text.is_empty(), is_json) {
            (true, true) => Ok(json),
            (true, false) => Err("the result is not JSON".to_owned()),
            (false, _) => Err(text),
        };
        return Message::Reply { sequence: Some(u64::from(word & !REPLY)), result };
    }
    if !is_json {
        return Message::Wrong { id, text: "jrpc: the parameter is not JSON".to_owned() };
    }
    Message::Call { id, method: text, parameter: json, is_notification: false }
}

fn parse_json(text: &[u8]) -> Message {
    let version = |members: &scan::Members<'_>| match members.jsonrpc {
        Some(b"\"2.0\"") => Version::Two,
        Some(_) | None => Version::One,
    };
    let null = || Bytes::from_static(b"null");
    let Some(members) = scan::members(text) else {
        return Message::Wrong { id: Id::Json(null(), Version::One), text: "jsonrpc: this is not JSON".to_owned() };
    };
    let version = version(&members);
    let id = Id::Json(members.id.map_or_else(null, Bytes::copy_from_slice), version);
    let Some(method) = members.method else {
        if members.result.is_some() || members.error.is_some() {
            return reply(&members);
        }
        return Message::Wrong { id, text: "jsonrpc: the member method is missing".to_owned() };
    };
    let Ok(method) = serde_json::from_slice::<String>(method) else {
        return Message::Wrong { id, text: "jsonrpc: the member method is not a string".to_owned() };
    };
    let parameter = match (members.params.map(|params| (params, params.first())), version) {
        (Some((params, Some(b'['))), _) => scan::first_element(params),
        (Some((params, Some(b'{'))), Version::Two) => Some(params),
        (None, Version::Two) => None,
        (Some((b"null", _)) | None, _) => {
            return Message::Wrong { id, text: "jsonrpc: request body missing params".to_owned() };
        }
        (Some(_), _) => return Message::Wrong { id, text: "jsonrpc: params is not an array".to_owned() },
    };
    let is_notification = version == Version::Two && members.id.is_none();
    Message::Call { id, method, parameter: parameter.map(Bytes::copy_from_slice).unwrap_or_default(), is_notification }
}

fn reply(members: &scan::Members<'_>) -> Message {
    let sequence = members.id.and_then(|id| serde_json::from_slice(id).ok());
    let result = match members.error {
        None | Some(b"null") => Ok(Bytes::copy_from_slice(members.result.unwrap_or(b"null"))),
        Some(error) => Err(serde_json::from_slice::<String>(error)
            .unwrap_or_else(|_object| String::from_utf8_lossy(error).into_owned())),
    };
    Message::Reply { sequence, result }
}

/// Writes the reply to a call, its line end included.
pub(super) fn write_reply(out: &mut Vec<u8>, id: &Id, outcome: Outcome) {
    let outcome = outcome.map_err(ApiError::from);
    match id {
        Id::Json(id, Version::One) => {
            out.extend_from_slice(b"{\"id\":");
            out.extend_from_slice(id);
            match outcome {
                Ok(reply) => {
                    out.extend_from_slice(b",\"result\":");
                    write_value(out, reply);
                    out.extend_from_slice(b",\"error\":null}\n");
                }
                Err(error) => {
                    out.extend_from_slice(b",\"result\":null,\"error\":");
                    write_string(out, &error_line(&error));
                    out.extend_from_slice(b"}\n");
                }
            }
        }
        Id::Json(id, Version::Two) => {
            out.extend_from_slice(b"{\"jsonrpc\":\"2.0\",\"id\":");
            out.extend_from_slice(id);
            match outcome {
                Ok(reply) => {
                    out.extend_from_slice(b",\"result\":");
                    write_value(out, reply);
                }
                Err(error) => write_error_object(out, &error),
            }
            out.extend_from_slice(b"}\n");
        }
        Id::Sequence(sequence) => {
            out.extend_from_slice(&(sequence | REPLY).to_le_bytes());
            match outcome {
                Ok(reply) => {
                    out.push(0);
                    write_value(out, reply);
                }
                Err(error) => {
                    let text = error_line(&error);
                    out.extend(text.trim_end().bytes().filter(|byte| !matches!(byte, 0 | b'\n')));
                    out.extend_from_slice(b"\0null");
                }
            }
            out.push(b'\n');
        }
    }
}

/// Writes a call of ours.
pub(super) fn write_call(out: &mut Vec<u8>, codec: Codec, sequence: u32, method: &str, parameters: &[&[u8]]) {
    match codec {
        Codec::JsonRpc => {
            out.extend_from_slice(b"{\"method\":");
            write_string(out, method);
            out.extend_from_slice(b",\"params\":[");
            out.extend_from_slice(&parameters.join(&b','));
            out.extend_from_slice(format!("],\"id\":{sequence}}}\n").as_bytes());
        }
        Codec::Jrpc => {
            out.extend_from_slice(&(sequence & !REPLY).to_le_bytes());
            out.extend(method.bytes().filter(|byte| *byte != 0));
            out.push(0);
            // A line end within JSON is white space; strings hold it escaped.
            out.extend(parameters.first().into_iter().flat_map(|first| first.iter()).filter(|byte| **byte != b'\n'));
            out.push(b'\n');
        }
    }
}

fn write_value(out: &mut Vec<u8>, reply: Reply) {
    match reply {
        Reply::Json(value) | Reply::Raw(value) => {
            out.extend(value.iter().filter(|byte| !matches!(byte, b'\n' | b'\r')));
        }
        Reply::Nothing => out.extend_from_slice(b"{}"),
        Reply::Other { bytes, .. } => write_string(out, &String::from_utf8_lossy(&bytes)),
    }
}

/// `error STATUS: BODY`, as HTTP would have answered.
fn error_line(error: &ApiError) -> String {
    let (status, text) = methods::error_text(error);
    format!("error {}: {}\n", status.as_u16(), String::from_utf8_lossy(&text))
}

fn write_error_object(out: &mut Vec<u8>, error: &ApiError) {
    use crate::api::error::ErrorCode;
    let number = match error.code {
        ErrorCode::InvalidArgument => -32602,
        ErrorCode::NotFound | ErrorCode::MethodNotAllowed => -32601,
        ErrorCode::Forbidden
        | ErrorCode::Conflict
        | ErrorCode::TooLarge
        | ErrorCode::Timeout
        | ErrorCode::Busy
        | ErrorCode::NotReady
        | ErrorCode::BadGateway
        | ErrorCode::Failed => -32000,
    };
    out.extend_from_slice(format!(",\"error\":{{\"code\":{number},\"message\":").as_bytes());
    write_string(out, &error.error);
    out.extend_from_slice(b",\"data\":");
    out.extend_from_slice(&methods::error_text(error).1);
    out.push(b'}');
}

fn write_string(out: &mut Vec<u8>, text: &str) {
    // A string can always be written.
    out.extend_from_slice(&serde_json::to_vec(text).unwrap_or_default());
}

#[cfg(test)]
mod tests;
