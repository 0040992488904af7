//! What to do after each error of an operation: try again here, elsewhere, with fresh routing, later, or give up.
//!
//! | error | read | update | metadata or manager |
//! |---|---|---|---|
//! | `Pending` | the tail, at once; the tail itself: later | later | later |
//! | `ChecksumMismatch` | another replica; then a few times more | later | give up |
//! | `LeaseExpired` | another replica; none left: fresh routing | fresh routing | give up: it is ours |
//! | `Corrupt`, `DiskError` | another replica; none left: a few times more, since they heal each other | `Corrupt` while the others don't serve: a few times more; else give up | give up |
//! | `SliceDead` | another replica; none left: give up | with other replicas: fresh routing; else give up | give up |
//! | class Retry | another replica; none left: later | later | another server; none left: later |
//! | class Refresh | fresh routing; the server is going or gone: another replica | fresh routing | another server |
//! | class Fatal | give up | give up | give up |
//!
//! "Later" doubles from 1 ms to half a second, with jitter. Everything ends at the deadline, or after [`ATTEMPTS_MAX`].

use super::Rng;
use super::select::Positions;
use corefs_wire::{Class, ErrorCode};
use std::time::Duration;

/// Attempts of one operation, whatever its deadline: a bound for errors that come back at once.
pub const ATTEMPTS_MAX: u32 = 1000;
/// Reads with a wrong checksum, after each replica has had its chance.
const MISMATCHES_MAX: u32 = 3;
/// Rounds of operations over replicas that are all damaged: with the pauses between, a second, in which each has fetched from the
/// others what it lacks.
const DAMAGED_MAX: u32 = 10;
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// What kind of operation it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Work {
    Read,
    Update,
    /// A call to one of several equal servers.
    Call,
}

/// Where the next attempt goes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum At {
    /// As the first time: any replica, the head, the same server.
    Any,
    /// A replica or server that is not in [`Tracker::failed`].
    Other,
    /// The last serving replica.
    Tail,
}

/// What is done about routing before the next attempt.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Refresh {
    No,
    /// Ask for it, but don't wait.
    Ask,
    /// Wait for an answer.
    Wait,
}

/// What to do after an error.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Next {
    Again { at: At, after: Duration, refresh: Refresh },
    GiveUp,
}

/// The history of one operation that did not succeed at once.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Tracker {
    work: Work,
    deadline: Duration,
    attempts: u32,
    pauses: u32,
    mismatches: u32,
    damaged: u32,
    replicated: bool,
    failed: Positions,
    /// Positions mean something for one version of the chain only.
    version: u64,
}

impl Tracker {
    /// `deadline` in the time that [`after`](Self::after) is told.
    pub const fn new(work: Work, deadline: Duration) -> Self {
        let failed = Positions::NONE;
        Self {
            work,
            deadline,
            attempts: 0,
            pauses: 0,
            mismatches: 0,
            damaged: 0,
            replicated: false,
            failed,
            version: 0,
        }
    }

    /// There are other copies, though perhaps not of those that serve just now: damage may be healed.
    #[must_use]
    pub const fn replicated(mut self, replicated: bool) -> Self {
        self.replicated = replicated;
        self
    }

    /// Replicas or servers that failed since they were all tried.
    pub fn failed(&self) -> Positions {
        self.failed
    }

    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Forgets which positions failed when they now mean something else.
    pub fn see_version(&mut self, version: u64) {
        if self.version != version {
            self.version = version;
            self.failed = Positions::NONE;
        }
    }

    /// An attempt at `position` of `of` (both 0 if there was nobody to ask) failed with `error`.
    pub fn after(
        &mut self,
        now: Duration,
        error: ErrorCode,
        position: usize,
        of: usize,
        rng: &mut Rng,
    ) -> Next {
        self.attempts += 1;
        if of > 0 {
            self.failed.insert(position);
        }
        let others = self.failed.missing(of) > 0;
        let next = match self.work {
            Work::Read => self.after_read(error, position, of, others, rng),
            Work::Update => self.after_update(error, of, rng),
            Work::Call => self.after_call(error, others, rng),
        };
        match next {
            Next::Again { after, .. } if self.attempts < ATTEMPTS_MAX && now + after < self.deadline => next,
            _ => Next::GiveUp,
        }
    }

