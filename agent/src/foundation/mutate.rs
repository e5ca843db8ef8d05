//! Inputs for properties over parsers: well-formed ones with a few edits, which come further than random bytes do.

use proptest::prelude::*;
use proptest::sample::Index;

/// One change of a message.
#[derive(Debug, Clone)]
enum Edit {
    /// Another byte.
    Set(Index, u8),
    /// One bit turned over.
    Flip(Index, u8),
    Insert(Index, u8),
    /// A part is gone.
    Cut(Index, usize),
    /// A part comes again behind itself.
    Repeat(Index, usize),
    /// What follows is another message, from a place of its own.
    Splice(Index, Index, Index),
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = any::<Index>;
    // The bytes that mean something in one of the formats, as often as any others.
    let byte = || prop_oneof![any::<u8>(), prop::sample::select(b"{}[]\"\\:,;=/ .%@-\r\n\0\x7f\x80\xff0".to_vec())];
    prop_oneof![
        (at(), byte()).prop_map(|(at, byte)| Edit::Set(at, byte)),
        (at(), 0_u8..8).prop_map(|(at, bit)| Edit::Flip(at, bit)),
        (at(), byte()).prop_map(|(at, byte)| Edit::Insert(at, byte)),
        (at(), 1_usize..20).prop_map(|(at, length)| Edit::Cut(at, length)),
        (at(), 1_usize..20).prop_map(|(at, length)| Edit::Repeat(at, length)),
        (at(), at(), at()).prop_map(|(at, other, from)| Edit::Splice(at, other, from)),
    ]
}

fn apply(edit: &Edit, bytes: &mut Vec<u8>, messages: &[&[u8]]) {
    let length = bytes.len();
    match edit {
        Edit::Insert(at, byte) => bytes.insert(at.index(length + 1), *byte),
        Edit::Splice(at, other, from) => {
            let other = messages[other.index(messages.len())];
            bytes.truncate(at.index(length + 1));
            bytes.extend_from_slice(&other[from.index(other.len() + 1)..]);
        }
        _ if length == 0 => {}
        Edit::Set(at, byte) => bytes[at.index(length)] = *byte,
        Edit::Flip(at, bit) => bytes[at.index(length)] ^= 1 << bit,
        Edit::Cut(at, count) => {
            let start = at.index(length);
            bytes.drain(start..(start + count).min(length));
        }
        Edit::Repeat(at, count) => {
            let start = at.index(length);
            let part = bytes[start..(start + count).min(length)].to_vec();
            bytes.splice(start..start, part);
        }
    }
}

/// One of `messages` after up to eight edits.
pub fn edited(messages: &'static [&'static [u8]]) -> impl Strategy<Value = Vec<u8>> {
    (prop::sample::select(messages), prop::collection::vec(edit(), 0..8)).prop_map(move |(message, edits)| {
        let mut bytes = message.to_vec();
        edits.iter().for_each(|edit| apply(edit, &mut bytes, messages));
        bytes
    })
}

proptest! {
    #[test]
    fn some_messages_stay_and_most_change(bytes in edited(&[b"GET / HTTP/1.1\r\n\r\n", b"{}"])) {
        // Every edit adds at most the longest message or twenty bytes.
        prop_assert!(bytes.len() <= 18 + 8 * 20);
    }
}
