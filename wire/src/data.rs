//! Bodies of the data path: fixed layouts, little-endian, cast in place, lengths checked before use.
//!
//! | operation | request body | reply body | reply data |
//! |---|---|---|---|
//! | [`op::READ`] | [`Prefix`], then 1 to [`READ_BATCH_MAX`] x [`ReadEntry`] | [`ReadReply`], a CRC per block | whole blocks |
//! | [`op::UPDATE`] | [`Prefix`], [`Update`], a CRC per segment | [`UpdateReply`] | none |
//! | [`op::FETCH`] | [`Prefix`], [`Fetch`] | as of a read | whole blocks |
//! | [`op::PING`] | [`Prefix`] | nothing | |
//! | [`op::LIST`] | [`Prefix`], [`List`] | n x [`ListEntry`] | none |
//!
//! A predecessor that fills its successor also compares and hands over rows: see [`resync`](crate::resync).
//!
//! A read batch gets one reply frame for each entry, under the entry's own request number, in any order, each
//! leaving when its own read ends. The batch frame's own number is not answered unless the whole frame is refused.

use crate::checksum::{crc32c, crcs};
use crate::error::{Error, ErrorCode, Result};
use crate::id::{ChainId, ChunkId, ClientId, InodeId, TargetId, UpdateTag};
use crate::limits::{BLOCK, CHUNK_MAX, FRAME_DATA_MAX, READ_BATCH_MAX};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Operation codes of the data path, below the control operations' 0x0100.
pub mod op {
    pub const READ: u16 = 0x0001;
    pub const UPDATE: u16 = 0x0002;
    pub const LIST: u16 = 0x0003;
    /// From a predecessor to a successor that it fills, see [`resync`](crate::resync).
    pub const COMPARE: u16 = 0x0004;
    pub const ROWS: u16 = 0x0005;
    /// From a replica whose copy is damaged to another of its chain.
    pub const FETCH: u16 = 0x0006;
    /// Answered with nothing: whether anybody is there.
    pub const PING: u16 = 0x0007;
}

/// What every data request starts with. All of it is reserved and zero in version 1: tenant and class for
/// admission control, trace for following one request through the cluster, capability for per-inode grants.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Prefix {
    pub tenant: U32,
    pub class: u8,
    pub reserved: [u8; 3],
    pub trace: U64,
    pub capability: [u8; 32],
}
const _: () = assert!(size_of::<Prefix>() == 48);

/// One read of a batch: `length` bytes at `offset` of a chunk, both whole blocks.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct ReadEntry {
    /// The number under which this read is answered.
    pub request: U64,
    pub chain: U64,
    pub chain_version: U64,
    pub target: U64,
    pub inode: U64,
    pub index: U32,
    pub generation: U32,
    pub offset: U32,
    pub length: U32,
}
const _: () = assert!(size_of::<ReadEntry>() == 56);

impl ReadEntry {
    pub fn chunk(&self) -> ChunkId {
        ChunkId {
            inode: InodeId(self.inode.get()),
            index: self.index.get(),
            generation: self.generation.get(),
        }
    }
    pub fn chain(&self) -> ChainId {
        ChainId(self.chain.get())
    }
    pub fn target(&self) -> TargetId {
        TargetId(self.target.get())
    }
    /// Offset and length are whole blocks inside the largest chunk, and the data fits a frame.
    pub fn check(&self) -> Result<()> {
        let (offset, length) = (self.offset.get() as usize, self.length.get() as usize);
        let whole = offset.is_multiple_of(BLOCK) && length.is_multiple_of(BLOCK) && length > 0;
        if whole && length <= FRAME_DATA_MAX && offset + length <= CHUNK_MAX as usize {
            return Ok(());
        }
        Err(Error::new(
            ErrorCode::InvalidArgument,
            format!("read of {length} bytes at {offset} is not whole blocks in bounds"),
        ))
    }
}

/// The entries of a read batch body.
pub fn read_entries(body: &[u8]) -> Result<(&Prefix, &[ReadEntry])> {
    let bad = || Error::new(ErrorCode::BadFrame, "not a read batch");
    let (prefix, rest) = Prefix::ref_from_prefix(body).map_err(|_| bad())?;
    let entries = <[ReadEntry]>::ref_from_bytes(rest).map_err(|_| bad())?;
    if entries.is_empty() || entries.len() > READ_BATCH_MAX {
        let (most, found) = (READ_BATCH_MAX as u64, entries.len() as u64);
        return Err(Error::mismatch(
            ErrorCode::BadFrame,
            most,
            found,
            "a read batch has 1 to READ_BATCH_MAX entries",
        ));
    }
    Ok((prefix, entries))
}

