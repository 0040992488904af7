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
//! 5. Staged with [`Finish::Commit`] (alone, or last of a chain) the update is committed by that flush, or before it, if nobody
//!    is told that it is durable, by [`Store::commit_written`]. Staged with
//!    [`Finish::Pending`] it is durable but invisible until [`Store::commit`], whose record needs no flush of its
//!    own before the acknowledgment, or gone after [`Store::drop_pending`].
//!
//! # Invariants
//! - A block is in exactly one place: free, or of one chunk's committed version, or of one pending update, or in
//!   limbo (superseded, but the record that says so isn't flushed, or a read may still be looking at it).
//! - What a valid checkpoint and the flushed journal leave named was never overwritten since, but for a damaged block of a pinned plan,
//!   with the very bytes that its CRC is of: nobody else writes there while the pin is held (see [`repair`](crate::repair)).
//! - Bytes of a chunk's last block beyond its length are zeros, so that bytes cut off never come back.
//! - Record numbers and journal sequences rise; the journal's epoch rises with every recovery.
//! - In the journal there is always room for one record of every update that is pending.

pub mod check;
pub mod disk_log;
pub mod format;

mod allocator;
mod checkpoint;
mod chunk;
mod chunk_map;
mod codec;
mod dedup;
mod index;
mod inline;
mod journal;
mod limbo;
mod order;
mod prefetch;
mod read;
mod record;
mod recovery;
mod replay;
mod resync;
#[cfg(test)]
mod tests;
mod unsettled;
mod update;

pub use dedup::DedupRow;
pub use format::{DiskWrite, Geometry};
pub use index::{ChunkInfo, ChunkStatus, PendingInfo};
pub use inline::InlineVec;
pub use journal::BatchId;
pub(crate) use prefetch::Expected;
pub use read::{Piece, ReadPlan};
pub use recovery::{Damage, DamageKind, Input, Need, READ_MAX, Recovery, RecoveryReport};
pub use resync::Entry;
pub use update::{Applied, Begin, DataWrite, Finish, Merge, Outcome, Plan, Staging, Update, UpdateKind};

use allocator::Allocator;
use checkpoint::Checkpoint;
use chunk::{Chunk, Stage};
use corefs_wire::limits::BLOCK;
use corefs_wire::{ChainId, ChunkId, Error, ErrorCode, InodeId, Result, TargetId};
use index::Index;
use journal::Journal;
use limbo::Limbo;
use record::{Record, Run};
use std::collections::BTreeSet;
use std::ops::Bound::{Excluded, Unbounded};

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
    index: Index,
    allocator: Allocator,
    limbo: Limbo,
    journal: Journal,
    checkpoint: Checkpoint,
    /// Updates whose records are open, and in the batch in flight, with the numbers of their records.
    open_updates: Vec<(TargetId, ChunkId, u64)>,
    flying_updates: Vec<(TargetId, ChunkId, u64)>,
    /// Targets removed in records that a replay may still see: their ids can't come back before that is over.
    removed_targets: BTreeSet<TargetId>,
}

