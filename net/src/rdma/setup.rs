//! What two ends tell each other before frames flow by a queue pair. Pure.
//!
//! It travels in frames on the connection that the handshake was made on, which stays open beside the queue pair as long as that lives:
//!
//! ```text
//!  connector                                    acceptor
//!     | -- OFFER   its terms --------------------> |  checked; queue pair made and connected
//!     | <- ANSWER  its terms, or why not --------- |
//!     |    checked; queue pair connected           |
//!     | == a first message by the queue pair ====> |  the path works: open
//!     | <============= and one back ============== |
//!     |    the path works: open                    |
//!     | -- DECLINE ------------------------------> |  (instead, at any point before a frame goes by it: frames by TCP)
//! ```
//! The two messages are as long as a message may be, so that what follows has nothing that they didn't have: a path that loses its longest packets doesn't
//! work. Terms that aren't understood, because the peer is of a later version, are refused, and frames go by TCP; only what can't be terms at all ends
//! the connection.
//!
//! Afterwards only NEWS goes that way: what a queue pair without credits can't say.

use super::connect::Remote;
use super::device::{Link, Mtu};
use corefs_wire::{Error, ErrorCode, Result};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Operation codes of these frames; no service has them.
pub mod op {
    pub const OFFER: u16 = 0xFFD0;
    pub const ANSWER: u16 = 0xFFD1;
    pub const DECLINE: u16 = 0xFFD2;
    pub const NEWS: u16 = 0xFFD3;

    pub fn is_ours(op: u16) -> bool {
        (OFFER..=NEWS).contains(&op)
    }
}

/// Version of this exchange and of the messages behind it ([`message`](super::message)).
pub const VERSION: u8 = 1;
/// The kinds of messages that those take who don't say it, and those that we take.
pub const KINDS_MIN: u8 = 4;
pub const KINDS: u8 = 7;
/// What keys open: a range, to one queue pair, until it is invalidated.
const SCOPE_WINDOW: u8 = 1;
/// Bounds of what may be agreed on: messages a peer may have unreceived, bytes of a message, memory opened at a time.
pub const RECEIVES_MIN: u16 = 4;
pub const RECEIVES_MAX: u16 = 1024;
pub const MESSAGE_MIN: u32 = 4 << 10;
pub const MESSAGE_MAX: u32 = 64 << 10;
pub const GRANTS_MAX: u16 = 64;

/// The terms of one end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Layout {
    version: u8,
    link: u8,
    mtu: u8,
    scope: u8,
    reads_in: u8,
    reads_out: u8,
    lid: U16,
    queue_pair: U32,
    sequence: U32,
    message: U32,
    receives: U16,
    grants: U16,
    gid: [u8; 16],
}
const _: () = assert!(size_of::<Layout>() == 40);

/// What one end has and wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Terms {
    pub link: Link,
    pub mtu: Mtu,
    /// The queue pair's number, and the number of the first packet that it sends (24 bits each).
    pub queue_pair: u32,
    pub sequence: u32,
    pub gid: [u8; 16],
    /// 0 on Ethernet.
    pub lid: u16,
    /// Reads that it answers and that it asks for, at a time.
    pub reads_in: u8,
    pub reads_out: u8,
    /// Messages it has room for, and the bytes of each.
    pub receives: u16,
    pub message: u32,
    /// Ranges that may be open to it at a time.
    pub grants: u16,
    /// Others send to the same receives, so that there may be none at times in spite of a credit.
    pub shared: bool,
    /// The last kind of [`message`](super::message) that it takes.
    pub kinds: u8,
}

impl Terms {
    pub fn encode(&self) -> Vec<u8> {
        let layout = Layout {
            version: VERSION,
            link: self.link as u8,
            mtu: self.mtu.number(),
            scope: SCOPE_WINDOW,
            reads_in: self.reads_in,
            reads_out: self.reads_out,
            lid: self.lid.into(),
            queue_pair: self.queue_pair.into(),
            sequence: self.sequence.into(),
            message: self.message.into(),
            receives: self.receives.into(),
            grants: self.grants.into(),
            gid: self.gid,
        };
        [layout.as_bytes(), &[u8::from(self.shared), self.kinds]].concat()
    }

