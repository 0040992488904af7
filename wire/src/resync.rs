//! What a predecessor and the successor that it fills tell each other, besides the fills themselves (which are ordinary
//! updates, see [`data::FILL`](crate::data::FILL)).
//!
//! | operation | request body | reply body |
//! |---|---|---|
//! | [`op::COMPARE`](crate::data::op::COMPARE) | [`Prefix`], [`Compare`] | [`Compared`], then `count` x [`Entry`] |
//! | [`op::ROWS`](crate::data::op::ROWS) | [`Prefix`], [`Rows`], then `count` x [`Row`] | nothing |
//!
//! A **digest** of a chunk says all that replicas must agree on: version, truncate epoch, length, removed or not, and the
//! CRCs of its blocks, holes counting as zeros. The digest of a range folds those of its chunks in order.

use crate::checksum::{ZERO_BLOCK_CRC, crc32c};
use crate::data::Prefix;
use crate::error::{Error, ErrorCode, Result};
use crate::id::{ChainId, ChunkId, ClientId, InodeId, TargetId, UpdateTag};
use crate::limits::{BLOCK, COMPARE_CHUNKS_MAX, ROWS_MAX};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Folds a number into a digest: a full multiplication spreads every bit.
pub fn fold(digest: u64, number: u64) -> u64 {
    let product = u128::from(digest ^ number ^ 0x9E37_79B9_7F4A_7C15) * 0xD6E8_FEB8_6659_FD93;
    product as u64 ^ (product >> 64) as u64
}

/// The digest of a chunk. `crcs` are those of its blocks, which may end before the chunk does. Never 0, which stands for a
/// chunk that isn't there.
pub fn digest(version: u64, epoch: u64, length: u32, removed: bool, crcs: &[u32]) -> u64 {
    let mut bytes = Vec::with_capacity(4 * length.div_ceil(BLOCK as u32) as usize);
    let holes = std::iter::repeat(&ZERO_BLOCK_CRC);
    for crc in crcs.iter().chain(holes).take(length.div_ceil(BLOCK as u32) as usize) {
        bytes.extend_from_slice(&crc.to_le_bytes());
    }
    let state = fold(fold(version, epoch), u64::from(length) << 1 | u64::from(removed));
    fold(state, crc32c(&bytes).into()).max(1)
}

/// A chunk's name.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Key {
    pub inode: U64,
    pub index: U32,
    pub generation: U32,
}
const _: () = assert!(size_of::<Key>() == 16);

impl From<ChunkId> for Key {
    fn from(chunk: ChunkId) -> Self {
        let ChunkId { inode, index, generation } = chunk;
        Self { inode: inode.0.into(), index: index.into(), generation: generation.into() }
    }
}

impl From<Key> for ChunkId {
    fn from(key: Key) -> Self {
        let (index, generation) = (key.index.get(), key.generation.get());
        Self { inode: InodeId(key.inode.get()), index, generation }
    }
}

/// Asks a successor that is being filled for its chunks from `from` to `last`, both included, unless their digest is the
/// given one.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Compare {
    pub chain: U64,
    pub chain_version: U64,
    pub target: U64,
    pub from: Key,
    pub last: Key,
    pub digest: U64,
}
const _: () = assert!(size_of::<Compare>() == 64);

impl Compare {
    pub fn parse(body: &[u8]) -> Result<Self> {
        let bad = || Error::new(ErrorCode::BadFrame, "not a comparison");
        let (_, rest) = Prefix::ref_from_prefix(body).map_err(|_| bad())?;
        Self::read_from_bytes(rest).map_err(|_| bad())
    }
    pub fn chain(&self) -> ChainId {
        ChainId(self.chain.get())
    }
    pub fn target(&self) -> TargetId {
        TargetId(self.target.get())
    }
}

/// The answer: `equal`, or the chunks up to `covered`, which is `last` unless there were more than one answer holds.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Compared {
    pub covered: Key,
    pub equal: U32,
    pub count: U32,
    /// About one chunk: what a fill of it has to name ([`Update::base`](crate::data::Update)), good for one. 0: none.
    pub permit: U64,
}
const _: () = assert!(size_of::<Compared>() == 32);

/// What a replica has committed of one chunk.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Entry {
    pub key: Key,
    pub version: U64,
    pub epoch: U64,
    pub length: U32,
    /// 1: a tombstone.
    pub removed: U32,
    pub digest: U64,
}
const _: () = assert!(size_of::<Entry>() == 48);

