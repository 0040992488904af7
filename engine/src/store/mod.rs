//! The chunk store of one slice: which bytes of a disk hold which chunk, and what is safe to say about them.
//!
//! Pure: no I/O, clock, thread, randomness or async. A [`Store`] is told what happened and answers with what to
//! read or write; the shard (or the simulation) does it. All disk offsets are relative to the slice, in bytes,
//! multiples of 4096. The layout is in `docs/disk-format.md`.
//!
//! # The life of a slice
//! [`format::initial_writes`] formats it; [`Recovery`] reads it and yields the [`Store`]; after a failed write or
//! flush the `Store` is dropped and the slice is dead (never retry as if nothing happened).
//!
//! # The life of an update
//! 1. [`Store::begin_update`] checks version, epoch, duplicates and bounds, and names the (at most two) old blocks
//!    that must be read, verified and merged: a [`Staging`] (ends in `stage` or [`Store::cancel`]).
//! 2. [`Store::stage`] takes the CRCs of the merged whole blocks and allocates fresh ones: a [`Plan`].
//! 3. [`Store::apply`] puts its record into the open batch and says which data to write where; from here on the
//!    only failure is the death of the slice. ([`Store::abandon`] instead undoes the plan. No data of the plan may
//!    have been submitted to the disk by then.)
//! 4. [`Store::seal_batch`] packs all open records. The shard writes the journal blocks, and when these *and all
//!    data of plans applied into this batch or earlier* are complete, flushes the disk once and calls
//!    [`Store::batch_flushed`]. One batch is in flight at a time; records gather meanwhile (group commit).
//! 5. Staged with [`Finish::Commit`] (alone, or last of a chain) the update is committed by that flush. Staged with
//!    [`Finish::Pending`] it is durable but invisible until [`Store::commit`], whose record needs no flush of its
//!    own before the acknowledgment, or gone after [`Store::drop_pending`].
//!
//! # Invariants
//! - A block is in exactly one place: free, or of one chunk's committed version, or of one pending update, or in
//!   limbo (superseded, but the record that says so isn't flushed, or a read may still be looking at it).
//! - What a valid checkpoint and the flushed journal name was never overwritten since.
//! - Bytes of a chunk's last block beyond its length are zeros, so that bytes cut off never come back.
//! - Record numbers and journal sequences rise; the journal's epoch rises with every recovery.
//! - In the journal there is always room for one record of every update that is pending.

pub mod disk_log;
pub mod format;

mod codec;
mod dedup;
mod index;
mod inline;
mod journal;
mod read;
mod recovery;
mod update;

pub use dedup::DedupRow;
pub use format::{DiskWrite, Geometry};
pub use index::{ChunkInfo, ChunkStatus, PendingInfo};
pub use inline::InlineVec;
pub use journal::BatchId;
pub use read::{Piece, ReadPlan};
pub use recovery::{Damage, DamageKind, Input, Need, READ_MAX, Recovery, RecoveryReport};
pub use update::{Applied, Begin, DataWrite, Finish, Merge, Outcome, Plan, Staging, Update, UpdateKind};

use corefs_wire::{ChainId, ChunkId, InodeId, Result, TargetId};

/// Bytes of a slice's data region, by use. `total` is the sum of the others.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Space {
    pub total: u64,
    /// Of committed versions of chunks.
    pub used: u64,
    pub free: u64,
    /// Of updates not yet committed, and of superseded blocks that can't be reused yet.
    pub reserved: u64,
}

/// Figures for people and tests.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct StoreStats {
    pub chunks: u64,
    pub tombstones: u64,
    pub pendings: u64,
    /// Chunks whose blocks aren't contiguous on disk: candidates for defragmentation.
    pub fragmented: u64,
    pub checkpoints: u64,
    /// Journal blocks in use, of how many.
    pub journal_used: u32,
    pub journal_blocks: u32,
    /// Encoded bytes of the index, and the most that the checkpoint areas hold.
    pub index_bytes: u64,
    pub index_bytes_max: u64,
}

/// Writes that one flush makes durable together.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use = "a batch must be written, flushed and reported by Store::batch_flushed"]
pub struct Batch {
    pub id: BatchId,
    /// Journal blocks and checkpoint pages, in no order that matters.
    pub writes: Vec<DiskWrite>,
}

/// One update that a flush made durable.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Durable {
    pub target: TargetId,
    pub chunk: ChunkId,
    /// Version and length of the chunk by this update.
    pub outcome: Outcome,
    /// It is also committed (staged with [`Finish::Commit`]); else it is pending.
    pub committed: bool,
}

/// The store of one slice. See the module's documentation.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Store {
    geometry: Geometry,
}