/// Asks another replica for its copy of blocks, by a replica whose own is damaged and who knows their CRCs: it is answered
/// whatever is under way with the chunk, as soon as the read has ended.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Fetch {
    pub entry: ReadEntry,
    /// 1: what a pending update makes of them, if there is one.
    pub pending: U32,
    pub unused: U32,
}
const _: () = assert!(size_of::<Fetch>() == 64);

impl Fetch {
    pub fn parse(body: &[u8]) -> Result<&Self> {
        let bad = || Error::new(ErrorCode::BadFrame, "not a request for another replica's blocks");
        let (_, rest) = Prefix::ref_from_prefix(body).map_err(|_| bad())?;
        Self::ref_from_bytes(rest).map_err(|_| bad())
    }
}

/// What a read found. Followed by `blocks` CRCs (u32 each); the data is `blocks` whole blocks. Blocks past the end of
/// the chunk aren't sent; the block that holds the end is padded with zeros; holes are zeros.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct ReadReply {
    pub commit_version: U64,
    /// Bytes the whole chunk holds.
    pub chunk_length: U32,
    pub blocks: U32,
}
const _: () = assert!(size_of::<ReadReply>() == 16);

/// The reply and its CRCs.
pub fn read_reply(body: &[u8]) -> Result<(&ReadReply, &[U32])> {
    let bad = || Error::new(ErrorCode::BadFrame, "not a read reply");
    let (reply, rest) = ReadReply::ref_from_prefix(body).map_err(|_| bad())?;
    let crcs = <[U32]>::ref_from_bytes(rest).map_err(|_| bad())?;
    if crcs.len() != reply.blocks.get() as usize { Err(bad()) } else { Ok((reply, crcs)) }
}

/// What an update does to a chunk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum UpdateKind {
    /// Puts `length` bytes at `offset`; the chunk grows when they end past its end.
    Write = 1,
    /// Cuts the chunk to `length` bytes, or extends it with zeros.
    Truncate = 2,
    /// Removes the chunk.
    Remove = 3,
    /// Fills only. The chunk is these `length` bytes from its beginning, and a hole up to `total`.
    Replace = 4,
    /// Fills only. Puts `length` bytes at `offset` of the version that an earlier part of the same fill has made.
    Patch = 5,
}

/// `flags` of an update: it comes from the predecessor, with the version the head gave it.
pub const FORWARDED: u8 = 1;
/// `flags` of an update, with [`FORWARDED`]: it makes a chunk of a successor that is being filled what the predecessor has
/// committed, if `base` is its permit for that.
pub const FILL: u8 = 2;

/// One change of one chunk. Followed by the payload's CRCs, one for each segment that a block boundary of the chunk
/// cuts it into ([`segment_crcs`]); the frame's data is the payload (writes only).
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Update {
    pub chain: U64,
    pub chain_version: U64,
    pub target: U64,
    pub inode: U64,
    pub index: U32,
    pub generation: U32,
    pub kind: u8,
    pub flags: u8,
    pub reserved: [u8; 2],
    /// The file's truncate epoch as the writer knows it.
    pub epoch: U32,
    pub offset: U32,
    pub length: U32,
    /// The version this update makes; 0 from a client, given by the head.
    pub version: U64,
    pub client: U64,
    pub sequence: U64,
    pub incarnation: U32,
    pub channel: U32,
    /// The file's chunk size: the bound of offset + length.
    pub chunk_size: U32,
    pub crcs: U32,
    /// Of a fill: the permit that the successor gave when it was asked what it holds. One that is used up, or given for
    /// what isn't there any more, is refused as [`ErrorCode::BaseDiffers`].
    pub base: U64,
    /// Of a replacing fill: bytes that the whole chunk holds.
    pub total: U32,
    pub unused: U32,
}
const _: () = assert!(size_of::<Update>() == 112);

