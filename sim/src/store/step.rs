//! One random step of a run.

use super::model::{Content, ModelChunk, ModelPending, ModelTarget, updated};
use super::open::fetch;
use super::run::{Canary, Held, InFlight, Run, Stop};
use super::verify;
use corefs_engine::store::{Applied, Begin, Durable, Finish, Staging, Update, UpdateKind};
use corefs_wire::checksum::{block_crcs, crc32c};
use corefs_wire::limits::BLOCK;
use corefs_wire::{ChainId, ChunkId, Error, ErrorCode, InodeId, TargetId, UpdateTag};
use std::collections::BTreeMap;

pub(super) type Step = Result<(), Stop>;

pub(super) fn wrong(what: impl Into<String>) -> Stop {
    Stop::Wrong(what.into())
}

impl Run {
    /// Does one thing that a shard might do now.
    pub(super) fn step(&mut self) -> Step {
        if self.store.wants_checkpoint() && self.prng.chance(1, self.checkpoint_every) {
            let budget = self.prng.pick(&[1, 4096, 20_000, 1 << 20]).to_owned();
            self.store.checkpoint_step(budget);
        }
        if !self.again.is_empty() && self.prng.chance(2, 3) {
            return self.send_again();
        }
        match self.prng.below(100) {
            0..26 => self.update(),
            26..32 => self.fill(),
            32..48 => self.submit_one(),
            48..58 => self.seal(),
            58..69 => self.flush(),
            69..78 => self.finish_pending(),
            78..84 => self.commit_written(),
            84..92 => self.read(),
            92..95 => self.end_read(),
            95..97 => self.targets(),
            97 => self.audit(),
            98 => self.unstick(),
            _ => {
                if self.prng.chance(1, 4 * self.checkpoint_every) {
                    self.store.checkpoint_step(1 << 20);
                }
                Ok(())
            }
        }
    }

    pub(super) fn pick_target(&mut self) -> Option<TargetId> {
        let targets: Vec<_> = self.live.targets.keys().copied().collect();
        if targets.is_empty() { None } else { Some(*self.prng.pick(&targets)) }
    }

    pub(super) fn pick_chunk(&mut self) -> ChunkId {
        let inode = InodeId(1 + self.prng.below(3));
        let generation = if self.prng.chance(1, 12) { 1 } else { 0 };
        ChunkId { inode, index: self.prng.below(6) as u32, generation }
    }

    fn pick_kind(&mut self, length: u32) -> UpdateKind {
        let block = BLOCK as u64;
        match self.prng.below(20) {
            0 | 1 => UpdateKind::Remove,
            2 => UpdateKind::Truncate { len: self.prng.below(12 * block) as u32 },
            3 => UpdateKind::Truncate { len: self.prng.below(u64::from(length) + 1) as u32 },
            4 => {
                let blocks = self.prng.below(10);
                let (len, hole) = ((blocks * block) as u32, self.prng.below(3 * block) as u32);
                UpdateKind::FullReplace { len, total: len + hole }
            }
            5..=9 => {
                let blocks = self.prng.between(1, 8);
                UpdateKind::Write {
                    offset: (self.prng.below(6) * block) as u32,
                    len: (blocks * block) as u32,
                }
            }
            10..=13 => UpdateKind::Write { offset: (self.prng.below(12) * block) as u32, len: BLOCK as u32 },
            14 => UpdateKind::Write { offset: length, len: self.prng.between(1, 9000) as u32 },
            _ => {
                let offset = self.prng.below(12 * block) as u32;
                UpdateKind::Write { offset, len: self.prng.between(1, 3 * block) as u32 }
            }
        }
    }

