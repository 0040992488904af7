//! Reads: from (chunk, offset, length) to disk blocks and their CRCs, with a pin that keeps them from reuse.

use super::Store;
use super::chunk::Chunk;
use super::format::Geometry;
use super::index::{Target, no_target};
use super::inline::InlineVec;
use corefs_wire::checksum::ZERO_BLOCK_CRC;
use corefs_wire::limits::BLOCK;
use corefs_wire::{ChunkId, Error, ErrorCode, Result, TargetId};

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
    /// It will be committed by its own flush: nobody else has it.
    pub direct: bool,
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

impl Store {
    /// Plans a read of the committed version. `NoSuchChunk` if there is none; `UnknownChain` if the target isn't
    /// here. Of several generations of a chunk, the newest not above `chunk.generation` is read.
    pub fn read(&mut self, target: TargetId, chunk: ChunkId, offset: u32, len: u32) -> Result<ReadPlan> {
        let entry = self.index.targets.get(&target).ok_or_else(|| no_target(target))?;
        let found = find(entry, chunk).filter(|chunk| !chunk.removed());
        let found = found.ok_or_else(|| no_chunk(target, chunk))?;
        let mut plan = ReadPlan {
            version: found.version,
            length: found.length,
            pending: found.pending.is_some(),
            direct: found.pending.as_ref().is_some_and(|pending| pending.record.direct),
            offset: offset / BLOCK as u32 * BLOCK as u32,
            len: 0,
            pieces: InlineVec::new(),
            crcs: InlineVec::new(),
            pin: self.limbo.pin(),
        };
        fill(&mut plan, &self.geometry, found, offset, len);
        Ok(plan)
    }

    /// Plans a read of what the pending update makes of the chunk, to send it on again. `NoSuchChunk` if there is
    /// no pending update or it is a removal. Slower than [`Store::read`].
    pub fn read_pending(
        &mut self,
        target: TargetId,
        chunk: ChunkId,
        offset: u32,
        len: u32,
    ) -> Result<ReadPlan> {
        let found = self.index.target(target)?.chunks.get(&chunk).filter(|chunk| chunk.pending.is_some());
        let mut after = found.ok_or_else(|| no_chunk(target, chunk))?.clone();
        after.commit_pending(0, 0, &mut Vec::new());
        if after.removed() {
            return Err(no_chunk(target, chunk));
        }
        let mut plan = ReadPlan {
            version: after.version,
            length: after.length,
            pending: true,
            direct: false,
            offset: offset / BLOCK as u32 * BLOCK as u32,
            len: 0,
            pieces: InlineVec::new(),
            crcs: InlineVec::new(),
            pin: self.limbo.pin(),
        };
        fill(&mut plan, &self.geometry, &after, offset, len);
        Ok(plan)
    }

    /// Nobody looks at the plan's blocks any more.
    pub fn end_read(&mut self, plan: ReadPlan) {
        self.unpin(plan.pin);
    }

    #[inline]
    pub(super) fn unpin(&mut self, pin: Pin) {
        self.limbo.unpin(pin);
        self.reclaim();
    }
}

#[inline]
fn find(target: &Target, id: ChunkId) -> Option<&Chunk> {
    if id.generation == 0 {
        return target.chunks.get(&id);
    }
    let oldest = ChunkId { generation: 0, ..id };
    target.chunks.range(oldest..=id).rev().map(|(_, chunk)| chunk).find(|chunk| chunk.version > 0)
}

#[cold]
fn no_chunk(target: TargetId, chunk: ChunkId) -> Error {
    Error::new(ErrorCode::NoSuchChunk, format!("{chunk} of {target}"))
}

/// Fills in pieces and CRCs of the blocks that hold `[offset, offset + len)` as far as the chunk goes.
#[inline]
fn fill(plan: &mut ReadPlan, geometry: &Geometry, chunk: &Chunk, offset: u32, len: u32) {
    let end = offset.saturating_add(len).min(chunk.length);
    plan.len = end.saturating_sub(offset);
    if plan.len == 0 {
        return;
    }
    let (first, last) = (offset / BLOCK as u32, (end - 1) / BLOCK as u32);
    let crcs = chunk.crcs();
    let mapped = first.min(crcs.len() as u32) as usize..(last as usize + 1).min(crcs.len());
    plan.crcs.extend_from_slice(&crcs[mapped]);
    while plan.crcs.len() < (last - first + 1) as usize {
        plan.crcs.push(ZERO_BLOCK_CRC);
    }
    for index in first..=last {
        let disk_offset = chunk.block(index).map(|(block, _)| geometry.data_offset(block));
        if let Some(piece) = plan.pieces.last_mut() {
            let bytes = u64::from(piece.blocks) * BLOCK as u64;
            if piece.disk_offset.map(|offset| offset + bytes) == disk_offset {
                piece.blocks += 1;
                continue;
            }
        }
        plan.pieces.push(Piece { disk_offset, first: index - first, blocks: 1 });
    }
}