impl Update {
    pub fn chunk(&self) -> ChunkId {
        ChunkId {
            inode: InodeId(self.inode.get()),
            index: self.index.get(),
            generation: self.generation.get(),
        }
    }
    pub fn chain(&self) -> ChainId {
        ChainId(self.chain.get())
    }
    pub fn target(&self) -> TargetId {
        TargetId(self.target.get())
    }
    pub fn tag(&self) -> UpdateTag {
        UpdateTag {
            client: ClientId(self.client.get()),
            sequence: self.sequence.get(),
            incarnation: self.incarnation.get(),
            channel: self.channel.get(),
        }
    }
    pub fn set_tag(&mut self, tag: UpdateTag) {
        self.client = tag.client.0.into();
        self.sequence = tag.sequence.into();
        self.incarnation = tag.incarnation.into();
        self.channel = tag.channel.into();
    }
    pub fn kind(&self) -> Result<UpdateKind> {
        match self.kind {
            1 => Ok(UpdateKind::Write),
            2 => Ok(UpdateKind::Truncate),
            3 => Ok(UpdateKind::Remove),
            4 => Ok(UpdateKind::Replace),
            5 => Ok(UpdateKind::Patch),
            other => Err(Error::mismatch(ErrorCode::BadFrame, 5, other.into(), "unknown kind of update")),
        }
    }
    /// Offset, length, chunk size, payload and CRC count agree with each other.
    pub fn check(&self, data_len: usize) -> Result<()> {
        let (offset, length) = (self.offset.get() as usize, self.length.get() as usize);
        let chunk_size = self.chunk_size.get();
        let fill = self.flags & FILL != 0;
        let (payload, segments, fits) = match self.kind()? {
            UpdateKind::Write => (length, segments(offset, length), !fill),
            UpdateKind::Truncate => (0, 0, !fill),
            UpdateKind::Remove => (0, 0, true),
            UpdateKind::Replace => {
                let total = self.total.get();
                let fits = offset == 0 && length <= total as usize && total <= chunk_size;
                (length, segments(offset, length), fill && fits)
            }
            UpdateKind::Patch => {
                (length, segments(offset, length), fill && offset.is_multiple_of(BLOCK) && length > 0)
            }
        };
        let end_fits = offset.checked_add(length).is_some_and(|end| end <= chunk_size as usize);
        let size_fits =
            chunk_size.is_power_of_two() && (crate::limits::CHUNK_MIN..=CHUNK_MAX).contains(&chunk_size);
        let empty_write = self.kind == UpdateKind::Write as u8 && length == 0;
        if end_fits
            && size_fits
            && fits
            && !empty_write
            && payload == data_len
            && segments == self.crcs.get() as usize
        {
            return Ok(());
        }
        let what = format!(
            "update of {length} bytes at {offset} in a chunk of {chunk_size} with {data_len} bytes of data"
        );
        Err(Error::new(ErrorCode::InvalidArgument, what))
    }
}

/// The parts of an update's body.
pub fn update(body: &[u8]) -> Result<(&Prefix, &Update, &[U32])> {
    let bad = || Error::new(ErrorCode::BadFrame, "not an update");
    let (prefix, rest) = Prefix::ref_from_prefix(body).map_err(|_| bad())?;
    let (update, rest) = Update::ref_from_prefix(rest).map_err(|_| bad())?;
    let crcs = <[U32]>::ref_from_bytes(rest).map_err(|_| bad())?;
    if crcs.len() != update.crcs.get() as usize { Err(bad()) } else { Ok((prefix, update, crcs)) }
}

/// How many segments block boundaries cut `length` bytes at chunk offset `offset` into.
pub const fn segments(offset: usize, length: usize) -> usize {
    if length == 0 { 0 } else { (offset + length).div_ceil(BLOCK) - offset / BLOCK }
}

/// A CRC for each segment of `payload`, which starts at `offset` of its chunk. A segment that is a whole block has the
/// CRC that will be stored; a part of a block has the CRC of just that part.
pub fn segment_crcs(offset: usize, payload: &[u8], mut each: impl FnMut(u32)) {
    let first = (BLOCK - offset % BLOCK).min(payload.len());
    let (head, rest) = payload.split_at(first);
    if !head.is_empty() {
        each(crc32c(head));
    }
    crcs(rest).for_each(each);
}

/// What a committed update made of its chunk.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct UpdateReply {
    pub version: U64,
    pub chunk_length: U32,
    /// CRC over the stored CRCs (u32, little-endian) of the blocks that the update touched: equal on every replica.
    pub merged_crc: U32,
}
const _: () = assert!(size_of::<UpdateReply>() == 16);

impl UpdateReply {
    pub fn parse(body: &[u8]) -> Result<Self> {
        Self::read_from_bytes(body).map_err(|_| Error::new(ErrorCode::BadFrame, "not an update reply"))
    }
}

