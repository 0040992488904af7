//! Recovery: from the bytes of a slice to a [`Store`], pulled step by step.
//!
//! Both superblocks, both checkpoint roots, the whole journal ring, the pages of the newest checkpoint (if they are
//! damaged: of the older one), then the journal's batches in order. Up to the highest F that any block of the ring
//! states, everything must be there: a hole is damage. Above it, a batch counts only if all of its blocks are there
//! and all data that it leaves named matches its CRCs; the first that doesn't ends the journal, as a power cut leaves it. At
//! last the epoch is raised in both superblocks, one flush each, so that what was cut off never comes back.

use super::Store;
use super::allocator::Allocator;
use super::checkpoint::Checkpoint;
use super::codec::Get;
use super::format::{
    BLOCK_U64, Geometry, JournalHead, PageHead, Root, Superblock, Unreadable, superblock_offset,
};
use super::journal::Journal;
use super::limbo::Limbo;
use super::record::{Record, Run};
use super::replay::Replay;
use super::unsettled::blocks_left;
use corefs_wire::checksum::crc32c;
use corefs_wire::limits::BLOCK;
use corefs_wire::{ErrorCode, Uuid};
use std::collections::{BTreeMap, VecDeque};

/// What the last [`Need`] led to.
#[derive(Debug)]
pub enum Input<'a> {
    /// The first step.
    Start,
    /// The bytes asked for, all of them.
    Bytes(&'a [u8]),
    /// The write is complete.
    Written,
    /// The flush is complete.
    Flushed,
}

/// What recovery wants next.
#[derive(Debug)]
pub enum Need {
    /// Read `len` bytes at `offset`; both are multiples of 4096, `len` is at most [`READ_MAX`].
    Read { offset: u64, len: usize },
    /// Write these bytes.
    Write { offset: u64, bytes: Vec<u8> },
    /// Flush the disk's cache.
    Flush,
    /// The slice is open.
    Done(Box<Store>, RecoveryReport),
}

/// Most bytes of one [`Need::Read`].
pub const READ_MAX: usize = 256 << 10;

/// What recovery found that people may want to know.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RecoveryReport {
    /// The epoch of this run.
    pub epoch: u64,
    pub checkpoint: u64,
    /// Journal records replayed on top of the checkpoint.
    pub records_replayed: u64,
    /// Blocks of an unfinished batch at the journal's end that were discarded, as a power cut leaves them.
    pub blocks_discarded: u64,
    pub chunks: u64,
    pub pendings: u64,
    /// A superblock copy was unreadable and has been rewritten from the other.
    pub superblock_repaired: Option<u16>,
    /// The newest checkpoint was damaged; the older one and the journal replaced it.
    pub checkpoint_fallback: bool,
}

/// What kind of damage keeps the slice from opening.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DamageKind {
    /// No readable superblock: not a slice of corefs, or both copies damaged.
    NoSuperblock,
    /// Made by a newer or unknown version of corefs.
    UnknownVersion(u32),
    WrongCluster,
    /// Not the store that was expected here, or half formatted.
    WrongStore,
    WrongSize,
    Checkpoint,
    Journal,
    /// Checkpoint and journal are readable, but contradict each other or themselves.
    Index,
}

/// Why the slice can't be opened: what is damaged, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    pub kind: DamageKind,
    /// Offset in the slice (bytes).
    pub offset: u64,
    pub detail: String,
}

impl Damage {
    fn new(kind: DamageKind, offset: u64, detail: impl Into<String>) -> Self {
        Self { kind, offset, detail: detail.into() }
    }
}

impl From<Damage> for corefs_wire::Error {
    fn from(damage: Damage) -> Self {
        let code = match damage.kind {
            DamageKind::NoSuperblock | DamageKind::UnknownVersion(_) | DamageKind::WrongSize => {
                ErrorCode::BadFormat
            }
            DamageKind::WrongCluster | DamageKind::WrongStore => ErrorCode::WrongCluster,
            DamageKind::Checkpoint | DamageKind::Journal | DamageKind::Index => ErrorCode::Corrupt,
        };
        Self::new(code, format!("{:?} at offset {}: {}", damage.kind, damage.offset, damage.detail))
    }
}

