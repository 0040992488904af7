//! Where things are in a slice, and the bytes of its fixed blocks. `docs/disk-format.md` draws them.
//!
//! ```text
//! | superblock 0 | checkpoint area 0 | checkpoint area 1 | journal ring | data blocks | superblock 1 |
//! ```
//! Every block of metadata begins with four bytes of magic and the CRC-32C of all that follows in it, and names
//! the store, so that neither a former store's leftovers nor a misdirected write is ever taken for ours.

use super::codec::{Get, Put};
use super::index::Key;
use corefs_wire::checksum::crc32c;
use corefs_wire::limits::BLOCK;
use corefs_wire::{Error, ErrorCode, NodeId, Result, SliceIndex, Uuid};

/// The version of everything below. Older ones stay readable for ever (fixtures are in `tests/golden`).
pub const FORMAT_VERSION: u32 = 1;
/// The unit of allocation groups (blocks): a default chunk fits one.
pub const GRANULE_BLOCKS: u32 = 128;
/// The usual size of a checkpoint page (bytes).
pub const PAGE_BYTES: u32 = 64 << 10;
/// Payload bytes of a journal block.
pub const JOURNAL_PAYLOAD: usize = BLOCK - JOURNAL_HEADER;
/// Smallest slice that can be formatted (bytes).
pub const SLICE_BYTES_MIN: u64 = 1 << 20;
/// Fewest journal blocks: some records must fit while the checkpoint that frees others is on its way.
pub const JOURNAL_BLOCKS_MIN: u32 = 16;
/// Fewest blocks of one checkpoint area.
pub const CHECKPOINT_BLOCKS_MIN: u32 = 8;

pub(super) const BLOCK_U64: u64 = BLOCK as u64;
pub(super) const JOURNAL_HEADER: usize = 80;
pub(super) const PAGE_HEADER: usize = 96;

const MAGIC_SUPERBLOCK: [u8; 4] = *b"CFSB";
const MAGIC_JOURNAL: [u8; 4] = *b"CFSJ";
const MAGIC_ROOT: [u8; 4] = *b"CFSR";
const MAGIC_PAGE: [u8; 4] = *b"CFSP";

/// Bytes to put at an offset of the slice; both are multiples of 4096.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct DiskWrite {
    pub offset: u64,
    pub bytes: Vec<u8>,
}

/// What never changes in the life of a store: its names and the sizes of its regions.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Geometry {
    pub cluster: Uuid,
    /// Names this store. Random, new at every formatting.
    pub store: Uuid,
    pub node: NodeId,
    pub slice: SliceIndex,
    /// Bytes of the slice, a multiple of 4096.
    pub slice_bytes: u64,
    /// Blocks of *each* of the two checkpoint areas: bounds the index.
    pub checkpoint_blocks: u32,
    /// A checkpoint page is closed when the next entry would make it longer than this (bytes, a multiple of 4096);
    /// an entry that is longer by itself gets a page of its own.
    pub page_bytes: u32,
    /// Blocks of the journal ring.
    pub journal_blocks: u32,
    /// Rows of duplicate detection kept for each target; the least recently used beyond it are forgotten.
    pub dedup_rows_max: u32,
    /// Tombstones of removed chunks kept in the slice; the oldest beyond it raise their target's floor version.
    pub tombstones_max: u32,
}

impl Geometry {
    /// The sizes that fit a slice of `slice_bytes`: 1/64 for each checkpoint area (64 bytes of index for each data
    /// block), 1/64 but at most 128 MiB for the journal.
    pub fn for_slice(
        cluster: Uuid,
        store: Uuid,
        node: NodeId,
        slice: SliceIndex,
        slice_bytes: u64,
    ) -> Result<Self> {
        let slice_bytes = slice_bytes / BLOCK_U64 * BLOCK_U64;
        let blocks = slice_bytes / BLOCK_U64;
        let checkpoint_blocks = (blocks / 64).clamp(CHECKPOINT_BLOCKS_MIN.into(), 1 << 24) as u32;
        let area_bytes = checkpoint_blocks * (BLOCK as u32 / 256);
        let geometry = Self {
            cluster,
            store,
            node,
            slice,
            slice_bytes,
            checkpoint_blocks,
            page_bytes: PAGE_BYTES,
            journal_blocks: (blocks / 64).clamp(2 * u64::from(JOURNAL_BLOCKS_MIN), 32 << 10) as u32,
            dedup_rows_max: area_bytes.clamp(16, 4096),
            tombstones_max: area_bytes.clamp(16, 1 << 20),
        };
        geometry.check()?;
        Ok(geometry)
    }

