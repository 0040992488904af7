//! The index: targets, their chunks and their rows of duplicate detection, in one order of keys.

use super::chunk::{Chunk, Pending, Stage};
use super::chunk_map::ChunkMap;
use super::codec::{Get, Put};
use super::dedup::{DedupKey, DedupRow, DedupTable};
use super::record::{Run, UpdateRecord};
use super::update::UpdateKind;
use corefs_wire::{ChainId, ChunkId, ClientId, Error, ErrorCode, InodeId, Result, TargetId, UpdateTag};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Included, Unbounded};

pub(super) const CLASS_TARGET: u64 = 1;
pub(super) const CLASS_CHUNK: u64 = 2;
pub(super) const CLASS_DEDUP: u64 = 3;
/// Encoded bytes of a target and of a row of duplicate detection.
pub(super) const TARGET_BYTES: u64 = 32;
pub(super) const DEDUP_BYTES: u64 = 80;

/// A chunk as listings show it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ChunkInfo {
    pub chunk: ChunkId,
    /// Committed version and length (bytes).
    pub version: u64,
    pub length: u32,
}

/// All that the chain asks about one chunk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct ChunkStatus {
    /// Committed version; 0 if the chunk never had one here.
    pub version: u64,
    /// Chain version under which it was committed.
    pub chain_version: u64,
    pub truncate_epoch: u64,
    /// Bytes; 0 for a removed chunk.
    pub length: u32,
    /// The committed version is a removal (or there is none).
    pub removed: bool,
    /// Version of the pending update, and whether its own flush commits it.
    pub pending: Option<u64>,
    pub direct: bool,
}

/// An update that is durable here but neither committed nor dropped, with what is needed to send it on again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PendingInfo {
    pub chunk: ChunkId,
    pub kind: UpdateKind,
    pub version: u64,
    pub chain_version: u64,
    pub truncate_epoch: u64,
    pub tag: UpdateTag,
    /// Length of the chunk after it (bytes).
    pub length: u32,
    /// Its record is flushed.
    pub flushed: bool,
}

/// The order of everything in a checkpoint: by target; in it the target itself, its chunks, its duplicate rows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Key {
    pub(super) target: u64,
    pub(super) class: u64,
    pub(super) a: u64,
    pub(super) b: u64,
}

impl Key {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        [self.target, self.class, self.a, self.b].iter().for_each(|field| out.u64(*field));
    }

    pub(super) fn get(get: &mut Get) -> Option<Self> {
        Some(Self { target: get.u64()?, class: get.u64()?, a: get.u64()?, b: get.u64()? })
    }
}

impl Key {
    pub(super) const MAX: Self = Self { target: u64::MAX, class: u64::MAX, a: u64::MAX, b: u64::MAX };

    pub(super) fn target(target: TargetId) -> Self {
        Self { target: target.0, class: CLASS_TARGET, a: 0, b: 0 }
    }

    pub(super) fn chunk(target: TargetId, chunk: ChunkId) -> Self {
        let b = u64::from(chunk.index) << 32 | u64::from(chunk.generation);
        Self { target: target.0, class: CLASS_CHUNK, a: chunk.inode.0, b }
    }

    pub(super) fn dedup(target: TargetId, key: &DedupKey) -> Self {
        let b = u64::from(key.incarnation) << 32 | u64::from(key.channel);
        Self { target: target.0, class: CLASS_DEDUP, a: key.client.0, b }
    }

    fn chunk_id(&self) -> ChunkId {
        ChunkId { inode: InodeId(self.a), index: (self.b >> 32) as u32, generation: self.b as u32 }
    }

    fn dedup_key(&self) -> DedupKey {
        DedupKey { client: ClientId(self.a), incarnation: (self.b >> 32) as u32, channel: self.b as u32 }
    }
}

/// One target: a logical space of chunks.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Target {
    pub(super) chain: ChainId,
    /// No version at or below this is given to a chunk that isn't in the index: a forgotten tombstone had it.
    pub(super) floor: u64,
    pub(super) chunks: ChunkMap,
    pub(super) dedup: DedupTable,
    /// Data blocks of committed versions.
    pub(super) blocks_used: u64,
}

/// How far the checkpoint's walk over the keys has come, for the promise that it fits its area.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Walk {
    /// Everything up to this key is in pages; `None`: nothing yet.
    pub(super) cursor: Option<Key>,
    /// Bytes put into pages, and bytes of keys still to come.
    pub(super) emitted: u64,
    pub(super) ahead: u64,
}