/// A read of data whose CRCs are known.
#[derive(Debug)]
struct DataRead {
    offset: u64,
    crcs: Vec<u32>,
}

impl DataRead {
    fn end(&self) -> u64 {
        self.offset + (self.crcs.len() * BLOCK) as u64
    }
}

#[derive(Debug)]
enum Phase {
    Start,
    /// Reading this copy.
    Superblock(u16),
    Root(u32),
    /// Reading the ring from this slot on.
    Journal(u32),
    /// Reading a checkpoint: bytes not yet understood, and blocks read so far.
    Pages {
        replay: Box<Replay>,
        buffer: Vec<u8>,
        blocks: u32,
    },
    /// Verifying the data of a batch above F before it is applied.
    Verify(Batch, VecDeque<DataRead>),
    /// Writing and flushing this superblock copy.
    Writing(u16),
    Flushing(u16),
    Over,
}

/// A whole batch of the journal.
#[derive(Debug)]
struct Batch {
    records: Vec<Record>,
    first_record: u64,
    next_sequence: u64,
    epoch: u64,
}

/// Opens a slice. See [`Recovery::step`].
#[derive(Debug)]
pub struct Recovery {
    slice_bytes: u64,
    cluster: Option<Uuid>,
    store: Option<Uuid>,
    /// Look, but don't raise the epoch.
    read_only: bool,
    phase: Phase,
    copies: Vec<Result<Superblock, Unreadable>>,
    superblock: Option<Superblock>,
    /// Readable roots, the newest last.
    roots: Vec<Root>,
    newest_checkpoint: u64,
    first_damage: Option<Damage>,
    /// Readable blocks of the ring by sequence.
    journal: BTreeMap<u64, (JournalHead, Vec<u8>)>,
    flushed: u64,
    replay: Option<Box<Replay>>,
    /// Next to replay, and the epoch and record number that led there.
    sequence: u64,
    epoch: u64,
    next_record: Option<u64>,
    opened: Option<Box<Store>>,
    report: RecoveryReport,
}

impl Recovery {
    /// Opens the slice of `slice_bytes`; refuses another cluster's, and another store's if one is named.
    pub fn new(slice_bytes: u64, cluster: Uuid, store: Option<Uuid>) -> Self {
        Self { cluster: Some(cluster), store, read_only: false, ..Self::inspect(slice_bytes) }
    }

    /// Reads a slice as recovery would, whosever it is, and writes nothing. The store is good for looking only.
    pub fn inspect(slice_bytes: u64) -> Self {
        Self {
            slice_bytes: slice_bytes / BLOCK_U64 * BLOCK_U64,
            cluster: None,
            store: None,
            read_only: true,
            phase: Phase::Start,
            copies: Vec::new(),
            superblock: None,
            roots: Vec::new(),
            newest_checkpoint: 0,
            first_damage: None,
            journal: BTreeMap::new(),
            flushed: 0,
            replay: None,
            sequence: 0,
            epoch: 0,
            next_record: None,
            opened: None,
            report: RecoveryReport::default(),
        }
    }

    /// Goes on with the result of the last need. After `Done` or an error it must not be called again. A read, write
    /// or flush that fails on the disk is the caller's to report; nothing is lost by that.
    pub fn step(&mut self, input: Input<'_>) -> Result<Need, Damage> {
        match (std::mem::replace(&mut self.phase, Phase::Over), input) {
            (Phase::Start, Input::Start) => {
                if self.slice_bytes < 2 * BLOCK_U64 {
                    let what = "too small to hold anything";
                    return Err(Damage::new(DamageKind::WrongSize, self.slice_bytes, what));
                }
                Ok(self.read(Phase::Superblock(0), superblock_offset(self.slice_bytes, 0), BLOCK))
            }
            (Phase::Superblock(copy), Input::Bytes(bytes)) => self.superblock(copy, bytes),
            (Phase::Root(area), Input::Bytes(bytes)) => self.root(area, bytes),
            (Phase::Journal(slot), Input::Bytes(bytes)) => self.journal(slot, bytes),
            (Phase::Pages { replay, mut buffer, blocks }, Input::Bytes(bytes)) => {
                buffer.extend_from_slice(bytes);
                self.pages(replay, buffer, blocks + (bytes.len() / BLOCK) as u32)
            }
            (Phase::Verify(batch, reads), Input::Bytes(bytes)) => self.verified(batch, reads, bytes),
            (Phase::Writing(copy), Input::Written) => {
                self.phase = Phase::Flushing(copy);
                Ok(Need::Flush)
            }
            (Phase::Flushing(1), Input::Flushed) => Ok(self.write_superblock(0)),
            (Phase::Flushing(_), Input::Flushed) => self.done(),
            (phase, input) => panic!("{phase:?} of recovery doesn't expect {input:?}"),
        }
    }