    /// A new update, or an old one again.
    fn update(&mut self) -> Step {
        let filled = self.filled.filter(|(target, _)| self.live.targets.contains_key(target));
        let (target, chunk) = match filled.filter(|_| self.prng.chance(1, 3)) {
            Some(filled) => filled,
            None => {
                let Some(target) = self.pick_target() else { return self.create_target() };
                (target, self.pick_chunk())
            }
        };
        let model = self.known(target, chunk);
        let kind = self.pick_kind(model.length());
        let version = self.store.next_version(target, chunk).map_err(|error| wrong(error.to_string()))?;
        let ahead = if matches!(kind, UpdateKind::FullReplace { .. }) { self.prng.below(3) } else { 0 };
        let stale = model.epoch > 0 && self.prng.chance(1, 20);
        let raise = u64::from(matches!(kind, UpdateKind::Truncate { .. }));
        let truncate_epoch = if stale { model.epoch - 1 } else { model.epoch + raise };
        let tag = self.next_tag(target);
        let version = version + ahead;
        let update = Update { target, chunk, kind, version, chain_version: 1, truncate_epoch, tag };
        let begin = self.store.begin_update(update);
        let row =
            self.live.targets.get(&target).and_then(|entry| entry.rows.get(&super::model::channel(&tag)));
        let row = row.copied().filter(|_| tag.client.0 != 0);
        match begin {
            Ok(Begin::Fresh(staging)) => {
                // Forgotten rows may make old tags fresh; the rows themselves are compared elsewhere.
                if stale && model.version > 0 && self.remembers(target, chunk) {
                    self.store.cancel(staging);
                    return Err(wrong("a write from before a truncation was admitted"));
                }
                let mut payload = vec![0; staging.payload.len()];
                self.prng.fill(&mut payload);
                let finish = if self.prng.chance(1, 2) { Finish::Commit } else { Finish::Pending };
                self.stage(update, staging, &model.content, payload, finish)
            }
            Ok(Begin::Done(outcome)) => {
                self.counts.duplicates += 1;
                match row {
                    Some(row) if row.sequence == tag.sequence && row.outcome == outcome => Ok(()),
                    _ => Err(wrong(format!("{tag:?} was remembered as {outcome:?}, not {row:?}"))),
                }
            }
            Ok(Begin::InProgress { version }) => {
                self.counts.duplicates += 1;
                let pending =
                    model.pending.filter(|pending| pending.version == version && pending.tag == tag);
                pending.map(|_| ()).ok_or_else(|| wrong(format!("{tag:?} isn't in progress")))
            }
            Err(error) => {
                let of_other = row.is_some_and(|row| row.sequence == tag.sequence && row.chunk != chunk);
                if of_other && error.code == ErrorCode::InvalidArgument {
                    return Ok(());
                }
                self.refused(&error, update)
            }
        }
    }

    /// The model of a chunk. With the tombstone the epoch is forgotten, but never the version.
    pub(super) fn known(&mut self, target: TargetId, chunk: ChunkId) -> ModelChunk {
        let remembers = self.remembers(target, chunk);
        let Some(known) = self.live.chunk_mut(target, chunk) else { return ModelChunk::default() };
        known.epoch = if remembers { known.epoch } else { 0 };
        known.clone()
    }

    fn remembers(&self, target: TargetId, chunk: ChunkId) -> bool {
        self.store.status(target, chunk).is_ok_and(|status| status.version > 0)
    }

    pub(super) fn refused(&mut self, error: &Error, update: Update) -> Step {
        let pending =
            self.store.status(update.target, update.chunk).is_ok_and(|status| status.pending.is_some());
        match error.code {
            ErrorCode::Pending if pending => Ok(()),
            ErrorCode::StaleLayout | ErrorCode::Duplicate => Ok(()),
            ErrorCode::NoSpace => {
                self.counts.no_space += 1;
                Ok(())
            }
            ErrorCode::Overloaded => {
                self.counts.overloaded += 1;
                self.counts.journal_full += u64::from(error.message.starts_with("the journal"));
                Ok(())
            }
            _ => Err(wrong(format!("{update:?} was refused: {error}"))),
        }
    }

    /// The next tag of some channel; sometimes its last one again, an older one, or nobody's.
    fn next_tag(&mut self, target: TargetId) -> UpdateTag {
        if self.prng.chance(1, 8) {
            return UpdateTag::default();
        }
        let which = self.prng.below(self.channels.len() as u64) as usize;
        // Sequences are of the channel, whatever the target: each target sees some of them.
        let _ = target;
        let tag = &mut self.channels[which];
        match self.prng.below(12) {
            0 => {}
            1 if tag.sequence > 1 => return UpdateTag { sequence: tag.sequence - 1, ..*tag },
            _ => tag.sequence += 1,
        }
        *tag
    }

