//! How a target fills its successor, and how it is filled by its predecessor.

use super::{Scene, Target};
use crate::chain::{ANSWER_TIMEOUT, FillStage, Filler, Input, Moment, Progress, Resync, ResyncStage, Role};
use crate::event::{Ack, Ask, Nanos, OpId, Output, Told};
use crate::slice::Slice;
use crate::store::{BatchId, DedupRow, Entry, PendingInfo, UpdateKind};
use corefs_wire::limits::{COMPARE_CHUNKS_MAX, ROWS_MAX};
use corefs_wire::{ChainId, ChunkId, Error, ErrorCode, Result, TargetId};

/// Stands for the walk among the timers of chunks: no chunk has this name.
const WALK: ChunkId = ChunkId::MAX;
/// The pause after a question that failed, and between two looks at what must end first (nanoseconds).
const PAUSE: Nanos = 50_000_000;

impl Target {
    /// Whom it fills, and how far that has come.
    pub fn progress(&self) -> Option<(TargetId, Progress)> {
        self.resync.as_ref().map(|resync| (resync.to, resync.progress))
    }

    /// Holds everything that the chain has, as of its present version.
    pub fn is_up_to_date(&self, slice: &Slice) -> bool {
        let serves = self.replica.role().is_some_and(Role::serving);
        let filled = || self.took_everything().is_some_and(|batch| slice.has_flushed(batch));
        serves || self.replica.is_spared() || filled()
    }

    /// The batch after whose flush it is filled completely, under the present chain version.
    pub fn took_everything(&self) -> Option<BatchId> {
        let role = self.replica.role().filter(|role| role.syncing())?;
        self.filled.and_then(|(version, batch)| (version == role.version).then_some(batch))
    }

    /// Under a new role the walk begins anew, if there is somebody to fill.
    pub(super) fn begin_resync(&mut self, scene: &mut Scene<'_>) {
        self.end_fillers(scene);
        self.filled = None;
        let role = self.replica.role();
        self.resync = role.filter(|role| role.filling).and_then(|role| {
            let to_compare = scene.slice.store.target_chunks(self.id);
            Some(Resync::new(role.successor?, role.version, to_compare))
        });
        self.advance_resync(scene);
    }

    /// A timer of the walk, or of a chunk.
    pub fn due(&mut self, scene: &mut Scene<'_>, chunk: ChunkId, attempt: u64) {
        if chunk != WALK {
            return self.handle(scene, Input::Due { chunk, attempt });
        }
        let Some(resync) = self.resync.as_mut().filter(|resync| resync.ticket == attempt) else { return };
        match resync.stage {
            // The answer doesn't come.
            ResyncStage::Comparing => resync.stage = ResyncStage::Compare,
            ResyncStage::Handing { .. } => resync.stage = ResyncStage::Rows,
            _ => {}
        }
        self.advance_resync(scene);
    }

    /// A chunk is filled: the walk may go on.
    pub(super) fn fill_ended(&mut self, scene: &mut Scene<'_>, chunk: ChunkId) {
        let Some(resync) = &mut self.resync else { return };
        resync.filled(chunk);
        if matches!(resync.stage, ResyncStage::Fill | ResyncStage::Rows) {
            self.wake_walk(scene, scene.moment.now);
        }
    }

    fn wake_walk(&mut self, scene: &mut Scene<'_>, at: Nanos) {
        let ticket = self.replica.number();
        if let Some(resync) = &mut self.resync {
            resync.ticket = ticket;
            scene.timers.insert((at, self.id, WALK, ticket));
        }
    }

    /// Takes the walk as far as it goes without an answer.
    fn advance_resync(&mut self, scene: &mut Scene<'_>) {
        while let Some(resync) = &mut self.resync {
            if !scene.moment.leased || !scene.slice.alive() {
                return self.wake_walk(scene, scene.moment.now + PAUSE);
            }
            match resync.stage {
                ResyncStage::Compare => return self.ask_to_compare(scene),
                ResyncStage::Fill => {
                    if !resync.end_range() {
                        return self.fill_more(scene);
                    }
                }
                ResyncStage::Rows if self.replica.owes_fills() => {
                    return self.wake_walk(scene, scene.moment.now + PAUSE);
                }
                ResyncStage::Rows => return self.hand_over(scene),
                ResyncStage::Comparing | ResyncStage::Handing { .. } | ResyncStage::Done => return,
            }
        }
    }

    fn ask(&mut self, scene: &mut Scene<'_>, stage: ResyncStage, ask: Ask) {
        self.wake_walk(scene, scene.moment.now + ANSWER_TIMEOUT);
        let (Some(resync), Some(role)) = (&mut self.resync, self.replica.role()) else { return };
        resync.stage = stage;
        let (ticket, to, chain_version) = (resync.ticket, resync.to, resync.chain_version);
        scene.out.push(Output::Ask { target: self.id, ticket, to, chain: role.chain, chain_version, ask });
    }