    fn read(&mut self, phase: Phase, offset: u64, len: usize) -> Need {
        self.phase = phase;
        Need::Read { offset, len }
    }

    fn geometry(&self) -> &Geometry {
        match &self.superblock {
            Some(superblock) => &superblock.geometry,
            None => panic!("the superblock is read first"),
        }
    }

    fn superblock(&mut self, copy: u16, bytes: &[u8]) -> Result<Need, Damage> {
        self.copies.push(Superblock::decode(bytes, copy));
        if copy == 0 {
            return Ok(self.read(Phase::Superblock(1), superblock_offset(self.slice_bytes, 1), BLOCK));
        }
        let superblock = self.choose_superblock()?;
        let (size, geometry) = (superblock.geometry.slice_bytes, superblock.geometry);
        if self.cluster.is_some_and(|cluster| cluster != geometry.cluster) {
            let what = format!("the slice belongs to cluster {}", geometry.cluster);
            return Err(Damage::new(DamageKind::WrongCluster, 0, what));
        }
        if self.store.is_some_and(|store| store != geometry.store) {
            let what = format!("the slice holds store {}", geometry.store);
            return Err(Damage::new(DamageKind::WrongStore, 0, what));
        }
        if size != self.slice_bytes {
            let what = format!("formatted for {size} bytes, but {} are here", self.slice_bytes);
            return Err(Damage::new(DamageKind::WrongSize, 0, what));
        }
        self.superblock = Some(superblock);
        self.flushed = superblock.epoch_first - 1;
        Ok(self.read(Phase::Root(0), geometry.area_offset(0), BLOCK))
    }

    fn choose_superblock(&mut self) -> Result<Superblock, Damage> {
        match (self.copies[0], self.copies[1]) {
            (Ok(first), Ok(second)) if first.geometry != second.geometry => {
                let what = "the two superblocks disagree: was formatting interrupted?";
                Err(Damage::new(DamageKind::WrongStore, 0, what))
            }
            (Ok(first), Ok(second)) => Ok(if second.epoch > first.epoch { second } else { first }),
            (Ok(good), Err(_)) => {
                self.report.superblock_repaired = Some(1);
                Ok(good)
            }
            (Err(_), Ok(good)) => {
                self.report.superblock_repaired = Some(0);
                Ok(good)
            }
            (Err(Unreadable::Version(version)), _) | (_, Err(Unreadable::Version(version))) => {
                let what = format!("format version {version} is unknown to this version of corefs");
                Err(Damage::new(DamageKind::UnknownVersion(version), 0, what))
            }
            (Err(first), Err(second)) => {
                let what = format!("no superblock: the first is {first:?}, the second {second:?}");
                Err(Damage::new(DamageKind::NoSuperblock, 0, what))
            }
        }
    }

    fn root(&mut self, area: u32, bytes: &[u8]) -> Result<Need, Damage> {
        let geometry = *self.geometry();
        if let Ok(root) = Root::decode(bytes, &geometry, area) {
            self.flushed = self.flushed.max(root.flushed);
            self.newest_checkpoint = self.newest_checkpoint.max(root.id);
            self.roots.push(root);
        }
        if area == 0 {
            return Ok(self.read(Phase::Root(1), geometry.area_offset(1), BLOCK));
        }
        self.roots.sort_by_key(|root| root.id);
        Ok(self.read_journal(0))
    }

    fn read_journal(&mut self, slot: u32) -> Need {
        let geometry = *self.geometry();
        let blocks = (geometry.journal_blocks - slot).min((READ_MAX / BLOCK) as u32);
        let offset = geometry.journal_offset() + u64::from(slot) * BLOCK_U64;
        self.read(Phase::Journal(slot), offset, blocks as usize * BLOCK)
    }

