//! What a resync asks of a store: what it has committed, as digests and entries, and replacements of whole chunks under the
//! versions that another replica gave them.

use super::Store;
use super::chunk::Chunk;
use super::dedup::{DedupKey, DedupRow};
use super::index::Target;
use super::journal::BatchId;
use super::record::Record;
use super::update::{Begin, Update, check_bounds};
use corefs_wire::limits::BLOCK;
use corefs_wire::resync::{digest, fold};
use corefs_wire::{ChunkId, Error, ErrorCode, Result, TargetId, UpdateTag};

/// What is committed of one chunk, with all that replicas must agree on in its digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Entry {
    pub chunk: ChunkId,
    pub version: u64,
    pub epoch: u64,
    /// Bytes. In an answer to a filler at least 1 if the replica keeps an update of the chunk that it won't commit.
    pub length: u32,
    /// Bytes up to the last block that isn't a hole; 0 in answers.
    pub mapped: u32,
    pub removed: bool,
    pub digest: u64,
}

impl Store {
    /// The committed version of a chunk, a tombstone included; `None` if it never had one or that is forgotten.
    pub fn entry(&self, target: TargetId, chunk: ChunkId) -> Result<Option<Entry>> {
        let found = self.index.target(target)?.chunks.get(&chunk);
        Ok(found.and_then(|found| entry(chunk, found)))
    }

    /// The committed chunks from one to another, both included, at most `max` of them, in order.
    pub fn entries(&self, target: TargetId, from: ChunkId, last: ChunkId, max: usize) -> Result<Vec<Entry>> {
        Ok(in_range(self.index.target(target)?, from, last).take(max).collect())
    }

    /// The digest of the committed chunks from one to another, both included.
    pub fn digest(&self, target: TargetId, from: ChunkId, last: ChunkId) -> Result<u64> {
        Ok(in_range(self.index.target(target)?, from, last).fold(0, |state, entry| entry.fold_into(state)))
    }

    /// Version and tag of a chunk's update that is staged or pending: for onlookers.
    pub fn pending_tag(&self, target: TargetId, chunk: ChunkId) -> Option<(u64, UpdateTag)> {
        let pending = self.index.chunk(target, chunk)?.pending.as_ref()?;
        Some((pending.record.update.version, pending.record.update.tag))
    }

    /// How many chunks a target has, tombstones included.
    pub fn target_chunks(&self, target: TargetId) -> u64 {
        self.index.targets.get(&target).map_or(0, |target| target.chunks.len() as u64)
    }

    /// No version at or below this is given to a chunk that isn't there.
    pub fn floor(&self, target: TargetId) -> Result<u64> {
        Ok(self.index.target(target)?.floor)
    }

    /// Admits a part of a replacement, if what is committed here has the digest `base` (0: nothing is); a patch instead if
    /// its version is here. `BaseDiffers` otherwise, `Pending` while another update of the chunk is.
    pub fn begin_fill(&mut self, update: Update, base: u64) -> Result<Begin> {
        check_bounds(&update)?;
        let found = self.index.target(update.target)?.chunks.get(&update.chunk);
        if let Some(pending) = found.and_then(|chunk| chunk.pending.as_ref()) {
            let version = pending.record.update.version;
            let what = "an update of the chunk is pending";
            return Err(Error::mismatch(ErrorCode::Pending, version, update.version, what));
        }
        let ours = found.and_then(|found| entry(update.chunk, found));
        let fits = match update.kind {
            super::UpdateKind::Patch { offset, len } => ours.is_some_and(|ours| {
                ours.version == update.version && !ours.removed && offset + len <= ours.length
            }),
            _ => digest_of(ours) == base,
        };
        if fits && update.version > 0 {
            return Ok(Begin::Fresh(self.staging_of(update)));
        }
        let what = "the chunk isn't what the fill was made for";
        Err(Error::mismatch(ErrorCode::BaseDiffers, base, digest_of(ours), what))
    }

    /// Another replica gives no version at or below this to chunks that aren't there: neither does this one. Logs it in any
    /// case, into the batch that it names. `Overloaded` while the journal waits.
    pub fn take_floor(&mut self, target: TargetId, version: u64) -> Result<BatchId> {
        self.index.target(target)?;
        self.room_for_one()?;
        self.journal.log(&Record::Floor { target, version });
        self.index.raise_floor(target, version);
        Ok(self.journal.open_batch())
    }

    /// Rows of duplicate detection of a target after one, in order, at most `max`. Only of updates that are over: the row of
    /// one that is pending goes with the update. Handed over by itself it would tell a client that its update is done, when
    /// whoever has it pending is gone and another update has taken its version.
    pub fn rows_after(
        &self,
        target: TargetId,
        after: Option<UpdateTag>,
        max: usize,
    ) -> Result<Vec<DedupRow>> {
        let after = after.map(|tag| DedupKey::of(&tag));
        let target = self.index.target(target)?;
        let pending = |row: &DedupRow| {
            let pending = target.chunks.get(&row.chunk).and_then(|chunk| chunk.pending.as_ref());
            pending.is_some_and(|pending| pending.record.update.tag == row.tag)
        };
        let rows = target.dedup.after(after).map(|(_, (row, _))| *row);
        Ok(rows.filter(|row| !pending(row)).take(max).collect())
    }

    /// All rows, those of pending updates too: for onlookers.
    pub fn dedup_rows(&self, target: TargetId) -> Result<Vec<DedupRow>> {
        Ok(self.index.target(target)?.dedup.after(None).map(|(_, (row, _))| *row).collect())
    }
}

impl Entry {
    /// Folds it into the digest of its range.
    pub fn fold_into(&self, state: u64) -> u64 {
        let ChunkId { inode, index, generation } = self.chunk;
        let place = u64::from(index) << 32 | u64::from(generation);
        fold(fold(fold(state, inode.0), place), self.digest)
    }
}

/// 0 stands for a chunk that isn't there.
fn digest_of(entry: Option<Entry>) -> u64 {
    entry.map_or(0, |entry| entry.digest)
}

fn entry(id: ChunkId, chunk: &Chunk) -> Option<Entry> {
    (chunk.version > 0).then(|| Entry {
        chunk: id,
        version: chunk.version,
        epoch: chunk.epoch(),
        length: chunk.length,
        mapped: chunk.length.min(chunk.mapped() * BLOCK as u32),
        removed: chunk.removed(),
        digest: digest(chunk.version, chunk.epoch(), chunk.length, chunk.removed(), chunk.crcs()),
    })
}

fn in_range(target: &Target, from: ChunkId, last: ChunkId) -> impl Iterator<Item = Entry> {
    // An empty range rather than a panic for bounds that came off the wire the wrong way round.
    let range = if from <= last { from..=last } else { from..=from };
    target.chunks.range(range).filter_map(|(id, chunk)| entry(*id, chunk)).filter(move |_| from <= last)
}