    fn ask_to_compare(&mut self, scene: &mut Scene<'_>) {
        let Some(resync) = &mut self.resync else { return };
        let (store, most) = (&scene.slice.store, scene.pace.range);
        let entries = store.entries(self.id, resync.from, ChunkId::MAX, most).unwrap_or_default();
        resync.last = match entries.last() {
            Some(entry) if entries.len() == most => entry.chunk,
            _ => ChunkId::MAX,
        };
        resync.chunks = entries.len() as u64;
        let digest = entries.iter().fold(0, |state, entry| entry.fold_into(state));
        let (from, last) = (resync.from, resync.last);
        self.ask(scene, ResyncStage::Comparing, Ask::Compare { from, last, digest });
    }

    /// Begins with further chunks of the range, as far as the pace allows.
    fn fill_more(&mut self, scene: &mut Scene<'_>) {
        while let Some(resync) = &mut self.resync
            && resync.has_work()
        {
            if let Err(at) = scene.pace.admits(scene.moment.now) {
                return self.wake_walk(scene, at);
            }
            if let Some(chunk) = resync.take_work() {
                self.tell(scene, Input::Fill { chunk });
            }
        }
    }

    fn hand_over(&mut self, scene: &mut Scene<'_>) {
        let Some(resync) = &mut self.resync else { return };
        let store = &scene.slice.store;
        let rows = store.rows_after(self.id, resync.row, ROWS_MAX).unwrap_or_default();
        let finish = rows.len() < ROWS_MAX;
        let floor = store.floor(self.id).unwrap_or(0);
        let last = rows.last().map(|row| row.tag).or(resync.row);
        self.ask(scene, ResyncStage::Handing { last, finish }, Ask::Rows { floor, rows, finish });
    }

    /// The successor's answer to a question.
    pub fn told(&mut self, scene: &mut Scene<'_>, ticket: u64, result: Result<Told>) {
        let asked = |filler: &&Filler| filler.attempt == ticket && filler.stage == FillStage::Asking;
        if let Some(chunk) = self.fillers.values().find(asked).map(|filler| filler.chunk) {
            return self.told_of_chunk(scene, chunk, result);
        }
        let Some(resync) = self.resync.as_mut().filter(|resync| resync.ticket == ticket) else { return };
        self.replica.heard_of_successor(scene.moment.now, &result);
        let good = match (resync.stage, result) {
            (ResyncStage::Comparing, Ok(told)) => {
                let (store, from) = (&scene.slice.store, resync.from);
                // Chunks that were made since the question were sent to the successor as well.
                let ours = |last| store.entries(self.id, from, last, usize::MAX).unwrap_or_default();
                resync.compared(told, ours)
            }
            (ResyncStage::Handing { last, finish }, Ok(Told::Taken)) => {
                resync.row = last;
                resync.stage = if finish { ResyncStage::Done } else { ResyncStage::Rows };
                true
            }
            _ => false,
        };
        if good {
            self.advance_resync(scene);
        } else {
            self.wake_walk(scene, scene.moment.now + PAUSE);
        }
    }

    /// Begins to give the successor a chunk.
    pub(super) fn begin_fill(&mut self, scene: &mut Scene<'_>, filler: Filler) {
        let Some(chain) = self.replica.role().map(|role| role.chain) else { return };
        let (chunk, ticket, to, chain_version) =
            (filler.chunk, filler.attempt, filler.to, filler.chain_version);
        scene.timers.insert((scene.moment.now + ANSWER_TIMEOUT, self.id, chunk, ticket));
        let ask = Ask::Compare { from: chunk, last: chunk, digest: u64::MAX };
        scene.out.push(Output::Ask { target: self.id, ticket, to, chain, chain_version, ask });
        if let Some(earlier) = self.fillers.insert(chunk, filler) {
            scene.out.extend(earlier.op().map(|op| Output::End { op }));
        } else {
            let ours = scene.slice.store.entry(self.id, chunk).ok().flatten();
            scene.pace.begin(ours.map_or(0, |ours| ours.mapped));
        }
    }

    fn end_fill(&mut self, scene: &mut Scene<'_>, chunk: ChunkId, result: Result<()>) {
        let Some(filler) = self.fillers.remove(&chunk) else { return };
        scene.pace.end();
        scene.out.extend(filler.op().map(|op| Output::End { op }));
        if let Some(resync) = self.resync.as_mut().filter(|_| result.is_ok() && filler.sent()) {
            resync.progress.sent_chunks += 1;
        }
        self.tell(scene, Input::Filled { chunk, attempt: filler.attempt, result });
    }

