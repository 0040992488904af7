//! The only retry loop.
//!
//! A body is run with a fresh transaction, which the loop then commits. When the body or the commit fails with a
//! key-value error (5xx) of class retry, the loop pauses and runs the body again, within a [`Budget`]; any other
//! error, such as the body's own `NotFound`, ends it at once and nothing was written. A body may run many times: it
//! must leave no trace outside of its transaction.
//!
//! # Commits whose outcome is unknown
//! The connection broke, or the server died, between sending a commit and hearing of it: it happened, or not, **or
//! it is still on its way and happens later**. Who runs the transaction must say what that means, by the function called:
//!
//! | function | on `KvUnknownCommit` | right for |
//! |---|---|---|
//! | [`run`] | returns it | reads, and writers that ask a person or look for themselves |
//! | [`run_repeatable`] | runs the body again | bodies of which a second run, and the first one landing late, do no harm: same values again, guarded by what they read |
//! | [`run_once`] | looks at a row that the commit wrote, then runs the body again if it isn't there | everything else: exactly once |
//!
//! `run_once` holds because every attempt writes the row *and* has it as a read conflict at its own read version: two
//! attempts that both commit would each have to commit before the other. So whichever comes first, even long after it was
//! given up, makes all others conflict.

use crate::contract::{Committed, Isolation, KvEngine, Transaction};
use corefs_wire::{Class, Error, ErrorCode, Result};
use std::time::Duration;

/// How long the loop goes on. It ends at whichever comes first, with the last error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Budget {
    /// Times the body is run.
    pub attempts: u32,
    /// From the first attempt's start to the last one's.
    pub time: Duration,
}

impl Budget {
    /// Rides out a store that restarts, and gives up while a caller still has patience.
    pub const DEFAULT: Self = Self { attempts: 40, time: Duration::from_secs(8) };
}

/// Whether an attempt starts by looking for the row of [`run_once`]. It costs a round trip.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Look {
    /// Always: the request may have been carried out by an earlier call of `run_once`, here or on another server.
    EveryAttempt,
    /// Only after an unknown commit of this very call: nobody else carries out the same request.
    AfterUnknownCommit,
}

/// The shortest pause, before the first retry.
const PAUSE_MIN: Duration = Duration::from_micros(250);
/// The pause doubles with every attempt up to this.
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// The pause before retry `attempt` (from 1), for engines to implement [`KvEngine::backoff`] with: doubles each
/// time, of which `random` takes away up to a half so that those who collided don't collide again.
pub fn pause_before(attempt: u32, random: u64) -> Duration {
    let full = PAUSE_MIN.saturating_mul(1 << attempt.saturating_sub(1).min(16)).min(PAUSE_MAX);
    full - full.mul_f64((random % 1024) as f64 / 2048.0)
}

/// Runs `body` in a transaction until it commits. An unknown commit is returned as it is.
pub async fn run<E: KvEngine, T>(engine: &E, body: impl AsyncFnMut(&mut E::Txn) -> Result<T>) -> Result<T> {
    Ok(run_within(engine, Budget::DEFAULT, body).await?.0)
}

/// [`run`] with another budget; returns also the commit.
pub async fn run_within<E: KvEngine, T>(
    engine: &E,
    budget: Budget,
    mut body: impl AsyncFnMut(&mut E::Txn) -> Result<T>,
) -> Result<(T, Committed)> {
    let mut attempts = Attempts::new(engine, budget);
    loop {
        match attempt(engine, &mut body).await {
            Err(error) if error.code != ErrorCode::KvUnknownCommit => attempts.again(error).await?,
            outcome => return outcome,
        }
    }
}

/// Runs `body` in a transaction until a commit is known to have happened; it may have happened more than once.
pub async fn run_repeatable<E: KvEngine, T>(
    engine: &E,
    mut body: impl AsyncFnMut(&mut E::Txn) -> Result<T>,
) -> Result<T> {
    let mut attempts = Attempts::new(engine, Budget::DEFAULT);
    loop {
        match attempt(engine, &mut body).await {
            Ok((value, _)) => return Ok(value),
            Err(error) => attempts.again(error).await?,
        }
    }
}

