use proptest::prelude::*;

use super::*;
use crate::foundation::mutate::edited;
use crate::pm3::failure::{Failure, Kind};

fn decode(codec: Codec, chunks: &[&[u8]]) -> Result<Vec<Message>, Broken> {
    let mut decoder = Decoder::new(codec);
    let mut messages = Vec::new();
    for chunk in chunks {
        decoder.push((*chunk).into());
        while let Some(message) = decoder.next()? {
            messages.push(message);
        }
    }
    Ok(messages)
}

fn one(text: &str) -> Message {
    let mut messages = decode(Codec::JsonRpc, &[text.as_bytes()]).expect("whole");
    assert_eq!(messages.len(), 1, "{text}");
    messages.remove(0)
}

fn call(id: &str, version: Version, method: &str, parameter: &str) -> Message {
    Message::Call {
        id: Id::Json(Bytes::copy_from_slice(id.as_bytes()), version),
        method: method.to_owned(),
        parameter: Bytes::copy_from_slice(parameter.as_bytes()),
        is_notification: false,
    }
}

#[test]
fn the_shapes_of_the_document_are_read() {
    assert_eq!(one(r#"{"id":7,"method":"/ping","params":[]}"#), call("7", Version::One, "/ping", ""));
    assert_eq!(
        one(r#"{"id":"a","method":"GET /kv/x","params":[{"a":[1,"]"]}, 2]}"#),
        call("\"a\"", Version::One, "GET /kv/x", r#"{"a":[1,"]"]}"#)
    );
    assert_eq!(one(r#"{ "method" : "/ping" , "params" : [ null ] }"#), call("null", Version::One, "/ping", "null"));
    assert_eq!(
        one(r#"{"jsonrpc":"2.0","id":1,"method":"/ipinfo","params":{"ip":"x"}}"#),
        call("1", Version::Two, "/ipinfo", r#"{"ip":"x"}"#)
    );
    assert_eq!(one(r#"{"jsonrpc":"2.0","id":1,"method":"/ping"}"#), call("1", Version::Two, "/ping", ""));
}

#[test]
fn wrong_messages_are_answered_and_the_session_goes_on() {
    for (text, wanted) in [
        (r#"{"id":1,"method":"/ping"}"#, "missing params"),
        (r#"{"id":1,"method":"/ping","params":null}"#, "missing params"),
        (r#"{"id":1,"method":"/ping","params":{}}"#, "not an array"),
        (r#"{"id":1,"method":7,"params":[]}"#, "not a string"),
        (r#"{"id":1,"params":[]}"#, "method is missing"),
        (r#"{"id":1,}"#, "not JSON"),
        (r#"{"id":01,"method":"x","params":[]}"#, "not JSON"),
    ] {
        let Message::Wrong { text: said, .. } = one(text) else { panic!("{text}") };
        assert!(said.contains(wanted), "{text}: {said}");
    }
}

#[test]
fn what_is_no_object_or_too_deep_or_too_large_ends_the_session() {
    assert_eq!(decode(Codec::JsonRpc, &[b"[1]"]), Err(Broken::NotAnObject));
    assert_eq!(decode(Codec::JsonRpc, &[b"  x"]), Err(Broken::NotAnObject));
    assert_eq!(decode(Codec::JsonRpc, &[br#"{"a":[}]}"#]), Err(Broken::NotAnObject), "what is left has no beginning");
    let bomb = format!("{{\"a\":{}", "[".repeat(100_000));
    assert_eq!(decode(Codec::JsonRpc, &[bomb.as_bytes()]), Err(Broken::TooDeep));
    let large = format!("{{\"a\":\"{}", "x".repeat(MAX_MESSAGE_BYTES + 1));
    assert_eq!(decode(Codec::JsonRpc, &[large.as_bytes()]), Err(Broken::TooLarge));
    assert_eq!(decode(Codec::Jrpc, &[&vec![1; MAX_MESSAGE_BYTES + 1]]), Err(Broken::TooLarge));
    assert_eq!(decode(Codec::Jrpc, &[b"\x01\0\0\0/ping\n"]), Err(Broken::Unterminated));
}

#[test]
fn jrpc_frames_are_read_and_written() {
    let Ok(messages) = decode(Codec::Jrpc, &[b"\x05\0\0\0/ping\0\n\x06\0\0", b"\0/ipinfo\0{\"ip\":\"::1\"}\n"]) else {
        panic!()
    };
    let wanted = |sequence, method: &str, parameter: &str| Message::Call {
        id: Id::Sequence(sequence),
        method: method.to_owned(),
        parameter: Bytes::copy_from_slice(parameter.as_bytes()),
        is_notification: false,
    };
    assert_eq!(messages, [wanted(5, "/ping", ""), wanted(6, "/ipinfo", "{\"ip\":\"::1\"}")]);
    let mut out = Vec::new();
    write_reply(&mut out, &Id::Sequence(5), Ok(Reply::Json(Bytes::from_static(b"\"a\""))));
    assert_eq!(out, b"\x05\0\0\x80\0\"a\"\n");
    let read = decode(Codec::Jrpc, &[&out]).expect("whole");
    assert_eq!(read, [Message::Reply { sequence: Some(5), result: Ok(Bytes::from_static(b"\"a\"")) }]);
}

#[test]
fn replies_have_the_shape_of_their_version() {
    let write = |version, outcome| {
        let mut out = Vec::new();
        write_reply(&mut out, &Id::Json(Bytes::from_static(b"7"), version), outcome);
        String::from_utf8(out).expect("text")
    };
    let failure = || Err(Failure::new(Kind::NotFound, "no \"x\""));
    assert_eq!(write(Version::One, Ok(Reply::Nothing)), "{\"id\":7,\"result\":{},\"error\":null}\n");
    assert_eq!(
        write(Version::One, failure()),
        "{\"id\":7,\"result\":null,\"error\":\"error 404: {\\\"error\\\":\\\"no \\\\\\\"x\\\\\\\"\\\",\\\"code\\\":\\\"not_found\\\"}\\n\"}\n"
    );
    assert_eq!(write(Version::Two, Ok(Reply::Nothing)), "{\"jsonrpc\":\"2.0\",\"id\":7,\"result\":{}}\n");
    let error: serde_json::Value = serde_json::from_str(&write(Version::Two, failure())).expect("JSON");
    assert_eq!((&error["error"]["code"], &error["error"]["data"]["code"]), (&(-32601).into(), &"not_found".into()));
}

fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        "\\PC{0,12}|[\"\\\\{}\\[\\],:]{0,8}".prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            prop::collection::hash_map("[a-z\"\\\\]{0,6}", inner, 0..4)
                .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
        ]
    })
}

/// Calls of both versions, one after another as on a connection.
const CALLS: &[&[u8]] = &[
    br#"{"id":7,"method":"/ping","params":[]}{"id":"a","method":"GET /kv/x","params":[{"a":[1,"]"]}, 2]}"#,
    br#"{"jsonrpc":"2.0","id":1,"method":"/ipinfo","params":{"ip":"::1"}}"#,
    b"{ \"method\" : \"/kv/\\u00e9\" , \"id\" : -1.5e3, \"params\" : [ null ] }\n{\"id\":null,\"result\":{},\"error\":null}",
];

/// Calls and a reply of the compact codec.
const FRAMES: &[&[u8]] = &[
    b"\x05\0\0\0/ping\0\n\x06\0\0\0/ipinfo\0{\"ip\":\"::1\"}\n",
    b"\x05\0\0\x80\0\"a\"\n\xff\xff\xff\x7f/kv/x\0[1,2]\n",
];

proptest! {
    #[test]
    fn a_call_is_read_whole_however_it_is_cut(parameter in any_json(), id in any_json(), cut in 1_usize..64) {
        let text = serde_json::json!({ "extra": parameter, "id": id, "method": "/a\"b", "params": [parameter, 1] }).to_string();
        let twice = format!("{text}\n {text}");
        let chunks: Vec<&[u8]> = twice.as_bytes().chunks(cut).collect();
        let messages = decode(Codec::JsonRpc, &chunks).expect("whole");
        prop_assert_eq!(messages.len(), 2);
        for message in messages {
            let Message::Call { id: Id::Json(seen, _), method, parameter: body, .. } = message else { panic!("a call") };
            prop_assert_eq!(serde_json::from_slice::<serde_json::Value>(&seen).expect("JSON"), id.clone());
            prop_assert_eq!(serde_json::from_slice::<serde_json::Value>(&body).expect("JSON"), parameter.clone());
            prop_assert_eq!(method.as_str(), "/a\"b");
        }
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 1_usize..40) {
        let chunks: Vec<&[u8]> = bytes.chunks(cut).collect();
        drop(decode(Codec::JsonRpc, &chunks));
        drop(decode(Codec::Jrpc, &chunks));
    }

    #[test]
    fn edited_calls_are_read_without_a_panic(bytes in edited(CALLS), cut in 1_usize..40) {
        let chunks: Vec<&[u8]> = bytes.chunks(cut).collect();
        let found = decode(Codec::JsonRpc, &chunks);
        // What another parser takes for a row of objects is a row of as many messages.
        let objects = serde_json::Deserializer::from_slice(&bytes).into_iter::<serde_json::Map<_, _>>();
        if let Ok(objects) = objects.collect::<Result<Vec<_>, _>>() {
            prop_assert_eq!(found.map(|messages| messages.len()), Ok(objects.len()));
        }
    }

    #[test]
    fn edited_frames_of_jrpc_are_read_without_a_panic(bytes in edited(FRAMES), cut in 1_usize..40) {
        let chunks: Vec<&[u8]> = bytes.chunks(cut).collect();
        drop(decode(Codec::Jrpc, &chunks));
    }

    #[test]
    fn any_brackets_are_read_without_a_panic(text in "\\{[\\[\\]{}\":,a1 \\\\]{0,120}") {
        drop(decode(Codec::JsonRpc, &[text.as_bytes()]));
    }
}
