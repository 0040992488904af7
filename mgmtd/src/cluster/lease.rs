//! Which manager leads. The lease is two rows of the store: the *holder* (who, in which reign), which changes only when
//! the lead does, and the *beat*, a number that the holder raises to say that it is there.
//!
//! - Every transaction that changes anything reads the holder row serializably and fails if it isn't its own: a deposed
//!   primary can't write, whatever it believes. (The beat is a row of its own so that renewals don't conflict with
//!   these transactions.)
//! - A candidate takes over when neither row has changed for the whole lease, plus a margin, *on its own clock*: no
//!   clocks are compared. It then raises the epoch, in a transaction that read both rows.
//! - A primary answers from memory only while its lease runs, counted from before it sent the last successful renewal.
//!   So when a candidate's wait is over, the old primary has stopped answering.
//! - A row that says *released* (a clean stop), no row at all (the first start), or one of this very process needs no
//!   wait.

use corefs_wire::Uuid;

/// The holder row.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Holder {
    /// Counts reigns; never falls. The high half of routing versions.
    pub epoch: u64,
    /// Drawn at random by each manager process at its start.
    pub process: Uuid,
    /// Where it answers.
    pub address: String,
    /// It stopped in order: nobody needs to wait.
    pub released: bool,
}

/// What is stored of the lease: `None` before the first manager ever led.
pub type Stored = Option<(Holder, u64)>;

/// What a candidate does next.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Verdict {
    /// Try to become primary with this epoch.
    Take { epoch: u64 },
    /// Look again in about so many milliseconds.
    Wait { ms: u64 },
}

/// A manager that doesn't lead, watching the one that may.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Candidate {
    process: Uuid,
    lease_ms: u64,
    margin_ms: u64,
    /// What was last seen, and since when it hasn't changed.
    seen: Option<(Stored, u64)>,
}

impl Candidate {
    pub fn new(process: Uuid, lease_ms: u64, margin_ms: u64) -> Self {
        Self { process, lease_ms, margin_ms, seen: None }
    }

    /// The rows as just read; `now_ms` is taken after the read.
    pub fn observe(&mut self, stored: Stored, now_ms: u64) -> Verdict {
        let next = match &stored {
            None => return Verdict::Take { epoch: 1 },
            Some((holder, _)) => holder.epoch + 1,
        };
        if stored.as_ref().is_some_and(|(holder, _)| holder.released || holder.process == self.process) {
            return Verdict::Take { epoch: next };
        }
        let since = match &self.seen {
            Some((seen, since)) if *seen == stored => *since,
            _ => {
                self.seen = Some((stored, now_ms));
                now_ms
            }
        };
        let limit = self.lease_ms + self.margin_ms;
        let waited = now_ms.saturating_sub(since);
        if waited > limit {
            return Verdict::Take { epoch: next };
        }
        // Often enough to see the holder's beats, and not later than the end of the wait.
        Verdict::Wait { ms: (limit + 1 - waited).min(self.lease_ms / 4).max(1) }
    }

    /// Whom requests should ask instead.
    pub fn holder(&self) -> Option<&Holder> {
        self.seen.as_ref().and_then(|(stored, _)| stored.as_ref()).map(|(holder, _)| holder)
    }
}

/// The reign of a primary.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Reign {
    pub epoch: u64,
    lease_ms: u64,
    /// When the last successful renewal was sent.
    renewed_ms: u64,
}

impl Reign {
    /// `sent_ms` is taken before the transaction that won was begun.
    pub fn new(epoch: u64, lease_ms: u64, sent_ms: u64) -> Self {
        Self { epoch, lease_ms, renewed_ms: sent_ms }
    }

    /// Whether this manager may answer.
    pub fn runs(&self, now_ms: u64) -> bool {
        now_ms < self.renewed_ms.saturating_add(self.lease_ms)
    }

    /// A renewal that was begun at `sent_ms` succeeded.
    pub fn renewed(&mut self, sent_ms: u64) {
        self.renewed_ms = self.renewed_ms.max(sent_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(epoch: u64, process: u8) -> Holder {
        Holder { epoch, process: Uuid([process; 16]), address: "127.0.0.1:1".into(), released: false }
    }

    fn candidate() -> Candidate {
        Candidate::new(Uuid([1; 16]), 1000, 200)
    }

    #[test]
    fn a_first_start_and_a_clean_handover_need_no_wait() {
        assert_eq!(candidate().observe(None, 5), Verdict::Take { epoch: 1 });
        let released = Holder { released: true, ..holder(4, 2) };
        assert_eq!(candidate().observe(Some((released, 9)), 5), Verdict::Take { epoch: 5 });
        assert_eq!(candidate().observe(Some((holder(4, 1), 9)), 5), Verdict::Take { epoch: 5 });
    }

    #[test]
    fn a_silent_holder_is_waited_out_on_the_candidates_own_clock() {
        let mut candidate = candidate();
        let silent = || Some((holder(4, 2), 9));
        assert_eq!(candidate.observe(silent(), 10_000), Verdict::Wait { ms: 250 });
        assert_eq!(candidate.holder().map(|holder| holder.epoch), Some(4));
        assert_eq!(candidate.observe(silent(), 11_100), Verdict::Wait { ms: 101 });
        assert_eq!(candidate.observe(silent(), 11_200), Verdict::Wait { ms: 1 });
        assert_eq!(candidate.observe(silent(), 11_201), Verdict::Take { epoch: 5 });
    }

    #[test]
    fn every_beat_starts_the_wait_again() {
        let mut candidate = candidate();
        for beat in 0..10 {
            let now = 1000 * beat;
            assert!(matches!(candidate.observe(Some((holder(4, 2), beat)), now), Verdict::Wait { .. }));
        }
        assert!(
            matches!(candidate.observe(Some((holder(5, 3), 9)), 10_150), Verdict::Wait { .. }),
            "a new holder"
        );
    }

    /// The two sides never overlap: the holder counts from before it sends, the candidate from after it has read.
    #[test]
    fn a_reign_ends_before_a_candidates_wait() {
        for (sent, read) in [(0u64, 0u64), (0, 30), (700, 1900)] {
            let mut reign = Reign::new(4, 1000, 0);
            reign.renewed(sent);
            let mut candidate = candidate();
            candidate.observe(Some((holder(4, 2), 1)), read);
            let taken = (read..)
                .find(|now| matches!(candidate.observe(Some((holder(4, 2), 1)), *now), Verdict::Take { .. }));
            assert!(taken.is_some_and(|taken| !reign.runs(taken)));
        }
    }
}
