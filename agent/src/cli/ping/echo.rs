//! ICMP echo messages (RFC 792, RFC 4443 section 4). Pure.

/// What surrounds a message that a socket gives us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// The ICMP message alone.
    Icmpv4,
    /// The ICMPv6 message alone; IPv6 sockets never give the IP header.
    Icmpv6,
    /// The IPv4 header before it: a raw socket.
    Ipv4Header,
}

/// What an echo carries; the answer brings the same back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) sequence: u16,
    /// In the payload, because a datagram socket replaces the identifier of the header.
    pub(super) nonce: u64,
}

const REQUEST_V4: u8 = 8;
const REQUEST_V6: u8 = 128;
const ANSWER_V4: u8 = 0;
const ANSWER_V6: u8 = 129;
const HEADER_BYTES: usize = 8;

impl Message {
    /// The request. An IPv6 socket fills in the checksum, which covers addresses only it knows.
    pub(super) fn request(self, is_ipv6: bool) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[0] = if is_ipv6 { REQUEST_V6 } else { REQUEST_V4 };
        bytes[6..8].copy_from_slice(&self.sequence.to_be_bytes());
        bytes.extend(self.nonce.to_be_bytes());
        if !is_ipv6 {
            let sum = checksum(&bytes);
            bytes[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        bytes
    }

    /// The answer in what a socket received; `None` for any other message.
    pub(super) fn answer(bytes: &[u8], framing: Framing) -> Option<Self> {
        let (bytes, kind) = match framing {
            Framing::Icmpv4 => (bytes, ANSWER_V4),
            Framing::Icmpv6 => (bytes, ANSWER_V6),
            Framing::Ipv4Header => (bytes.get(usize::from(bytes.first()? & 0x0f) * 4..)?, ANSWER_V4),
        };
        if *bytes.first()? != kind {
            return None;
        }
        let sequence = u16::from_be_bytes(bytes.get(6..8)?.try_into().ok()?);
        let nonce = u64::from_be_bytes(bytes.get(HEADER_BYTES..HEADER_BYTES + 8)?.try_into().ok()?);
        Some(Self { sequence, nonce })
    }
}

/// The internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or_default());
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(u16::try_from(sum).expect("the loop above folded it to 16 bits"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MESSAGE: Message = Message { sequence: 7, nonce: 0x0102_0304_0506_0708 };

    #[test]
    fn a_request_has_a_checksum_that_adds_up() {
        let bytes = MESSAGE.request(false);
        assert_eq!(bytes.len(), 16);
        assert_eq!(checksum(&bytes), 0, "the sum over a right message is zero");
    }

    #[test]
    fn an_answer_is_recognised_in_each_framing() {
        let mut bytes = MESSAGE.request(false);
        assert_eq!(Message::answer(&bytes, Framing::Icmpv4), None, "a request is no answer");
        bytes[0] = ANSWER_V4;
        assert_eq!(Message::answer(&bytes, Framing::Icmpv4), Some(MESSAGE));
        let with_header = [&[0x45; 20], bytes.as_slice()].concat();
        assert_eq!(Message::answer(&with_header, Framing::Ipv4Header), Some(MESSAGE));
        bytes[0] = ANSWER_V6;
        assert_eq!(Message::answer(&bytes, Framing::Icmpv6), Some(MESSAGE));
    }

    proptest! {
        #[test]
        fn no_bytes_from_the_network_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            for framing in [Framing::Icmpv4, Framing::Icmpv6, Framing::Ipv4Header] {
                if let Some(message) = Message::answer(&bytes, framing) {
                    prop_assert!(bytes.windows(8).any(|window| window == message.nonce.to_be_bytes()));
                }
            }
        }
    }
}
