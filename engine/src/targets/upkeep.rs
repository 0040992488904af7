//! Looking after what is stored: the steps of scrub and repair, between their machines and the store.

use super::Targets;
use crate::chain::ANSWER_TIMEOUT;
use crate::event::{DiskIndex, Nanos, Output, Outputs};
use crate::repair::{Hope, Phase, Place, STEP, mask};
use crate::scrub::{Pass, Spot};
use crate::store::{DataWrite, ReadPlan};
use corefs_wire::limits::BLOCK;
use corefs_wire::{ChainId, ErrorCode, Result, SliceIndex, TargetId};
use std::ops::Bound::{Excluded, Unbounded};
use std::ops::Range;

/// Spots without a byte on the disk that are passed in one turn: holes cost nothing, but not nothing at all.
const EMPTY_MAX: usize = 256;
/// A pause when there is no memory to look at a chunk (nanoseconds).
const HUNGRY: Nanos = 20_000_000;
/// A pause while there is no lease (nanoseconds).
const UNLEASED: Nanos = 200_000_000;
/// The walk's least pause between two looks at it (nanoseconds).
const WAIT: Nanos = 1_000_000;

/// What has been verified and repaired by a shard.
#[derive(Clone, Debug, Default)]
pub struct Upkeep {
    /// The pass under way, and the last one that ended.
    pub pass: Option<Pass>,
    pub last: Pass,
    /// Passes that were asked for, of those the newest that has ended, and all that have ended.
    pub asked: u64,
    pub answered: u64,
    pub passes: u64,
    /// Blocks since the start; those that nobody has; and chunks that are being repaired or wait for it.
    pub damaged: u64,
    pub repaired: u64,
    pub unrepaired: u64,
    pub waiting: u64,
    /// Chunks with blocks that nobody has: their chain, and how many.
    pub lost: Vec<(ChainId, Place, u32)>,
}

/// Lost chunks in an [`Upkeep`].
const LOST_TOLD: usize = 64;

impl Targets {
    /// Bytes a second at which everything is verified in the background; 0: not at all.
    pub fn set_scrub_rate(&mut self, rate: u64) {
        self.scrub.set_rate(rate);
        self.upkeep_at = 0;
    }

    /// Begins to verify everything now, at that many bytes a second (0: as fast as it goes); the number of the pass.
    pub fn scrub_now(&mut self, rate: u64) -> u64 {
        self.upkeep_at = 0;
        self.scrub.ask(rate)
    }

    /// How scrub and repair are.
    pub fn upkeep(&self) -> Upkeep {
        let chain = |target| self.peers_of(target).map_or(ChainId(0), |(chain, ..)| chain);
        let lost = self.repairs.lost.iter().take(LOST_TOLD);
        Upkeep {
            pass: self.scrub.pass().copied(),
            last: self.scrub.last,
            asked: self.scrub.asked,
            answered: self.scrub.answered,
            passes: self.scrub.passes,
            damaged: self.repairs.damaged,
            repaired: self.repairs.repaired,
            unrepaired: self.repairs.unrepaired(),
            waiting: self.repairs.waiting() as u64,
            lost: lost.map(|(place, lost)| (chain(place.target), *place, lost.blocks)).collect(),
        }
    }

    /// Blocks of a slice that nobody has.
    pub(super) fn unrepaired(&self, slice: SliceIndex) -> u64 {
        let here = self.repairs.lost.iter().filter(|(place, _)| self.slice_of(place.target) == Some(slice));
        here.map(|(_, lost)| u64::from(lost.blocks)).sum()
    }

    /// Somebody found these blocks damaged.
    pub(super) fn suspect(&mut self, now: Nanos, place: Place, blocks: Range<u32>) -> Hope {
        self.upkeep_at = 0;
        let alone = self.peers_of(place.target).is_none_or(|(.., peers)| peers.is_empty());
        self.repairs.suspect(now, place, blocks, alone)
    }

    /// Chain, its version, and who else is in it.
    fn peers_of(&self, target: TargetId) -> Option<(ChainId, u64, &[TargetId])> {
        let role = self.targets.get(&target)?.replica().role()?;
        Some((role.chain, role.version, &role.peers))
    }

    fn number(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets
    }