    /// A client that had no answer before the power cut tries again: the same bytes, often to the same blocks.
    fn send_again(&mut self) -> Step {
        let Some((update, payload, finish)) = self.again.pop_front() else { return Ok(()) };
        let (target, chunk) = (update.target, update.chunk);
        let Ok(version) = self.store.next_version(target, chunk) else { return Ok(()) };
        let old = self.live.chunk(target, chunk).and_then(|chunk| chunk.content.clone());
        let epoch = self.live.chunk(target, chunk).map_or(0, |chunk| chunk.epoch);
        let truncate_epoch = update.truncate_epoch.max(epoch);
        let update = Update { version, truncate_epoch, ..update };
        match self.store.begin_update(update) {
            Ok(Begin::Fresh(staging)) => self.stage(update, staging, &old, payload, finish),
            Ok(Begin::Done(_) | Begin::InProgress { .. }) => {
                self.counts.duplicates += 1;
                Ok(())
            }
            Err(error) if error.code == ErrorCode::InvalidArgument => Ok(()),
            Err(error) => self.refused(&error, update),
        }
    }

    pub(super) fn stage(
        &mut self,
        update: Update,
        staging: Staging,
        old: &Content,
        payload: Vec<u8>,
        finish: Finish,
    ) -> Step {
        if self.prng.chance(1, 30) {
            self.store.cancel(staging);
            return Ok(());
        }
        let mut blocks = vec![0; staging.blocks as usize * BLOCK];
        blocks[staging.payload.start as usize..staging.payload.end as usize].copy_from_slice(&payload);
        for merge in staging.merges.iter() {
            let block = self.disk.read(merge.disk_offset, BLOCK);
            if crc32c(block) != merge.crc {
                self.store.cancel(staging);
                return Err(wrong("a block to merge doesn't match its CRC"));
            }
            let at = merge.block as usize * BLOCK;
            merge.apply(block, &mut blocks[at..at + BLOCK]);
        }
        let mut crcs = Vec::new();
        block_crcs(&blocks, &mut crcs);
        let before = self.store.space();
        let plan = match self.store.stage(staging, &crcs, finish) {
            Ok(plan) => plan,
            Err(error) => {
                let unchanged = self.store.space() == before || before.free < self.store.space().free;
                return if unchanged { self.refused(&error, update) } else { Err(wrong("space leaks")) };
            }
        };
        if self.prng.chance(1, 30) {
            self.store.abandon(plan);
            return Ok(());
        }
        let applied = self.store.apply(plan);
        for write in applied.writes.iter() {
            let at = write.first as usize * BLOCK;
            let bytes = blocks[at..at + write.blocks as usize * BLOCK].to_vec();
            self.queue.push((applied.batch, write.disk_offset, bytes));
        }
        let content = updated(old, update.kind, &payload);
        let direct = finish == Finish::Commit;
        self.note_blocks(&update, &applied, direct);
        let (version, epoch, tag) = (update.version, update.truncate_epoch, update.tag);
        let pending = ModelPending { version, epoch, tag, content, direct, flushed: false };
        self.live.apply(update.target, update.chunk, pending);
        self.open_updates.push((update.target, update.chunk, version));
        // A fill may put a version below the one that was promised.
        if let Some(newest) = self.acknowledged.get_mut(&(update.target, update.chunk)) {
            *newest = (*newest).min(version);
        }
        // Whoever fills begins anew after a power cut.
        if !matches!(update.kind, UpdateKind::Patch { .. }) {
            self.unflushed.push((update, payload, finish));
        }
        self.counts.updates += 1;
        Ok(())
    }

    fn note_blocks(&mut self, update: &Update, applied: &Applied, direct: bool) {
        let writes = applied.writes.iter();
        self.data
            .insert((update.target, update.chunk), writes.clone().map(|write| write.disk_offset).collect());
        let blocks: Vec<_> = writes
            .flat_map(|write| {
                (0..u64::from(write.blocks)).map(|block| write.disk_offset + block * BLOCK as u64)
            })
            .collect();
        for way in self.reuse.applied(update, direct, &blocks) {
            self.counts.reused[way as usize] += 1;
        }
    }

