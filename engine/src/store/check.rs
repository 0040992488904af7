//! Verification of a slice for `corefs fsck`: superblocks, checkpoints, journal and index as recovery reads them,
//! then every block of every chunk against its CRC. Reads only, pulled like recovery.

use super::Store;
use super::dedup::DedupKey;
use super::format::superblock_offset;
use super::index::{DEDUP_BYTES, Index, TARGET_BYTES};
use super::recovery::{Damage, Input, Need, READ_MAX, Recovery, RecoveryReport};
use corefs_wire::checksum::crc32c;
use corefs_wire::limits::BLOCK;
use corefs_wire::{ChunkId, InodeId, TargetId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

/// What kind of thing is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FindingKind {
    /// One superblock copy is unreadable; the next start repairs it.
    Superblock,
    /// The newest checkpoint is damaged; the older one and the journal still hold everything.
    Checkpoint,
    /// The slice can't be opened at all.
    Unusable,
    /// The index contradicts itself.
    Index,
    /// A block's bytes don't match its CRC.
    Block,
}

/// One thing that is wrong, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    pub kind: FindingKind,
    pub target: Option<TargetId>,
    pub chunk: Option<ChunkId>,
    /// Which checksum block of the chunk.
    pub block: Option<u32>,
    /// Offset in the slice (bytes).
    pub disk_offset: u64,
    pub detail: String,
}

impl Finding {
    fn of_slice(kind: FindingKind, disk_offset: u64, detail: impl Into<String>) -> Self {
        Self { kind, target: None, chunk: None, block: None, disk_offset, detail: detail.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.kind)?;
        if let (Some(target), Some(chunk)) = (self.target, self.chunk) {
            write!(f, " of {target} {chunk}")?;
        }
        if let Some(block) = self.block {
            write!(f, " block {block}")?;
        }
        write!(f, " at offset {} of the slice: {}", self.disk_offset, self.detail)
    }
}

/// What the check wants next.
#[derive(Debug)]
pub enum CheckNeed {
    /// Read `len` bytes at `offset` (multiples of 4096, at most [`READ_MAX`]).
    Read {
        offset: u64,
        len: usize,
    },
    Done(CheckReport),
}

/// The result of a check.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CheckReport {
    pub findings: Vec<Finding>,
    pub targets: u64,
    pub chunks: u64,
    /// How many chunks of each inode have bytes here.
    pub inodes: BTreeMap<InodeId, u64>,
    /// Blocks that were read and compared.
    pub blocks: u64,
    /// What recovery found, if the slice can be opened.
    pub recovery: Option<RecoveryReport>,
}

/// A run of blocks of one chunk to be verified.
#[derive(Debug)]
struct DataCheck {
    target: TargetId,
    chunk: ChunkId,
    block: u32,
    offset: u64,
    crcs: Vec<u32>,
}

#[derive(Debug)]
enum Phase {
    Opening(Box<Recovery>),
    /// Verifying the data of one chunk after another; the next after this one.
    Data(Box<Store>, Option<(TargetId, ChunkId)>, VecDeque<DataCheck>),
    Over,
}

/// Checks a slice that nobody has open. See [`Check::step`].
#[derive(Debug)]
pub struct Check {
    phase: Phase,
    report: CheckReport,
    slice_bytes: u64,
}

impl Check {
    pub fn new(slice_bytes: u64) -> Self {
        let phase = Phase::Opening(Box::new(Recovery::inspect(slice_bytes)));
        Self { phase, report: CheckReport::default(), slice_bytes }
    }

