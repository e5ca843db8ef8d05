//! Frames: length, number of the call, kind, body. Numbers are little endian.

use std::io;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// The largest body: the entries of one message and what is around them.
pub(super) const MAX_BODY_BYTES: usize = 8 * 1024 * 1024;
pub(super) const HEADER_BYTES: usize = 13;

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum Kind {
    /// Who calls whom; the first frame of a connection.
    Hello,
    Append,
    Vote,
    PreVote,
    Transfer,
    SnapshotOffer,
    SnapshotPiece,
    SnapshotInstall,
    /// A follower has its leader write.
    Propose,
    /// A follower asks its leader what a read must see.
    ReadIndex,
    /// A follower has its leader change the membership.
    Change,
    /// The answer to a call, and why there is none.
    Answer,
    Refusal,
}

const KINDS: [Kind; 13] = [
    Kind::Hello,
    Kind::Append,
    Kind::Vote,
    Kind::PreVote,
    Kind::Transfer,
    Kind::SnapshotOffer,
    Kind::SnapshotPiece,
    Kind::SnapshotInstall,
    Kind::Propose,
    Kind::ReadIndex,
    Kind::Change,
    Kind::Answer,
    Kind::Refusal,
];

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) call: u64,
    pub(super) kind: Kind,
    pub(super) body: Bytes,
}

/// The header of a frame with a body of `length` bytes.
pub(super) fn header(call: u64, kind: Kind, length: usize) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[0..4].copy_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    header[4..12].copy_from_slice(&call.to_le_bytes());
    let place = KINDS.iter().position(|known| *known == kind).unwrap_or_default();
    header[12] = u8::try_from(place).unwrap_or_default();
    header
}

/// The next frame; `None` where the other side has ended.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
    let mut header = [0; HEADER_BYTES];
    match stream.read_exact(&mut header).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let number =
        |range: std::ops::Range<usize>| header[range].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    let malformed = |text: &str| io::Error::new(io::ErrorKind::InvalidData, text.to_owned());
    let length = usize::try_from(number(0..4)).unwrap_or(usize::MAX);
    if length > MAX_BODY_BYTES {
        return Err(malformed("a frame is larger than is read"));
    }
    let kind =
        *KINDS.get(usize::from(header[12])).ok_or_else(|| malformed("a frame is of a kind that is not known"))?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(Some(Frame { call: number(4..12), kind, body: body.into() }))
}
