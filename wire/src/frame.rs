//! The header before every message: 40 bytes, then `body_len` structured bytes, then `data_len` bulk bytes.
//!
//! ```text
//!  0        4    5    6     8                16        20        24        28        32        36       40
//!  +--------+----+----+-----+----------------+---------+---------+---------+---------+---------+--------+
//!  | magic  |ver |kind| op  |    request     |body_len |data_len | status  |body_crc |reserved |head_crc|
//!  +--------+----+----+-----+----------------+---------+---------+---------+---------+---------+--------+
//! ```
//! The head's CRC covers bytes 0..36 and the body's CRC the body; bulk data is covered by the block CRCs that
//! the body carries. Lengths are checked against [`limits`](crate::limits) before anything is allocated.

use crate::checksum::crc32c;
use crate::error::{Error, ErrorCode, Result};
use crate::limits::{FRAME_BODY_MAX, FRAME_DATA_MAX};
use crate::version::{FRAME_VERSION, FRAME_VERSION_MIN};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// "CFS1" in the order of the bytes on the wire.
pub const MAGIC: [u8; 4] = *b"CFS1";
/// Bytes of a header.
pub const HEADER: usize = size_of::<Header>();
const _: () = assert!(HEADER == 40, "the layout above is frozen");

/// What a frame is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    Request = 1,
    Reply = 2,
    /// Handshake messages, before anything else may be sent.
    Handshake = 3,
}

/// The bytes of a header. Build with [`Header::new`], read with [`Header::parse`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    magic: [u8; 4],
    version: u8,
    kind: u8,
    op: U16,
    request: U64,
    body_len: U32,
    data_len: U32,
    status: U32,
    body_crc: U32,
    reserved: U32,
    head_crc: U32,
}

impl Header {
    /// A header for `body` and `data_len` bulk bytes. `status` is 0 but in replies that carry an error.
    pub fn new(kind: Kind, op: u16, request: u64, status: u32, body: &[u8], data_len: usize) -> Self {
        debug_assert!(body.len() <= FRAME_BODY_MAX && data_len <= FRAME_DATA_MAX);
        let mut header = Self {
            magic: MAGIC,
            version: FRAME_VERSION,
            kind: kind as u8,
            op: op.into(),
            request: request.into(),
            body_len: (body.len() as u32).into(),
            data_len: (data_len as u32).into(),
            status: status.into(),
            body_crc: if body.is_empty() { 0 } else { crc32c(body) }.into(),
            reserved: 0.into(),
            head_crc: 0.into(),
        };
        header.head_crc = crc32c(&header.as_bytes()[..HEADER - 4]).into();
        header
    }

    /// Checks magic, CRC, version, kind and lengths of the first [`HEADER`] bytes. `body_max` is smaller before
    /// the handshake is done.
    pub fn parse(bytes: &[u8; HEADER], body_max: usize) -> Result<Self> {
        let bad = |expected: u64, actual: u64, what| {
            Err(Error::mismatch(ErrorCode::BadFrame, expected, actual, what))
        };
        let header = Self::read_from_bytes(bytes).map_err(|_| Error::from(ErrorCode::BadFrame))?;
        if header.magic != MAGIC {
            let number = u32::from_le_bytes;
            return bad(number(MAGIC).into(), number(header.magic).into(), "not a corefs frame");
        }
        let crc = crc32c(&bytes[..HEADER - 4]);
        if header.head_crc.get() != crc {
            return bad(header.head_crc.get().into(), crc.into(), "the frame header's checksum is wrong");
        }
        if !(FRAME_VERSION_MIN..=FRAME_VERSION).contains(&header.version) {
            let (ours, theirs) = (FRAME_VERSION.into(), header.version.into());
            return Err(Error::mismatch(ErrorCode::VersionMismatch, ours, theirs, "unknown frame version"));
        }
        if !matches!(header.kind, 1..=3) {
            return bad(1, header.kind.into(), "unknown kind of frame");
        }
        if header.body_len.get() as usize > body_max.min(FRAME_BODY_MAX) {
            return bad(body_max as u64, header.body_len.get().into(), "the frame's body is too long");
        }
        if header.data_len.get() as usize > FRAME_DATA_MAX {
            return bad(FRAME_DATA_MAX as u64, header.data_len.get().into(), "the frame's data is too long");
        }
        Ok(header)
    }

    /// Checks `body` against the header's CRC.
    pub fn check_body(&self, body: &[u8]) -> Result<()> {
        let crc = if body.is_empty() { 0 } else { crc32c(body) };
        if crc == self.body_crc.get() {
            return Ok(());
        }
        let (expected, actual) = (self.body_crc.get().into(), crc.into());
        Err(Error::mismatch(ErrorCode::BadFrame, expected, actual, "the frame body's checksum is wrong"))
    }

    pub fn kind(&self) -> Kind {
        match self.kind {
            1 => Kind::Request,
            2 => Kind::Reply,
            _ => Kind::Handshake,
        }
    }

    pub fn op(&self) -> u16 {
        self.op.get()
    }

    /// The number that ties a reply to its request, chosen by the requester, unique on its connection.
    pub fn request(&self) -> u64 {
        self.request.get()
    }

    pub fn body_len(&self) -> usize {
        self.body_len.get() as usize
    }

    pub fn data_len(&self) -> usize {
        self.data_len.get() as usize
    }

    /// 0, or the [`ErrorCode`]'s number.
    pub fn status(&self) -> u32 {
        self.status.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(header: &Header) -> [u8; HEADER] {
        header.as_bytes().try_into().unwrap()
    }

    #[test]
    fn reads_what_it_writes_and_refuses_any_flipped_bit() {
        let header = Header::new(Kind::Request, 7, 42, 0, b"body", 4096);
        let good = bytes(&header);
        assert_eq!(Header::parse(&good, FRAME_BODY_MAX), Ok(header));
        assert!(header.check_body(b"body").is_ok() && header.check_body(b"bodz").is_err());
        for bit in 0..HEADER * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::parse(&bad, FRAME_BODY_MAX).is_err(), "bit {bit} went unnoticed");
        }
    }

    #[test]
    fn lengths_are_bounded() {
        let header = Header::new(Kind::Request, 7, 42, 0, &[0; 5000], 0);
        assert_eq!(Header::parse(&bytes(&header), 4096).unwrap_err().code, ErrorCode::BadFrame);
    }
}
