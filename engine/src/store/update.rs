//! Updates: begin, stage, apply or abandon; then, for pending ones, commit or drop.

use super::Store;
use super::chunk::{Chunk, NARROW_MAX, Stage};
use super::dedup::{DedupKey, DedupRow};
use super::index::DEDUP_BYTES;
use super::inline::InlineVec;
use super::journal::{BatchId, blocks_of};
use super::read::Pin;
use super::record::{RECORD_HEADER, Record, UpdateRecord};
use corefs_wire::limits::{BLOCK, CHUNK_MAX};
use corefs_wire::{ChunkId, Error, ErrorCode, Result, TargetId, UpdateTag};
use std::ops::Range;

const BLOCK_BYTES: u32 = BLOCK as u32;
/// Tombstones forgotten by one removal at most, when there are too many.
const PURGES_MAX: usize = 2;
/// Bytes of the records that may go with an update: an evicted row and forgotten tombstones.
const SIDE_RECORDS: usize = 32 + PURGES_MAX * 40;

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
    /// The whole chunk is these `len` bytes from now on, and a hole up to `total`. Under any version, and with any epoch:
    /// the sender knows what was there, see [`Store::begin_fill`](super::Store::begin_fill).
    FullReplace { len: u32, total: u32 },
    /// Puts `len` bytes at `offset` (whole blocks, but for the chunk's end) of the version that is there: a further part
    /// of a replacement.
    Patch { offset: u32, len: u32 },
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
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
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
    pub merges: InlineVec<Merge, 2>,
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
    /// Promised by the journal and the index until the plan ends.
    pub(super) journal_blocks: u32,
    pub(super) index_bytes: u64,
    writes: InlineVec<DataWrite, 2>,
    ended: bool,
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

impl Staging {
    /// Of a replacement, which only a replica that is being filled takes.
    pub fn is_fill(&self) -> bool {
        matches!(self.update.kind, UpdateKind::FullReplace { .. } | UpdateKind::Patch { .. })
    }
}

impl Merge {
    /// Puts what is kept of the old block into the new one (both 4096 bytes).
    pub fn apply(&self, old: &[u8], new: &mut [u8]) {
        let (front, back) = (self.keep_front as usize, self.keep_back as usize);
        new[..front].copy_from_slice(&old[..front]);
        new[back..BLOCK].copy_from_slice(&old[back..BLOCK]);
    }
}

impl Plan {
    /// Which blocks of the caller's buffer go where, for a look before [`Store::apply`].
    pub fn writes(&self) -> &[DataWrite] {
        &self.writes
    }
}

impl Store {
    /// Admits an update or says why not: `StaleLayout`, `Duplicate` (older than its channel's newest), `Pending`
    /// (another update of the chunk isn't finished), `InvalidArgument` (bounds, version), `UnknownChain` (no such
    /// target).
    pub fn begin_update(&mut self, update: Update) -> Result<Begin> {
        self.begin(update, true)
    }

    /// Like [`Store::begin_update`], for an update that the head has admitted: it alone decides what is a duplicate, and a
    /// replica behind it follows the version.
    pub fn begin_forwarded(&mut self, update: Update) -> Result<Begin> {
        self.begin(update, false)
    }

    fn begin(&mut self, update: Update, first: bool) -> Result<Begin> {
        check_bounds(&update)?;
        let target = self.index.target(update.target)?;
        let chunk = target.chunks.get(&update.chunk);
        let pending = chunk.and_then(|chunk| chunk.pending.as_ref());
        if first
            && update.tag.client.0 != 0
            && let Some(row) = target.dedup.get(&DedupKey::of(&update.tag))
        {
            let (newest, sequence) = (row.tag.sequence, update.tag.sequence);
            if newest > sequence {
                let what = "an older update than its channel's newest";
                return Err(Error::mismatch(ErrorCode::Duplicate, newest, sequence, what));
            }
            if newest == sequence && !row.dropped {
                if row.chunk != update.chunk {
                    let what = format!("the tag was of {} before", row.chunk);
                    return Err(Error::new(ErrorCode::InvalidArgument, what));
                }
                let pending = pending.filter(|pending| pending.record.update.tag == update.tag);
                return Ok(match pending {
                    Some(pending) => Begin::InProgress { version: pending.record.update.version },
                    None => Begin::Done(Outcome { version: row.version, length: row.length }),
                });
            }
        }
        if let Some(pending) = pending {
            let version = pending.record.update.version;
            let what = "another update of the chunk is pending";
            return Err(Error::mismatch(ErrorCode::Pending, version, update.version, what));
        }
        if let Some(chunk) = chunk {
            check_order(&update, chunk)?;
        } else if update.version == 0 {
            return Err(Error::mismatch(ErrorCode::InvalidArgument, 1, 0, "versions begin at 1"));
        }
        Ok(Begin::Fresh(self.staging_of(update)))
    }