    fn journal(&mut self, first_slot: u32, bytes: &[u8]) -> Result<Need, Damage> {
        let geometry = *self.geometry();
        let epoch = self.superblock.map_or(0, |superblock| superblock.epoch);
        let mut slot = first_slot;
        for block in bytes.chunks_exact(BLOCK) {
            if let Ok((head, payload)) = JournalHead::decode(block, &geometry, slot.into()) {
                if head.epoch > epoch {
                    let offset = geometry.journal_block_offset(slot.into());
                    let what =
                        format!("the journal is of epoch {}, the superblock of {epoch} only", head.epoch);
                    return Err(Damage::new(DamageKind::Journal, offset, what));
                }
                self.flushed = self.flushed.max(head.flushed);
                self.newest_checkpoint = self.newest_checkpoint.max(head.checkpoint.into());
                self.journal.insert(head.sequence, (head, payload.to_vec()));
            }
            slot += 1;
        }
        if slot < geometry.journal_blocks { Ok(self.read_journal(slot)) } else { self.next_checkpoint() }
    }

    /// Starts on the newest checkpoint that wasn't tried yet.
    fn next_checkpoint(&mut self) -> Result<Need, Damage> {
        let geometry = *self.geometry();
        let Some(root) = self.roots.pop() else {
            let none = || {
                Damage::new(DamageKind::Checkpoint, geometry.area_offset(0), "no readable checkpoint root")
            };
            return Err(self.first_damage.take().unwrap_or_else(none));
        };
        let replay = Box::new(Replay::new(root, geometry.index_bytes_max()));
        self.pages(replay, Vec::new(), 0)
    }

    /// Takes all whole pages of the buffer, then reads on.
    fn pages(&mut self, mut replay: Box<Replay>, buffer: Vec<u8>, blocks: u32) -> Result<Need, Damage> {
        let geometry = *self.geometry();
        let root = replay.root;
        let page_offset = |rest: usize| {
            let done = u64::from(blocks) - (rest / BLOCK) as u64;
            geometry.area_offset(root.area) + BLOCK_U64 * (1 + done)
        };
        let mut rest = &buffer[..];
        while rest.len() >= BLOCK {
            let page_blocks = rest[36..40].try_into().map_or(0, u32::from_le_bytes);
            let left = root.pages_blocks - blocks + (rest.len() / BLOCK) as u32;
            let plausible = page_blocks > 0 && page_blocks <= left;
            if plausible && rest.len() < page_blocks as usize * BLOCK {
                break;
            }
            let page = PageHead::decode(rest, &geometry).map_err(|why| format!("{why:?}"));
            let page = page.and_then(|(head, payload)| replay.page(&head, payload));
            if let Err(why) = page.and(if plausible { Ok(()) } else { Err("page length".to_string()) }) {
                return self.damaged_checkpoint(page_offset(rest.len()), why);
            }
            rest = &rest[page_blocks as usize * BLOCK..];
        }
        if blocks < root.pages_blocks {
            let offset = geometry.area_offset(root.area) + BLOCK_U64 * u64::from(1 + blocks);
            let len = (root.pages_blocks - blocks).min((READ_MAX / BLOCK) as u32) as usize * BLOCK;
            let buffer = rest.to_vec();
            return Ok(self.read(Phase::Pages { replay, buffer, blocks }, offset, len));
        }
        if let Err(why) = replay.loaded() {
            return self.damaged_checkpoint(page_offset(rest.len()), why);
        }
        self.report.checkpoint = root.id;
        self.report.checkpoint_fallback = self.first_damage.is_some() || self.newest_checkpoint > root.id;
        self.sequence = root.replay_from;
        self.replay = Some(replay);
        self.replay_on()
    }

    fn damaged_checkpoint(&mut self, offset: u64, why: String) -> Result<Need, Damage> {
        self.first_damage.get_or_insert(Damage::new(DamageKind::Checkpoint, offset, why));
        self.next_checkpoint()
    }

