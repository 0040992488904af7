//! Replay: a checkpoint's pages and the journal's records become the index again.
//!
//! Each page shows its keys as of one record number. A record changes up to three keys (chunk, row, target), each
//! on its own: what is older than the key's page is skipped, everything else must fit exactly what is there, and
//! what doesn't is reported as damage. Within a target, later keys have later pages, so that a record that counts
//! for a chunk or row counts for its target too, or the target was newer already.

use super::chunk::Stage;
use super::codec::Get;
use super::dedup::{DedupKey, DedupRow};
use super::format::{PageHead, Root};
use super::index::{Index, Key};
use super::record::{Record, Run, UpdateRecord};
use super::update::UpdateKind;
use corefs_wire::{ChunkId, TargetId};
use std::collections::BTreeSet;

#[derive(Debug)]
pub(super) struct Replay {
    pub(super) index: Index,
    pub(super) root: Root,
    /// Of each page: its last key, and the record number it is as of.
    pages: Vec<(Key, u64)>,
    /// The number after the last record seen.
    pub(super) next_record: u64,
    pub(super) removed_targets: BTreeSet<TargetId>,
    freed: Vec<Run>,
    entries: u64,
}

/// What contradicts what, for people.
type Check = Result<(), String>;

impl Replay {
    pub(super) fn new(root: Root, bytes_max: u64) -> Self {
        Self {
            index: Index::new(bytes_max),
            root,
            pages: Vec::new(),
            next_record: root.next_record,
            removed_targets: BTreeSet::new(),
            freed: Vec::new(),
            entries: 0,
        }
    }

    /// Takes the next page of the checkpoint.
    pub(super) fn page(&mut self, head: &PageHead, payload: &[u8]) -> Check {
        let number = self.pages.len() as u32;
        if head.checkpoint != self.root.id || head.index != number {
            return Err(format!(
                "page {number} of checkpoint {} is page {} of {}",
                self.root.id, head.index, head.checkpoint
            ));
        }
        let (previous, as_of) = self.pages.last().copied().unzip();
        if as_of.unwrap_or(self.root.next_record) > head.as_of
            || previous.is_some_and(|key| key >= head.upper)
        {
            return Err(format!("page {number} is out of order"));
        }
        let mut last = previous;
        let mut get = Get(payload);
        for entry in 0..head.entries {
            let key = self.index.decode_entry(&mut get);
            let fits = |key: &Key| last.is_none_or(|last| last < *key) && *key <= head.upper;
            last = key.filter(fits);
            if last.is_none() {
                return Err(format!("entry {entry} of page {number} makes no sense"));
            }
        }
        if !get.is_empty() {
            return Err(format!("page {number} has bytes after its last entry"));
        }
        self.entries += u64::from(head.entries);
        self.pages.push((head.upper, head.as_of));
        Ok(())
    }

    /// All pages are there. Updates that needed no commit record are committed: their flush precedes the root.
    pub(super) fn loaded(&mut self) -> Check {
        let complete = self.pages.len() as u32 == self.root.pages
            && self.entries == self.root.entries
            && (self.pages.is_empty() || self.pages.last().is_some_and(|(upper, _)| *upper == Key::MAX));
        if !complete {
            return Err(format!("checkpoint {} lacks pages or entries", self.root.id));
        }
        let pending: Vec<_> = self.index.pending.iter().copied().collect();
        for (target, chunk) in pending {
            let found = self.index.chunk(target, chunk).and_then(|chunk| chunk.pending.as_ref());
            let direct = found.filter(|pending| pending.record.direct);
            if let Some((number, update)) = direct.map(|pending| (pending.number, pending.record.update)) {
                self.commit(target, chunk, update.chain_version, number);
            }
        }
        Ok(())
    }

    /// The record number that a key is known as of.
    fn as_of(&self, key: Key) -> u64 {
        let page = self.pages.partition_point(|(upper, _)| *upper < key);
        self.pages.get(page).map_or(self.root.next_record, |(_, as_of)| *as_of)
    }

    fn counts(&self, key: Key, number: u64) -> bool {
        number >= self.as_of(key)
    }

