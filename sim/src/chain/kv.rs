//! The key-value store as a process sees it: the deterministic store of [`corefs_kv::mem`], which conflicts and forgets what it did, at
//! the other end of a road that takes time and is cut now and then.

use super::config::Canary;
use crate::prng::Prng;
use crate::tasks::{MILLI, Timers};
use corefs_engine::event::Nanos;
use corefs_kv::mem::{Faults, Mem, Pace};
use corefs_kv::resolver::Written;
use corefs_kv::store::{Commit, Found, ReadBatch, Store};
use corefs_kv::{Committed, mutation::Mutation};
use corefs_mgmtd::rows;
use corefs_wire::{Error, ErrorCode, Result};
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

/// Virtual time after which a process takes it that the store isn't reached.
const PATIENCE: Nanos = 500 * MILLI;
/// What goes wrong while the store is in trouble.
pub const TROUBLE: Faults = Faults {
    conflict: 250,
    too_old: 20,
    unavailable: 50,
    unknown_done: 80,
    unknown_never: 80,
    unknown_late: 80,
    read: 30,
    yields: 0,
};

/// The store's own pace: that of the world.
impl Pace for Timers {
    fn now(&self) -> Duration {
        Duration::from_nanos(Self::now(self))
    }

    fn pause(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(self.sleep(duration.as_nanos() as Nanos))
    }
}

/// What came of the commits of all processes.
#[derive(Default)]
pub struct Outcomes {
    pub conflicts: Cell<u64>,
    pub unknown: Cell<u64>,
    /// A bug built in.
    pub canary: Cell<Option<Canary>>,
}

/// One process's road to the store. Clones are the same road.
#[derive(Clone)]
pub struct Road {
    store: Mem,
    timers: Timers,
    prng: Rc<RefCell<Prng>>,
    /// Changes of the cluster take so long at most (milliseconds).
    slow_ms: u64,
    /// Nothing passes until then.
    cut_until: Rc<Cell<Nanos>>,
    outcomes: Rc<Outcomes>,
}

impl Road {
    pub fn new(store: Mem, timers: Timers, prng: Prng, slow_ms: u64, outcomes: Rc<Outcomes>) -> Self {
        let (prng, cut_until) = (Rc::new(RefCell::new(prng)), Rc::default());
        Self { store, timers, prng, slow_ms, cut_until, outcomes }
    }

    pub fn cut(&self, until: Nanos) {
        self.cut_until.set(until);
    }

    fn is_cut(&self) -> bool {
        self.timers.now() < self.cut_until.get()
    }

    fn below(&self, bound: u64) -> u64 {
        self.prng.borrow_mut().below(bound)
    }

    /// One way.
    async fn travel(&self, most_ms: u64) {
        let time = self.below(most_ms * MILLI);
        self.timers.sleep(time).await;
    }

    async fn reach(&self) -> Result<()> {
        self.travel(2).await;
        if self.is_cut() {
            self.timers.sleep(PATIENCE).await;
            return Err(Error::new(ErrorCode::KvUnavailable, "the store isn't reached"));
        }
        Ok(())
    }
}

impl Store for Road {
    type Snapshot = u64;

    fn version(snapshot: &u64) -> u64 {
        Mem::version(snapshot)
    }

    fn now(&self) -> Duration {
        Pace::now(&self.timers)
    }

    async fn snapshot(&self) -> Result<u64> {
        self.reach().await?;
        self.store.snapshot().await
    }

    async fn read(&self, snapshot: &mut Option<u64>, batch: ReadBatch<'_>) -> Result<Found> {
        self.reach().await?;
        let found = self.store.read(snapshot, batch).await;
        self.travel(2).await;
        found
    }

    async fn commit(&self, mut commit: Commit) -> Result<Committed> {
        let canary = self.outcomes.canary.get();
        if canary == Some(Canary::ConflictsOverlooked) {
            commit.read_conflicts.clear();
        }
        let counters = rows::counters_key();
        let counts = |mutation: &Mutation| match mutation.written() {
            Written::Key(key) => key == counters,
            Written::Range(_) => false,
        };
        let changes = commit.mutations.iter().any(counts);
        if changes && canary == Some(Canary::CommitsForgotten) && self.below(8) == 0 {
            return Ok(Committed { version: commit.read_version, versionstamp: None });
        }
        if changes && canary == Some(Canary::CommitsTorn) && self.below(8) == 0 {
            let row = commit.mutations.iter().position(|mutation| !counts(mutation));
            row.map(|row| commit.mutations.remove(row));
        }
        self.travel(if changes { self.slow_ms } else { 2 }).await;
        let unknown = || Err(Error::new(ErrorCode::KvUnknownCommit, "no answer came from the store"));
        // A road that is cut loses the question or the answer, and nobody can tell which.
        let lost = self.is_cut();
        let outcome = if lost && self.below(2) == 0 { unknown() } else { self.store.commit(commit).await };
        self.travel(2).await;
        let outcome = if lost || self.is_cut() {
            self.timers.sleep(PATIENCE).await;
            unknown()
        } else {
            outcome
        };
        let count = |cell: &Cell<u64>| cell.set(cell.get() + 1);
        match outcome.as_ref().map_err(|error| error.code) {
            Err(ErrorCode::KvConflict) => count(&self.outcomes.conflicts),
            Err(ErrorCode::KvUnknownCommit) => count(&self.outcomes.unknown),
            _ => {}
        }
        outcome
    }

    async fn pause(&self, duration: Duration) {
        Pace::pause(&self.timers, duration).await;
    }

    fn random(&self) -> u64 {
        self.prng.borrow_mut().next_u64()
    }
}