    /// What a step of a chunk looks at. `None`: there is nothing (any more).
    fn plan(&mut self, place: Place, at: u32) -> Option<(SliceIndex, DiskIndex, ReadPlan)> {
        let slice = &mut self.slices[self.targets.get(&place.target)?.slice()];
        if !slice.alive() {
            return None;
        }
        let offset = at.checked_mul(BLOCK as u32)?;
        let (store, len) = (&mut slice.store, STEP * BLOCK as u32);
        let plan = match place.pending {
            false => store.read(place.target, place.chunk, offset, len),
            true => store.read_pending(place.target, place.chunk, offset, len),
        };
        let plan = plan.ok()?;
        if plan.len == 0 {
            store.end_read(plan);
            return None;
        }
        Some((slice.index, slice.disk, plan))
    }

    /// A step was read and compared: which blocks don't match their CRC, or can't be read. `Overloaded`: there was no memory.
    pub(super) fn checked(
        &mut self,
        now: Nanos,
        ticket: u64,
        slice: SliceIndex,
        plan: ReadPlan,
        bad: Result<u128>,
        out: &mut Outputs,
    ) {
        self.read_ended(slice, plan);
        self.upkeep_at = 0;
        if let Some(spot) = self.scrub.landed(now, ticket, bad.is_ok()) {
            if let Ok(bad) = bad
                && bad != 0
            {
                let (first, last) = (bad.trailing_zeros(), 127 - bad.leading_zeros());
                let place = Place { target: spot.target, chunk: spot.chunk, pending: false };
                self.suspect(now, place, spot.block + first..spot.block + last + 1);
            }
            return;
        }
        let Some(index) = self.repairs.find(ticket) else { return };
        let job = &mut self.repairs.jobs[index];
        let Ok(bad) = bad else {
            (job.phase, job.due) = (Phase::Check, now + HUNGRY);
            return;
        };
        let role = self.targets.get(&job.place.target).and_then(|target| target.replica().role());
        let tally = job.checked(now, bad, role.map_or(&[], |role| &role.peers));
        self.repairs.count(tally);
        self.drive(now, index, out);
    }

    /// A replica has answered: the CRC of each block that it sent.
    pub(super) fn fetched(&mut self, now: Nanos, ticket: u64, result: Result<&[u32]>, out: &mut Outputs) {
        self.upkeep_at = 0;
        let fetching =
            |phase| if let Phase::Fetching { first, blocks } = phase { Some((first, blocks)) } else { None };
        let found = self.repairs.find(ticket);
        let asked = found.and_then(|index| Some((index, fetching(self.repairs.jobs[index].phase)?)));
        let Some((index, (first, blocks))) = asked else { return out.push(Output::Forget { ticket }) };
        let (place, at) = (self.repairs.jobs[index].place, self.repairs.jobs[index].at);
        match result {
            Ok(crcs) => {
                let Some((slice, _, plan)) = self.plan(place, at) else {
                    out.push(Output::Forget { ticket });
                    return self.end(now, index, true);
                };
                let (good, writes) = fitting(&plan, first, crcs);
                self.repairs.jobs[index].fetched(first..first + blocks, good);
                if good != 0 {
                    self.repairs.jobs[index].due = Nanos::MAX;
                    return out.push(Output::Mend { ticket, slice, plan, writes });
                }
                self.read_ended(slice, plan);
            }
            Err(error) => {
                let damaged = matches!(error.code, ErrorCode::Corrupt | ErrorCode::DiskError);
                self.repairs.jobs[index].refused(first..first + blocks, damaged);
            }
        }
        out.push(Output::Forget { ticket });
        self.drive(now, index, out);
    }

    /// Good bytes were written over bad ones, or the slice has died of it.
    pub(super) fn mended(
        &mut self,
        now: Nanos,
        ticket: u64,
        slice: SliceIndex,
        plan: ReadPlan,
        result: Result<()>,
        out: &mut Outputs,
    ) {
        self.read_ended(slice, plan);
        self.upkeep_at = 0;
        let Some(index) = self.repairs.find(ticket) else { return };
        let Phase::Mending { blocks } = self.repairs.jobs[index].phase else { return };
        if result.is_err() {
            return self.end(now, index, false);
        }
        self.repairs.jobs[index].mended(now, blocks);
        self.drive(now, index, out);
    }