    /// Applies one record.
    pub(super) fn record(&mut self, record: Record, number: u64) -> Check {
        match record {
            Record::Update(record) => self.update(record, number),
            Record::Commit { target, chunk, version, chain_version } => {
                if self.counts(Key::chunk(target, chunk), number) {
                    self.expect_pending(target, chunk, version)?;
                    self.commit(target, chunk, chain_version, number);
                }
                Ok(())
            }
            Record::Drop { target, chunk, version, tag } => {
                if self.counts(Key::chunk(target, chunk), number) {
                    self.expect_pending(target, chunk, version)?;
                    self.freed.clear();
                    self.index.drop_pending(target, chunk, &mut self.freed);
                }
                if self.counts(Key::dedup(target, &DedupKey::of(&tag)), number) {
                    self.index.mark_dropped(target, &tag);
                }
                Ok(())
            }
            Record::Purge { target, chunk, version } => self.purge(target, chunk, version, number),
            Record::CreateTarget { target, chain } => {
                if self.counts(Key::target(target), number) && !self.index.create_target(target, chain, 0) {
                    return Err(format!("{target} is created twice"));
                }
                Ok(())
            }
            Record::RemoveTarget { target } => {
                self.removed_targets.insert(target);
                self.freed.clear();
                if self.counts(Key::target(target), number)
                    && !self.index.remove_target(target, &mut self.freed)
                {
                    return Err(format!("{target} is removed but not there"));
                }
                Ok(())
            }
            Record::DedupPut { target, row } => self.row(target, row, number),
            Record::Floor { target, version } => {
                if self.counts(Key::target(target), number) {
                    self.index.raise_floor(target, version);
                }
                Ok(())
            }
            Record::DedupEvict { target, key } => {
                if self.counts(Key::dedup(target, &key), number) {
                    self.index.evict_dedup(target, &key);
                }
                Ok(())
            }
        }
    }

    fn update(&mut self, record: UpdateRecord, number: u64) -> Check {
        let update = record.update;
        let (target, chunk, version, tag) = (update.target, update.chunk, update.version, update.tag);
        let row = DedupRow { tag, chunk, version, length: record.length, dropped: false };
        if self.counts(Key::chunk(target, chunk), number) {
            if !self.index.targets.contains_key(&target) {
                return Err(format!("an update of {chunk} of {target}, which isn't there"));
            }
            let found = self.index.chunk(target, chunk);
            let base = found.map_or(0, |chunk| chunk.version);
            let pending = found.is_some_and(|chunk| chunk.pending.is_some());
            let fits = match update.kind {
                // A removal that fills a replica has any version as well.
                UpdateKind::FullReplace { .. } | UpdateKind::Remove => version > 0,
                UpdateKind::Patch { .. } => version == base,
                _ => version > base,
            };
            if base != record.base || pending || !fits {
                return Err(format!(
                    "update {version} of {chunk} of {target} changes version {}, but version {base} is there",
                    record.base
                ));
            }
            let direct = record.direct;
            self.index.put_pending(record, number, Stage::Flushed);
            if direct {
                self.commit(target, chunk, update.chain_version, number);
            }
        }
        if tag.client.0 != 0 { self.row(target, row, number) } else { Ok(()) }
    }

    fn commit(&mut self, target: TargetId, chunk: ChunkId, chain_version: u64, stamp: u64) {
        self.freed.clear();
        self.index.commit_pending((target, chunk), chain_version, stamp, &mut self.freed);
    }

    fn expect_pending(&self, target: TargetId, chunk: ChunkId, version: u64) -> Check {
        let pending = self.index.chunk(target, chunk).and_then(|chunk| chunk.pending.as_ref());
        match pending.map(|pending| pending.record.update.version) {
            Some(found) if found == version => Ok(()),
            found => {
                Err(format!("version {version} of {chunk} of {target} should be pending, but {found:?} is"))
            }
        }
    }

    fn row(&mut self, target: TargetId, row: DedupRow, number: u64) -> Check {
        let key = Key::dedup(target, &DedupKey::of(&row.tag));
        if self.counts(key, number) && !self.index.put_dedup(target, row, number) {
            return Err(format!("a row of {target}, which isn't there"));
        }
        Ok(())
    }

    fn purge(&mut self, target: TargetId, chunk: ChunkId, version: u64, number: u64) -> Check {
        if self.counts(Key::chunk(target, chunk), number) {
            let found = self.index.chunk(target, chunk);
            let tombstone = |chunk: &&super::chunk::Chunk| {
                chunk.removed() && chunk.version == version && chunk.pending.is_none()
            };
            if found.filter(tombstone).is_none() {
                return Err(format!("{chunk} of {target} should be a tombstone of version {version}"));
            }
            self.index.purge(target, chunk);
        }
        if self.counts(Key::target(target), number) {
            self.index.raise_floor(target, version);
        }
        Ok(())
    }
}
