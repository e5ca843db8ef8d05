//! The frames of a WebSocket (RFC 6455), sans-IO: bytes in, whole messages out, and frames written.
//!
//! Headers are read and written by the library; what it would do beyond that (a cleared buffer for every read, a message of
//! its own for every frame) costs more than a small call. Payloads are unmasked where they lie and handed on without a copy.
//!
//! Invariants: a client's frames are masked, without extension bits, not longer than [`MAX_MESSAGE_BYTES`] and in an order
//! that makes sense; text is UTF-8; a length is looked at before its bytes are waited for.

use std::io::Cursor;

use bytes::{Buf as _, BytesMut};
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};

use super::super::codec::MAX_MESSAGE_BYTES;

/// What a control frame may carry.
const MAX_CONTROL_BYTES: u64 = 125;

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// A whole message, text or binary.
    Message(BytesMut),
    Ping(BytesMut),
    Pong,
    Close,
}

/// The other side does not keep to the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    #[error("this is no frame of a WebSocket client")]
    Protocol,
    #[error("a text is not UTF-8")]
    NotText,
    #[error("a message is larger than {MAX_MESSAGE_BYTES} bytes")]
    TooLarge,
}

impl Violation {
    pub(super) fn code(self) -> CloseCode {
        match self {
            Self::Protocol => CloseCode::Protocol,
            Self::NotText => CloseCode::Invalid,
            Self::TooLarge => CloseCode::Size,
        }
    }
}

/// Puts messages together from frames.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// A message whose last frame has not come; whether it is text.
    begun: Option<(bool, BytesMut)>,
}

