//! The BTF that describes a map of socket storage: an integer as the key, a caller's record as the value.
//!
//! The kernel asks for it with this kind of map, and tools show records by it (`bpftool map dump`). The format is the
//! kernel's (Documentation/bpf/btf.rst): a header, the types, the names.

use weft_ebpf_common::callers::RECORD_BYTES;

/// The key's type in [`describe`].
pub(super) const KEY: u32 = 1;
/// The value's type in [`describe`].
pub(super) const VALUE: u32 = 5;

// Types are numbered from 1 in the order they stand in.
const U32: u32 = 2;
const U64: u32 = 3;
const NAME: u32 = 4;

const KIND_INT: u32 = 1;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const SIGNED: u32 = 1 << 24;

/// The fields of a `CallerRecord`: name, type, offset in bytes.
const FIELDS: [(&str, u32, u32); 9] = [
    ("connected_at", U64, 0),
    ("cgroup", U64, 8),
    ("netns", U64, 16),
    ("socket", U64, 24),
    ("pid", U32, 32),
    ("uid", U32, 36),
    ("gid", U32, 40),
    ("reserved", U32, 44),
    ("comm", NAME, 48),
];

/// The description, as the kernel loads it.
pub(super) fn describe() -> Vec<u8> {
    let mut names = vec![0];
    let mut types = Vec::new();
    int(&mut types, name(&mut names, "int"), 4, SIGNED);
    int(&mut types, name(&mut names, "u32"), 4, 0);
    int(&mut types, name(&mut names, "u64"), 8, 0);
    // An array of 16 bytes would need a type of one byte; four words are as good, and are shown as they lie.
    words(&mut types, [0, KIND_ARRAY << 24, 0, U32, U32, 4]);
    let record = name(&mut names, "weft_caller");
    words(&mut types, [record, (KIND_STRUCT << 24) | FIELDS.len() as u32, RECORD_BYTES as u32]);
    for (field, kind, offset) in FIELDS {
        let field = name(&mut names, field);
        words(&mut types, [field, kind, offset * 8]);
    }
    let mut btf = Vec::new();
    btf.extend(0xeb9f_u16.to_ne_bytes());
    btf.extend([1, 0]);
    let (types_length, names_length) = (types.len() as u32, names.len() as u32);
    words(&mut btf, [24, 0, types_length, types_length, names_length]);
    btf.extend(types);
    btf.extend(names);
    btf
}

fn int(types: &mut Vec<u8>, name: u32, bytes: u32, encoding: u32) {
    words(types, [name, KIND_INT << 24, bytes, encoding | (bytes * 8)]);
}

fn words<const N: usize>(into: &mut Vec<u8>, words: [u32; N]) {
    into.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
}

fn name(names: &mut Vec<u8>, name: &str) -> u32 {
    let at = names.len() as u32;
    names.extend(name.as_bytes());
    names.push(0);
    at
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use weft_ebpf_common::callers::CallerRecord;

    use super::*;

    #[test]
    fn the_fields_are_where_the_record_has_them() {
        let offsets = [
            offset_of!(CallerRecord, connected_at),
            offset_of!(CallerRecord, cgroup),
            offset_of!(CallerRecord, netns),
            offset_of!(CallerRecord, socket),
            offset_of!(CallerRecord, pid),
            offset_of!(CallerRecord, uid),
            offset_of!(CallerRecord, gid),
            offset_of!(CallerRecord, reserved),
            offset_of!(CallerRecord, comm),
        ];
        assert_eq!(FIELDS.map(|(_, _, offset)| offset as usize), offsets);
    }

    #[test]
    fn the_header_counts_what_follows() {
        let btf = describe();
        let word = |at: usize| u32::from_ne_bytes(btf[at..at + 4].try_into().expect("four bytes")) as usize;
        assert_eq!(btf.len(), 24 + word(12) + word(20));
        assert_eq!(word(16), word(12), "names follow the types");
    }
}