    /// Gives one queued write to the disk, in no particular order.
    fn submit_one(&mut self) -> Step {
        if self.queue.is_empty() {
            return Ok(());
        }
        let which = self.prng.below(self.queue.len() as u64) as usize;
        let (_, offset, bytes) = self.queue.swap_remove(which);
        Ok(self.disk.write(offset, bytes)?)
    }

    fn seal(&mut self) -> Step {
        if self.in_flight.is_some() {
            return Ok(());
        }
        let Some(batch) = self.store.seal_batch() else { return Ok(()) };
        self.counts.batches += 1;
        self.reuse.sealed(batch.id);
        for write in batch.writes {
            self.queue.push((batch.id, write.offset, write.bytes));
        }
        self.in_flight = Some(InFlight {
            id: batch.id,
            sealed: self.live.clone(),
            updates: std::mem::take(&mut self.open_updates),
            durable: None,
            unflushed: self.unflushed.len(),
            flushing: false,
            told: false,
        });
        Ok(())
    }

    /// Writes what the batch in flight still needs; then starts its flush; then, another time, ends it.
    fn flush(&mut self) -> Step {
        let Some(batch) = &self.in_flight else { return Ok(()) };
        let (id, flushing, told) = (batch.id, batch.flushing, batch.told);
        if flushing {
            self.disk.flush_end()?;
            return self.flushed();
        }
        while let Some(which) = self.queue.iter().position(|(batch, ..)| *batch <= id) {
            let (_, offset, bytes) = self.queue.swap_remove(which);
            self.disk.write(offset, bytes)?;
        }
        match self.canary {
            Some(Canary::FlushRemoved) => return self.flushed(),
            Some(Canary::AcknowledgedBeforeFlush) => self.acknowledge(),
            Some(Canary::BlockReusedEarly) if !told => {
                if let Some(batch) = &mut self.in_flight {
                    batch.told = true;
                }
                return self.tell_store();
            }
            // Give the early reuse some time before the flush makes it right.
            Some(Canary::BlockReusedEarly) if self.prng.chance(2, 3) => return Ok(()),
            _ => {}
        }
        self.disk.flush_begin()?;
        if let Some(batch) = &mut self.in_flight {
            batch.flushing = true;
        }
        Ok(())
    }

    fn flushed(&mut self) -> Step {
        if !self.in_flight.as_ref().is_some_and(|batch| batch.told) {
            self.tell_store()?;
        }
        self.acknowledge();
        if let Some(batch) = self.in_flight.take() {
            self.unflushed.drain(..batch.unflushed);
            self.flushed = batch.sealed;
        }
        Ok(())
    }

    /// Reports the flush to the store; what it says became durable must be what the model expects.
    fn tell_store(&mut self) -> Step {
        let Some(batch) = &self.in_flight else { return Ok(()) };
        let expected: Vec<_> = batch.updates.clone();
        let durable = self.store.batch_flushed(batch.id);
        self.reuse.flushed(batch.id);
        let list =
            durable.iter().map(|update| (update.target, update.chunk, update.outcome.version)).collect();
        if let Some(batch) = &mut self.in_flight {
            batch.durable = Some(list);
        }
        for Durable { target, chunk, outcome, committed } in &durable {
            let known = expected.contains(&(*target, *chunk, outcome.version));
            let found = self.live.chunk_mut(*target, *chunk).filter(|_| known);
            let Some(found) = found else { return Err(wrong(format!("{chunk} of {target} became durable"))) };
            match &mut found.pending {
                Some(pending) if pending.direct == *committed && pending.version == outcome.version => {
                    pending.flushed = true;
                }
                other => return Err(wrong(format!("{chunk} became durable, but {other:?} is pending"))),
            }
            if *committed {
                found.commit();
                self.counts.committed += 1;
            }
        }
        Ok(())
    }

