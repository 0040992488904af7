//! One chunk in RAM: its committed version's blocks and CRCs, and the update that is pending on it.

use super::codec::{Get, Put};
use super::record::{CHUNK_BLOCKS_MAX, Run, UpdateRecord, push_run};
use super::update::UpdateKind;
use corefs_wire::checksum::ZERO_BLOCK_CRC;
use corefs_wire::limits::{BLOCK, CHUNK_MAX};
use corefs_wire::{ChunkId, TargetId};
use thin_vec::ThinVec;

const _: () = assert!(size_of::<Chunk>() == 48);

/// In a block map: no block, reads as zeros.
pub(super) const HOLE: u32 = u32::MAX;
/// Bytes of an encoded chunk before its map and CRCs.
const CHUNK_FIXED: usize = 72;
/// Bytes of an encoded pending update before its record.
const PENDING_FIXED: usize = 16;

/// Where the blocks of the committed version are, and the CRC of each. Blocks beyond them up to the length are holes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Body {
    /// A tombstone, by the record of this number; or, with version 0, never committed.
    Removed { stamp: u64 },
    /// One block, as small files have: nothing is allocated for it.
    One { place: u32, crc: u32 },
    /// All in a row from `start` on; never just one.
    Row { start: u32, crcs: ThinVec<u32> },
    /// The place of each or `HOLE`, the last is not a hole; then, in the same order, the CRC of each. `used` have a place.
    Mapped { used: u32, both: ThinVec<u32> },
}

impl Body {
    fn row(start: u32, crcs: ThinVec<u32>) -> Self {
        match crcs[..] {
            [crc] => Self::One { place: start, crc },
            _ => Self::Row { start, crcs },
        }
    }

    /// Of any places and as many CRCs; holes at the end are left out.
    fn of(places: &[u32], crcs: &[u32]) -> Self {
        let mapped = places.iter().rposition(|place| *place != HOLE).map_or(0, |last| last + 1);
        let (places, crcs) = (&places[..mapped], &crcs[..mapped]);
        if let Some(start) = row_of(places) {
            return Self::row(start, crcs.into());
        }
        let used = places.iter().filter(|place| **place != HOLE).count() as u32;
        Self::Mapped { used, both: places.iter().chain(crcs).copied().collect() }
    }
}

/// Where the row begins that these places make, if they make one; 0 for none at all.
fn row_of(places: &[u32]) -> Option<u32> {
    let start = places.first().copied().unwrap_or(0);
    let in_a_row = start != HOLE && places.iter().zip(start..).all(|(place, expected)| *place == expected);
    in_a_row.then_some(start)
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

/// 48 bytes: with its id a cache line, see `chunk_map`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Chunk {
    pub(super) version: u64,
    /// Bytes.
    pub(super) length: u32,
    /// Both below 2^32, see [`narrow`].
    chain_version: u32,
    epoch: u32,
    body: Body,
    pub(super) pending: Option<Box<Pending>>,
}

/// Chain versions and truncation epochs are counted in 64 bits on the wire and on the disk, and refused there above 32 bits, which
/// are enough for one reconfiguration a second for a century.
pub(super) const NARROW_MAX: u64 = u32::MAX as u64;

