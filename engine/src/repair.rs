//! Which stored blocks are damaged, and how each is made whole from another replica.
//!
//! Pure. [`Repairs`] knows what is to be looked at and what was lost; [`Job`] is the work on one chunk. The
//! [`targets`](crate::targets) ask the store and say what is to be done; bytes stay with the performer.
//!
//! ```text
//! suspect -> waiting -> check -> (whole) -> next step, or over
//!                         ^  `-> fetch from one replica after another -> mend -> flushed -> check
//!                         `------------ a pause, a bounded number of rounds ------------'`-> lost
//! ```
//!
//! # Invariants
//! - A chunk has one job at a time; what else is said about it meanwhile is looked at afterwards.
//! - A block is written only where the index says it is, under a pin, and only with bytes that have the CRC which the index
//!   has for it: then they are the very bytes, whatever the chunk is going through.
//! - Nothing counts as repaired that wasn't read back after a flush.
//! - The queue, the jobs, the rounds of a job and the list of what is lost are bounded. What finds no room is found again by
//!   the next read, or by the scrub.

use crate::event::{DiskIndex, Nanos};
use corefs_wire::{ChunkId, TargetId};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

/// Checksum blocks that are looked at in one step: a chunk of the usual size.
pub const STEP: u32 = 128;
/// Chunks of a shard that are being repaired at the same time.
const JOBS_MAX: usize = 4;
/// Chunks that wait for it.
const QUEUE_MAX: usize = 1024;
/// Chunks remembered as lost: a disk that has lost more is no disk.
const LOST_MAX: usize = 64 << 10;
/// How often all replicas are asked before a block is given up. With the pauses between, three seconds: a chunk that is being
/// written has come to rest by then, and a chain has left out who doesn't answer.
const ROUNDS_MAX: u32 = 6;
/// Pauses between rounds double from this on (nanoseconds).
const PAUSE_FIRST: Nanos = 50_000_000;
/// How long what was lost isn't tried again, however often it is read (nanoseconds).
const LOST_FOR: Nanos = 60_000_000_000;
/// How often it is seen whether it is still there (nanoseconds).
const LOOK: Nanos = 5_000_000_000;

/// A chunk of a target: its committed version, or what a pending update makes of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Place {
    pub target: TargetId,
    pub chunk: ChunkId,
    pub pending: bool,
}

/// Whether it is worth waiting for a damaged block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hope {
    /// It is being repaired, or will be.
    Repair,
    /// Nobody has it.
    None,
    /// The shard is stopping.
    Stopping,
}

/// How far a job has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// The step's blocks are to be read and compared, once `due`.
    Check,
    Checking,
    /// Somebody is to be asked, once `due`.
    Fetch,
    /// For so many blocks from one on (within the step); given up when `due`.
    Fetching {
        first: u32,
        blocks: u32,
    },
    Mending {
        blocks: u128,
    },
    /// Everything that could be had is written, and waits for a flush that begins later.
    Written {
        disk: DiskIndex,
    },
    Flushing {
        disk: DiskIndex,
    },
    Over,
}

/// What a look at a step came to, in blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    pub damaged: u32,
    pub repaired: u32,
}

/// The repair of one chunk. Blocks of a step are bits, the lowest is the block `at`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Job {
    pub place: Place,
    /// First block of the present step, and where the last step ends.
    pub at: u32,
    to: u32,
    pub phase: Phase,
    pub due: Nanos,
    /// Names what was asked last: an answer to anything earlier fits no more.
    pub ticket: u64,
    /// Said about the chunk meanwhile.
    again: Option<Range<u32>>,
    /// Damaged, and of those: not asked of the present peer yet.
    bad: u128,
    ask: u128,
    /// Most damaged blocks that were seen in this step, and given up in all steps.
    found: u32,
    lost: u32,
    /// Known to be lost before, and not seen again yet: no news.
    known: u32,
    peers: Vec<TargetId>,
    peer: usize,
    round: u32,
    /// The peer couldn't give several blocks together.
    single: bool,
    wrote: bool,
}

impl Job {
    fn new(place: Place, blocks: Range<u32>, known: u32, now: Nanos) -> Self {
        Self {
            place,
            at: blocks.start,
            to: blocks.end,
            phase: Phase::Check,
            due: now,
            ticket: 0,
            again: None,
            bad: 0,
            ask: 0,
            found: 0,
            lost: 0,
            known,
            peers: Vec::new(),
            peer: 0,
            round: 0,
            single: false,
            wrote: false,
        }
    }

