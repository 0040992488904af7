//! The bytes of the handshake. Fixed layouts; bytes behind them belong to later versions and are skipped, but are
//! covered by the proofs.

use corefs_wire::{Error, ErrorCode, Result};
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Operation codes of handshake frames, in the order in which they are sent.
pub mod op {
    pub const HELLO: u16 = 1;
    pub const CHALLENGE: u16 = 2;
    pub const PROOF: u16 = 3;
    pub const WELCOME: u16 = 4;
    /// The connection ends; the header's status and the body say why. May come at any time, from either side.
    pub const FAREWELL: u16 = 5;
}

/// In `flags`: the sender has a secret.
pub const HAS_SECRET: u8 = 1;
/// In `flags`: the sender goes on only if both sides prove that they have it.
pub const WANTS_PROOF: u8 = 2;

/// Who speaks. Both sides say it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Hello {
    /// Frame versions that the speaker understands; in a challenge both are the chosen one.
    pub version_min: u8,
    pub version_max: u8,
    pub role: u8,
    pub flags: u8,
    pub reserved: [u8; 4],
    pub id: U64,
    pub incarnation: U64,
    pub capabilities: U64,
    pub cluster: [u8; 16],
    pub nonce: [u8; 32],
}
const _: () = assert!(size_of::<Hello>() == 80);

/// The acceptor's answer: who it is, and its proof (zeros without a secret).
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Challenge {
    pub hello: Hello,
    pub proof: [u8; 32],
}

/// The connector's proof (zeros without a secret).
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Proof {
    pub proof: [u8; 32],
}

/// The layout at the start of `body`.
pub fn read<T: FromBytes + KnownLayout + Immutable + Unaligned>(body: &[u8]) -> Result<&T> {
    let short = |_| {
        let (expected, actual) = (size_of::<T>() as u64, body.len() as u64);
        Error::mismatch(ErrorCode::BadFrame, expected, actual, "the handshake message is too short")
    };
    T::ref_from_prefix(body).map(|(message, _)| message).map_err(short)
}