    /// Refuses sizes that make no store.
    pub fn check(&self) -> Result<()> {
        let refuse = |expected: u64, actual: u64, what: &str| {
            Err(Error::mismatch(ErrorCode::InvalidArgument, expected, actual, what))
        };
        if !self.slice_bytes.is_multiple_of(BLOCK_U64) {
            return refuse(BLOCK_U64, self.slice_bytes, "a slice is whole blocks of 4096 bytes");
        }
        if self.slice_bytes < SLICE_BYTES_MIN {
            return refuse(SLICE_BYTES_MIN, self.slice_bytes, "the slice is too small");
        }
        if self.checkpoint_blocks < CHECKPOINT_BLOCKS_MIN || self.checkpoint_blocks > 1 << 24 {
            return refuse(CHECKPOINT_BLOCKS_MIN.into(), self.checkpoint_blocks.into(), "checkpoint area");
        }
        if self.journal_blocks < JOURNAL_BLOCKS_MIN || self.journal_blocks > 1 << 24 {
            return refuse(JOURNAL_BLOCKS_MIN.into(), self.journal_blocks.into(), "journal ring");
        }
        if self.page_bytes == 0 || self.page_bytes > 1 << 20 || !self.page_bytes.is_multiple_of(BLOCK as u32)
        {
            return refuse(PAGE_BYTES.into(), self.page_bytes.into(), "checkpoint pages");
        }
        if self.dedup_rows_max == 0 || self.tombstones_max == 0 {
            return refuse(1, 0, "rows of duplicate detection and tombstones must be kept");
        }
        let blocks = self.slice_bytes / BLOCK_U64;
        let metadata = self.metadata_blocks();
        if blocks <= metadata {
            return refuse(metadata, blocks, "no room for data in the slice");
        }
        if blocks - metadata >= u64::from(u32::MAX) {
            return refuse(u32::MAX.into(), blocks - metadata, "a slice holds less than 2^32 blocks");
        }
        Ok(())
    }

    fn metadata_blocks(&self) -> u64 {
        2 + 2 * u64::from(self.checkpoint_blocks) + u64::from(self.journal_blocks)
    }

    /// Blocks for data.
    pub fn data_blocks(&self) -> u32 {
        (self.slice_bytes / BLOCK_U64 - self.metadata_blocks()) as u32
    }

    /// Offset of a superblock copy (0 or 1).
    pub fn superblock_offset(&self, copy: u16) -> u64 {
        superblock_offset(self.slice_bytes, copy)
    }

    /// Offset of a checkpoint area (0 or 1): its root block; pages follow.
    pub fn area_offset(&self, area: u32) -> u64 {
        BLOCK_U64 * (1 + u64::from(area) * u64::from(self.checkpoint_blocks))
    }

    /// Offset of the ring's first block.
    pub fn journal_offset(&self) -> u64 {
        BLOCK_U64 * (1 + 2 * u64::from(self.checkpoint_blocks))
    }

    /// Offset of the journal block of a sequence.
    pub fn journal_block_offset(&self, sequence: u64) -> u64 {
        self.journal_offset() + sequence % u64::from(self.journal_blocks) * BLOCK_U64
    }

    /// Offset of a data block.
    pub fn data_offset(&self, block: u32) -> u64 {
        self.journal_offset() + BLOCK_U64 * (u64::from(self.journal_blocks) + u64::from(block))
    }

    /// Encoded bytes of index that surely fit one area, whatever pages it is cut into. Any two neighbouring pages
    /// hold more than `page_bytes` of entries, and each wastes less than a block and its header.
    pub fn index_bytes_max(&self) -> u64 {
        let room = BLOCK_U64 * (u64::from(self.checkpoint_blocks) - 1);
        let waste = (BLOCK + PAGE_HEADER) as u64;
        let page = u64::from(self.page_bytes) - PAGE_HEADER as u64;
        // bytes + waste * (2 * bytes / page + 2) <= room
        room.saturating_sub(2 * waste) * page / (page + 2 * waste)
    }
}

