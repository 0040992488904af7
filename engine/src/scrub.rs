//! The walk over everything that a shard stores, block by block, for ever: what nobody reads is verified all the same.
//!
//! Pure. [`Scrub`] says when the next step may be taken and where it is; the [`targets`](crate::targets) take it.
//!
//! A pass is slow: at most the rate that the shard was given, and otherwise so that it takes [`PASS`]. A pass that somebody
//! asked for goes as fast as he said, and begins anew.

use crate::event::Nanos;
use corefs_wire::{ChunkId, TargetId};
use std::collections::{BTreeMap, VecDeque};

/// Bytes a second at which a node scrubs at most, unless it is told otherwise.
pub const SCRUB_RATE_DEFAULT: u64 = 32 << 20;
/// How long a pass takes where the rate isn't in the way (seconds).
const PASS: u64 = 7 * 24 * 3600;
/// No pass is slower than this (bytes a second).
const RATE_MIN: u64 = 1 << 20;
/// Passes begin so far apart at least, however little there is (nanoseconds).
const PASS_MIN: Nanos = 3600 * 1_000_000_000;
/// The shard wakes up so rarely for the scrub, and then takes all steps that the time since allows (nanoseconds).
const WAKE: Nanos = 50_000_000;
/// A pause when there is no memory for it (nanoseconds).
const HUNGRY: Nanos = 20_000_000;
/// Bytes, and steps, that are being read at the same time: in the background, and in a pass that was asked for.
const FLYING_BYTES: [u64; 2] = [512 << 10, 2 << 20];
const FLYING_STEPS: [usize; 2] = [8, 64];

/// Where a step is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Spot {
    pub target: TargetId,
    pub chunk: ChunkId,
    pub block: u32,
}

/// How far a pass has come, and what has been seen by then.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Pass {
    /// It was asked for, as the how-manyth; 0: by itself.
    pub number: u64,
    pub chunks: u64,
    /// Read and compared, and about how many there are.
    pub bytes: u64,
    pub bytes_total: u64,
    /// Damaged and repaired blocks of the shard when it began.
    pub damaged_before: u64,
    pub repaired_before: u64,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Scrub {
    /// Bytes a second; 0: only what is asked for.
    rate: u64,
    /// Of the pass that was asked for; 0: as fast as it goes.
    asked_rate: u64,
    pass: Option<Pass>,
    /// The last one that has ended.
    pub last: Pass,
    /// Passes that were asked for so far; of those, the newest that has ended; and all that have ended.
    pub asked: u64,
    pub answered: u64,
    pub passes: u64,
    /// The last spot that was taken; `None`: the first is next.
    at: Option<Spot>,
    walked: bool,
    /// Spots to be taken once more.
    again: VecDeque<Spot>,
    /// Spots that are being read, their bytes, and whether they are of the present pass.
    flying: BTreeMap<u64, (Spot, u64, bool)>,
    flying_bytes: u64,
    /// When the bytes so far are paid for, and when the next pass begins.
    paid: Nanos,
    next_pass: Nanos,
    /// No step before this.
    wake: Nanos,
    stopped: bool,
}

impl Scrub {
    pub fn set_rate(&mut self, rate: u64) {
        self.rate = rate;
    }

    /// Begins a pass over everything, at that many bytes a second; its number.
    pub fn ask(&mut self, rate: u64) -> u64 {
        self.asked += 1;
        (self.asked_rate, self.pass) = (rate, None);
        (self.next_pass, self.wake, self.paid) = (0, 0, 0);
        self.again.clear();
        self.flying.values_mut().for_each(|(.., counts)| *counts = false);
        self.asked
    }

    /// The pass under way.
    pub fn pass(&self) -> Option<&Pass> {
        self.pass.as_ref()
    }

    fn wants_pass(&self) -> bool {
        self.asked > self.answered || self.rate > 0
    }