    /// Applies batches until one needs its data verified or the journal ends.
    fn replay_on(&mut self) -> Result<Need, Damage> {
        loop {
            let required = self.sequence <= self.flushed;
            let Some(batch) = self.next_batch(required)? else { return self.journal_ends() };
            if required {
                self.apply(batch)?;
                continue;
            }
            let reads = self.data_of(&batch);
            if let Some(read) = reads.front() {
                let (offset, len) = (read.offset, read.crcs.len() * BLOCK);
                return Ok(self.read(Phase::Verify(batch, reads), offset, len));
            }
            self.apply(batch)?;
        }
    }

    /// The batch at `sequence`; `None` if it isn't whole, which is damage if it is required.
    fn next_batch(&mut self, required: bool) -> Result<Option<Batch>, Damage> {
        let first = self.sequence;
        match self.whole_batch(first) {
            Ok(batch) => Ok(Some(batch)),
            Err(_) if !required => Ok(None),
            Err((sequence, why)) => {
                let offset = self.geometry().journal_block_offset(sequence);
                let what =
                    format!("journal block {sequence}, known to be flushed (F is {}), {why}", self.flushed);
                let damage = Damage::new(DamageKind::Journal, offset, what);
                // A damaged newer checkpoint would have covered it: that is the first cause.
                Err(self.first_damage.take().unwrap_or(damage))
            }
        }
    }

    fn whole_batch(&self, first: u64) -> Result<Batch, (u64, &'static str)> {
        let superblock = self.superblock.ok_or((first, "has no superblock"))?;
        let blocks = superblock.geometry.data_blocks();
        let (head, _) = self.journal.get(&first).ok_or((first, "isn't there"))?;
        let head = *head;
        let of_this_epoch = match first >= superblock.epoch_first {
            true => head.epoch == superblock.epoch,
            false => head.epoch >= self.epoch,
        };
        if !of_this_epoch {
            return Err((first, "is a leftover of an earlier epoch"));
        }
        if head.batch_first != first || self.next_record.is_some_and(|next| next != head.first_record) {
            return Err((first, "doesn't follow its predecessor"));
        }
        let mut bytes = Vec::new();
        for sequence in first..first + u64::from(head.batch_blocks) {
            let (part, payload) = self.journal.get(&sequence).ok_or((sequence, "isn't there"))?;
            let expected = JournalHead { sequence, payload: part.payload, ..head };
            if *part != expected {
                return Err((sequence, "is of another batch"));
            }
            bytes.extend_from_slice(payload);
        }
        let mut get = Get(&bytes);
        let records: Option<Vec<_>> = (0..head.records).map(|_| Record::decode(&mut get)).collect();
        let records = records.filter(|_| get.is_empty()).ok_or((first, "holds nonsense"))?;
        let exists = |run: &Run| run.start.checked_add(run.count).is_some_and(|end| end <= blocks);
        if !records.iter().all(|record| !matches!(record, Record::Update(u) if !u.runs.iter().all(exists))) {
            return Err((first, "names data blocks that don't exist"));
        }
        let next_sequence = first + u64::from(head.batch_blocks.max(1));
        Ok(Batch { records, first_record: head.first_record, next_sequence, epoch: head.epoch })
    }

    fn apply(&mut self, batch: Batch) -> Result<(), Damage> {
        let offset = self.geometry().journal_block_offset(self.sequence);
        let Some(replay) = &mut self.replay else { panic!("a checkpoint is loaded first") };
        let mut number = batch.first_record;
        for record in batch.records {
            let applied = replay.record(record, number);
            applied
                .map_err(|why| Damage::new(DamageKind::Index, offset, format!("record {number}: {why}")))?;
            number += 1;
            self.report.records_replayed += 1;
        }
        replay.next_record = replay.next_record.max(number);
        self.next_record = Some(number);
        self.sequence = batch.next_sequence;
        self.epoch = batch.epoch;
        Ok(())
    }

    /// The reads that show whether the data of a batch reached the disk.
    fn data_of(&self, batch: &Batch) -> VecDeque<DataRead> {
        let mut reads: VecDeque<DataRead> = VecDeque::new();
        for (block, crc) in blocks_left(&batch.records) {
            let offset = self.geometry().data_offset(block);
            match reads.back_mut() {
                Some(last) if last.end() == offset && last.crcs.len() < READ_MAX / BLOCK => {
                    last.crcs.push(crc)
                }
                _ => reads.push_back(DataRead { offset, crcs: vec![crc] }),
            }
        }
        reads
    }

