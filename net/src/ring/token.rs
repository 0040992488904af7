//! What ties a completion to who asked: one byte for the source, 56 bits of its own.

/// Who pushed an entry: the turn loop dispatches completions by it. Numbers from 16 up are the owner's own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Source(pub u8);

impl Source {
    /// The ring itself; never seen outside.
    pub const RING: Self = Self(0);
    pub const TCP: Self = Self(1);
    pub const TIMER: Self = Self(2);
    pub const RDMA: Self = Self(3);
    pub const DISK: Self = Self(16);
}

/// The name of an entry in flight.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Token(pub(super) u64);

/// Bits that belong to the source.
pub const PAYLOAD_BITS: u32 = 56;

impl Token {
    /// `payload` has at most [`PAYLOAD_BITS`] bits.
    #[inline]
    pub const fn new(source: Source, payload: u64) -> Self {
        assert!(payload >> PAYLOAD_BITS == 0, "a token's payload has 56 bits");
        Self((source.0 as u64) << PAYLOAD_BITS | payload)
    }

    #[inline]
    pub const fn source(self) -> Source {
        Source((self.0 >> PAYLOAD_BITS) as u8)
    }

    #[inline]
    pub const fn payload(self) -> u64 {
        self.0 & ((1 << PAYLOAD_BITS) - 1)
    }
}