/// Asks for the chunks of an inode that a target holds, from an index on, at most `limit`.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct List {
    pub chain: U64,
    pub chain_version: U64,
    pub target: U64,
    pub inode: U64,
    pub from_index: U32,
    pub limit: U32,
}
const _: () = assert!(size_of::<List>() == 40);

impl List {
    pub fn parse(body: &[u8]) -> Result<Self> {
        let bad = || Error::new(ErrorCode::BadFrame, "not a list request");
        let (_, rest) = Prefix::ref_from_prefix(body).map_err(|_| bad())?;
        Self::read_from_bytes(rest).map_err(|_| bad())
    }
}

/// Most entries in one reply to a [`List`]; fewer than asked for means that there are no more.
pub const LIST_MAX: usize = 4096;

/// One chunk of a [`List`] reply, in index order.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct ListEntry {
    pub version: U64,
    pub index: U32,
    pub length: U32,
}
const _: () = assert!(size_of::<ListEntry>() == 16);

/// The entries of a reply to a [`List`].
pub fn list_entries(body: &[u8]) -> Result<&[ListEntry]> {
    <[ListEntry]>::ref_from_bytes(body).map_err(|_| Error::new(ErrorCode::BadFrame, "not a list of chunks"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_follow_block_boundaries() {
        for (offset, length) in
            [(0, 1), (0, BLOCK), (1, BLOCK), (BLOCK - 1, 2), (BLOCK, 3 * BLOCK), (5, 3 * BLOCK), (9, 0)]
        {
            let mut crcs = Vec::new();
            segment_crcs(offset, &vec![3; length], |crc| crcs.push(crc));
            assert_eq!(crcs.len(), segments(offset, length), "{length} bytes at {offset}");
        }
    }

    #[test]
    fn bad_updates_are_refused() {
        let good = Update {
            kind: UpdateKind::Write as u8,
            offset: 10.into(),
            length: 100.into(),
            chunk_size: (64 << 10).into(),
            crcs: 1.into(),
            ..Default::default()
        };
        assert_eq!(good.check(100), Ok(()));
        assert!(good.check(99).is_err());
        assert!(Update { kind: 9, ..good }.check(100).is_err());
        assert!(Update { offset: u32::MAX.into(), ..good }.check(100).is_err());
        assert!(Update { chunk_size: 12345.into(), ..good }.check(100).is_err());
        assert!(Update { crcs: 2.into(), ..good }.check(100).is_err());
        assert!(Update { length: 0.into(), crcs: 0.into(), ..good }.check(0).is_err());
        let replace = Update {
            kind: UpdateKind::Replace as u8,
            flags: FORWARDED | FILL,
            offset: 0.into(),
            total: 100.into(),
            ..good
        };
        assert_eq!(replace.check(100), Ok(()));
        assert!(Update { flags: FORWARDED, ..replace }.check(100).is_err(), "only fills replace");
        assert!(Update { total: 99.into(), ..replace }.check(100).is_err());
        assert!(Update { total: (1 << 20).into(), ..replace }.check(100).is_err());
        let patch = Update { kind: UpdateKind::Patch as u8, offset: 4096.into(), ..replace };
        assert_eq!(patch.check(100), Ok(()));
        assert!(Update { offset: 4095.into(), ..patch }.check(100).is_err());
        assert!(Update { kind: UpdateKind::Write as u8, ..replace }.check(100).is_err());
    }

    #[test]
    fn a_fetch_is_one_entry_exactly() {
        let fetch = Fetch { pending: 1.into(), ..Fetch::default() };
        let mut body = Prefix::default().as_bytes().to_vec();
        assert!(Fetch::parse(&body).is_err());
        body.extend_from_slice(fetch.as_bytes());
        assert_eq!(Fetch::parse(&body), Ok(&fetch));
        body.push(0);
        assert!(Fetch::parse(&body).is_err());
    }

    #[test]
    fn batches_are_bounded_and_whole() {
        let mut body = Prefix::default().as_bytes().to_vec();
        assert!(read_entries(&body).is_err());
        body.extend_from_slice(ReadEntry { length: 4096.into(), ..Default::default() }.as_bytes());
        assert_eq!(read_entries(&body).unwrap().1.len(), 1);
        assert!(read_entries(&body[..body.len() - 1]).is_err());
        assert!(ReadEntry { length: 4095.into(), ..Default::default() }.check().is_err());
        assert!(
            ReadEntry { length: 4096.into(), offset: (CHUNK_MAX).into(), ..Default::default() }
                .check()
                .is_err()
        );
    }
}