impl Store {
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Adds an empty target; durable with the batch. `Exists` if it is there or was removed lately (target ids are
    /// never reused); `Overloaded`, `NoSpace` as for updates.
    pub fn create_target(&mut self, target: TargetId, chain: ChainId) -> Result<BatchId> {
        if self.index.targets.contains_key(&target) || self.removed_targets.contains(&target) {
            return Err(Error::new(ErrorCode::Exists, format!("{target} exists, or its id was used")));
        }
        self.index.may_grow(index::TARGET_BYTES)?;
        self.room_for_one()?;
        self.journal.log(&Record::CreateTarget { target, chain });
        self.index.create_target(target, chain, 0);
        Ok(self.journal.open_batch())
    }

    /// Removes a target with all its chunks; durable with the batch. `Pending` while one of its updates is staged
    /// and neither applied nor abandoned.
    pub fn remove_target(&mut self, target: TargetId) -> Result<BatchId> {
        self.index.target(target)?;
        let first = (target, ChunkId::default());
        let pendings = || self.index.pending.range(first..).take_while(|(of, _)| *of == target);
        let pendings: Vec<_> = pendings()
            .filter_map(|(_, id)| self.index.chunk(target, *id)?.pending.as_ref())
            .map(|pending| (pending.stage, pending.record.direct))
            .collect();
        if pendings.iter().any(|(stage, _)| *stage == Stage::Staged) {
            return Err(Error::new(ErrorCode::Pending, format!("an update of {target} is being staged")));
        }
        self.room_for_one()?;
        self.journal.release_pending(pendings.iter().filter(|(_, direct)| !direct).count() as u32);
        let number = self.journal.log(&Record::RemoveTarget { target });
        let mut freed = Vec::new();
        self.index.remove_target(target, &mut freed);
        self.limbo.put(freed, number);
        self.removed_targets.insert(target);
        Ok(self.journal.open_batch())
    }

    fn room_for_one(&self) -> Result<()> {
        if self.journal.has_room(1) {
            return Ok(());
        }
        Err(Error::new(ErrorCode::Overloaded, "the journal waits for the checkpoint"))
    }

    /// Every target, in order, with the chain it was created for.
    pub fn targets(&self) -> impl Iterator<Item = (TargetId, ChainId)> {
        self.index.targets.iter().map(|(id, target)| (*id, target.chain))
    }

    /// Bytes of committed chunks of a target (whole blocks).
    pub fn target_used(&self, target: TargetId) -> Option<u64> {
        Some(self.index.targets.get(&target)?.blocks_used * BLOCK as u64)
    }

    /// What the chain asks about a chunk. `UnknownChain` if the target isn't here.
    pub fn status(&self, target: TargetId, chunk: ChunkId) -> Result<ChunkStatus> {
        let Some(chunk) = self.index.target(target)?.chunks.get(&chunk) else {
            return Ok(ChunkStatus { removed: true, ..ChunkStatus::default() });
        };
        Ok(ChunkStatus {
            version: chunk.version,
            chain_version: chunk.chain_version(),
            truncate_epoch: chunk.epoch(),
            length: chunk.length,
            removed: chunk.removed(),
            pending: chunk.pending.as_ref().map(|pending| pending.record.update.version),
            direct: chunk.pending.as_ref().is_some_and(|pending| pending.record.direct),
        })
    }

    /// The version that the head gives the next update of a chunk: above all it ever had, even if it was removed.
    pub fn next_version(&self, target: TargetId, chunk: ChunkId) -> Result<u64> {
        let target = self.index.target(target)?;
        Ok(match target.chunks.get(&chunk) {
            Some(chunk) if chunk.version > 0 => chunk.version + 1,
            _ => target.floor + 1,
        })
    }

    /// The chunks of an inode from an index on, at most `max`, in order.
    pub fn list(
        &self,
        target: TargetId,
        inode: InodeId,
        from_index: u32,
        max: usize,
    ) -> Result<Vec<ChunkInfo>> {
        let first = ChunkId { inode, index: from_index, generation: 0 };
        let last = ChunkId { inode, index: u32::MAX, generation: u32::MAX };
        Ok(self.index.target(target)?.chunks.range(first..=last).filter_map(info).take(max).collect())
    }

    /// All chunks of a target after one (`None`: from the first), at most `max`, in order.
    pub fn chunks(&self, target: TargetId, after: Option<ChunkId>, max: usize) -> Result<Vec<ChunkInfo>> {
        let range = (after.map_or(Unbounded, Excluded), Unbounded);
        Ok(self.index.target(target)?.chunks.range(range).filter_map(info).take(max).collect())
    }

    /// All updates of a target that are logged and neither committed nor dropped, in order of chunk.
    pub fn pendings(&self, target: TargetId) -> Result<Vec<PendingInfo>> {
        let entry = self.index.target(target)?;
        let of_target = self.index.pending.range((target, ChunkId::default())..);
        let pendings = of_target.take_while(|(of, _)| *of == target).filter_map(|(_, chunk)| {
            let pending = entry.chunks.get(chunk)?.pending.as_ref()?;
            let update = &pending.record.update;
            (pending.stage != Stage::Staged && !pending.record.direct).then_some(PendingInfo {
                chunk: *chunk,
                kind: update.kind,
                version: update.version,
                chain_version: update.chain_version,
                truncate_epoch: update.truncate_epoch,
                tag: update.tag,
                length: pending.record.length,
                flushed: pending.stage == Stage::Flushed,
            })
        });
        Ok(pendings.collect())
    }

    /// Records or checkpoint pages wait for a batch, and none is in flight.
    pub fn wants_batch(&self) -> bool {
        self.journal.idle() && (self.journal.has_open() || self.checkpoint.has_writes())
    }

    /// The last batch's flush isn't on record yet: an idle slice should seal an empty batch, which says so. After
    /// that, damage to the journal's end can't be taken for a power cut.
    pub fn wants_seal(&self) -> bool {
        self.journal.wants_seal()
    }

    /// Packs all open records and checkpoint pages into writes. `None` when there is nothing to write or a batch
    /// is in flight. With nothing else to write, but `wants_seal`, it is a seal.
    pub fn seal_batch(&mut self) -> Option<Batch> {
        let seal = self.journal.wants_seal();
        if !self.wants_batch() && !seal {
            return None;
        }
        let mut writes = Vec::new();
        let id = self.journal.seal(&self.geometry, self.checkpoint.mark(), seal, &mut writes);
        self.checkpoint.seal(id, &self.geometry, &self.journal, &mut writes);
        self.flying_updates = std::mem::take(&mut self.open_updates);
        Some(Batch { id, writes })
    }

    /// The batch's writes and all data of plans applied before it was sealed are complete and flushed. What became
    /// durable, in the order it was applied.
    pub fn batch_flushed(&mut self, id: BatchId) -> Vec<Durable> {
        self.journal.batch_flushed(id);
        if let Some(replay_from) = self.checkpoint.batch_flushed(id) {
            self.journal.advance_tail(replay_from);
        }
        let updates = std::mem::take(&mut self.flying_updates);
        let mut durable = Vec::with_capacity(updates.len());
        for (target, chunk, number) in updates {
            durable.extend(self.update_flushed(target, chunk, number));
        }
        self.reclaim();
        durable
    }

    /// `None` if the update was dropped or its target removed in the meantime.
    fn update_flushed(&mut self, target: TargetId, chunk: ChunkId, number: u64) -> Option<Durable> {
        let pending = self.index.chunk(target, chunk)?.pending.as_ref()?;
        if pending.number != number || pending.stage != Stage::Logged {
            return None;
        }
        let record = &pending.record;
        let (committed, chain_version) = (record.direct, record.update.chain_version);
        let outcome = Outcome { version: record.update.version, length: record.length };
        if committed {
            self.commit_direct(target, chunk, chain_version, number);
        } else {
            self.index.set_stage(target, chunk, number, Stage::Flushed);
        }
        Some(Durable { target, chunk, outcome, committed })
    }

    /// Commits an update that was staged with [`Finish::Commit`], whose data are written, before its flush: for parts of
    /// fills, which are promised to nobody. Until the flush the chunk is, on the disk, what it was before. `None` if there is
    /// no such update, or its flush came first.
    pub fn commit_written(&mut self, target: TargetId, chunk: ChunkId) -> Option<Outcome> {
        let pending = self.index.chunk(target, chunk)?.pending.as_ref()?;
        if pending.stage != Stage::Logged || !pending.record.direct {
            return None;
        }
        let (record, number) = (&pending.record, pending.number);
        let outcome = Outcome { version: record.update.version, length: record.length };
        self.commit_direct(target, chunk, record.update.chain_version, number);
        Some(outcome)
    }

    /// Blocks that it supersedes wait for the flush of its record.
    fn commit_direct(&mut self, target: TargetId, chunk: ChunkId, chain_version: u64, number: u64) {
        let mut freed = Vec::new();
        self.index.commit_pending((target, chunk), chain_version, number, &mut freed);
        self.limbo.put(freed, number);
    }

    fn reclaim(&mut self) {
        while let Some(runs) = self.limbo.take(self.journal.flushed_records()) {
            runs.into_iter().for_each(|run| self.allocator.give(run));
        }
    }

    /// Half of the journal is in use, or a checkpoint is under way: call [`Store::checkpoint_step`] every turn.
    pub fn wants_checkpoint(&self) -> bool {
        let half = self.journal.used() >= self.geometry.journal_blocks / 2;
        self.checkpoint.walking() || (self.checkpoint.idle() && half)
    }

    /// A budget for [`Store::checkpoint_step`] that finishes the walk well before the journal is full: the more
    /// urgent the fuller it is.
    pub fn checkpoint_budget(&self) -> usize {
        let ring = u64::from(self.geometry.journal_blocks);
        let left = ring.saturating_sub(self.journal.used().into()).max(1);
        (4 * self.index.bytes / left).clamp(u64::from(self.geometry.page_bytes), 4 << 20) as usize
    }

    /// Goes on with the checkpoint, or begins one: prepares about `budget` bytes (at least one page) that ride in
    /// the next batch. Returns whether there is more to prepare.
    pub fn checkpoint_step(&mut self, budget: usize) -> bool {
        self.checkpoint.step(&self.geometry, &mut self.index, &self.journal, budget)
    }

    /// Bytes of the slice that hold nothing and may be overwritten: offsets and lengths, rising.
    pub fn free_extents(&self) -> impl Iterator<Item = (u64, u64)> {
        let extent = |run: Run| (self.geometry.data_offset(run.start), u64::from(run.count) * BLOCK as u64);
        self.allocator.free_runs().map(extent)
    }

    pub fn space(&self) -> Space {
        let total = u64::from(self.allocator.blocks());
        let (used, free) = (self.index.blocks_used, self.allocator.free());
        let bytes = |blocks: u64| blocks * BLOCK as u64;
        Space {
            total: bytes(total),
            used: bytes(used),
            free: bytes(free),
            reserved: bytes(total - used - free),
        }
    }

    pub fn stats(&self) -> StoreStats {
        StoreStats {
            chunks: self.index.chunks,
            tombstones: self.index.tombstones.len() as u64,
            pendings: self.index.pending.len() as u64,
            fragmented: self.index.fragmented,
            checkpoints: self.checkpoint.completed(),
            journal_used: self.journal.used(),
            journal_blocks: self.geometry.journal_blocks,
            index_bytes: self.index.bytes,
            index_bytes_max: self.index.bytes_max,
        }
    }
}

fn info((id, chunk): (&ChunkId, &Chunk)) -> Option<ChunkInfo> {
    let committed = !chunk.removed();
    committed.then_some(ChunkInfo { chunk: *id, version: chunk.version, length: chunk.length })
}