    fn after_read(
        &mut self,
        error: ErrorCode,
        position: usize,
        of: usize,
        others: bool,
        rng: &mut Rng,
    ) -> Next {
        let at_once = |at, refresh| Next::Again { at, after: Duration::ZERO, refresh };
        match error {
            ErrorCode::Pending if position + 1 < of => at_once(At::Tail, Refresh::No),
            ErrorCode::Pending => self.later(At::Tail, Refresh::No, rng),
            ErrorCode::ChecksumMismatch if others => at_once(At::Other, Refresh::No),
            ErrorCode::ChecksumMismatch => {
                self.mismatches += 1;
                if self.mismatches >= MISMATCHES_MAX {
                    Next::GiveUp
                } else {
                    self.later(At::Any, Refresh::No, rng)
                }
            }
            ErrorCode::Corrupt | ErrorCode::DiskError | ErrorCode::SliceDead if others => {
                at_once(At::Other, Refresh::Ask)
            }
            ErrorCode::Corrupt | ErrorCode::DiskError
                if (of > 1 || self.replicated) && self.damaged < DAMAGED_MAX =>
            {
                self.damaged += 1;
                self.later(At::Any, Refresh::Ask, rng)
            }
            ErrorCode::Unreachable
            | ErrorCode::ShuttingDown
            | ErrorCode::LeaseExpired
            | ErrorCode::NotServing
                if others =>
            {
                at_once(At::Other, Refresh::Ask)
            }
            _ => match error.class() {
                Class::Retry if others => at_once(At::Other, Refresh::No),
                Class::Retry => self.later(At::Any, Refresh::Ask, rng),
                Class::Refresh => self.later(At::Any, Refresh::Wait, rng),
                Class::Fatal => Next::GiveUp,
            },
        }
    }

    fn after_update(&mut self, error: ErrorCode, of: usize, rng: &mut Rng) -> Next {
        match error {
            // Only the file knows its epoch: see `file`.
            ErrorCode::StaleLayout => Next::GiveUp,
            // Where others serve, the head asks them for what it lacks and says `Overloaded` until it has that.
            ErrorCode::Corrupt if of < 2 && self.replicated && self.damaged < DAMAGED_MAX => {
                self.damaged += 1;
                self.later(At::Any, Refresh::Ask, rng)
            }
            // Another replica becomes the head, if there is one.
            ErrorCode::SliceDead if of > 1 => self.later(At::Any, Refresh::Wait, rng),
            _ => match error.class() {
                Class::Retry => self.later(At::Any, Refresh::Ask, rng),
                Class::Refresh => self.later(At::Any, Refresh::Wait, rng),
                Class::Fatal => Next::GiveUp,
            },
        }
    }

    fn after_call(&mut self, error: ErrorCode, others: bool, rng: &mut Rng) -> Next {
        use ErrorCode::{ChecksumMismatch, KvConflict, KvTooOld, KvUnknownCommit, LeaseExpired};
        match error {
            // The lease that has expired is ours: no other server thinks otherwise.
            ChecksumMismatch | LeaseExpired => Next::GiveUp,
            // It is not the server's fault, and another one would read the same store.
            KvConflict | KvUnknownCommit | KvTooOld => self.later(At::Any, Refresh::No, rng),
            _ if error.class() == Class::Fatal => Next::GiveUp,
            _ if others => Next::Again { at: At::Other, after: Duration::ZERO, refresh: Refresh::Ask },
            _ => self.later(At::Any, Refresh::Ask, rng),
        }
    }