/// Carries out `body` exactly once, however commits end. `body` returns its result and what `row` shall hold to tell of
/// it (not empty of meaning: `remembered` makes the result of it again); the loop writes the row in the same
/// transaction. The row must be this request's alone, and is the caller's to remove when no repetition of the
/// request can come any more.
///
/// Errors: those of `body` and `remembered`; the last one when the budget is used up. After a
/// `KvUnknownCommit` it may still have happened: repeat the same call with the same row.
pub async fn run_once<E: KvEngine, T>(
    engine: &E,
    row: &[u8],
    look: Look,
    mut remembered: impl FnMut(&[u8]) -> Result<T>,
    mut body: impl AsyncFnMut(&mut E::Txn) -> Result<(T, Vec<u8>)>,
) -> Result<T> {
    let mut attempts = Attempts::new(engine, Budget::DEFAULT);
    let mut looks = look == Look::EveryAttempt;
    loop {
        let outcome = attempt(engine, async |txn: &mut E::Txn| {
            if looks && let Some(row) = txn.get(row, Isolation::Serializable).await? {
                return remembered(&row);
            }
            let (value, remember) = body(txn).await?;
            txn.add_read_conflict_key(row);
            txn.set(row, &remember);
            // Without a read version the conflict with the row would not count.
            txn.read_version().await?;
            Ok(value)
        });
        match outcome.await {
            Ok((value, _)) => return Ok(value),
            Err(error) => {
                looks |= error.code == ErrorCode::KvUnknownCommit;
                attempts.again(error).await?;
            }
        }
    }
}

async fn attempt<E: KvEngine, T>(
    engine: &E,
    mut body: impl AsyncFnMut(&mut E::Txn) -> Result<T>,
) -> Result<(T, Committed)> {
    let mut txn = engine.begin();
    let value = body(&mut txn).await?;
    let committed = txn.commit().await?;
    Ok((value, committed))
}

/// Counts attempts and pauses between them.
struct Attempts<'a, E> {
    engine: &'a E,
    budget: Budget,
    started: Duration,
    made: u32,
    /// An unknown commit stays unknown when later attempts fail otherwise: the caller must hear of it.
    unknown: Option<Error>,
}

impl<'a, E: KvEngine> Attempts<'a, E> {
    fn new(engine: &'a E, budget: Budget) -> Self {
        Self { engine, budget, started: engine.now(), made: 0, unknown: None }
    }

