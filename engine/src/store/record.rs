//! Journal records. Each tells an absolute change of one chunk, row or target, so that replay needs nothing else.
//!
//! A record is a byte of kind, three zeros, a u32 length of the body, and the body. `docs/disk-format.md` draws
//! the bodies.

use super::chunk::NARROW_MAX;
use super::codec::{Get, Put};
use super::dedup::{DedupKey, DedupRow};
use super::update::{Update, UpdateKind};
use corefs_wire::limits::{BLOCK, CHUNK_MAX};
use corefs_wire::{ChainId, ChunkId, TargetId, UpdateTag};

/// Bytes before a record's body.
pub(super) const RECORD_HEADER: usize = 8;
/// Bytes of an update's body before its runs and CRCs.
const UPDATE_FIXED: usize = 104;
/// Most checksum blocks of a chunk.
pub(super) const CHUNK_BLOCKS_MAX: u32 = CHUNK_MAX / BLOCK as u32;

/// Consecutive data blocks on disk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Run {
    pub(super) start: u32,
    pub(super) count: u32,
}

/// Appends a block to runs, growing the last one if it continues it.
pub(super) fn push_run(runs: &mut Vec<Run>, run: Run) {
    match runs.last_mut() {
        Some(last) if last.start + last.count == run.start => last.count += run.count,
        _ => runs.push(run),
    }
}

/// An update with its new blocks: what the journal and pending updates in checkpoints hold.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct UpdateRecord {
    pub(super) update: Update,
    /// The committed version that it changes.
    pub(super) base: u64,
    /// Committed by its own flush.
    pub(super) direct: bool,
    /// Length of the chunk after it (bytes).
    pub(super) length: u32,
    /// The chunk's blocks from this one on are replaced, one for each CRC.
    pub(super) first_block: u32,
    pub(super) runs: Vec<Run>,
    pub(super) crcs: Vec<u32>,
}

impl UpdateRecord {
    pub(super) fn encoded_len(&self) -> usize {
        UPDATE_FIXED + 8 * self.runs.len() + 4 * self.crcs.len()
    }

    /// Blocks that the chunk has mapped after it at most, if it had `mapped` before.
    pub(super) fn mapped_after(&self, mapped: u32) -> u32 {
        match self.update.kind {
            UpdateKind::Remove => 0,
            UpdateKind::FullReplace { .. } => self.crcs.len() as u32,
            UpdateKind::Write { .. } | UpdateKind::Truncate { .. } | UpdateKind::Patch { .. } => {
                let kept = mapped.min(self.length.div_ceil(BLOCK as u32));
                if self.crcs.is_empty() { kept } else { kept.max(self.first_block + self.crcs.len() as u32) }
            }
        }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let update = &self.update;
        out.u64(update.target.0);
        out.chunk_id(update.chunk);
        out.u64(update.version);
        out.u64(self.base);
        out.u64(update.chain_version);
        out.u64(update.truncate_epoch);
        out.tag(update.tag);
        let (kind, a, b) = match update.kind {
            UpdateKind::Write { offset, len } => (1, offset, len),
            UpdateKind::Truncate { len } => (2, len, 0),
            UpdateKind::Remove => (3, 0, 0),
            UpdateKind::FullReplace { len, .. } => (4, len, 0),
            UpdateKind::Patch { offset, len } => (5, offset, len),
        };
        out.u8(kind);
        out.u8(self.direct.into());
        out.u16(0);
        out.u32(a);
        out.u32(b);
        out.u32(self.length);
        out.u32(self.first_block);
        out.u16(self.runs.len() as u16);
        out.u16(self.crcs.len() as u16);
        for run in &self.runs {
            out.u32(run.start);
            out.u32(run.count);
        }
        out.u32s(&self.crcs);
    }

    pub(super) fn decode(get: &mut Get) -> Option<Self> {
        let (target, chunk) = (TargetId(get.u64()?), get.chunk_id()?);
        let (version, base, chain_version, truncate_epoch) = (get.u64()?, get.u64()?, get.u64()?, get.u64()?);
        if chain_version.max(truncate_epoch) > NARROW_MAX {
            return None;
        }
        let tag = get.tag()?;
        let (kind, direct, _) = (get.u8()?, get.u8()?, get.u16()?);
        let (a, b) = (get.u32()?, get.u32()?);
        let kind = match kind {
            1 => UpdateKind::Write { offset: a, len: b },
            2 => UpdateKind::Truncate { len: a },
            3 => UpdateKind::Remove,
            4 => UpdateKind::FullReplace { len: a, total: 0 },
            5 => UpdateKind::Patch { offset: a, len: b },
            _ => return None,
        };
        let (length, first_block) = (get.u32()?, get.u32()?);
        let kind = match kind {
            UpdateKind::FullReplace { len, .. } => UpdateKind::FullReplace { len, total: length },
            other => other,
        };
        let (run_count, crc_count) = (get.u16()?, get.u16()?);
        let mut runs = Vec::with_capacity(run_count.into());
        for _ in 0..run_count {
            let run = Run { start: get.u32()?, count: get.u32()? };
            run.start.checked_add(run.count)?;
            runs.push(run);
        }
        let crcs = get.u32s(crc_count.into())?;
        let covered = runs.iter().try_fold(0u32, |sum, run| sum.checked_add(run.count))?;
        let last = first_block.checked_add(covered)?;
        if covered as usize != crcs.len() || last > CHUNK_BLOCKS_MAX || length > CHUNK_MAX {
            return None;
        }
        let update = Update { target, chunk, kind, version, chain_version, truncate_epoch, tag };
        Some(Self { update, base, direct: direct != 0, length, first_block, runs, crcs })
    }
}

