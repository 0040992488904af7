//! Blocks that are named by the last flushed batch, were given away by that very batch, and are written again before anything on
//! the disk says that it was flushed.
//!
//! Recovery finds such a batch above F with bytes in it that are not its own. That is rare in life, so the runs count it: a check
//! of something that never happened proves nothing.

use corefs_engine::store::{BatchId, Update, UpdateKind};
use corefs_wire::{ChunkId, TargetId};
use std::collections::BTreeMap;

/// How a batch gives away blocks that it names itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Way {
    Overwritten,
    Truncated,
    Removed,
    Replaced,
    Patched,
    Dropped,
    TargetRemoved,
}

impl Way {
    pub const ALL: [Self; 7] = [
        Self::Overwritten,
        Self::Truncated,
        Self::Removed,
        Self::Replaced,
        Self::Patched,
        Self::Dropped,
        Self::TargetRemoved,
    ];

    fn of(kind: UpdateKind) -> Self {
        match kind {
            UpdateKind::Write { .. } => Self::Overwritten,
            UpdateKind::Truncate { .. } => Self::Truncated,
            UpdateKind::Remove => Self::Removed,
            UpdateKind::FullReplace { .. } => Self::Replaced,
            UpdateKind::Patch { .. } => Self::Patched,
        }
    }
}

type Place = (BatchId, TargetId, ChunkId);

/// Since the last recovery.
#[derive(Debug)]
pub(super) struct Reuse {
    /// The batch that gathers records.
    open: BatchId,
    /// Who named each block last, by offset in the slice.
    named: BTreeMap<u64, Place>,
    /// What happened last to a chunk in a batch that had named blocks of it.
    given_away: BTreeMap<Place, Way>,
    flushed: Option<BatchId>,
}

impl Reuse {
    pub(super) fn new() -> Self {
        Self { open: BatchId(1), named: BTreeMap::new(), given_away: BTreeMap::new(), flushed: None }
    }

    pub(super) fn sealed(&mut self, batch: BatchId) {
        self.open = BatchId(batch.0 + 1);
    }

    pub(super) fn flushed(&mut self, batch: BatchId) {
        self.flushed = Some(batch);
        self.given_away.retain(|(of, ..), _| *of >= batch);
    }

    /// An update that names these blocks, and gives away others if its own flush commits it. The way of each block that is reused.
    pub(super) fn applied(&mut self, update: &Update, direct: bool, blocks: &[u64]) -> Vec<Way> {
        let place = (self.open, update.target, update.chunk);
        if direct && self.named.values().any(|named| *named == place) {
            self.given_away.insert(place, Way::of(update.kind));
        }
        let mut reused = Vec::new();
        for block in blocks {
            let before = self.named.insert(*block, place);
            let unsettled = before.filter(|(batch, ..)| Some(*batch) == self.flushed);
            reused.extend(unsettled.and_then(|before| self.given_away.get(&before)));
        }
        reused
    }

    pub(super) fn dropped(&mut self, target: TargetId, chunk: ChunkId) {
        self.given_away.insert((self.open, target, chunk), Way::Dropped);
    }

    pub(super) fn target_removed(&mut self, target: TargetId) {
        for place in self.named.values().filter(|place| (place.0, place.1) == (self.open, target)) {
            self.given_away.insert(*place, Way::TargetRemoved);
        }
    }
}