impl Frames {
    /// The first frame of `input` that says something, taken from it; `None`: more must come.
    pub(super) fn next(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, Violation> {
        loop {
            let mut cursor = Cursor::new(&*input);
            let parsed = FrameHeader::parse(&mut cursor).map_err(|_wrong| Violation::Protocol)?;
            let Some((header, length)) = parsed else { return Ok(None) };
            // A cursor over memory lies within it.
            let head = usize::try_from(cursor.position()).unwrap_or(usize::MAX);
            let length = self.admit(&header, length)?;
            if input.len() < head + length {
                return Ok(None);
            }
            input.advance(head);
            let mut payload = input.split_to(length);
            unmask(&mut payload, header.mask.unwrap_or_default());
            if let Some(frame) = self.put(&header, payload)? {
                return Ok(Some(frame));
            }
        }
    }

    /// Whether a frame with this header may come now; its length.
    fn admit(&self, header: &FrameHeader, length: u64) -> Result<usize, Violation> {
        let has_extensions = header.rsv1 || header.rsv2 || header.rsv3;
        let is_out_of_place = match header.opcode {
            OpCode::Control(_) => !header.is_final || length > MAX_CONTROL_BYTES,
            OpCode::Data(Data::Continue) => self.begun.is_none(),
            OpCode::Data(Data::Text | Data::Binary | Data::Reserved(_)) => self.begun.is_some(),
        };
        if has_extensions || is_out_of_place || header.mask.is_none() {
            return Err(Violation::Protocol);
        }
        let begun = self.begun.as_ref().map_or(0, |(_, begun)| begun.len());
        let length = usize::try_from(length).map_err(|_huge| Violation::TooLarge)?;
        if length > MAX_MESSAGE_BYTES - begun.min(MAX_MESSAGE_BYTES) {
            return Err(Violation::TooLarge);
        }
        Ok(length)
    }

    fn put(&mut self, header: &FrameHeader, payload: BytesMut) -> Result<Option<Frame>, Violation> {
        let (is_text, message) = match header.opcode {
            OpCode::Control(Control::Ping) => return Ok(Some(Frame::Ping(payload))),
            OpCode::Control(Control::Pong) => return Ok(Some(Frame::Pong)),
            OpCode::Control(Control::Close) => return Ok(Some(Frame::Close)),
            OpCode::Control(Control::Reserved(_)) | OpCode::Data(Data::Reserved(_)) => return Err(Violation::Protocol),
            OpCode::Data(Data::Text) => (true, payload),
            OpCode::Data(Data::Binary) => (false, payload),
            OpCode::Data(Data::Continue) => {
                let (is_text, mut begun) = self.begun.take().ok_or(Violation::Protocol)?;
                begun.extend_from_slice(&payload);
                (is_text, begun)
            }
        };
        if !header.is_final {
            self.begun = Some((is_text, message));
            return Ok(None);
        }
        if is_text && std::str::from_utf8(&message).is_err() {
            return Err(Violation::NotText);
        }
        Ok(Some(Frame::Message(message)))
    }
}

fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let word = u64::from_ne_bytes([mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3]]);
    let (words, rest) = payload.as_chunks_mut::<8>();
    for bytes in words {
        *bytes = (u64::from_ne_bytes(*bytes) ^ word).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

/// Writes one whole frame of a server.
pub(super) fn write(out: &mut Vec<u8>, opcode: OpCode, payload: &[u8]) {
    let header = FrameHeader { opcode, ..FrameHeader::default() };
    // Writing to memory cannot fail.
    header.format(payload.len() as u64, out).ok();
    out.extend_from_slice(payload);
}

/// Writes a close frame.
pub(super) fn write_close(out: &mut Vec<u8>, code: CloseCode, reason: &str) {
    let mut payload = u16::from(code).to_be_bytes().to_vec();
    payload.extend(reason.bytes().take(120));
    write(out, OpCode::Control(Control::Close), &payload);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio_tungstenite::tungstenite::protocol::frame;

    use super::*;
    use crate::foundation::mutate::edited;

    /// A frame as the library writes it for a client.
    fn masked(payload: &[u8], opcode: OpCode, is_final: bool) -> Vec<u8> {
        let mut header = FrameHeader { opcode, is_final, ..FrameHeader::default() };
        header.mask = Some([1, 2, 3, 250]);
        let mut out = Vec::new();
        frame::Frame::from_payload(header, payload.to_vec().into()).format(&mut out).expect("written");
        out
    }

    fn read(bytes: &[u8], cut: usize) -> Result<Vec<Frame>, Violation> {
        let (mut frames, mut input, mut found) = (Frames::default(), BytesMut::new(), Vec::new());
        for chunk in bytes.chunks(cut) {
            input.extend_from_slice(chunk);
            while let Some(frame) = frames.next(&mut input)? {
                found.push(frame);
            }
        }
        Ok(found)
    }

    const TEXT: OpCode = OpCode::Data(Data::Text);
    const MORE: OpCode = OpCode::Data(Data::Continue);
    const PING: OpCode = OpCode::Control(Control::Ping);

    #[test]
    fn a_message_in_parts_with_a_ping_between_them_is_whole() {
        let bytes = [masked(b"he", TEXT, false), masked(b"x", PING, true), masked(b"llo", MORE, true)].concat();
        let wanted = [Frame::Ping(b"x"[..].into()), Frame::Message(b"hello"[..].into())];
        for cut in 1..bytes.len() {
            assert_eq!(read(&bytes, cut).as_deref(), Ok(wanted.as_slice()), "{cut}");
        }
    }

    #[test]
    fn what_no_client_may_send_is_refused() {
        let check = |bytes: &[u8], wanted| assert_eq!(read(bytes, 1), Err(wanted), "{bytes:?}");
        check(b"\x81\x01a", Violation::Protocol);
        check(b"\xf1\x80\0\0\0\0", Violation::Protocol);
        check(b"\x83\x80\0\0\0\0", Violation::Protocol);
        check(b"\x09\x80\0\0\0\0", Violation::Protocol);
        check(b"\x89\xfe\x00\x7e\0\0\0\0", Violation::Protocol);
        check(b"\x82\xff\x80\0\0\0\0\0\0\0\0\0\0\0", Violation::TooLarge);
        check(b"\x82\xff\0\0\0\0\0\x10\0\x01\0\0\0\0", Violation::TooLarge);
        check(&masked(b"x", MORE, true), Violation::Protocol);
        check(&[masked(b"x", TEXT, false), masked(b"x", TEXT, true)].concat(), Violation::Protocol);
        check(&masked(b"\xff", TEXT, true), Violation::NotText);
        let part = masked(&vec![b'x'; MAX_MESSAGE_BYTES / 2 + 1], TEXT, false);
        let rest = masked(&vec![b'x'; MAX_MESSAGE_BYTES / 2], MORE, true);
        assert_eq!(read(&[part, rest].concat(), 1 << 16), Err(Violation::TooLarge));
    }

    /// A text in two parts with a ping between them; a binary of 126 bytes and more; a close.
    const FRAMES: &[&[u8]] = &[
        b"\x01\x82\x01\x02\x03\xfaig\x89\x81\x01\x02\x03\xfay\x80\x83\x01\x02\x03\xfamnl",
        b"\x82\xfe\0\x81\x01\x02\x03\x04................................................................\
          .................................................................\x8a\x80\0\0\0\0",
        b"\x88\x82\0\0\0\0\x03\xe8\x82\xff\0\0\0\0\0\0\0\x04\0\0\0\0abcd",
    ];

    proptest! {
        #[test]
        fn any_payload_comes_back(payload in prop::collection::vec(any::<u8>(), 0..300), cut in 1_usize..64) {
            let bytes = masked(&payload, OpCode::Data(Data::Binary), true);
            prop_assert_eq!(read(&bytes, cut), Ok(vec![Frame::Message(payload.as_slice().into())]));
        }

        #[test]
        fn edited_frames_are_read_without_a_panic(bytes in edited(FRAMES), cut in 1_usize..40) {
            drop(read(&bytes, cut));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 1_usize..40) {
            drop(read(&bytes, cut));
        }
    }
}