/// Encodes [`Record::Update`] of a record that stays where it is.
pub(super) fn encode_update(record: &UpdateRecord, out: &mut Vec<u8>) {
    out.extend_from_slice(&[1, 0, 0, 0]);
    out.u32(record.encoded_len() as u32);
    record.encode(out);
}

/// One entry of the journal.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Record {
    Update(UpdateRecord),
    /// The pending update of that version is the committed one.
    Commit {
        target: TargetId,
        chunk: ChunkId,
        version: u64,
        chain_version: u64,
    },
    /// The pending update of that version never happened; its tag is new again.
    Drop {
        target: TargetId,
        chunk: ChunkId,
        version: u64,
        tag: UpdateTag,
    },
    /// A tombstone is forgotten: the target's floor is at least its version.
    Purge {
        target: TargetId,
        chunk: ChunkId,
        version: u64,
    },
    CreateTarget {
        target: TargetId,
        chain: ChainId,
    },
    RemoveTarget {
        target: TargetId,
    },
    /// A row of duplicate detection taken over from another replica.
    DedupPut {
        target: TargetId,
        row: DedupRow,
    },
    /// The least recently used row is forgotten.
    DedupEvict {
        target: TargetId,
        key: DedupKey,
    },
    /// The target's floor is at least this version: another replica has forgotten a tombstone.
    Floor {
        target: TargetId,
        version: u64,
    },
}

impl Record {
    fn kind(&self) -> u8 {
        match self {
            Self::Update(_) => 1,
            Self::Commit { .. } => 2,
            Self::Drop { .. } => 3,
            Self::Purge { .. } => 4,
            Self::CreateTarget { .. } => 5,
            Self::RemoveTarget { .. } => 6,
            Self::DedupPut { .. } => 7,
            Self::DedupEvict { .. } => 8,
            Self::Floor { .. } => 9,
        }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        if let Self::Update(record) = self {
            return encode_update(record, out);
        }
        let start = out.len();
        out.extend_from_slice(&[self.kind(), 0, 0, 0]);
        out.u32(0);
        match self {
            Self::Update(_) => {}
            Self::Commit { target, chunk, version, chain_version } => {
                out.u64(target.0);
                out.chunk_id(*chunk);
                out.u64(*version);
                out.u64(*chain_version);
            }
            Self::Drop { target, chunk, version, tag } => {
                out.u64(target.0);
                out.chunk_id(*chunk);
                out.u64(*version);
                out.tag(*tag);
            }
            Self::Purge { target, chunk, version } => {
                out.u64(target.0);
                out.chunk_id(*chunk);
                out.u64(*version);
            }
            Self::CreateTarget { target, chain } => {
                out.u64(target.0);
                out.u64(chain.0);
            }
            Self::RemoveTarget { target } => out.u64(target.0),
            Self::DedupPut { target, row } => {
                out.u64(target.0);
                row.put(out);
            }
            Self::DedupEvict { target, key } => {
                out.u64(target.0);
                key.put(out);
            }
            Self::Floor { target, version } => {
                out.u64(target.0);
                out.u64(*version);
            }
        }
        let len = (out.len() - start - RECORD_HEADER) as u32;
        out[start + 4..start + 8].copy_from_slice(&len.to_le_bytes());
    }

    /// The next record; `None` if the bytes make none.
    pub(super) fn decode(get: &mut Get) -> Option<Self> {
        let kind = get.u32()?;
        let len = get.u32()?;
        let mut body = Get(get.bytes(len as usize)?);
        let record = Self::body(kind, &mut body)?;
        body.is_empty().then_some(record)
    }

    fn body(kind: u32, get: &mut Get) -> Option<Self> {
        if kind == 1 {
            return UpdateRecord::decode(get).map(Self::Update);
        }
        let target = TargetId(get.u64()?);
        Some(match kind {
            2 => {
                let (chunk, version) = (get.chunk_id()?, get.u64()?);
                let chain_version = get.u64().filter(|number| *number <= NARROW_MAX)?;
                Self::Commit { target, chunk, version, chain_version }
            }
            3 => Self::Drop { target, chunk: get.chunk_id()?, version: get.u64()?, tag: get.tag()? },
            4 => Self::Purge { target, chunk: get.chunk_id()?, version: get.u64()? },
            5 => Self::CreateTarget { target, chain: ChainId(get.u64()?) },
            6 => Self::RemoveTarget { target },
            7 => Self::DedupPut { target, row: DedupRow::get(get)? },
            8 => Self::DedupEvict { target, key: DedupKey::get(get)? },
            9 => Self::Floor { target, version: get.u64()? },
            _ => return None,
        })
    }
}