    pub(super) fn staging_of(&mut self, update: Update) -> Staging {
        let absent = Chunk::absent();
        let pin = self.limbo.pin();
        let chunk = self.index.chunk(update.target, update.chunk).unwrap_or(&absent);
        plan_blocks(update, chunk, pin, |block| self.geometry.data_offset(block))
    }

    /// Gives up an admitted update before staging.
    pub fn cancel(&mut self, staging: Staging) {
        self.unpin(staging.pin);
    }

    /// Allocates blocks for the merged whole blocks with these CRCs (one for each of the staging's blocks).
    ///
    /// `NoSpace`; `Overloaded` while the journal waits for the checkpoint or blocks are still to be reclaimed;
    /// `Pending` if the chunk changed since it was begun. On error nothing has changed and the staging has ended.
    pub fn stage(&mut self, staging: Staging, crcs: &[u32], finish: Finish) -> Result<Plan> {
        let Staging { update, base, length_after, first_block, blocks, pin, .. } = staging;
        self.unpin(pin);
        assert_eq!(crcs.len(), blocks as usize, "one CRC for each staged block");
        let target = self.index.target(update.target)?;
        let chunk = target.chunks.get(&update.chunk);
        let unchanged = chunk.map_or(base == 0, |chunk| chunk.version == base && chunk.pending.is_none());
        if !unchanged {
            let now = chunk.map_or(0, |chunk| chunk.version);
            let what = "the chunk changed since the update began";
            return Err(Error::mismatch(ErrorCode::Pending, base, now, what));
        }
        let mapped = chunk.map_or(0, Chunk::mapped);
        let grows = (first_block..first_block + blocks)
            .filter(|block| chunk.is_none_or(|chunk| chunk.block(*block).is_none()))
            .count();
        let direct = finish == Finish::Commit;
        let mut record = UpdateRecord {
            update,
            base,
            direct,
            length: length_after,
            first_block,
            runs: vec![],
            crcs: vec![],
        };
        record.crcs.extend_from_slice(crcs);
        let journal_blocks = self.room_for(&record, mapped)?;
        self.check_free(blocks, grows as u32)?;
        let allocated = self.allocator.allocate(blocks, &mut record.runs);
        assert!(allocated, "free blocks were counted");
        self.journal.promise(journal_blocks);
        self.index.promised += DEDUP_BYTES;
        let writes = self.data_writes(&record);
        self.index.put_pending(record, 0, Stage::Staged);
        Ok(Plan { update, journal_blocks, index_bytes: DEDUP_BYTES, writes, ended: false })
    }

    /// Blocks to promise in the journal for an update, whose runs aren't known yet, of a chunk with so many mapped
    /// blocks.
    fn room_for(&self, record: &UpdateRecord, mapped: u32) -> Result<u32> {
        let worst = record.encoded_len() + 8 * record.crcs.len();
        let blocks = blocks_of(RECORD_HEADER + worst + SIDE_RECORDS) + u32::from(!record.direct);
        let ring = self.geometry.journal_blocks;
        if blocks > ring / 2 {
            let what = "the journal is too small for such an update";
            return Err(Error::mismatch(
                ErrorCode::InvalidArgument,
                u64::from(ring / 2),
                blocks.into(),
                what,
            ));
        }
        if !self.journal.has_room(blocks) {
            return Err(Error::new(ErrorCode::Overloaded, "the journal waits for the checkpoint"));
        }
        self.index.may_grow(Chunk::growth_max(worst, record.mapped_after(mapped)) + DEDUP_BYTES)?;
        Ok(blocks)
    }