    /// The blocks in `bad` are damaged; `peers` are those who may have them.
    pub fn checked(&mut self, now: Nanos, bad: u128, peers: &[TargetId]) -> Tally {
        let (before, still) = (self.found, bad.count_ones());
        self.found = before.max(still);
        let more = self.found - before;
        let damaged = more.saturating_sub(self.known);
        self.known = self.known.saturating_sub(more);
        let hopeless = peers.is_empty() || self.round == ROUNDS_MAX;
        if still > 0 && !hopeless {
            self.round += 1;
            (self.bad, self.ask) = (bad, bad);
            (self.peers, self.peer) = (peers.to_vec(), 0);
            (self.single, self.wrote) = (false, false);
            (self.phase, self.due) = (Phase::Fetch, now);
            return Tally { damaged, repaired: 0 };
        }
        let repaired = self.found - still;
        self.lost += still;
        self.at = self.at.saturating_add(STEP);
        (self.found, self.round) = (0, 0);
        (self.phase, self.due) = (if self.at < self.to { Phase::Check } else { Phase::Over }, now);
        Tally { damaged, repaired }
    }

    /// Whom to ask for how many blocks from which on. `None`: everybody was asked, and what was written is to be flushed, or
    /// another round comes later.
    pub fn next_fetch(&mut self, now: Nanos, disk: DiskIndex) -> Option<(TargetId, u32, u32)> {
        if self.ask == 0 && self.bad != 0 {
            self.peer += 1;
            (self.single, self.ask) = (false, self.bad);
        }
        match self.peers.get(self.peer).filter(|_| self.bad != 0) {
            Some(peer) => {
                let first = self.ask.trailing_zeros();
                let blocks = if self.single { 1 } else { (self.ask >> first).trailing_ones() };
                self.phase = Phase::Fetching { first, blocks };
                Some((*peer, first, blocks))
            }
            None if self.wrote => {
                (self.phase, self.due) = (Phase::Written { disk }, Nanos::MAX);
                None
            }
            None => {
                (self.phase, self.due) = (Phase::Check, now + (PAUSE_FIRST << (self.round - 1)));
                None
            }
        }
    }

    /// Whether a peer is asked for what a pending update makes of the chunk, as far as it has one. The last replica may have
    /// committed what the others still have as pending, for as long as nobody has told them: every other round asks for that.
    pub fn wants_pending(&self) -> bool {
        self.place.pending ^ self.round.is_multiple_of(2)
    }

    /// An answer has come for these blocks; `good` of them are what they should be, and are being written.
    pub fn fetched(&mut self, asked: Range<u32>, good: u128) {
        self.ask &= !mask(asked);
        self.due = 0;
        self.phase = if good == 0 { Phase::Fetch } else { Phase::Mending { blocks: good } };
    }

    /// There is no answer: its copy is damaged, too, or it can't be had.
    pub fn refused(&mut self, asked: Range<u32>, damaged: bool) {
        (self.phase, self.due) = (Phase::Fetch, 0);
        match damaged {
            // Perhaps only one of them is.
            true if asked.len() > 1 => self.single = true,
            true => self.ask &= !mask(asked),
            false => self.ask = 0,
        }
    }

    pub fn mended(&mut self, now: Nanos, blocks: u128) {
        self.bad &= !blocks;
        self.wrote = true;
        (self.phase, self.due) = (Phase::Fetch, now);
    }
}

/// These blocks of a step.
pub fn mask(blocks: Range<u32>) -> u128 {
    blocks.fold(0, |mask, block| mask | 1 << block)
}

/// What couldn't be repaired of a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lost {
    pub blocks: u32,
    /// Of the chunk when that was last looked at.
    pub version: u64,
    since: Nanos,
}

/// All repairs of a shard. See the module's documentation.
#[derive(Debug, Default)]
pub struct Repairs {
    queue: VecDeque<(Place, Range<u32>)>,
    pub jobs: Vec<Job>,
    pub lost: BTreeMap<Place, Lost>,
    /// Blocks since the start.
    pub damaged: u64,
    pub repaired: u64,
    /// When what is lost was last compared with what is there.
    looked: Nanos,
    stopped: bool,
}

impl Repairs {
    /// Blocks of a chunk may be damaged. `alone`: there is no other replica.
    pub fn suspect(&mut self, now: Nanos, place: Place, mut blocks: Range<u32>, alone: bool) -> Hope {
        if self.stopped {
            return Hope::Stopping;
        }
        if let Some(lost) = self.lost.get(&place) {
            if now < lost.since + LOST_FOR {
                return Hope::None;
            }
            // So that the count is right afterwards.
            blocks = 0..u32::MAX;
        }
        self.look_at(place, blocks);
        if alone { Hope::None } else { Hope::Repair }
    }