    /// A pass begins now, if it is time: over `bytes_total` bytes.
    pub fn begin(&mut self, now: Nanos, bytes_total: u64, damaged: u64, repaired: u64) -> bool {
        if self.pass.is_some() || self.stopped || !self.wants_pass() || now < self.next_pass {
            return false;
        }
        let number = if self.asked > self.answered { self.asked } else { 0 };
        self.pass = Some(Pass {
            number,
            bytes_total,
            damaged_before: damaged,
            repaired_before: repaired,
            ..Pass::default()
        });
        (self.at, self.walked) = (None, false);
        self.next_pass = now + PASS_MIN;
        self.paid = now;
        true
    }

    /// Whether another step may be taken.
    pub fn admits(&self, now: Nanos) -> bool {
        let Some(pass) = &self.pass else { return false };
        let fast = usize::from(pass.number > 0);
        let room = self.flying_bytes < FLYING_BYTES[fast] && self.flying.len() < FLYING_STEPS[fast];
        let more = !self.walked || !self.again.is_empty();
        more && room && !self.stopped && now >= self.wake && now >= self.paid
    }

    /// A spot to be taken once more, if there is any; else the walk goes on from the last.
    pub fn again(&mut self) -> Option<Spot> {
        self.again.pop_front()
    }

    pub fn at(&self) -> Option<Spot> {
        self.at
    }

    /// The walk has come to `spot`, or to its end.
    pub fn walk_to(&mut self, spot: Option<Spot>) {
        let Some(pass) = &mut self.pass else { return };
        match spot {
            Some(spot) => {
                pass.chunks += u64::from(spot.block == 0);
                self.at = Some(spot);
            }
            None => self.walked = true,
        }
    }

    /// `bytes` at `spot` are being read, under that number.
    pub fn take(&mut self, now: Nanos, ticket: u64, spot: Spot, bytes: u64) {
        self.flying.insert(ticket, (spot, bytes, true));
        self.flying_bytes += bytes;
        let rate = self.bytes_a_second();
        if let Some(cost) = (u128::from(bytes) * 1_000_000_000).checked_div(rate.into()) {
            // What wasn't used while the shard was busy otherwise isn't made up for, beyond one waking.
            self.paid = self.paid.max(now.saturating_sub(WAKE)) + cost as Nanos;
            if self.paid > now {
                self.wake = self.paid.max(now + WAKE);
            }
        }
    }

    /// 0: without a bound.
    fn bytes_a_second(&self) -> u64 {
        match self.pass {
            Some(Pass { number, .. }) if number > 0 => self.asked_rate,
            Some(Pass { bytes_total, .. }) => (bytes_total / PASS).max(RATE_MIN).min(self.rate),
            None => self.rate,
        }
    }

    /// What was asked under this number has an answer; `None` if it is none of ours. Without `memory` it was never read.
    pub fn landed(&mut self, now: Nanos, ticket: u64, memory: bool) -> Option<Spot> {
        let (spot, bytes, counts) = self.flying.remove(&ticket)?;
        self.flying_bytes -= bytes;
        match self.pass.as_mut().filter(|_| counts) {
            Some(pass) if memory => pass.bytes += bytes,
            Some(_) => {
                self.again.push_back(spot);
                self.wake = now + HUNGRY;
            }
            None => {}
        }
        Some(spot)
    }

    /// Everything has been read: the pass ends, once nothing that it found waits for repair.
    pub fn end(&mut self, repairs_waiting: usize) {
        let quiet = self.walked && self.flying.is_empty() && self.again.is_empty() && repairs_waiting == 0;
        if quiet && let Some(pass) = self.pass.take() {
            self.answered = self.answered.max(pass.number);
            self.passes += 1;
            self.last = pass;
        }
    }