    /// Goes on with the bytes of the last read (`None` at first, and empty if the read failed).
    pub fn step(&mut self, bytes: Option<&[u8]>) -> CheckNeed {
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Opening(recovery) => self.opening(recovery, bytes.map_or(Input::Start, Input::Bytes)),
            Phase::Data(store, at, mut reads) => {
                if let Some(read) = reads.pop_front() {
                    self.compare(&read, bytes.unwrap_or_default());
                }
                self.data(store, at, reads)
            }
            Phase::Over => panic!("the check is over"),
        }
    }

    fn opening(&mut self, mut recovery: Box<Recovery>, input: Input<'_>) -> CheckNeed {
        match recovery.step(input) {
            Ok(Need::Read { offset, len }) => {
                self.phase = Phase::Opening(recovery);
                CheckNeed::Read { offset, len }
            }
            Ok(Need::Done(store, report)) => {
                self.opened(&store, report);
                self.data(store, None, VecDeque::new())
            }
            Ok(Need::Write { .. } | Need::Flush) => panic!("a check writes nothing"),
            Err(Damage { kind, offset, detail }) => {
                let detail = format!("{kind:?}: {detail}");
                self.report.findings.push(Finding::of_slice(FindingKind::Unusable, offset, detail));
                CheckNeed::Done(std::mem::take(&mut self.report))
            }
        }
    }

    fn opened(&mut self, store: &Store, recovery: RecoveryReport) {
        let findings = &mut self.report.findings;
        if let Some(copy) = recovery.superblock_repaired {
            let offset = superblock_offset(self.slice_bytes, copy);
            findings.push(Finding::of_slice(FindingKind::Superblock, offset, "this copy is unreadable"));
        }
        if recovery.checkpoint_fallback {
            let detail = format!("checkpoint {} replaces a damaged newer one", recovery.checkpoint);
            findings.push(Finding::of_slice(FindingKind::Checkpoint, store.geometry.area_offset(0), detail));
        }
        findings.extend(store.audit());
        self.report.targets = store.index.targets.len() as u64;
        self.report.recovery = Some(recovery);
    }

    fn compare(&mut self, read: &DataCheck, bytes: &[u8]) {
        for (index, crc) in read.crcs.iter().enumerate() {
            self.report.blocks += 1;
            let found = bytes.get(index * BLOCK..(index + 1) * BLOCK).map(crc32c);
            if found != Some(*crc) {
                let found = found.map_or("unreadable".to_string(), |found| format!("{found:08x}"));
                self.report.findings.push(Finding {
                    kind: FindingKind::Block,
                    target: Some(read.target),
                    chunk: Some(read.chunk),
                    block: Some(read.block + index as u32),
                    disk_offset: read.offset + (index * BLOCK) as u64,
                    detail: format!("its CRC should be {crc:08x} and is {found}"),
                });
            }
        }
    }

    fn data(
        &mut self,
        store: Box<Store>,
        mut at: Option<(TargetId, ChunkId)>,
        mut reads: VecDeque<DataCheck>,
    ) -> CheckNeed {
        while reads.is_empty() {
            let Some((target, chunk)) = next_chunk(&store.index, at) else {
                return CheckNeed::Done(std::mem::take(&mut self.report));
            };
            at = Some((target, chunk));
            self.report.chunks += 1;
            if store.index.chunk(target, chunk).is_some_and(|chunk| !chunk.removed()) {
                *self.report.inodes.entry(chunk.inode).or_default() += 1;
            }
            data_of(&store, target, chunk, &mut reads);
        }
        let need = CheckNeed::Read { offset: reads[0].offset, len: reads[0].crcs.len() * BLOCK };
        self.phase = Phase::Data(store, at, reads);
        need
    }
}

fn next_chunk(index: &Index, after: Option<(TargetId, ChunkId)>) -> Option<(TargetId, ChunkId)> {
    use std::ops::Bound::{Excluded, Unbounded};
    let first = after.map_or(TargetId(0), |(target, _)| target);
    index.targets.range(first..).find_map(|(id, target)| {
        let bound = after.filter(|(of, _)| of == id).map_or(Unbounded, |(_, chunk)| Excluded(chunk));
        Some((*id, *target.chunks.range((bound, Unbounded)).next()?.0))
    })
}

/// The reads for the committed and pending blocks of a chunk.
fn data_of(store: &Store, target: TargetId, id: ChunkId, out: &mut VecDeque<DataCheck>) {
    let Some(chunk) = store.index.chunk(target, id) else { return };
    let mut push = |block: u32, place: u32, crc: u32| {
        let offset = store.geometry.data_offset(place);
        if let Some(last) = out.back_mut() {
            let len = last.crcs.len();
            let follows = last.block + len as u32 == block && last.offset + (len * BLOCK) as u64 == offset;
            if follows && len < READ_MAX / BLOCK {
                last.crcs.push(crc);
                return;
            }
        }
        out.push_back(DataCheck { target, chunk: id, block, offset, crcs: vec![crc] });
    };
    for block in 0..chunk.mapped() {
        if let Some((place, crc)) = chunk.block(block) {
            push(block, place, crc);
        }
    }
    if let Some(pending) = &chunk.pending {
        let record = &pending.record;
        let places = record.runs.iter().flat_map(|run| run.start..run.start + run.count);
        for ((place, crc), block) in places.zip(&record.crcs).zip(record.first_block..) {
            push(block, place, *crc);
        }
    }
}