    /// Looks at blocks of a chunk, whatever is known of them.
    pub fn look_at(&mut self, place: Place, blocks: Range<u32>) {
        let joined = |have: &Range<u32>| have.start.min(blocks.start)..have.end.max(blocks.end);
        if let Some(job) = self.jobs.iter_mut().find(|job| job.place == place) {
            job.again = Some(job.again.as_ref().map_or(blocks.clone(), joined));
        } else if let Some((_, have)) = self.queue.iter_mut().find(|(waiting, _)| *waiting == place) {
            *have = joined(have);
        } else if self.has_room() {
            self.queue.push_back((place, blocks));
        }
    }

    /// Everything lost is tried once more: it may be there again, or gone.
    pub fn retry_lost(&mut self) {
        let places: Vec<Place> = self.lost.keys().copied().take(QUEUE_MAX).collect();
        places.into_iter().for_each(|place| self.look_at(place, 0..u32::MAX));
    }

    /// Whether more can be said and isn't forgotten.
    pub fn has_room(&self) -> bool {
        self.queue.len() < QUEUE_MAX
    }

    /// Chunks that wait or are being worked on.
    pub fn waiting(&self) -> usize {
        self.queue.len() + self.jobs.len()
    }

    /// Blocks that nobody has.
    pub fn unrepaired(&self) -> u64 {
        self.lost.values().map(|lost| u64::from(lost.blocks)).sum()
    }

    /// Takes no more; what is under way ends at its next step.
    pub fn stop(&mut self) {
        self.stopped = true;
        self.queue.clear();
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Something waits, and may begin.
    #[inline]
    pub fn can_begin(&self) -> bool {
        !self.queue.is_empty() && self.jobs.len() < JOBS_MAX
    }

    /// Begins what waits, as far as it may.
    pub fn begin(&mut self, now: Nanos) {
        while self.can_begin()
            && let Some((place, blocks)) = self.queue.pop_front()
        {
            let known = self.lost.get(&place).map_or(0, |lost| lost.blocks);
            self.jobs.push(Job::new(place, blocks, known, now));
        }
    }

    /// The place of the job that asked under this number.
    pub fn find(&self, ticket: u64) -> Option<usize> {
        self.jobs.iter().position(|job| job.ticket == ticket && job.phase != Phase::Over)
    }

    /// The place of a job whose time has come.
    pub fn due(&self, now: Nanos) -> Option<usize> {
        self.jobs.iter().position(|job| job.due <= now)
    }

    /// When [`Self::due`] or [`Self::wants_look`] have an answer, or something can begin.
    pub fn next_deadline(&self) -> Option<Nanos> {
        let waiting = self.can_begin().then_some(0);
        let look = (!self.lost.is_empty()).then_some(self.looked + LOOK);
        self.jobs.iter().map(|job| job.due).chain(waiting).chain(look).min().filter(|at| *at < Nanos::MAX)
    }

    /// It is time to see whether chunks that have lost something have changed.
    pub fn wants_look(&self, now: Nanos) -> bool {
        !self.lost.is_empty() && now >= self.looked + LOOK
    }

    pub fn looked(&mut self, now: Nanos) {
        self.looked = now;
    }

    pub fn count(&mut self, tally: Tally) {
        self.damaged += u64::from(tally.damaged);
        self.repaired += u64::from(tally.repaired);
    }

    /// A job has come to its end. `gone`: there is nothing left to be damaged. The chunk has that version now.
    pub fn end(&mut self, now: Nanos, index: usize, gone: bool, version: u64) {
        let job = self.jobs.swap_remove(index);
        if job.lost == 0 || gone {
            self.lost.remove(&job.place);
        } else if self.lost.len() < LOST_MAX || self.lost.contains_key(&job.place) {
            self.lost.insert(job.place, Lost { blocks: job.lost, version, since: now });
        }
        if let Some(blocks) = job.again.filter(|_| !self.stopped && job.lost == 0 && !gone) {
            self.look_at(job.place, blocks);
        }
    }

    /// Something written waits for a flush of this disk.
    #[inline]
    pub fn owes_flush(&self, disk: DiskIndex) -> bool {
        self.jobs.iter().any(|job| job.phase == Phase::Written { disk })
    }

    /// A flush of the disk begins.
    pub fn flushing(&mut self, disk: DiskIndex) {
        let written = |job: &&mut Job| job.phase == Phase::Written { disk };
        self.jobs.iter_mut().filter(written).for_each(|job| job.phase = Phase::Flushing { disk });
    }

    /// It is done: everything that it covers is looked at again.
    pub fn flushed(&mut self, now: Nanos, disk: DiskIndex) {
        for job in self.jobs.iter_mut().filter(|job| job.phase == Phase::Flushing { disk }) {
            (job.phase, job.due) = (Phase::Check, now);
        }
    }
}

#[cfg(test)]
mod tests;