    /// Reads and checks the other end's. Bytes behind them belong to later versions. `BadFrame` for what no version says; what a later one may say, and we
    /// don't understand, is `VersionMismatch` or `InvalidArgument`.
    pub fn decode(body: &[u8]) -> Result<Self> {
        let short = |_| {
            let (expected, actual) = (size_of::<Layout>() as u64, body.len() as u64);
            Error::mismatch(ErrorCode::BadFrame, expected, actual, "RDMA terms are too short")
        };
        let (layout, rest) = Layout::ref_from_prefix(body).map_err(short)?;
        if layout.version != VERSION {
            let (ours, theirs) = (VERSION.into(), layout.version.into());
            return Err(Error::mismatch(ErrorCode::VersionMismatch, ours, theirs, "unknown version of RDMA"));
        }
        let checked = |code, what: &str, value: u32, range: std::ops::RangeInclusive<u32>| {
            let bad = || {
                let expected = if value < *range.start() { *range.start() } else { *range.end() };
                Error::mismatch(code, expected.into(), value.into(), format!("RDMA terms: {what}"))
            };
            range.contains(&value).then_some(value).ok_or_else(bad)
        };
        let within = |what: &str, value, range| checked(ErrorCode::BadFrame, what, value, range);
        // Whoever comes later may have more of it.
        let known = |what: &str, value, range| checked(ErrorCode::InvalidArgument, what, value, range);
        known("scope of keys", layout.scope.into(), SCOPE_WINDOW.into()..=SCOPE_WINDOW.into())?;
        let bad = |what| Error::new(ErrorCode::BadFrame, what);
        let unknown = |what| Error::new(ErrorCode::InvalidArgument, what);
        let terms = Self {
            link: Link::from_number(layout.link).ok_or_else(|| unknown("RDMA terms: unknown link"))?,
            mtu: Mtu::from_number(layout.mtu).ok_or_else(|| unknown("RDMA terms: unknown MTU"))?,
            // 0 and 1 are the subnet manager's, the last is everybody's.
            queue_pair: within("queue pair", layout.queue_pair.get(), 2..=0xFF_FFFE)?,
            sequence: within("packet number", layout.sequence.get(), 0..=0xFF_FFFF)?,
            gid: layout.gid,
            lid: layout.lid.get(),
            reads_in: within("reads", layout.reads_in.into(), 1..=255)? as u8,
            reads_out: within("reads", layout.reads_out.into(), 1..=255)? as u8,
            receives: known(
                "receives",
                layout.receives.get().into(),
                RECEIVES_MIN.into()..=RECEIVES_MAX.into(),
            )? as u16,
            message: known("length of a message", layout.message.get(), MESSAGE_MIN..=MESSAGE_MAX)?,
            grants: known("grants", layout.grants.get().into(), 0..=GRANTS_MAX.into())? as u16,
            // Those who don't know it share nothing.
            shared: known("shared receives", rest.first().copied().unwrap_or(0).into(), 0..=1)? == 1,
            kinds: rest.get(1).copied().unwrap_or(KINDS_MIN).max(KINDS_MIN),
        };
        // A group's address is nobody's (RFC 4291, 2.7; InfiniBand Architecture 4.1.1), and so is none.
        if terms.gid == [0; 16] || terms.gid[0] == 0xFF {
            return Err(bad("RDMA terms: not an address of one port"));
        }
        if terms.link == Link::InfiniBand && !(1..0xC000).contains(&terms.lid) {
            return Err(bad("RDMA terms: not a local identifier of one port"));
        }
        Ok(terms)
    }