impl Store {
    /// Recounts everything: each block is in exactly one place, and every sum is right. Slow; for tests and fsck.
    pub fn audit(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        self.audit_blocks(&mut findings);
        self.audit_sums(&mut findings);
        findings
    }

    fn audit_blocks(&self, findings: &mut Vec<Finding>) {
        let mut free = self.allocator.clone();
        let mut find = |target, chunk, block: u32, detail: &str| {
            let disk_offset = self.geometry.data_offset(block);
            let detail = format!("data block {block} {detail}");
            let kind = FindingKind::Index;
            findings.push(Finding { kind, target, chunk, block: None, disk_offset, detail });
        };
        let mut give = |target, chunk, run: super::record::Run, find: &mut dyn FnMut(_, _, u32, &str)| {
            for block in run.start..run.start.saturating_add(run.count) {
                match free.is_free(block) {
                    Some(false) => free.give(super::record::Run { start: block, count: 1 }),
                    Some(true) => find(target, chunk, block, "is named twice, or free and in use"),
                    None => find(target, chunk, block, "doesn't exist"),
                }
            }
        };
        let mut runs = Vec::new();
        for (target, entry) in &self.index.targets {
            for (id, chunk) in entry.chunks.iter() {
                runs.clear();
                chunk.runs(&mut runs);
                runs.extend(chunk.pending.iter().flat_map(|pending| &pending.record.runs));
                runs.iter().for_each(|run| give(Some(*target), Some(*id), *run, &mut find));
            }
        }
        self.limbo.runs().for_each(|run| give(None, None, run, &mut find));
        let (all, given) = (u64::from(free.blocks()), free.free());
        if given != all {
            let detail = format!("{} data blocks are neither free nor in use", all - given);
            findings.push(Finding::of_slice(FindingKind::Index, self.geometry.data_offset(0), detail));
        }
    }

    fn audit_sums(&self, findings: &mut Vec<Finding>) {
        let mut counted = Index::new(self.index.bytes_max);
        let mut tombstones = BTreeMap::new();
        let mut pending = BTreeSet::new();
        for (target, entry) in &self.index.targets {
            counted.bytes += TARGET_BYTES;
            let mut blocks_used = 0;
            for (id, chunk) in entry.chunks.iter() {
                let blocks = u64::from(chunk.count_blocks());
                blocks_used += blocks;
                counted.bytes += chunk.size();
                counted.chunks += u64::from(!chunk.removed());
                counted.fragmented += u64::from(chunk.fragmented());
                if let Some(stamp) = chunk.tombstone() {
                    tombstones.insert(stamp, (*target, *id));
                }
                if chunk.pending.is_some() {
                    pending.insert((*target, *id));
                }
                let beyond = chunk.mapped() > chunk.length.div_ceil(BLOCK as u32);
                if beyond || blocks != chunk.blocks_used() {
                    let detail =
                        format!("{id} of {target} has more blocks than its length, or miscounts them");
                    findings.push(Finding::of_slice(FindingKind::Index, 0, detail));
                }
            }
            for (key, (row, _)) in entry.dedup.after(None) {
                counted.bytes += DEDUP_BYTES;
                if DedupKey::of(&row.tag) != *key {
                    findings.push(Finding::of_slice(
                        FindingKind::Index,
                        0,
                        "a duplicate row is out of place",
                    ));
                }
            }
            if blocks_used != entry.blocks_used {
                let detail = format!("{target} has {blocks_used} blocks, but counts {}", entry.blocks_used);
                findings.push(Finding::of_slice(FindingKind::Index, 0, detail));
            }
            counted.blocks_used += blocks_used;
        }
        let sums = |index: &Index| (index.bytes, index.chunks, index.fragmented, index.blocks_used);
        let right = sums(&counted) == sums(&self.index)
            && tombstones == self.index.tombstones
            && pending == self.index.pending
            && counted.bytes <= self.index.bytes_max;
        if !right {
            let detail = format!("sums are {:?}, but counted {:?}", sums(&self.index), sums(&counted));
            findings.push(Finding::of_slice(FindingKind::Index, 0, detail));
        }
    }
}