    fn acknowledge(&mut self) {
        let Some(batch) = &self.in_flight else { return };
        // What the store says is durable; before that (a canary), what the batch holds.
        let durable = batch.durable.as_ref().unwrap_or(&batch.updates);
        for (target, chunk, version) in durable {
            let there = self.live.chunk(*target, *chunk).is_some_and(|chunk| {
                chunk.version >= *version
                    || chunk.pending.as_ref().is_some_and(|pending| pending.version >= *version)
            });
            if there {
                self.counts.acknowledged += 1;
                let newest = self.acknowledged.entry((*target, *chunk)).or_default();
                *newest = (*newest).max(*version);
            }
        }
    }

    /// Commits or drops a pending update.
    fn finish_pending(&mut self) -> Step {
        let Some(target) = self.pick_target() else { return Ok(()) };
        let Some(entry) = self.live.targets.get(&target) else { return Ok(()) };
        let pendings: Vec<_> = entry
            .chunks
            .iter()
            .filter_map(|(id, chunk)| Some((*id, chunk.pending.as_ref()?)))
            .filter(|(_, pending)| !pending.direct)
            .map(|(id, pending)| (id, pending.version, pending.flushed))
            .collect();
        if pendings.is_empty() {
            return Ok(());
        }
        let (chunk, version, flushed) = *self.prng.pick(&pendings);
        if self.prng.chance(1, 5) {
            self.store.drop_pending(target, chunk, version).map_err(|error| wrong(error.to_string()))?;
            self.live.drop_pending(target, chunk);
            self.reuse.dropped(target, chunk);
            let committed = self.live.chunk(target, chunk).map_or(0, |chunk| chunk.version);
            if let Some(newest) = self.acknowledged.get_mut(&(target, chunk)) {
                *newest = (*newest).min(committed);
            }
            self.counts.dropped += 1;
            return Ok(());
        }
        match self.store.commit(target, chunk, version, 1) {
            Ok(_) if flushed => {
                if let Some(chunk) = self.live.chunk_mut(target, chunk) {
                    chunk.commit();
                }
                self.counts.committed += 1;
                Ok(())
            }
            Err(error) if !flushed && error.code == ErrorCode::InvalidArgument => Ok(()),
            other => Err(wrong(format!("commit of version {version} (flushed: {flushed}): {other:?}"))),
        }
    }

    /// Reads a chunk whole, or a part of it that is then held for a while.
    fn read(&mut self) -> Step {
        let Some(target) = self.pick_target() else { return Ok(()) };
        let chunk = self.pick_chunk();
        self.counts.reads += 1;
        let model = self.live.chunk(target, chunk).cloned().unwrap_or_default();
        verify::one(&mut self.store, &self.disk, target, chunk, &committed_only(&model))
            .map_err(|why| format!("read of {chunk} of {target}: {why}"))?;
        let Some(content) = &model.content else { return Ok(()) };
        let offset = self.prng.below(content.len() as u64 + 1) as u32;
        let len = self.prng.below(3 * BLOCK as u64) as u32;
        let plan = self.store.read(target, chunk, offset, len).map_err(|error| wrong(error.to_string()))?;
        let end = (offset as usize + len as usize).min(content.len());
        let skipped = (offset - plan.offset) as usize;
        let bytes = fetch(&self.disk, &plan);
        let asked = plan.len as usize;
        let blocks = plan.pieces.iter().filter_map(|piece| {
            let (offset, len) = (piece.disk_offset?, piece.blocks as usize * BLOCK);
            Some((offset, self.disk.read(offset, len).to_vec()))
        });
        self.held.push(Held { blocks: blocks.collect(), plan: Some(plan) });
        if self.canary == Some(Canary::PinReleasedEarly)
            && let Some(plan) = self.held.last_mut().and_then(|held| held.plan.take())
        {
            self.store.end_read(plan);
        }
        let expected = &content[offset as usize..end];
        let right = bytes?.get(skipped..skipped + asked).unwrap_or_default() == expected;
        if right { Ok(()) } else { Err(wrong(format!("a part of {chunk} of {target} differs"))) }
    }