    /// Takes a job as far as it goes without an answer.
    fn drive(&mut self, now: Nanos, index: usize, out: &mut Outputs) {
        self.upkeep_at = 0;
        let job = &self.repairs.jobs[index];
        let (place, at, phase) = (job.place, job.at, job.phase);
        if self.repairs.is_stopped() || phase == Phase::Over {
            return self.end(now, index, false);
        }
        match phase {
            Phase::Check if job.due <= now => match self.plan(place, at) {
                None => self.end(now, index, at == 0),
                Some((slice, _, plan)) => {
                    let ticket = self.number();
                    let job = &mut self.repairs.jobs[index];
                    (job.phase, job.due, job.ticket) = (Phase::Checking, Nanos::MAX, ticket);
                    out.push(Output::Check { ticket, slice, plan, urgent: true });
                }
            },
            Phase::Fetch => self.fetch(now, index, out),
            Phase::Fetching { first, blocks } if job.due <= now => {
                // The answer doesn't come.
                self.repairs.jobs[index].refused(first..first + blocks, false);
                self.fetch(now, index, out);
            }
            _ => {}
        }
    }

    /// A job is over. `gone`: there is nothing left to be damaged.
    fn end(&mut self, now: Nanos, index: usize, gone: bool) {
        let version = self.version(self.repairs.jobs[index].place);
        self.repairs.end(now, index, gone, version);
    }

    /// The committed version of a chunk; 0 if there is none.
    fn version(&self, place: Place) -> u64 {
        let slice = self.targets.get(&place.target).map(|target| &self.slices[target.slice()]);
        slice
            .and_then(|slice| slice.store.status(place.target, place.chunk).ok())
            .map_or(0, |status| status.version)
    }

    /// What was lost and has another version by now is looked at again: it may have been written anew, or removed.
    fn look_for_changes(&mut self, now: Nanos) {
        let mut lost = std::mem::take(&mut self.repairs.lost);
        for (place, lost) in &mut lost {
            let version = self.version(*place);
            if std::mem::replace(&mut lost.version, version) != version {
                self.repairs.look_at(*place, 0..u32::MAX);
            }
        }
        self.repairs.lost = lost;
        self.repairs.looked(now);
    }

    /// Asks for the next blocks, at the pace of fills: it is one, of ourselves.
    fn fetch(&mut self, now: Nanos, index: usize, out: &mut Outputs) {
        let job = &mut self.repairs.jobs[index];
        if let Err(at) = self.pace.admits(now) {
            job.due = at;
            return;
        }
        let target = self.targets.get(&job.place.target);
        let disk = target.map_or(DiskIndex(0), |target| self.slices[target.slice()].disk);
        let role = target.and_then(|target| target.replica().role());
        let Some((to, first, blocks)) = job.next_fetch(now, disk) else { return };
        let (chain, chain_version) = role.map_or((ChainId(0), 0), |role| (role.chain, role.version));
        self.tickets += 1;
        (job.ticket, job.due) = (self.tickets, now + ANSWER_TIMEOUT);
        self.pace.spend(blocks * BLOCK as u32);
        let place = Place { pending: job.wants_pending(), ..job.place };
        let (ticket, first) = (job.ticket, job.at + first);
        out.push(Output::Fetch { ticket, to, chain, chain_version, place, first, blocks });
    }

    /// A flush of the disk is done.
    pub(super) fn repairs_flushed(&mut self, now: Nanos, disk: DiskIndex) {
        self.repairs.flushed(now, disk);
        self.upkeep_at = 0;
    }

    /// Once a turn, when its time has come: what waits goes on, as far as it may.
    #[cold]
    pub(super) fn keep_up(&mut self, now: Nanos, out: &mut Outputs) {
        if now >= self.lease_until && !self.draining {
            // Who else is in the chain isn't known (any more).
            self.upkeep_at = now + UNLEASED;
            return;
        }
        if self.repairs.wants_look(now) {
            self.look_for_changes(now);
        }
        self.repairs.begin(now);
        while let Some(index) = self.repairs.due(now) {
            self.drive(now, index, out);
            self.repairs.begin(now);
        }
        if !self.draining {
            self.scrub_on(now, out);
        }
        // A walk that was interrupted goes on soon, but lets others have their turns.
        let scrub = self.scrub.next_deadline(now).map(|at| at.max(now + WAIT));
        let deadlines = [self.repairs.next_deadline(), scrub];
        self.upkeep_at = deadlines.into_iter().flatten().min().unwrap_or(Nanos::MAX);
    }