    pub(super) fn end_fillers(&mut self, scene: &mut Scene<'_>) {
        for filler in std::mem::take(&mut self.fillers).into_values() {
            scene.pace.end();
            scene.out.extend(filler.op().map(|op| Output::End { op }));
        }
    }

    /// What the successor holds of a chunk.
    fn told_of_chunk(&mut self, scene: &mut Scene<'_>, chunk: ChunkId, result: Result<Told>) {
        let (theirs, permit) = match result {
            Ok(Told::Differs { entries, permit, .. }) => {
                (entries.into_iter().find(|entry| entry.chunk == chunk), permit)
            }
            Ok(_) => return self.end_fill(scene, chunk, Err(ErrorCode::BadFrame.into())),
            Err(error) => return self.end_fill(scene, chunk, Err(error)),
        };
        let ours = scene.slice.store.entry(self.id, chunk).unwrap_or_default();
        let floor = scene.slice.store.floor(self.id).unwrap_or(0);
        let next = self.replica.waits_for_fill(chunk);
        let Some(filler) = self.fillers.get_mut(&chunk) else { return };
        if filler.compare(ours, theirs, permit, floor, next) {
            self.load_part(scene, chunk);
        } else {
            self.end_fill(scene, chunk, Ok(()));
        }
    }

    /// Has the next part read, or ends.
    fn load_part(&mut self, scene: &mut Scene<'_>, chunk: ChunkId) {
        let (target, slice) = (self.id, scene.slice.index);
        let Some(filler) = self.fillers.get_mut(&chunk) else { return };
        if filler.looks()
            && let Some(part) = filler.next_look(scene.pace.part)
        {
            return self.look_at_part(scene, part);
        }
        let Some((pending, offset, len)) = filler.next_part(scene.pace.part) else {
            return self.end_fill(scene, chunk, Ok(()));
        };
        let fill = Some(filler.permit());
        let plan = match len {
            0 => None,
            _ => match scene.slice.store.read(target, chunk, offset, len) {
                Ok(plan) => Some(plan),
                Err(error) => return self.end_fill(scene, chunk, Err(error)),
            },
        };
        if let Some(resync) = &mut self.resync {
            resync.progress.sent_bytes += u64::from(len);
        }
        let Some(ticket) = self.renew(scene, chunk) else {
            if let Some(plan) = plan {
                scene.slice.store.end_read(plan);
            }
            return;
        };
        scene.out.push(Output::Load { slice, target, ticket, pending, fill, plan });
    }

    /// Has a part read that isn't to be sent yet.
    fn look_at_part(&mut self, scene: &mut Scene<'_>, pending: PendingInfo) {
        let (target, slice, chunk) = (self.id, scene.slice.index, pending.chunk);
        let UpdateKind::Patch { offset, len } = pending.kind else { return };
        let plan = match scene.slice.store.read(target, chunk, offset, len) {
            Ok(plan) => plan,
            Err(error) => return self.end_fill(scene, chunk, Err(error)),
        };
        scene.pace.spend(len);
        let Some(ticket) = self.renew(scene, chunk) else { return scene.slice.store.end_read(plan) };
        scene.out.push(Output::Load { slice, target, ticket, pending, fill: None, plan: Some(plan) });
    }

    /// The next step of a fill has a number and a time of its own.
    fn renew(&mut self, scene: &mut Scene<'_>, chunk: ChunkId) -> Option<u64> {
        let attempt = self.replica.renew_fill(chunk)?;
        self.fillers.get_mut(&chunk)?.attempt = attempt;
        scene.timers.insert((scene.moment.now + ANSWER_TIMEOUT, self.id, chunk, attempt));
        Some(attempt)
    }

    /// The payload of a recovered update, or a part of a fill, is in memory.
    pub fn loaded(
        &mut self,
        scene: &mut Scene<'_>,
        chunk: ChunkId,
        ticket: u64,
        op: OpId,
        result: Result<u32>,
    ) {
        let result = result.map_err(|error| self.hopeful(scene, chunk, 0..u32::MAX, ticket == 0, error));
        if ticket == 0 {
            return self.handle(scene, Input::Loaded { chunk, op, result });
        }
        let wanted = |filler: &&mut Filler| filler.attempt == ticket && filler.stage == FillStage::Loading;
        let Some(filler) = self.fillers.get_mut(&chunk).filter(wanted) else {
            return scene.out.push(Output::End { op });
        };
        if filler.looks() {
            scene.out.push(Output::End { op });
            return match result {
                Ok(_) => self.load_part(scene, chunk),
                Err(error) => self.end_fill(scene, chunk, Err(error)),
            };
        }
        filler.stage = FillStage::Sending(op);
        if let Err(error) = result {
            return self.end_fill(scene, chunk, Err(error));
        }
        let (to, version, chain_version) = (filler.to, filler.version(), filler.chain_version);
        let base = filler.permit();
        let Some(attempt) = self.renew(scene, chunk) else { return };
        let target = self.id;
        scene.out.push(Output::Forward { op, target, chunk, attempt, to, version, chain_version, base });
    }

