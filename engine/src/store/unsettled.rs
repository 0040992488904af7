//! Which data a batch above F must have on the disk for it to count.
//!
//! Its flush may have been complete without anything on the disk saying so yet. From that moment on blocks that it had given away
//! by itself were free, and may have been written again: those of updates that it drops again, of targets that it removes, and of
//! updates that were committed when their bytes were written (parts of fills) and changed again by the same batch. Only what its
//! last record leaves must match.

use super::record::{Record, UpdateRecord};
use super::update::UpdateKind;
use corefs_wire::limits::BLOCK;
use corefs_wire::{ChunkId, TargetId};
use std::collections::BTreeMap;

/// What one batch has named of a chunk and not given away.
#[derive(Debug, Default)]
struct Left<'a> {
    /// Data block and CRC of each of the chunk's blocks.
    committed: BTreeMap<u32, (u32, u32)>,
    pending: Option<&'a UpdateRecord>,
}

impl Left<'_> {
    fn commit(&mut self, record: &UpdateRecord) {
        match record.update.kind {
            UpdateKind::Remove | UpdateKind::FullReplace { .. } => self.committed.clear(),
            UpdateKind::Write { .. } | UpdateKind::Truncate { .. } | UpdateKind::Patch { .. } => {
                self.committed.split_off(&record.length.div_ceil(BLOCK as u32));
            }
        }
        self.committed.extend((record.first_block..).zip(blocks(record)));
    }
}

fn blocks(record: &UpdateRecord) -> impl Iterator<Item = (u32, u32)> {
    let places = record.runs.iter().flat_map(|run| run.start..run.start + run.count);
    places.zip(record.crcs.iter().copied())
}

/// The data blocks that the records leave named, in order, with their CRCs.
pub(super) fn blocks_left(records: &[Record]) -> BTreeMap<u32, u32> {
    let mut left: BTreeMap<(TargetId, ChunkId), Left<'_>> = BTreeMap::new();
    for record in records {
        match record {
            Record::Update(record) => {
                let chunk = left.entry((record.update.target, record.update.chunk)).or_default();
                match record.direct {
                    true => chunk.commit(record),
                    false => chunk.pending = Some(record),
                }
            }
            Record::Commit { target, chunk, .. } => {
                let chunk = left.entry((*target, *chunk)).or_default();
                if let Some(record) = chunk.pending.take() {
                    chunk.commit(record);
                }
            }
            Record::Drop { target, chunk, .. } => {
                left.entry((*target, *chunk)).or_default().pending = None;
            }
            Record::RemoveTarget { target } => left.retain(|(of, _), _| of != target),
            _ => {}
        }
    }
    let pending = |chunk: &Left<'_>| chunk.pending.into_iter().flat_map(blocks).collect::<Vec<_>>();
    left.values().flat_map(|chunk| chunk.committed.values().copied().chain(pending(chunk))).collect()
}