impl Store {
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }
    /// Adds an empty target. `Exists` if it is there; `Overloaded`, `NoSpace` as for updates. Durable with the batch.
    pub fn create_target(&mut self, target: TargetId, chain: ChainId) -> Result<BatchId> {
        let _ = (target, chain);
        todo!()
    }
    /// Removes a target with all its chunks. Plans of it must have ended and none of its updates be staged.
    pub fn remove_target(&mut self, target: TargetId) -> Result<BatchId> {
        let _ = target;
        todo!()
    }
    /// Every target, in order, with the chain it was created for.
    pub fn targets(&self) -> impl Iterator<Item = (TargetId, ChainId)> {
        std::iter::empty()
    }
    /// Bytes of committed chunks of a target (whole blocks).
    pub fn target_used(&self, target: TargetId) -> Option<u64> {
        let _ = target;
        todo!()
    }
    /// What the chain asks about a chunk. `UnknownChain` if the target isn't here.
    pub fn status(&self, target: TargetId, chunk: ChunkId) -> Result<ChunkStatus> {
        let _ = (target, chunk);
        todo!()
    }
    /// The version that the head gives the next update of a chunk: above all it ever had, even if it was removed.
    pub fn next_version(&self, target: TargetId, chunk: ChunkId) -> Result<u64> {
        let _ = (target, chunk);
        todo!()
    }
    /// Plans a read of the committed version. `NoSuchChunk` if there is none. See [`ReadPlan`].
    pub fn read(&mut self, target: TargetId, chunk: ChunkId, offset: u32, len: u32) -> Result<ReadPlan> {
        let _ = (target, chunk, offset, len);
        todo!()
    }
    /// Plans a read of what the pending update will make of the chunk, to send it on again.
    pub fn read_pending(
        &mut self,
        target: TargetId,
        chunk: ChunkId,
        offset: u32,
        len: u32,
    ) -> Result<ReadPlan> {
        let _ = (target, chunk, offset, len);
        todo!()
    }
    /// Nobody looks at the plan's blocks any more.
    pub fn end_read(&mut self, plan: ReadPlan) {
        let _ = plan;
        todo!()
    }
    /// The chunks of an inode from an index on, at most `max`, in order.
    pub fn list(
        &self,
        target: TargetId,
        inode: InodeId,
        from_index: u32,
        max: usize,
    ) -> Result<Vec<ChunkInfo>> {
        let _ = (target, inode, from_index, max);
        todo!()
    }
    /// All chunks of a target after one (`None`: from the first), at most `max`, in order.
    pub fn chunks(&self, target: TargetId, after: Option<ChunkId>, max: usize) -> Result<Vec<ChunkInfo>> {
        let _ = (target, after, max);
        todo!()
    }
    /// All pending updates of a target in order of chunk.
    pub fn pendings(&self, target: TargetId) -> Result<Vec<PendingInfo>> {
        let _ = target;
        todo!()
    }
    /// Admits an update or says why not: `StaleLayout`, `Duplicate`, `Pending` (another update of the chunk isn't
    /// finished), `InvalidArgument` (bounds, version), `UnknownChain` (no such target).
    pub fn begin_update(&mut self, update: Update) -> Result<Begin> {
        let _ = update;
        todo!()
    }
    /// Gives up an admitted update before staging.
    pub fn cancel(&mut self, staging: Staging) {
        let _ = staging;
        todo!()
    }
    /// Allocates blocks for the merged whole blocks with these CRCs (one each). `NoSpace`; `Overloaded` when the
    /// journal waits for the checkpoint or blocks are still to be reclaimed. On error nothing has changed.
    pub fn stage(&mut self, staging: Staging, crcs: &[u32], finish: Finish) -> Result<Plan> {
        let _ = (staging, crcs, finish);
        todo!()
    }
    /// Puts the update's record into the open batch. From here it can't be taken back.
    pub fn apply(&mut self, plan: Plan) -> Applied {
        let _ = plan;
        todo!()
    }
    /// Undoes a plan of which nothing was written.
    pub fn abandon(&mut self, plan: Plan) {
        let _ = plan;
        todo!()
    }
    /// Commits the flushed pending update of that version. Visible at once.
    pub fn commit(
        &mut self,
        target: TargetId,
        chunk: ChunkId,
        version: u64,
        chain_version: u64,
    ) -> Result<Outcome> {
        let _ = (target, chunk, version, chain_version);
        todo!()
    }
    /// Drops the pending update of that version; its tag becomes new again.
    pub fn drop_pending(&mut self, target: TargetId, chunk: ChunkId, version: u64) -> Result<()> {
        let _ = (target, chunk, version);
        todo!()
    }
    /// All rows of duplicate detection of a target, for the end of a resync.
    pub fn dedup_rows(&self, target: TargetId) -> Result<Vec<DedupRow>> {
        let _ = target;
        todo!()
    }
    /// Takes over a predecessor's row.
    pub fn put_dedup_row(&mut self, target: TargetId, row: DedupRow) -> Result<()> {
        let _ = (target, row);
        todo!()
    }
    /// There is something that a flush should make durable soon (records, checkpoint pages, freed blocks).
    pub fn wants_batch(&self) -> bool {
        todo!()
    }
    /// The last batch's flush isn't on record yet: an idle slice should seal an empty batch (a block that says so).
    pub fn wants_seal(&self) -> bool {
        todo!()
    }
    /// Packs all open records and checkpoint pages into writes. `None` when there is nothing to write or a batch
    /// is in flight. With nothing else to write, but `wants_seal`, it is a seal.
    pub fn seal_batch(&mut self) -> Option<Batch> {
        todo!()
    }
    /// The batch's writes and all data of plans applied until it was sealed are complete and flushed.
    pub fn batch_flushed(&mut self, id: BatchId) -> Vec<Durable> {
        let _ = id;
        todo!()
    }
    /// The journal has grown enough (or a checkpoint is under way): call [`Store::checkpoint_step`] every turn.
    pub fn wants_checkpoint(&self) -> bool {
        todo!()
    }
    /// Goes on with the checkpoint, or begins one: prepares about `budget` bytes (at least one page) that ride in
    /// the next batch. Returns whether there is more to do.
    pub fn checkpoint_step(&mut self, budget: usize) -> bool {
        let _ = budget;
        todo!()
    }
    pub fn space(&self) -> Space {
        todo!()
    }
    pub fn stats(&self) -> StoreStats {
        todo!()
    }
}