    fn verified(
        &mut self,
        batch: Batch,
        mut reads: VecDeque<DataRead>,
        bytes: &[u8],
    ) -> Result<Need, Damage> {
        let crcs = reads.pop_front().map(|read| read.crcs).unwrap_or_default();
        if !bytes.chunks_exact(BLOCK).map(crc32c).eq(crcs) {
            return self.journal_ends();
        }
        if let Some(read) = reads.front() {
            let (offset, len) = (read.offset, read.crcs.len() * BLOCK);
            return Ok(self.read(Phase::Verify(batch, reads), offset, len));
        }
        self.apply(batch)?;
        self.replay_on()
    }

    /// Everything that counts is replayed: makes the store, then raises the epoch.
    fn journal_ends(&mut self) -> Result<Need, Damage> {
        let Some(superblock) = self.superblock else { panic!("the superblock is read first") };
        let leftovers =
            self.journal.range(self.sequence..).filter(|(_, (head, _))| head.epoch == superblock.epoch);
        self.report.blocks_discarded = leftovers.count() as u64;
        self.journal.clear();
        let Some(replay) = self.replay.take() else { panic!("a checkpoint is loaded first") };
        let epoch = superblock.epoch + u64::from(!self.read_only);
        self.superblock = Some(Superblock { epoch, epoch_first: self.sequence, ..superblock });
        let store = self.open(*replay, epoch)?;
        self.report.epoch = epoch;
        self.report.chunks = store.index.chunks;
        self.report.pendings = store.index.pending.len() as u64;
        self.opened = Some(Box::new(store));
        if self.read_only { self.done() } else { Ok(self.write_superblock(1)) }
    }

    fn open(&self, replay: Replay, epoch: u64) -> Result<Store, Damage> {
        let geometry = *self.geometry();
        let allocator = claim_all(&replay, &geometry)?;
        let tail = replay.root.replay_from;
        let mut journal = Journal::new(&geometry, epoch, tail, self.sequence, replay.next_record);
        replay.index.pending.iter().for_each(|_| journal.reserve_pending());
        Ok(Store {
            geometry,
            allocator,
            limbo: Limbo::new(),
            journal,
            checkpoint: Checkpoint::new(replay.root, self.newest_checkpoint),
            index: replay.index,
            open_updates: Vec::new(),
            flying_updates: Vec::new(),
            removed_targets: replay.removed_targets,
        })
    }

    fn write_superblock(&mut self, copy: u16) -> Need {
        self.phase = Phase::Writing(copy);
        let Some(superblock) = self.superblock else { panic!("the superblock is read first") };
        Need::Write { offset: superblock.geometry.superblock_offset(copy), bytes: superblock.encode(copy) }
    }

    fn done(&mut self) -> Result<Need, Damage> {
        let Some(store) = self.opened.take() else { panic!("the store is made before the epoch is raised") };
        Ok(Need::Done(store, std::mem::take(&mut self.report)))
    }
}

/// Takes the blocks of every chunk and pending update out of the free ones; each may be named once.
fn claim_all(replay: &Replay, geometry: &Geometry) -> Result<Allocator, Damage> {
    let mut allocator = Allocator::new(geometry.data_blocks());
    let mut runs: Vec<Run> = Vec::new();
    for (target, entry) in &replay.index.targets {
        for (id, chunk) in entry.chunks.iter() {
            runs.clear();
            chunk.runs(&mut runs);
            runs.extend(chunk.pending.iter().flat_map(|pending| &pending.record.runs));
            if let Some(run) = runs.iter().find(|run| !allocator.claim(**run)) {
                let what = format!(
                    "{id} of {target} names data blocks {} to {}, which another chunk has or which don't exist",
                    run.start,
                    u64::from(run.start) + u64::from(run.count) - 1
                );
                return Err(Damage::new(DamageKind::Index, geometry.data_offset(run.start), what));
            }
        }
    }
    Ok(allocator)
}