/// All targets of the slice, with the sums over them.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct Index {
    pub(super) targets: BTreeMap<TargetId, Target>,
    /// Encoded bytes of everything, and of what staged updates may still add.
    pub(super) bytes: u64,
    pub(super) promised: u64,
    pub(super) bytes_max: u64,
    pub(super) walk: Option<Walk>,
    pub(super) blocks_used: u64,
    pub(super) chunks: u64,
    pub(super) fragmented: u64,
    /// Tombstones by the number of the record that made them.
    pub(super) tombstones: BTreeMap<u64, (TargetId, ChunkId)>,
    /// Chunks with an update staged or pending.
    pub(super) pending: BTreeSet<(TargetId, ChunkId)>,
}

/// What counts for the sums, of one chunk.
#[derive(Clone, Copy, Default)]
struct Sums {
    bytes: u64,
    blocks: u64,
    chunk: bool,
    fragmented: bool,
    tombstone: Option<u64>,
}

impl Sums {
    fn of(chunk: Option<&Chunk>) -> Self {
        let Some(chunk) = chunk else { return Self::default() };
        Self {
            bytes: chunk.size(),
            blocks: chunk.blocks_used(),
            chunk: !chunk.removed(),
            fragmented: chunk.fragmented(),
            tombstone: chunk.tombstone(),
        }
    }
}

pub(super) fn no_target(target: TargetId) -> Error {
    Error::new(ErrorCode::UnknownChain, format!("{target} is not in this slice"))
}

impl Index {
    pub(super) fn new(bytes_max: u64) -> Self {
        Self { bytes_max, ..Self::default() }
    }

    pub(super) fn target(&self, target: TargetId) -> Result<&Target> {
        self.targets.get(&target).ok_or_else(|| no_target(target))
    }

    pub(super) fn chunk(&self, target: TargetId, chunk: ChunkId) -> Option<&Chunk> {
        self.targets.get(&target)?.chunks.get(&chunk)
    }

    /// Changes a chunk (an absent one is made first) and keeps the sums. A chunk left without version and pending
    /// update is gone. `None` if the target isn't here.
    fn change<R>(
        &mut self,
        target: TargetId,
        id: ChunkId,
        change: impl FnOnce(&mut Chunk) -> R,
    ) -> Option<R> {
        let entry = self.targets.get_mut(&target)?;
        let old = Sums::of(entry.chunks.get(&id));
        let chunk = entry.chunks.entry(id);
        let result = change(chunk);
        let pending = chunk.pending.is_some();
        let gone = chunk.version == 0 && !pending;
        let new = if gone { Sums::default() } else { Sums::of(Some(chunk)) };
        if gone {
            entry.chunks.remove(&id);
        }
        entry.blocks_used = entry.blocks_used - old.blocks + new.blocks;
        if pending {
            self.pending.insert((target, id));
        } else {
            self.pending.remove(&(target, id));
        }
        self.sum(target, id, old, new);
        Some(result)
    }

    fn sum(&mut self, target: TargetId, id: ChunkId, old: Sums, new: Sums) {
        self.resize(Key::chunk(target, id), old.bytes, new.bytes);
        self.blocks_used = self.blocks_used - old.blocks + new.blocks;
        self.chunks = self.chunks - u64::from(old.chunk) + u64::from(new.chunk);
        self.fragmented = self.fragmented - u64::from(old.fragmented) + u64::from(new.fragmented);
        if old.tombstone != new.tombstone {
            if let Some(stamp) = old.tombstone {
                self.tombstones.remove(&stamp);
            }
            if let Some(stamp) = new.tombstone {
                self.tombstones.insert(stamp, (target, id));
            }
        }
    }

    fn resize(&mut self, key: Key, old: u64, new: u64) {
        self.bytes = self.bytes - old + new;
        if let Some(walk) = &mut self.walk
            && walk.cursor.is_none_or(|cursor| key > cursor)
        {
            walk.ahead = walk.ahead - old + new;
        }
    }

    /// Whether the index may grow by so many bytes: `NoSpace` if it would outgrow a checkpoint area, `Overloaded`
    /// if only the checkpoint under way would.
    pub(super) fn may_grow(&self, bytes: u64) -> Result<()> {
        let after = self.bytes + self.promised + bytes;
        if after > self.bytes_max {
            let what = "the index has outgrown the checkpoint area";
            return Err(Error::mismatch(ErrorCode::NoSpace, self.bytes_max, after, what));
        }
        let walked = self.walk.map_or(0, |walk| walk.emitted + walk.ahead + self.promised + bytes);
        if walked > self.bytes_max {
            let what = "the checkpoint under way has no room for more";
            return Err(Error::mismatch(ErrorCode::Overloaded, self.bytes_max, walked, what));
        }
        Ok(())
    }

