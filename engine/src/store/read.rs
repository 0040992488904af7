//! Reads: from (chunk, offset, length) to disk blocks and their CRCs, with a pin that keeps them from reuse.

use super::inline::InlineVec;

/// Consecutive checksum blocks of a chunk, consecutive on disk, or a hole.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Piece {
    /// Where the blocks are in the slice (bytes), `None` for a hole, which reads as zeros.
    pub disk_offset: Option<u64>,
    /// Position of the first block within the widened read (blocks).
    pub first: u32,
    /// How many (4 KiB) blocks.
    pub blocks: u32,
}

/// What to read from the disk for one read of a chunk, widened to whole checksum blocks.
///
/// The blocks can't be reused until the plan is given back to [`Store::end_read`](super::Store::end_read), which
/// must happen exactly once, when no disk read or network send looks at them any more. Dropping it panics.
#[must_use = "a read plan pins blocks until Store::end_read"]
#[derive(Debug)]
pub struct ReadPlan {
    /// The committed version that is being read.
    pub version: u64,
    /// Length of the chunk at that version (bytes).
    pub length: u32,
    /// An update is pending on the chunk: the chain decides whether `version` may be shown.
    pub pending: bool,
    /// Byte of the chunk where the first piece begins: the asked offset rounded down to a block.
    pub offset: u32,
    /// Bytes of the asked range that exist: less than asked for when the range passes the chunk's end.
    pub len: u32,
    /// In order, without gaps; none when the range lies beyond the chunk's end.
    pub pieces: InlineVec<Piece, 2>,
    /// CRC-32C of each block, holes included (their CRC is that of zeros).
    pub crcs: InlineVec<u32, 4>,
    pub(super) pin: Pin,
}

/// One reader's hold on all blocks that were live when it was taken. A bomb: see [`ReadPlan`].
#[derive(Debug)]
pub(super) struct Pin {
    pub(super) generation: u64,
    pub(super) released: bool,
}

impl Drop for Pin {
    fn drop(&mut self) {
        assert!(self.released || std::thread::panicking(), "a plan that pins blocks was dropped, not ended");
    }
}