    /// What our queue pair is to be connected to, given `theirs`. `InvalidArgument` if the two don't fit each other.
    pub fn meet(&self, theirs: &Self) -> Result<Remote> {
        if self.link != theirs.link {
            let what = format!("one end has {}, the other {}", self.link, theirs.link);
            return Err(Error::new(ErrorCode::InvalidArgument, what));
        }
        Ok(Remote {
            queue_pair: theirs.queue_pair,
            sequence: theirs.sequence,
            gid: theirs.gid,
            lid: theirs.lid,
            mtu: self.mtu.min(theirs.mtu),
            reads_out: self.reads_out.min(theirs.reads_in),
            reads_in: self.reads_in.min(theirs.reads_out),
            shares: theirs.shared,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn terms() -> Terms {
        let mut gid = [0; 16];
        (gid[10], gid[11], gid[12], gid[15]) = (0xFF, 0xFF, 10, 1);
        Terms {
            link: Link::RoceV2,
            mtu: Mtu::from_number(3).unwrap(),
            queue_pair: 17,
            sequence: 0xFF_FFFF,
            gid,
            lid: 0,
            reads_in: 16,
            reads_out: 4,
            receives: 32,
            message: 8192,
            grants: 64,
            shared: true,
            kinds: KINDS,
        }
    }

    #[test]
    fn terms_are_read_as_they_were_written() {
        let terms = terms();
        let mut bytes = terms.encode();
        assert_eq!(Terms::decode(&bytes), Ok(terms));
        bytes.extend([1, 2, 3]);
        assert_eq!(Terms::decode(&bytes), Ok(terms), "later versions may say more");
        bytes.truncate(40);
        assert_eq!(Terms::decode(&bytes), Ok(Terms { shared: false, kinds: KINDS_MIN, ..terms }));
        let golden: String = terms.encode().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            golden,
            "010103011004000011000000ffffff00002000002000400000000000000000000000ffff0a0000010107"
        );
    }

    #[test]
    fn bad_terms_are_refused() {
        let good = terms().encode();
        for len in 0..size_of::<Layout>() {
            assert_eq!(Terms::decode(&good[..len]).unwrap_err().code, ErrorCode::BadFrame);
        }
        let with = |changes: &[(usize, u8)]| {
            let mut bytes = good.clone();
            changes.iter().for_each(|(at, byte)| bytes[*at] = *byte);
            Terms::decode(&bytes).map_err(|error| error.code)
        };
        let bad: [&[(usize, u8)]; 7] = [
            &[(4, 0)], // reads
            &[(5, 0)],
            &[(8, 1)], // queue pair
            &[(8, 0xFF), (9, 0xFF), (10, 0xFF)],
            &[(11, 1)],
            &[(15, 1)],    // packet number
            &[(24, 0xFF)], // a group
        ];
        for changes in bad {
            assert_eq!(with(changes), Err(ErrorCode::BadFrame), "{changes:?}");
        }
        assert_eq!(with(&[(34, 0), (35, 0), (36, 0), (39, 0)]), Err(ErrorCode::BadFrame), "no address");
        assert_eq!(
            with(&[(1, Link::InfiniBand as u8)]),
            Err(ErrorCode::BadFrame),
            "without a local identifier"
        );
        // What a later version may say is no reason to end a connection.
        assert_eq!(with(&[(0, 2)]), Err(ErrorCode::VersionMismatch));
        let later: [&[(usize, u8)]; 10] = [
            &[(1, 0)], // link
            &[(1, 9)],
            &[(2, 0)], // MTU
            &[(2, 6)],
            &[(3, 0)],           // scope
            &[(16, 0), (17, 1)], // message
            &[(18, 2)],
            &[(20, 3)], // receives
            &[(23, 1)], // grants
            &[(40, 2)], // shared receives
        ];
        for changes in later {
            assert_eq!(with(changes), Err(ErrorCode::InvalidArgument), "{changes:?}");
        }
    }

    #[test]
    fn the_smaller_of_both_counts() {
        let theirs = Terms { mtu: Mtu::from_number(1).unwrap(), reads_in: 1, reads_out: 99, ..terms() };
        let remote = terms().meet(&theirs).unwrap();
        assert_eq!((remote.mtu.bytes(), remote.reads_out, remote.reads_in), (256, 1, 16));
        let other = Terms { link: Link::RoceV1, ..terms() };
        assert_eq!(terms().meet(&other).unwrap_err().code, ErrorCode::InvalidArgument);
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_is_within_its_bounds(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(terms) = Terms::decode(&bytes) {
                prop_assert!((RECEIVES_MIN..=RECEIVES_MAX).contains(&terms.receives) && terms.grants <= GRANTS_MAX);
                prop_assert!((MESSAGE_MIN..=MESSAGE_MAX).contains(&terms.message));
                prop_assert!(terms.queue_pair < 1 << 24 && terms.sequence < 1 << 24);
            }
        }
    }
}