    /// The successor's answer to an update or to a part of a fill.
    pub fn answered(&mut self, scene: &mut Scene<'_>, chunk: ChunkId, attempt: u64, result: Result<Ack>) {
        let sent = |filler: &&mut Filler| filler.attempt == attempt && filler.op().is_some();
        let Some(filler) = self.fillers.get_mut(&chunk).filter(sent) else {
            return self.handle(scene, Input::Answered { chunk, attempt, result });
        };
        match result {
            Ok(_) => {
                scene.out.extend(filler.op().map(|op| Output::End { op }));
                filler.stage = FillStage::Loading;
                self.load_part(scene, chunk);
            }
            Err(error) => self.end_fill(scene, chunk, Err(error)),
        }
    }

    /// Whether the predecessor may ask this target, which it fills.
    pub(crate) fn admit_filling(&self, moment: Moment, chain: ChainId, version: u64) -> Result<()> {
        let role = self.replica.admit(moment)?;
        role.check(chain, version)?;
        if !role.syncing() {
            return Err(Error::new(ErrorCode::NotServing, "the target isn't being filled"));
        }
        if !self.replica.is_settled() {
            return Err(Error::new(ErrorCode::Pending, "something of an earlier chain version is under way"));
        }
        Ok(())
    }

    /// A question of the predecessor.
    pub(crate) fn asked(&mut self, scene: &mut Scene<'_>, ask: &Ask) -> Result<Told> {
        match ask {
            Ask::Compare { from, last, digest } => self.compare(&scene.slice.store, *from, *last, *digest),
            Ask::Rows { .. } if self.replica.keeps_any() => {
                // Every chunk was compared: what is kept is good for nothing.
                self.handle(scene, Input::LetGo);
                Err(Error::new(ErrorCode::Pending, "something of an earlier chain version is being dropped"))
            }
            Ask::Rows { floor, rows, finish } => self.take_rows(scene.slice, *floor, rows, *finish),
        }
    }

    fn compare(
        &mut self,
        store: &crate::store::Store,
        from: ChunkId,
        last: ChunkId,
        digest: u64,
    ) -> Result<Told> {
        let most = COMPARE_CHUNKS_MAX;
        let mut entries: Vec<Entry> = store.entries(self.id, from, last, most + 1)?;
        let complete = entries.len() <= most;
        entries.truncate(most);
        // What isn't told: nobody but the filler of the chunk needs it, of its own.
        entries.iter_mut().for_each(|entry| entry.mapped = 0);
        let committed = entries.first().map_or(0, |entry| entry.digest);
        if from == last && self.replica.keeps(from) {
            // Before it is replaced the filler is to look at what it has.
            match entries.first_mut() {
                Some(entry) => entry.length = entry.length.max(1),
                None => entries.push(Entry { chunk: from, length: 1, ..Entry::default() }),
            }
        }
        if complete && entries.iter().fold(0, |state, entry| entry.fold_into(state)) == digest {
            return Ok(Told::Equal);
        }
        let covered = entries.last().filter(|_| !complete).map_or(last, |entry| entry.chunk);
        let permit = if from == last { self.permits.give(from, committed) } else { 0 };
        Ok(Told::Differs { covered, entries, permit })
    }

    /// The bytes of a part of a fill are written. That is enough for the predecessor to go on: only when this replica says
    /// that it holds everything must it be on the disk, and that it says after a flush of something logged later. What was
    /// there before stays untouched until a flush, whichever comes first.
    pub fn fill_written(&mut self, scene: &mut Scene<'_>, op: OpId, chunk: ChunkId) {
        if !scene.slice.alive() || self.replica.op(chunk) != Some(op) {
            return;
        }
        if let Some(outcome) = scene.slice.store.commit_written(self.id, chunk) {
            let (version, length) = (outcome.version, outcome.length);
            self.handle(scene, Input::Durable { chunk, version, length, committed: true });
        }
    }

    /// Takes over rows; after the last it is complete once they are on the disk.
    fn take_rows(&mut self, slice: &mut Slice, floor: u64, rows: &[DedupRow], finish: bool) -> Result<Told> {
        // A row may be of an update that isn't here yet.
        self.replica.took_over();
        for row in rows {
            slice.store.put_dedup_row(self.id, *row)?;
        }
        // Logged even if it is no news: once that is on the disk, so is everything before it.
        let batch = slice.store.take_floor(self.id, floor)?;
        if finish {
            let version = self.replica.role().map_or(0, |role| role.version);
            self.filled = Some((version, batch));
        }
        slice.hurry();
        Ok(Told::Taken)
    }
}