    /// Some blocks are kept for overwriting and truncating, which give as many back: a full slice stays usable.
    fn check_free(&self, blocks: u32, grows: u32) -> Result<()> {
        let kept = if grows > 0 { (self.allocator.blocks() / 64).min(1024) } else { 0 };
        let wanted = u64::from(blocks) + u64::from(kept);
        let free = self.allocator.free();
        if wanted <= free || blocks == 0 {
            return Ok(());
        }
        if wanted <= free + self.limbo.blocks() {
            return Err(Error::new(ErrorCode::Overloaded, "blocks are still to be reclaimed"));
        }
        Err(Error::mismatch(ErrorCode::NoSpace, wanted, free, "blocks free in the slice"))
    }

    fn data_writes(&self, record: &UpdateRecord) -> InlineVec<DataWrite, 2> {
        let mut writes = InlineVec::new();
        let mut first = 0;
        for run in &record.runs {
            let disk_offset = self.geometry.data_offset(run.start);
            writes.push(DataWrite { disk_offset, first, blocks: run.count });
            first += run.count;
        }
        writes
    }

    /// Puts the update's record into the open batch. From here it can't be taken back.
    pub fn apply(&mut self, mut plan: Plan) -> Applied {
        plan.ended = true;
        self.release_promises(&plan);
        let Update { target, chunk, kind, version, tag, .. } = plan.update;
        let found = self.index.chunk(target, chunk).and_then(|chunk| chunk.pending.as_ref());
        let Some(pending) = found else { panic!("an applied plan isn't staged") };
        let (direct, length) = (pending.record.direct, pending.record.length);
        let number = self.journal.log_update(&pending.record);
        self.index.set_stage(target, chunk, number, Stage::Logged);
        if !direct {
            self.journal.reserve_pending();
        }
        if tag.client.0 != 0 {
            self.put_row(target, DedupRow { tag, chunk, version, length, dropped: false }, number);
        }
        if kind == UpdateKind::Remove {
            self.purge_tombstones();
        }
        self.open_updates.push((target, chunk, number));
        Applied { batch: self.journal.open_batch(), writes: std::mem::take(&mut plan.writes) }
    }

    fn release_promises(&mut self, plan: &Plan) {
        self.journal.release_promise(plan.journal_blocks);
        self.index.promised -= plan.index_bytes;
    }

    /// Puts a row written by record `number`; evicts the least recently used if there are too many.
    fn put_row(&mut self, target: TargetId, row: DedupRow, number: u64) {
        self.index.put_dedup(target, row, number);
        let rows = self.index.targets.get(&target).map_or(0, |target| target.dedup.len());
        if rows > self.geometry.dedup_rows_max as usize
            && let Some(key) = self.index.evictable(target)
        {
            self.journal.log(&Record::DedupEvict { target, key });
            self.index.evict_dedup(target, &key);
        }
    }

    fn purge_tombstones(&mut self) {
        for _ in 0..PURGES_MAX {
            if self.index.tombstones.len() < self.geometry.tombstones_max as usize {
                return;
            }
            let unused = |at: &&(TargetId, ChunkId)| !self.index.pending.contains(at);
            let Some(&(target, chunk)) = self.index.tombstones.values().find(unused) else { return };
            let version = self.index.chunk(target, chunk).map_or(0, |chunk| chunk.version);
            self.journal.log(&Record::Purge { target, chunk, version });
            self.index.purge(target, chunk);
            self.index.raise_floor(target, version);
        }
    }

    /// Undoes a plan of which nothing was written.
    pub fn abandon(&mut self, mut plan: Plan) {
        plan.ended = true;
        self.release_promises(&plan);
        let mut freed = Vec::new();
        self.index.drop_pending(plan.update.target, plan.update.chunk, &mut freed);
        freed.into_iter().for_each(|run| self.allocator.give(run));
    }