/// Offset of a superblock copy (0 or 1) in a slice of that many bytes: both ends, far from each other.
pub fn superblock_offset(slice_bytes: u64, copy: u16) -> u64 {
    if copy == 0 { 0 } else { slice_bytes / BLOCK_U64 * BLOCK_U64 - BLOCK_U64 }
}

/// The writes that make an empty store; flush them before [`Recovery`](super::Recovery) opens it.
pub fn initial_writes(geometry: &Geometry) -> Vec<DiskWrite> {
    let superblock = Superblock { geometry: *geometry, epoch: 1, epoch_first: 1 };
    let root = Root { area: 0, id: 1, replay_from: 1, next_record: 1, ..Root::default() };
    let write = |offset, bytes| DiskWrite { offset, bytes };
    vec![
        write(geometry.area_offset(0), root.encode(geometry)),
        write(geometry.area_offset(1), vec![0; BLOCK]),
        write(geometry.superblock_offset(1), superblock.encode(1)),
        write(geometry.superblock_offset(0), superblock.encode(0)),
    ]
}

/// Why fixed bytes can't be used.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Unreadable {
    /// Not of this kind at all: never written, or overwritten.
    NotThere,
    /// The CRC doesn't match.
    Damaged,
    /// Of a version that this build doesn't know.
    Version(u32),
    /// Intact, but of another store, place or checkpoint.
    Foreign,
}

/// The first and last block of a slice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Superblock {
    pub geometry: Geometry,
    /// Raised by every recovery. Journal blocks from `epoch_first` on count only if they carry this epoch.
    pub epoch: u64,
    pub epoch_first: u64,
}

impl Superblock {
    pub fn encode(&self, copy: u16) -> Vec<u8> {
        let g = &self.geometry;
        let mut out = begin(MAGIC_SUPERBLOCK);
        out.u32(FORMAT_VERSION);
        out.u32(BLOCK as u32);
        out.extend_from_slice(&g.cluster.0);
        out.extend_from_slice(&g.store.0);
        out.u32(g.node.0);
        out.u16(g.slice.0);
        out.u16(copy);
        out.u64(g.slice_bytes);
        out.u32(GRANULE_BLOCKS);
        out.u32(g.checkpoint_blocks);
        out.u32(g.journal_blocks);
        out.u32(g.data_blocks());
        out.u32(g.dedup_rows_max);
        out.u32(g.tombstones_max);
        out.u64(self.epoch);
        out.u64(self.epoch_first);
        out.u32(g.page_bytes);
        finish(out)
    }

    pub fn decode(bytes: &[u8], copy: u16) -> Result<Self, Unreadable> {
        let mut get = open(bytes, MAGIC_SUPERBLOCK)?;
        Self::fields(&mut get, copy).unwrap_or(Err(Unreadable::Damaged))
    }

    fn fields(get: &mut Get, copy: u16) -> Option<Result<Self, Unreadable>> {
        let version = get.u32()?;
        if version != FORMAT_VERSION {
            return Some(Err(Unreadable::Version(version)));
        }
        let checksum_block = get.u32()?;
        let (cluster, store) = (get.uuid()?, get.uuid()?);
        let (node, slice, copy_found) = (NodeId(get.u32()?), SliceIndex(get.u16()?), get.u16()?);
        let slice_bytes = get.u64()?;
        let granule = get.u32()?;
        let (checkpoint_blocks, journal_blocks, data_blocks) = (get.u32()?, get.u32()?, get.u32()?);
        let (dedup_rows_max, tombstones_max) = (get.u32()?, get.u32()?);
        let (epoch, epoch_first, page_bytes) = (get.u64()?, get.u64()?, get.u32()?);
        let geometry = Geometry {
            cluster,
            store,
            node,
            slice,
            slice_bytes,
            checkpoint_blocks,
            page_bytes,
            journal_blocks,
            dedup_rows_max,
            tombstones_max,
        };
        let known = checksum_block as usize == BLOCK && granule == GRANULE_BLOCKS;
        if !known || geometry.check().is_err() || geometry.data_blocks() != data_blocks {
            return Some(Err(Unreadable::Damaged));
        }
        if copy_found != copy {
            return Some(Err(Unreadable::Foreign));
        }
        let begun = epoch > 0 && epoch < u64::MAX && epoch_first > 0;
        Some(if begun { Ok(Self { geometry, epoch, epoch_first }) } else { Err(Unreadable::Damaged) })
    }
}