    /// After a pause, when whoever failed may have recovered: all may be asked again.
    fn later(&mut self, at: At, refresh: Refresh, rng: &mut Rng) -> Next {
        self.failed = Positions::NONE;
        let pause = PAUSE_MIN.saturating_mul(1 << self.pauses.min(16)).min(PAUSE_MAX);
        self.pauses += 1;
        // Between a half and one and a half of it, so that clients who failed together don't come back together.
        let after = pause / 2 + pause.mul_f64(f64::from(rng.below(1 << 16)) / f64::from(1 << 16));
        Next::Again { at, after, refresh }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ErrorCode::*;

    const NOW: Duration = Duration::ZERO;
    const DEADLINE: Duration = Duration::from_secs(30);

    /// What follows each (error, position) of an operation on `of` replicas, as short text.
    fn story(work: Work, of: usize, errors: &[(ErrorCode, usize)]) -> Vec<String> {
        let (mut tracker, mut rng) = (Tracker::new(work, DEADLINE), Rng::new(1));
        let mut tell = |(error, position): &(ErrorCode, usize)| match tracker
            .after(NOW, *error, *position, of, &mut rng)
        {
            Next::GiveUp => "give up".into(),
            Next::Again { at, after, refresh } => {
                let when = if after.is_zero() { "now" } else { "later" };
                match refresh {
                    Refresh::No => format!("{at:?} {when}"),
                    refresh => format!("{at:?} {when} {refresh:?}"),
                }
            }
        };
        errors.iter().map(&mut tell).collect()
    }

    #[test]
    fn reads_go_to_the_other_replicas_first() {
        let lost =
            story(Work::Read, 3, &[(ConnectionLost, 1), (TimedOut, 0), (Overloaded, 2), (ConnectionLost, 0)]);
        assert_eq!(lost, ["Other now", "Other now", "Any later Ask", "Other now"]);
        let both = [(Corrupt, 0), (Corrupt, 1)];
        assert_eq!(story(Work::Read, 2, &both), ["Other now Ask", "Any later Ask"]);
        let told = story(Work::Read, 2, &both.repeat(DAMAGED_MAX as usize + 1));
        assert_eq!(told.iter().position(|next| next == "give up"), Some(2 * DAMAGED_MAX as usize + 1));
        assert_eq!(story(Work::Read, 1, &[(Corrupt, 0)]), ["give up"]);
        let mut alone = Tracker::new(Work::Read, DEADLINE).replicated(true);
        assert_ne!(
            alone.after(NOW, Corrupt, 0, 1, &mut Rng::new(1)),
            Next::GiveUp,
            "others don't serve just now"
        );
        assert_eq!(story(Work::Read, 2, &[(StaleRouting, 0)]), ["Any later Wait"]);
        assert_eq!(
            story(Work::Read, 2, &[(Unreachable, 0), (Unreachable, 1)]),
            ["Other now Ask", "Any later Wait"]
        );
        assert_eq!(story(Work::Read, 0, &[(NotServing, 0)]), ["Any later Wait"]);
        assert_eq!(story(Work::Read, 2, &[(InvalidArgument, 0)]), ["give up"]);
    }

    #[test]
    fn pending_goes_to_the_tail() {
        let found = story(Work::Read, 3, &[(Pending, 0), (Pending, 2), (Pending, 2)]);
        assert_eq!(found, ["Tail now", "Tail later", "Tail later"]);
    }

    #[test]
    fn wrong_checksums_are_tried_a_few_times() {
        let wrong = [(ChecksumMismatch, 0); 4];
        assert_eq!(story(Work::Read, 1, &wrong[..3]), ["Any later", "Any later", "give up"]);
        let both =
            story(Work::Read, 2, &[(ChecksumMismatch, 0), (ChecksumMismatch, 1), (ChecksumMismatch, 0)]);
        assert_eq!(both, ["Other now", "Any later", "Other now"]);
    }

    #[test]
    fn updates_wait_for_the_head() {
        let found = story(
            Work::Update,
            3,
            &[(ConnectionLost, 0), (StaleRouting, 0), (ChainBroken, 0), (SliceDead, 0)],
        );
        assert_eq!(found, ["Any later Ask", "Any later Wait", "Any later Wait", "Any later Wait"]);
        for (error, of) in [(NoSpace, 3), (StaleLayout, 3), (SliceDead, 1), (Corrupt, 3), (Duplicate, 3)] {
            assert_eq!(story(Work::Update, of, &[(error, 0)]), ["give up"], "{error:?}");
        }
    }

    #[test]
    fn an_update_of_damaged_blocks_waits_a_little_for_the_replicas_that_may_heal_them() {
        let mut alone = Tracker::new(Work::Update, DEADLINE).replicated(true);
        let mut tell = |of| alone.after(NOW, Corrupt, 0, of, &mut Rng::new(1));
        assert!((0..DAMAGED_MAX).all(|_| tell(1) != Next::GiveUp), "others don't serve just now");
        assert_eq!(tell(1), Next::GiveUp);
        let mut with_others = Tracker::new(Work::Update, DEADLINE).replicated(true);
        let outcome = with_others.after(NOW, Corrupt, 0, 2, &mut Rng::new(1));
        assert_eq!(outcome, Next::GiveUp, "they were asked, and haven't got it either");
    }

    #[test]
    fn calls_go_round_the_servers() {
        let found =
            story(Work::Call, 2, &[(NotPrimary, 0), (Unreachable, 1), (KvConflict, 0), (NotFound, 0)]);
        assert_eq!(found, ["Other now Ask", "Any later Ask", "Any later", "give up"]);
        assert_eq!(story(Work::Call, 2, &[(LeaseExpired, 0)]), ["give up"]);
    }

    #[test]
    fn pauses_grow_and_end_at_the_deadline() {
        let (mut tracker, mut rng) = (Tracker::new(Work::Update, DEADLINE), Rng::new(9));
        let (mut now, mut last, mut rounds) = (NOW, NOW, 0);
        while let Next::Again { after, .. } = tracker.after(now, TimedOut, 0, 1, &mut rng) {
            assert!(after >= PAUSE_MIN / 2 && after <= PAUSE_MAX * 3 / 2);
            (now, last, rounds) = (now + after, after, rounds + 1);
        }
        assert!(now < DEADLINE && now + PAUSE_MAX * 2 > DEADLINE, "gave up at {now:?}");
        assert!(last >= PAUSE_MAX / 2 && (50..150).contains(&rounds), "{rounds} rounds");
    }

    #[test]
    fn attempts_are_bounded_even_without_time() {
        let (mut tracker, mut rng) = (Tracker::new(Work::Read, Duration::MAX), Rng::new(9));
        let mut rounds = 0;
        while tracker.after(NOW, ConnectionLost, rounds % 2, 2, &mut rng) != Next::GiveUp {
            rounds += 1;
        }
        assert_eq!(rounds as u32 + 1, ATTEMPTS_MAX);
    }

    #[test]
    fn a_new_chain_version_forgets_who_failed() {
        let (mut tracker, mut rng) = (Tracker::new(Work::Read, DEADLINE), Rng::new(9));
        tracker.see_version(1);
        tracker.after(NOW, ConnectionLost, 0, 3, &mut rng);
        tracker.see_version(1);
        assert!(tracker.failed().contains(0));
        tracker.see_version(2);
        assert_eq!(tracker.failed().missing(3), 3);
    }
}