    /// Pauses before another attempt, or returns `error` when there shall be none.
    async fn again(&mut self, error: Error) -> Result<()> {
        self.made += 1;
        let retried = (500..600).contains(&(error.code as u32)) && error.class() == Class::Retry;
        if !retried {
            // The store's own failure leaves an earlier unknown commit unknown; an error of the body is an answer.
            let own = !(500..600).contains(&(error.code as u32));
            return Err(if own { error } else { self.unknown.take().unwrap_or(error) });
        }
        let spent = self.engine.now().saturating_sub(self.started);
        if error.code == ErrorCode::KvUnknownCommit {
            self.unknown = Some(error.clone());
        }
        if self.made >= self.budget.attempts || spent >= self.budget.time {
            let error = self.unknown.take().unwrap_or(error);
            return Err(error.of(format_args!("gave up after {} attempts in {spent:?}", self.made)));
        }
        self.engine.backoff(self.made).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::{Fault, Mem};
    use futures_lite::future::block_on;

    async fn counter(engine: &Mem) -> i64 {
        let value = engine.begin().get(b"counter", Isolation::Snapshot).await.unwrap();
        value.map_or(0, |value| i64::from_le_bytes(value.try_into().unwrap()))
    }

    #[test]
    fn pauses_grow_to_their_bound() {
        assert_eq!(pause_before(1, 0), PAUSE_MIN);
        assert!(pause_before(1, 1023) >= PAUSE_MIN / 2);
        assert!(pause_before(4, 0) > pause_before(3, 0));
        assert_eq!(pause_before(u32::MAX, 0), PAUSE_MAX);
    }

    #[test]
    fn conflicts_are_retried_and_own_errors_are_not() {
        block_on(async {
            let engine = Mem::new();
            engine.script([Some(Fault::Conflict), Some(Fault::TooOld), Some(Fault::Unavailable)]);
            let mut runs = 0;
            let body = async |txn: &mut <Mem as KvEngine>::Txn| {
                runs += 1;
                txn.add_i64(b"counter", 1);
                Ok(runs)
            };
            assert_eq!(run(&engine, body).await, Ok(4));
            assert_eq!(counter(&engine).await, 1);
            let body = async |txn: &mut <Mem as KvEngine>::Txn| {
                txn.add_i64(b"counter", 1);
                Err::<(), _>(ErrorCode::NotFound.into())
            };
            assert_eq!(run(&engine, body).await.unwrap_err().code, ErrorCode::NotFound);
            assert_eq!(counter(&engine).await, 1);
        });
    }

    #[test]
    fn the_budget_ends_it() {
        block_on(async {
            let engine = Mem::new();
            engine.script([Some(Fault::Conflict); 100]);
            let mut runs = 0;
            let body = async |txn: &mut <Mem as KvEngine>::Txn| {
                runs += 1;
                txn.add_i64(b"counter", 1);
                Ok(())
            };
            let error = run(&engine, body).await.unwrap_err();
            assert_eq!((error.code, runs), (ErrorCode::KvConflict, Budget::DEFAULT.attempts));
        });
    }

    async fn increment_once(engine: &Mem, row: &[u8]) -> Result<i64> {
        let remembered = |row: &[u8]| Ok(i64::from_le_bytes(row.try_into().unwrap()));
        run_once(engine, row, Look::AfterUnknownCommit, remembered, async |txn| {
            txn.add_i64(b"counter", 1);
            Ok((7, 7i64.to_le_bytes().to_vec()))
        })
        .await
    }

    #[test]
    fn once_is_once_however_the_commit_ends() {
        block_on(async {
            for fault in [Fault::UnknownDone, Fault::UnknownNever, Fault::UnknownLate] {
                for script in [vec![fault], vec![fault, Fault::Conflict, fault], vec![fault; 4]] {
                    let engine = Mem::new();
                    engine.script(script.into_iter().map(Some));
                    assert_eq!(increment_once(&engine, b"row").await, Ok(7));
                    engine.settle();
                    assert_eq!(counter(&engine).await, 1, "{fault:?}");
                }
            }
        });
    }

    #[test]
    fn repeating_is_not_once() {
        // What run_once is for: the same faults do harm to a body that isn't repeatable.
        block_on(async {
            for fault in [Fault::UnknownDone, Fault::UnknownLate] {
                let engine = Mem::new();
                engine.script([Some(fault)]);
                let body = async |txn: &mut <Mem as KvEngine>::Txn| {
                    txn.add_i64(b"counter", 1);
                    Ok(())
                };
                run_repeatable(&engine, body).await.unwrap();
                engine.settle();
                assert_eq!(counter(&engine).await, 2, "{fault:?}");
            }
        });
    }

    #[test]
    fn an_unknown_commit_is_reported_to_those_who_did_not_say_what_to_do() {
        block_on(async {
            let engine = Mem::new();
            engine.script([Some(Fault::UnknownDone)]);
            let body = async |txn: &mut <Mem as KvEngine>::Txn| {
                txn.set(b"k", b"v");
                Ok(())
            };
            assert_eq!(run(&engine, body).await.unwrap_err().code, ErrorCode::KvUnknownCommit);
        });
    }

    #[test]
    fn every_look_finds_what_an_earlier_call_did() {
        block_on(async {
            let engine = Mem::new();
            for result in [7, 7] {
                let remembered = |row: &[u8]| Ok(i64::from(row[0]));
                let outcome = run_once(&engine, b"row", Look::EveryAttempt, remembered, async |txn| {
                    txn.add_i64(b"counter", 1);
                    Ok((7, vec![7]))
                });
                assert_eq!(outcome.await, Ok(result));
            }
            assert_eq!(counter(&engine).await, 1);
        });
    }
}