/// The first block of a checkpoint area, written after its pages are flushed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Root {
    pub area: u32,
    /// Rises with every checkpoint; its pages carry it.
    pub id: u64,
    /// The journal sequence where replay begins.
    pub replay_from: u64,
    /// Number of the next record when the checkpoint began.
    pub next_record: u64,
    /// Everything up to this sequence was flushed when the root was written.
    pub flushed: u64,
    pub pages: u32,
    pub pages_blocks: u32,
    pub entries: u64,
}

impl Root {
    pub fn encode(&self, geometry: &Geometry) -> Vec<u8> {
        let mut out = begin(MAGIC_ROOT);
        out.u32(FORMAT_VERSION);
        out.u32(self.area);
        out.extend_from_slice(&geometry.store.0);
        out.u64(self.id);
        out.u64(self.replay_from);
        out.u64(self.next_record);
        out.u64(self.flushed);
        out.u32(self.pages);
        out.u32(self.pages_blocks);
        out.u64(self.entries);
        finish(out)
    }

    pub fn decode(bytes: &[u8], geometry: &Geometry, area: u32) -> Result<Self, Unreadable> {
        let mut get = open(bytes, MAGIC_ROOT)?;
        Self::fields(&mut get, geometry, area).unwrap_or(Err(Unreadable::Damaged))
    }

    fn fields(get: &mut Get, geometry: &Geometry, area: u32) -> Option<Result<Self, Unreadable>> {
        let version = get.u32()?;
        if version != FORMAT_VERSION {
            return Some(Err(Unreadable::Version(version)));
        }
        let area_found = get.u32()?;
        if get.uuid()? != geometry.store || area_found != area {
            return Some(Err(Unreadable::Foreign));
        }
        let root = Self {
            area,
            id: get.u64()?,
            replay_from: get.u64()?,
            next_record: get.u64()?,
            flushed: get.u64()?,
            pages: get.u32()?,
            pages_blocks: get.u32()?,
            entries: get.u64()?,
        };
        let fits = root.pages_blocks < geometry.checkpoint_blocks && root.replay_from > 0;
        Some(if fits { Ok(root) } else { Err(Unreadable::Damaged) })
    }
}

/// The head of a checkpoint page: `blocks` blocks of entries in key order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PageHead {
    pub checkpoint: u64,
    pub index: u32,
    pub blocks: u32,
    /// The page shows its keys as they were before the record of this number.
    pub as_of: u64,
    pub payload: u32,
    pub entries: u32,
    /// The last key that the page speaks for: those after the previous page's `upper`, up to and with this one.
    pub(super) upper: Key,
}

impl PageHead {
    /// The page's bytes, whole blocks, sealed by CRC.
    pub(super) fn encode(&self, geometry: &Geometry, payload: &[u8]) -> Vec<u8> {
        let mut out = begin(MAGIC_PAGE);
        out.extend_from_slice(&geometry.store.0);
        out.u64(self.checkpoint);
        out.u32(self.index);
        out.u32(self.blocks);
        out.u64(self.as_of);
        out.u32(self.payload);
        out.u32(self.entries);
        self.upper.put(&mut out);
        out.resize(PAGE_HEADER, 0);
        out.extend_from_slice(payload);
        finish(out)
    }

    /// The head and payload of the page at the front of `bytes`, which may be longer than the page.
    pub(super) fn decode<'a>(bytes: &'a [u8], geometry: &Geometry) -> Result<(Self, &'a [u8]), Unreadable> {
        let blocks = bytes.get(36..40).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
        let page = bytes.get(..blocks.max(1) as usize * BLOCK).ok_or(Unreadable::Damaged)?;
        let mut get = open(page, MAGIC_PAGE)?;
        let head = Self::fields(&mut get, geometry).unwrap_or(Err(Unreadable::Damaged))?;
        let payload = page[PAGE_HEADER..].get(..head.payload as usize).ok_or(Unreadable::Damaged)?;
        Ok((head, payload))
    }

    fn fields(get: &mut Get, geometry: &Geometry) -> Option<Result<Self, Unreadable>> {
        if get.uuid()? != geometry.store {
            return Some(Err(Unreadable::Foreign));
        }
        Some(Ok(Self {
            checkpoint: get.u64()?,
            index: get.u32()?,
            blocks: get.u32()?,
            as_of: get.u64()?,
            payload: get.u32()?,
            entries: get.u32()?,
            upper: Key::get(get)?,
        }))
    }
}