    /// Commits the flushed pending update of that version; it is visible at once. Of a version that is committed
    /// already, says so again. `InvalidArgument` if there is no such update or it isn't flushed.
    pub fn commit(
        &mut self,
        target: TargetId,
        chunk: ChunkId,
        version: u64,
        chain_version: u64,
    ) -> Result<Outcome> {
        let found = self.index.target(target)?.chunks.get(&chunk);
        if let Some(found) = found.filter(|found| found.version == version && version > 0) {
            return Ok(Outcome { version, length: found.length });
        }
        let length = self.finished(target, chunk, version, true)?;
        self.journal.release_pending(1);
        let number = self.journal.log(&Record::Commit { target, chunk, version, chain_version });
        let mut freed = Vec::new();
        self.index.commit_pending((target, chunk), chain_version, number, &mut freed);
        self.limbo.put(freed, number);
        Ok(Outcome { version, length })
    }

    /// Drops the pending update of that version; its tag becomes new again. `InvalidArgument` if there is none.
    pub fn drop_pending(&mut self, target: TargetId, chunk: ChunkId, version: u64) -> Result<()> {
        self.finished(target, chunk, version, false)?;
        let pending = self.index.chunk(target, chunk).and_then(|chunk| chunk.pending.as_ref());
        let tag = pending.map_or_else(UpdateTag::default, |pending| pending.record.update.tag);
        self.journal.release_pending(1);
        let number = self.journal.log(&Record::Drop { target, chunk, version, tag });
        let mut freed = Vec::new();
        self.index.drop_pending(target, chunk, &mut freed);
        self.index.mark_dropped(target, &tag);
        self.limbo.put(freed, number);
        Ok(())
    }

    /// Length after the pending update that is about to be committed or dropped.
    fn finished(&self, target: TargetId, chunk: ChunkId, version: u64, flushed: bool) -> Result<u32> {
        let pending = self.index.chunk(target, chunk).and_then(|chunk| chunk.pending.as_ref());
        let there = pending.filter(|pending| match pending.stage {
            Stage::Staged => false,
            Stage::Logged => !flushed && !pending.record.direct,
            Stage::Flushed => true,
        });
        let actual = there.map_or(0, |pending| pending.record.update.version);
        match there {
            Some(_) if !self.journal.has_room(0) => {
                Err(Error::new(ErrorCode::Overloaded, "the journal waits for the checkpoint"))
            }
            Some(pending) if actual == version => Ok(pending.record.length),
            _ => {
                let what = "no such pending update, or not flushed";
                Err(Error::mismatch(ErrorCode::InvalidArgument, version, actual, what))
            }
        }
    }

    /// Takes over a predecessor's row, unless the channel's row here is as new: then this one knows of later updates, which
    /// came while the row was on its way. `Overloaded` and `NoSpace` as for updates.
    pub fn put_dedup_row(&mut self, target: TargetId, row: DedupRow) -> Result<BatchId> {
        let found = self.index.target(target)?.dedup.get(&DedupKey::of(&row.tag));
        let (theirs, dropped) = (row.tag.sequence, row.dropped);
        let newer = |ours: &DedupRow| match ours.tag.sequence.cmp(&theirs) {
            std::cmp::Ordering::Greater => true,
            std::cmp::Ordering::Equal => !ours.dropped || dropped,
            std::cmp::Ordering::Less => false,
        };
        if found.is_some_and(newer) {
            return Ok(self.journal.open_batch());
        }
        let record = Record::DedupPut { target, row };
        self.index.may_grow(DEDUP_BYTES)?;
        if !self.journal.has_room(2) {
            return Err(Error::new(ErrorCode::Overloaded, "the journal waits for the checkpoint"));
        }
        let number = self.journal.log(&record);
        self.put_row(target, row, number);
        Ok(self.journal.open_batch())
    }
}