    /// Puts an update in front of a chunk. The caller has checked that none is pending.
    pub(super) fn put_pending(&mut self, record: UpdateRecord, number: u64, stage: Stage) {
        let (target, id) = (record.update.target, record.update.chunk);
        self.change(target, id, |chunk| {
            assert!(chunk.pending.is_none(), "two updates of one chunk at a time");
            chunk.pending = Some(Box::new(Pending { record, number, stage }));
        });
    }

    /// Moves a pending update on; false if it isn't there any more.
    pub(super) fn set_stage(&mut self, target: TargetId, id: ChunkId, number: u64, stage: Stage) -> bool {
        let chunk = self.targets.get_mut(&target).and_then(|target| target.chunks.get_mut(&id));
        let Some(pending) = chunk.and_then(|chunk| chunk.pending.as_mut()) else { return false };
        pending.number = number;
        pending.stage = stage;
        true
    }

    /// Makes the pending update the committed version; superseded blocks go to `freed`.
    pub(super) fn commit_pending(
        &mut self,
        (target, id): (TargetId, ChunkId),
        chain_version: u64,
        stamp: u64,
        freed: &mut Vec<Run>,
    ) {
        self.change(target, id, |chunk| chunk.commit_pending(chain_version, stamp, freed));
    }

    /// Takes the pending update away; its blocks go to `freed`.
    pub(super) fn drop_pending(&mut self, target: TargetId, id: ChunkId, freed: &mut Vec<Run>) {
        let pending = self.change(target, id, |chunk| chunk.pending.take()).flatten();
        freed.extend(pending.into_iter().flat_map(|pending| pending.record.runs));
    }

    /// Puts a chunk as a checkpoint shows it. False if it is there already or its target isn't.
    pub(super) fn load_chunk(&mut self, target: TargetId, id: ChunkId, loaded: Chunk) -> bool {
        self.chunk(target, id).is_none() && self.change(target, id, |chunk| *chunk = loaded).is_some()
    }

    /// Forgets a tombstone; the target's floor takes over its version.
    pub(super) fn purge(&mut self, target: TargetId, id: ChunkId) {
        self.change(target, id, |chunk| *chunk = Chunk::absent());
    }

    pub(super) fn raise_floor(&mut self, target: TargetId, version: u64) {
        if let Some(target) = self.targets.get_mut(&target) {
            target.floor = target.floor.max(version);
        }
    }

    pub(super) fn create_target(&mut self, target: TargetId, chain: ChainId, floor: u64) -> bool {
        if self.targets.contains_key(&target) {
            return false;
        }
        let empty = Target {
            chain,
            floor,
            chunks: ChunkMap::default(),
            dedup: DedupTable::default(),
            blocks_used: 0,
        };
        self.targets.insert(target, empty);
        self.resize(Key::target(target), 0, TARGET_BYTES);
        true
    }

    /// Removes a target and all in it; blocks of committed and pending versions go to `freed`.
    pub(super) fn remove_target(&mut self, target: TargetId, freed: &mut Vec<Run>) -> bool {
        let Some(old) = self.targets.remove(&target) else { return false };
        for (id, chunk) in old.chunks.iter() {
            chunk.runs(freed);
            freed.extend(chunk.pending.iter().flat_map(|pending| &pending.record.runs));
            self.pending.remove(&(target, *id));
            self.sum(target, *id, Sums::of(Some(chunk)), Sums::default());
        }
        for (key, _) in old.dedup.after(None) {
            self.resize(Key::dedup(target, key), DEDUP_BYTES, 0);
        }
        self.resize(Key::target(target), TARGET_BYTES, 0);
        true
    }

    pub(super) fn put_dedup(&mut self, target: TargetId, row: DedupRow, used: u64) -> bool {
        let Some(entry) = self.targets.get_mut(&target) else { return false };
        let key = Key::dedup(target, &DedupKey::of(&row.tag));
        if entry.dedup.put(row, used) {
            self.resize(key, 0, DEDUP_BYTES);
        }
        true
    }

    pub(super) fn evict_dedup(&mut self, target: TargetId, key: &DedupKey) {
        let Some(entry) = self.targets.get_mut(&target) else { return };
        if entry.dedup.remove(key) {
            self.resize(Key::dedup(target, key), DEDUP_BYTES, 0);
        }
    }

    pub(super) fn mark_dropped(&mut self, target: TargetId, tag: &UpdateTag) {
        if let Some(target) = self.targets.get_mut(&target) {
            target.dedup.mark_dropped(tag);
        }
    }

    /// The least recently used row of a target whose update isn't in progress.
    pub(super) fn evictable(&self, target: TargetId) -> Option<DedupKey> {
        let entry = self.targets.get(&target)?;
        let in_progress = |row: &DedupRow| {
            let pending = entry.chunks.get(&row.chunk).and_then(|chunk| chunk.pending.as_ref());
            pending.is_some_and(|pending| pending.record.update.tag == row.tag)
        };
        entry.dedup.oldest().find(|(_, row)| !in_progress(row)).map(|(key, _)| *key)
    }