/// The head of a journal block. A batch is `batch_blocks` blocks that begin at sequence `batch_first`; their
/// payloads together are its records.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct JournalHead {
    pub epoch: u64,
    /// Of this block; it lies at slot `sequence % journal_blocks`.
    pub sequence: u64,
    /// F: the highest sequence known to be flushed when this block was written.
    pub flushed: u64,
    pub batch_first: u64,
    pub batch_blocks: u32,
    pub payload: u32,
    /// Number of the batch's first record, and how many there are.
    pub first_record: u64,
    pub records: u32,
    /// Low bits of the newest checkpoint that was flushed when this block was written.
    pub checkpoint: u32,
}

impl JournalHead {
    pub(super) fn encode(&self, geometry: &Geometry, payload: &[u8], out: &mut Vec<u8>) {
        debug_assert!(payload.len() == self.payload as usize && payload.len() <= JOURNAL_PAYLOAD);
        let start = out.len();
        out.extend_from_slice(&MAGIC_JOURNAL);
        out.u32(0);
        out.extend_from_slice(&geometry.store.0);
        out.u64(self.epoch);
        out.u64(self.sequence);
        out.u64(self.flushed);
        out.u64(self.batch_first);
        out.u32(self.batch_blocks);
        out.u32(self.payload);
        out.u64(self.first_record);
        out.u32(self.records);
        out.u32(self.checkpoint);
        debug_assert_eq!(out.len() - start, JOURNAL_HEADER);
        out.extend_from_slice(payload);
        out.resize(start + BLOCK, 0);
        let crc = crc32c(&out[start + 8..]);
        out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads one block; it must belong in `slot` of the ring.
    pub(super) fn decode<'a>(
        bytes: &'a [u8],
        geometry: &Geometry,
        slot: u64,
    ) -> Result<(Self, &'a [u8]), Unreadable> {
        let mut get = open(bytes, MAGIC_JOURNAL)?;
        let head = Self::fields(&mut get, geometry).unwrap_or(Err(Unreadable::Damaged))?;
        if head.sequence % u64::from(geometry.journal_blocks) != slot {
            return Err(Unreadable::Foreign);
        }
        let payload = bytes[JOURNAL_HEADER..].get(..head.payload as usize).ok_or(Unreadable::Damaged)?;
        Ok((head, payload))
    }

    fn fields(get: &mut Get, geometry: &Geometry) -> Option<Result<Self, Unreadable>> {
        if get.uuid()? != geometry.store {
            return Some(Err(Unreadable::Foreign));
        }
        Some(Ok(Self {
            epoch: get.u64()?,
            sequence: get.u64()?,
            flushed: get.u64()?,
            batch_first: get.u64()?,
            batch_blocks: get.u32()?,
            payload: get.u32()?,
            first_record: get.u64()?,
            records: get.u32()?,
            checkpoint: get.u32()?,
        }))
    }
}

fn begin(magic: [u8; 4]) -> Vec<u8> {
    let mut out = Vec::with_capacity(BLOCK);
    out.extend_from_slice(&magic);
    out.u32(0);
    out
}

/// Pads to whole blocks and fills in the CRC.
fn finish(mut out: Vec<u8>) -> Vec<u8> {
    out.resize(out.len().next_multiple_of(BLOCK), 0);
    let crc = crc32c(&out[8..]);
    out[4..8].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Checks magic and CRC; the fields follow.
fn open(bytes: &[u8], magic: [u8; 4]) -> Result<Get<'_>, Unreadable> {
    if bytes.len() < BLOCK || bytes[..4] != magic {
        return Err(Unreadable::NotThere);
    }
    let mut get = Get(&bytes[4..]);
    let stored = get.u32();
    if stored != Some(crc32c(get.0)) {
        return Err(Unreadable::Damaged);
    }
    Ok(get)
}
