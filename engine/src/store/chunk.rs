//! One chunk in RAM: its committed version's blocks and CRCs, and the update that is pending on it.

use super::codec::{Get, Put};
use super::record::{CHUNK_BLOCKS_MAX, Run, UpdateRecord, push_run};
use super::update::UpdateKind;
use corefs_wire::checksum::ZERO_BLOCK_CRC;
use corefs_wire::limits::{BLOCK, CHUNK_MAX};
use corefs_wire::{ChunkId, TargetId};

/// In a block map: no block, reads as zeros.
pub(super) const HOLE: u32 = u32::MAX;
/// Bytes of an encoded chunk before its map and CRCs.
const CHUNK_FIXED: usize = 72;
/// Bytes of an encoded pending update before its record.
const PENDING_FIXED: usize = 16;

/// Where the blocks of the committed version are.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Body {
    /// A tombstone, by the record of this number; or, with version 0, never committed.
    Removed { stamp: u64 },
    /// All mapped blocks in a row from this one on.
    Contiguous(u32),
    /// Each block, or `HOLE`; the last is not a hole.
    Mapped(Box<[u32]>),
}

/// How far a pending update has come.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Stage {
    /// Blocks allocated, nothing logged.
    Staged,
    /// In the open batch or in one whose flush isn't known.
    Logged,
    Flushed,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Pending {
    pub(super) record: UpdateRecord,
    /// Number of the record, 0 while only staged.
    pub(super) number: u64,
    pub(super) stage: Stage,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Chunk {
    pub(super) version: u64,
    pub(super) chain_version: u64,
    pub(super) epoch: u64,
    /// Bytes.
    pub(super) length: u32,
    /// Data blocks of the committed version.
    used: u32,
    pub(super) body: Body,
    /// Of each mapped block; blocks beyond these up to `length` are holes.
    crcs: Box<[u32]>,
    pub(super) pending: Option<Box<Pending>>,
}

impl Chunk {
    /// A chunk of which nothing is committed yet.
    pub(super) fn absent() -> Self {
        Self {
            version: 0,
            chain_version: 0,
            epoch: 0,
            length: 0,
            used: 0,
            body: Body::Removed { stamp: 0 },
            crcs: Box::default(),
            pending: None,
        }
    }

    pub(super) fn removed(&self) -> bool {
        matches!(self.body, Body::Removed { .. })
    }

    /// Blocks that have a place or lie before one that has.
    pub(super) fn mapped(&self) -> u32 {
        self.crcs.len() as u32
    }

    /// Disk block and CRC of a block of the chunk; `None` for a hole.
    #[inline]
    pub(super) fn block(&self, index: u32) -> Option<(u32, u32)> {
        let crc = *self.crcs.get(index as usize)?;
        let place = match &self.body {
            Body::Removed { .. } => return None,
            Body::Contiguous(start) => start + index,
            Body::Mapped(map) => *map.get(index as usize)?,
        };
        (place != HOLE).then_some((place, crc))
    }

    /// CRCs of the mapped blocks, holes' included.
    #[inline]
    pub(super) fn crcs(&self) -> &[u32] {
        &self.crcs
    }

    /// The blocks of the committed version in order, as runs on disk.
    pub(super) fn runs(&self, out: &mut Vec<Run>) {
        match &self.body {
            Body::Removed { .. } => {}
            Body::Contiguous(start) => push_if_any(out, *start, self.mapped()),
            Body::Mapped(map) => {
                map.iter().filter(|b| **b != HOLE).for_each(|b| push_run(out, Run { start: *b, count: 1 }))
            }
        }
    }

    /// Number of blocks that the committed version occupies.
    pub(super) fn blocks_used(&self) -> u64 {
        self.used.into()
    }

    /// The same, counted.
    pub(super) fn count_blocks(&self) -> u32 {
        match &self.body {
            Body::Removed { .. } => 0,
            Body::Contiguous(_) => self.mapped(),
            Body::Mapped(map) => map.iter().filter(|block| **block != HOLE).count() as u32,
        }
    }

    /// Makes the pending update the committed version; its superseded blocks go to `freed`. `stamp` is the number
    /// of the record that commits it.
    pub(super) fn commit_pending(&mut self, chain_version: u64, stamp: u64, freed: &mut Vec<Run>) {
        let Some(pending) = self.pending.take() else { return };
        let record = pending.record;
        let record_blocks = record.crcs.len() as u32;
        self.version = record.update.version;
        self.chain_version = chain_version;
        self.epoch = match record.update.kind {
            UpdateKind::FullReplace { .. } => record.update.truncate_epoch,
            _ => self.epoch.max(record.update.truncate_epoch),
        };
        let freed_before: u32 = freed.iter().map(|run| run.count).sum();
        match record.update.kind {
            UpdateKind::Remove => {
                self.runs(freed);
                self.body = Body::Removed { stamp };
                self.crcs = Box::default();
                self.length = 0;
            }
            UpdateKind::FullReplace { .. } => {
                self.runs(freed);
                self.body = body_of_runs(&record.runs);
                self.crcs = record.crcs.into();
                self.length = record.length;
            }
            UpdateKind::Write { .. } | UpdateKind::Truncate { .. } | UpdateKind::Patch { .. } => {
                self.splice(&record, freed);
            }
        }
        let freed_after: u32 = freed.iter().map(|run| run.count).sum();
        self.used = self.used + record_blocks - (freed_after - freed_before);
    }

    /// Cuts or grows to the record's length and puts its blocks in place of the old ones.
    fn splice(&mut self, record: &UpdateRecord, freed: &mut Vec<Run>) {
        let (first, count) = (record.first_block as usize, record.crcs.len());
        let old_mapped = self.crcs.len();
        let mapped = record.mapped_after(old_mapped as u32) as usize;
        self.length = record.length;
        if self.removed() {
            self.body = Body::Mapped(Box::default());
        }
        let single = if let [run] = record.runs[..] { Some(run.start) } else { None };
        let whole = first == 0 && count == mapped;
        let appends = first == old_mapped && mapped == first + count;
        match (&self.body, single) {
            (_, Some(start)) if whole => {
                self.runs(freed);
                self.body = Body::Contiguous(start);
            }
            (Body::Contiguous(old), Some(start)) if appends && *old + first as u32 == start => {}
            (Body::Contiguous(old), None) if count == 0 => {
                push_if_any(freed, *old + mapped as u32, (old_mapped - mapped) as u32);
            }
            _ => {
                self.splice_map(record, mapped, freed);
                return;
            }
        }
        self.splice_crcs(record, mapped);
        self.settle();
    }

    /// The general case, block by block.
    fn splice_map(&mut self, record: &UpdateRecord, mapped: usize, freed: &mut Vec<Run>) {
        let first = record.first_block as usize;
        let mut map = self.take_map();
        for old in map.drain(mapped.min(map.len())..) {
            free_block(freed, old);
        }
        map.resize(mapped, HOLE);
        let places = record.runs.iter().flat_map(|run| run.start..run.start + run.count);
        for (slot, place) in map[first.min(mapped)..].iter_mut().zip(places) {
            free_block(freed, *slot);
            *slot = place;
        }
        self.body = Body::Mapped(map.into());
        self.splice_crcs(record, mapped);
        self.settle();
    }

    fn take_map(&mut self) -> Vec<u32> {
        let mapped = self.mapped();
        match std::mem::replace(&mut self.body, Body::Contiguous(0)) {
            Body::Removed { .. } => Vec::new(),
            Body::Contiguous(start) => (start..start + mapped).collect(),
            Body::Mapped(map) => map.into(),
        }
    }

    fn splice_crcs(&mut self, record: &UpdateRecord, mapped: usize) {
        let first = record.first_block as usize;
        if self.crcs.len() != mapped {
            let mut crcs = std::mem::take(&mut self.crcs).into_vec();
            crcs.resize(mapped, ZERO_BLOCK_CRC);
            self.crcs = crcs.into();
        }
        if !record.crcs.is_empty() {
            self.crcs[first..first + record.crcs.len()].copy_from_slice(&record.crcs);
        }
    }

    /// Drops trailing holes and finds out whether the map is contiguous (again).
    fn settle(&mut self) {
        let Body::Mapped(map) = &mut self.body else { return };
        let mapped = map.iter().rposition(|block| *block != HOLE).map_or(0, |last| last + 1);
        if mapped < map.len() {
            *map = map[..mapped].into();
            self.crcs = self.crcs[..mapped].into();
        }
        let start = map.first().copied().unwrap_or(0);
        let contiguous = start != HOLE && map.iter().zip(start..).all(|(block, expected)| *block == expected);
        if contiguous {
            self.body = Body::Contiguous(start);
        }
    }

    pub(super) fn fragmented(&self) -> bool {
        matches!(self.body, Body::Mapped(_))
    }

    /// Bytes that the chunk takes in a checkpoint at most, now and when its pending update is committed.
    pub(super) fn size(&self) -> u64 {
        let map = match &self.body {
            Body::Removed { .. } => 0,
            Body::Contiguous(_) => 4,
            Body::Mapped(map) => 4 * map.len(),
        };
        let own = (CHUNK_FIXED + map + 4 * self.crcs.len()) as u64;
        own + self.pending.as_ref().map_or(0, |pending| {
            let record = &pending.record;
            Self::growth_max(record.encoded_len(), record.mapped_after(self.mapped())) - CHUNK_FIXED as u64
        })
    }

    /// Most bytes that an update adds: with a record of so many bytes, and so many blocks mapped after it.
    pub(super) fn growth_max(record: usize, mapped_after: u32) -> u64 {
        let after = CHUNK_FIXED + 8 * mapped_after as usize + 4;
        (CHUNK_FIXED + after.max(PENDING_FIXED + record)) as u64
    }

    pub(super) fn encode(&self, target: TargetId, id: ChunkId, out: &mut Vec<u8>) {
        let pending = self.pending.as_ref().filter(|pending| pending.stage != Stage::Staged);
        let (body, stamp) = match self.body {
            Body::Removed { stamp } => (0, stamp),
            Body::Contiguous(_) => (1, 0),
            Body::Mapped(_) => (2, 0),
        };
        out.extend_from_slice(&[super::index::CLASS_CHUNK as u8, body, pending.is_some().into(), 0]);
        out.u32(self.length);
        out.u64(target.0);
        out.chunk_id(id);
        out.u64(self.version);
        out.u64(self.chain_version);
        out.u64(self.epoch);
        out.u64(stamp);
        out.u32(self.mapped());
        out.u32(0);
        match &self.body {
            Body::Removed { .. } => {}
            Body::Contiguous(start) => out.u32(*start),
            Body::Mapped(map) => out.u32s(map),
        }
        out.u32s(&self.crcs);
        if let Some(pending) = pending {
            out.u64(pending.number);
            out.u32(pending.record.encoded_len() as u32);
            out.u32(0);
            pending.record.encode(out);
        }
    }

    /// Reads what follows the class byte. What is pending is flushed: else the checkpoint would have no root.
    pub(super) fn decode(get: &mut Get) -> Option<(TargetId, ChunkId, Self)> {
        let (body, pendings, _) = (get.u8()?, get.u8()?, get.u8()?);
        let length = get.u32()?;
        let (target, id) = (TargetId(get.u64()?), get.chunk_id()?);
        let (version, chain_version, epoch, stamp) = (get.u64()?, get.u64()?, get.u64()?, get.u64()?);
        let (mapped, _) = (get.u32()?, get.u32()?);
        if length > CHUNK_MAX || mapped > CHUNK_BLOCKS_MAX || mapped > length.div_ceil(BLOCK as u32) {
            return None;
        }
        let body = match body {
            0 if mapped == 0 => Body::Removed { stamp },
            1 => Body::Contiguous(get.u32().filter(|start| start.checked_add(mapped).is_some())?),
            2 => Body::Mapped(get.u32s(mapped)?.into()),
            _ => return None,
        };
        let crcs = get.u32s(mapped)?.into();
        let mut chunk = Self { version, chain_version, epoch, length, used: 0, body, crcs, pending: None };
        chunk.used = chunk.count_blocks();
        chunk.pending = match pendings {
            0 => None,
            1 => Some(Self::decode_pending(get)?),
            _ => return None,
        };
        Some((target, id, chunk))
    }

    fn decode_pending(get: &mut Get) -> Option<Box<Pending>> {
        let (number, len, _) = (get.u64()?, get.u32()?, get.u32()?);
        let mut body = Get(get.bytes(len as usize)?);
        let record = UpdateRecord::decode(&mut body)?;
        body.is_empty().then(|| Box::new(Pending { record, number, stage: Stage::Flushed }))
    }
}

fn body_of_runs(runs: &[Run]) -> Body {
    match runs {
        [] => Body::Contiguous(0),
        [run] => Body::Contiguous(run.start),
        _ => Body::Mapped(runs.iter().flat_map(|run| run.start..run.start + run.count).collect()),
    }
}

fn push_if_any(runs: &mut Vec<Run>, start: u32, count: u32) {
    if count > 0 {
        push_run(runs, Run { start, count });
    }
}

fn free_block(freed: &mut Vec<Run>, block: u32) {
    if block != HOLE {
        push_run(freed, Run { start: block, count: 1 });
    }
}
