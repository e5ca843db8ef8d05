//! The Internet checksum (RFC 1071) over packets of one and a half kilobytes, many times a millisecond.
//!
//! Sums are kept in the machine's byte order and unfolded: ones' complement addition does not care about the order of
//! bytes as long as the result is stored back in the order it was read. Only a piece that starts at an even
//! offset may be added to another.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Adds `data` to an unfolded sum.
pub(crate) fn add(sum: u64, data: &[u8]) -> u64 {
    let mut lanes = [0u64; 8];
    let mut blocks = data.chunks_exact(32);
    for block in &mut blocks {
        for (lane, word) in lanes.iter_mut().zip(block.chunks_exact(4)) {
            *lane += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        }
    }
    let mut total = sum + lanes.iter().sum::<u64>();
    let mut pairs = blocks.remainder().chunks_exact(2);
    for pair in &mut pairs {
        total += u64::from(u16::from_ne_bytes([pair[0], pair[1]]));
    }
    if let [last] = pairs.remainder() {
        total += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    total
}

/// The sum as it is stored in a header, not inverted: what a sender leaves in the field when something else finishes it.
pub(crate) fn partial(mut sum: u64) -> [u8; 2] {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let folded = u16::try_from(sum).expect("the loop above leaves 16 bits");
    folded.to_ne_bytes()
}

/// The finished checksum.
pub(crate) fn finish(sum: u64) -> [u8; 2] {
    let [a, b] = partial(sum);
    [!a, !b]
}

/// Whether the sum over data that includes its own checksum field is right.
pub(crate) fn is_valid(sum: u64) -> bool {
    partial(sum) == [0xff, 0xff]
}

/// The pseudo-header of TCP and UDP over IPv4.
pub(crate) fn pseudo_v4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, length: usize) -> u64 {
    let sum = add(add(0, &source.octets()), &destination.octets());
    add_protocol_and_length(sum, protocol, length)
}

/// The pseudo-header of TCP and UDP over IPv6 (RFC 8200, section 8.1).
pub(crate) fn pseudo_v6(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, length: usize) -> u64 {
    let sum = add(add(0, &source.octets()), &destination.octets());
    add_protocol_and_length(sum, protocol, length)
}

fn add_protocol_and_length(sum: u64, protocol: u8, length: usize) -> u64 {
    let length = u32::try_from(length).expect("an IP packet is shorter than 2^17 bytes");
    add(add(sum, &[0, protocol]), &length.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, word by word.
    fn reference(data: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in data.chunks(2) {
            let low = pair.get(1).copied().unwrap_or(0);
            sum += u32::from(u16::from_be_bytes([pair[0], low]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).unwrap()
    }

    proptest! {
        #[test]
        fn equals_the_definition(data in proptest::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(u16::from_be_bytes(finish(add(0, &data))), reference(&data));
        }

        #[test]
        fn data_with_its_checksum_is_valid(mut data in proptest::collection::vec(any::<u8>(), 2..200)) {
            data[0] = 0;
            data[1] = 0;
            let checksum = finish(add(0, &data));
            data[..2].copy_from_slice(&checksum);
            prop_assert!(is_valid(add(0, &data)));
        }
    }

    #[test]
    fn header_of_rfc_1071_example() {
        let data = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(partial(add(0, &data)), [0xdd, 0xf2]);
    }
}
