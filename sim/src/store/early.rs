//! What a replica does that is being filled: parts of chunks under any version, committed when their bytes are written, before
//! their flush.

use super::model::ModelChunk;
use super::run::{Run, Stop};
use super::step::{Step, wrong};
use corefs_engine::store::{Begin, Finish, Update, UpdateKind};
use corefs_wire::limits::BLOCK;
use corefs_wire::{ChunkId, TargetId, UpdateTag};

impl Run {
    /// Some parts of a chunk, one after the other.
    pub(super) fn fill(&mut self) -> Step {
        let Some(target) = self.pick_target() else { return Ok(()) };
        let chunk = self.pick_chunk();
        for _ in 0..self.prng.between(1, 4) {
            self.part(target, chunk)?;
            if self.live.chunk(target, chunk).is_some_and(is_direct) {
                self.commit_early(target, chunk)?;
            }
        }
        self.filled = Some((target, chunk));
        Ok(())
    }

    /// A replacement, a part of one, or a removal, under a version that another replica gave.
    fn part(&mut self, target: TargetId, chunk: ChunkId) -> Step {
        let model = self.known(target, chunk);
        let (kind, version) = self.pick_fill(&model);
        let entry = self.store.entry(target, chunk).map_err(|error| wrong(error.to_string()))?;
        let base = entry.map_or(0, |entry| entry.digest);
        let (truncate_epoch, tag) = (entry.map_or(0, |entry| entry.epoch), UpdateTag::default());
        let update = Update { target, chunk, kind, version, chain_version: 1, truncate_epoch, tag };
        match self.store.begin_fill(update, base) {
            Ok(Begin::Fresh(staging)) => {
                let mut payload = vec![0; staging.payload.len()];
                self.prng.fill(&mut payload);
                self.stage(update, staging, &model.content, payload, Finish::Commit)
            }
            Ok(other) => Err(wrong(format!("a fill is a duplicate: {other:?}"))),
            Err(error) => self.refused(&error, update),
        }
    }

    fn pick_fill(&mut self, model: &ModelChunk) -> (UpdateKind, u64) {
        let blocks = u64::from(model.length() / BLOCK as u32);
        let any = self.prng.between(1, model.version + 2);
        match self.prng.below(6) {
            0 => (UpdateKind::Remove, any),
            1 | 2 => {
                let (len, hole) = (self.prng.below(8 * BLOCK as u64), self.prng.below(3 * BLOCK as u64));
                (UpdateKind::FullReplace { len: len as u32, total: (len + hole) as u32 }, any)
            }
            _ if blocks == 0 => (UpdateKind::FullReplace { len: BLOCK as u32, total: BLOCK as u32 }, any),
            _ => {
                let first = self.prng.below(blocks);
                let count = self.prng.between(1, blocks - first);
                let (offset, len) = ((first * BLOCK as u64) as u32, (count * BLOCK as u64) as u32);
                (UpdateKind::Patch { offset, len }, model.version)
            }
        }
    }

    /// Commits some update that has not been flushed yet.
    pub(super) fn commit_written(&mut self) -> Step {
        let all = self.live.targets.iter().flat_map(|(target, entry)| {
            let direct = entry.chunks.iter().filter(|(_, chunk)| is_direct(chunk));
            direct.map(|(chunk, _)| (*target, *chunk))
        });
        let all: Vec<_> = all.collect();
        if all.is_empty() {
            return Ok(());
        }
        let (target, chunk) = *self.prng.pick(&all);
        self.commit_early(target, chunk)
    }

    /// Commits an update before its flush: all its bytes are written by then.
    fn commit_early(&mut self, target: TargetId, chunk: ChunkId) -> Step {
        self.write_data_of(target, chunk)?;
        let Some(outcome) = self.store.commit_written(target, chunk) else {
            return Err(wrong(format!("{chunk} of {target} isn't there to be committed")));
        };
        let Some(found) = self.live.chunk_mut(target, chunk) else { return Ok(()) };
        found.commit();
        if (found.version, found.length()) != (outcome.version, outcome.length) {
            return Err(wrong(format!("{chunk} of {target} was committed as {outcome:?}, not {found:?}")));
        }
        self.counts.committed_early += 1;
        Ok(())
    }

    fn write_data_of(&mut self, target: TargetId, chunk: ChunkId) -> Result<(), Stop> {
        let blocks = self.data.get(&(target, chunk)).cloned().unwrap_or_default();
        while let Some(which) = self.queue.iter().position(|(_, offset, _)| blocks.contains(offset)) {
            let (_, offset, bytes) = self.queue.swap_remove(which);
            self.disk.write(offset, bytes)?;
        }
        Ok(())
    }
}

fn is_direct(chunk: &ModelChunk) -> bool {
    chunk.pending.as_ref().is_some_and(|pending| pending.direct)
}