fn narrow(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

impl Chunk {
    /// A chunk of which nothing is committed yet.
    pub(super) fn absent() -> Self {
        let body = Body::Removed { stamp: 0 };
        Self { version: 0, length: 0, chain_version: 0, epoch: 0, body, pending: None }
    }

    pub(super) fn chain_version(&self) -> u64 {
        self.chain_version.into()
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch.into()
    }

    #[inline]
    pub(super) fn removed(&self) -> bool {
        matches!(self.body, Body::Removed { .. })
    }

    /// The record that removed it.
    pub(super) fn tombstone(&self) -> Option<u64> {
        match self.body {
            Body::Removed { stamp } if self.version > 0 => Some(stamp),
            _ => None,
        }
    }

    /// Blocks that have a place or lie before one that has.
    #[inline]
    pub(super) fn mapped(&self) -> u32 {
        self.crcs().len() as u32
    }

    /// Disk block and CRC of a block of the chunk; `None` for a hole.
    #[inline]
    pub(super) fn block(&self, index: u32) -> Option<(u32, u32)> {
        let at = index as usize;
        match &self.body {
            Body::Removed { .. } => None,
            Body::One { place, crc } => (index == 0).then_some((*place, *crc)),
            Body::Row { start, crcs } => crcs.get(at).map(|crc| (start + index, *crc)),
            Body::Mapped { both, .. } => {
                let (places, crcs) = both.split_at(both.len() / 2);
                let place = *places.get(at)?;
                (place != HOLE).then(|| (place, crcs[at]))
            }
        }
    }

    /// CRCs of the mapped blocks, holes' included.
    #[inline]
    pub(super) fn crcs(&self) -> &[u32] {
        match &self.body {
            Body::Removed { .. } => &[],
            Body::One { crc, .. } => std::slice::from_ref(crc),
            Body::Row { crcs, .. } => crcs,
            Body::Mapped { both, .. } => &both[both.len() / 2..],
        }
    }

    /// The blocks of the committed version in order, as runs on disk.
    pub(super) fn runs(&self, out: &mut Vec<Run>) {
        match &self.body {
            Body::Removed { .. } => {}
            Body::One { place, .. } => push_if_any(out, *place, 1),
            Body::Row { start, crcs } => push_if_any(out, *start, crcs.len() as u32),
            Body::Mapped { both, .. } => {
                both[..both.len() / 2].iter().for_each(|place| free_block(out, *place));
            }
        }
    }

    /// Number of blocks that the committed version occupies.
    pub(super) fn blocks_used(&self) -> u64 {
        match &self.body {
            Body::Mapped { used, .. } => (*used).into(),
            _ => self.mapped().into(),
        }
    }

    /// The same, counted.
    pub(super) fn count_blocks(&self) -> u32 {
        let mut runs = Vec::new();
        self.runs(&mut runs);
        runs.iter().map(|run| run.count).sum()
    }

    /// Makes the pending update the committed version; its superseded blocks go to `freed`. `stamp` is the number
    /// of the record that commits it.
    pub(super) fn commit_pending(&mut self, chain_version: u64, stamp: u64, freed: &mut Vec<Run>) {
        let Some(pending) = self.pending.take() else { return };
        let record = pending.record;
        self.version = record.update.version;
        self.chain_version = narrow(chain_version);
        let epoch = narrow(record.update.truncate_epoch);
        self.epoch = match record.update.kind {
            UpdateKind::FullReplace { .. } => epoch,
            _ => self.epoch.max(epoch),
        };
        match record.update.kind {
            UpdateKind::Remove => {
                self.runs(freed);
                self.body = Body::Removed { stamp };
                self.length = 0;
            }
            UpdateKind::FullReplace { .. } => {
                self.runs(freed);
                self.body = body_of_runs(&record.runs, &record.crcs);
                self.length = record.length;
            }
            UpdateKind::Write { .. } | UpdateKind::Truncate { .. } | UpdateKind::Patch { .. } => {
                self.splice(&record, freed);
            }
        }
    }

    /// Cuts or grows to the record's length and puts its blocks in place of the old ones.
    fn splice(&mut self, record: &UpdateRecord, freed: &mut Vec<Run>) {
        let (first, count) = (record.first_block as usize, record.crcs.len());
        let old_mapped = self.crcs().len();
        let mapped = record.mapped_after(old_mapped as u32) as usize;
        self.length = record.length;
        let single = if let [run] = record.runs[..] { Some(run.start) } else { None };
        let row = match &self.body {
            Body::One { place, .. } => Some(*place),
            Body::Row { start, .. } => Some(*start),
            _ => None,
        };
        let whole = first == 0 && count == mapped;
        let appends = first == old_mapped && mapped == first + count;
        match (row, single) {
            (_, Some(start)) if whole => {
                self.runs(freed);
                self.body = Body::row(start, record.crcs[..].into());
            }
            (Some(old), Some(start)) if appends && old + first as u32 == start => {
                let mut crcs = self.take_crcs();
                crcs.extend_from_slice(&record.crcs);
                self.body = Body::row(old, crcs);
            }
            (Some(old), None) if count == 0 => {
                push_if_any(freed, old + mapped as u32, (old_mapped - mapped) as u32);
                let mut crcs = self.take_crcs();
                crcs.truncate(mapped);
                self.body = Body::row(old, crcs);
            }
            _ => self.splice_map(record, mapped, freed),
        }
    }

    /// The CRCs of a chunk whose blocks are in a row; its body is to be set anew.
    fn take_crcs(&mut self) -> ThinVec<u32> {
        match std::mem::replace(&mut self.body, Body::Removed { stamp: 0 }) {
            Body::One { crc, .. } => [crc][..].into(),
            Body::Row { crcs, .. } => crcs,
            Body::Removed { .. } | Body::Mapped { .. } => ThinVec::new(),
        }
    }

    /// The general case, block by block.
    fn splice_map(&mut self, record: &UpdateRecord, mapped: usize, freed: &mut Vec<Run>) {
        let first = record.first_block as usize;
        let new = record.runs.iter().flat_map(|run| run.start..run.start + run.count).zip(&record.crcs);
        if let Body::Mapped { used, both } = &mut self.body
            && both.len() == 2 * mapped
        {
            let (places, crcs) = both.split_at_mut(mapped);
            for ((place, crc), (new_place, new_crc)) in
                places[first.min(mapped)..].iter_mut().zip(&mut crcs[first.min(mapped)..]).zip(new)
            {
                *used += u32::from(*place == HOLE);
                free_block(freed, *place);
                (*place, *crc) = (new_place, *new_crc);
            }
            if *used as usize == mapped
                && let Some(start) = row_of(places)
            {
                self.body = Body::row(start, (&*crcs).into());
            }
            return;
        }
        let mut places: Vec<u32> =
            (0..self.mapped()).map(|index| self.block(index).map_or(HOLE, |(place, _)| place)).collect();
        let mut crcs = self.crcs().to_vec();
        for old in places.drain(mapped.min(places.len())..) {
            free_block(freed, old);
        }
        places.resize(mapped, HOLE);
        crcs.resize(mapped, ZERO_BLOCK_CRC);
        let from = first.min(mapped);
        for ((place, crc), (new_place, new_crc)) in places[from..].iter_mut().zip(&mut crcs[from..]).zip(new)
        {
            free_block(freed, *place);
            (*place, *crc) = (new_place, *new_crc);
        }
        self.body = Body::of(&places, &crcs);
    }

    pub(super) fn fragmented(&self) -> bool {
        matches!(self.body, Body::Mapped { .. })
    }

    /// Bytes that the chunk takes in a checkpoint at most, now and when its pending update is committed.
    pub(super) fn size(&self) -> u64 {
        let map = match &self.body {
            Body::Removed { .. } => 0,
            Body::One { .. } | Body::Row { .. } => 4,
            Body::Mapped { both, .. } => 4 * (both.len() / 2),
        };
        let own = (CHUNK_FIXED + map + 4 * self.crcs().len()) as u64;
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
            Body::One { .. } | Body::Row { .. } => (1, 0),
            Body::Mapped { .. } => (2, 0),
        };
        out.extend_from_slice(&[super::index::CLASS_CHUNK as u8, body, pending.is_some().into(), 0]);
        out.u32(self.length);
        out.u64(target.0);
        out.chunk_id(id);
        out.u64(self.version);
        out.u64(self.chain_version.into());
        out.u64(self.epoch.into());
        out.u64(stamp);
        out.u32(self.mapped());
        out.u32(0);
        match &self.body {
            Body::Removed { .. } => {}
            Body::One { place: start, .. } | Body::Row { start, .. } => out.u32(*start),
            Body::Mapped { both, .. } => out.u32s(&both[..both.len() / 2]),
        }
        out.u32s(self.crcs());
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
        if chain_version > NARROW_MAX || epoch > NARROW_MAX {
            return None;
        }
        let body = match body {
            0 if mapped == 0 => Body::Removed { stamp },
            1 => {
                let start = get.u32().filter(|start| start.checked_add(mapped).is_some())?;
                Body::row(start, get.u32s(mapped)?[..].into())
            }
            2 => {
                let (places, crcs) = (get.u32s(mapped)?, get.u32s(mapped)?);
                let used = places.iter().filter(|place| **place != HOLE).count() as u32;
                Body::Mapped { used, both: places.iter().chain(&crcs).copied().collect() }
            }
            _ => return None,
        };
        let (chain_version, epoch) = (narrow(chain_version), narrow(epoch));
        let mut chunk = Self { version, length, chain_version, epoch, body, pending: None };
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

fn body_of_runs(runs: &[Run], crcs: &[u32]) -> Body {
    match runs {
        [] => Body::row(0, crcs.into()),
        [run] => Body::row(run.start, crcs.into()),
        _ => {
            let places: Vec<u32> = runs.iter().flat_map(|run| run.start..run.start + run.count).collect();
            Body::of(&places, crcs)
        }
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
