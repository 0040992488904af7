//! Updates: begin, stage, apply or abandon; then, for pending ones, commit or drop.

use super::inline::InlineVec;
use super::journal::BatchId;
use super::read::Pin;
use corefs_wire::{ChunkId, TargetId, UpdateTag};
use std::ops::Range;

/// One update of one chunk as the head numbered it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Update {
    pub target: TargetId,
    pub chunk: ChunkId,
    pub kind: UpdateKind,
    /// The version that the chunk will have: at the head [`Store::next_version`](super::Store::next_version).
    pub version: u64,
    pub chain_version: u64,
    /// The truncate epoch of the file that the client knew. Lower than the chunk's: refused as `StaleLayout`.
    pub truncate_epoch: u64,
    /// Recognises a retry. A tag with client 0 is nobody's: no duplicate detection (resync).
    pub tag: UpdateTag,
}

/// What an update does. Offsets and lengths are bytes of the chunk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum UpdateKind {
    /// Puts `len` (at least 1) bytes at `offset`, growing the chunk if they end beyond it. A gap reads as zeros.
    Write { offset: u32, len: u32 },
    /// Cuts to `len`, or grows with a hole.
    Truncate { len: u32 },
    /// Removes the chunk; a tombstone keeps its version and epoch.
    Remove,
    /// The whole chunk is these `len` bytes from now on. Any version above the present one will do.
    FullReplace { len: u32 },
}

/// What [`Store::begin_update`](super::Store::begin_update) found.
#[derive(Debug)]
#[must_use]
pub enum Begin {
    /// New: read and merge what the staging names, then stage it.
    Fresh(Staging),
    /// This very update was done before; the remembered result.
    Done(Outcome),
    /// This very update is pending here at `version`: attach and wait.
    InProgress { version: u64 },
}

/// The remembered result of an update.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Outcome {
    pub version: u64,
    /// Length of the chunk after it (bytes), 0 when it was removed.
    pub length: u32,
}

/// An old block that the update only partly overwrites.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Merge {
    /// Which of the staging's blocks.
    pub block: u32,
    /// Where the old block is in the slice (bytes), and the CRC that it must have.
    pub disk_offset: u64,
    pub crc: u32,
    /// The old block's bytes before `keep_front` and those from `keep_back` on are kept; all others of the
    /// new block are the update's or zeros.
    pub keep_front: u32,
    pub keep_back: u32,
}

/// An admitted update whose whole blocks the caller now builds: `blocks` blocks of zeros, the payload's bytes at
/// `payload` (byte range within them), and what the merges keep of old blocks. Pins the old blocks; must end in
/// [`Store::stage`](super::Store::stage) or [`Store::cancel`](super::Store::cancel).
#[must_use = "a staging pins blocks until Store::stage or Store::cancel"]
#[derive(Debug)]
pub struct Staging {
    pub(super) update: Update,
    /// The committed version this is based on; staging fails if it changed meanwhile.
    pub(super) base: u64,
    pub(super) length_after: u32,
    /// First checksum block of the chunk that gets new contents, and how many do.
    pub first_block: u32,
    pub blocks: u32,
    /// Where the payload lies in the buffer of `blocks` blocks (bytes); empty for truncate and remove.
    pub payload: Range<u32>,
    /// At most two, in order of block.
    pub merges: InlineVec<Option<Merge>, 2>,
    pub(super) pin: Pin,
}

/// Whether this replica is the last of its chain.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Finish {
    /// Wait for the successors: durable with the flush, visible with `commit`.
    Pending,
    /// Nobody after this one: committed by the flush of its own record.
    Commit,
}

/// Blocks of the caller's buffer and where they go.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DataWrite {
    /// Where in the slice (bytes).
    pub disk_offset: u64,
    /// First block of the buffer, and how many blocks.
    pub first: u32,
    pub blocks: u32,
}

/// A staged update: fresh blocks are allocated, nothing else has changed. Must end in
/// [`Store::apply`](super::Store::apply) or [`Store::abandon`](super::Store::abandon).
#[must_use = "a plan holds blocks until Store::apply or Store::abandon"]
#[derive(Debug)]
pub struct Plan {
    pub(super) update: Update,
    pub(super) journal_blocks: u32,
    pub(super) ended: bool,
}

impl Drop for Plan {
    fn drop(&mut self) {
        assert!(
            self.ended || std::thread::panicking(),
            "an update's plan was dropped, neither applied nor abandoned"
        );
    }
}

/// What to do for an applied plan: write the data, and have it complete before `batch` is flushed.
#[derive(Debug)]
#[must_use = "the data must be written"]
pub struct Applied {
    /// The batch whose flush makes the update durable.
    pub batch: BatchId,
    pub writes: InlineVec<DataWrite, 2>,
}
