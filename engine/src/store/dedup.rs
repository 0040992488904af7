//! Duplicate detection: the last update of each update channel, per target.
//!
//! A row lives until its target goes, or until it is the least recently used of more than
//! `Geometry::dedup_rows_max`; then it is forgotten, and a retry that comes after that is taken for new. The
//! bound must exceed the channels that write to one target at the same time.

use super::codec::{Get, Put};
use corefs_wire::{ChunkId, ClientId, UpdateTag};
use std::collections::BTreeMap;

/// The newest update of one (client, incarnation, channel) on one target.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DedupRow {
    pub tag: UpdateTag,
    pub chunk: ChunkId,
    pub version: u64,
    /// Length of the chunk after it (bytes).
    pub length: u32,
    /// The update was dropped before it was committed: the same sequence is new again.
    pub dropped: bool,
}

impl DedupRow {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.tag(self.tag);
        out.chunk_id(self.chunk);
        out.u64(self.version);
        out.u32(self.length);
        out.u32(self.dropped.into());
    }

    pub(super) fn get(get: &mut Get) -> Option<Self> {
        let (tag, chunk, version) = (get.tag()?, get.chunk_id()?, get.u64()?);
        Some(Self { tag, chunk, version, length: get.u32()?, dropped: get.u32()? != 0 })
    }
}

/// Whose row it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct DedupKey {
    pub(super) client: ClientId,
    pub(super) incarnation: u32,
    pub(super) channel: u32,
}

impl DedupKey {
    pub(super) fn of(tag: &UpdateTag) -> Self {
        Self { client: tag.client, incarnation: tag.incarnation, channel: tag.channel }
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.u64(self.client.0);
        out.u32(self.incarnation);
        out.u32(self.channel);
    }

    pub(super) fn get(get: &mut Get) -> Option<Self> {
        Some(Self { client: ClientId(get.u64()?), incarnation: get.u32()?, channel: get.u32()? })
    }
}

/// The rows of one target, also in the order of their last use (the number of the record that wrote them).
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(super) struct DedupTable {
    rows: BTreeMap<DedupKey, (DedupRow, u64)>,
    by_use: BTreeMap<u64, DedupKey>,
}

impl DedupTable {
    pub(super) fn get(&self, key: &DedupKey) -> Option<&DedupRow> {
        self.rows.get(key).map(|(row, _)| row)
    }

    /// Puts a row written by record `used`; true if its channel had none.
    pub(super) fn put(&mut self, row: DedupRow, used: u64) -> bool {
        let key = DedupKey::of(&row.tag);
        let old = self.rows.insert(key, (row, used));
        if let Some((_, used)) = old {
            self.by_use.remove(&used);
        }
        self.by_use.insert(used, key);
        old.is_none()
    }

    /// Marks the row of `tag` as dropped, if it still is of that sequence.
    pub(super) fn mark_dropped(&mut self, tag: &UpdateTag) {
        if let Some((row, _)) = self.rows.get_mut(&DedupKey::of(tag))
            && row.tag.sequence == tag.sequence
        {
            row.dropped = true;
        }
    }

    pub(super) fn remove(&mut self, key: &DedupKey) -> bool {
        let old = self.rows.remove(key);
        if let Some((_, used)) = old {
            self.by_use.remove(&used);
        }
        old.is_some()
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Rows from the least recently used on.
    pub(super) fn oldest(&self) -> impl Iterator<Item = (&DedupKey, &DedupRow)> {
        self.by_use.values().filter_map(|key| Some((key, &self.rows.get(key)?.0)))
    }

    /// Rows in order of key after `after`, each with the number of its last use.
    pub(super) fn after(
        &self,
        after: Option<DedupKey>,
    ) -> impl Iterator<Item = (&DedupKey, &(DedupRow, u64))> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.rows.range((after.map_or(Unbounded, Excluded), Unbounded))
    }
}