    /// Encodes entries after `after` in key order into `out`, until the next would make it longer than `limit`
    /// (the first is always taken). The last key encoded, how many entries, and the bytes they count for;
    /// `None` if there are no more.
    pub(super) fn encode_page(
        &self,
        after: Option<Key>,
        limit: usize,
        out: &mut Vec<u8>,
    ) -> Option<(Key, u32, u64)> {
        let mut page = Page { limit, out, last: None, entries: 0, counted: 0 };
        let first = after.map_or(Unbounded, |after| Included(TargetId(after.target)));
        for (id, target) in self.targets.range((first, Unbounded)) {
            let within = after.filter(|after| after.target == id.0);
            if !encode_target(*id, target, within, &mut page) {
                break;
            }
        }
        page.last.map(|key| (key, page.entries, page.counted))
    }

    /// Whether any key may follow this one.
    pub(super) fn has_after(&self, key: Key) -> bool {
        self.encode_page(Some(key), 0, &mut Vec::new()).is_some()
    }

    /// Puts one encoded entry back. `None` if the bytes make none or contradict what is there.
    pub(super) fn decode_entry(&mut self, get: &mut Get) -> Option<Key> {
        match u64::from(get.u8()?) {
            CLASS_TARGET => {
                get.bytes(7)?;
                let (target, chain, floor) = (TargetId(get.u64()?), ChainId(get.u64()?), get.u64()?);
                self.create_target(target, chain, floor).then(|| Key::target(target))
            }
            CLASS_CHUNK => {
                let (target, id, chunk) = Chunk::decode(get)?;
                self.load_chunk(target, id, chunk).then(|| Key::chunk(target, id))
            }
            CLASS_DEDUP => {
                get.bytes(7)?;
                let (target, used, row) = (TargetId(get.u64()?), get.u64()?, DedupRow::get(get)?);
                self.put_dedup(target, row, used).then(|| Key::dedup(target, &DedupKey::of(&row.tag)))
            }
            _ => None,
        }
    }
}

/// Entries as they gather for a page.
struct Page<'a> {
    limit: usize,
    out: &'a mut Vec<u8>,
    last: Option<Key>,
    entries: u32,
    counted: u64,
}

impl Page<'_> {
    /// Takes an entry that counts for so many bytes; false, and nothing taken, if there is no room for it.
    fn take(&mut self, key: Key, counts: u64, encode: impl FnOnce(&mut Vec<u8>)) -> bool {
        let start = self.out.len();
        encode(self.out);
        if self.entries > 0 && self.out.len() > self.limit {
            self.out.truncate(start);
            return false;
        }
        self.last = Some(key);
        self.entries += 1;
        self.counted += counts;
        true
    }
}

/// Encodes a target, its chunks and its rows, or what of it comes after a key in it; false if there was no room for all. In one walk, rather
/// than with a search for each entry.
fn encode_target(id: TargetId, target: &Target, after: Option<Key>, page: &mut Page<'_>) -> bool {
    let class = after.map_or(0, |after| after.class);
    if class < CLASS_TARGET {
        let taken = page.take(Key::target(id), TARGET_BYTES, |out| {
            out.extend_from_slice(&[CLASS_TARGET as u8, 0, 0, 0, 0, 0, 0, 0]);
            out.u64(id.0);
            out.u64(target.chain.0);
            out.u64(target.floor);
        });
        if !taken {
            return false;
        }
    }
    if class <= CLASS_CHUNK {
        let of_chunk = after.filter(|_| class == CLASS_CHUNK);
        let bound = of_chunk.map_or(Unbounded, |after| Excluded(after.chunk_id()));
        // A chunk of which nothing is committed or logged yet isn't there for the checkpoint.
        let logged = |chunk: &Chunk| {
            chunk.version > 0 || chunk.pending.as_ref().is_some_and(|pending| pending.stage != Stage::Staged)
        };
        for (chunk_id, chunk) in target.chunks.range((bound, Unbounded)).filter(|(_, chunk)| logged(chunk)) {
            let key = Key::chunk(id, *chunk_id);
            if !page.take(key, chunk.size(), |out| chunk.encode(id, *chunk_id, out)) {
                return false;
            }
        }
    }
    let row = after.filter(|_| class == CLASS_DEDUP).map(|after| after.dedup_key());
    target.dedup.after(row).all(|(key, (row, used))| {
        page.take(Key::dedup(id, key), DEDUP_BYTES, |out| {
            out.extend_from_slice(&[CLASS_DEDUP as u8, 0, 0, 0, 0, 0, 0, 0]);
            out.u64(id.0);
            out.u64(*used);
            row.put(out);
        })
    })
}