/// The answer to a [`Compare`], its entries in order.
pub fn compared(body: &[u8]) -> Result<(&Compared, &[Entry])> {
    let bad = || Error::new(ErrorCode::BadFrame, "not the answer to a comparison");
    let (head, rest) = Compared::ref_from_prefix(body).map_err(|_| bad())?;
    let entries = <[Entry]>::ref_from_bytes(rest).map_err(|_| bad())?;
    let ordered = entries.is_sorted_by(|a, b| ChunkId::from(a.key) < ChunkId::from(b.key));
    let fits = entries.len() == head.count.get() as usize && entries.len() <= COMPARE_CHUNKS_MAX;
    if fits && ordered { Ok((head, entries)) } else { Err(bad()) }
}

/// Hands over rows of duplicate detection, and the floor of versions of chunks that aren't there any more. With `finish` there
/// is nothing more to come: the successor has everything once this is durable.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Rows {
    pub chain: U64,
    pub chain_version: U64,
    pub target: U64,
    pub floor: U64,
    pub count: U32,
    pub finish: U32,
}
const _: () = assert!(size_of::<Rows>() == 40);

impl Rows {
    pub fn chain(&self) -> ChainId {
        ChainId(self.chain.get())
    }
    pub fn target(&self) -> TargetId {
        TargetId(self.target.get())
    }
}

/// The newest update of one channel, see the table of duplicates.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Row {
    pub client: U64,
    pub sequence: U64,
    pub incarnation: U32,
    pub channel: U32,
    pub key: Key,
    pub version: U64,
    pub length: U32,
    /// 1: it was dropped, so that its sequence is new again.
    pub dropped: U32,
}
const _: () = assert!(size_of::<Row>() == 56);

impl Row {
    pub fn tag(&self) -> UpdateTag {
        let (incarnation, channel) = (self.incarnation.get(), self.channel.get());
        UpdateTag { client: ClientId(self.client.get()), sequence: self.sequence.get(), incarnation, channel }
    }
}

/// The parts of a [`Rows`] body.
pub fn rows(body: &[u8]) -> Result<(&Rows, &[Row])> {
    let bad = || Error::new(ErrorCode::BadFrame, "not rows of duplicate detection");
    let (_, rest) = Prefix::ref_from_prefix(body).map_err(|_| bad())?;
    let (head, rest) = Rows::ref_from_prefix(rest).map_err(|_| bad())?;
    let rows = <[Row]>::ref_from_bytes(rest).map_err(|_| bad())?;
    if rows.len() == head.count.get() as usize && rows.len() <= ROWS_MAX {
        Ok((head, rows))
    } else {
        Err(bad())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_what_they_were_and_tell_everything_apart() {
        let crcs = [1, 2, ZERO_BLOCK_CRC];
        let base = digest(7, 1, 12_000, false, &crcs);
        assert_eq!(base, 0x054f_c181_bf61_e128);
        assert_eq!(base, digest(7, 1, 12_000, false, &crcs[..2]), "a hole is zeros");
        let others = [
            digest(8, 1, 12_000, false, &crcs),
            digest(7, 2, 12_000, false, &crcs),
            digest(7, 1, 12_001, false, &crcs),
            digest(7, 1, 12_000, true, &crcs),
            digest(7, 1, 12_000, false, &[1, 3]),
        ];
        assert!(others.iter().all(|other| *other != base && *other != 0));
    }

    #[test]
    fn bodies_are_checked() {
        let entry = |inode: u64| Entry { key: ChunkId::new(InodeId(inode), 1).into(), ..Entry::default() };
        let body = |count: u32, entries: &[Entry]| {
            let head = Compared { count: count.into(), ..Compared::default() };
            [head.as_bytes(), entries.as_bytes()].concat()
        };
        assert_eq!(compared(&body(2, &[entry(1), entry(2)])).unwrap().1.len(), 2);
        assert!(compared(&body(3, &[entry(1), entry(2)])).is_err());
        assert!(compared(&body(2, &[entry(2), entry(1)])).is_err(), "out of order");
        let many: Vec<Entry> = (0..=COMPARE_CHUNKS_MAX as u64).map(entry).collect();
        assert!(compared(&body(many.len() as u32, &many)).is_err());
        let head = Rows { count: 1.into(), ..Rows::default() };
        let body = [Prefix::default().as_bytes(), head.as_bytes(), Row::default().as_bytes()].concat();
        assert_eq!(rows(&body).unwrap().1.len(), 1);
        assert!(rows(&body[..body.len() - 1]).is_err() && rows(&body[..40]).is_err());
        assert!(Compare::parse(&body).is_err());
    }
}
