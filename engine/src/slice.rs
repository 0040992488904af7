//! A slice as its shard sees it: the store, and which of its writes are still on their way to the disk.
//!
//! Pure. One batch is sealed at a time; data of updates applied after it belong to the next. When everything that
//! was counted for the sealed batch is complete, its disk may be flushed.

use crate::event::{DiskIndex, Nanos, Output, Outputs};
use crate::store::{Applied, BatchId, Durable, Store};
use corefs_wire::{ChunkId, SliceIndex, TargetId};

/// How long records that nobody waits for (commits, freed blocks, parts of fills) may gather (nanoseconds). Every flush
/// stops the disk for whoever reads: docs/performance.md.
pub const LAZY: Nanos = 100_000_000;
/// How long a slice is idle before its journal says that its last flush is done (nanoseconds).
pub const SEAL_AFTER: Nanos = 200_000_000;
/// Bytes of checkpoint that ride in one batch at least.
pub const CHECKPOINT_BUDGET: usize = 256 << 10;

/// What a flush of the slice's disk has settled.
#[derive(Debug, Default)]
pub struct Settled {
    pub durable: Vec<Durable>,
    pub dropped: Vec<(TargetId, ChunkId)>,
}

/// One slice of a shard.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Slice {
    pub index: SliceIndex,
    pub disk: DiskIndex,
    pub store: Store,
    alive: bool,
    /// The batch that is being written, and the last that was flushed.
    sealed: Option<BatchId>,
    flushed: Option<BatchId>,
    /// Its writes, and those of updates applied before it was sealed, that aren't complete.
    sealed_writes: u32,
    /// Writes of updates applied since.
    open_writes: u32,
    sealed_drops: Vec<(TargetId, ChunkId)>,
    open_drops: Vec<(TargetId, ChunkId)>,
    /// Somebody waits for the next batch.
    urgent: bool,
    /// Since when something less urgent waits for a batch.
    waiting_since: Option<Nanos>,
    /// A last checkpoint is wanted, or has been made, before the slice is closed.
    closing: Closing,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Closing {
    Open,
    Checkpoint,
    Done,
}

impl Slice {
    pub fn new(index: SliceIndex, disk: DiskIndex, store: Store) -> Self {
        Self {
            index,
            disk,
            store,
            alive: true,
            sealed: None,
            flushed: None,
            sealed_writes: 0,
            open_writes: 0,
            sealed_drops: Vec::new(),
            open_drops: Vec::new(),
            urgent: false,
            waiting_since: None,
            closing: Closing::Open,
        }
    }

    pub fn alive(&self) -> bool {
        self.alive
    }

    /// A write or a flush failed. The store is kept only to give plans back.
    pub fn die(&mut self) {
        self.alive = false;
        self.sealed = None;
    }

    /// An update was applied, and perhaps somebody waits for its flush.
    pub fn applied(&mut self, applied: &Applied, urgent: bool) {
        self.open_writes += applied.writes.len() as u32;
        self.urgent |= urgent;
    }

    pub fn dropped(&mut self, target: TargetId, chunk: ChunkId) {
        self.open_drops.push((target, chunk));
        self.urgent = true;
    }

    /// A change whose durability somebody waits for, that has no data.
    pub fn hurry(&mut self) {
        self.urgent = true;
    }

    /// Somebody waits for room that may come back with the next batch, if there is something to put into it.
    pub fn hurry_what_waits(&mut self) {
        self.urgent |= self.alive && self.store.wants_batch();
    }

    /// One data write of `batch` is complete.
    pub fn data_written(&mut self, batch: BatchId) {
        if !self.alive {
            return;
        }
        let sealed = self.sealed.is_some_and(|sealed| batch <= sealed);
        let writes = if sealed { &mut self.sealed_writes } else { &mut self.open_writes };
        *writes = writes.checked_sub(1).expect("no more writes complete than were asked for");
    }

    /// One write of the sealed batch is complete.
    pub fn batch_written(&mut self) {
        if self.alive {
            self.sealed_writes =
                self.sealed_writes.checked_sub(1).expect("no more writes complete than were asked for");
        }
    }

    /// Whether everything logged into `batch` is on the disk.
    pub fn has_flushed(&self, batch: BatchId) -> bool {
        self.alive && self.flushed.is_some_and(|flushed| batch <= flushed)
    }

    pub fn is_sealed(&self) -> bool {
        self.sealed.is_some()
    }

    /// Everything that the flush must cover is complete.
    pub fn is_written(&self) -> bool {
        self.sealed_writes == 0
    }

    /// Seals what has gathered, if it is time; whether a batch is on its way now.
    pub fn seal(&mut self, now: Nanos, out: &mut Outputs) -> bool {
        if !self.alive || self.sealed.is_some() || !self.is_time(now) {
            return self.alive && self.sealed.is_some();
        }
        if self.closing == Closing::Checkpoint || self.store.wants_checkpoint() {
            // More when a large index has to be written before the journal is full.
            let budget = self.store.checkpoint_budget().max(CHECKPOINT_BUDGET);
            let more = self.store.checkpoint_step(budget);
            if self.closing == Closing::Checkpoint && !more {
                self.closing = Closing::Done;
            }
        }
        let Some(batch) = self.store.seal_batch() else { return false };
        self.sealed = Some(batch.id);
        self.sealed_writes = self.open_writes + batch.writes.len() as u32;
        self.open_writes = 0;
        self.sealed_drops.append(&mut self.open_drops);
        self.urgent = false;
        self.waiting_since = None;
        out.push(Output::WriteBatch { slice: self.index, writes: batch.writes });
        true
    }

    fn is_time(&mut self, now: Nanos) -> bool {
        if self.urgent || self.closing == Closing::Checkpoint {
            return true;
        }
        let patience = match (self.store.wants_batch() || self.store.wants_checkpoint(), self.closing) {
            (true, Closing::Open) => LAZY,
            (true, _) => 0,
            (false, _) if !self.store.wants_seal() => {
                self.waiting_since = None;
                return false;
            }
            (false, Closing::Open) => SEAL_AFTER,
            (false, _) => 0,
        };
        now >= *self.waiting_since.get_or_insert(now) + patience
    }

    /// When [`Self::seal`] should be called again though nothing happens.
    pub fn next_deadline(&self) -> Option<Nanos> {
        let since = self.waiting_since.filter(|_| self.alive && self.sealed.is_none())?;
        let lazy = self.store.wants_batch() || self.store.wants_checkpoint();
        Some(since + if lazy { LAZY } else { SEAL_AFTER })
    }

    /// The disk was flushed after everything sealed was complete.
    pub fn flushed(&mut self) -> Settled {
        let Some(batch) = self.sealed.take().filter(|_| self.alive) else { return Settled::default() };
        self.flushed = Some(batch);
        Settled { durable: self.store.batch_flushed(batch), dropped: std::mem::take(&mut self.sealed_drops) }
    }

    /// Asks for a last checkpoint; then nothing is left to replay at the next start.
    pub fn close(&mut self) {
        if self.closing == Closing::Open {
            self.closing = Closing::Checkpoint;
        }
    }

    /// Nothing is on its way and, after [`Self::close`], nothing is left to write.
    pub fn is_closed(&self) -> bool {
        let written = self.sealed.is_none() && self.open_writes == 0 && !self.urgent;
        let nothing_left = !self.store.wants_batch() && !self.store.wants_seal();
        !self.alive || (written && self.closing == Closing::Done && nothing_left)
    }
}