    /// Ends a held read: its blocks must still be what they were.
    fn end_read(&mut self) -> Step {
        if self.held.is_empty() {
            return Ok(());
        }
        let which = self.prng.below(self.held.len() as u64) as usize;
        let mut held = self.held.swap_remove(which);
        if let Some(plan) = held.plan.take() {
            self.store.end_read(plan);
        }
        let same = |(offset, bytes): &(u64, Vec<u8>)| self.disk.read(*offset, bytes.len()) == bytes;
        if held.blocks.iter().all(same) {
            return Ok(());
        }
        Err(wrong("a pinned block was overwritten"))
    }

    fn targets(&mut self) -> Step {
        if self.live.targets.len() < 2 || self.prng.chance(2, 3) {
            return self.create_target();
        }
        let Some(target) = self.pick_target() else { return Ok(()) };
        if self.prng.chance(3, 4) {
            return Ok(());
        }
        match self.store.remove_target(target) {
            Ok(_) => {
                self.live.targets.remove(&target);
                self.reuse.target_removed(target);
                Ok(())
            }
            Err(error) if error.code == ErrorCode::Overloaded => Ok(()),
            Err(error) => Err(wrong(error.to_string())),
        }
    }

    fn create_target(&mut self) -> Step {
        if self.live.targets.len() >= 4 {
            return Ok(());
        }
        let target = TargetId(self.next_target);
        let chain = ChainId(self.prng.below(100));
        match self.store.create_target(target, chain) {
            Ok(_) => {
                self.next_target += 1;
                let (chunks, rows) = (BTreeMap::new(), BTreeMap::new());
                self.live.targets.insert(target, ModelTarget { chain, chunks, rows });
                Ok(())
            }
            Err(error) if matches!(error.code, ErrorCode::Overloaded | ErrorCode::NoSpace) => Ok(()),
            Err(error) => Err(wrong(error.to_string())),
        }
    }

    fn audit(&mut self) -> Step {
        match self.store.audit().first() {
            Some(finding) => Err(wrong(finding.to_string())),
            None => Ok(()),
        }
    }

    /// Flushes everything, and seals the journal.
    pub(super) fn rest(&mut self) -> Step {
        while !self.held.is_empty() {
            self.end_read()?;
        }
        for _ in 0..40 {
            while self.store.wants_checkpoint() && self.store.checkpoint_step(1 << 20) {}
            let resting = !self.store.wants_batch() && !self.store.wants_checkpoint();
            if self.in_flight.is_none() && resting && !self.store.wants_seal() {
                return Ok(());
            }
            if self.in_flight.is_none() {
                self.seal()?;
            }
            while self.in_flight.is_some() {
                self.flush()?;
            }
        }
        Err(wrong("it never comes to rest"))
    }

    /// Finishes everything that is under way: after that nothing may be overloaded, whatever happened before.
    fn unstick(&mut self) -> Step {
        if !self.prng.chance(1, 4) {
            return Ok(());
        }
        while self.store.checkpoint_step(1 << 20) {}
        self.rest()?;
        self.audit()?;
        let stats = self.store.stats();
        let waiting = u64::from(stats.journal_used) + 2 * stats.pendings;
        let Some(target) = self.pick_target() else { return Ok(()) };
        let chunk = ChunkId::new(InodeId(99), 0);
        let version = self.store.next_version(target, chunk).map_err(|error| wrong(error.to_string()))?;
        let (kind, tag) = (UpdateKind::Truncate { len: 1 }, UpdateTag::default());
        let update = Update { target, chunk, kind, version, chain_version: 1, truncate_epoch: 0, tag };
        match self.store.begin_update(update) {
            Ok(Begin::Fresh(staging)) => match self.store.stage(staging, &[], Finish::Pending) {
                Ok(plan) => self.store.abandon(plan),
                Err(error) if error.code == ErrorCode::NoSpace => {}
                Err(_) if waiting + 4 > u64::from(stats.journal_blocks) => {}
                Err(error) => {
                    return Err(wrong(format!("at rest with {stats:?}: {error}")));
                }
            },
            other => return Err(wrong(format!("a new chunk is refused: {other:?}"))),
        }
        Ok(())
    }
}

/// The model of a chunk for a read during work: pending bytes aren't written yet.
fn committed_only(chunk: &ModelChunk) -> ModelChunk {
    let mut chunk = chunk.clone();
    if let Some(pending) = &mut chunk.pending {
        pending.flushed = false;
    }
    chunk
}
