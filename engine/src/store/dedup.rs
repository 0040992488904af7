//! Duplicate detection: the last update of each update channel, per target.

use corefs_wire::{ChunkId, UpdateTag};

/// The newest update of one (client, incarnation, channel) on one target.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DedupRow {
    pub tag: UpdateTag,
    pub chunk: ChunkId,
    pub version: u64,
    /// Length of the chunk after it (bytes).
    pub length: u32,
    /// The update was dropped before it was committed: the same sequence is new again.
    pub dropped: bool,
}
