//! What the store should hold, kept as simply as possible.

use corefs_engine::store::{Outcome, UpdateKind};
use corefs_wire::{ChainId, ChunkId, TargetId, UpdateTag};
use std::collections::BTreeMap;
use std::rc::Rc;

/// The bytes of a chunk, or `None` when it is removed.
pub type Content = Option<Rc<Vec<u8>>>;

/// An update that is logged and not finished.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ModelPending {
    pub version: u64,
    pub epoch: u64,
    pub tag: UpdateTag,
    pub content: Content,
    /// Its flush commits it.
    pub direct: bool,
    pub flushed: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ModelChunk {
    /// 0: nothing was ever committed.
    pub version: u64,
    pub epoch: u64,
    pub content: Content,
    pub pending: Option<ModelPending>,
}

impl ModelChunk {
    pub fn commit(&mut self) {
        if let Some(pending) = self.pending.take() {
            self.version = pending.version;
            self.epoch = self.epoch.max(pending.epoch);
            self.content = pending.content;
        }
    }

    pub fn length(&self) -> u32 {
        self.content.as_ref().map_or(0, |bytes| bytes.len() as u32)
    }
}

/// The remembered update of a channel, and when it was last used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ModelRow {
    pub sequence: u64,
    pub chunk: ChunkId,
    pub outcome: Outcome,
    pub dropped: bool,
    pub used: u64,
}

/// (client, incarnation, channel).
pub type Channel = (u64, u32, u32);

pub fn channel(tag: &UpdateTag) -> Channel {
    (tag.client.0, tag.incarnation, tag.channel)
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ModelTarget {
    pub chain: ChainId,
    pub chunks: BTreeMap<ChunkId, ModelChunk>,
    pub rows: BTreeMap<Channel, ModelRow>,
}

/// Everything in the log up to some moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Model {
    pub targets: BTreeMap<TargetId, ModelTarget>,
    pub uses: u64,
    /// Rows kept for each target.
    pub rows_max: usize,
}

impl ModelTarget {
    /// Forgets the least recently used row that isn't in progress, if there are too many.
    fn evict(&mut self, rows_max: usize) {
        if self.rows.len() <= rows_max {
            return;
        }
        let in_progress = |of: &Channel, row: &ModelRow| {
            let pending = self.chunks.get(&row.chunk).and_then(|chunk| chunk.pending.as_ref());
            pending
                .is_some_and(|pending| channel(&pending.tag) == *of && pending.tag.sequence == row.sequence)
        };
        let idle = self.rows.iter().filter(|(of, row)| !in_progress(of, row));
        if let Some(of) = idle.min_by_key(|(_, row)| row.used).map(|(of, _)| *of) {
            self.rows.remove(&of);
        }
    }
}

impl Model {
    pub fn chunk_mut(&mut self, target: TargetId, chunk: ChunkId) -> Option<&mut ModelChunk> {
        Some(self.targets.get_mut(&target)?.chunks.entry(chunk).or_default())
    }

    pub fn chunk(&self, target: TargetId, chunk: ChunkId) -> Option<&ModelChunk> {
        self.targets.get(&target)?.chunks.get(&chunk)
    }

    /// An update was applied: it is pending, and its channel remembers it.
    pub fn apply(&mut self, target: TargetId, chunk: ChunkId, pending: ModelPending) {
        self.uses += 1;
        let used = self.uses;
        let (tag, version) = (pending.tag, pending.version);
        let length = pending.content.as_ref().map_or(0, |bytes| bytes.len() as u32);
        let rows_max = self.rows_max;
        let Some(entry) = self.targets.get_mut(&target) else { return };
        entry.chunks.entry(chunk).or_default().pending = Some(pending);
        if tag.client.0 != 0 {
            let outcome = Outcome { version, length };
            let row = ModelRow { sequence: tag.sequence, chunk, outcome, dropped: false, used };
            entry.rows.insert(channel(&tag), row);
            entry.evict(rows_max);
        }
    }

    pub fn drop_pending(&mut self, target: TargetId, chunk: ChunkId) {
        let Some(entry) = self.targets.get_mut(&target) else { return };
        let pending = entry.chunks.get_mut(&chunk).and_then(|chunk| chunk.pending.take());
        let Some(tag) = pending.map(|pending| pending.tag) else { return };
        if let Some(row) = entry.rows.get_mut(&channel(&tag)).filter(|row| row.sequence == tag.sequence) {
            row.dropped = true;
        }
    }

    /// What recovery makes of this log: everything in it is flushed, what needs no commit record is committed.
    pub fn recovered(&self) -> Self {
        let mut model = self.clone();
        for target in model.targets.values_mut() {
            for chunk in target.chunks.values_mut() {
                match &mut chunk.pending {
                    Some(pending) if pending.direct => chunk.commit(),
                    Some(pending) => pending.flushed = true,
                    None => {}
                }
            }
        }
        model
    }
}

/// The bytes after an update, by the definition of its kind.
pub fn updated(old: &Content, kind: UpdateKind, payload: &[u8]) -> Content {
    let mut bytes = old.as_ref().map_or_else(Vec::new, |bytes| bytes.to_vec());
    match kind {
        UpdateKind::Write { offset, .. } => {
            let (start, end) = (offset as usize, offset as usize + payload.len());
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[start..end].copy_from_slice(payload);
        }
        UpdateKind::Truncate { len } => bytes.resize(len as usize, 0),
        UpdateKind::FullReplace { total, .. } => {
            bytes = payload.to_vec();
            bytes.resize(total as usize, 0);
        }
        UpdateKind::Patch { offset, .. } => {
            bytes[offset as usize..offset as usize + payload.len()].copy_from_slice(payload);
        }
        UpdateKind::Remove => return None,
    }
    Some(Rc::new(bytes))
}