    /// Takes no step any more.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// When it is to be looked at again though nothing happens.
    pub fn next_deadline(&self, now: Nanos) -> Option<Nanos> {
        let at = self.wake.max(self.paid);
        match &self.pass {
            _ if self.stopped => None,
            None => self.wants_pass().then_some(self.next_pass),
            Some(_) if self.walked && self.again.is_empty() => None,
            // It waits for what is being read.
            Some(_) if at <= now && !self.flying.is_empty() => None,
            Some(_) => Some(at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use corefs_wire::InodeId;

    const SECOND: Nanos = 1_000_000_000;

    fn spot(block: u32) -> Spot {
        Spot { target: TargetId(1), chunk: ChunkId::new(InodeId(1), 0), block }
    }

    /// Takes steps of `bytes` for `seconds`; how many, and how often it woke up.
    fn run(scrub: &mut Scrub, bytes: u64, seconds: u64) -> (u64, u64) {
        let (mut now, mut steps, mut wakes) = (SECOND, 0, 0);
        while now < (1 + seconds) * SECOND {
            wakes += 1;
            while scrub.admits(now) {
                scrub.take(now, steps, spot(0), bytes);
                assert!(scrub.landed(now, steps, true).is_some());
                steps += 1;
            }
            now = scrub.next_deadline(now).unwrap().max(now + 1);
        }
        (steps, wakes)
    }

    #[test]
    fn the_pace_is_kept_and_wakings_are_few() {
        // (rate, bytes stored, bytes a step) -> bytes a second.
        for (rate, stored, step, expected) in [
            (32 << 20, 1 << 30, 512 << 10, RATE_MIN),
            (32 << 20, 1 << 30, 4 << 10, RATE_MIN),
            (32 << 20, 100 << 40, 512 << 10, 32 << 20),
            (32 << 20, PASS * (5 << 20), 512 << 10, 5 << 20),
            (100 << 10, 1 << 30, 4 << 10, 100 << 10),
        ] {
            let mut scrub = Scrub::default();
            scrub.set_rate(rate);
            assert!(scrub.begin(SECOND, stored, 0, 0));
            let (steps, wakes) = run(&mut scrub, step, 100);
            let got = steps * step / 100;
            assert!((expected * 97 / 100..=expected * 103 / 100).contains(&got), "{got}, not {expected}");
            assert!(wakes <= 100 * 21, "{wakes} wakings in 100 s");
        }
    }

    #[test]
    fn a_pass_that_is_asked_for_takes_the_place_of_the_present_one() {
        let mut scrub = Scrub::default();
        assert!(!scrub.begin(SECOND, 10, 0, 0), "it is off");
        assert_eq!(scrub.next_deadline(SECOND), None);
        scrub.set_rate(1 << 20);
        assert!(scrub.begin(SECOND, 10, 0, 0) && scrub.admits(SECOND));
        scrub.walk_to(Some(spot(0)));
        scrub.take(SECOND, 1, spot(0), 1 << 20);
        assert!(!scrub.admits(SECOND));
        assert_eq!(scrub.ask(0), 1);
        assert!(scrub.begin(SECOND, 10, 3, 2));
        assert_eq!(scrub.at(), None, "from the beginning");
        scrub.walk_to(Some(spot(0)));
        assert!(scrub.admits(SECOND));
        scrub.take(SECOND, 2, spot(0), 1 << 20);
        // No memory: it is taken once more.
        scrub.landed(SECOND, 2, false);
        scrub.walk_to(None);
        scrub.landed(SECOND, 1, true);
        scrub.end(0);
        assert!(!scrub.admits(SECOND) && scrub.admits(SECOND + HUNGRY));
        assert_eq!(scrub.again(), Some(spot(0)));
        scrub.take(SECOND + HUNGRY, 3, spot(0), 4096);
        scrub.landed(SECOND + HUNGRY, 3, true);
        scrub.end(1);
        assert_eq!(scrub.answered, 0, "a repair is under way");
        scrub.end(0);
        assert_eq!((scrub.answered, scrub.passes, scrub.last.chunks), (1, 1, 1));
        assert_eq!(scrub.last.bytes, 4096, "what was read before it began is not its own");
        assert_eq!((scrub.last.damaged_before, scrub.last.repaired_before), (3, 2));
        // The next one is by itself, and not at once.
        assert!(!scrub.begin(2 * SECOND, 10, 0, 0) && scrub.next_deadline(SECOND) == Some(SECOND + PASS_MIN));
        assert!(
            scrub.begin(SECOND + PASS_MIN, 10, 0, 0) && scrub.pass().is_some_and(|pass| pass.number == 0)
        );
        scrub.stop();
        assert_eq!(scrub.next_deadline(SECOND), None);
    }
}