    fn scrub_on(&mut self, now: Nanos, out: &mut Outputs) {
        let used =
            self.targets.iter().filter_map(|(id, target)| self.slices[target.slice()].store.target_used(*id));
        if self.scrub.begin(now, used.sum(), self.repairs.damaged, self.repairs.repaired) {
            self.repairs.retry_lost();
            self.repairs.begin(now);
        }
        let mut empty = 0;
        while self.scrub.admits(now) && self.repairs.has_room() && empty < EMPTY_MAX {
            let spot = match self.scrub.again() {
                Some(spot) => Some(spot),
                None => {
                    let next = self.next_spot(self.scrub.at());
                    self.scrub.walk_to(next);
                    next
                }
            };
            let Some(spot) = spot else { break };
            let place = Place { target: spot.target, chunk: spot.chunk, pending: false };
            let Some((slice, _, plan)) = self.plan(place, spot.block) else { continue };
            let stored = plan.pieces.iter().filter(|piece| piece.disk_offset.is_some());
            let bytes = stored.map(|piece| u64::from(piece.blocks)).sum::<u64>() * BLOCK as u64;
            if bytes == 0 {
                empty += 1;
                self.read_ended(slice, plan);
                continue;
            }
            let ticket = self.number();
            self.scrub.take(now, ticket, spot, bytes);
            out.push(Output::Check { ticket, slice, plan, urgent: false });
        }
        self.scrub.end(self.repairs.waiting());
    }

    /// The step after one.
    fn next_spot(&self, at: Option<Spot>) -> Option<Spot> {
        let info = |target: TargetId, after, most| {
            let slice = &self.slices[self.targets.get(&target)?.slice()];
            slice.store.chunks(target, after, most).ok()?.first().copied().filter(|_| slice.alive())
        };
        let mut first = Unbounded;
        if let Some(Spot { target, chunk, block }) = at {
            let slice = self.targets.get(&target).map(|found| &self.slices[found.slice()]);
            let length = slice
                .and_then(|slice| slice.store.status(target, chunk).ok())
                .map_or(0, |status| status.length);
            let next = block.saturating_add(STEP);
            if u64::from(next) * (BLOCK as u64) < length.into() {
                return Some(Spot { target, chunk, block: next });
            }
            if let Some(found) = info(target, Some(chunk), 1) {
                return Some(Spot { target, chunk: found.chunk, block: 0 });
            }
            first = Excluded(target);
        }
        self.targets.range((first, Unbounded)).find_map(|(target, _)| {
            let found = info(*target, None, 1)?;
            Some(Spot { target: *target, chunk: found.chunk, block: 0 })
        })
    }
}

/// Which of the blocks from `first` on of a plan have these CRCs, and where they are to be written.
fn fitting(plan: &ReadPlan, first: u32, crcs: &[u32]) -> (u128, Vec<DataWrite>) {
    let (mut good, mut writes) = (0, Vec::<DataWrite>::new());
    for (nth, crc) in (0..STEP).zip(crcs) {
        let block = first + nth;
        if block >= STEP || plan.crcs.get(block as usize) != Some(crc) {
            continue;
        }
        let at = plan.pieces.iter().find(|piece| (piece.first..piece.first + piece.blocks).contains(&block));
        // A hole can't be damaged.
        let Some(start) = at.and_then(|piece| Some((piece.disk_offset?, block - piece.first))) else {
            continue;
        };
        let disk_offset = start.0 + u64::from(start.1) * BLOCK as u64;
        good |= mask(block..block + 1);
        match writes.last_mut() {
            Some(last)
                if last.first + last.blocks == nth
                    && last.disk_offset + u64::from(last.blocks) * BLOCK as u64 == disk_offset =>
            {
                last.blocks += 1;
            }
            _ => writes.push(DataWrite { disk_offset, first: nth, blocks: 1 }),
        }
    }
    (good, writes)
}