/// Refuses updates beyond the largest chunk, and numbers beyond what a chunk notes.
pub(super) fn check_bounds(update: &Update) -> Result<()> {
    let largest = update.chain_version.max(update.truncate_epoch);
    if largest > NARROW_MAX {
        let what = "chain versions and truncation epochs have 32 bits";
        return Err(Error::mismatch(ErrorCode::InvalidArgument, NARROW_MAX, largest, what));
    }
    let (end, least) = match update.kind {
        UpdateKind::Write { offset, len } => (u64::from(offset) + u64::from(len), len),
        UpdateKind::Truncate { len } => (len.into(), 1),
        UpdateKind::FullReplace { len, total } => (total.max(len).into(), u32::from(len <= total)),
        UpdateKind::Patch { offset, len } => {
            (u64::from(offset) + u64::from(len), if offset % BLOCK_BYTES == 0 { len } else { 0 })
        }
        UpdateKind::Remove => (0, 1),
    };
    if end > CHUNK_MAX.into() || least == 0 {
        let what = "an update must end within the largest chunk, and a write must write something";
        return Err(Error::mismatch(ErrorCode::InvalidArgument, CHUNK_MAX.into(), end, what));
    }
    Ok(())
}

/// Refuses versions out of order and epochs of before a truncation.
fn check_order(update: &Update, chunk: &Chunk) -> Result<()> {
    if update.truncate_epoch < chunk.epoch() {
        let what = "the file was truncated since";
        return Err(Error::mismatch(ErrorCode::StaleLayout, chunk.epoch(), update.truncate_epoch, what));
    }
    let any_above = chunk.removed() || matches!(update.kind, UpdateKind::FullReplace { .. });
    let next = chunk.version + 1;
    if update.version == next || (any_above && update.version > next) {
        return Ok(());
    }
    let what = "the update's version doesn't follow the chunk's";
    Err(Error::mismatch(ErrorCode::InvalidArgument, next, update.version, what))
}

/// Which blocks an update touches, and what it keeps of old ones.
fn plan_blocks(update: Update, chunk: &Chunk, pin: Pin, place: impl Fn(u32) -> u64) -> Staging {
    let old = chunk.length;
    let mut staging = Staging {
        update,
        base: chunk.version,
        length_after: 0,
        first_block: 0,
        blocks: 0,
        payload: 0..0,
        merges: InlineVec::new(),
        pin,
    };
    match update.kind {
        UpdateKind::Remove => {}
        UpdateKind::FullReplace { len, total } => {
            staging.length_after = total;
            staging.blocks = len.div_ceil(BLOCK_BYTES);
            staging.payload = 0..len;
        }
        UpdateKind::Patch { offset, len } => {
            staging.length_after = old;
            staging.first_block = offset / BLOCK_BYTES;
            staging.blocks = len.div_ceil(BLOCK_BYTES);
            staging.payload = 0..len;
        }
        UpdateKind::Truncate { len } => {
            staging.length_after = len;
            staging.first_block = len / BLOCK_BYTES;
            // Cutting within a block zeroes the rest of it; in a hole there is nothing to zero.
            let cut = len < old && len % BLOCK_BYTES != 0;
            if cut && let Some((block, crc)) = chunk.block(staging.first_block) {
                staging.blocks = 1;
                let (keep_front, keep_back) = (len % BLOCK_BYTES, BLOCK_BYTES);
                let disk_offset = place(block);
                staging.merges.push(Merge { block: 0, disk_offset, crc, keep_front, keep_back });
            }
        }
        UpdateKind::Write { offset, len } => {
            let end = offset + len;
            let (first, last) = (offset / BLOCK_BYTES, (end - 1) / BLOCK_BYTES);
            staging.length_after = end.max(old);
            staging.first_block = first;
            staging.blocks = last - first + 1;
            staging.payload = offset % BLOCK_BYTES..offset % BLOCK_BYTES + len;
            for index in [first, last] {
                let keep_front = if index == first { offset % BLOCK_BYTES } else { 0 };
                let cut = index == last && end % BLOCK_BYTES != 0 && end < old;
                let keep_back = if cut { end % BLOCK_BYTES } else { BLOCK_BYTES };
                let seen = index == last && first == last && !staging.merges.is_empty();
                if (keep_front > 0 || cut)
                    && !seen
                    && let Some((block, crc)) = chunk.block(index)
                {
                    let (block, disk_offset) = (index - first, place(block));
                    staging.merges.push(Merge { block, disk_offset, crc, keep_front, keep_back });
                }
            }
        }
    }
    staging
}
